//! The cache of one connection: values that the server sent and has not invalidated since.
//!
//! The server remembers which keys this connection has read (`CLIENT TRACKING`), and sends an invalidation on
//! the same connection when one of them changes. So the cache is correct for as long as the connection lives,
//! and is dropped when the connection is lost. A connection can also be lost without a sign, so nothing is
//! answered from the cache unless the server has replied within [`FRESH`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::Bytes;

/// How long the cache may be used after sending a request to which the server has replied.
pub const FRESH: Duration = Duration::from_secs(1);

/// The memory that an entry takes besides its key and value: in the map and the queue, plus the allocator's
/// overhead.
const ENTRY_OVERHEAD: usize = 200;

const NEVER: u64 = u64::MAX;

/// Times count from here, in nanoseconds.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn nanoseconds(duration: Duration) -> u64 {
  u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

fn since_epoch(moment: Instant) -> u64 {
  nanoseconds(moment.saturating_duration_since(*EPOCH))
}

/// The memory that the caches of one store use together, and its limit.
pub struct Budget {
  used: AtomicUsize,
  max: usize,
}

impl Budget {
  pub fn new(max: usize) -> Self {
    Self {
      used: AtomicUsize::new(0),
      max,
    }
  }

  /// Whether caching is off.
  pub fn is_zero(&self) -> bool {
    self.max == 0
  }
}

struct CacheEntry {
  /// `None` if the key does not exist on the server.
  value: Option<Bytes>,
  /// When the entry expires.
  deadline: u64,
  /// Distinguishes this entry from earlier ones with the same key.
  number: u64,
  /// Whether the entry was read since eviction last inspected it.
  is_used: AtomicBool,
}

fn cost(key: &str, value: Option<&Bytes>) -> usize {
  key.len() + value.map_or(0, |value| value.len()) + ENTRY_OVERHEAD
}

#[derive(Default)]
struct CacheIndex {
  /// Keys with a read in flight, each with the number of the read. An invalidation removes the key, so that a
  /// reply that arrives later is not cached.
  pending: HashMap<Arc<str>, u64>,
  next_number: u64,
  /// Keys with the numbers of their entries, in the order in which eviction inspects them. A removed entry
  /// stays in the queue until eviction reaches it, or until removed entries outnumber the others.
  queue: VecDeque<(Arc<str>, u64)>,
  bytes: usize,
  is_closed: bool,
}

/// A read cache. Readers never block; writers wait for each other, for microseconds.
pub struct Cache {
  entries: papaya::HashMap<Arc<str>, CacheEntry>,
  index: Mutex<CacheIndex>,
  /// Until when entries may be returned.
  fresh_until: AtomicU64,
  /// Whether the cache was read since the last [`was_used`](Self::was_used).
  is_used: AtomicBool,
  budget: Arc<Budget>,
}

impl Cache {
  /// An empty cache, for a connection on which the server tracks reads.
  pub fn new(budget: Arc<Budget>) -> Self {
    LazyLock::force(&EPOCH);
    Self {
      entries: papaya::HashMap::new(),
      index: Mutex::default(),
      fresh_until: AtomicU64::new(0),
      is_used: AtomicBool::new(false),
      budget,
    }
  }

  fn lock(&self) -> MutexGuard<'_, CacheIndex> {
    self.index.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// The value of a key, if it is cached and fresh. This is the hot path: it takes no lock.
  pub fn get_now(&self, key: &str) -> Option<Option<Bytes>> {
    let now = since_epoch(Instant::now());
    if now >= self.fresh_until.load(Ordering::Acquire) {
      return None;
    }
    let entries = self.entries.pin();
    let entry = entries.get(key)?;
    if now >= entry.deadline {
      return None;
    }
    // Load before storing: a store would take the cache line away from other readers.
    for is_used in [&entry.is_used, &self.is_used] {
      if !is_used.load(Ordering::Relaxed) {
        is_used.store(true, Ordering::Relaxed);
      }
    }
    Some(entry.value.clone())
  }

  /// Whether the cache was read since the last call.
  pub fn was_used(&self) -> bool {
    self.is_used.swap(false, Ordering::Relaxed)
  }

  /// Records that the server replied to a request sent at `sent_at`: every invalidation up to then has been
  /// received.
  pub fn mark_fresh(&self, sent_at: Instant) {
    let until = since_epoch(sent_at + FRESH);
    self.fresh_until.fetch_max(until, Ordering::AcqRel);
  }

  /// Registers a read of a key. Call this before sending the request.
  pub fn begin_read(&self, key: &str) -> PendingRead<'_> {
    let mut index = self.lock();
    let (key, number) = match index.pending.get_key_value(key) {
      // Another read is in flight and the key has not changed: either reply is correct.
      Some((key, number)) => (Arc::clone(key), *number),
      None => {
        let key = Arc::<str>::from(key);
        let number = index.next_number;
        index.next_number += 1;
        if !index.is_closed {
          index.pending.insert(Arc::clone(&key), number);
        }
        (key, number)
      }
    };
    drop(index);
    PendingRead {
      cache: self,
      key,
      number,
      sent_at: Instant::now(),
    }
  }

  /// Invalidates a key.
  pub fn invalidate(&self, key: &str) {
    let mut index = self.lock();
    index.pending.remove(key);
    self.remove(&mut index, key);
    self.compact_queue(&mut index);
  }

  /// Invalidates all keys.
  pub fn invalidate_all(&self) {
    let mut index = self.lock();
    index.pending.clear();
    index.queue.clear();
    self.entries.pin().clear();
    self.release_bytes(&mut index, usize::MAX);
  }

  /// Drops all entries and stops caching: the connection is lost.
  pub fn close(&self) {
    self.fresh_until.store(0, Ordering::Release);
    self.lock().is_closed = true;
    self.invalidate_all();
  }

  fn release_bytes(&self, index: &mut CacheIndex, bytes: usize) {
    let bytes = bytes.min(index.bytes);
    index.bytes -= bytes;
    self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
  }

  fn remove(&self, index: &mut CacheIndex, key: &str) {
    if let Some((key, entry)) = self.entries.pin().remove_entry(key) {
      self.release_bytes(index, cost(key, entry.value.as_ref()));
    }
  }

  fn insert(&self, index: &mut CacheIndex, key: &Arc<str>, value: Option<Bytes>, deadline: u64) {
    self.remove(index, key);
    let cost = cost(key, value.as_ref());
    if cost > self.budget.max {
      return;
    }
    index.bytes += cost;
    self.budget.used.fetch_add(cost, Ordering::Relaxed);
    let number = index.next_number;
    index.next_number += 1;
    index.queue.push_back((Arc::clone(key), number));
    let is_used = AtomicBool::new(false);
    let entry = CacheEntry {
      value,
      deadline,
      number,
      is_used,
    };
    self.entries.pin().insert(Arc::clone(key), entry);
    self.evict(index);
    self.compact_queue(index);
  }

  /// Evicts entries by the clock algorithm, so that entries in use stay.
  fn evict(&self, index: &mut CacheIndex) {
    let entries = self.entries.pin();
    // Skip each entry at most once, so that this terminates.
    let mut skips_left = index.queue.len();
    while self.budget.used.load(Ordering::Relaxed) > self.budget.max {
      let Some((key, number)) = index.queue.pop_front() else {
        return;
      };
      let Some(entry) = entries.get(&*key).filter(|entry| entry.number == number) else {
        continue;
      };
      if skips_left > 0 && entry.is_used.swap(false, Ordering::Relaxed) {
        skips_left -= 1;
        index.queue.push_back((key, number));
        continue;
      }
      self.remove(index, &key);
    }
  }

  /// Drops removed entries from the queue once they outnumber the others.
  fn compact_queue(&self, index: &mut CacheIndex) {
    const MIN_LENGTH: usize = 64;
    let entries = self.entries.pin();
    if index.queue.len() > MIN_LENGTH + 2 * entries.len() {
      index.queue.retain(|(key, number)| {
        let entry = entries.get(&**key);
        entry.is_some_and(|entry| entry.number == *number)
      });
    }
  }
}

impl Drop for Cache {
  fn drop(&mut self) {
    self.close();
  }
}

/// A read in flight. Dropping it cancels the registration.
pub struct PendingRead<'a> {
  cache: &'a Cache,
  key: Arc<str>,
  number: u64,
  sent_at: Instant,
}

impl PendingRead<'_> {
  /// Caches the server's reply, unless the key was invalidated meanwhile. The lifetime counts from when the
  /// request was sent.
  pub fn complete(self, value: Option<Bytes>, lifetime: Option<Duration>) {
    let deadline = lifetime.map_or(NEVER, |lifetime| {
      since_epoch(self.sent_at).saturating_add(nanoseconds(lifetime))
    });
    let mut index = self.cache.lock();
    if index.pending.get(&self.key) == Some(&self.number) {
      index.pending.remove(&self.key);
      self.cache.insert(&mut index, &self.key, value, deadline);
    }
  }
}

impl Drop for PendingRead<'_> {
  fn drop(&mut self) {
    let mut index = self.cache.lock();
    if index.pending.get(&self.key) == Some(&self.number) {
      index.pending.remove(&self.key);
    }
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  fn cache(max: usize) -> Cache {
    let cache = Cache::new(Arc::new(Budget::new(max)));
    cache.mark_fresh(Instant::now());
    cache
  }

  fn bytes(text: &str) -> Option<Bytes> {
    Some(text.as_bytes().into())
  }

  #[test]
  fn a_reply_is_cached_until_the_key_changes_even_for_a_missing_key() {
    let cache = cache(10_000);
    assert_eq!(cache.get_now("key"), None);
    cache.begin_read("key").complete(bytes("value"), None);
    cache.begin_read("none").complete(None, None);
    assert_eq!(cache.get_now("key"), Some(bytes("value")));
    assert_eq!(cache.get_now("none"), Some(None));
    cache.invalidate("key");
    assert_eq!(cache.get_now("key"), None);
    cache.invalidate_all();
    assert_eq!(cache.get_now("none"), None);
  }

  #[test]
  fn a_reply_is_not_cached_if_the_key_changed_after_the_request() {
    let cache = cache(10_000);
    let first = cache.begin_read("key");
    let second = cache.begin_read("key");
    cache.invalidate("key");
    let third = cache.begin_read("key");
    first.complete(bytes("old"), None);
    assert_eq!(cache.get_now("key"), None);
    third.complete(bytes("new"), None);
    second.complete(bytes("old"), None);
    assert_eq!(cache.get_now("key"), Some(bytes("new")));
    let late = cache.begin_read("key");
    cache.invalidate_all();
    late.complete(bytes("new"), None);
    assert_eq!(cache.get_now("key"), None);
  }

  #[test]
  fn an_abandoned_read_leaves_nothing_behind() {
    let cache = cache(10_000);
    drop(cache.begin_read("key"));
    assert!(cache.lock().pending.is_empty());
  }

  #[test]
  fn the_cache_is_not_used_when_the_server_is_silent_or_the_connection_is_lost() {
    let cache = Cache::new(Arc::new(Budget::new(10_000)));
    cache.begin_read("key").complete(bytes("value"), None);
    assert_eq!(cache.get_now("key"), None);
    if let Some(long_ago) = Instant::now().checked_sub(FRESH) {
      cache.mark_fresh(long_ago);
    }
    assert_eq!(cache.get_now("key"), None);
    cache.mark_fresh(Instant::now());
    assert_eq!(cache.get_now("key"), Some(bytes("value")));
    let late = cache.begin_read("late");
    cache.close();
    cache.mark_fresh(Instant::now());
    late.complete(bytes("value"), None);
    cache.begin_read("later").complete(bytes("value"), None);
    for key in ["key", "late", "later"] {
      assert_eq!(cache.get_now(key), None);
    }
  }

  #[test]
  fn a_value_expires_with_its_lifetime() {
    let cache = cache(10_000);
    cache
      .begin_read("short")
      .complete(bytes("value"), Some(Duration::ZERO));
    cache
      .begin_read("long")
      .complete(bytes("value"), Some(Duration::from_secs(60)));
    assert_eq!(cache.get_now("short"), None);
    assert_eq!(cache.get_now("long"), Some(bytes("value")));
  }

  #[test]
  fn the_cache_stays_within_its_budget_and_keeps_entries_in_use() {
    let budget = Arc::new(Budget::new(10_000));
    let cache = Cache::new(Arc::clone(&budget));
    let other = Cache::new(Arc::clone(&budget));
    cache.mark_fresh(Instant::now());
    cache.begin_read("read").complete(bytes("value"), None);
    for number in 0..1_000 {
      assert_eq!(cache.get_now("read"), Some(bytes("value")));
      cache
        .begin_read(&number.to_string())
        .complete(bytes("value"), None);
      other.begin_read(&number.to_string()).complete(None, None);
      assert!(budget.used.load(Ordering::Relaxed) <= 10_000);
    }
    assert_eq!(cache.get_now("0"), None);
    cache
      .begin_read("large")
      .complete(Some(vec![0; 10_000].into()), None);
    assert_eq!(cache.get_now("large"), None);
    drop((cache, other));
    assert_eq!(budget.used.load(Ordering::Relaxed), 0);
  }

  #[test]
  fn a_key_that_changes_often_leaves_no_trail() {
    let cache = cache(10_000);
    for _ in 0..1_000 {
      cache.begin_read("key").complete(bytes("value"), None);
      cache.invalidate("key");
    }
    assert!(cache.lock().queue.len() < 100);
    assert_eq!(cache.budget.used.load(Ordering::Relaxed), 0);
  }
}
