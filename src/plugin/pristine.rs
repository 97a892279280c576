//! Makes an instance as it was before its initialization, in place: much quicker than another one, since the
//! pages that a guest writes stay mapped.
//!
//! This is possible if memories and numeric globals are all that calls can change, which the linker finds
//! out, and if no call has grown a memory. Which pages were written the kernel knows: `PAGEMAP_SCAN` (Linux 6.7).
//! A page that was written is anonymous, wherever it is at the moment: in memory, swapped out, or being
//! moved. All others are those of the image, or have never been touched. So we ask for all that are
//! neither of a file nor the zero page, present or not.

use wasmtime::{Global, Instance, Memory, Store, Val};

use super::link::{StateExports, names};
use crate::host::Guest;
use crate::host::guest::PAGE;

/// Bytes that the memories of an instance may begin with to be put back: 64 MiB. Looking for written pages in
/// larger ones would take longer than another instance.
const MAX_BYTES: usize = 64 << 20;

/// The memories and mutable globals of one instance.
pub struct State {
  memories: Vec<Memory>,
  /// How long the memories were when calls began.
  lengths: Vec<usize>,
  globals: Vec<Global>,
  /// For each memory the global that has its size, if sizes are tracked.
  sizes: Vec<Global>,
}

impl State {
  /// Finds them. `None` if one is missing, or if the memories are too large to be put back.
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
    state.begin_calls(store);
    Some(state)
  }

  /// Calls begin. Whether each memory is as long as its size says: an initialization that runs again may grow it
  /// by less than before.
  pub fn begin_calls(&mut self, store: &mut Store<Guest>) -> bool {
    self.lengths.clear();
    let lengths = self.memories.iter().map(|memory| memory.data_size(&*store));
    self.lengths.extend(lengths);
    let sizes = self.sizes.iter().map(|size| size.get(&mut *store).i32());
    sizes.zip(&self.lengths).all(|(size, length)| {
      size.is_some_and(|size| u64::from(size.cast_unsigned()) * PAGE == *length as u64)
    })
  }
}

/// What memories and globals were before the initialization.
pub struct Pristine {
  /// Each without the zeros at its end, and how long it is with them.
  memories: Vec<(Vec<u8>, usize)>,
  globals: Vec<Val>,
}

impl Pristine {
  /// A copy of the state.
  pub fn new(state: &State, store: &mut Store<Guest>) -> Self {
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

  /// Puts it back into an instance of the same plugin. `None` if that cannot be done; then parts of it may be.
  pub fn restore(&self, state: &State, store: &mut Store<Guest>) -> Option<()> {
    let is_tracked = !state.sizes.is_empty();
    let memories = state.memories.iter().zip(&state.lengths);
    for ((memory, begun_with), (pristine, length)) in memories.zip(&self.memories) {
      let data = memory.data_mut(&mut *store);
      // What calls have grown would tell the next one of them.
      if data.len() != *begun_with || (!is_tracked && data.len() != *length) {
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
  struct Scan {
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

  /// Regions that one call returns.
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
      let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        start,
        end,
        regions: regions.as_mut_ptr() as u64,
        region_count: REGIONS as u64,
        category_inverted: IS_FILE | IS_ZERO,
        category_mask: IS_FILE | IS_ZERO,
        category_anyof_mask: IS_PRESENT | IS_SWAPPED,
        ..Scan::default()
      };
      // SAFETY: the kernel reads `scan`, which is laid out as it expects and says its size, and writes to it
      // and to at most `region_count` of `regions`. Both live until it returns. It changes no page: no
      // flag asks for that.
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
