//! A store in this process's memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use super::Store;

/// What a [`MemoryStore`] holds under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
  /// The bytes that a guest gets; those of the UTF-8 encoding where a string was set.
  pub bytes: Arc<[u8]>,
  /// Whether JavaScript set a string, and so gets one back.
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

struct Entry {
  value: Value,
  /// When the key was first set, so that iteration follows insertion as a JavaScript `Map`'s does.
  position: u64,
}

/// A map that JavaScript fills and guests read. Readers never wait: neither for each other nor for
/// a writer. All methods may be called from any thread.
#[derive(Default)]
pub struct MemoryStore {
  entries: papaya::HashMap<Box<str>, Entry>,
  next_position: AtomicU64,
}

/// The stores of the process that have a name.
static NAMED: LazyLock<Mutex<HashMap<Box<str>, Weak<MemoryStore>>>> = LazyLock::new(Mutex::default);

impl MemoryStore {
  /// An empty store.
  pub fn new() -> Self {
    Self::default()
  }

  /// The store of that name: the same for all threads of the process, for as long as any of them has
  /// it. When none has it any more, its entries are gone.
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

  /// Sets `key`. A key that was there keeps its place in the order of [`keys`](Self::keys).
  pub fn set(&self, key: &str, value: Value) {
    let position = self.next_position.fetch_add(1, Ordering::Relaxed);
    self.entries.pin().update_or_insert_with(
      key.into(),
      |old| Entry {
        value: value.clone(),
        position: old.position,
      },
      || Entry {
        value: value.clone(),
        position,
      },
    );
  }

  /// The value under `key`.
  pub fn value(&self, key: &str) -> Option<Value> {
    self.entries.pin().get(key).map(|entry| entry.value.clone())
  }

  /// Whether `key` is there.
  pub fn has(&self, key: &str) -> bool {
    self.entries.pin().contains_key(key)
  }

  /// Removes `key`, and says whether it was there.
  pub fn delete(&self, key: &str) -> bool {
    self.entries.pin().remove(key).is_some()
  }

  /// Removes all keys.
  pub fn clear(&self) {
    self.entries.pin().clear();
  }

  /// How many keys there are.
  pub fn len(&self) -> usize {
    self.entries.len()
  }

  /// Whether there is no key.
  pub fn is_empty(&self) -> bool {
    self.entries.is_empty()
  }

  /// All keys as of now, in the order in which they were first set.
  pub fn keys(&self) -> Vec<Box<str>> {
    let pinned = self.entries.pin();
    let mut keys: Vec<_> = pinned
      .iter()
      .map(|(key, entry)| (entry.position, key.clone()))
      .collect();
    keys.sort_unstable_by_key(|(position, _)| *position);
    keys.into_iter().map(|(_, key)| key).collect()
  }
}

impl Store for MemoryStore {
  fn get(&self, key: &str) -> Option<Arc<[u8]>> {
    self
      .entries
      .pin()
      .get(key)
      .map(|entry| Arc::clone(&entry.value.bytes))
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn a_value_that_was_set_is_read_back_with_its_kind() {
    let store = MemoryStore::new();
    store.set("text", Value::text("👋"));
    store.set("bytes", Value::bytes(&[0xFF, 0x00]));
    assert_eq!(store.value("text"), Some(Value::text("👋")));
    assert_eq!(store.value("bytes"), Some(Value::bytes(&[0xFF, 0x00])));
    assert_eq!(store.get("text").as_deref(), Some("👋".as_bytes()));
    assert_eq!(store.get("neither"), None);
  }

  #[test]
  fn a_named_store_is_one_for_as_long_as_somebody_has_it() {
    let store = MemoryStore::named("one");
    store.set("key", Value::text("value"));
    let elsewhere = std::thread::spawn(|| MemoryStore::named("one").value("key"));
    assert_eq!(elsewhere.join().ok().flatten(), Some(Value::text("value")));
    assert_eq!(MemoryStore::named("another").value("key"), None);
    drop(store);
    assert_eq!(MemoryStore::named("one").value("key"), None);
  }

  #[test]
  fn keys_come_in_the_order_of_insertion_and_an_overwritten_key_keeps_its_place() {
    let store = MemoryStore::new();
    for key in ["c", "a", "b"] {
      store.set(key, Value::text(key));
    }
    store.set("c", Value::text("again"));
    store.delete("a");
    store.set("a", Value::text("last now"));
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
    store.set("key", Value::bytes(&[0; 64]));
    std::thread::scope(|scope| {
      for writer in 1..=2_u8 {
        let store = &store;
        scope.spawn(move || {
          for _ in 0..2_000 {
            store.set("key", Value::bytes(&[writer; 64]));
          }
        });
      }
      for _ in 0..2 {
        scope.spawn(|| {
          for _ in 0..2_000 {
            let bytes = store.get("key").unwrap_or_default();
            assert!(bytes.len() == 64 && bytes.iter().all(|byte| *byte == bytes[0]));
          }
        });
      }
    });
    assert_eq!(store.len(), 1);
  }
}
