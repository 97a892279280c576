//! What belongs to one instance: the data of its store.

use std::sync::Arc;

use wasmtime::ResourceLimiter;
use wasmtime_wasi::p1::WasiP1Ctx;

use super::http::LastResponse;
use super::output::SharedStreams;
use super::{HostFunctionError, Interruption};
use crate::kernel::{HasKernel, Kernel};

/// The bytes of a page of WebAssembly memory.
pub const PAGE: u64 = 64 << 10;

/// The data of an instance's store.
pub struct Guest {
  kernel: Kernel,
  /// What its memories and tables may have.
  pub(crate) limiter: Limiter,
  /// There if the plugin uses WASI.
  pub(crate) wasi: Option<WasiP1Ctx>,
  /// How many files and directories it has opened and not closed.
  pub(crate) open_descriptors: u32,
  /// What it has asked WASI for.
  pub(crate) has_read: HasRead,
  /// Standard output and error.
  pub(crate) streams: SharedStreams,
  /// The number of the plugin's call; `None` during the initialization.
  pub(crate) call: Option<u64>,
  /// What host functions that wait watch.
  pub(crate) interruption: Arc<Interruption>,
  /// Of the HTTP requests of the call.
  pub(crate) last_response: LastResponse,
}

/// What a guest has read that differs from one instance to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct HasRead {
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
      has_read: HasRead::default(),
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

/// What ended a run, if a host function did: the error that passes through the runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
  /// The guest wanted more memory than its limit.
  #[error("out of memory")]
  OutOfMemory,
  /// A host function failed.
  #[error(transparent)]
  HostFunction(HostFunctionError),
  /// A host function panicked.
  #[error("a host function panicked: {0}")]
  Panicked(String),
  /// The instance was interrupted (by epochs; an interrupt page traps).
  #[error("interrupted")]
  Interrupted,
}

/// Counts what an instance's memories and tables grow by. What they begin with was counted when the
/// plugin was linked.
#[derive(Clone, Copy, Debug)]
pub struct Limiter {
  /// Bytes by which all memories may still grow together.
  growth_left: u64,
  /// How many of them are to stay.
  reserve: u64,
  /// The bytes of the largest growth since the present size was [accepted](Self::accept).
  largest_growth: u64,
  /// Elements by which all tables may still grow together.
  elements_left: u64,
  /// Whether nothing is counted: the instance is being made.
  is_off: bool,
}

impl Limiter {
  /// A limiter that counts nothing until [`start`](Self::start).
  pub fn new(growth_pages: u64, elements: u64) -> Self {
    Self {
      growth_left: growth_pages.saturating_mul(PAGE),
      reserve: 0,
      largest_growth: 0,
      elements_left: elements,
      is_off: true,
    }
  }

  /// Bytes by which all memories may still grow together.
  pub fn growth_left(&self) -> u64 {
    self.growth_left
  }

  /// Counts from now on.
  pub fn start(&mut self) {
    self.is_off = false;
  }

  /// Takes what memories have now for what the guest needs. What they grow by from now on may be a leak.
  pub fn accept(&mut self) {
    self.reserve = self.growth_left / 4;
    self.largest_growth = 0;
  }

  /// Whether memories have grown by more than 3/4 of what they might since their size was
  /// [accepted](Self::accept), or could not grow by twice as much as they have at once: many allocators
  /// double their memory.
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
    if self.is_off {
      return Ok(true);
    }
    if maximum.is_some_and(|maximum| desired > maximum) {
      // The guest's own maximum: it is told that it cannot grow.
      return Ok(false);
    }
    let growth = desired.saturating_sub(current) as u64;
    match self.growth_left.checked_sub(growth) {
      Some(left) => {
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
