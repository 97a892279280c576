//! One transaction: what operations do to the tables.

use std::time::{SystemTime, UNIX_EPOCH};

use redb::{ReadableTable, StorageError, Table, WriteTransaction};

use super::database::{DEADLINES, ENTRIES};
use super::operation::Operation;
use super::{NEVER, Stored};
use crate::Result;
use crate::store::checks::sum;
use crate::store::{Bytes, Change};

/// Keys whose time is over that one transaction removes at most.
pub const SWEEP: usize = 1024;

/// Milliseconds since 1970. Lifetimes must hold when the process is another, so it is the system's clock.
pub fn now() -> u64 {
  let since = SystemTime::now().duration_since(UNIX_EPOCH);
  since.map_or(0, |since| {
    u64::try_from(since.as_millis()).unwrap_or(NEVER - 1)
  })
}

/// Changes that are made together.
pub struct Transaction<'a> {
  entries: Table<'a, &'static [u8], Stored>,
  /// The keys that have a lifetime, by when it is over.
  deadlines: Table<'a, (u64, &'static [u8]), ()>,
  now: u64,
  /// What watchers are to be told; nothing where there are none.
  changes: Option<Vec<Change>>,
  has_changed: bool,
}

/// What a transaction has come to.
pub struct Outcome {
  /// What watchers are to be told.
  pub changes: Vec<Change>,
  /// Whether there is something to commit.
  pub has_changed: bool,
  /// When the next lifetime is over; [`NEVER`] where nothing has one.
  pub next_deadline: u64,
}

impl<'a> Transaction<'a> {
  /// Begins to change the tables.
  pub fn new(transaction: &'a WriteTransaction, is_watched: bool) -> Result<Self, redb::Error> {
    Ok(Self {
      entries: transaction.open_table(ENTRIES)?,
      deadlines: transaction.open_table(DEADLINES)?,
      now: now(),
      changes: is_watched.then(Vec::new),
      has_changed: false,
    })
  }

  /// Does an operation. An error of the inner kind is its own: it has changed nothing, and the others go
  /// on. One of the outer kind is the end of the transaction.
  pub fn apply(&mut self, operation: &Operation) -> Result<Result<i64>, StorageError> {
    match operation {
      Operation::Set { entries, lifetime } => {
        let deadline = self.deadline(*lifetime);
        for (key, value) in entries {
          self.set(key, value, deadline)?;
        }
        Ok(Ok(0))
      }
      Operation::Delete { keys } => {
        let mut count = 0;
        for key in keys {
          count += i64::from(self.remove(key)?);
        }
        Ok(Ok(count))
      }
      Operation::Increment { key, delta } => self.increment(key, *delta),
      Operation::Swap {
        key,
        expected,
        value,
        lifetime,
      } => {
        let old = self.get(key)?;
        if old.as_ref().map(|(_, value)| &**value) != expected.as_deref() {
          return Ok(Ok(0));
        }
        match value {
          Some(value) => self.set(key, value, self.deadline(*lifetime))?,
          None => drop(self.remove(key)?),
        }
        Ok(Ok(1))
      }
      Operation::Reopen { .. } => Ok(Ok(0)),
    }
  }

  /// Removes keys whose time is over, [`SWEEP`] at most.
  pub fn sweep(&mut self) -> Result<(), StorageError> {
    for _ in 0..SWEEP {
      let first = self.deadlines.first()?;
      let key = match first.as_ref().map(|(first, _)| first.value()) {
        Some((deadline, key)) if deadline <= self.now => String::from_utf8_lossy(key).into_owned(),
        _ => break,
      };
      drop(first);
      self.remove(&key)?;
    }
    Ok(())
  }

  /// Ends; nothing is committed yet.
  pub fn end(self) -> Result<Outcome, StorageError> {
    let first = self.deadlines.first()?;
    Ok(Outcome {
      next_deadline: first.map_or(NEVER, |(first, _)| first.value().0),
      changes: self.changes.unwrap_or_default(),
      has_changed: self.has_changed,
    })
  }

  fn deadline(&self, lifetime: Option<u64>) -> u64 {
    lifetime.map_or(NEVER, |lifetime| self.now.saturating_add(lifetime))
  }

  /// What there is under a key, and when that is over.
  fn get(&self, key: &str) -> Result<Option<(u64, Bytes)>, StorageError> {
    let stored = self.entries.get(key.as_bytes())?;
    let stored = stored.as_ref().map(|stored| stored.value());
    let living = stored.filter(|(deadline, _)| *deadline > self.now);
    Ok(living.map(|(deadline, value)| (deadline, value.into())))
  }

  fn set(&mut self, key: &str, value: &Bytes, deadline: u64) -> Result<(), StorageError> {
    let new = (deadline, &**value);
    let old = self.entries.insert(key.as_bytes(), new)?;
    let old = old.map(|old| old.value().0);
    self.forget(key, old)?;
    if deadline != NEVER {
      self.deadlines.insert((deadline, key.as_bytes()), ())?;
    }
    self.has_changed = true;
    if let Some(changes) = &mut self.changes {
      // What had lived its time and was still there is told as gone before.
      if old.is_some_and(|old| old <= self.now) {
        changes.push(Change::Deleted { key: key.into() });
      }
      changes.push(Change::Set {
        key: key.into(),
        value: Some(Bytes::clone(value)),
      });
    }
    Ok(())
  }

  /// Removes a key; whether it was there, its time not over.
  fn remove(&mut self, key: &str) -> Result<bool, StorageError> {
    let old = self.entries.remove(key.as_bytes())?;
    let old = old.map(|old| old.value().0);
    self.forget(key, old)?;
    let Some(deadline) = old else {
      return Ok(false);
    };
    self.has_changed = true;
    if let Some(changes) = &mut self.changes {
      changes.push(Change::Deleted { key: key.into() });
    }
    Ok(deadline > self.now)
  }

  /// Takes the deadline of what is replaced or removed out of the table.
  fn forget(&mut self, key: &str, deadline: Option<u64>) -> Result<(), StorageError> {
    if let Some(deadline) = deadline.filter(|deadline| *deadline != NEVER) {
      self.deadlines.remove((deadline, key.as_bytes()))?;
    }
    Ok(())
  }

  fn increment(&mut self, key: &str, delta: i64) -> Result<Result<i64>, StorageError> {
    let (deadline, old) = self.get(key)?.unzip();
    let sum = match sum(old.as_deref(), delta) {
      Ok(sum) => sum,
      Err(error) => return Ok(Err(error)),
    };
    let value = sum.to_string().into_bytes().into();
    self.set(key, &value, deadline.unwrap_or(NEVER))?;
    Ok(Ok(sum))
  }
}
