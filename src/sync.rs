//! How threads share, wait and tell the time: std's types, by one path.
//!
//! The model checker compiles the modules that hand calls over against a module of its own with the same
//! names (`tests/model/sync.rs`). There it decides which thread goes on, and what time it is.

pub use std::hint::spin_loop;
pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use std::sync::mpsc::{Receiver, sync_channel};
pub use std::sync::{Condvar, Mutex, MutexGuard};
pub use std::thread;
use std::time::Instant;

/// What time it is.
pub fn now() -> Instant {
  Instant::now()
}

/// A static that the model checker makes anew for each interleaving.
macro_rules! process_static {
  ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
    $(#[$attribute])*
    static $name: $type = $value;
  };
}

pub(crate) use process_static;
