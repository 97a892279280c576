//! A store in this process's memory.

mod writer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::checks::{check_key, sum};
use super::watch::Watchers;
use super::{Bytes, KeyPage, Store, WatchGuard, Watcher};
use crate::{Code, Error, Result};
use writer::{MemoryIndex, MemoryWriter};

/// A value in a [`MemoryStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
  /// The bytes that a guest reads; a string's UTF-8 encoding.
  pub bytes: Bytes,
  /// Whether JavaScript set a string and will read it back as one.
  pub is_text: bool,
}

impl Value {
  /// A value that JavaScript set as a string.
  pub fn text(text: &str) -> Self {
    Self {
      bytes: text.as_bytes().into(),
      is_text: true,
    }
  }

  /// A value that JavaScript set as bytes.
  pub fn bytes(bytes: &[u8]) -> Self {
    Self {
      bytes: bytes.into(),
      is_text: false,
    }
  }
}

/// The deadline of an entry without a lifetime.
const NEVER: u64 = u64::MAX;

/// The memory that an entry takes besides its key and value: in the map, the ordered set and the clock, plus
/// the allocator's overhead. Measured with a million keys.
const ENTRY_OVERHEAD: usize = 200;

struct MemoryEntry {
  bytes: Bytes,
  /// Insertion order, so that iteration follows it as in a JavaScript `Map`.
  position: u64,
  /// When the entry expires, in nanoseconds since the store was created.
  deadline: u64,
  is_text: bool,
  /// Whether the entry was read or overwritten since eviction last inspected it.
  is_used: AtomicBool,
}

impl MemoryEntry {
  fn new(value: Value, position: u64, deadline: u64, is_used: bool) -> Self {
    Self {
      bytes: value.bytes,
      position,
      deadline,
      is_text: value.is_text,
      is_used: AtomicBool::new(is_used),
    }
  }

  fn value(&self) -> Value {
    Value {
      bytes: Arc::clone(&self.bytes),
      is_text: self.is_text,
    }
  }

  /// How many bytes the entry counts towards the store's limit.
  fn cost(&self, key: &str) -> usize {
    cost(key, &self.bytes)
  }
}

fn cost(key: &str, value: &[u8]) -> usize {
  key.len() + value.len() + ENTRY_OVERHEAD
}

/// A store in memory, for guests and JavaScript. All methods may be called from any thread. Readers never
/// block. Writers wait for each other, for microseconds.
pub struct MemoryStore {
  shared: Arc<MemoryState>,
}

struct MemoryState {
  entries: papaya::HashMap<Arc<str>, MemoryEntry>,
  /// Deadlines count from here.
  epoch: Instant,
  /// The earliest deadline.
  next_deadline: AtomicU64,
  max_bytes: Option<usize>,
  index: Mutex<MemoryIndex>,
  watchers: Arc<Watchers>,
  this: Weak<Self>,
}

impl Default for MemoryStore {
  fn default() -> Self {
    Self::with_bound(None)
  }
}

/// The named stores of this process.
static NAMED: LazyLock<Mutex<HashMap<Box<str>, Weak<MemoryStore>>>> = LazyLock::new(Mutex::default);

impl MemoryStore {
  /// An empty store.
  pub fn new() -> Self {
    Self::default()
  }

  /// An empty store of at most `max_bytes`: keys, values, and 200 bytes for each entry. When it is full, it
  /// evicts the approximately least recently used entries.
  pub fn bounded(max_bytes: usize) -> Self {
    Self::with_bound(Some(max_bytes))
  }

  fn with_bound(max_bytes: Option<usize>) -> Self {
    Self {
      shared: Arc::new_cyclic(|this| MemoryState {
        entries: papaya::HashMap::new(),
        epoch: Instant::now(),
        next_deadline: AtomicU64::new(NEVER),
        max_bytes,
        index: Mutex::default(),
        watchers: Arc::default(),
        this: Weak::clone(this),
      }),
    }
  }

  /// The store named `name`, shared by all threads of the process while any of them uses it. Its entries are
  /// gone once nothing uses it.
  pub fn named(name: &str) -> Arc<Self> {
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = named.get(name).and_then(Weak::upgrade) {
      return store;
    }
    named.retain(|_, store| store.strong_count() > 0);
    let store = Arc::<Self>::default();
    named.insert(name.into(), Arc::downgrade(&store));
    store
  }

  /// Sets `key`, with an optional lifetime. An existing key keeps its position in [`keys`](Self::keys).
  /// [`Code::ValueTooLarge`] if the entry alone exceeds the store's limit.
  pub fn set_value(&self, key: &str, value: Value, lifetime: Option<Duration>) -> Result<()> {
    self.shared.check_fits(key, &value.bytes)?;
    let mut writer = self.writer();
    let deadline = writer.deadline(lifetime);
    writer.set(key, value, deadline);
    Ok(())
  }

  /// The value under `key`.
  pub fn value(&self, key: &str) -> Option<Value> {
    self.shared.read(key, MemoryEntry::value)
  }

  /// Whether `key` exists.
  pub fn has(&self, key: &str) -> bool {
    self.shared.read(key, |_| ()).is_some()
  }

  /// Removes `key`, and returns whether it existed.
  pub fn remove(&self, key: &str) -> bool {
    self.writer().remove(key)
  }

  /// Removes all keys.
  pub fn clear(&self) {
    self.writer().clear();
  }

  /// The number of keys.
  pub fn len(&self) -> usize {
    if self
      .shared
      .is_expired(self.shared.next_deadline.load(Ordering::Acquire))
    {
      self.writer().sweep(usize::MAX);
    }
    self.shared.entries.len()
  }

  /// Whether the store has no keys.
  pub fn is_empty(&self) -> bool {
    self.len() == 0
  }

  /// A snapshot of all keys, in insertion order.
  pub fn keys(&self) -> Vec<Arc<str>> {
    let pinned = self.shared.entries.pin();
    let mut keys: Vec<_> = pinned
      .iter()
      .filter(|(_, entry)| !self.shared.is_expired(entry.deadline))
      .map(|(key, entry)| (entry.position, Arc::clone(key)))
      .collect();
    keys.sort_unstable_by_key(|(position, _)| *position);
    keys.into_iter().map(|(_, key)| key).collect()
  }

  /// Waits for the write lock.
  fn writer(&self) -> MemoryWriter<'_> {
    MemoryWriter::new(&self.shared)
  }
}

impl MemoryState {
  /// Reads an entry. This is the hot path: it takes no lock, and reads the clock only if the entry has a
  /// lifetime.
  fn read<T>(&self, key: &str, read: impl FnOnce(&MemoryEntry) -> T) -> Option<T> {
    let entries = self.entries.pin();
    let entry = entries.get(key)?;
    if self.is_expired(entry.deadline) {
      return None;
    }
    // Load before storing: a store would take the cache line away from other readers.
    if self.max_bytes.is_some() && !entry.is_used.load(Ordering::Relaxed) {
      entry.is_used.store(true, Ordering::Relaxed);
    }
    Some(read(entry))
  }

  fn is_expired(&self, deadline: u64) -> bool {
    deadline != NEVER && deadline <= self.now()
  }

  /// Fails if the entry alone exceeds the store's limit.
  fn check_fits(&self, key: &str, value: &[u8]) -> Result<()> {
    let cost = cost(key, value);
    match self.max_bytes {
      Some(max_bytes) if cost > max_bytes => Err(Error::new(
        Code::ValueTooLarge,
        format!(
          "the entry takes {cost} bytes, more than the store's limit of {max_bytes} (maxBytes)"
        ),
      )),
      _ => Ok(()),
    }
  }

  /// Fails if the key or the entry is too large.
  fn check(&self, key: &str, value: &[u8]) -> Result<()> {
    check_key(key)?;
    self.check_fits(key, value)
  }
}

impl Store for MemoryStore {
  fn system(&self) -> &'static str {
    "memory"
  }

  fn get_now(&self, key: &str) -> Option<Option<Bytes>> {
    Some(self.shared.read(key, |entry| Arc::clone(&entry.bytes)))
  }

  fn get(&self, key: &str) -> Result<Option<Bytes>> {
    check_key(key)?;
    Ok(self.get_now(key).flatten())
  }

  fn set(&self, key: &str, value: &[u8], lifetime: Option<Duration>) -> Result<()> {
    check_key(key)?;
    self.set_value(key, Value::bytes(value), lifetime)
  }

  fn delete(&self, key: &str) -> Result<bool> {
    check_key(key)?;
    Ok(self.remove(key))
  }

  fn exists(&self, key: &str) -> Result<bool> {
    check_key(key)?;
    Ok(self.has(key))
  }

  /// Keys are in byte order; a cursor is the last key of its page.
  fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage> {
    Ok(self.writer().list(prefix, cursor, limit))
  }

  fn increment(&self, key: &str, delta: i64) -> Result<i64> {
    check_key(key)?;
    let mut writer = self.writer();
    let (old, deadline) = writer.get(key).unzip();
    let sum = sum(old.as_ref().map(|old| &*old.bytes), delta)?;
    let value = Value {
      bytes: sum.to_string().into_bytes().into(),
      // Digits are text, but a value that was set as bytes stays bytes.
      is_text: old.is_none_or(|old| old.is_text),
    };
    self.shared.check_fits(key, &value.bytes)?;
    writer.set(key, value, deadline.unwrap_or(NEVER));
    Ok(sum)
  }

  fn compare_and_swap(
    &self,
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    lifetime: Option<Duration>,
  ) -> Result<bool> {
    self.shared.check(key, value.unwrap_or_default())?;
    let value = value.map(Value::bytes);
    let mut writer = self.writer();
    let old = writer.get(key);
    if old.as_ref().map(|(old, _)| &*old.bytes) != expected {
      return Ok(false);
    }
    match value {
      Some(value) => {
        let deadline = writer.deadline(lifetime);
        writer.set(key, value, deadline);
      }
      None => {
        writer.remove(key);
      }
    }
    Ok(true)
  }

  fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>> {
    keys.iter().map(|key| self.get(key)).collect()
  }

  /// Atomic for other writers; readers may see some of the entries before the others.
  fn set_many(&self, entries: &[(&str, &[u8])], lifetime: Option<Duration>) -> Result<()> {
    for (key, value) in entries {
      self.shared.check(key, value)?;
    }
    let mut writer = self.writer();
    let deadline = writer.deadline(lifetime);
    for (key, value) in entries {
      writer.set(key, Value::bytes(value), deadline);
    }
    Ok(())
  }

  fn delete_many(&self, keys: &[&str]) -> Result<u64> {
    keys.iter().try_for_each(|key| check_key(key))?;
    let mut writer = self.writer();
    Ok(keys.iter().map(|key| u64::from(writer.remove(key))).sum())
  }

  fn watch(&self, prefix: &str, watcher: Arc<dyn Watcher>) -> Result<WatchGuard> {
    Ok(self.shared.watchers.add(prefix, watcher))
  }

  /// Nothing to release: expired entries are removed for as long as the store lives.
  fn close(&self) -> Result<()> {
    Ok(())
  }
}

#[cfg(test)]
mod tests {
  use super::*;
  use crate::store::Change;

  fn fill(store: &MemoryStore, key: &str, value: Value) {
    assert_eq!(store.set_value(key, value, None), Ok(()));
  }

  #[test]
  fn a_value_is_read_back_with_the_type_it_was_set_with() {
    let store = MemoryStore::new();
    fill(&store, "text", Value::text("👋"));
    fill(&store, "bytes", Value::bytes(&[0xFF, 0x00]));
    assert_eq!(store.value("text"), Some(Value::text("👋")));
    assert_eq!(store.value("bytes"), Some(Value::bytes(&[0xFF, 0x00])));
    assert_eq!(
      store.get_now("text").flatten().as_deref(),
      Some("👋".as_bytes())
    );
    assert_eq!(store.get("neither"), Ok(None));
  }

  #[test]
  fn a_named_store_lives_for_as_long_as_something_uses_it() {
    let store = MemoryStore::named("one");
    fill(&store, "key", Value::text("value"));
    let elsewhere = std::thread::spawn(|| MemoryStore::named("one").value("key"));
    assert_eq!(elsewhere.join().ok().flatten(), Some(Value::text("value")));
    assert_eq!(MemoryStore::named("another").value("key"), None);
    drop(store);
    assert_eq!(MemoryStore::named("one").value("key"), None);
  }

  #[test]
  fn keys_come_in_insertion_order_and_an_overwritten_key_keeps_its_position() {
    let store = MemoryStore::new();
    for key in ["c", "a", "b"] {
      fill(&store, key, Value::text(key));
    }
    fill(&store, "c", Value::text("again"));
    store.remove("a");
    fill(&store, "a", Value::text("last now"));
    let keys = store.keys();
    assert_eq!(
      keys.iter().map(|key| &**key).collect::<Vec<_>>(),
      ["c", "b", "a"]
    );
    assert_eq!(store.len(), 3);
  }

  #[test]
  fn writers_and_readers_of_one_key_on_many_threads_never_see_a_torn_value() {
    let store = Arc::new(MemoryStore::new());
    fill(&store, "key", Value::bytes(&[0; 64]));
    std::thread::scope(|scope| {
      for writer in 1..=2_u8 {
        let store = &store;
        scope.spawn(move || {
          for _ in 0..2_000 {
            fill(store, "key", Value::bytes(&[writer; 64]));
          }
        });
      }
      for _ in 0..2 {
        scope.spawn(|| {
          for _ in 0..2_000 {
            let bytes = store.get_now("key").flatten().unwrap_or_default();
            assert!(bytes.len() == 64 && bytes.iter().all(|byte| *byte == bytes[0]));
          }
        });
      }
    });
    assert_eq!(store.len(), 1);
  }

  /// Records the changes it receives.
  #[derive(Default)]
  struct RecordedChanges(Mutex<Vec<Change>>);

  impl Watcher for RecordedChanges {
    fn on_change(&self, change: &Change) {
      self.0.lock().unwrap().push(change.clone());
    }
  }

  impl RecordedChanges {
    /// Returns and clears the recorded changes: `+key` and `-key`.
    fn take(&self) -> Vec<String> {
      let changes = std::mem::take(&mut *self.0.lock().unwrap());
      let format_change = |change| match change {
        Change::Set { key, .. } => format!("+{key}"),
        Change::Deleted { key } => format!("-{key}"),
        Change::Lost => "lost".to_owned(),
      };
      changes.into_iter().map(format_change).collect()
    }
  }

  const SHORT: Option<Duration> = Some(Duration::from_millis(20));

  fn wait_until(mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
      assert!(started.elapsed() < Duration::from_secs(10));
      std::thread::sleep(Duration::from_millis(1));
    }
  }

  #[test]
  fn an_expired_key_is_gone_for_every_reader_and_is_removed_and_reported() -> Result<()> {
    let store = MemoryStore::new();
    let recorded = Arc::new(RecordedChanges::default());
    let _watch = store.watch("", Arc::clone(&recorded) as _)?;
    store.set("for ever", b"1", None)?;
    store.set("short", b"2", SHORT)?;
    store.set("overwritten", b"3", SHORT)?;
    store.set("overwritten", b"4", None)?;
    assert_eq!(store.len(), 3);
    assert_eq!(recorded.take().len(), 4);
    wait_until(|| store.get_now("short") == Some(None));
    assert!(!store.exists("short")? && !store.delete("short")?);
    assert_eq!(store.list("", None, 10)?.keys, ["for ever", "overwritten"]);
    assert_eq!(store.keys().len(), 2);
    assert_eq!(store.len(), 2);
    assert!(store.compare_and_swap("short", None, Some(b"again"), None)?);
    assert_eq!(recorded.take(), ["-short", "+short"]);
    Ok(())
  }

  #[test]
  fn a_key_that_nobody_reads_is_removed_when_it_expires() -> Result<()> {
    let store = MemoryStore::new();
    let recorded = Arc::new(RecordedChanges::default());
    let _watch = store.watch("", Arc::clone(&recorded) as _)?;
    for number in 0..1_000 {
      store.set(&number.to_string(), b"", SHORT)?;
    }
    wait_until(|| store.shared.entries.is_empty());
    wait_until(|| recorded.0.lock().unwrap().len() == 2_000);
    Ok(())
  }

  #[test]
  fn an_incremented_number_keeps_its_lifetime_and_a_new_one_has_none() -> Result<()> {
    let store = MemoryStore::new();
    assert_eq!(store.increment("new", 5)?, 5);
    assert_eq!(store.value("new"), Some(Value::text("5")));
    store.set("short", b"10", SHORT)?;
    assert_eq!(store.increment("short", -1)?, 9);
    assert_eq!(store.value("short"), Some(Value::bytes(b"9")));
    wait_until(|| store.get_now("short") == Some(None));
    assert_eq!(store.increment("short", 1)?, 1);
    Ok(())
  }

  #[test]
  fn concurrent_increments_and_swaps_lose_no_update() -> Result<()> {
    let store = MemoryStore::new();
    store.set("swapped", b"0", None)?;
    std::thread::scope(|scope| {
      for _ in 0..4 {
        scope.spawn(|| {
          for _ in 0..500 {
            store.increment("counted", 1).unwrap();
            loop {
              let old = store.get("swapped").unwrap().unwrap();
              let new = sum(Some(&old), 1).unwrap().to_string();
              let new = Some(new.as_bytes());
              if store.compare_and_swap("swapped", Some(&old), new, None) == Ok(true) {
                break;
              }
            }
          }
        });
      }
    });
    assert_eq!(store.get("counted")?.as_deref(), Some(&b"2000"[..]));
    assert_eq!(store.get("swapped")?.as_deref(), Some(&b"2000"[..]));
    Ok(())
  }

  #[test]
  fn keys_are_listed_in_order_page_by_page() -> Result<()> {
    let store = MemoryStore::new();
    for key in ["b/2", "a", "b/1", "b", "c", "b/3", ""] {
      store.set(key, b"", None)?;
    }
    let first = store.list("b", None, 2)?;
    assert_eq!(first.keys, ["b", "b/1"]);
    let second = store.list("b", first.cursor.as_deref(), 2)?;
    assert_eq!(
      (second.keys, second.cursor),
      (vec!["b/2".to_owned(), "b/3".to_owned()], None)
    );
    assert_eq!(store.list("b/", Some("a"), 9)?.keys.len(), 3);
    assert_eq!(store.list("", None, 1)?.cursor.as_deref(), Some(""));
    assert_eq!(store.list("x", None, 1)?, KeyPage::default());
    Ok(())
  }

  #[test]
  fn a_bounded_store_evicts_the_least_recently_used_key() -> Result<()> {
    let value = [0; 100];
    let store = MemoryStore::bounded(3 * cost("a", &value));
    let recorded = Arc::new(RecordedChanges::default());
    let _watch = store.watch("", Arc::clone(&recorded) as _)?;
    for key in ["a", "b", "c"] {
      store.set(key, &value, None)?;
    }
    store.get("a")?;
    store.set("b", &value, None)?;
    store.set("d", &value, None)?;
    assert_eq!(recorded.take(), ["+a", "+b", "+c", "+b", "-c", "+d"]);
    assert_eq!(store.list("", None, 9)?.keys, ["a", "b", "d"]);
    // Overwriting a key with a larger value evicts other keys, never that key.
    store.set("d", &[0; 300], None)?;
    assert!(store.has("d") && store.len() == 2);
    let refused = store.set("a", &[0; 3_000], None);
    assert_eq!(
      refused.map_err(|error| error.code),
      Err(Code::ValueTooLarge)
    );
    Ok(())
  }

  #[test]
  fn a_bounded_store_never_exceeds_its_limit() -> Result<()> {
    const MAX: usize = 64 << 10;
    let store = MemoryStore::bounded(MAX);
    for number in 0..20_000_usize {
      let key = (number * 7 % 1_000).to_string();
      match number % 5 {
        0 => drop(store.delete(&key)?),
        1 => drop(store.get(&key)?),
        _ => store.set(&key, &vec![0; number % 500], None)?,
      }
    }
    let pinned = store.shared.entries.pin();
    let bytes: usize = pinned.iter().map(|(key, entry)| entry.cost(key)).sum();
    assert!(bytes <= MAX && bytes > MAX / 2, "{bytes}");
    assert_eq!(store.list("", None, 9_999)?.keys.len(), store.len());
    Ok(())
  }

  #[test]
  fn watchers_receive_changes_of_their_prefix_until_they_are_dropped() -> Result<()> {
    let store = MemoryStore::new();
    let recorded = Arc::new(RecordedChanges::default());
    let watch = store.watch("a", Arc::clone(&recorded) as _)?;
    store.set_many(&[("a1", b"x"), ("b1", b"x"), ("a2", b"")], None)?;
    store.increment("a3", 1)?;
    assert_eq!(store.delete_many(&["a1", "b1", "none"])?, 2);
    store.clear();
    assert_eq!(recorded.take(), ["+a1", "+a2", "+a3", "-a1", "-a2", "-a3"]);
    drop(watch);
    store.set("a", b"", None)?;
    assert_eq!(recorded.take(), [""; 0]);
    Ok(())
  }
}
