//! Threads, locks, atomics and the clock: std's types under one path.
//!
//! The model checker compiles the modules that pass calls between threads against its own module with
//! the same names (`tests/model/sync.rs`), which decides which thread runs next and what time it is.

pub use std::hint::spin_loop;
pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use std::sync::mpsc::{Receiver, sync_channel};
pub use std::sync::{Condvar, Mutex, MutexGuard};
pub use std::thread;
use std::time::Instant;

/// The current time.
pub fn now() -> Instant {
  Instant::now()
}

/// A static that the model checker creates anew for each interleaving.
macro_rules! process_static {
  ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
    $(#[$attribute])*
    static $name: $type = $value;
  };
}

pub(crate) use process_static;
