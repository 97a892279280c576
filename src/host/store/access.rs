//! What a plugin may do with its store.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::host::Interruption;
use crate::store::{Bytes, KeyPage, MAX_KEY, Store, wait};
use crate::{Code, Error, Result};

/// Bytes that a value may have when nothing else is said: 1 MiB.
pub const DEFAULT_MAX_VALUE: usize = 1 << 20;

/// Keys that are looked at together when they are counted.
const COUNTED_AT_A_TIME: usize = 1_000;

/// How long a count holds at least. Counting may be dear, and a guest must not have it done all the time.
const LEAST_TIME_BETWEEN_COUNTS: Duration = Duration::from_secs(1);

/// What a plugin may do with its store: read everything, when nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
  /// What is put before each key that a guest names. It sees no other keys, and not this either.
  pub prefix: String,
  /// Whether guests may change the store.
  pub can_write: bool,
  /// Bytes that a value which a guest sets may have.
  pub max_value: usize,
  /// Keys that there may be under the prefix when a guest adds one, whoever set them.
  pub max_keys: Option<u64>,
}

impl Default for Permissions {
  fn default() -> Self {
    Self {
      prefix: String::new(),
      can_write: false,
      max_value: DEFAULT_MAX_VALUE,
      max_keys: None,
    }
  }
}

/// What a plugin has asked of its store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
  /// Keys that were looked up.
  pub reads: u64,
  /// Those of them that had a value.
  pub hits: u64,
  /// Changes that were made, of one key each.
  pub writes: u64,
  /// What was refused or failed, by code, without those codes that did not occur.
  pub failed: Vec<(Code, u64)>,
}

/// Counters of what a plugin has asked of its store. They outlive the plugin's hold of the store.
#[derive(Default)]
pub struct StoreCounters {
  reads: AtomicU64,
  hits: AtomicU64,
  writes: AtomicU64,
  failed: [AtomicU64; Code::ALL.len()],
}

impl StoreCounters {
  /// What has been asked so far.
  pub fn stats(&self) -> StoreStats {
    let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let failed = Code::ALL.into_iter().zip(self.failed.iter().map(value));
    StoreStats {
      reads: value(&self.reads),
      hits: value(&self.hits),
      writes: value(&self.writes),
      failed: failed.filter(|(_, count)| *count > 0).collect(),
    }
  }
}

/// What is known of the number of keys.
#[derive(Default)]
struct Count {
  /// How many there were when they were counted, and what this plugin has added and removed since. That
  /// others do so too, and that lifetimes end, is seen at the next count.
  keys: Option<u64>,
  /// When they may be counted again.
  again: Option<Instant>,
}

impl Count {
  /// Whether the keys must be counted before one is added.
  fn is_due(&self, max: u64) -> bool {
    self.keys.is_none_or(|keys| keys >= max)
      && self.again.is_none_or(|again| again <= Instant::now())
  }
}

/// A store as the guests of one plugin have it. All methods may be called from any thread; they block as
/// those of the store do, and have its errors. [`Code::AccessDenied`] where the permissions do not allow it.
pub struct StoreAccess {
  store: Arc<dyn Store>,
  permissions: Permissions,
  counters: Arc<StoreCounters>,
  count: Mutex<Count>,
  /// Locked by the thread that counts.
  counting: Mutex<()>,
}

impl StoreAccess {
  /// With permissions of its own.
  pub fn new(store: Arc<dyn Store>, permissions: Permissions) -> Self {
    Self {
      store,
      permissions,
      counters: Arc::default(),
      count: Mutex::default(),
      counting: Mutex::default(),
    }
  }

  /// The counters of what is asked.
  pub fn counters(&self) -> &Arc<StoreCounters> {
    &self.counters
  }

  /// The value of a key.
  pub fn get(&self, key: &str) -> Result<Option<Bytes>> {
    self.counted(|| {
      let key = self.full(key);
      let key = checked(&key)?;
      let value = match self.store.get_now(key) {
        Some(value) => value,
        None => self.store.get(key)?,
      };
      self.count_read(value.is_some());
      Ok(value)
    })
  }

  /// The values of keys, in their order.
  pub fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>> {
    self.counted(|| {
      let keys: Vec<_> = keys.iter().map(|key| self.full(key)).collect();
      let keys: Vec<_> = keys.iter().map(|key| checked(key)).collect::<Result<_>>()?;
      let values = self.store.get_many(&keys)?;
      for value in &values {
        self.count_read(value.is_some());
      }
      Ok(values)
    })
  }

  /// Whether a key is there.
  pub fn exists(&self, key: &str) -> Result<bool> {
    self.counted(|| {
      let exists = self.store.exists(checked(&self.full(key))?)?;
      self.count_read(exists);
      Ok(exists)
    })
  }

  /// Some of the keys that begin with `prefix`, without the plugin's own prefix. See [`Store::list`].
  pub fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage> {
    self.counted(|| {
      let prefix = self.full(prefix);
      let mut page = self.store.list(checked(&prefix)?, cursor, limit)?;
      page.keys.retain_mut(|key| {
        // Whatever the cursor was: no other key is told.
        let is_own = key.starts_with(&*prefix);
        key.drain(..self.permissions.prefix.len().min(key.len()));
        is_own
      });
      Ok(page)
    })
  }

  /// Sets a key. [`Code::ValueTooLarge`] and [`Code::StoreFull`] by the permissions too.
  pub fn set(
    &self,
    key: &str,
    value: &[u8],
    lifetime: Option<Duration>,
    interruption: &Interruption,
  ) -> Result<()> {
    self.counted(|| {
      let key = self.writable(key)?;
      self.check_value(value)?;
      let reservation = self.reserve_key(&key, interruption)?;
      self
        .store
        .set(&key, value, lifetime)
        .map_err(reservation.release_on_error())?;
      self.count_write();
      Ok(())
    })
  }

  /// Removes a key; whether it was there.
  pub fn delete(&self, key: &str) -> Result<bool> {
    self.counted(|| {
      let deleted = self.store.delete(&self.writable(key)?)?;
      if deleted {
        self.record_delete();
      }
      Ok(deleted)
    })
  }

  /// Adds to a number; the sum.
  pub fn increment(&self, key: &str, delta: i64, interruption: &Interruption) -> Result<i64> {
    self.counted(|| {
      let key = self.writable(key)?;
      let reservation = self.reserve_key(&key, interruption)?;
      let sum = self
        .store
        .increment(&key, delta)
        .map_err(reservation.release_on_error())?;
      self.count_write();
      Ok(sum)
    })
  }

  /// Sets a key, or with `None` removes it, if its value is the expected one; whether it was.
  pub fn compare_and_swap(
    &self,
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    lifetime: Option<Duration>,
    interruption: &Interruption,
  ) -> Result<bool> {
    self.counted(|| {
      let key = self.writable(key)?;
      self.check_value(value.unwrap_or_default())?;
      let reservation = match (expected, value) {
        (None, Some(_)) => self.reserve_key(&key, interruption)?,
        _ => KeyReservation::not_needed(self),
      };
      let swapped = self
        .store
        .compare_and_swap(&key, expected, value, lifetime)
        .map_err(reservation.release_on_error())?;
      match (swapped, expected, value) {
        (false, ..) => reservation.release(),
        (true, Some(_), None) => self.record_delete(),
        (true, ..) => self.count_write(),
      }
      Ok(swapped)
    })
  }

  /// The key in the store of one that a guest names.
  fn full<'a>(&self, key: &'a str) -> Cow<'a, str> {
    match &*self.permissions.prefix {
      "" => Cow::Borrowed(key),
      prefix => Cow::Owned([prefix, key].concat()),
    }
  }

  fn writable<'a>(&self, key: &'a str) -> Result<Cow<'a, str>> {
    if !self.permissions.can_write {
      return Err(Error::new(
        Code::AccessDenied,
        "the plugin may only read its store; { store, access: 'write' } lets it write",
      ));
    }
    let key = self.full(key);
    checked(&key)?;
    Ok(key)
  }

  fn check_value(&self, value: &[u8]) -> Result<()> {
    let max = self.permissions.max_value;
    if value.len() <= max {
      return Ok(());
    }
    Err(Error::new(
      Code::ValueTooLarge,
      format!(
        "the value has {} bytes, and this plugin may set {max} (maxValueBytes)",
        value.len()
      ),
    ))
  }

  fn counted<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
    work().inspect_err(|error| {
      self.counters.failed[error.code.number() as usize - 1].fetch_add(1, Ordering::Relaxed);
    })
  }

  fn count_read(&self, is_hit: bool) {
    self.counters.reads.fetch_add(1, Ordering::Relaxed);
    if is_hit {
      self.counters.hits.fetch_add(1, Ordering::Relaxed);
    }
  }

  fn count_write(&self) {
    self.counters.writes.fetch_add(1, Ordering::Relaxed);
  }

  fn lock(&self) -> MutexGuard<'_, Count> {
    self.count.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Reserves one of `maxKeys` for a key, if there is a limit and the key is new.
  fn reserve_key(&self, key: &str, interruption: &Interruption) -> Result<KeyReservation<'_>> {
    let Some(max) = self.permissions.max_keys else {
      return Ok(KeyReservation::not_needed(self));
    };
    if self.store.exists(key)? {
      return Ok(KeyReservation::not_needed(self));
    }
    if self.lock().is_due(max) {
      let _counting = wait::lock(&self.counting)?;
      // Another thread may just have counted.
      if self.lock().is_due(max) {
        self.count_keys(max, interruption)?;
      }
    }
    let mut count = self.lock();
    let keys = count.keys.unwrap_or(max);
    if keys >= max {
      return Err(Error::new(
        Code::StoreFull,
        format!("the plugin has {keys} keys in its store, and may have {max} (maxKeys)"),
      ));
    }
    count.keys = Some(keys + 1);
    Ok(KeyReservation {
      access: self,
      is_taken: true,
    })
  }

  /// Counts the keys. The store may take its time, so `count` is not locked meanwhile.
  fn count_keys(&self, max: u64, interruption: &Interruption) -> Result<()> {
    let started = Instant::now();
    let keys = self.number_of_keys(max, interruption)?;
    // A tenth of the time may go into counting.
    let pause = LEAST_TIME_BETWEEN_COUNTS.max(started.elapsed() * 10);
    *self.lock() = Count {
      keys: Some(keys),
      again: Some(Instant::now() + pause),
    };
    Ok(())
  }

  /// How many keys there are, as far as it matters.
  fn number_of_keys(&self, max: u64, interruption: &Interruption) -> Result<u64> {
    let mut number = 0;
    let mut cursor: Option<String> = None;
    loop {
      if interruption.is_canceled() {
        return Err(Error::new(Code::Canceled, "nobody waits for the count"));
      }
      let page = self.store.list(
        &self.permissions.prefix,
        cursor.as_deref(),
        COUNTED_AT_A_TIME,
      )?;
      number += page.keys.len() as u64;
      cursor = page.cursor;
      if cursor.is_none() || number >= max {
        return Ok(number);
      }
    }
  }

  fn record_delete(&self) {
    self.count_write();
    if self.permissions.max_keys.is_some() {
      let mut count = self.lock();
      count.keys = count.keys.map(|keys| keys.saturating_sub(1));
    }
  }
}

/// One of the keys that a plugin may have, for a key that is about to be set.
struct KeyReservation<'a> {
  access: &'a StoreAccess,
  is_taken: bool,
}

impl<'a> KeyReservation<'a> {
  fn not_needed(access: &'a StoreAccess) -> Self {
    Self {
      access,
      is_taken: false,
    }
  }

  /// The key has not been added.
  fn release(&self) {
    if self.is_taken {
      let mut count = self.access.lock();
      count.keys = count.keys.map(|keys| keys.saturating_sub(1));
    }
  }

  /// Gives it back if the store has failed. One that has not answered in time may have the key.
  fn release_on_error(&self) -> impl Fn(Error) -> Error + '_ {
    |error| {
      if !matches!(error.code, Code::StoreUnavailable | Code::Canceled) {
        self.release();
      }
      error
    }
  }
}

/// A key that stores take.
fn checked(key: &str) -> Result<&str> {
  if key.len() <= MAX_KEY {
    return Ok(key);
  }
  Err(Error::new(
    Code::InvalidArgument,
    format!(
      "a key may have {MAX_KEY} bytes of UTF-8 with the plugin's prefix, and this one has {}",
      key.len()
    ),
  ))
}

#[cfg(test)]
mod tests {
  use super::*;
  use crate::store::MemoryStore;

  fn access(permissions: Permissions) -> (Arc<MemoryStore>, StoreAccess) {
    let store = Arc::new(MemoryStore::new());
    (Arc::clone(&store), StoreAccess::new(store, permissions))
  }

  fn writing() -> Permissions {
    Permissions {
      can_write: true,
      ..Permissions::default()
    }
  }

  fn code<T>(result: Result<T>) -> Option<Code> {
    result.err().map(|error| error.code)
  }

  #[test]
  fn without_permissions_everything_is_read_and_nothing_changed() -> Result<()> {
    let (store, access) = access(Permissions::default());
    let idle = Interruption::default();
    store.set("key", b"1", None)?;
    assert_eq!(access.get("key")?.as_deref(), Some(&b"1"[..]));
    assert!(access.exists("key")?);
    let denied = Some(Code::AccessDenied);
    assert_eq!(code(access.set("key", b"2", None, &idle)), denied);
    assert_eq!(code(access.delete("key")), denied);
    assert_eq!(code(access.increment("key", 1, &idle)), denied);
    let swap = access.compare_and_swap("key", Some(b"1"), None, None, &idle);
    assert_eq!(code(swap), denied);
    assert_eq!(store.get("key")?.as_deref(), Some(&b"1"[..]));
    let stats = access.counters().stats();
    assert_eq!((stats.reads, stats.hits, stats.writes), (2, 2, 0));
    assert_eq!(stats.failed, [(Code::AccessDenied, 4)]);
    Ok(())
  }

  #[test]
  fn a_prefix_is_put_before_every_key_and_hidden() -> Result<()> {
    let (store, access) = access(Permissions {
      prefix: "p:".into(),
      ..writing()
    });
    let idle = Interruption::default();
    for key in ["a", "o:", "p", "p:", "q:", "p:z"] {
      store.set(key, b"the host's", None)?;
    }
    access.set("key", b"1", None, &idle)?;
    access.increment("../n", 2, &idle)?;
    assert!(access.compare_and_swap("swapped", None, Some(b"3"), None, &idle)?);
    for key in ["p:key", "p:../n", "p:swapped"] {
      assert!(store.exists(key)?);
    }
    assert_eq!(access.get("a")?, None);
    assert_eq!(access.get_many(&["p", "key"])?[0], None);
    let all = ["", "../n", "key", "swapped", "z"];
    assert_eq!(access.list("", None, 100)?.keys, all);
    // Cursors are the guest's to choose.
    for cursor in ["", "a", "p", "p:", "q", "\u{10FFFF}"] {
      let keys = access.list("", Some(cursor), 100)?.keys;
      assert!(keys.iter().all(|key| all.contains(&&**key)), "{keys:?}");
    }
    let mut listed = Vec::new();
    let mut page = access.list("", None, 2)?;
    loop {
      listed.append(&mut page.keys);
      let Some(cursor) = page.cursor else { break };
      page = access.list("", Some(&cursor), 2)?;
    }
    assert_eq!(listed, all);
    assert!(access.delete("z")? && !access.delete("a")?);
    assert_eq!(store.len(), 8);
    Ok(())
  }

  #[test]
  fn keys_and_values_have_limits() {
    let (_, access) = access(Permissions {
      prefix: "p:".into(),
      max_value: 4,
      ..writing()
    });
    let idle = Interruption::default();
    assert_eq!(access.set("key", &[0; 4], None, &idle), Ok(()));
    let too_large = Some(Code::ValueTooLarge);
    assert_eq!(code(access.set("key", &[0; 5], None, &idle)), too_large);
    let swap = access.compare_and_swap("key", None, Some(&[0; 5]), None, &idle);
    assert_eq!(code(swap), too_large);
    let longest = "k".repeat(MAX_KEY - 2);
    assert_eq!(access.get(&longest), Ok(None));
    let too_long = longest + "k";
    let invalid = Some(Code::InvalidArgument);
    assert_eq!(code(access.set(&too_long, &[], None, &idle)), invalid);
    assert_eq!(code(access.exists(&too_long)), invalid);
    assert_eq!(code(access.list(&too_long, None, 1)), invalid);
  }

  #[test]
  fn no_more_keys_are_added_than_allowed_and_those_that_are_there_can_be_changed() -> Result<()> {
    let (store, access) = access(Permissions {
      prefix: "p:".into(),
      max_keys: Some(3),
      ..writing()
    });
    let idle = Interruption::default();
    store.set("other", b"not counted", None)?;
    store.set("p:1", b"the host's, and counted", None)?;
    access.set("2", b"", None, &idle)?;
    assert_eq!(access.increment("3", 1, &idle), Ok(1));
    let full = Some(Code::StoreFull);
    assert_eq!(code(access.set("4", b"", None, &idle)), full);
    assert_eq!(code(access.increment("4", 1, &idle)), full);
    let swap = access.compare_and_swap("4", None, Some(b""), None, &idle);
    assert_eq!(code(swap), full);
    assert_eq!(access.increment("3", 1, &idle), Ok(2));
    access.set("1", b"changed", None, &idle)?;
    assert_eq!(
      code(access.increment("1", 1, &idle)),
      Some(Code::InvalidArgument)
    );
    assert!(access.delete("2")?);
    assert!(access.compare_and_swap("4", None, Some(b""), None, &idle)?);
    assert_eq!(code(access.set("5", b"", None, &idle)), full);
    assert!(access.compare_and_swap("4", Some(b""), None, None, &idle)?);
    access.set("5", b"", None, &idle)?;
    assert_eq!(store.len(), 4);
    Ok(())
  }

  #[test]
  fn room_that_others_have_made_is_found_when_the_keys_are_counted_again() -> Result<()> {
    let (store, access) = access(Permissions {
      max_keys: Some(1),
      ..writing()
    });
    let idle = Interruption::default();
    access.set("1", b"", None, &idle)?;
    store.delete("1")?;
    let again = access.lock().again;
    assert!(again.is_some_and(|again| again > Instant::now()));
    assert_eq!(
      code(access.set("2", b"", None, &idle)),
      Some(Code::StoreFull)
    );
    access.lock().again = None;
    access.set("2", b"", None, &idle)
  }

  #[test]
  fn who_is_not_waited_for_does_not_count() -> Result<()> {
    let (_, access) = access(Permissions {
      max_keys: Some(1),
      ..writing()
    });
    let struck = Interruption::default();
    struck.cancel();
    assert_eq!(
      code(access.set("1", b"", None, &struck)),
      Some(Code::Canceled)
    );
    access.set("1", b"", None, &Interruption::default())
  }

  #[test]
  fn threads_that_add_keys_at_the_same_time_add_no_more_than_allowed() {
    let (store, access) = access(Permissions {
      max_keys: Some(100),
      ..writing()
    });
    std::thread::scope(|scope| {
      for thread in 0..4 {
        let access = &access;
        scope.spawn(move || {
          let idle = Interruption::default();
          for key in 0..100 {
            let _ = access.set(&format!("{thread} {key}"), b"", None, &idle);
          }
        });
      }
    });
    assert_eq!(store.len(), 100);
  }
}
