//! Where guests and JavaScript keep what is to outlive a call: behind one trait, in memory, in a file or
//! on other machines. The vocabulary is that of wasi:keyvalue, with lifetimes and batches.

mod checks;
mod handle;
mod memory;
mod open;
mod redb;
mod redis;
pub mod wait;
mod watch;

use std::sync::Arc;
use std::time::Duration;

pub use handle::Handle;
pub use memory::{MemoryStore, Value};
pub use open::{OpenOptions, open};
pub use redb::RedbStore;
pub use watch::{Change, WatchGuard, Watcher};

use crate::Result;

/// A value. Shared and not copied: a store can hand out what it holds.
pub type Bytes = Arc<[u8]>;

/// The longest key, in bytes: 64 KiB.
pub const MAX_KEY: usize = 64 << 10;

/// A store. All methods may be called from any thread, many at a time, and block until they are done: a
/// guest has a thread of its own, and JavaScript has others do it. On a guest's thread they block no longer
/// than the guest's call runs: see [`wait`].
///
/// Keys are text of up to [`MAX_KEY`] bytes, an empty one included. Values are bytes. Where a method fails,
/// it has changed nothing, unless it says otherwise. The codes are
/// [`StoreUnavailable`](crate::Code::StoreUnavailable) where the store cannot be reached, or not in time
/// (it may have done what was asked then); [`StoreFull`](crate::Code::StoreFull) and
/// [`ValueTooLarge`](crate::Code::ValueTooLarge); [`StoreDamaged`](crate::Code::StoreDamaged);
/// [`AccessDenied`](crate::Code::AccessDenied); and
/// [`InvalidArgument`](crate::Code::InvalidArgument) for a key that is too long, or a value that is no number.
pub trait Store: Send + Sync {
  /// The value of a key, provided that it is known without waiting for anybody. `None` where it is not;
  /// then [`get`](Self::get) has it. What runs most often goes this way.
  fn get_now(&self, _key: &str) -> Option<Option<Bytes>> {
    None
  }

  /// The value of a key; `None` where there is no such key.
  fn get(&self, key: &str) -> Result<Option<Bytes>>;

  /// Sets a key, for ever or for that long. What there was is gone, its lifetime included.
  fn set(&self, key: &str, value: &[u8], lifetime: Option<Duration>) -> Result<()>;

  /// Removes a key; whether it was there.
  fn delete(&self, key: &str) -> Result<bool>;

  /// Whether a key is there.
  fn exists(&self, key: &str) -> Result<bool>;

  /// Some of the keys that begin with `prefix`: about `limit`, in the store's own order. A key that is
  /// there all the time is listed once, from the first page to the last; one that comes or goes
  /// meanwhile may be or not. A store on other machines may list a key again, and fails where its machines
  /// are exchanged meanwhile.
  fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage>;

  /// Adds to a number that is kept as decimal digits, and returns the sum. A key that is not there counts
  /// as 0, and gets no lifetime; one that is there keeps its own. What is no number of 64 bits, or would
  /// not be any more, is an error.
  fn increment(&self, key: &str, delta: i64) -> Result<i64>;

  /// Sets a key, or with `None` removes it, if its value is the expected one: `None` stands for no such
  /// key. Whether it was.
  fn compare_and_swap(
    &self,
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    lifetime: Option<Duration>,
  ) -> Result<bool>;

  /// The values of keys, in their order.
  fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>>;

  /// Sets keys. Where it fails, some may have been set, if the store is on other machines.
  fn set_many(&self, entries: &[(&str, &[u8])], lifetime: Option<Duration>) -> Result<()>;

  /// Removes keys, and says how many were there. As [`set_many`](Self::set_many) otherwise.
  fn delete_many(&self, keys: &[&str]) -> Result<u64>;

  /// Tells of all changes of keys that begin with `prefix`, from now on until what is returned is dropped,
  /// whoever makes them, in the order of each key's changes. A store on other machines may tell of changes
  /// of a key that follow closely as one, the last. After [`Change::Lost`] some are missing.
  fn watch(&self, prefix: &str, watcher: Arc<dyn Watcher>) -> Result<WatchGuard>;

  /// Ends what the store does in the background and lets go of files and connections. What has been
  /// acknowledged is kept. Others may be in the middle of something; that ends, or is refused with
  /// [`Closed`](crate::Code::Closed). A [`Handle`] calls this once, and refuses everything afterwards.
  fn close(&self) -> Result<()>;
}

/// Some keys of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPage {
  /// The keys. There may be none and still be more.
  pub keys: Vec<String>,
  /// Where the next page begins; `None` where this is the last.
  pub cursor: Option<String>,
}
