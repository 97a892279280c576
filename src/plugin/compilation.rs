//! How many plugins are compiled at once: each compilation takes all cores that it gets, and memory.

use std::num::NonZeroUsize;
use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, process_static, thread};

process_static! { static RUNNING: Mutex<usize> = Mutex::new(0); }
process_static! { static ENDED: Condvar = Condvar::new(); }

/// A compilation may run for as long as this lives.
#[must_use]
pub struct Turn(());

/// Waits until fewer compilations run than there are cores.
pub fn wait_for_turn() -> Turn {
  let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
  let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
  let waited = ENDED.wait_while(running, |running| *running >= cores);
  *waited.unwrap_or_else(PoisonError::into_inner) += 1;
  Turn(())
}

impl Drop for Turn {
  fn drop(&mut self) {
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    ENDED.notify_one();
  }
}
