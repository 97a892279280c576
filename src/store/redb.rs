//! A store in a file, on redb: durable, for one process at a time.
//!
//! A file is opened once per process ([`files`]). All writes go through one thread ([`writer`]), which
//! commits everything that is queued in one transaction ([`transaction`]). Readers read the last committed
//! state on their own threads.

mod containment;
mod database;
mod files;
mod operation;
mod queue;
mod shared;
mod transaction;
mod writer;

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redb::{AccessGuard, ReadableTable, StorageError};

use super::checks::check_key;
use super::{Bytes, KeyPage, Store, WatchGuard, Watcher};
use crate::{Code, Error, Result};
use files::FileSlot;
use operation::Operation;
use shared::{OpenFile, ReadSnapshot};

/// The default size of a file's cache: 64 MiB.
pub const CACHE_BYTES: usize = 64 << 20;

/// The longest value, in bytes: 256 MiB. The database briefly needs several times that.
const MAX_VALUE: usize = 256 << 20;

/// The deadline of an entry without a lifetime.
const NEVER: u64 = u64::MAX;

/// An entry's table value: when it expires, in milliseconds since 1970, and its bytes.
type StoredEntry = (u64, &'static [u8]);

/// One opening of a store in a file. All openings of a file in the process share one store; the file is
/// closed when the last of them is closed or dropped.
pub struct RedbStore {
  shared: Arc<OpenFile>,
  slot: Arc<FileSlot>,
  is_released: AtomicBool,
}

impl RedbStore {
  /// Opens a file, or creates it, with a cache of `cache_bytes`.
  ///
  /// [`Code::FileNotFound`] if its directory does not exist; [`Code::AccessDenied`];
  /// [`Code::StoreUnavailable`] if another process has it open; [`Code::StoreDamaged`] if it is damaged or
  /// not a store; [`Code::InvalidArgument`] if it is not a regular file, or is open with another cache size.
  pub fn open(path: &Path, cache_bytes: Option<usize>) -> Result<Self> {
    let (shared, slot) = files::open(path, cache_bytes)?;
    Ok(Self {
      shared,
      slot,
      is_released: AtomicBool::new(false),
    })
  }

  /// Releases the file; returns whether this was the first call.
  fn release(&self) -> bool {
    let is_first = !self.is_released.swap(true, Ordering::AcqRel);
    if is_first {
      self.slot.release();
    }
    is_first
  }
}

impl Drop for RedbStore {
  /// Closes the file in the background, as this may be JavaScript's thread.
  fn drop(&mut self) {
    self.release();
  }
}

fn check_value(value: &[u8]) -> Result<()> {
  if value.len() <= MAX_VALUE {
    return Ok(());
  }
  Err(Error::new(
    Code::ValueTooLarge,
    format!(
      "the value has {} bytes, more than the {MAX_VALUE} that a store in a file accepts; store it in parts",
      value.len()
    ),
  ))
}

fn milliseconds(lifetime: Option<Duration>) -> Option<u64> {
  lifetime.map(|lifetime| u64::try_from(lifetime.as_millis()).unwrap_or(NEVER))
}

/// Reads an entry unless it has expired.
fn unless_expired<T>(
  stored: &AccessGuard<'_, StoredEntry>,
  read: impl FnOnce(&[u8]) -> T,
) -> Option<T> {
  let (deadline, value) = stored.value();
  // Read the clock only if there is a lifetime.
  let is_alive = deadline == NEVER || deadline > transaction::now();
  is_alive.then(|| read(value))
}

fn get(snapshot: &ReadSnapshot, key: &str) -> Result<Option<Bytes>, StorageError> {
  let stored = snapshot.entries.get(key.as_bytes())?;
  Ok(stored.and_then(|stored| unless_expired(&stored, |value| value.into())))
}

fn list(
  snapshot: &ReadSnapshot,
  prefix: &str,
  cursor: Option<&str>,
  limit: usize,
) -> Result<KeyPage, StorageError> {
  let start = match cursor {
    Some(cursor) if cursor >= prefix => Bound::Excluded(cursor.as_bytes()),
    _ => Bound::Included(prefix.as_bytes()),
  };
  let mut page = KeyPage::default();
  let range = ReadableTable::range::<&[u8]>(&snapshot.entries, (start, Bound::Unbounded))?;
  for entry in range {
    let (key, stored) = entry?;
    if !key.value().starts_with(prefix.as_bytes()) {
      break;
    }
    if unless_expired(&stored, |_| ()).is_none() {
      continue;
    }
    if page.keys.len() >= limit.max(1) {
      page.cursor = page.keys.last().cloned();
      break;
    }
    page
      .keys
      .push(String::from_utf8_lossy(key.value()).into_owned());
  }
  Ok(page)
}

/// `get_now` is not implemented: a read may wait for the disk, which JavaScript's thread must not do.
impl Store for RedbStore {
  fn system(&self) -> &'static str {
    "redb"
  }

  fn get(&self, key: &str) -> Result<Option<Bytes>> {
    check_key(key)?;
    self.shared.read(|snapshot| get(snapshot, key))
  }

  fn set(&self, key: &str, value: &[u8], lifetime: Option<Duration>) -> Result<()> {
    self.set_many(&[(key, value)], lifetime)
  }

  fn delete(&self, key: &str) -> Result<bool> {
    Ok(self.delete_many(&[key])? > 0)
  }

  fn exists(&self, key: &str) -> Result<bool> {
    check_key(key)?;
    let exists = |snapshot: &ReadSnapshot| {
      let stored = snapshot.entries.get(key.as_bytes())?;
      Ok(stored.is_some_and(|stored| unless_expired(&stored, |_| ()).is_some()))
    };
    self.shared.read(exists)
  }

  /// Keys are in byte order; a cursor is the last key of its page.
  fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage> {
    self
      .shared
      .read(|snapshot| list(snapshot, prefix, cursor, limit))
  }

  fn increment(&self, key: &str, delta: i64) -> Result<i64> {
    check_key(key)?;
    self.shared.change(Operation::Increment {
      key: key.into(),
      delta,
    })
  }

  fn compare_and_swap(
    &self,
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    lifetime: Option<Duration>,
  ) -> Result<bool> {
    check_key(key)?;
    check_value(value.unwrap_or_default())?;
    let swapped = self.shared.change(Operation::Swap {
      key: key.into(),
      expected: expected.map(Bytes::from),
      value: value.map(Bytes::from),
      lifetime: milliseconds(lifetime),
    })?;
    Ok(swapped > 0)
  }

  /// Reads one consistent snapshot.
  fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>> {
    keys.iter().try_for_each(|key| check_key(key))?;
    self
      .shared
      .read(|snapshot| keys.iter().map(|key| get(snapshot, key)).collect())
  }

  /// All or none.
  fn set_many(&self, entries: &[(&str, &[u8])], lifetime: Option<Duration>) -> Result<()> {
    for (key, value) in entries {
      check_key(key)?;
      check_value(value)?;
    }
    let entries = entries
      .iter()
      .map(|(key, value)| (String::from(*key), Bytes::from(*value)))
      .collect();
    self.shared.change(Operation::Set {
      entries,
      lifetime: milliseconds(lifetime),
    })?;
    Ok(())
  }

  /// All or none.
  fn delete_many(&self, keys: &[&str]) -> Result<u64> {
    keys.iter().try_for_each(|key| check_key(key))?;
    let keys = keys.iter().copied().map(String::from).collect();
    let deleted = self.shared.change(Operation::Delete { keys })?;
    Ok(deleted.unsigned_abs())
  }

  fn watch(&self, prefix: &str, watcher: Arc<dyn Watcher>) -> Result<WatchGuard> {
    Ok(self.shared.watchers.add(prefix, watcher))
  }

  /// If this is the last opening, waits until all queued operations are done and other processes can open the
  /// file.
  fn close(&self) -> Result<()> {
    if self.release() {
      self.slot.wait_until_closed(&self.shared);
    }
    Ok(())
  }
}

#[cfg(test)]
mod tests {
  use std::fs;
  use std::path::PathBuf;
  use std::sync::atomic::AtomicU32;
  use std::time::Instant;

  use redb::{Database, TableDefinition};

  use super::*;

  /// A temporary directory for one test.
  struct Directory(PathBuf);

  impl Directory {
    fn new() -> Self {
      static NEXT: AtomicU32 = AtomicU32::new(0);
      let number = NEXT.fetch_add(1, Ordering::Relaxed);
      let name = format!("extism-host-redb-{}-{number}", std::process::id());
      let path = std::env::temp_dir().join(name);
      fs::create_dir(&path).unwrap();
      Self(path)
    }

    fn file(&self) -> PathBuf {
      self.0.join("data.redb")
    }
  }

  impl Drop for Directory {
    fn drop(&mut self) {
      drop(fs::remove_dir_all(&self.0));
    }
  }

  fn wait_until(mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
      assert!(started.elapsed() < Duration::from_secs(10));
      std::thread::sleep(Duration::from_millis(1));
    }
  }

  #[test]
  fn a_file_is_closed_when_every_opening_is_closed_or_dropped() -> Result<()> {
    let directory = Directory::new();
    let path = directory.file();
    let (first, second) = (RedbStore::open(&path, None)?, RedbStore::open(&path, None)?);
    first.set("key", b"value", None)?;
    assert_eq!(second.get("key")?.as_deref(), Some(&b"value"[..]));
    first.close()?;
    assert!(Database::open(&path).is_err());
    drop(second);
    wait_until(|| Database::open(&path).is_ok());
    // A closed store refuses operations.
    assert_eq!(
      first.get("key").map_err(|error| error.code),
      Err(Code::Closed)
    );
    let set = first.set("key", b"other", None);
    assert_eq!(set.map_err(|error| error.code), Err(Code::Closed));
    assert_eq!(
      RedbStore::open(&path, None)?.get("key")?.as_deref(),
      Some(&b"value"[..])
    );
    Ok(())
  }

  #[test]
  fn another_programs_database_is_refused_and_left_unchanged() -> Result<(), redb::Error> {
    const THEIRS: TableDefinition<'static, &'static str, u64> = TableDefinition::new("theirs");
    let directory = Directory::new();
    let path = directory.file();
    let database = Database::create(&path)?;
    let transaction = database.begin_write()?;
    transaction.open_table(THEIRS)?.insert("key", 7)?;
    transaction.commit()?;
    drop(database);
    let refused = RedbStore::open(&path, None).err();
    assert_eq!(refused.map(|error| error.code), Some(Code::StoreDamaged));
    let database = Database::open(&path)?;
    let transaction = redb::ReadableDatabase::begin_read(&database)?;
    assert_eq!(transaction.list_tables()?.count(), 1);
    Ok(())
  }

  #[test]
  fn a_value_that_is_too_large_is_refused_before_anything_is_written() -> Result<()> {
    let directory = Directory::new();
    let store = RedbStore::open(&directory.file(), None)?;
    // Nothing writes to these zeros, so they take no memory.
    let value = vec![0; MAX_VALUE + 1];
    let refused = [
      store.set_many(&[("key", b"value"), ("large", &value)], None),
      store
        .compare_and_swap("large", None, Some(&value), None)
        .map(|_| ()),
    ];
    for refused in refused {
      assert_eq!(
        refused.map_err(|error| error.code),
        Err(Code::ValueTooLarge)
      );
    }
    assert_eq!(store.list("", None, 9)?, KeyPage::default());
    Ok(())
  }

  #[test]
  fn readers_see_completed_writes_while_others_write() -> Result<()> {
    let directory = Directory::new();
    let store = RedbStore::open(&directory.file(), Some(1 << 20))?;
    std::thread::scope(|scope| {
      for writer in 0..4 {
        let store = &store;
        scope.spawn(move || {
          for number in 0..100 {
            let (key, value) = (format!("{writer}:{}", number % 7), vec![number; 700]);
            store.set(&key, &value, None).unwrap();
            assert_eq!(store.get(&key).unwrap().as_deref(), Some(&*value));
          }
        });
      }
    });
    assert_eq!(store.list("", None, 99)?.keys.len(), 28);
    Ok(())
  }

  /// Blocks the writer's thread until dropped.
  struct BlockedWriter(Option<std::sync::mpsc::Sender<()>>, Option<WatchGuard>);

  impl BlockedWriter {
    fn new(store: &RedbStore) -> Result<Self> {
      struct Blocking(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);
      impl Watcher for Blocking {
        fn on_change(&self, _: &crate::store::Change) {
          let _ = self.0.lock().unwrap().recv();
        }
      }
      let (sender, receiver) = std::sync::mpsc::channel();
      let watch = store.watch("blocking", Arc::new(Blocking(receiver.into())))?;
      let set = Operation::Set {
        entries: vec![("blocking".to_owned(), Bytes::default())],
        lifetime: None,
      };
      drop(store.shared.queue.add(set)?);
      wait_until(|| store.get("blocking").is_ok_and(|value| value.is_some()));
      Ok(Self(Some(sender), Some(watch)))
    }
  }

  impl Drop for BlockedWriter {
    fn drop(&mut self) {
      drop(self.0.take());
      drop(self.1.take());
    }
  }

  #[test]
  fn a_canceled_call_stops_waiting_and_its_change_is_still_made() -> Result<()> {
    let directory = Directory::new();
    let store = RedbStore::open(&directory.file(), None)?;
    let blocked = BlockedWriter::new(&store)?;
    let interruption = Arc::<crate::interruption::Interruption>::default();
    std::thread::scope(|scope| {
      let guest = scope.spawn(|| {
        let _current = interruption.enter();
        store.set("key", b"value", None)
      });
      std::thread::sleep(Duration::from_millis(20));
      assert!(!guest.is_finished());
      interruption.cancel();
      let set = guest.join().unwrap().map_err(|error| error.code);
      assert_eq!(set, Err(Code::Canceled));
    });
    drop(blocked);
    // This thread has no call to cancel.
    store.set("other", b"value", None)?;
    assert_eq!(store.get("key")?.as_deref(), Some(&b"value"[..]));
    Ok(())
  }
}
