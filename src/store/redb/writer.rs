//! The thread of a file that changes it, and that makes a transaction of all changes that wait: so that
//! they cost the disk no more than one.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase};

use super::NEVER;
use super::containment::{catch, contained};
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

/// Opens a file, on a thread that serves it from then on.
pub fn start(path: PathBuf, cache_bytes: usize, slot: &Arc<FileSlot>) -> Result<Arc<OpenFile>> {
  let (opened, is_open) = sync_channel(1);
  let slot = Arc::clone(slot);
  // It ends with the process, whatever it is doing: what is half done then is not in the file.
  thread::Builder::new()
    .name("extism-redb".to_owned())
    .spawn(move || serve_file(path, cache_bytes, slot, &opened))
    .map_err(|error| Error::no_thread("that writes the store", &error))?;
  is_open.recv().unwrap_or_else(|_| {
    let message = "the thread that opens the store has ended";
    Err(Error::new(Code::Internal, message))
  })
}

/// What the thread does.
fn serve_file(
  path: PathBuf,
  cache_bytes: usize,
  slot: Arc<FileSlot>,
  opened: &SyncSender<Result<Arc<OpenFile>>>,
) {
  let give_up = {
    let (slot, opened, error) = (Arc::clone(&slot), opened.clone(), given_up(&path));
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
    queue: Queue::default(),
    state: RwLock::new(ReadState::Open(Arc::new(snapshot))),
    watchers: Arc::default(),
  });
  // Nobody may wait any more.
  drop(opened.send(Ok(Arc::clone(&shared))));
  let writer = FileWriter {
    shared,
    slot,
    database: Some(database),
    opening: 1,
    // Looked for at once.
    next_deadline: 0,
    next_sweep: Instant::now(),
    failure: None,
  };
  writer.run();
}

fn given_up(path: &Path) -> Error {
  let mut error = damaged(path, "it makes no sense");
  error
    .message
    .push_str("; this process cannot open it again");
  error
}

fn open(path: &Path, cache_bytes: usize, opening: u64) -> Result<(Database, Snapshot)> {
  let opened = catch(|| {
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

fn reopening(path: &Path) -> Error {
  let path = path.display();
  Error::new(
    Code::StoreUnavailable,
    format!("the store {path} is being opened again after a failure"),
  )
}

impl FileWriter {
  fn run(mut self) {
    loop {
      let group = match self.shared.queue.take(self.sleep()) {
        Next::Group(group) => group,
        Next::Due => Vec::new(),
        Next::End => break,
      };
      let answers = group.iter().map(|waiting| waiting.answer.clone()).collect();
      let give_up = self.give_up(answers);
      let served = contained(give_up, || catch(|| self.serve(group)));
      if served.is_err() {
        // Where no panic is known to happen.
        self.give_up(Vec::new())();
        return;
      }
    }
    let give_up = self.give_up(Vec::new());
    contained(give_up, || {
      drop(catch(|| self.shared.set_state(ReadState::Closed)));
      self.close();
    });
    self.slot.closed();
  }

  /// What the thread does if it cannot go on: it tells those who wait for these answers, and all others.
  fn give_up(&self, answers: Vec<SyncSender<Result<i64>>>) -> impl FnOnce() + use<> {
    let (shared, slot) = (Arc::clone(&self.shared), Arc::clone(&self.slot));
    move || {
      let error = given_up(&shared.path);
      slot.give_up(&error);
      shared.queue.fail(&error);
      for answer in answers {
        // Some may have been answered already.
        drop(answer.try_send(Err(error.clone())));
      }
      slot.closed();
    }
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

  /// Does what waits, all of it or nothing, and answers; what is due if nothing waits.
  fn serve(&mut self, group: Vec<QueuedOperation>) {
    if group.is_empty() {
      return self.sweep();
    }
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
    let mut done = self.attempt(group);
    if matches!(done, Err(redb::Error::PreviousIo)) {
      // A reader has met a failure, of which this change may know nothing.
      self.reopen(None)?;
      done = self.attempt(group);
    }
    let done = done.map_err(|error| error_of(error, &self.shared.path));
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

  /// Makes the transaction; a panic is an error of the file.
  fn attempt(
    &self,
    group: &[QueuedOperation],
  ) -> Result<(Vec<Result<i64>>, TransactionResult), redb::Error> {
    catch(|| self.transact(group))
      .unwrap_or_else(|_| Err(redb::Error::Corrupted("it makes no sense".to_owned())))
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
    drop(catch(|| drop(database)));
  }
}
