//! What all have who have opened a file.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use redb::{ReadOnlyTable, StorageError};

use super::Stored;
use super::containment::catch;
use super::database::{damaged, error_of};
use super::operation::Operation;
use super::queue::Queue;
use crate::store::wait;
use crate::store::watch::Watchers;
use crate::{Code, Error, Result};

/// What the last transaction has left. To read is to look into a tree: half a microsecond, and two to three times
/// that with a transaction of its own for each read.
pub struct Snapshot {
  /// Which opening of the file it is of.
  pub opening: u64,
  /// The entries.
  pub entries: ReadOnlyTable<&'static [u8], Stored>,
}

/// Whether there is something to read.
pub enum ReadState {
  /// There is.
  Open(Arc<Snapshot>),
  /// The file is being opened again after a failure, or could not be: the writer knows. Who needs it asks
  /// the writer to see to it.
  Failed(Error),
  /// It has been closed.
  Closed,
}

/// An open file.
pub struct OpenFile {
  pub path: PathBuf,
  pub cache_bytes: usize,
  pub queue: Queue,
  /// Never locked for long.
  pub state: RwLock<ReadState>,
  pub watchers: Arc<Watchers>,
}

impl OpenFile {
  /// Has an operation done, and waits until it is, durably. It is done too if the waiting is interrupted.
  pub fn change(&self, operation: Operation) -> Result<i64> {
    let answer = self.queue.add(operation)?;
    wait::receive(&answer)?.unwrap_or_else(|| {
      let message = "the thread that writes the store has ended";
      Err(Error::new(Code::Internal, message))
    })
  }

  /// Reads.
  pub fn read<T>(&self, read: impl Fn(&Snapshot) -> Result<T, StorageError>) -> Result<T> {
    let opening = match self.snapshot() {
      Ok(snapshot) => match self.attempt(&snapshot, &read) {
        Ok(result) => return result,
        Err(_) => snapshot.opening,
      },
      Err(error) if error.code == Code::Closed => return Err(error),
      Err(_) => 0,
    };
    // After a failure the database refuses everything until it is opened again. Whoever writes has noticed
    // already, and then this only waits for it.
    self.change(Operation::Reopen { opening })?;
    let snapshot = self.snapshot()?;
    match self.attempt(&snapshot, &read) {
      Ok(result) => result,
      Err(error) => Err(error_of(error.into(), &self.path)),
    }
  }

  /// Reads; an error where another opening of the file may do better.
  fn attempt<T>(
    &self,
    snapshot: &Snapshot,
    read: &impl Fn(&Snapshot) -> Result<T, StorageError>,
  ) -> Result<Result<T>, StorageError> {
    // What was changed by others than the database is not always noticed when the file is opened, and the
    // database panics over some of it, or returns what it finds.
    match catch(|| read(snapshot)) {
      Ok(Ok(value)) => Ok(Ok(value)),
      Ok(Err(StorageError::Corrupted(what))) => Ok(Err(damaged(&self.path, &what))),
      Ok(Err(error)) => Err(error),
      Err(_) => Ok(Err(damaged(&self.path, "it makes no sense"))),
    }
  }

  fn snapshot(&self) -> Result<Arc<Snapshot>> {
    match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
      ReadState::Open(snapshot) => Ok(Arc::clone(snapshot)),
      ReadState::Failed(error) => Err(error.clone()),
      ReadState::Closed => Err(Error::new(Code::Closed, "the store is closed")),
    }
  }

  /// Says what there is to read from now on.
  pub fn set_state(&self, state: ReadState) {
    let mut current = self.state.write().unwrap_or_else(PoisonError::into_inner);
    let old = std::mem::replace(&mut *current, state);
    drop(current);
    // What nobody reads any more is let go of without keeping readers waiting.
    drop(old);
  }
}
