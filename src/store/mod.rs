//! Where host functions look things up.

mod memory;

pub use memory::{MemoryStore, Value};

use std::sync::Arc;

/// A store that host functions can read, from many worker threads at once.
pub trait Store: Send + Sync {
  /// The bytes under `key`, or `None` where there is no such key. Must not block for long: the
  /// guest's thread waits meanwhile.
  fn get(&self, key: &str) -> Option<Arc<[u8]>>;
}
