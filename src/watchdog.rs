//! The one thread of the process that knows what time it is.
//!
//! Nobody tells it of each call: it is told only of a deadline that comes before the next one that
//! it waits for. When it wakes, it looks at all that it watches and finds the next. So with calls
//! of the same limit it wakes at most once in the time of that limit, and a call costs it nothing.

use std::sync::atomic::Ordering;
use std::sync::{LazyLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::sync::{self, AtomicU64, Condvar, Mutex, MutexGuard, process_static, thread};

/// What has deadlines.
pub trait Watched: Send + Sync {
  /// Does what is due at `now`, and says when the next deadline is. On the watchdog's thread.
  fn poll_deadlines(&self, now: Instant) -> Option<Instant>;
}

struct Watchdog {
  /// The moment from which `next` counts.
  epoch: Instant,
  /// Nanoseconds after `epoch` at which the watchdog will look; [`NEVER`] while it has no reason to.
  next: AtomicU64,
  watched: Mutex<Vec<Weak<dyn Watched>>>,
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

/// Has `watched` looked at from now on, for as long as it lives. An error where the thread cannot
/// be started.
pub fn watch(watched: Weak<dyn Watched>) -> std::io::Result<()> {
  // Started under the lock, so that there is one however many plugins are opened at once.
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

/// Makes sure that the watchdog looks no later than at `deadline`.
pub fn schedule(deadline: Instant) {
  WATCHDOG.schedule(deadline);
}

impl Watchdog {
  fn lock(&self) -> MutexGuard<'_, Vec<Weak<dyn Watched>>> {
    self.watched.lock().unwrap_or_else(PoisonError::into_inner)
  }

  fn schedule(&self, deadline: Instant) {
    let nanoseconds = deadline.saturating_duration_since(self.epoch).as_nanos();
    let at = u64::try_from(nanoseconds).unwrap_or(NEVER);
    if at < self.next.fetch_min(at, Ordering::SeqCst) {
      // Taken, so that the notice cannot fall between the watchdog's last look at `next` and its
      // sleep.
      let _list = self.lock();
      self.earlier.notify_one();
    }
  }

  fn run(&self) {
    loop {
      self.wait();
      // From here on who has a deadline tells of it again, and what is found below does.
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

  /// Sleeps until `next` has come.
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
