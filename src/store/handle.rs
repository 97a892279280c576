//! A handle on a store, which can be closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Bytes, KeyPage, Store, WatchGuard, Watcher};
use crate::{Code, Error, Result};

/// A store that can be closed. After that every operation fails with [`Code::Closed`], for all users of this
/// handle. The stores themselves need not check whether they are closed.
pub struct Handle {
  store: Arc<dyn Store>,
  /// Whether other handles may use the store, so closing this one must not close the store.
  is_shared: bool,
  is_closed: AtomicBool,
}

impl Handle {
  /// A handle on a store that nothing else uses. Closing the handle closes the store.
  pub fn new(store: Arc<dyn Store>) -> Self {
    Self {
      store,
      is_shared: false,
      is_closed: AtomicBool::new(false),
    }
  }

  /// A handle on a store that others may use too. Closing the handle leaves the store open.
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
  fn system(&self) -> &'static str {
    self.store.system()
  }

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

  /// Closing twice is not an error.
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
  fn a_closed_handle_refuses_every_operation_and_leaves_a_shared_store_open() {
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
