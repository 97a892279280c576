//! Runtimes of one thread for connections, since an idle one costs a thread. They are never ended.

use std::panic::catch_unwind;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Result};

/// The runtime in `cell`, which is made when it is first asked for. At most `max_lookups` names are looked up at
/// once: each costs a thread. `purpose` is for a message.
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
  // Two threads may both make one; the first one's stays.
  made.map(|made| cell.get_or_init(|| made))
}
