//! A watch of a store: changes on their way to JavaScript, which asks for them.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi_derive::napi;

use super::completion_queue::CompletionQueue;
use super::pool;
use super::store_reply::StoreReply;
use crate::store::{Change, Store, WatchGuard, Watcher};

/// Changes that wait for JavaScript. When there are more, it is told that it has missed some.
const MAX_CHANGES: usize = 1024;

/// Bytes of keys and values that do.
const MAX_BYTES: usize = 4 << 20;

#[derive(Default)]
struct PendingChanges {
  changes: Vec<Change>,
  bytes: usize,
  /// Whether the last of them is that some were lost, and so are those that come.
  is_full: bool,
  is_stopped: bool,
  /// The number under which JavaScript asks for the next.
  asked: Option<u32>,
}

struct Changes {
  pending: Mutex<PendingChanges>,
  queue: Arc<CompletionQueue>,
}

impl Changes {
  fn lock(&self) -> MutexGuard<'_, PendingChanges> {
    self.pending.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Answers who asks, if there is something to say. No changes stand for the end.
  fn answer(&self, mut pending: MutexGuard<'_, PendingChanges>) {
    if pending.changes.is_empty() && !pending.is_stopped {
      return;
    }
    let Some(call) = pending.asked.take() else {
      return;
    };
    let changes = std::mem::take(&mut pending.changes);
    pending.bytes = 0;
    pending.is_full = false;
    drop(pending);
    let reply = StoreReply::Changes(changes);
    self.queue.push_result(call, Ok(reply.into()));
  }
}

impl Watcher for Changes {
  fn on_change(&self, change: &Change) {
    let mut pending = self.lock();
    if pending.is_full || pending.is_stopped {
      return;
    }
    pending.bytes += match change {
      Change::Set { key, value } => key.len() + value.as_ref().map_or(0, |value| value.len()),
      Change::Deleted { key } => key.len(),
      Change::Lost => 0,
    };
    let has_room = pending.changes.is_empty()
      || (pending.bytes <= MAX_BYTES && pending.changes.len() < MAX_CHANGES);
    pending.is_full = !has_room || *change == Change::Lost;
    let change = match has_room {
      true => change.clone(),
      false => Change::Lost,
    };
    pending.changes.push(change);
    self.answer(pending);
  }
}

/// A watch.
#[napi]
pub struct StoreWatch {
  changes: Arc<Changes>,
  watch: RefCell<Option<WatchGuard>>,
}

impl StoreWatch {
  /// Begins to watch.
  pub fn start(
    store: &dyn Store,
    prefix: &str,
    queue: Arc<CompletionQueue>,
  ) -> crate::Result<Self> {
    let changes = Arc::new(Changes {
      pending: Mutex::default(),
      queue,
    });
    let watch = store.watch(prefix, Arc::clone(&changes) as _)?;
    Ok(Self {
      changes,
      watch: RefCell::new(Some(watch)),
    })
  }
}

#[napi]
impl StoreWatch {
  /// All changes since the last time arrive under the number `call`, as soon as there are any. The array
  /// is empty when the watch has been stopped. One may be asked for at a time.
  #[napi(catch_unwind)]
  pub fn next(&self, call: u32) {
    let mut pending = self.changes.lock();
    pending.asked = Some(call);
    self.changes.answer(pending);
  }

  /// Ends it: who asks is answered, and nothing is kept.
  #[napi(catch_unwind)]
  pub fn stop(&self) {
    let mut pending = self.changes.lock();
    pending.is_stopped = true;
    pending.changes.clear();
    self.changes.answer(pending);
    if let Some(watch) = self.watch.take() {
      // The store may have to tell another machine. What cannot be passed on ends here.
      drop(pool::spawn(move || drop(watch)));
    }
  }
}
