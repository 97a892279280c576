//! Single-threaded Tokio runtimes for connections. An idle one costs a thread. They are never shut down.

use std::panic::catch_unwind;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Result};

/// Returns the runtime in `cell`, and creates it on first use. At most `max_lookups` DNS lookups run at once,
/// because each blocks a thread. `purpose` completes the error message.
pub fn io_runtime(
  cell: &'static OnceLock<Runtime>,
  name: &'static str,
  max_lookups: usize,
  purpose: &str,
) -> Result<&'static Runtime> {
  if let Some(runtime) = cell.get() {
    return Ok(runtime);
  }
  let build = || {
    Builder::new_multi_thread()
      .worker_threads(1)
      .max_blocking_threads(max_lookups)
      .thread_name(name)
      .enable_all()
      .build()
  };
  let made = match catch_unwind(build) {
    Ok(made) => made.map_err(|error| Error::no_thread(purpose, &error)),
    // Tokio panics if it cannot start the thread.
    Err(_) => Err(Error::no_thread(purpose, &"there are too many")),
  };
  // If two threads build one at the same time, the first one stored is kept.
  made.map(|made| cell.get_or_init(|| made))
}
