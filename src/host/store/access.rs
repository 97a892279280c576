//! A plugin's access to its store: permissions, limits and counters.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::host::Interruption;
use crate::store::{Bytes, KeyPage, MAX_KEY, Store, wait};
use crate::trace::{self, OperationKind};
use crate::{Code, Error, Result};

/// The default limit of a value in bytes: 1 MiB.
pub const DEFAULT_MAX_VALUE: usize = 1 << 20;

/// The page size when counting keys.
const COUNT_PAGE_SIZE: usize = 1_000;

/// The shortest interval between two counts. Counting may be expensive, and a guest must not be able to
/// trigger it constantly.
const MIN_COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// What a plugin may do with its store. The default is to read everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
  /// Prepended to each key that a guest names. The guest sees no other keys, and never sees the prefix.
  pub prefix: String,
  /// Whether guests may write.
  pub can_write: bool,
  /// The size limit of values that guests set, in bytes.
  pub max_value: usize,
  /// The limit of keys under the prefix, whoever set them. Applies when a guest adds a key.
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

/// A snapshot of a plugin's store counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
  /// The number of keys that were looked up.
  pub reads: u64,
  /// How many of those had a value.
  pub hits: u64,
  /// The number of keys that were changed.
  pub writes: u64,
  /// The number of refused or failed operations by code. Only codes that occurred.
  pub failed: Vec<(Code, u64)>,
}

/// Counters of a plugin's store operations. They outlive the plugin's [`StoreAccess`].
#[derive(Default)]
pub struct StoreCounters {
  reads: AtomicU64,
  hits: AtomicU64,
  writes: AtomicU64,
  failed: [AtomicU64; Code::ALL.len()],
}

impl StoreCounters {
  /// A snapshot of the counters.
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

/// The estimated number of keys.
#[derive(Default)]
struct KeyCount {
  /// The last count, plus the keys that this plugin has added since, minus those it removed. Changes by
  /// others and expired keys are only seen by the next count.
  keys: Option<u64>,
  /// The earliest time of the next count.
  next_count: Option<Instant>,
  /// The keys that calls are about to set.
  pending: HashMap<String, PendingKey>,
}

/// A key that one or more calls are about to set. They share one place under `maxKeys`: if each took its own,
/// calls that add the same key at the same time would fill the store with keys that do not exist.
#[derive(Default)]
struct PendingKey {
  calls: usize,
  /// Whether `keys` includes it on behalf of these calls.
  is_counted: bool,
  /// Whether one of these calls may have added it.
  is_added: bool,
}

impl KeyCount {
  /// Whether the keys must be counted before a key is added.
  fn is_due(&self, max: u64) -> bool {
    self.keys.is_none_or(|keys| keys >= max)
      && self.next_count.is_none_or(|at| at <= Instant::now())
  }

  fn forget_key(&mut self) {
    self.keys = self.keys.map(|keys| keys.saturating_sub(1));
  }
}

/// The store as one plugin's guests see it. Methods may be called from any thread; they block and fail like
/// the store's own. [`Code::AccessDenied`] if the permissions do not allow the operation.
pub struct StoreAccess {
  store: Arc<dyn Store>,
  permissions: Permissions,
  counters: Arc<StoreCounters>,
  count: Mutex<KeyCount>,
  /// Held by the thread that counts keys.
  counting: Mutex<()>,
}

impl StoreAccess {
  /// Access to `store` with the given permissions.
  pub fn new(store: Arc<dyn Store>, permissions: Permissions) -> Self {
    Self {
      store,
      permissions,
      counters: Arc::default(),
      count: Mutex::default(),
      counting: Mutex::default(),
    }
  }

  /// The counters.
  pub fn counters(&self) -> &Arc<StoreCounters> {
    &self.counters
  }

  /// Runs an operation of the host function `function`, and records it if the guest's call is traced.
  pub fn traced<T>(&self, function: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(trace) = trace::current() else {
      return work();
    };
    let operation = trace.begin();
    let result = work();
    let system = self.store.system();
    let error = result.as_ref().err();
    operation.end(
      OperationKind::Store { function, system },
      error.map(|error| error.code.as_str().to_owned()),
    );
    result
  }

  /// The value of a key.
  pub fn get(&self, key: &str) -> Result<Option<Bytes>> {
    self.count_errors(|| {
      let key = self.prefixed(key);
      let key = check_key(&key)?;
      let value = match self.store.get_now(key) {
        Some(value) => value,
        None => self.store.get(key)?,
      };
      self.count_read(value.is_some());
      Ok(value)
    })
  }

  /// The values of `keys`, in the order of `keys`.
  pub fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>> {
    self.count_errors(|| {
      let keys: Vec<_> = keys.iter().map(|key| self.prefixed(key)).collect();
      let keys: Vec<_> = keys
        .iter()
        .map(|key| check_key(key))
        .collect::<Result<_>>()?;
      let values = self.store.get_many(&keys)?;
      for value in &values {
        self.count_read(value.is_some());
      }
      Ok(values)
    })
  }

  /// Whether a key exists.
  pub fn exists(&self, key: &str) -> Result<bool> {
    self.count_errors(|| {
      let exists = self.store.exists(check_key(&self.prefixed(key))?)?;
      self.count_read(exists);
      Ok(exists)
    })
  }

  /// A page of the keys that begin with `prefix`, without the plugin's own prefix. See [`Store::list`].
  pub fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage> {
    self.count_errors(|| {
      let prefix = self.prefixed(prefix);
      let mut page = self.store.list(check_key(&prefix)?, cursor, limit)?;
      page.keys.retain_mut(|key| {
        // The guest chose the cursor: never return keys of others.
        let is_own = key.starts_with(&*prefix);
        key.drain(..self.permissions.prefix.len().min(key.len()));
        is_own
      });
      Ok(page)
    })
  }

  /// Sets a key. Also fails with [`Code::ValueTooLarge`] and [`Code::StoreFull`] by the permissions' limits.
  pub fn set(
    &self,
    key: &str,
    value: &[u8],
    lifetime: Option<Duration>,
    interruption: &Interruption,
  ) -> Result<()> {
    self.count_errors(|| {
      let key = self.prefixed_for_write(key)?;
      self.check_value(value)?;
      let reservation = self.reserve_key(&key, interruption)?;
      reservation.settle(self.store.set(&key, value, lifetime), |()| true)?;
      self.count_write();
      Ok(())
    })
  }

  /// Removes a key; returns whether it existed.
  pub fn delete(&self, key: &str) -> Result<bool> {
    self.count_errors(|| {
      let key = self.prefixed_for_write(key)?;
      let deleted = self.store.delete(&key)?;
      if deleted {
        self.record_delete(&key);
      }
      Ok(deleted)
    })
  }

  /// Adds to a number; returns the sum.
  pub fn increment(&self, key: &str, delta: i64, interruption: &Interruption) -> Result<i64> {
    self.count_errors(|| {
      let key = self.prefixed_for_write(key)?;
      let reservation = self.reserve_key(&key, interruption)?;
      let sum = reservation.settle(self.store.increment(&key, delta), |_| true)?;
      self.count_write();
      Ok(sum)
    })
  }

  /// Sets a key, or removes it if `value` is `None`, provided that its value is `expected`. Returns whether
  /// it did.
  pub fn compare_and_swap(
    &self,
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    lifetime: Option<Duration>,
    interruption: &Interruption,
  ) -> Result<bool> {
    self.count_errors(|| {
      let key = self.prefixed_for_write(key)?;
      self.check_value(value.unwrap_or_default())?;
      let reservation = match (expected, value) {
        (None, Some(_)) => self.reserve_key(&key, interruption)?,
        _ => KeyReservation::not_needed(self),
      };
      let swapped = reservation.settle(
        self.store.compare_and_swap(&key, expected, value, lifetime),
        |swapped| *swapped,
      )?;
      match (swapped, expected, value) {
        (false, ..) => {}
        (true, Some(_), None) => self.record_delete(&key),
        (true, ..) => self.count_write(),
      }
      Ok(swapped)
    })
  }

  /// Prepends the plugin's prefix to a key.
  fn prefixed<'a>(&self, key: &'a str) -> Cow<'a, str> {
    match &*self.permissions.prefix {
      "" => Cow::Borrowed(key),
      prefix => Cow::Owned([prefix, key].concat()),
    }
  }

  fn prefixed_for_write<'a>(&self, key: &'a str) -> Result<Cow<'a, str>> {
    if !self.permissions.can_write {
      return Err(Error::new(
        Code::AccessDenied,
        "the plugin may only read its store; pass { store, access: 'write' } to let it write",
      ));
    }
    let key = self.prefixed(key);
    check_key(&key)?;
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
        "the value has {} bytes, more than the plugin's limit of {max} (maxValueBytes)",
        value.len()
      ),
    ))
  }

  fn count_errors<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
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

  fn lock(&self) -> MutexGuard<'_, KeyCount> {
    self.count.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Reserves one of `maxKeys` for a key, if there is a limit and the key is new.
  fn reserve_key<'a>(
    &'a self,
    key: &'a str,
    interruption: &Interruption,
  ) -> Result<KeyReservation<'a>> {
    let Some(max) = self.permissions.max_keys else {
      return Ok(KeyReservation::not_needed(self));
    };
    // Before the store is asked: a call that adds the key meanwhile is then seen here or in the store.
    let reservation = KeyReservation::begin(self, key);
    if self.store.exists(key)? {
      return Ok(reservation);
    }
    if self.lock().is_due(max) {
      let _counting = wait::lock(&self.counting)?;
      // Another thread may have counted in the meantime.
      if self.lock().is_due(max) {
        self.count_keys(max, interruption)?;
      }
    }
    let count = &mut *self.lock();
    let pending = count.pending.entry(key.to_owned()).or_default();
    if pending.is_counted {
      return Ok(reservation);
    }
    let keys = count.keys.unwrap_or(max);
    if keys >= max {
      return Err(Error::new(
        Code::StoreFull,
        format!("the plugin has {keys} keys in its store, and its limit is {max} (maxKeys)"),
      ));
    }
    pending.is_counted = true;
    count.keys = Some(keys + 1);
    Ok(reservation)
  }

  /// Counts the keys. This may take long, so `count` is not locked meanwhile.
  fn count_keys(&self, max: u64, interruption: &Interruption) -> Result<()> {
    let started = Instant::now();
    let keys = self.number_of_keys(max, interruption)?;
    // Spend at most a tenth of the time counting.
    let pause = MIN_COUNT_INTERVAL.max(started.elapsed() * 10);
    let mut count = self.lock();
    count.keys = Some(keys);
    count.next_count = Some(Instant::now() + pause);
    Ok(())
  }

  /// The number of keys. Stops counting at `max`.
  fn number_of_keys(&self, max: u64, interruption: &Interruption) -> Result<u64> {
    let mut number = 0;
    let mut cursor: Option<String> = None;
    loop {
      if interruption.is_canceled() {
        return Err(Error::new(
          Code::Canceled,
          "the call ended while the keys of its store were counted",
        ));
      }
      let page = self
        .store
        .list(&self.permissions.prefix, cursor.as_deref(), COUNT_PAGE_SIZE)?;
      number += page.keys.len() as u64;
      cursor = page.cursor;
      if cursor.is_none() || number >= max {
        return Ok(number);
      }
    }
  }

  fn record_delete(&self, key: &str) {
    self.count_write();
    if self.permissions.max_keys.is_some() {
      let mut count = self.lock();
      // A call that is setting the key may add it again, and would not count it a second time.
      if !count.pending.contains_key(key) {
        count.forget_key();
      }
    }
  }
}

/// A reservation of one of `maxKeys`, for a key that is about to be set. Ends when dropped.
struct KeyReservation<'a> {
  access: &'a StoreAccess,
  /// `None` if nothing is counted.
  key: Option<&'a str>,
}

impl<'a> KeyReservation<'a> {
  fn not_needed(access: &'a StoreAccess) -> Self {
    Self { access, key: None }
  }

  fn begin(access: &'a StoreAccess, key: &'a str) -> Self {
    let mut count = access.lock();
    count.pending.entry(key.to_owned()).or_default().calls += 1;
    Self {
      access,
      key: Some(key),
    }
  }

  /// Ends the reservation with the store's result. The key stays counted if it `is_set` or the store may have
  /// set it although it failed.
  fn settle<T>(self, result: Result<T>, is_set: impl Fn(&T) -> bool) -> Result<T> {
    let is_added = match &result {
      Ok(value) => is_set(value),
      Err(error) => matches!(error.code, Code::StoreUnavailable | Code::Canceled),
    };
    if let Some(key) = self.key.filter(|_| is_added)
      && let Some(pending) = self.access.lock().pending.get_mut(key)
    {
      pending.is_added = true;
    }
    result
  }
}

impl Drop for KeyReservation<'_> {
  fn drop(&mut self) {
    let Some(key) = self.key else { return };
    let mut count = self.access.lock();
    let Some(pending) = count.pending.get_mut(key) else {
      return;
    };
    pending.calls -= 1;
    if pending.calls > 0 {
      return;
    }
    let is_unused = pending.is_counted && !pending.is_added;
    count.pending.remove(key);
    if is_unused {
      count.forget_key();
    }
  }
}

/// Fails if a key is too long for stores.
fn check_key(key: &str) -> Result<&str> {
  if key.len() <= MAX_KEY {
    return Ok(key);
  }
  Err(Error::new(
    Code::InvalidArgument,
    format!(
      "the key has {} bytes of UTF-8 with the plugin's prefix, more than the {MAX_KEY} allowed",
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
  fn by_default_guests_can_read_everything_and_change_nothing() -> Result<()> {
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
  fn the_prefix_is_prepended_to_every_key_and_hidden() -> Result<()> {
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
    // A guest can pass any cursor.
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
  fn the_key_limit_stops_new_keys_but_not_changes_to_existing_ones() -> Result<()> {
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
  fn keys_that_others_removed_are_noticed_by_the_next_count() -> Result<()> {
    let (store, access) = access(Permissions {
      max_keys: Some(1),
      ..writing()
    });
    let idle = Interruption::default();
    access.set("1", b"", None, &idle)?;
    store.delete("1")?;
    let next_count = access.lock().next_count;
    assert!(next_count.is_some_and(|at| at > Instant::now()));
    assert_eq!(
      code(access.set("2", b"", None, &idle)),
      Some(Code::StoreFull)
    );
    access.lock().next_count = None;
    access.set("2", b"", None, &idle)
  }

  #[test]
  fn a_canceled_call_does_not_count_keys() -> Result<()> {
    let (_, access) = access(Permissions {
      max_keys: Some(1),
      ..writing()
    });
    let canceled = Interruption::default();
    canceled.cancel();
    assert_eq!(
      code(access.set("1", b"", None, &canceled)),
      Some(Code::Canceled)
    );
    access.set("1", b"", None, &Interruption::default())
  }

  #[test]
  fn threads_that_add_the_same_keys_at_once_take_one_place_for_each() {
    for _ in 0..200 {
      let (store, access) = access(Permissions {
        max_keys: Some(10),
        ..writing()
      });
      let barrier = std::sync::Barrier::new(4);
      std::thread::scope(|scope| {
        for _ in 0..4 {
          scope.spawn(|| {
            let idle = Interruption::default();
            for key in 0..5 {
              barrier.wait();
              assert!(access.increment(&key.to_string(), 1, &idle).is_ok());
              barrier.wait();
              assert!(access.set(&format!("{key} set"), b"", None, &idle).is_ok());
            }
          });
        }
      });
      assert_eq!(store.len(), 10);
      assert_eq!(access.lock().keys, Some(10));
      assert!(access.lock().pending.is_empty());
    }
  }

  #[test]
  fn concurrent_threads_do_not_exceed_the_key_limit() {
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
