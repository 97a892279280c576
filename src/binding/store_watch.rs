//! Watches a store: buffers changes until JavaScript asks for them.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi_derive::napi;

use super::completion_queue::CompletionQueue;
use super::pool;
use super::store_reply::StoreReply;
use crate::store::{Change, Store, WatchGuard, Watcher};

/// How many changes may be buffered. Beyond that, JavaScript is told that changes were lost.
const MAX_CHANGES: usize = 1024;

/// How many bytes of keys and values may be buffered.
const MAX_BYTES: usize = 4 << 20;

#[derive(Default)]
struct PendingChanges {
  changes: Vec<Change>,
  bytes: usize,
  /// Whether the last change is [`Change::Lost`]; further changes are dropped.
  is_full: bool,
  is_stopped: bool,
  /// The job that receives the next changes.
  pending_job: Option<u32>,
}

struct ChangeBuffer {
  pending: Mutex<PendingChanges>,
  queue: Arc<CompletionQueue>,
}

impl ChangeBuffer {
  fn lock(&self) -> MutexGuard<'_, PendingChanges> {
    self.pending.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Delivers the changes to the pending job, if there is one. An empty array means that the watch has ended.
  fn deliver(&self, mut pending: MutexGuard<'_, PendingChanges>) {
    if pending.changes.is_empty() && !pending.is_stopped {
      return;
    }
    let Some(call) = pending.pending_job.take() else {
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

impl Watcher for ChangeBuffer {
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
    self.deliver(pending);
  }
}

/// A watch on a store.
#[napi]
pub struct StoreWatch {
  changes: Arc<ChangeBuffer>,
  watch: RefCell<Option<WatchGuard>>,
}

impl StoreWatch {
  /// Starts watching keys that begin with `prefix`.
  pub fn start(
    store: &dyn Store,
    prefix: &str,
    queue: Arc<CompletionQueue>,
  ) -> crate::Result<Self> {
    let changes = Arc::new(ChangeBuffer {
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
  /// All changes since the last call arrive for job `call`, once there are any. An empty array means that the
  /// watch was stopped. Only one job may be pending.
  #[napi(catch_unwind)]
  pub fn next(&self, call: u32) {
    let mut pending = self.changes.lock();
    pending.pending_job = Some(call);
    self.changes.deliver(pending);
  }

  /// Stops the watch: completes the pending job, and drops buffered changes.
  #[napi(catch_unwind)]
  pub fn stop(&self) {
    let mut pending = self.changes.lock();
    pending.is_stopped = true;
    pending.changes.clear();
    self.changes.deliver(pending);
    if let Some(watch) = self.watch.take() {
      // Stopping may block on another machine. If no thread can be started, the watch is dropped here.
      drop(pool::spawn(move || drop(watch)));
    }
  }
}
