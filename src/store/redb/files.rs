//! The files that are open: each once in the process, whoever opens it and by whatever path.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use super::shared::OpenFile;
use super::{CACHE_BYTES, database, writer};
use crate::{Code, Error, Result};

/// The place of a file. Who opens it holds the lock until it is open, so that others wait for that, and
/// not those who open other files.
#[derive(Default)]
pub struct FileSlot {
  current: Mutex<Current>,
  closed: Condvar,
  /// Why the file cannot be opened any more in this process: its writer sleeps forever, and holds it.
  given_up: OnceLock<Error>,
}

#[derive(Default)]
struct Current {
  store: Option<Arc<OpenFile>>,
  /// How many have it. Where nobody has it any more and it is still here, it is being closed.
  users: usize,
}

static SLOTS: LazyLock<Mutex<HashMap<PathBuf, Arc<FileSlot>>>> = LazyLock::new(Mutex::default);

/// Opens a file for another user, who is to [`release`](FileSlot::release) it once.
pub fn open(path: &Path, cache_bytes: Option<usize>) -> Result<(Arc<OpenFile>, Arc<FileSlot>)> {
  let path = database::locate(path)?;
  let slot = slot(&path);
  let is_closing = |current: &mut Current| current.store.is_some() && current.users == 0;
  let mut current = slot
    .closed
    .wait_while(slot.lock(), is_closing)
    .unwrap_or_else(PoisonError::into_inner);
  if let Some(error) = slot.given_up.get() {
    return Err(error.clone());
  }
  let shared = match &current.store {
    Some(shared) => {
      check_cache(shared, cache_bytes)?;
      Arc::clone(shared)
    }
    None => writer::start(path, cache_bytes.unwrap_or(CACHE_BYTES), &slot)?,
  };
  current.store = Some(Arc::clone(&shared));
  current.users += 1;
  drop(current);
  Ok((shared, slot))
}

fn slot(path: &Path) -> Arc<FileSlot> {
  let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
  // Who has a file open, or opens it, has its slot.
  slots.retain(|_, slot| Arc::strong_count(slot) > 1);
  Arc::clone(slots.entry(path.into()).or_default())
}

fn check_cache(shared: &OpenFile, cache_bytes: Option<usize>) -> Result<()> {
  match cache_bytes {
    Some(bytes) if bytes != shared.cache_bytes => Err(Error::new(
      Code::InvalidArgument,
      format!(
        "{} is open in this process already, with cacheBytes {}; leave cacheBytes out, or say the same",
        shared.path.display(),
        shared.cache_bytes
      ),
    )),
    _ => Ok(()),
  }
}

impl FileSlot {
  fn lock(&self) -> MutexGuard<'_, Current> {
    self.current.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Lets go of the file. The last who does has it closed, by its writer.
  pub fn release(&self) {
    let mut current = self.lock();
    current.users = current.users.saturating_sub(1);
    if let Some(store) = current.store.as_ref().filter(|_| current.users == 0) {
      store.queue.close();
    }
  }

  /// Waits until that is closed, unless somebody has it.
  pub fn wait_until_closed(&self, shared: &Arc<OpenFile>) {
    let is_closing = |current: &mut Current| {
      let is_this = |store: &Arc<OpenFile>| Arc::ptr_eq(store, shared);
      current.users == 0 && current.store.as_ref().is_some_and(is_this)
    };
    let waited = self.closed.wait_while(self.lock(), is_closing);
    drop(waited);
  }

  /// Says that the file cannot be used any more. Locks nothing.
  pub fn give_up(&self, error: &Error) {
    drop(self.given_up.set(error.clone()));
  }

  /// Says that the file is closed.
  pub fn closed(&self) {
    self.lock().store = None;
    self.closed.notify_all();
  }
}
