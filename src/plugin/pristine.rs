//! Restores an instance to its state before the initialization, in place. That is much faster than creating
//! another one, because the pages that a guest writes stay mapped.
//!
//! This is possible if calls can only change memories and numeric globals, which the linker determines, and
//! if no call has grown a memory. The kernel knows which pages were written: `PAGEMAP_SCAN` (Linux 6.7). A
//! written page is anonymous, whether it is in memory, swapped out or being moved. All other pages belong to
//! the image, or have never been touched. So we scan for all pages, present or not, that belong neither to a
//! file nor to the zero page.

use wasmtime::{Global, Instance, Memory, Store, Val};

use super::link::{StateExports, names};
use crate::host::Guest;
use crate::host::guest::PAGE;

/// The maximum initial size of an instance's memories for a restore: 64 MiB. In larger memories, finding the
/// written pages takes longer than creating another instance.
const MAX_BYTES: usize = 64 << 20;

/// The memories and mutable globals of one instance.
pub struct GuestState {
  memories: Vec<Memory>,
  /// The sizes of the memories when calls began.
  lengths: Vec<usize>,
  globals: Vec<Global>,
  /// For each memory the global that contains its size, if sizes are tracked.
  sizes: Vec<Global>,
}

impl GuestState {
  /// `None` if an export is missing, or if the memories are too large to be restored.
  pub fn new(
    exports: &StateExports,
    instance: &Instance,
    store: &mut Store<Guest>,
  ) -> Option<Self> {
    let memories = (0..exports.memories)
      .map(|number| instance.get_memory(&mut *store, &names::state_memory(number)))
      .collect::<Option<Vec<_>>>()?;
    let bytes = memories.iter().map(|memory| memory.data_size(&*store));
    if bytes.sum::<usize>() > MAX_BYTES {
      return None;
    }
    let mut globals = |numbers: &[u32]| {
      let names = numbers.iter().map(|number| names::state_global(*number));
      names
        .map(|name| instance.get_global(&mut *store, &name))
        .collect::<Option<Vec<_>>>()
    };
    let (globals, sizes) = (globals(&exports.globals)?, globals(&exports.sizes)?);
    let mut state = Self {
      lengths: Vec::new(),
      memories,
      globals,
      sizes,
    };
    state.record_sizes(store);
    Some(state)
  }

  /// Records the sizes of the memories before the first call. Returns whether each has the size that its
  /// global says: an initialization that runs again may grow a memory by less than before.
  pub fn record_sizes(&mut self, store: &mut Store<Guest>) -> bool {
    self.lengths.clear();
    let lengths = self.memories.iter().map(|memory| memory.data_size(&*store));
    self.lengths.extend(lengths);
    let sizes = self.sizes.iter().map(|size| size.get(&mut *store).i32());
    sizes.zip(&self.lengths).all(|(size, length)| {
      size.is_some_and(|size| u64::from(size.cast_unsigned()) * PAGE == *length as u64)
    })
  }
}

/// The contents of memories and globals before the initialization.
pub struct Pristine {
  /// The contents of each memory without trailing zeros, and its size.
  memories: Vec<(Vec<u8>, usize)>,
  globals: Vec<Val>,
}

impl Pristine {
  /// Copies the state.
  pub fn new(state: &GuestState, store: &mut Store<Guest>) -> Self {
    Self {
      memories: state
        .memories
        .iter()
        .map(|memory| {
          let data = memory.data(&*store);
          let used = data
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
          (data.get(..used).unwrap_or_default().to_vec(), data.len())
        })
        .collect(),
      globals: state
        .globals
        .iter()
        .map(|global| global.get(&mut *store))
        .collect(),
    }
  }

  /// Restores an instance of the same plugin. `None` if that fails; then the instance may be partly restored.
  pub fn restore(&self, state: &GuestState, store: &mut Store<Guest>) -> Option<()> {
    let is_tracked = !state.sizes.is_empty();
    let memories = state.memories.iter().zip(&state.lengths);
    for ((memory, start_length), (pristine, length)) in memories.zip(&self.memories) {
      let data = memory.data_mut(&mut *store);
      // If calls have grown it, the next call could observe that.
      if data.len() != *start_length || (!is_tracked && data.len() != *length) {
        return None;
      }
      written::pages(data, |range, data| {
        let kept = pristine.get(range.start..range.end.min(pristine.len()));
        let (kept, data) = (kept.unwrap_or_default(), data.get_mut(range));
        if let Some((begin, end)) = data.and_then(|data| data.split_at_mut_checked(kept.len())) {
          begin.copy_from_slice(kept);
          end.fill(0);
        }
      })?;
    }
    for (global, pristine) in state.globals.iter().zip(&self.globals) {
      global.set(&mut *store, *pristine).ok()?;
    }
    Some(())
  }
}

#[cfg(target_os = "linux")]
mod written {
  use std::fs::File;
  use std::ops::Range;
  use std::os::fd::AsRawFd;
  use std::sync::LazyLock;

  /// `struct pm_scan_arg` of `linux/fs.h`.
  #[repr(C)]
  #[derive(Default)]
  struct PagemapScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
  }

  /// `struct page_region`.
  #[repr(C)]
  #[derive(Clone, Copy, Default)]
  struct Region {
    start: u64,
    end: u64,
    categories: u64,
  }

  const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
  const IS_FILE: u64 = 1 << 2;
  const IS_PRESENT: u64 = 1 << 3;
  const IS_SWAPPED: u64 = 1 << 4;
  const IS_ZERO: u64 = 1 << 5;

  /// The maximum number of regions that one `ioctl` returns.
  const REGIONS: usize = 256;

  /// Calls `each` with the ranges of `data` that were written since it was mapped. `None` if the system
  /// cannot tell.
  pub fn pages(data: &mut [u8], mut each: impl FnMut(Range<usize>, &mut [u8])) -> Option<()> {
    static PAGEMAP: LazyLock<Option<File>> =
      LazyLock::new(|| File::open("/proc/self/pagemap").ok());
    let pagemap = PAGEMAP.as_ref()?;
    let base = data.as_ptr() as u64;
    let end = base + data.len() as u64;
    let mut start = base;
    let mut regions = [Region::default(); REGIONS];
    while start < end {
      let mut scan = PagemapScan {
        size: size_of::<PagemapScan>() as u64,
        start,
        end,
        regions: regions.as_mut_ptr() as u64,
        region_count: REGIONS as u64,
        category_inverted: IS_FILE | IS_ZERO,
        category_mask: IS_FILE | IS_ZERO,
        category_anyof_mask: IS_PRESENT | IS_SWAPPED,
        ..PagemapScan::default()
      };
      // SAFETY: the kernel reads `scan`, whose layout and size match what it expects, and writes to it and to
      // at most `region_count` elements of `regions`. Both live until it returns. It changes no page, because
      // no flag asks for that.
      let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
      let found = usize::try_from(found).ok()?;
      for region in regions.get(..found)? {
        let range = region.start.checked_sub(base)?..region.end.checked_sub(base)?;
        each(range.start as usize..range.end as usize, data);
      }
      if scan.walk_end <= start {
        return None;
      }
      start = scan.walk_end;
    }
    Some(())
  }
}

#[cfg(not(target_os = "linux"))]
mod written {
  use std::ops::Range;

  pub fn pages(_: &mut [u8], _: impl FnMut(Range<usize>, &mut [u8])) -> Option<()> {
    None
  }
}
