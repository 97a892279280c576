//! The open files. Each file is opened once per process, however many stores open it and by whatever path.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use super::shared::OpenFile;
use super::{CACHE_BYTES, database, writer};
use crate::{Code, Error, Result};

/// The state of one file. Opening holds the lock until the file is open, so that other openings of this file
/// wait, and those of other files do not.
#[derive(Default)]
pub struct FileSlot {
  state: Mutex<FileState>,
  closed: Condvar,
  /// Why this process cannot open the file again: its writer is parked forever, and holds the file.
  given_up: OnceLock<Error>,
}

#[derive(Default)]
struct FileState {
  store: Option<Arc<OpenFile>>,
  /// The number of openings. If it is 0 and `store` is still set, the file is being closed.
  users: usize,
}

static SLOTS: LazyLock<Mutex<HashMap<PathBuf, Arc<FileSlot>>>> = LazyLock::new(Mutex::default);

/// Opens a file. The caller must [`release`](FileSlot::release) it once.
pub fn open(path: &Path, cache_bytes: Option<usize>) -> Result<(Arc<OpenFile>, Arc<FileSlot>)> {
  let path = database::locate(path)?;
  let slot = slot(&path);
  let is_closing = |state: &mut FileState| state.store.is_some() && state.users == 0;
  let mut state = slot
    .closed
    .wait_while(slot.lock(), is_closing)
    .unwrap_or_else(PoisonError::into_inner);
  if let Some(error) = slot.given_up.get() {
    return Err(error.clone());
  }
  let shared = match &state.store {
    Some(shared) => {
      check_cache(shared, cache_bytes)?;
      Arc::clone(shared)
    }
    None => writer::start(path, cache_bytes.unwrap_or(CACHE_BYTES), &slot)?,
  };
  state.store = Some(Arc::clone(&shared));
  state.users += 1;
  drop(state);
  Ok((shared, slot))
}

fn slot(path: &Path) -> Arc<FileSlot> {
  let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
  // Every opening, finished or not, holds a reference to its slot.
  slots.retain(|_, slot| Arc::strong_count(slot) > 1);
  Arc::clone(slots.entry(path.into()).or_default())
}

fn check_cache(shared: &OpenFile, cache_bytes: Option<usize>) -> Result<()> {
  match cache_bytes {
    Some(bytes) if bytes != shared.cache_bytes => Err(Error::new(
      Code::InvalidArgument,
      format!(
        "{} is already open in this process, with cacheBytes {}; leave out cacheBytes, or pass the same value",
        shared.path.display(),
        shared.cache_bytes
      ),
    )),
    _ => Ok(()),
  }
}

impl FileSlot {
  fn lock(&self) -> MutexGuard<'_, FileState> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Ends one opening. The last one makes the writer close the file.
  pub fn release(&self) {
    let mut state = self.lock();
    state.users = state.users.saturating_sub(1);
    if let Some(store) = state.store.as_ref().filter(|_| state.users == 0) {
      store.queue.close();
    }
  }

  /// Waits until `shared` is closed, unless it has been opened again.
  pub fn wait_until_closed(&self, shared: &Arc<OpenFile>) {
    let is_closing = |state: &mut FileState| {
      let is_this = |store: &Arc<OpenFile>| Arc::ptr_eq(store, shared);
      state.users == 0 && state.store.as_ref().is_some_and(is_this)
    };
    let waited = self.closed.wait_while(self.lock(), is_closing);
    drop(waited);
  }

  /// Marks the file as unusable in this process. Takes no lock.
  pub fn give_up(&self, error: &Error) {
    drop(self.given_up.set(error.clone()));
  }

  /// Marks the file as closed.
  pub fn mark_closed(&self) {
    self.lock().store = None;
    self.closed.notify_all();
  }
}
