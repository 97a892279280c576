//! A watch of a store: changes on their way to JavaScript, which asks for them.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi_derive::napi;

use super::boundary::{Finished, Outcome};
use super::pool;
use super::store::Reply;
use crate::store::{Change, Store, Watch, Watcher};

/// Changes that wait for JavaScript. When there are more, it is told that it has missed some.
const MAX_CHANGES: usize = 1024;

/// Bytes of keys and values that do.
const MAX_BYTES: usize = 4 << 20;

#[derive(Default)]
struct Waiting {
  changes: Vec<Change>,
  bytes: usize,
  /// Whether the last of them is that some were lost, and so are those that come.
  is_full: bool,
  is_stopped: bool,
  /// The number under which JavaScript asks for the next.
  asked: Option<u32>,
}

struct Changes {
  waiting: Mutex<Waiting>,
  finished: Arc<Finished>,
}

impl Changes {
  fn lock(&self) -> MutexGuard<'_, Waiting> {
    self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Answers who asks, if there is something to say. No changes stand for the end.
  fn answer(&self, mut waiting: MutexGuard<'_, Waiting>) {
    if waiting.changes.is_empty() && !waiting.is_stopped {
      return;
    }
    let Some(call) = waiting.asked.take() else {
      return;
    };
    let changes = std::mem::take(&mut waiting.changes);
    waiting.bytes = 0;
    waiting.is_full = false;
    drop(waiting);
    let reply = Reply::Changes(changes);
    self.finished.ended(call, Ok(Outcome::Store(reply)));
  }
}

impl Watcher for Changes {
  fn changed(&self, change: &Change) {
    let mut waiting = self.lock();
    if waiting.is_full || waiting.is_stopped {
      return;
    }
    waiting.bytes += match change {
      Change::Set { key, value } => key.len() + value.as_ref().map_or(0, |value| value.len()),
      Change::Deleted { key } => key.len(),
      Change::Lost => 0,
    };
    let has_room = waiting.changes.is_empty()
      || (waiting.bytes <= MAX_BYTES && waiting.changes.len() < MAX_CHANGES);
    waiting.is_full = !has_room || *change == Change::Lost;
    let change = match has_room {
      true => change.clone(),
      false => Change::Lost,
    };
    waiting.changes.push(change);
    self.answer(waiting);
  }
}

/// A watch.
#[napi]
pub struct StoreWatch {
  changes: Arc<Changes>,
  watch: RefCell<Option<Watch>>,
}

impl StoreWatch {
  /// Begins to watch.
  pub fn start(store: &dyn Store, prefix: &str, finished: Arc<Finished>) -> crate::Result<Self> {
    let changes = Arc::new(Changes {
      waiting: Mutex::default(),
      finished,
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
  /// All changes since the last time arrive under the number `call`, as soon as there are any: an array
  /// of their kinds, keys and values. It is empty when the watch has been stopped. One may be asked for
  /// at a time.
  #[napi(catch_unwind)]
  pub fn next(&self, call: u32) {
    let mut waiting = self.changes.lock();
    waiting.asked = Some(call);
    self.changes.answer(waiting);
  }

  /// Ends it: who asks is answered, and nothing is kept.
  #[napi(catch_unwind)]
  pub fn stop(&self) {
    let mut waiting = self.changes.lock();
    waiting.is_stopped = true;
    waiting.changes.clear();
    self.changes.answer(waiting);
    if let Some(watch) = self.watch.take() {
      // The store may have to tell another machine. What cannot be passed on ends here.
      drop(pool::spawn(move || drop(watch)));
    }
  }
}
