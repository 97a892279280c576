//! What `src/plugin/priority.rs` has, for calls that are always taken for computing ones.

use crate::sync::thread;

pub struct Effort;

impl Effort {
  pub fn begin() -> Self {
    Self
  }

  pub fn is_high(&self) -> bool {
    true
  }
}

/// On another thread, as there.
pub fn run_low<T: Send>(run: impl Fn() -> T + Sync) -> T {
  thread::scope(|scope| match scope.spawn(&run).join() {
    Ok(result) => result,
    Err(panic) => std::panic::resume_unwind(panic),
  })
}
