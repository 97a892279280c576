//! The state of one instance, stored as its Wasmtime store's data.

use std::sync::Arc;

use wasmtime::ResourceLimiter;
use wasmtime_wasi::p1::WasiP1Ctx;

use super::http::LastResponse;
use super::output::SharedStreams;
use super::{HostFunctionError, Interruption};
use crate::kernel::{HasKernel, Kernel};

/// The size of a WebAssembly page in bytes.
pub const PAGE: u64 = 64 << 10;

/// The data of an instance's Wasmtime store.
pub struct Guest {
  kernel: Kernel,
  /// Limits the growth of its memories and tables.
  pub(crate) limiter: Limiter,
  /// Set if the plugin uses WASI.
  pub(crate) wasi: Option<WasiP1Ctx>,
  /// The number of open files and directories.
  pub(crate) open_descriptors: u32,
  /// Which nondeterministic values it has read through WASI.
  pub(crate) has_read: NondeterministicReads,
  /// Standard output and error.
  pub(crate) streams: SharedStreams,
  /// The number of the current call; `None` during initialization.
  pub(crate) call: Option<u64>,
  /// The interruption that blocking host functions observe.
  pub(crate) interruption: Arc<Interruption>,
  /// The response to the call's last HTTP request.
  pub(crate) last_response: LastResponse,
}

/// Which values a guest has read that differ between instances.
#[derive(Clone, Copy, Debug, Default)]
pub struct NondeterministicReads {
  /// Random numbers.
  pub random: bool,
  /// The time.
  pub clock: bool,
}

impl Guest {
  /// The data of a new instance.
  pub fn new(kernel: Kernel, limiter: Limiter, streams: SharedStreams) -> Self {
    Self {
      kernel,
      limiter,
      wasi: None,
      open_descriptors: 0,
      has_read: NondeterministicReads::default(),
      streams,
      call: None,
      interruption: Arc::default(),
      last_response: LastResponse::default(),
    }
  }
}

impl HasKernel for Guest {
  fn kernel(&self) -> &Kernel {
    &self.kernel
  }

  fn kernel_mut(&mut self) -> &mut Kernel {
    &mut self.kernel
  }
}

/// Why a host function ended a run. This error passes through the runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
  /// The guest exceeded its memory limit.
  #[error("out of memory")]
  OutOfMemory,
  /// A host function failed.
  #[error(transparent)]
  HostFunction(HostFunctionError),
  /// A host function panicked.
  #[error("a host function panicked: {0}")]
  Panicked(String),
  /// The instance was interrupted by an epoch. (Interrupt pages trap instead.)
  #[error("interrupted")]
  Interrupted,
}

/// Limits the growth of an instance's memories and tables. Their initial sizes were checked when the plugin
/// was linked.
#[derive(Clone, Copy, Debug)]
pub struct Limiter {
  /// The size of all memories together, in bytes.
  memory: u64,
  /// Bytes by which all memories may still grow together.
  growth_left: u64,
  /// How many of these bytes should remain; see [`is_nearly_full`](Self::is_nearly_full).
  reserve: u64,
  /// The largest single growth, in bytes, since the size was last [accepted](Self::accept).
  largest_growth: u64,
  /// Elements by which all tables may still grow together.
  elements_left: u64,
  /// Whether growth is not limited yet: the instance is being created.
  is_off: bool,
}

impl Limiter {
  /// A limiter that is off until [`start`](Self::start).
  pub fn new(growth_pages: u64, elements: u64) -> Self {
    Self {
      memory: 0,
      growth_left: growth_pages.saturating_mul(PAGE),
      reserve: 0,
      largest_growth: 0,
      elements_left: elements,
      is_off: true,
    }
  }

  /// The size of all memories together, in bytes.
  pub fn memory(&self) -> u64 {
    self.memory
  }

  /// Bytes by which all memories may still grow together.
  pub fn growth_left(&self) -> u64 {
    self.growth_left
  }

  /// Starts limiting.
  pub fn start(&mut self) {
    self.is_off = false;
  }

  /// Takes the current memory size as what the guest needs. Growth from now on may be a leak.
  pub fn accept(&mut self) {
    self.reserve = self.growth_left / 4;
    self.largest_growth = 0;
  }

  /// Whether the memories have used more than 3/4 of the growth that was left when their size was
  /// [accepted](Self::accept), or could not grow by twice their largest growth: many allocators double their
  /// memory.
  pub fn is_nearly_full(&self) -> bool {
    let next_growth = self.largest_growth.saturating_mul(2);
    self.growth_left < self.reserve.max(next_growth)
  }
}

impl ResourceLimiter for Limiter {
  fn memory_growing(
    &mut self,
    current: usize,
    desired: usize,
    maximum: Option<usize>,
  ) -> wasmtime::Result<bool> {
    let growth = desired.saturating_sub(current) as u64;
    if self.is_off {
      self.memory += growth;
      return Ok(true);
    }
    if maximum.is_some_and(|maximum| desired > maximum) {
      // Beyond the memory's own maximum: `memory.grow` returns -1.
      return Ok(false);
    }
    match self.growth_left.checked_sub(growth) {
      Some(left) => {
        self.memory += growth;
        self.growth_left = left;
        self.largest_growth = self.largest_growth.max(growth);
        Ok(true)
      }
      None => Err(wasmtime::Error::new(Stop::OutOfMemory)),
    }
  }

  fn table_growing(
    &mut self,
    current: usize,
    desired: usize,
    maximum: Option<usize>,
  ) -> wasmtime::Result<bool> {
    if self.is_off {
      return Ok(true);
    }
    if maximum.is_some_and(|maximum| desired > maximum) {
      return Ok(false);
    }
    let growth = desired.saturating_sub(current) as u64;
    let left = self.elements_left.checked_sub(growth);
    self.elements_left = left.unwrap_or(self.elements_left);
    Ok(left.is_some())
  }
}
