//! Writes to a store in memory. One writer at a time, so that each change is atomic and watchers receive
//! changes in order.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{MemoryEntry, MemoryState, NEVER, Value};
use crate::store::{Change, KeyPage};
use crate::watchdog::{self, HasDeadlines};

/// How many expired keys the watchdog removes before it lets other writers in.
const MAX_SWEEP: usize = 512;

/// How long the watchdog pauses if more expired keys remain.
const SHORT_PAUSE: Duration = Duration::from_millis(1);

/// How long the watchdog pauses otherwise, at least.
const PAUSE: Duration = Duration::from_millis(10);

/// How many expired keys each write removes: more than it can add, so that expired keys cannot accumulate.
const SWEEP_PER_WRITE: usize = 2;

/// How many recently used keys eviction skips before it takes the next one regardless, so that no writer
/// waits for a scan of all keys.
const MAX_SKIPPED: usize = 64;

/// The indexes that writers maintain beside the map.
#[derive(Default)]
pub(super) struct MemoryIndex {
  /// All keys, sorted, for listing. This costs about 40 bytes per key, and time when a key is added or
  /// removed, but not when it is overwritten. Without it each page of a listing would scan all keys of the
  /// store: listing a million keys a thousand at a time would visit a thousand million.
  keys: BTreeSet<Arc<str>>,
  /// The keys that have a lifetime, by deadline.
  deadlines: BTreeSet<(u64, Arc<str>)>,
  /// The total cost of all entries.
  bytes: usize,
  /// The keys of a bounded store with their positions, in the order in which eviction inspects them. A
  /// removed key stays in the queue until eviction reaches it, or until removed keys outnumber the others.
  clock: VecDeque<(Arc<str>, u64)>,
  next_position: u64,
  /// When the watchdog will next remove expired keys; `None` if no sweep is scheduled.
  sweep_at: Option<u64>,
  /// Whether the store is registered with the watchdog.
  is_registered: bool,
}

/// Exclusive write access to a store.
pub(super) struct MemoryWriter<'a> {
  shared: &'a MemoryState,
  index: MutexGuard<'a, MemoryIndex>,
  now: u64,
}

impl<'a> MemoryWriter<'a> {
  /// Waits for the write lock.
  pub fn new(shared: &'a MemoryState) -> Self {
    let index = shared.lock();
    let now = shared.now();
    let mut writer = Self { shared, index, now };
    writer.sweep(SWEEP_PER_WRITE);
    writer
  }

  /// The deadline of an entry that is set now.
  pub fn deadline(&self, lifetime: Option<Duration>) -> u64 {
    lifetime.map_or(NEVER, |lifetime| {
      let lifetime = u64::try_from(lifetime.as_nanos()).unwrap_or(NEVER);
      self.now.saturating_add(lifetime)
    })
  }

  /// The value of a key and its deadline. Removes the key if it has expired.
  pub fn get(&mut self, key: &str) -> Option<(Value, u64)> {
    let entries = self.shared.entries.pin();
    let entry = entries.get(key)?;
    if entry.deadline <= self.now {
      self.remove(key);
      return None;
    }
    Some((entry.value(), entry.deadline))
  }

  /// Sets a key. The caller has checked that it fits into the store. An existing key keeps its position.
  pub fn set(&mut self, key: &str, value: Value, deadline: u64) {
    let entries = self.shared.entries.pin();
    // An expired entry does not count: the key gets a new position.
    let exists = self.get(key).is_some();
    let (key, position) = match entries.get_key_value(key) {
      Some((key, entry)) if exists => {
        self.unindex(key, entry);
        (Arc::clone(key), entry.position)
      }
      _ => {
        let key = Arc::<str>::from(key);
        let position = self.index.next_position;
        self.index.next_position += 1;
        self.index.keys.insert(Arc::clone(&key));
        (key, position)
      }
    };
    let entry = MemoryEntry::new(value, position, deadline, exists);
    let cost = entry.cost(&key);
    if let Some(max_bytes) = self.shared.max_bytes {
      self.evict(max_bytes.saturating_sub(cost), &key);
      if !exists {
        self.index.clock.push_back((Arc::clone(&key), position));
      }
    }
    self.index.bytes += cost;
    let change = self.has_watchers().then(|| Change::Set {
      key: String::from(&*key),
      value: Some(Arc::clone(&entry.bytes)),
    });
    if deadline != NEVER {
      self.index.deadlines.insert((deadline, Arc::clone(&key)));
      self.schedule_sweep(deadline);
    }
    entries.insert(key, entry);
    self.publish_next_deadline();
    if let Some(change) = change {
      self.shared.watchers.notify(&change);
    }
  }

  /// Removes a key; returns whether it existed and had not expired.
  pub fn remove(&mut self, key: &str) -> bool {
    let entries = self.shared.entries.pin();
    let Some((key, entry)) = entries.remove_entry(key) else {
      return false;
    };
    self.unindex(key, entry);
    self.index.keys.remove(key);
    self.compact_clock();
    self.publish_next_deadline();
    if self.has_watchers() {
      let key = String::from(&**key);
      self.shared.watchers.notify(&Change::Deleted { key });
    }
    entry.deadline > self.now
  }

  /// Removes all keys.
  pub fn clear(&mut self) {
    self.shared.entries.pin().clear();
    let keys = std::mem::take(&mut self.index.keys);
    self.index.deadlines.clear();
    self.index.clock.clear();
    self.index.bytes = 0;
    self.publish_next_deadline();
    if self.has_watchers() {
      for key in keys {
        let key = String::from(&*key);
        self.shared.watchers.notify(&Change::Deleted { key });
      }
    }
  }

  /// Removes up to `max` expired keys.
  pub fn sweep(&mut self, max: usize) {
    for _ in 0..max {
      match self.index.deadlines.first() {
        Some((deadline, key)) if *deadline <= self.now => {
          let key = Arc::clone(key);
          self.remove(&key);
        }
        _ => return,
      }
    }
  }

  /// See [`Store::list`](crate::store::Store::list).
  pub fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> KeyPage {
    let start = match cursor {
      Some(cursor) if cursor >= prefix => Bound::Excluded(cursor),
      _ => Bound::Included(prefix),
    };
    let entries = self.shared.entries.pin();
    let has_lifetimes = !self.index.deadlines.is_empty();
    let is_expired = |key: &str| {
      has_lifetimes
        && entries
          .get(key)
          .is_none_or(|entry| entry.deadline <= self.now)
    };
    let mut keys = self
      .index
      .keys
      .range::<str, _>((start, Bound::Unbounded))
      .take_while(|key| key.starts_with(prefix))
      .filter(|key| !is_expired(key));
    let page: Vec<_> = keys
      .by_ref()
      .take(limit.max(1))
      .map(|key| String::from(&**key))
      .collect();
    let has_more = keys.next().is_some();
    KeyPage {
      cursor: page.last().filter(|_| has_more).cloned(),
      keys: page,
    }
  }

  fn has_watchers(&self) -> bool {
    !self.shared.watchers.is_empty()
  }

  /// Removes a replaced or deleted entry from the indexes.
  fn unindex(&mut self, key: &Arc<str>, entry: &MemoryEntry) {
    self.index.bytes = self.index.bytes.saturating_sub(entry.cost(key));
    if entry.deadline != NEVER {
      let deadline = (entry.deadline, Arc::clone(key));
      self.index.deadlines.remove(&deadline);
    }
  }

  /// Publishes the earliest deadline to readers.
  fn publish_next_deadline(&self) {
    let first = self.index.deadlines.first();
    let next = first.map_or(NEVER, |(deadline, _)| *deadline);
    self.shared.next_deadline.store(next, Ordering::Release);
  }

  /// Evicts entries other than `kept` until the rest takes at most `max` bytes. This is the clock algorithm:
  /// a key that was used since its last inspection gets another round.
  fn evict(&mut self, max: usize, kept: &Arc<str>) {
    let entries = self.shared.entries.pin();
    let mut skipped = 0;
    while self.index.bytes > max {
      let Some((key, position)) = self.index.clock.pop_front() else {
        return;
      };
      let entry = entries.get(&*key);
      let Some(entry) = entry.filter(|entry| entry.position == position) else {
        continue;
      };
      let was_used = entry.is_used.swap(false, Ordering::Relaxed);
      if key == *kept || (was_used && skipped < MAX_SKIPPED) {
        skipped += 1;
        self.index.clock.push_back((key, position));
      } else {
        skipped = 0;
        self.remove(&key);
      }
    }
  }

  /// Drops removed keys from the clock once they outnumber the others.
  fn compact_clock(&mut self) {
    const MIN_LENGTH: usize = 64;
    let index = &mut *self.index;
    if index.clock.len() <= 2 * index.keys.len() + MIN_LENGTH {
      return;
    }
    let entries = self.shared.entries.pin();
    index.clock.retain(|(key, position)| {
      let entry = entries.get(&**key);
      entry.is_some_and(|entry| entry.position == *position)
    });
  }

  /// Schedules a sweep at `deadline`. If the watchdog's thread cannot be started, readers still ignore
  /// expired keys and writers remove them.
  fn schedule_sweep(&mut self, deadline: u64) {
    if !self.index.is_registered {
      let shared = Weak::clone(&self.shared.this);
      self.index.is_registered = watchdog::watch(shared as Weak<dyn HasDeadlines>).is_ok();
    }
    if self.index.sweep_at.is_none_or(|at| deadline < at) {
      self.index.sweep_at = Some(deadline);
      watchdog::schedule(self.shared.instant(deadline));
    }
  }
}

impl MemoryState {
  fn lock(&self) -> MutexGuard<'_, MemoryIndex> {
    self.index.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Nanoseconds since the store was created.
  pub(super) fn now(&self) -> u64 {
    // Overflows after 584 years.
    u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(NEVER - 1)
  }

  /// Converts nanoseconds since the store was created to an [`Instant`].
  fn instant(&self, nanoseconds: u64) -> Instant {
    let after = Duration::from_nanos(nanoseconds);
    // A deadline beyond the clock's range never comes; a year from now serves as well.
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    self
      .epoch
      .checked_add(after)
      .unwrap_or_else(|| Instant::now() + year)
  }
}

impl HasDeadlines for MemoryState {
  fn poll_deadlines(&self, now: Instant) -> Option<Instant> {
    let mut writer = MemoryWriter::new(self);
    writer.sweep(MAX_SWEEP);
    let next = self.next_deadline.load(Ordering::Acquire);
    writer.index.sweep_at = (next != NEVER).then_some(next);
    match next {
      NEVER => None,
      // One sweep was not enough.
      next if next <= writer.now => Some(now + SHORT_PAUSE),
      next => Some(self.instant(next).max(now + PAUSE)),
    }
  }
}
