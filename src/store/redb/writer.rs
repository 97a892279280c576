//! The thread of a file that changes it, and that makes a transaction of all changes that wait: so that
//! they cost the disk no more than one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase};

use super::NEVER;
use super::database::{self, ENTRIES, damaged, error_of};
use super::files::FileSlot;
use super::operation::Operation;
use super::queue::{Next, Queue, QueuedOperation};
use super::shared::{OpenFile, ReadState, Snapshot};
use super::transaction::{Transaction, TransactionResult, now};
use crate::{Code, Error, Result};

/// How long keys whose time is over may stay in the file: each time that some are removed costs a
/// transaction.
const PAUSE: Duration = Duration::from_millis(100);

/// How long others have their turn where there are more than one transaction removes.
const SHORT_PAUSE: Duration = Duration::from_millis(10);

/// How long it sleeps at most where there are lifetimes: when the system's clock is set, they are over at
/// another moment than was thought.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// After a failure the file is opened again, which takes as long as the file is large, and readers wait for
/// it. So nothing is tried for that many times as long: a tenth of the time at most is spent with it.
const REST: u32 = 10;

/// How long nothing is tried where the file could not be opened again, and keys whose time is over are left
/// alone after any failure.
const LONG_REST: Duration = Duration::from_secs(1);

struct FileWriter {
  shared: Arc<OpenFile>,
  slot: Arc<FileSlot>,
  /// Nothing after a failure to open the file again.
  database: Option<Database>,
  /// How often the file has been opened.
  opening: u64,
  /// When the next lifetime is over.
  next_deadline: u64,
  /// When those may be removed whose is.
  next_sweep: Instant,
  /// Until when nothing is tried, and why.
  failure: Option<(Instant, Error)>,
}

/// Opens a file, and starts its thread.
pub fn start(path: PathBuf, cache_bytes: usize, slot: &Arc<FileSlot>) -> Result<Arc<OpenFile>> {
  let (database, snapshot) = open(&path, cache_bytes, 1)?;
  let shared = Arc::new(OpenFile {
    path,
    cache_bytes,
    queue: Queue::default(),
    state: RwLock::new(ReadState::Open(Arc::new(snapshot))),
    watchers: Arc::default(),
  });
  let writer = FileWriter {
    shared: Arc::clone(&shared),
    slot: Arc::clone(slot),
    database: Some(database),
    opening: 1,
    // Looked for at once.
    next_deadline: 0,
    next_sweep: Instant::now(),
    failure: None,
  };
  // It ends with the process, whatever it is doing: what is half done then is not in the file.
  thread::Builder::new()
    .name("extism-redb".to_owned())
    .spawn(|| writer.run())
    .map_err(|error| Error::no_thread("that writes the store", &error))?;
  Ok(shared)
}

fn open(path: &std::path::Path, cache_bytes: usize, opening: u64) -> Result<(Database, Snapshot)> {
  let opened = catch_unwind(|| {
    let database = database::open(path, cache_bytes)?;
    let snapshot = snapshot(&database, opening).map_err(|error| error_of(error, path))?;
    Ok((database, snapshot))
  });
  // The database trusts a file that was closed as it should be, and panics over some that others have
  // changed since. Where it does not, it may return what it finds: it checks sums only after a crash.
  opened.unwrap_or_else(|_| Err(damaged(path, "it makes no sense")))
}

fn snapshot(database: &Database, opening: u64) -> Result<Snapshot, redb::Error> {
  let entries = database.begin_read()?.open_table(ENTRIES)?;
  Ok(Snapshot { opening, entries })
}

fn reopening(path: &std::path::Path) -> Error {
  let path = path.display();
  Error::new(
    Code::StoreUnavailable,
    format!("the store {path} is being opened again after a failure"),
  )
}

impl FileWriter {
  fn run(mut self) {
    loop {
      match self.shared.queue.take(self.sleep()) {
        Next::Group(group) => self.serve(group),
        Next::Due => self.sweep(),
        Next::End => break,
      }
    }
    self.shared.set_state(ReadState::Closed);
    self.close();
    self.slot.closed();
  }

  /// How long there is nothing to do, as far as is known.
  fn sleep(&self) -> Duration {
    if self.next_deadline == NEVER {
      return LONGEST_SLEEP;
    }
    let left = Duration::from_millis(self.next_deadline.saturating_sub(now()));
    let rest = self.next_sweep.saturating_duration_since(Instant::now());
    left.max(rest).min(LONGEST_SLEEP)
  }

  /// Does what waits, all of it or nothing, and answers.
  fn serve(&mut self, group: Vec<QueuedOperation>) {
    let mut changes = Vec::new();
    for waiting in group {
      match waiting.operation {
        // Nobody may wait any more, here and below.
        Operation::Reopen { opening } => drop(waiting.answer.send(self.reopened(opening))),
        _ => changes.push(waiting),
      }
    }
    if changes.is_empty() {
      return;
    }
    match self.change(&changes) {
      Ok(answers) => {
        for (waiting, answer) in changes.into_iter().zip(answers) {
          drop(waiting.answer.send(answer));
        }
      }
      Err(error) => {
        for waiting in changes {
          drop(waiting.answer.send(Err(error.clone())));
        }
      }
    }
  }

  /// Removes keys whose time is over.
  fn sweep(&mut self) {
    if self.next_deadline <= now() && self.next_sweep <= Instant::now() {
      // What fails is tried again later, and who writes is told.
      drop(self.change(&[]));
    }
  }

  /// Makes a transaction of operations; what comes of each. Watchers are told.
  fn change(&mut self, group: &[QueuedOperation]) -> Result<Vec<Result<i64>>> {
    self.is_at_rest()?;
    if self.database.is_none() {
      self.reopen(None)?;
    }
    let done = catch_unwind(AssertUnwindSafe(|| self.transact(group)));
    let done = match done {
      Ok(Ok(done)) => Ok(done),
      Ok(Err(error)) => Err(error_of(error, &self.shared.path)),
      Err(_) => Err(damaged(&self.shared.path, "it makes no sense")),
    };
    match done {
      Ok((answers, outcome)) => {
        self.committed(outcome);
        Ok(answers)
      }
      Err(error) => {
        // The database refuses everything from here on. What it was about is in the file as a whole or
        // not at all: not at all where there was no room for it, unless the disk says so only when it is
        // asked to keep what it has taken.
        drop(self.reopen(Some(error.clone())));
        Err(error)
      }
    }
  }

  fn transact(
    &self,
    group: &[QueuedOperation],
  ) -> Result<(Vec<Result<i64>>, TransactionResult), redb::Error> {
    let database = self.database.as_ref();
    let database = database.ok_or(redb::Error::DatabaseClosed)?;
    // As durable as it can be, which is what transactions are if nothing else is said.
    let transaction = database.begin_write()?;
    let mut tables = Transaction::new(&transaction, !self.shared.watchers.is_empty())?;
    tables.sweep()?;
    let answers = group
      .iter()
      .map(|waiting| tables.apply(&waiting.operation))
      .collect::<Result<_, _>>()?;
    let outcome = tables.end()?;
    match outcome.has_changed {
      true => transaction.commit()?,
      false => transaction.abort()?,
    }
    Ok((answers, outcome))
  }

  /// What has been committed is there to be read, before anybody is told.
  fn committed(&mut self, outcome: TransactionResult) {
    self.next_deadline = outcome.next_deadline;
    let pause = match self.next_deadline <= now() {
      true => SHORT_PAUSE,
      false => PAUSE,
    };
    self.next_sweep = Instant::now() + pause;
    if !outcome.has_changed {
      return;
    }
    let snapshot = match &self.database {
      Some(database) => snapshot(database, self.opening),
      None => return,
    };
    match snapshot {
      Ok(snapshot) => self.shared.set_state(ReadState::Open(Arc::new(snapshot))),
      // It has been committed all the same.
      Err(error) => drop(self.reopen(Some(error_of(error, &self.shared.path)))),
    }
    for change in &outcome.changes {
      self.shared.watchers.tell(change);
    }
  }

  /// Sees to it that the file has been opened since that opening of it.
  fn reopened(&mut self, opening: u64) -> Result<i64> {
    if self.database.is_none() || self.opening == opening {
      self.is_at_rest()?;
      self.reopen(None)?;
    }
    Ok(0)
  }

  /// Fails where there was a failure lately.
  fn is_at_rest(&self) -> Result<()> {
    match &self.failure {
      Some((until, error)) if Instant::now() < *until => Err(error.clone()),
      _ => Ok(()),
    }
  }

  /// Opens the file again, because of that failure.
  fn reopen(&mut self, error: Option<Error>) -> Result<()> {
    let begun = Instant::now();
    let shared = Arc::clone(&self.shared);
    // Readers wait in the queue meanwhile: there an interruption reaches them.
    shared.set_state(ReadState::Failed(reopening(&shared.path)));
    self.close();
    self.opening += 1;
    let opened = match open(&shared.path, shared.cache_bytes, self.opening) {
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
    let least = match opened {
      Ok(()) => SHORT_PAUSE,
      Err(_) => LONG_REST,
    };
    let rest = (begun.elapsed() * REST).max(least);
    let error = opened.clone().err().or(error);
    self.failure = error.map(|error| (begun + rest, error));
    self.next_sweep = begun + rest.max(LONG_REST);
    opened
  }

  /// Lets go of the file. All that has been committed is in it, so it does not matter whether that fails.
  fn close(&mut self) {
    let database = self.database.take();
    drop(catch_unwind(AssertUnwindSafe(|| drop(database))));
  }
}
