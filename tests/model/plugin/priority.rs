//! The model's version of `src/plugin/priority.rs`: every call counts as busy.

use crate::sync::thread;

pub struct CpuMeter;

impl CpuMeter {
  pub fn start() -> Self {
    Self
  }

  pub fn is_busy(&self) -> bool {
    true
  }
}

/// On another thread, like the original.
pub fn run_low<T: Send>(run: impl Fn() -> T + Sync) -> T {
  thread::scope(|scope| match scope.spawn(&run).join() {
    Ok(result) => result,
    Err(panic) => std::panic::resume_unwind(panic),
  })
}
