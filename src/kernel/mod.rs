//! Extism's memory: blocks of bytes that guest and host share.
//!
//! Guests read and write blocks through `kernel.wat`, which is linked into every plugin. The host
//! allocates, frees and reads them here, in safe Rust: an invalid offset yields `None`, never undefined
//! behaviour. No guest instruction can address the block table, so its contents can be trusted.

use wasmtime::{AsContext, AsContextMut, Memory, StoreContextMut};

/// The kernel's source. The linker assembles it in less than a millisecond, so no generated file has to
/// be kept up to date.
pub const TEXT: &str = include_str!("kernel.wat");

/// Offsets in the table; `kernel.wat` uses the same numbers.
mod layout {
  pub const COUNT: usize = 0;
  pub const LAST_LENGTH: usize = 16;
  pub const INPUT_OFFSET: usize = 24;
  pub const INPUT_LENGTH: usize = 32;
  pub const OUTPUT_OFFSET: usize = 40;
  pub const OUTPUT_LENGTH: usize = 48;
  pub const ERROR_OFFSET: usize = 56;
  pub const HAS_OUTPUT: usize = 64;
  pub const ENTRIES: usize = 128;
  pub const ENTRY: usize = 16;
}

/// Offset of the first block. Offset 0 stands for "no block".
const FIRST_OFFSET: u64 = 64;

/// Block offsets are multiples of this.
const ALIGNMENT: u64 = 16;

/// The largest block. Lengths must fit into the table's 32 bits, and guests compute with signed
/// integers.
const MAX_BLOCK_LENGTH: u64 = 0x7fff_ffff;

/// How many freed blocks of one size class `alloc` inspects before it takes fresh memory.
const MAX_INSPECTED: usize = 8;

/// Marks the end of a free list.
const NO_ENTRY: u32 = u32::MAX;

const PAGE: u64 = 64 << 10;

/// Why a block could not be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
  /// The live blocks would exceed their limit, or the memory cannot grow.
  #[error("out of memory")]
  OutOfMemory,
}

/// The data of a store that has a kernel.
pub trait HasKernel: 'static {
  /// The kernel of the instance.
  fn kernel(&self) -> &Kernel;
  /// The kernel of the instance, mutable.
  fn kernel_mut(&mut self) -> &mut Kernel;
}

/// The host's side of one instance's kernel.
#[derive(Debug)]
pub struct Kernel {
  /// `None` until the instance has been created.
  memories: Option<Memories>,
  /// Bytes of all live blocks together.
  live: u64,
  /// The limit of `live`.
  live_limit: u64,
  /// Head of the free list of each size class: class n has capacities from 2ⁿ to 2ⁿ⁺¹ − 1.
  freed: [u32; 32],
  /// Start of the memory that no block has used yet.
  fresh: u64,
}

#[derive(Clone, Copy, Debug)]
struct Memories {
  blocks: Memory,
  table: Memory,
}

/// One entry of the block table.
#[derive(Clone, Copy, Debug)]
struct BlockEntry {
  start: u32,
  length: u32,
  capacity: u32,
  next: u32,
}

impl Kernel {
  /// A kernel whose live blocks may have at most `live_limit` bytes together.
  pub fn new(live_limit: u64) -> Self {
    Self {
      memories: None,
      live: 0,
      live_limit,
      freed: [NO_ENTRY; 32],
      fresh: FIRST_OFFSET,
    }
  }

  /// Connects the kernel with the memories of its instance.
  pub fn attach(&mut self, blocks: Memory, table: Memory) {
    self.memories = Some(Memories { blocks, table });
  }

  /// Frees every block, input, output and error included. Overwrites the used memory with zeros, so that
  /// no data of one call is left for the next.
  pub fn reset<T: HasKernel>(store: &mut StoreContextMut<'_, T>) {
    let kernel = store.data_mut().kernel_mut();
    let used = kernel.fresh as usize;
    (kernel.live, kernel.fresh) = (0, FIRST_OFFSET);
    kernel.freed = [NO_ENTRY; 32];
    let Some(memories) = kernel.memories else {
      return;
    };
    let blocks = memories.blocks.data_mut(&mut *store);
    if let Some(used) = blocks.get_mut(FIRST_OFFSET as usize..used) {
      used.fill(0);
    }
    let table = memories.table.data_mut(store);
    if let Some(state) = table.get_mut(..layout::ENTRIES) {
      state.fill(0);
    }
  }

  /// Allocates a block of `length` zero bytes and returns its offset; 0 if the length is 0 or above 2³¹
  /// − 1.
  pub fn alloc<T: HasKernel>(
    store: &mut StoreContextMut<'_, T>,
    length: u64,
  ) -> Result<u64, AllocError> {
    if length == 0 || length > MAX_BLOCK_LENGTH {
      return Ok(0);
    }
    let kernel = store.data_mut().kernel_mut();
    let live = kernel.live + length;
    let (Some(memories), true) = (kernel.memories, live <= kernel.live_limit) else {
      return Err(AllocError::OutOfMemory);
    };
    let start = match Self::reuse(store, memories, length) {
      Some(start) => start,
      None => Self::take_fresh(store, memories, length)?,
    };
    store.data_mut().kernel_mut().live = live;
    Ok(start)
  }

  /// Takes a block from a free list if one is large enough.
  fn reuse<T: HasKernel>(
    store: &mut StoreContextMut<'_, T>,
    memories: Memories,
    length: u64,
  ) -> Option<u64> {
    let mut freed = store.as_context().data().kernel().freed;
    let mut class = class_of(length as u32);
    // In the class of `length` some blocks are too small; in the classes above all fit.
    loop {
      let table = memories.table.data_mut(&mut *store);
      let head = freed.get_mut(class)?;
      let (mut previous, mut index) = (NO_ENTRY, *head);
      for _ in 0..MAX_INSPECTED {
        if index == NO_ENTRY {
          break;
        }
        let entry = BlockEntry::read(table, index)?;
        if u64::from(entry.capacity) >= length {
          match previous {
            NO_ENTRY => *head = entry.next,
            previous => {
              let before = BlockEntry::read(table, previous)?;
              BlockEntry {
                next: entry.next,
                ..before
              }
              .write(table, previous)?;
            }
          }
          let taken = BlockEntry {
            length: length as u32,
            next: NO_ENTRY,
            ..entry
          };
          taken.write(table, index)?;
          let start = entry.start as usize;
          let block = memories.blocks.data_mut(&mut *store);
          block.get_mut(start..start + length as usize)?.fill(0);
          store.data_mut().kernel_mut().freed = freed;
          return Some(u64::from(entry.start));
        }
        (previous, index) = (index, entry.next);
      }
      class += 1;
    }
  }

  /// Allocates a block after all others.
  fn take_fresh<T: HasKernel>(
    store: &mut StoreContextMut<'_, T>,
    memories: Memories,
    length: u64,
  ) -> Result<u64, AllocError> {
    let out_of_memory = || AllocError::OutOfMemory;
    let start = store.as_context().data().kernel().fresh;
    let capacity = length.next_multiple_of(ALIGNMENT);
    let end = start + capacity;
    if end > u64::from(u32::MAX) {
      return Err(AllocError::OutOfMemory);
    }
    let count = read_u32(memories.table.data(&*store), layout::COUNT).ok_or_else(out_of_memory)?;
    let entries_end = layout::ENTRIES as u64 + (u64::from(count) + 1) * layout::ENTRY as u64;
    grow_to(store, memories.blocks, end)?;
    grow_to(store, memories.table, entries_end)?;
    let table = memories.table.data_mut(&mut *store);
    let entry = BlockEntry {
      start: start as u32,
      length: length as u32,
      capacity: capacity as u32,
      next: NO_ENTRY,
    };
    entry
      .write(table, count)
      .and_then(|()| write_u32(table, layout::COUNT, count + 1))
      .ok_or_else(out_of_memory)?;
    store.data_mut().kernel_mut().fresh = end;
    Ok(start)
  }

  /// Frees the block that starts at `offset`. Ignored if no block starts there, or if it holds the
  /// input, output or error.
  pub fn free<T: HasKernel>(store: &mut StoreContextMut<'_, T>, offset: u64) {
    let Some(memories) = store.as_context().data().kernel().memories else {
      return;
    };
    let table = memories.table.data_mut(&mut *store);
    let Some((index, entry)) = find(table, offset) else {
      return;
    };
    let (start, end) = (
      u64::from(entry.start),
      u64::from(entry.start) + u64::from(entry.length),
    );
    let is_kept = [
      layout::INPUT_OFFSET,
      layout::OUTPUT_OFFSET,
      layout::ERROR_OFFSET,
    ]
    .into_iter()
    .filter_map(|position| read_u64(table, position))
    .any(|kept| kept != 0 && (start..end).contains(&kept));
    if is_kept {
      return;
    }
    let class = class_of(entry.capacity);
    // The block that the guest used last, which the kernel caches, may be this one.
    let forgotten = write_u64(table, layout::LAST_LENGTH, 0);
    let kernel = store.data_mut().kernel_mut();
    let Some((head, ())) = kernel.freed.get_mut(class).zip(forgotten) else {
      return;
    };
    let next = std::mem::replace(head, index);
    kernel.live -= u64::from(entry.length);
    let freed = BlockEntry {
      length: 0,
      next,
      ..entry
    };
    // Cannot fail: the entry was read from there.
    let _ = freed.write(memories.table.data_mut(store), index);
  }

  /// Allocates a block with these bytes; returns 0 if there are none.
  pub fn store<T: HasKernel>(
    store: &mut StoreContextMut<'_, T>,
    bytes: &[u8],
  ) -> Result<u64, AllocError> {
    let offset = Self::alloc(store, bytes.len() as u64)?;
    if offset == 0 && !bytes.is_empty() {
      // Longer than the largest block.
      return Err(AllocError::OutOfMemory);
    }
    let memories = store.as_context().data().kernel().memories;
    let start = offset as usize;
    if let Some(memories) = memories
      && let Some(block) = memories
        .blocks
        .data_mut(store)
        .get_mut(start..start + bytes.len())
    {
      block.copy_from_slice(bytes);
    }
    Ok(offset)
  }

  /// Sets the input of the call.
  pub fn set_input<T: HasKernel>(
    store: &mut StoreContextMut<'_, T>,
    bytes: &[u8],
  ) -> Result<(), AllocError> {
    let offset = Self::store(store, bytes)?;
    if let Some(memories) = store.as_context().data().kernel().memories {
      let table = memories.table.data_mut(store);
      write_u64(table, layout::INPUT_OFFSET, offset)
        .and_then(|()| write_u64(table, layout::INPUT_LENGTH, bytes.len() as u64))
        .ok_or(AllocError::OutOfMemory)?;
    }
    Ok(())
  }

  /// Makes the block at `offset` the error of the call; 0 clears the error. Ignored if no block starts
  /// there.
  pub fn set_error<T: HasKernel>(store: &mut StoreContextMut<'_, T>, offset: u64) {
    if let Some(memories) = store.as_context().data().kernel().memories {
      let table = memories.table.data_mut(store);
      if offset == 0 || find(table, offset).is_some() {
        let _ = write_u64(table, layout::ERROR_OFFSET, offset);
      }
    }
  }

  /// The bytes of the live block that starts at `offset`, if there is one.
  pub fn block<T: HasKernel>(store: &impl AsContext<Data = T>, offset: u64) -> Option<&[u8]> {
    let memories = store.as_context().data().kernel().memories?;
    let (_, entry) = find(memories.table.data(store), offset)?;
    let start = entry.start as usize;
    memories
      .blocks
      .data(store)
      .get(start..start + entry.length as usize)
  }

  /// The output of the call, if the guest has set one.
  pub fn output<T: HasKernel>(store: &impl AsContext<Data = T>) -> Option<&[u8]> {
    let memories = store.as_context().data().kernel().memories?;
    let table = memories.table.data(store);
    if read_u32(table, layout::HAS_OUTPUT)? == 0 {
      return None;
    }
    let start = read_u64(table, layout::OUTPUT_OFFSET)? as usize;
    let length = read_u64(table, layout::OUTPUT_LENGTH)? as usize;
    memories
      .blocks
      .data(store)
      .get(start..start.checked_add(length)?)
  }

  /// The error of the call, if one is set.
  pub fn error<T: HasKernel>(store: &impl AsContext<Data = T>) -> Option<&[u8]> {
    let table = store
      .as_context()
      .data()
      .kernel()
      .memories?
      .table
      .data(store);
    match read_u64(table, layout::ERROR_OFFSET)? {
      0 => None,
      offset => Self::block(store, offset),
    }
  }

  /// The size of the memory that contains the blocks, in bytes. It never shrinks.
  pub fn bytes<T: HasKernel>(store: &impl AsContext<Data = T>) -> u64 {
    let memories = store.as_context().data().kernel().memories;
    memories.map_or(0, |memories| memories.blocks.data_size(store) as u64)
  }
}

/// Grows a memory to at least `end` bytes.
fn grow_to<T: HasKernel>(
  store: &mut StoreContextMut<'_, T>,
  memory: Memory,
  end: u64,
) -> Result<(), AllocError> {
  let missing = end.saturating_sub(memory.data_size(&*store) as u64);
  if missing > 0 {
    // The store's limiter counts the growth.
    memory
      .grow(store.as_context_mut(), missing.div_ceil(PAGE))
      .map_err(|_| AllocError::OutOfMemory)?;
  }
  Ok(())
}

/// The entry of the live block that starts at `offset`.
fn find(table: &[u8], offset: u64) -> Option<(u32, BlockEntry)> {
  let offset = u32::try_from(offset).ok()?;
  let (mut low, mut high) = (0, read_u32(table, layout::COUNT)?);
  while low < high {
    let middle = low + (high - low) / 2;
    let entry = BlockEntry::read(table, middle)?;
    match entry.start.cmp(&offset) {
      std::cmp::Ordering::Less => low = middle + 1,
      std::cmp::Ordering::Greater => high = middle,
      std::cmp::Ordering::Equal => return (entry.length > 0).then_some((middle, entry)),
    }
  }
  None
}

/// The size class of a size that is not 0.
fn class_of(size: u32) -> usize {
  31 - size.max(1).leading_zeros() as usize
}

impl BlockEntry {
  fn position(index: u32) -> usize {
    layout::ENTRIES + index as usize * layout::ENTRY
  }

  fn read(table: &[u8], index: u32) -> Option<Self> {
    let position = Self::position(index);
    Some(Self {
      start: read_u32(table, position)?,
      length: read_u32(table, position + 4)?,
      capacity: read_u32(table, position + 8)?,
      next: read_u32(table, position + 12)?,
    })
  }

  fn write(self, table: &mut [u8], index: u32) -> Option<()> {
    let position = Self::position(index);
    write_u32(table, position, self.start)?;
    write_u32(table, position + 4, self.length)?;
    write_u32(table, position + 8, self.capacity)?;
    write_u32(table, position + 12, self.next)
  }
}

fn read_u32(table: &[u8], position: usize) -> Option<u32> {
  let bytes = table.get(position..)?.first_chunk()?;
  Some(u32::from_le_bytes(*bytes))
}

fn read_u64(table: &[u8], position: usize) -> Option<u64> {
  let bytes = table.get(position..)?.first_chunk()?;
  Some(u64::from_le_bytes(*bytes))
}

fn write_u32(table: &mut [u8], position: usize, value: u32) -> Option<()> {
  *table.get_mut(position..)?.first_chunk_mut()? = value.to_le_bytes();
  Some(())
}

fn write_u64(table: &mut [u8], position: usize, value: u64) -> Option<()> {
  *table.get_mut(position..)?.first_chunk_mut()? = value.to_le_bytes();
  Some(())
}
