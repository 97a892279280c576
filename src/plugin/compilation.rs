//! Limits how many plugins are compiled at once: each compilation uses all available cores, and much
//! memory.

use std::num::NonZeroUsize;
use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, process_static, thread};
use crate::{Error, Result};

process_static! { static RUNNING: Mutex<usize> = Mutex::new(0); }
process_static! { static ENDED: Condvar = Condvar::new(); }

/// Permits one compilation until it is dropped.
#[must_use]
pub struct CompilationPermit(());

/// Waits until fewer compilations run than there are cores.
pub fn wait_for_permit() -> CompilationPermit {
  let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
  let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
  let waited = ENDED.wait_while(running, |running| *running >= cores);
  *waited.unwrap_or_else(PoisonError::into_inner) += 1;
  CompilationPermit(())
}

/// Runs `compile` on a temporary thread pool with one thread per core. Wasmtime would also use rayon's
/// global pool, but if its threads cannot be started, every later compilation in the process panics.
pub fn on_own_pool<T: Send>(compile: impl FnOnce() -> T + Send) -> Result<T> {
  let pool = rayon::ThreadPoolBuilder::new()
    .thread_name(|_| "extism-compile".to_owned())
    .build()
    .map_err(|error| Error::no_thread("to compile the plugin", &error))?;
  Ok(pool.install(compile))
}

impl Drop for CompilationPermit {
  fn drop(&mut self) {
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    ENDED.notify_one();
  }
}
