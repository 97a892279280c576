//! A store as somebody has opened it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Bytes, KeyPage, Store, WatchGuard, Watcher};
use crate::{Code, Error, Result};

/// A store that can be closed: everything is refused afterwards with [`Code::Closed`], whoever has it. So
/// the stores themselves need not look whether they are closed.
pub struct Handle {
  store: Arc<dyn Store>,
  /// Whether others have the store, who go on when this handle is closed.
  is_shared: bool,
  is_closed: AtomicBool,
}

impl Handle {
  /// A handle of a store that nobody else has. To close it closes the store.
  pub fn new(store: Arc<dyn Store>) -> Self {
    Self {
      store,
      is_shared: false,
      is_closed: AtomicBool::new(false),
    }
  }

  /// A handle of a store that others may have too, for whom it stays open.
  pub fn shared(store: Arc<dyn Store>) -> Self {
    Self {
      is_shared: true,
      ..Self::new(store)
    }
  }

  fn store(&self) -> Result<&dyn Store> {
    match self.is_closed.load(Ordering::Acquire) {
      false => Ok(&*self.store),
      true => Err(Error::new(Code::Closed, "the store is closed")),
    }
  }
}

impl Store for Handle {
  fn get_now(&self, key: &str) -> Option<Option<Bytes>> {
    self.store().ok()?.get_now(key)
  }

  fn get(&self, key: &str) -> Result<Option<Bytes>> {
    self.store()?.get(key)
  }

  fn set(&self, key: &str, value: &[u8], lifetime: Option<Duration>) -> Result<()> {
    self.store()?.set(key, value, lifetime)
  }

  fn delete(&self, key: &str) -> Result<bool> {
    self.store()?.delete(key)
  }

  fn exists(&self, key: &str) -> Result<bool> {
    self.store()?.exists(key)
  }

  fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage> {
    self.store()?.list(prefix, cursor, limit)
  }

  fn increment(&self, key: &str, delta: i64) -> Result<i64> {
    self.store()?.increment(key, delta)
  }

  fn compare_and_swap(
    &self,
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    lifetime: Option<Duration>,
  ) -> Result<bool> {
    self
      .store()?
      .compare_and_swap(key, expected, value, lifetime)
  }

  fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>> {
    self.store()?.get_many(keys)
  }

  fn set_many(&self, entries: &[(&str, &[u8])], lifetime: Option<Duration>) -> Result<()> {
    self.store()?.set_many(entries, lifetime)
  }

  fn delete_many(&self, keys: &[&str]) -> Result<u64> {
    self.store()?.delete_many(keys)
  }

  fn watch(&self, prefix: &str, watcher: Arc<dyn Watcher>) -> Result<WatchGuard> {
    self.store()?.watch(prefix, watcher)
  }

  /// Closes it; again is no error.
  fn close(&self) -> Result<()> {
    if self.is_closed.swap(true, Ordering::AcqRel) || self.is_shared {
      return Ok(());
    }
    self.store.close()
  }
}

#[cfg(test)]
mod tests {
  use super::*;
  use crate::store::MemoryStore;

  #[test]
  fn a_closed_handle_refuses_everything_and_leaves_a_shared_store_to_the_others() {
    let store = Arc::new(MemoryStore::new());
    let handle = Handle::shared(Arc::clone(&store) as _);
    assert_eq!(handle.set("key", b"value", None), Ok(()));
    assert_eq!(handle.close(), Ok(()));
    assert_eq!(handle.close(), Ok(()));
    let closed = Err(Code::Closed);
    assert_eq!(handle.get_now("key"), None);
    assert_eq!(handle.get("key").map_err(|error| error.code), closed);
    let set = handle.set("key", b"other", None);
    assert_eq!(set.map_err(|error| error.code), Err(Code::Closed));
    assert_eq!(
      store.get("key").ok().flatten().as_deref(),
      Some(&b"value"[..])
    );
  }
}
