//! Key-value stores for data that outlives a call, shared by guests and JavaScript. One trait, with
//! implementations in memory, in a file and on Redis. The vocabulary is that of wasi:keyvalue, plus lifetimes
//! and batches.

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

/// A value. It is reference-counted, so a store can return what it holds without copying.
pub type Bytes = Arc<[u8]>;

/// The longest key, in bytes: 64 KiB.
pub const MAX_KEY: usize = 64 << 10;

/// A key-value store. Methods may be called from any thread, concurrently, and block until they are done:
/// each guest runs on its own thread, and JavaScript calls them from worker threads. On a guest's thread they
/// stop blocking when the guest's call ends: see [`wait`].
///
/// Keys are text of up to [`MAX_KEY`] bytes and may be empty. Values are bytes. A method that fails has
/// changed nothing unless its documentation says otherwise. The error codes are
/// [`StoreUnavailable`](crate::Code::StoreUnavailable) if the store cannot be reached or does not answer in
/// time (it may still have performed the operation); [`StoreFull`](crate::Code::StoreFull) and
/// [`ValueTooLarge`](crate::Code::ValueTooLarge); [`StoreDamaged`](crate::Code::StoreDamaged);
/// [`AccessDenied`](crate::Code::AccessDenied); and [`InvalidArgument`](crate::Code::InvalidArgument) for a
/// key that is too long or a value that is not a number.
pub trait Store: Send + Sync {
  /// The kind of store, for traces: the name of the database, or `memory`.
  fn system(&self) -> &'static str;

  /// The value of a key if it is available without blocking; `None` means that the caller must use
  /// [`get`](Self::get). This is the hot path.
  fn get_now(&self, _key: &str) -> Option<Option<Bytes>> {
    None
  }

  /// The value of a key; `None` if the key does not exist.
  fn get(&self, key: &str) -> Result<Option<Bytes>>;

  /// Sets a key, with an optional lifetime. Replaces the old value and its lifetime.
  fn set(&self, key: &str, value: &[u8], lifetime: Option<Duration>) -> Result<()>;

  /// Removes a key; returns whether it existed.
  fn delete(&self, key: &str) -> Result<bool>;

  /// Whether a key exists.
  fn exists(&self, key: &str) -> Result<bool>;

  /// A page of about `limit` keys that begin with `prefix`, in the store's own order. A key that exists
  /// during the whole listing is listed exactly once; one that is added or removed meanwhile may or may not
  /// be. A store on other machines may list a key twice, and fails if its servers are replaced meanwhile.
  fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage>;

  /// Adds to a number stored as decimal digits, and returns the sum. A missing key counts as 0 and gets no
  /// lifetime; an existing one keeps its own. Fails if the value is not a 64-bit integer, or if the sum
  /// overflows.
  fn increment(&self, key: &str, delta: i64) -> Result<i64>;

  /// Sets a key, or removes it if `value` is `None`, provided that its current value is `expected` (`None`:
  /// the key does not exist). Returns whether it did.
  fn compare_and_swap(
    &self,
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    lifetime: Option<Duration>,
  ) -> Result<bool>;

  /// The values of `keys`, in the order of `keys`.
  fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>>;

  /// Sets keys. If it fails on a store on other machines, some keys may have been set.
  fn set_many(&self, entries: &[(&str, &[u8])], lifetime: Option<Duration>) -> Result<()>;

  /// Removes keys, and returns how many existed. A failure may be partial, as in
  /// [`set_many`](Self::set_many).
  fn delete_many(&self, keys: &[&str]) -> Result<u64>;

  /// Notifies `watcher` of every change to keys that begin with `prefix`, whoever makes it, until the
  /// returned guard is dropped. The changes of one key arrive in order. A store on other machines may merge
  /// changes of a key that follow closely into the last one. After [`Change::Lost`] some changes are missing.
  fn watch(&self, prefix: &str, watcher: Arc<dyn Watcher>) -> Result<WatchGuard>;

  /// Stops the store's background work and releases its files and connections. Acknowledged writes are kept.
  /// Operations that are under way complete, or fail with [`Closed`](crate::Code::Closed). A [`Handle`] calls
  /// this once, and refuses every operation afterwards.
  fn close(&self) -> Result<()>;
}

/// A page of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPage {
  /// The keys. A page may be empty although more pages follow.
  pub keys: Vec<String>,
  /// Where the next page begins; `None` on the last page.
  pub cursor: Option<String>,
}
