//! One transaction: applies operations to the tables.

use std::time::{SystemTime, UNIX_EPOCH};

use redb::{ReadableTable, StorageError, Table, WriteTransaction};

use super::database::{DEADLINES, ENTRIES};
use super::operation::Operation;
use super::{NEVER, StoredEntry};
use crate::Result;
use crate::store::checks::sum;
use crate::store::{Bytes, Change};

/// How many expired keys one transaction removes at most.
pub const MAX_SWEEP: usize = 1024;

/// Milliseconds since 1970. Uses the system clock, as deadlines must stay valid across processes.
pub fn now() -> u64 {
  let since = SystemTime::now().duration_since(UNIX_EPOCH);
  since.map_or(0, |since| {
    u64::try_from(since.as_millis()).unwrap_or(NEVER - 1)
  })
}

/// A group of operations in one write transaction.
pub struct Transaction<'a> {
  entries: Table<'a, &'static [u8], StoredEntry>,
  /// The keys that have a lifetime, sorted by deadline.
  deadlines: Table<'a, (u64, &'static [u8]), ()>,
  now: u64,
  /// The changes for watchers; `None` if there are no watchers.
  changes: Option<Vec<Change>>,
  has_changed: bool,
}

/// The outcome of a transaction, before it is committed.
pub struct TransactionResult {
  /// The changes for watchers.
  pub changes: Vec<Change>,
  /// Whether there is anything to commit.
  pub has_changed: bool,
  /// The earliest deadline; [`NEVER`] if no key has a lifetime.
  pub next_deadline: u64,
}

impl<'a> Transaction<'a> {
  /// Opens the tables.
  pub fn new(transaction: &'a WriteTransaction, is_watched: bool) -> Result<Self, redb::Error> {
    Ok(Self {
      entries: transaction.open_table(ENTRIES)?,
      deadlines: transaction.open_table(DEADLINES)?,
      now: now(),
      changes: is_watched.then(Vec::new),
      has_changed: false,
    })
  }

  /// Applies an operation. An inner error is the operation's own: it has changed nothing, and the transaction
  /// goes on. An outer error ends the transaction.
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

  /// Removes up to [`MAX_SWEEP`] expired keys.
  pub fn sweep(&mut self) -> Result<(), StorageError> {
    for _ in 0..MAX_SWEEP {
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

  /// Finishes the operations. The caller commits.
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

  /// The deadline and value of a key that has not expired.
  fn get(&self, key: &str) -> Result<Option<(u64, Bytes)>, StorageError> {
    let stored = self.entries.get(key.as_bytes())?;
    let stored = stored.as_ref().map(|stored| stored.value());
    let alive = stored.filter(|(deadline, _)| *deadline > self.now);
    Ok(alive.map(|(deadline, value)| (deadline, value.into())))
  }

  fn set(&mut self, key: &str, value: &Bytes, deadline: u64) -> Result<(), StorageError> {
    let new = (deadline, &**value);
    let old = self.entries.insert(key.as_bytes(), new)?;
    let old = old.map(|old| old.value().0);
    self.remove_deadline(key, old)?;
    if deadline != NEVER {
      self.deadlines.insert((deadline, key.as_bytes()), ())?;
    }
    self.has_changed = true;
    if let Some(changes) = &mut self.changes {
      // An expired entry that was still in the table counts as deleted first.
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

  /// Removes a key; returns whether it existed and had not expired.
  fn remove(&mut self, key: &str) -> Result<bool, StorageError> {
    let old = self.entries.remove(key.as_bytes())?;
    let old = old.map(|old| old.value().0);
    self.remove_deadline(key, old)?;
    let Some(deadline) = old else {
      return Ok(false);
    };
    self.has_changed = true;
    if let Some(changes) = &mut self.changes {
      changes.push(Change::Deleted { key: key.into() });
    }
    Ok(deadline > self.now)
  }

  /// Removes the deadline of a replaced or deleted entry.
  fn remove_deadline(&mut self, key: &str, deadline: Option<u64>) -> Result<(), StorageError> {
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

  /// Commits operations in one transaction, at the time `now`.
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
    let results = operations.iter().map(apply).collect();
    let outcome = tables.end().unwrap();
    transaction.commit().unwrap();
    (results, outcome)
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

  fn formatted(changes: &[Change]) -> Vec<String> {
    let format = |change: &Change| match change {
      Change::Set { key, .. } => format!("+{key}"),
      Change::Deleted { key } => format!("-{key}"),
      Change::Lost => "lost".to_owned(),
    };
    changes.iter().map(format).collect()
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
    let (results, outcome) = transact(&database(), 1, &operations);
    let results: Vec<_> = results
      .into_iter()
      .map(|result| result.map_err(|error| error.code))
      .collect();
    let refused = Err(Code::InvalidArgument);
    assert_eq!(
      results,
      [Ok(1), Ok(0), refused, Ok(2), Ok(1), Ok(11), Ok(1)]
    );
    let changes = ["+count", "+text", "+count", "+count", "+count", "-text"];
    assert_eq!(formatted(&outcome.changes), changes);
    assert!(outcome.has_changed && outcome.next_deadline == NEVER);
  }

  #[test]
  fn operations_that_change_nothing_need_no_commit() {
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
    let (results, outcome) = transact(&database(), 1, &operations);
    assert_eq!(results, [Ok(0), Ok(0)]);
    assert!(!outcome.has_changed && outcome.changes.is_empty());
  }

  #[test]
  fn expired_keys_are_removed_reported_and_counted_as_missing() {
    let database = database();
    let lifetimes = [
      set("a", "1", Some(10)),
      set("b", "1", Some(20)),
      set("c", "1", None),
    ];
    assert_eq!(transact(&database, 100, &lifetimes).1.next_deadline, 110);
    let again = [increment("b"), set("a", "2", Some(50))];
    let (results, outcome) = transact(&database, 115, &again);
    assert_eq!(results, [Ok(2), Ok(0)]);
    // An increment keeps the lifetime.
    assert_eq!(
      (formatted(&outcome.changes), outcome.next_deadline),
      (vec!["-a".into(), "+b".into(), "+a".into()], 120)
    );
    let (results, outcome) = transact(&database, 120, &[increment("b")]);
    assert_eq!((results, outcome.next_deadline), (vec![Ok(1)], 165));
    assert_eq!(formatted(&outcome.changes), ["-b", "+b"]);
  }

  #[test]
  fn the_deadline_table_always_matches_the_entries() {
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
  fn expired_keys_beyond_the_limit_are_left_for_the_next_transaction() {
    let database = database();
    let keys = (0..MAX_SWEEP + 10).map(|number| (number.to_string(), b"x"[..].into()));
    let operation = Operation::Set {
      entries: keys.collect(),
      lifetime: Some(5),
    };
    transact(&database, 0, &[operation]);
    let (_, outcome) = transact(&database, 5, &[]);
    assert_eq!(
      (outcome.changes.len(), outcome.next_deadline),
      (MAX_SWEEP, 5)
    );
    let (_, outcome) = transact(&database, 5, &[]);
    assert_eq!((outcome.changes.len(), outcome.next_deadline), (10, NEVER));
  }
}
