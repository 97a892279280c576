//! How many plugins are compiled at once: each compilation takes all cores that it gets, and memory.

use std::num::NonZeroUsize;
use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, process_static, thread};
use crate::{Error, Result};

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

/// Compiles on as many threads as there are cores, which end then. The global pool of rayon would do for
/// Wasmtime, but if its threads cannot be started, every later compilation in the process panics.
pub fn on_own_threads<T: Send>(compile: impl FnOnce() -> T + Send) -> Result<T> {
  let pool = rayon::ThreadPoolBuilder::new()
    .thread_name(|_| "extism-compile".to_owned())
    .build()
    .map_err(|error| Error::no_thread("to compile the plugin", &error))?;
  Ok(pool.install(compile))
}

impl Drop for Turn {
  fn drop(&mut self) {
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    ENDED.notify_one();
  }
}
