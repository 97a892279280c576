//! Blocks of bytes that guest and host share: Extism's memory.
//!
//! Guests read and write through `kernel.wat`, which is linked into every plugin. The host allocates,
//! frees and reads here, in safe Rust: an offset that leads nowhere is `None`, never undefined
//! behaviour. No guest instruction can name the table of blocks, so what the table says is true.

use wasmtime::{AsContext, AsContextMut, Memory, StoreContextMut};

/// The kernel's text. The linker assembles it, in less than a millisecond, so that no generated file has
/// to be kept current.
pub const TEXT: &str = include_str!("kernel.wat");

/// Where things are in the table; `kernel.wat` has the same numbers.
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

/// The first block starts here: offset 0 stands for "no block".
const FIRST: u64 = 64;

/// Blocks start at multiples of this.
const ALIGNMENT: u64 = 16;

/// The largest block. Lengths must fit into the table's 32 bits, and guests compute with signed ones.
const LARGEST: u64 = 0x7fff_ffff;

/// How many freed blocks of one size class `alloc` inspects before it takes fresh memory.
const MAX_INSPECTED: usize = 8;

/// Ends a list of freed blocks.
const NO_ENTRY: u32 = u32::MAX;

const PAGE: u64 = 64 << 10;

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
  /// The live blocks would have more bytes than they may, or memory cannot grow.
  #[error("out of memory")]
  OutOfMemory,
}

/// The data of a store that has a kernel.
pub trait HasKernel: 'static {
  /// The kernel of the instance.
  fn kernel(&self) -> &Kernel;
  /// The same, to change it.
  fn kernel_mut(&mut self) -> &mut Kernel;
}

/// The host's side of one instance's kernel.
#[derive(Debug)]
pub struct Kernel {
  /// `None` until the instance exists.
  memories: Option<Memories>,
  /// Bytes of all live blocks together.
  live: u64,
  /// How many there may be.
  live_limit: u64,
  /// First freed entry of each size class: class n has capacities from 2ⁿ to 2ⁿ⁺¹ − 1.
  freed: [u32; 32],
  /// Where the memory that no block has used begins.
  fresh: u64,
}

#[derive(Clone, Copy, Debug)]
struct Memories {
  blocks: Memory,
  table: Memory,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug)]
struct Entry {
  start: u32,
  length: u32,
  capacity: u32,
  next: u32,
}

impl Kernel {
  /// A kernel whose live blocks may have so many bytes together.
  pub fn new(live_limit: u64) -> Self {
    Self {
      memories: None,
      live: 0,
      live_limit,
      freed: [NO_ENTRY; 32],
      fresh: FIRST,
    }
  }

  /// Connects it with the memories of its instance.
  pub fn attach(&mut self, blocks: Memory, table: Memory) {
    self.memories = Some(Memories { blocks, table });
  }

  /// Ends every block, and input, output and error with them. What was used is overwritten with zeros,
  /// so nothing of one call is left for the next.
  pub fn reset<T: HasKernel>(store: &mut StoreContextMut<'_, T>) {
    let kernel = store.data_mut().kernel_mut();
    let used = kernel.fresh as usize;
    (kernel.live, kernel.fresh) = (0, FIRST);
    kernel.freed = [NO_ENTRY; 32];
    let Some(memories) = kernel.memories else {
      return;
    };
    let blocks = memories.blocks.data_mut(&mut *store);
    if let Some(used) = blocks.get_mut(FIRST as usize..used) {
      used.fill(0);
    }
    let table = memories.table.data_mut(store);
    if let Some(state) = table.get_mut(..layout::ENTRIES) {
      state.fill(0);
    }
  }

  /// Makes a block of that many zero bytes and returns its offset; 0 for a length of 0 or above
  /// 2³¹ − 1.
  pub fn alloc<T: HasKernel>(
    store: &mut StoreContextMut<'_, T>,
    length: u64,
  ) -> Result<u64, AllocError> {
    if length == 0 || length > LARGEST {
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

  /// Takes a freed block that is large enough.
  fn reuse<T: HasKernel>(
    store: &mut StoreContextMut<'_, T>,
    memories: Memories,
    length: u64,
  ) -> Option<u64> {
    let mut freed = store.as_context().data().kernel().freed;
    let mut class = class_of(length as u32);
    // In the class of the length itself some are too small; every one of the classes above fits.
    loop {
      let table = memories.table.data_mut(&mut *store);
      let head = freed.get_mut(class)?;
      let (mut previous, mut index) = (NO_ENTRY, *head);
      for _ in 0..MAX_INSPECTED {
        if index == NO_ENTRY {
          break;
        }
        let entry = Entry::read(table, index)?;
        if u64::from(entry.capacity) >= length {
          match previous {
            NO_ENTRY => *head = entry.next,
            previous => {
              let before = Entry::read(table, previous)?;
              Entry {
                next: entry.next,
                ..before
              }
              .write(table, previous)?;
            }
          }
          let taken = Entry {
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

  /// Makes a block behind all others.
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
    let entry = Entry {
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

  /// Ends the block that starts at the offset. Input, output and error stay, and an offset where no
  /// block starts is ignored.
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
    .filter_map(|place| read_u64(table, place))
    .any(|kept| kept != 0 && (start..end).contains(&kept));
    if is_kept {
      return;
    }
    let class = class_of(entry.capacity);
    // The guest's last block may be this one.
    let forgotten = write_u64(table, layout::LAST_LENGTH, 0);
    let kernel = store.data_mut().kernel_mut();
    let Some((head, ())) = kernel.freed.get_mut(class).zip(forgotten) else {
      return;
    };
    let next = std::mem::replace(head, index);
    kernel.live -= u64::from(entry.length);
    let freed = Entry {
      length: 0,
      next,
      ..entry
    };
    // The entry was read from there.
    let _ = freed.write(memories.table.data_mut(store), index);
  }

  /// Makes a block with these bytes; 0 for none.
  pub fn store<T: HasKernel>(
    store: &mut StoreContextMut<'_, T>,
    bytes: &[u8],
  ) -> Result<u64, AllocError> {
    let offset = Self::alloc(store, bytes.len() as u64)?;
    if offset == 0 && !bytes.is_empty() {
      // Longer than any block.
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

  /// Makes these bytes the input of the call.
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

  /// The error of the call is the block at that offset from now on; 0 for none.
  pub fn set_error<T: HasKernel>(store: &mut StoreContextMut<'_, T>, offset: u64) {
    if let Some(memories) = store.as_context().data().kernel().memories {
      let table = memories.table.data_mut(store);
      if offset == 0 || find(table, offset).is_some() {
        let _ = write_u64(table, layout::ERROR_OFFSET, offset);
      }
    }
  }

  /// The bytes of the block that starts at the offset; `None` if no live block does.
  pub fn block<T: HasKernel>(store: &impl AsContext<Data = T>, offset: u64) -> Option<&[u8]> {
    let memories = store.as_context().data().kernel().memories?;
    let (_, entry) = find(memories.table.data(store), offset)?;
    let start = entry.start as usize;
    memories
      .blocks
      .data(store)
      .get(start..start + entry.length as usize)
  }

  /// The output of the call: `None` if the guest has set none.
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

  /// The error of the call: `None` if there is none.
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

  /// The bytes of the memory that blocks lie in. It never shrinks.
  pub fn bytes<T: HasKernel>(store: &impl AsContext<Data = T>) -> u64 {
    let memories = store.as_context().data().kernel().memories;
    memories.map_or(0, |memories| memories.blocks.data_size(store) as u64)
  }
}

/// Makes a memory so large that `end` lies in it.
fn grow_to<T: HasKernel>(
  store: &mut StoreContextMut<'_, T>,
  memory: Memory,
  end: u64,
) -> Result<(), AllocError> {
  let missing = end.saturating_sub(memory.data_size(&*store) as u64);
  if missing > 0 {
    // The limiter of the store counts it.
    memory
      .grow(store.as_context_mut(), missing.div_ceil(PAGE))
      .map_err(|_| AllocError::OutOfMemory)?;
  }
  Ok(())
}

/// The entry of the live block that starts at the offset.
fn find(table: &[u8], offset: u64) -> Option<(u32, Entry)> {
  let offset = u32::try_from(offset).ok()?;
  let (mut low, mut high) = (0, read_u32(table, layout::COUNT)?);
  while low < high {
    let middle = low + (high - low) / 2;
    let entry = Entry::read(table, middle)?;
    match entry.start.cmp(&offset) {
      std::cmp::Ordering::Less => low = middle + 1,
      std::cmp::Ordering::Greater => high = middle,
      std::cmp::Ordering::Equal => return (entry.length > 0).then_some((middle, entry)),
    }
  }
  None
}

/// The class of a size that is not 0.
fn class_of(size: u32) -> usize {
  31 - size.max(1).leading_zeros() as usize
}

impl Entry {
  fn place(index: u32) -> usize {
    layout::ENTRIES + index as usize * layout::ENTRY
  }

  fn read(table: &[u8], index: u32) -> Option<Self> {
    let place = Self::place(index);
    Some(Self {
      start: read_u32(table, place)?,
      length: read_u32(table, place + 4)?,
      capacity: read_u32(table, place + 8)?,
      next: read_u32(table, place + 12)?,
    })
  }

  fn write(self, table: &mut [u8], index: u32) -> Option<()> {
    let place = Self::place(index);
    write_u32(table, place, self.start)?;
    write_u32(table, place + 4, self.length)?;
    write_u32(table, place + 8, self.capacity)?;
    write_u32(table, place + 12, self.next)
  }
}

fn read_u32(table: &[u8], place: usize) -> Option<u32> {
  let bytes = table.get(place..)?.first_chunk()?;
  Some(u32::from_le_bytes(*bytes))
}

fn read_u64(table: &[u8], place: usize) -> Option<u64> {
  let bytes = table.get(place..)?.first_chunk()?;
  Some(u64::from_le_bytes(*bytes))
}

fn write_u32(table: &mut [u8], place: usize, value: u32) -> Option<()> {
  *table.get_mut(place..)?.first_chunk_mut()? = value.to_le_bytes();
  Some(())
}

fn write_u64(table: &mut [u8], place: usize, value: u64) -> Option<()> {
  *table.get_mut(place..)?.first_chunk_mut()? = value.to_le_bytes();
  Some(())
}
