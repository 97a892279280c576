//! Notifies watchers of changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Bytes;

/// A change to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
  /// A key was set.
  Set {
    /// The key.
    key: String,
    /// The new value. `None` if the store does not know it: a store on another machine only learns that the
    /// key changed.
    value: Option<Bytes>,
  },
  /// A key was removed or expired.
  Deleted {
    /// The key.
    key: String,
  },
  /// Changes may have been missed: the connection was lost, or the reader was too slow.
  Lost,
}

/// Receives changes. Called on any thread; it should be quick, and must not use the store.
pub trait Watcher: Send + Sync {
  /// Called for each change.
  fn on_change(&self, change: &Change);
}

/// Keeps a watcher registered until it is dropped.
pub struct WatchGuard(Option<Box<dyn FnOnce() + Send + Sync>>);

impl WatchGuard {
  /// Runs `stop` when it is dropped.
  pub fn new(stop: impl FnOnce() + Send + Sync + 'static) -> Self {
    Self(Some(Box::new(stop)))
  }
}

impl Drop for WatchGuard {
  fn drop(&mut self) {
    if let Some(stop) = self.0.take() {
      stop();
    }
  }
}

struct RegisteredWatcher {
  prefix: String,
  watcher: Arc<dyn Watcher>,
}

/// The watchers of a store.
#[derive(Default)]
pub struct Watchers {
  watchers: RwLock<HashMap<u64, RegisteredWatcher>>,
  /// The number of watchers, so that a store without watchers pays nothing.
  count: AtomicUsize,
  next: AtomicU64,
}

impl Watchers {
  /// Registers a watcher for keys that begin with `prefix`.
  pub fn add(self: &Arc<Self>, prefix: &str, watcher: Arc<dyn Watcher>) -> WatchGuard {
    let number = self.next.fetch_add(1, Ordering::Relaxed);
    let mut watchers = self
      .watchers
      .write()
      .unwrap_or_else(PoisonError::into_inner);
    let prefix = prefix.to_owned();
    watchers.insert(number, RegisteredWatcher { prefix, watcher });
    self.count.store(watchers.len(), Ordering::Relaxed);
    drop(watchers);
    let this = Arc::downgrade(self);
    WatchGuard::new(move || {
      if let Some(this) = this.upgrade() {
        let mut watchers = this
          .watchers
          .write()
          .unwrap_or_else(PoisonError::into_inner);
        watchers.remove(&number);
        this.count.store(watchers.len(), Ordering::Relaxed);
      }
    })
  }

  pub fn is_empty(&self) -> bool {
    self.count.load(Ordering::Relaxed) == 0
  }

  /// Notifies the watchers whose prefix matches.
  pub fn notify(&self, change: &Change) {
    if self.is_empty() {
      return;
    }
    let watchers = self.watchers.read().unwrap_or_else(PoisonError::into_inner);
    for RegisteredWatcher { prefix, watcher } in watchers.values() {
      let matches_prefix = match change {
        Change::Set { key, .. } | Change::Deleted { key } => key.starts_with(prefix),
        Change::Lost => true,
      };
      if matches_prefix {
        watcher.on_change(change);
      }
    }
  }
}
