//! The writer thread of a file. It commits all queued operations in one transaction, so that they share the
//! cost of one disk sync.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase};

use super::NEVER;
use super::containment::{catch, contained};
use super::database::{self, ENTRIES, INCONSISTENT, damaged, map_error};
use super::files::FileSlot;
use super::operation::Operation;
use super::queue::{Next, OperationQueue, QueuedOperation};
use super::shared::{OpenFile, ReadSnapshot, ReadState};
use super::transaction::{Transaction, TransactionResult, now};
use crate::{Code, Error, Result};

/// How long expired keys may stay in the file, as each sweep costs a transaction.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// How long to pause if one transaction could not remove all expired keys.
const SHORT_SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// How long the thread sleeps at most: if the system clock is set, deadlines come sooner or later than
/// computed.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// After a failure the file is reopened, which takes time proportional to its size, while readers wait. The
/// next attempt waits for this many times as long, so that reopening takes at most a tenth of the time.
const BACKOFF_FACTOR: u32 = 10;

/// The shortest backoff after the file could not be reopened, and the shortest pause of sweeps after any
/// failure.
const MIN_BACKOFF: Duration = Duration::from_secs(1);

struct FileWriter {
  shared: Arc<OpenFile>,
  slot: Arc<FileSlot>,
  /// `None` after a failure to reopen the file.
  database: Option<Database>,
  /// How many times the file has been opened.
  generation: u64,
  /// The earliest deadline of an entry.
  next_deadline: u64,
  /// When the next sweep may run.
  next_sweep: Instant,
  /// The last failure, and when its backoff ends.
  failure: Option<(Instant, Error)>,
}

/// Opens a file on a new writer thread.
pub fn start(path: PathBuf, cache_bytes: usize, slot: &Arc<FileSlot>) -> Result<Arc<OpenFile>> {
  let (opened, is_open) = sync_channel(1);
  let slot = Arc::clone(slot);
  // The thread may be killed with the process at any point: an uncommitted transaction is not in the file.
  thread::Builder::new()
    .name("extism-redb".to_owned())
    .spawn(move || serve_file(path, cache_bytes, slot, &opened))
    .map_err(|error| Error::no_thread("that writes the store", &error))?;
  is_open.recv().unwrap_or_else(|_| {
    let message = "the store's writer thread has ended";
    Err(Error::new(Code::Internal, message))
  })
}

fn serve_file(
  path: PathBuf,
  cache_bytes: usize,
  slot: Arc<FileSlot>,
  opened: &SyncSender<Result<Arc<OpenFile>>>,
) {
  let give_up = {
    let (slot, opened, error) = (Arc::clone(&slot), opened.clone(), given_up_error(&path));
    move || {
      slot.give_up(&error);
      drop(opened.send(Err(error)));
    }
  };
  let (database, snapshot) = match contained(give_up, || open(&path, cache_bytes, 1)) {
    Ok(open) => open,
    Err(error) => return drop(opened.send(Err(error))),
  };
  let shared = Arc::new(OpenFile {
    path,
    cache_bytes,
    queue: OperationQueue::default(),
    state: RwLock::new(ReadState::Open(Arc::new(snapshot))),
    watchers: Arc::default(),
  });
  // The receiver may be gone.
  drop(opened.send(Ok(Arc::clone(&shared))));
  let writer = FileWriter {
    shared,
    slot,
    database: Some(database),
    generation: 1,
    // Sweep at once.
    next_deadline: 0,
    next_sweep: Instant::now(),
    failure: None,
  };
  writer.run();
}

fn given_up_error(path: &Path) -> Error {
  let mut error = damaged(path, INCONSISTENT);
  error
    .message
    .push_str("; this process cannot open it again");
  error
}

fn open(path: &Path, cache_bytes: usize, generation: u64) -> Result<(Database, ReadSnapshot)> {
  let opened = catch(|| {
    let database = database::open(path, cache_bytes)?;
    let snapshot = snapshot(&database, generation).map_err(|error| map_error(error, path))?;
    Ok((database, snapshot))
  });
  // The database trusts a file that was closed cleanly, and panics on some outside modifications. It may also
  // return damaged data: it only verifies checksums after a crash.
  opened.unwrap_or_else(|_| Err(damaged(path, INCONSISTENT)))
}

fn snapshot(database: &Database, generation: u64) -> Result<ReadSnapshot, redb::Error> {
  let entries = database.begin_read()?.open_table(ENTRIES)?;
  Ok(ReadSnapshot {
    generation,
    entries,
  })
}

fn reopening_error(path: &Path) -> Error {
  let path = path.display();
  Error::new(
    Code::StoreUnavailable,
    format!("the store {path} is being reopened after a failure; try again"),
  )
}

impl FileWriter {
  fn run(mut self) {
    loop {
      let group = match self.shared.queue.take(self.sleep()) {
        Next::Group(group) => group,
        Next::Timeout => Vec::new(),
        Next::Closed => break,
      };
      let replies = group.iter().map(|queued| queued.reply.clone()).collect();
      let give_up = self.give_up(replies);
      let served = contained(give_up, || catch(|| self.serve(group)));
      if served.is_err() {
        // No panic is known to reach this point.
        self.give_up(Vec::new())();
        return;
      }
    }
    let give_up = self.give_up(Vec::new());
    contained(give_up, || {
      drop(catch(|| self.shared.set_state(ReadState::Closed)));
      self.close();
    });
    self.slot.mark_closed();
  }

  /// What the thread does if it cannot go on: fails the operations of these `replies`, and all others.
  fn give_up(&self, replies: Vec<SyncSender<Result<i64>>>) -> impl FnOnce() + use<> {
    let (shared, slot) = (Arc::clone(&self.shared), Arc::clone(&self.slot));
    move || {
      let error = given_up_error(&shared.path);
      slot.give_up(&error);
      shared.queue.fail(&error);
      for reply in replies {
        // This one may have its reply already.
        drop(reply.try_send(Err(error.clone())));
      }
      slot.mark_closed();
    }
  }

  /// How long the thread can sleep.
  fn sleep(&self) -> Duration {
    if self.next_deadline == NEVER {
      return MAX_SLEEP;
    }
    let until_deadline = Duration::from_millis(self.next_deadline.saturating_sub(now()));
    let until_sweep = self.next_sweep.saturating_duration_since(Instant::now());
    until_deadline.max(until_sweep).min(MAX_SLEEP)
  }

  /// Performs a group of operations, all or none, and sends the results. Sweeps if the group is empty.
  fn serve(&mut self, group: Vec<QueuedOperation>) {
    if group.is_empty() {
      return self.sweep();
    }
    let mut changes = Vec::new();
    for queued in group {
      match queued.operation {
        // The receiver may be gone, here and below.
        Operation::Reopen { generation } => {
          drop(queued.reply.send(self.ensure_reopened(generation)))
        }
        _ => changes.push(queued),
      }
    }
    if changes.is_empty() {
      return;
    }
    match self.change(&changes) {
      Ok(results) => {
        for (queued, result) in changes.into_iter().zip(results) {
          drop(queued.reply.send(result));
        }
      }
      Err(error) => {
        for queued in changes {
          drop(queued.reply.send(Err(error.clone())));
        }
      }
    }
  }

  /// Removes expired keys.
  fn sweep(&mut self) {
    if self.next_deadline <= now() && self.next_sweep <= Instant::now() {
      // A failure is retried later, and reported to the next write.
      drop(self.change(&[]));
    }
  }

  /// Commits operations in one transaction, and returns their results. Notifies watchers.
  fn change(&mut self, group: &[QueuedOperation]) -> Result<Vec<Result<i64>>> {
    self.check_backoff()?;
    if self.database.is_none() {
      self.reopen(None)?;
    }
    let mut attempted = self.attempt(group);
    if matches!(attempted, Err(redb::Error::PreviousIo)) {
      // A reader hit an I/O error, which need not affect this transaction.
      self.reopen(None)?;
      attempted = self.attempt(group);
    }
    let attempted = attempted.map_err(|error| map_error(error, &self.shared.path));
    match attempted {
      Ok((results, transaction_result)) => {
        self.publish_commit(transaction_result);
        Ok(results)
      }
      Err(error) => {
        // The database now refuses everything until it is reopened. The transaction is in the file entirely
        // or not at all. If the disk was full it is not, unless the disk reports that only on sync.
        drop(self.reopen(Some(error.clone())));
        Err(error)
      }
    }
  }

  /// Runs the transaction. Reports a panic as damage.
  fn attempt(
    &self,
    group: &[QueuedOperation],
  ) -> Result<(Vec<Result<i64>>, TransactionResult), redb::Error> {
    catch(|| self.transact(group))
      .unwrap_or_else(|_| Err(redb::Error::Corrupted(INCONSISTENT.to_owned())))
  }

  fn transact(
    &self,
    group: &[QueuedOperation],
  ) -> Result<(Vec<Result<i64>>, TransactionResult), redb::Error> {
    let database = self.database.as_ref();
    let database = database.ok_or(redb::Error::DatabaseClosed)?;
    // Durability is immediate by default.
    let transaction = database.begin_write()?;
    let mut tables = Transaction::new(&transaction, !self.shared.watchers.is_empty())?;
    tables.sweep()?;
    let results = group
      .iter()
      .map(|queued| tables.apply(&queued.operation))
      .collect::<Result<_, _>>()?;
    let transaction_result = tables.end()?;
    match transaction_result.has_changed {
      true => transaction.commit()?,
      false => transaction.abort()?,
    }
    Ok((results, transaction_result))
  }

  /// Publishes the committed snapshot to readers, then notifies watchers.
  fn publish_commit(&mut self, transaction_result: TransactionResult) {
    self.next_deadline = transaction_result.next_deadline;
    let pause = match self.next_deadline <= now() {
      true => SHORT_SWEEP_INTERVAL,
      false => SWEEP_INTERVAL,
    };
    self.next_sweep = Instant::now() + pause;
    if !transaction_result.has_changed {
      return;
    }
    let snapshot = match &self.database {
      Some(database) => snapshot(database, self.generation),
      None => return,
    };
    match snapshot {
      Ok(snapshot) => self.shared.set_state(ReadState::Open(Arc::new(snapshot))),
      // The commit itself succeeded.
      Err(error) => drop(self.reopen(Some(map_error(error, &self.shared.path)))),
    }
    for change in &transaction_result.changes {
      self.shared.watchers.notify(change);
    }
  }

  /// Reopens the file unless that has happened since `generation`.
  fn ensure_reopened(&mut self, generation: u64) -> Result<i64> {
    if self.database.is_none() || self.generation == generation {
      self.check_backoff()?;
      self.reopen(None)?;
    }
    Ok(0)
  }

  /// Fails with the last error during its backoff.
  fn check_backoff(&self) -> Result<()> {
    match &self.failure {
      Some((until, error)) if Instant::now() < *until => Err(error.clone()),
      _ => Ok(()),
    }
  }

  /// Reopens the file. `error` is the failure that caused this.
  fn reopen(&mut self, error: Option<Error>) -> Result<()> {
    let started = Instant::now();
    let shared = Arc::clone(&self.shared);
    // Readers wait in the queue meanwhile, where an interruption reaches them.
    shared.set_state(ReadState::Failed(reopening_error(&shared.path)));
    self.close();
    self.generation += 1;
    let opened = match open(&shared.path, shared.cache_bytes, self.generation) {
      Ok((database, snapshot)) => {
        shared.set_state(ReadState::Open(Arc::new(snapshot)));
        self.database = Some(database);
        Ok(())
      }
      Err(error) => {
        shared.set_state(ReadState::Failed(error.clone()));
        Err(error)
      }
    };
    let min_backoff = match opened {
      Ok(()) => SHORT_SWEEP_INTERVAL,
      Err(_) => MIN_BACKOFF,
    };
    let backoff = (started.elapsed() * BACKOFF_FACTOR).max(min_backoff);
    let error = opened.clone().err().or(error);
    self.failure = error.map(|error| (started + backoff, error));
    self.next_sweep = started + backoff.max(MIN_BACKOFF);
    opened
  }

  /// Closes the file. Everything committed is already in it, so a failure does not matter.
  fn close(&mut self) {
    let database = self.database.take();
    drop(catch(|| drop(database)));
  }
}
