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
pub struct TransactionResult {
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
  pub fn end(self) -> Result<TransactionResult, StorageError> {
    let first = self.deadlines.first()?;
    Ok(TransactionResult {
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

#[cfg(test)]
mod tests {
  use std::collections::BTreeMap;

  use redb::{Database, backends::InMemoryBackend};

  use super::*;
  use crate::Code;

  fn database() -> Database {
    let backend = InMemoryBackend::new();
    Database::builder().create_with_backend(backend).unwrap()
  }

  /// Makes one transaction of operations, at a time of its own.
  fn transact(
    database: &Database,
    now: u64,
    operations: &[Operation],
  ) -> (Vec<Result<i64>>, TransactionResult) {
    let transaction = database.begin_write().unwrap();
    let mut tables = Transaction::new(&transaction, true).unwrap();
    tables.now = now;
    tables.sweep().unwrap();
    let apply = |operation| tables.apply(operation).unwrap();
    let answers = operations.iter().map(apply).collect();
    let outcome = tables.end().unwrap();
    transaction.commit().unwrap();
    (answers, outcome)
  }

  fn set(key: &str, value: &str, lifetime: Option<u64>) -> Operation {
    Operation::Set {
      entries: vec![(key.into(), value.as_bytes().into())],
      lifetime,
    }
  }

  fn increment(key: &str) -> Operation {
    let key = key.into();
    Operation::Increment { key, delta: 1 }
  }

  fn told(changes: &[Change]) -> Vec<String> {
    let said = |change: &Change| match change {
      Change::Set { key, .. } => format!("+{key}"),
      Change::Deleted { key } => format!("-{key}"),
      Change::Lost => "lost".to_owned(),
    };
    changes.iter().map(said).collect()
  }

  #[test]
  fn each_operation_sees_those_before_it_and_one_that_fails_changes_nothing() {
    let operations = [
      increment("count"),
      set("text", "x", None),
      increment("text"),
      increment("count"),
      Operation::Swap {
        key: "count".into(),
        expected: Some(b"2"[..].into()),
        value: Some(b"10"[..].into()),
        lifetime: None,
      },
      increment("count"),
      Operation::Delete {
        keys: vec!["text".into(), "text".into(), "none".into()],
      },
    ];
    let (answers, outcome) = transact(&database(), 1, &operations);
    let answers: Vec<_> = answers
      .into_iter()
      .map(|answer| answer.map_err(|error| error.code))
      .collect();
    let refused = Err(Code::InvalidArgument);
    assert_eq!(
      answers,
      [Ok(1), Ok(0), refused, Ok(2), Ok(1), Ok(11), Ok(1)]
    );
    let changes = ["+count", "+text", "+count", "+count", "+count", "-text"];
    assert_eq!(told(&outcome.changes), changes);
    assert!(outcome.has_changed && outcome.next_deadline == NEVER);
  }

  #[test]
  fn what_changes_nothing_needs_no_commit() {
    let operations = [
      Operation::Delete {
        keys: vec!["none".into()],
      },
      Operation::Swap {
        key: "none".into(),
        expected: Some(b"x"[..].into()),
        value: None,
        lifetime: None,
      },
    ];
    let (answers, outcome) = transact(&database(), 1, &operations);
    assert_eq!(answers, [Ok(0), Ok(0)]);
    assert!(!outcome.has_changed && outcome.changes.is_empty());
  }

  #[test]
  fn what_has_lived_its_time_is_removed_told_and_counted_as_gone() {
    let database = database();
    let lifetimes = [
      set("a", "1", Some(10)),
      set("b", "1", Some(20)),
      set("c", "1", None),
    ];
    assert_eq!(transact(&database, 100, &lifetimes).1.next_deadline, 110);
    let again = [increment("b"), set("a", "2", Some(50))];
    let (answers, outcome) = transact(&database, 115, &again);
    assert_eq!(answers, [Ok(2), Ok(0)]);
    // An increment keeps the lifetime.
    assert_eq!(
      (told(&outcome.changes), outcome.next_deadline),
      (vec!["-a".into(), "+b".into(), "+a".into()], 120)
    );
    let (answers, outcome) = transact(&database, 120, &[increment("b")]);
    assert_eq!((answers, outcome.next_deadline), (vec![Ok(1)], 165));
    assert_eq!(told(&outcome.changes), ["-b", "+b"]);
  }

  #[test]
  fn the_deadlines_are_those_of_the_entries_whatever_is_done() {
    let database = database();
    let mut random = 7_u64;
    let mut next = |most: u64| {
      random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
      (random >> 33) % most
    };
    for now in 0..300 {
      let mut operations = Vec::new();
      for _ in 0..8 {
        let key = next(20).to_string();
        let lifetime = (next(2) == 0).then(|| next(30));
        operations.push(match next(4) {
          0 => Operation::Delete { keys: vec![key] },
          1 => increment(&key),
          _ => set(&key, "1", lifetime),
        });
      }
      transact(&database, now, &operations);
    }
    let transaction = database.begin_write().unwrap();
    let tables = Transaction::new(&transaction, false).unwrap();
    let entries = tables.entries.iter().unwrap().map(|entry| {
      let (key, stored) = entry.unwrap();
      (key.value().to_vec(), stored.value().0)
    });
    let entries: BTreeMap<_, _> = entries.filter(|(_, deadline)| *deadline != NEVER).collect();
    let deadlines = tables.deadlines.iter().unwrap().map(|entry| {
      let (key, _) = entry.unwrap();
      let (deadline, key) = key.value();
      (key.to_vec(), deadline)
    });
    let deadlines: Vec<_> = deadlines.collect();
    assert!(!entries.is_empty() && deadlines.len() == entries.len());
    assert_eq!(deadlines.into_iter().collect::<BTreeMap<_, _>>(), entries);
  }

  #[test]
  fn more_than_one_transaction_removes_are_left_for_the_next() {
    let database = database();
    let keys = (0..SWEEP + 10).map(|number| (number.to_string(), b"x"[..].into()));
    let operation = Operation::Set {
      entries: keys.collect(),
      lifetime: Some(5),
    };
    transact(&database, 0, &[operation]);
    let (_, outcome) = transact(&database, 5, &[]);
    assert_eq!((outcome.changes.len(), outcome.next_deadline), (SWEEP, 5));
    let (_, outcome) = transact(&database, 5, &[]);
    assert_eq!((outcome.changes.len(), outcome.next_deadline), (10, NEVER));
  }
}
