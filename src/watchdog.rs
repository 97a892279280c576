//! One thread that enforces the deadlines of the whole process.
//!
//! Calls are not registered one by one. [`schedule`] wakes the watchdog only for a deadline before
//! the next one that it waits for. When it wakes, it polls everything it watches and finds the next
//! deadline. So for calls with the same timeout it wakes at most once per timeout, and a call costs
//! it nothing.

use std::sync::atomic::Ordering;
use std::sync::{LazyLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::sync::{self, AtomicU64, Condvar, Mutex, MutexGuard, process_static, thread};

/// Something with deadlines.
pub trait HasDeadlines: Send + Sync {
  /// Handles everything that is due at `now`, and returns the next deadline. Runs on the watchdog's thread.
  fn poll_deadlines(&self, now: Instant) -> Option<Instant>;
}

struct Watchdog {
  /// `next` counts from this moment.
  epoch: Instant,
  /// When the watchdog polls next, in nanoseconds after `epoch`; [`NEVER`] if nothing is scheduled.
  next: AtomicU64,
  watched: Mutex<Vec<Weak<dyn HasDeadlines>>>,
  earlier: Condvar,
  is_started: Mutex<bool>,
}

const NEVER: u64 = u64::MAX;

process_static! {
  static WATCHDOG: LazyLock<Watchdog> = LazyLock::new(|| Watchdog {
    epoch: sync::now(),
    next: AtomicU64::new(NEVER),
    watched: Mutex::default(),
    earlier: Condvar::new(),
    is_started: Mutex::default(),
  });
}

/// Polls `watched` from now on, until it is dropped. Fails if the watchdog's thread cannot be
/// started.
pub fn watch(watched: Weak<dyn HasDeadlines>) -> std::io::Result<()> {
  // Under the lock, so that only one thread starts even if several plugins open at once.
  let is_started = WATCHDOG.is_started.lock();
  let mut is_started = is_started.unwrap_or_else(PoisonError::into_inner);
  if !*is_started {
    thread::Builder::new()
      .name("extism-watchdog".to_owned())
      .spawn(|| WATCHDOG.run())?;
    *is_started = true;
  }
  drop(is_started);
  let mut list = WATCHDOG.lock();
  list.retain(|watched| watched.strong_count() > 0);
  list.push(watched);
  Ok(())
}

/// Makes the watchdog poll no later than at `deadline`.
pub fn schedule(deadline: Instant) {
  WATCHDOG.schedule(deadline);
}

impl Watchdog {
  fn lock(&self) -> MutexGuard<'_, Vec<Weak<dyn HasDeadlines>>> {
    self.watched.lock().unwrap_or_else(PoisonError::into_inner)
  }

  fn schedule(&self, deadline: Instant) {
    let nanoseconds = deadline.saturating_duration_since(self.epoch).as_nanos();
    let at = u64::try_from(nanoseconds).unwrap_or(NEVER);
    if at < self.next.fetch_min(at, Ordering::SeqCst) {
      // The lock keeps the notification from falling between the watchdog's last read of `next` and
      // its sleep.
      let _list = self.lock();
      self.earlier.notify_one();
    }
  }

  fn run(&self) {
    loop {
      self.wait();
      // From here on, new deadlines schedule themselves; those that exist are polled below.
      self.next.store(NEVER, Ordering::SeqCst);
      let watched: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
      let now = sync::now();
      let next = watched
        .iter()
        .filter_map(|watched| watched.poll_deadlines(now))
        .min();
      if let Some(next) = next {
        self.schedule(next);
      }
    }
  }

  /// Sleeps until `next`.
  fn wait(&self) {
    let mut list = self.lock();
    loop {
      let next = self.next.load(Ordering::SeqCst);
      let now = sync::now() - self.epoch;
      let left = match next {
        NEVER => Duration::MAX,
        next => Duration::from_nanos(next).saturating_sub(now),
      };
      if left.is_zero() {
        return;
      }
      list = match next {
        NEVER => self
          .earlier
          .wait(list)
          .unwrap_or_else(PoisonError::into_inner),
        _ => {
          self
            .earlier
            .wait_timeout(list, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0
        }
      };
    }
  }
}
