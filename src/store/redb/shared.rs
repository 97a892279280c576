//! The state that all openings of a file share.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use redb::{ReadOnlyTable, StorageError};

use super::StoredEntry;
use super::containment::catch;
use super::database::{INCONSISTENT, damaged, map_error};
use super::operation::Operation;
use super::queue::OperationQueue;
use crate::store::wait;
use crate::store::watch::Watchers;
use crate::{Code, Error, Result};

/// The tables as of the last commit. Reading from it is one tree lookup: half a microsecond, where a read
/// transaction per read takes two to three times that.
pub struct ReadSnapshot {
  /// How many times the file had been opened, to tell this snapshot's database from later ones.
  pub generation: u64,
  pub entries: ReadOnlyTable<&'static [u8], StoredEntry>,
}

/// What readers can read.
pub enum ReadState {
  /// The last committed snapshot.
  Open(Arc<ReadSnapshot>),
  /// The file is being reopened after a failure, or could not be reopened. A reader queues
  /// [`Operation::Reopen`] and waits for the writer.
  Failed(Error),
  /// The file is closed.
  Closed,
}

/// An open file.
pub struct OpenFile {
  pub path: PathBuf,
  pub cache_bytes: usize,
  pub queue: OperationQueue,
  /// Only ever locked briefly.
  pub state: RwLock<ReadState>,
  pub watchers: Arc<Watchers>,
}

impl OpenFile {
  /// Queues an operation and waits until it is durable. If the wait is interrupted, the operation is still
  /// performed.
  pub fn change(&self, operation: Operation) -> Result<i64> {
    let result = self.queue.add(operation)?;
    wait::receive(&result)?.unwrap_or_else(|| {
      let message = "the store's writer thread has ended";
      Err(Error::new(Code::Internal, message))
    })
  }

  /// Reads from the last snapshot. After a failure, has the writer reopen the file and tries again.
  pub fn read<T>(&self, read: impl Fn(&ReadSnapshot) -> Result<T, StorageError>) -> Result<T> {
    let generation = match self.snapshot() {
      Ok(snapshot) => match self.attempt(&snapshot, &read) {
        Ok(result) => return result,
        Err(_) => snapshot.generation,
      },
      Err(error) if error.code == Code::Closed => return Err(error),
      Err(_) => 0,
    };
    // After a failure the database refuses everything until it is reopened. If a writer has noticed already,
    // this only waits for the reopening.
    self.change(Operation::Reopen { generation })?;
    let snapshot = self.snapshot()?;
    match self.attempt(&snapshot, &read) {
      Ok(result) => result,
      Err(error) => Err(map_error(error.into(), &self.path)),
    }
  }

  /// Reads from a snapshot. Returns an outer error if reopening the file may help.
  fn attempt<T>(
    &self,
    snapshot: &ReadSnapshot,
    read: &impl Fn(&ReadSnapshot) -> Result<T, StorageError>,
  ) -> Result<Result<T>, StorageError> {
    // The database does not detect all outside modifications when it opens a file. It may panic on them, or
    // return damaged data.
    match catch(|| read(snapshot)) {
      Ok(Ok(value)) => Ok(Ok(value)),
      Ok(Err(StorageError::Corrupted(what))) => Ok(Err(damaged(&self.path, &what))),
      Ok(Err(error)) => Err(error),
      Err(_) => Ok(Err(damaged(&self.path, INCONSISTENT))),
    }
  }

  fn snapshot(&self) -> Result<Arc<ReadSnapshot>> {
    match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
      ReadState::Open(snapshot) => Ok(Arc::clone(snapshot)),
      ReadState::Failed(error) => Err(error.clone()),
      ReadState::Closed => Err(Error::new(Code::Closed, "the store is closed")),
    }
  }

  /// Replaces what readers can read.
  pub fn set_state(&self, state: ReadState) {
    let mut current = self.state.write().unwrap_or_else(PoisonError::into_inner);
    let old = std::mem::replace(&mut *current, state);
    drop(current);
    // Dropped outside the lock, so that readers do not wait for it.
    drop(old);
  }
}
