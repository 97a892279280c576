//! Telling of changes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Bytes;

/// What happens to keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
  /// A key has been set.
  Set {
    /// Which.
    key: String,
    /// To what, where the store can tell: one on another machine says only that it was.
    value: Option<Bytes>,
  },
  /// A key has been removed, or its time is over.
  Deleted {
    /// Which.
    key: String,
  },
  /// Changes may have been missed, as the connection was lost or somebody read too slowly.
  Lost,
}

/// Who is told of changes. Called on any thread; it should be quick, and must not use the store.
pub trait Watcher: Send + Sync {
  /// A change.
  fn on_change(&self, change: &Change);
}

/// Keeps a watcher told, until it is dropped.
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

struct Watched {
  prefix: String,
  watcher: Arc<dyn Watcher>,
}

/// The watchers of a store.
#[derive(Default)]
pub struct Watchers {
  watchers: RwLock<HashMap<u64, Watched>>,
  /// How many there are, so that a store that nobody watches pays nothing.
  count: AtomicUsize,
  next: AtomicU64,
}

impl Watchers {
  /// Adds one.
  pub fn add(self: &Arc<Self>, prefix: &str, watcher: Arc<dyn Watcher>) -> WatchGuard {
    let number = self.next.fetch_add(1, Ordering::Relaxed);
    let mut watchers = self
      .watchers
      .write()
      .unwrap_or_else(PoisonError::into_inner);
    let prefix = prefix.to_owned();
    watchers.insert(number, Watched { prefix, watcher });
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

  /// Whether nobody is to be told.
  pub fn is_empty(&self) -> bool {
    self.count.load(Ordering::Relaxed) == 0
  }

  /// Tells those whose prefix it has.
  pub fn tell(&self, change: &Change) {
    if self.is_empty() {
      return;
    }
    let watchers = self.watchers.read().unwrap_or_else(PoisonError::into_inner);
    for Watched { prefix, watcher } in watchers.values() {
      let concerns = match change {
        Change::Set { key, .. } | Change::Deleted { key } => key.starts_with(prefix),
        Change::Lost => true,
      };
      if concerns {
        watcher.on_change(change);
      }
    }
  }
}
