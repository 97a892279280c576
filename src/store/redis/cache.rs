//! What the server has told and has not taken back since: the cache of one connection.
//!
//! The server remembers which keys this connection has read (`CLIENT TRACKING`), and says on the same
//! connection when one of them changes. So what is in here is right for as long as the connection stands,
//! and when it is lost all of it is dropped. A connection can also be lost without a sign; so nothing is
//! answered unless the server has been heard of within [`FRESH`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::Bytes;

/// For how long what is in here is believed after the server was asked something that it has answered.
pub const FRESH: Duration = Duration::from_secs(1);

/// What an entry costs beside its key and its value: in the map, in the queue, and what the allocator adds.
const ENTRY: usize = 200;

const NEVER: u64 = u64::MAX;

/// The moment from which times count, in nanoseconds.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

fn nanoseconds(duration: Duration) -> u64 {
  u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

fn since_epoch(moment: Instant) -> u64 {
  nanoseconds(moment.saturating_duration_since(*EPOCH))
}

/// How many bytes the caches of one store take together, and how many they may.
pub struct Budget {
  used: AtomicUsize,
  max: usize,
}

impl Budget {
  /// A budget of that many bytes.
  pub fn new(max: usize) -> Self {
    Self {
      used: AtomicUsize::new(0),
      max,
    }
  }

  /// Whether there is to be no cache at all.
  pub fn is_none(&self) -> bool {
    self.max == 0
  }
}

struct Entry {
  /// `None` where the server has no such key.
  value: Option<Bytes>,
  /// From when on it is gone.
  deadline: u64,
  /// Tells this entry from one that had the key before.
  number: u64,
  /// Whether it has been read since eviction last looked at it.
  is_used: AtomicBool,
}

fn cost(key: &str, value: Option<&Bytes>) -> usize {
  key.len() + value.map_or(0, |value| value.len()) + ENTRY
}

#[derive(Default)]
struct Ledger {
  /// Keys that have been asked for and neither answered nor changed since, each with the number of the
  /// question. A key that changes is taken out; so an answer that comes later is not kept.
  asked: HashMap<Arc<str>, u64>,
  next_number: u64,
  /// Keys with the numbers of their entries, in the order in which eviction looks at them. What is gone
  /// stays in here until it is looked at, or until there are too many of its kind.
  queue: VecDeque<(Arc<str>, u64)>,
  bytes: usize,
  is_closed: bool,
}

/// Readers wait for nobody; who changes it waits for others who do, for microseconds.
pub struct Cache {
  entries: papaya::HashMap<Arc<str>, Entry>,
  ledger: Mutex<Ledger>,
  /// Until when what is in here is believed.
  fresh_until: AtomicU64,
  /// Whether it has been read since somebody asked.
  is_used: AtomicBool,
  budget: Arc<Budget>,
}

impl Cache {
  /// An empty one, of a connection on which the server has begun to remember what is read.
  pub fn new(budget: Arc<Budget>) -> Self {
    LazyLock::force(&EPOCH);
    Self {
      entries: papaya::HashMap::new(),
      ledger: Mutex::default(),
      fresh_until: AtomicU64::new(0),
      is_used: AtomicBool::new(false),
      budget,
    }
  }

  fn lock(&self) -> MutexGuard<'_, Ledger> {
    self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// The value of a key, where it is known and can be believed. What runs most often: no lock.
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
    // Looked at first: a write would take the cache line away from other readers.
    for is_used in [&entry.is_used, &self.is_used] {
      if !is_used.load(Ordering::Relaxed) {
        is_used.store(true, Ordering::Relaxed);
      }
    }
    Some(entry.value.clone())
  }

  /// Whether it has been read since this was called before.
  pub fn was_used(&self) -> bool {
    self.is_used.swap(false, Ordering::Relaxed)
  }

  /// The server has answered a question that was sent at that moment: what it had changed until then has
  /// been heard of.
  pub fn heard(&self, asked_at: Instant) {
    let until = since_epoch(asked_at + FRESH);
    self.fresh_until.fetch_max(until, Ordering::AcqRel);
  }

  /// To be called before the server is asked for a key.
  pub fn ask(&self, key: &str) -> Asked<'_> {
    let mut ledger = self.lock();
    let (key, number) = match ledger.asked.get_key_value(key) {
      // Neither answered nor changed meanwhile: whichever answer comes first is right.
      Some((key, number)) => (Arc::clone(key), *number),
      None => {
        let key = Arc::<str>::from(key);
        let number = ledger.next_number;
        ledger.next_number += 1;
        if !ledger.is_closed {
          ledger.asked.insert(Arc::clone(&key), number);
        }
        (key, number)
      }
    };
    drop(ledger);
    Asked {
      cache: self,
      key,
      number,
      asked_at: Instant::now(),
    }
  }

  /// A key has changed, or may have.
  pub fn forget(&self, key: &str) {
    let mut ledger = self.lock();
    ledger.asked.remove(key);
    self.remove(&mut ledger, key);
    self.tidy(&mut ledger);
  }

  /// All keys may have changed.
  pub fn forget_all(&self) {
    let mut ledger = self.lock();
    ledger.asked.clear();
    ledger.queue.clear();
    self.entries.pin().clear();
    self.take_off(&mut ledger, usize::MAX);
  }

  /// The connection is lost: nothing is answered any more, and nothing kept.
  pub fn close(&self) {
    self.fresh_until.store(0, Ordering::Release);
    self.lock().is_closed = true;
    self.forget_all();
  }

  fn take_off(&self, ledger: &mut Ledger, bytes: usize) {
    let bytes = bytes.min(ledger.bytes);
    ledger.bytes -= bytes;
    self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
  }

  fn remove(&self, ledger: &mut Ledger, key: &str) {
    if let Some((key, entry)) = self.entries.pin().remove_entry(key) {
      self.take_off(ledger, cost(key, entry.value.as_ref()));
    }
  }

  fn insert(&self, ledger: &mut Ledger, key: &Arc<str>, value: Option<Bytes>, deadline: u64) {
    self.remove(ledger, key);
    let cost = cost(key, value.as_ref());
    if cost > self.budget.max {
      return;
    }
    ledger.bytes += cost;
    self.budget.used.fetch_add(cost, Ordering::Relaxed);
    let number = ledger.next_number;
    ledger.next_number += 1;
    ledger.queue.push_back((Arc::clone(key), number));
    let is_used = AtomicBool::new(false);
    let entry = Entry {
      value,
      deadline,
      number,
      is_used,
    };
    self.entries.pin().insert(Arc::clone(key), entry);
    self.evict(ledger);
    self.tidy(ledger);
  }

  /// Makes room: the clock algorithm, so that what is read often stays.
  fn evict(&self, ledger: &mut Ledger) {
    let entries = self.entries.pin();
    // Each entry is passed by once at most, so that this ends.
    let mut may_pass = ledger.queue.len();
    while self.budget.used.load(Ordering::Relaxed) > self.budget.max {
      let Some((key, number)) = ledger.queue.pop_front() else {
        return;
      };
      let Some(entry) = entries.get(&*key).filter(|entry| entry.number == number) else {
        continue;
      };
      if may_pass > 0 && entry.is_used.swap(false, Ordering::Relaxed) {
        may_pass -= 1;
        ledger.queue.push_back((key, number));
        continue;
      }
      self.remove(ledger, &key);
    }
  }

  /// Takes out of the queue what is gone, where that is more than half.
  fn tidy(&self, ledger: &mut Ledger) {
    const SMALL: usize = 64;
    let entries = self.entries.pin();
    if ledger.queue.len() > SMALL + 2 * entries.len() {
      ledger.queue.retain(|(key, number)| {
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

/// A key that the server is being asked for. Dropped, it is as if it had not been.
pub struct Asked<'a> {
  cache: &'a Cache,
  key: Arc<str>,
  number: u64,
  asked_at: Instant,
}

impl Asked<'_> {
  /// The server has answered: the value, and for how long it has it yet, counted from when it was asked.
  /// It is kept if the key has not changed meanwhile.
  pub fn answered(self, value: Option<Bytes>, lifetime: Option<Duration>) {
    let deadline = lifetime.map_or(NEVER, |lifetime| {
      since_epoch(self.asked_at).saturating_add(nanoseconds(lifetime))
    });
    let mut ledger = self.cache.lock();
    if ledger.asked.get(&self.key) == Some(&self.number) {
      ledger.asked.remove(&self.key);
      self.cache.insert(&mut ledger, &self.key, value, deadline);
    }
  }
}

impl Drop for Asked<'_> {
  fn drop(&mut self) {
    let mut ledger = self.cache.lock();
    if ledger.asked.get(&self.key) == Some(&self.number) {
      ledger.asked.remove(&self.key);
    }
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  fn cache(max: usize) -> Cache {
    let cache = Cache::new(Arc::new(Budget::new(max)));
    cache.heard(Instant::now());
    cache
  }

  fn bytes(text: &str) -> Option<Bytes> {
    Some(text.as_bytes().into())
  }

  #[test]
  fn an_answer_is_kept_until_the_key_changes_also_that_there_is_none() {
    let cache = cache(10_000);
    assert_eq!(cache.get_now("key"), None);
    cache.ask("key").answered(bytes("value"), None);
    cache.ask("none").answered(None, None);
    assert_eq!(cache.get_now("key"), Some(bytes("value")));
    assert_eq!(cache.get_now("none"), Some(None));
    cache.forget("key");
    assert_eq!(cache.get_now("key"), None);
    cache.forget_all();
    assert_eq!(cache.get_now("none"), None);
  }

  #[test]
  fn an_answer_is_not_kept_when_the_key_has_changed_since_it_was_asked_for() {
    let cache = cache(10_000);
    let first = cache.ask("key");
    let second = cache.ask("key");
    cache.forget("key");
    let third = cache.ask("key");
    first.answered(bytes("old"), None);
    assert_eq!(cache.get_now("key"), None);
    third.answered(bytes("new"), None);
    second.answered(bytes("old"), None);
    assert_eq!(cache.get_now("key"), Some(bytes("new")));
    let late = cache.ask("key");
    cache.forget_all();
    late.answered(bytes("new"), None);
    assert_eq!(cache.get_now("key"), None);
  }

  #[test]
  fn a_question_that_was_given_up_leaves_nothing_behind() {
    let cache = cache(10_000);
    drop(cache.ask("key"));
    assert!(cache.lock().asked.is_empty());
  }

  #[test]
  fn nothing_is_answered_when_the_server_has_not_been_heard_of_for_long_or_the_connection_is_lost()
  {
    let cache = Cache::new(Arc::new(Budget::new(10_000)));
    cache.ask("key").answered(bytes("value"), None);
    assert_eq!(cache.get_now("key"), None);
    if let Some(long_ago) = Instant::now().checked_sub(FRESH) {
      cache.heard(long_ago);
    }
    assert_eq!(cache.get_now("key"), None);
    cache.heard(Instant::now());
    assert_eq!(cache.get_now("key"), Some(bytes("value")));
    let late = cache.ask("late");
    cache.close();
    cache.heard(Instant::now());
    late.answered(bytes("value"), None);
    cache.ask("later").answered(bytes("value"), None);
    for key in ["key", "late", "later"] {
      assert_eq!(cache.get_now(key), None);
    }
  }

  #[test]
  fn a_value_is_gone_when_its_lifetime_is_over() {
    let cache = cache(10_000);
    cache
      .ask("short")
      .answered(bytes("value"), Some(Duration::ZERO));
    cache
      .ask("long")
      .answered(bytes("value"), Some(Duration::from_secs(60)));
    assert_eq!(cache.get_now("short"), None);
    assert_eq!(cache.get_now("long"), Some(bytes("value")));
  }

  #[test]
  fn it_takes_no_more_than_it_may_and_keeps_what_is_read() {
    let budget = Arc::new(Budget::new(10_000));
    let cache = Cache::new(Arc::clone(&budget));
    let other = Cache::new(Arc::clone(&budget));
    cache.heard(Instant::now());
    cache.ask("read").answered(bytes("value"), None);
    for number in 0..1_000 {
      assert_eq!(cache.get_now("read"), Some(bytes("value")));
      cache
        .ask(&number.to_string())
        .answered(bytes("value"), None);
      other.ask(&number.to_string()).answered(None, None);
      assert!(budget.used.load(Ordering::Relaxed) <= 10_000);
    }
    assert_eq!(cache.get_now("0"), None);
    cache
      .ask("large")
      .answered(Some(vec![0; 10_000].into()), None);
    assert_eq!(cache.get_now("large"), None);
    drop((cache, other));
    assert_eq!(budget.used.load(Ordering::Relaxed), 0);
  }

  #[test]
  fn a_key_that_changes_often_leaves_no_trail() {
    let cache = cache(10_000);
    for _ in 0..1_000 {
      cache.ask("key").answered(bytes("value"), None);
      cache.forget("key");
    }
    assert!(cache.lock().queue.len() < 100);
    assert_eq!(cache.budget.used.load(Ordering::Relaxed), 0);
  }
}
