//! What changes a store in memory: one thread at a time, so that a change is one step, and watchers are
//! told of changes in their order.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::{Entry, MemoryState, NEVER, Value};
use crate::store::{Change, KeyPage};
use crate::watchdog::{self, Watched};

/// Keys whose time is over that the watchdog removes before others get their turn.
const SWEEP: usize = 512;

/// How long others have their turn where there are more.
const SHORT_PAUSE: Duration = Duration::from_millis(1);

/// How long the watchdog leaves the store alone otherwise.
const PAUSE: Duration = Duration::from_millis(10);

/// Keys whose time is over that each writer removes: more than it can add, so that there never are ever
/// more of them.
const SHARE: usize = 2;

/// How many keys that have been used eviction passes by before it takes the next one, used or not: so
/// that no writer waits for it to go through all keys.
const MAX_PASSED: usize = 64;

/// What writers keep beside the map.
#[derive(Default)]
pub(super) struct Ledger {
  /// All keys in their order, for lists. It takes about 40 bytes for each key, and time where a key is
  /// added or removed, not where it is set again. Without it each page of a list would have to look at
  /// all keys of the store: a million keys, listed by the thousand, are a thousand times a million.
  keys: BTreeSet<Arc<str>>,
  /// The keys that have a lifetime, by when it is over.
  deadlines: BTreeSet<(u64, Arc<str>)>,
  /// What all entries cost together.
  bytes: usize,
  /// The keys of a bounded store with their positions, in the order in which eviction looks at them. A
  /// key that is gone stays in here until it is looked at, or until there are too many of its kind.
  clock: VecDeque<(Arc<str>, u64)>,
  next_position: u64,
  /// When the watchdog will look for keys whose time is over; `None` where it is not expected to.
  sweep_at: Option<u64>,
  /// Whether the watchdog knows the store.
  is_watched: bool,
}

/// The one who may change a store.
pub(super) struct MemoryWriter<'a> {
  shared: &'a MemoryState,
  ledger: MutexGuard<'a, Ledger>,
  now: u64,
}

impl<'a> MemoryWriter<'a> {
  /// Waits until it is one's turn.
  pub fn new(shared: &'a MemoryState) -> Self {
    let ledger = shared.lock();
    let now = shared.now();
    let mut writer = Self {
      shared,
      ledger,
      now,
    };
    writer.sweep(SHARE);
    writer
  }

  /// When something that is set now is over.
  pub fn deadline(&self, lifetime: Option<Duration>) -> u64 {
    lifetime.map_or(NEVER, |lifetime| {
      let lifetime = u64::try_from(lifetime.as_nanos()).unwrap_or(NEVER);
      self.now.saturating_add(lifetime)
    })
  }

  /// What there is under a key, and when that is over. One whose time is over is removed.
  pub fn get(&mut self, key: &str) -> Option<(Value, u64)> {
    let entries = self.shared.entries.pin();
    let entry = entries.get(key)?;
    if entry.deadline <= self.now {
      self.remove(key);
      return None;
    }
    Some((entry.value(), entry.deadline))
  }

  /// Sets a key, which must fit into the store. A key that is there keeps its position.
  pub fn set(&mut self, key: &str, value: Value, deadline: u64) {
    let entries = self.shared.entries.pin();
    // Its time may be over, and then this is another one.
    let is_there = self.get(key).is_some();
    let (key, position) = match entries.get_key_value(key) {
      Some((key, entry)) if is_there => {
        self.forget(key, entry);
        (Arc::clone(key), entry.position)
      }
      _ => {
        let key = Arc::<str>::from(key);
        let position = self.ledger.next_position;
        self.ledger.next_position += 1;
        self.ledger.keys.insert(Arc::clone(&key));
        (key, position)
      }
    };
    let entry = Entry::new(value, position, deadline, is_there);
    let cost = entry.cost(&key);
    if let Some(max_bytes) = self.shared.max_bytes {
      self.evict(max_bytes.saturating_sub(cost), &key);
      if !is_there {
        self.ledger.clock.push_back((Arc::clone(&key), position));
      }
    }
    self.ledger.bytes += cost;
    let told = self.is_watched().then(|| Change::Set {
      key: String::from(&*key),
      value: Some(Arc::clone(&entry.bytes)),
    });
    if deadline != NEVER {
      self.ledger.deadlines.insert((deadline, Arc::clone(&key)));
      self.expect_sweep(deadline);
    }
    entries.insert(key, entry);
    self.deadlines_changed();
    if let Some(change) = told {
      self.shared.watchers.tell(&change);
    }
  }

  /// Removes a key; whether it was there, its time not over.
  pub fn remove(&mut self, key: &str) -> bool {
    let entries = self.shared.entries.pin();
    let Some((key, entry)) = entries.remove_entry(key) else {
      return false;
    };
    self.forget(key, entry);
    self.ledger.keys.remove(key);
    self.tidy_clock();
    self.deadlines_changed();
    if self.is_watched() {
      let key = String::from(&**key);
      self.shared.watchers.tell(&Change::Deleted { key });
    }
    entry.deadline > self.now
  }

  /// Removes all keys.
  pub fn clear(&mut self) {
    self.shared.entries.pin().clear();
    let keys = std::mem::take(&mut self.ledger.keys);
    self.ledger.deadlines.clear();
    self.ledger.clock.clear();
    self.ledger.bytes = 0;
    self.deadlines_changed();
    if self.is_watched() {
      for key in keys {
        let key = String::from(&*key);
        self.shared.watchers.tell(&Change::Deleted { key });
      }
    }
  }

  /// Removes keys whose time is over, up to that many.
  pub fn sweep(&mut self, most: usize) {
    for _ in 0..most {
      match self.ledger.deadlines.first() {
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
    let has_lifetimes = !self.ledger.deadlines.is_empty();
    let is_over = |key: &str| {
      has_lifetimes
        && entries
          .get(key)
          .is_none_or(|entry| entry.deadline <= self.now)
    };
    let mut keys = self
      .ledger
      .keys
      .range::<str, _>((start, Bound::Unbounded))
      .take_while(|key| key.starts_with(prefix))
      .filter(|key| !is_over(key));
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

  fn is_watched(&self) -> bool {
    !self.shared.watchers.is_empty()
  }

  /// Takes an entry that is replaced or removed out of the books.
  fn forget(&mut self, key: &Arc<str>, entry: &Entry) {
    self.ledger.bytes = self.ledger.bytes.saturating_sub(entry.cost(key));
    if entry.deadline != NEVER {
      let deadline = (entry.deadline, Arc::clone(key));
      self.ledger.deadlines.remove(&deadline);
    }
  }

  /// Tells readers when the next lifetime is over.
  fn deadlines_changed(&self) {
    let first = self.ledger.deadlines.first();
    let next = first.map_or(NEVER, |(deadline, _)| *deadline);
    self.shared.next_deadline.store(next, Ordering::Release);
  }

  /// Removes entries other than `kept` until the rest takes up to that many bytes. This is the clock
  /// algorithm: a key that has been used since it was last looked at gets another round.
  fn evict(&mut self, most: usize, kept: &Arc<str>) {
    let entries = self.shared.entries.pin();
    let mut passed = 0;
    while self.ledger.bytes > most {
      let Some((key, position)) = self.ledger.clock.pop_front() else {
        return;
      };
      let entry = entries.get(&*key);
      let Some(entry) = entry.filter(|entry| entry.position == position) else {
        continue;
      };
      let was_used = entry.is_used.swap(false, Ordering::Relaxed);
      if key == *kept || (was_used && passed < MAX_PASSED) {
        passed += 1;
        self.ledger.clock.push_back((key, position));
      } else {
        passed = 0;
        self.remove(&key);
      }
    }
  }

  /// Drops keys that are gone from the clock where they are more than the others.
  fn tidy_clock(&mut self) {
    const FEW: usize = 64;
    let ledger = &mut *self.ledger;
    if ledger.clock.len() <= 2 * ledger.keys.len() + FEW {
      return;
    }
    let entries = self.shared.entries.pin();
    ledger.clock.retain(|(key, position)| {
      let entry = entries.get(&**key);
      entry.is_some_and(|entry| entry.position == *position)
    });
  }

  /// Has the watchdog look when that deadline is over. Where its thread cannot be started, what is over
  /// is still gone for readers, and removed by writers.
  fn expect_sweep(&mut self, deadline: u64) {
    if !self.ledger.is_watched {
      let shared = Weak::clone(&self.shared.this);
      self.ledger.is_watched = watchdog::watch(shared as Weak<dyn Watched>).is_ok();
    }
    if self.ledger.sweep_at.is_none_or(|at| deadline < at) {
      self.ledger.sweep_at = Some(deadline);
      watchdog::schedule(self.shared.instant(deadline));
    }
  }
}

impl MemoryState {
  fn lock(&self) -> MutexGuard<'_, Ledger> {
    self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Nanoseconds since the store was made.
  pub(super) fn now(&self) -> u64 {
    // In 584 years it will be over.
    u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(NEVER - 1)
  }

  /// The moment of that many nanoseconds.
  fn instant(&self, nanoseconds: u64) -> Instant {
    let after = Duration::from_nanos(nanoseconds);
    // What no clock reaches never comes; a year is as good.
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    self
      .epoch
      .checked_add(after)
      .unwrap_or_else(|| Instant::now() + year)
  }
}

impl Watched for MemoryState {
  fn poll_deadlines(&self, now: Instant) -> Option<Instant> {
    let mut writer = MemoryWriter::new(self);
    writer.sweep(SWEEP);
    let next = self.next_deadline.load(Ordering::Acquire);
    writer.ledger.sweep_at = (next != NEVER).then_some(next);
    match next {
      NEVER => None,
      // More than it may do at once.
      next if next <= writer.now => Some(now + SHORT_PAUSE),
      next => Some(self.instant(next).max(now + PAUSE)),
    }
  }
}
