//! Short spin-waits instead of sleeping, if no other thread needs the core.
//!
//! Putting a thread to sleep and waking it costs tens of microseconds: many times the duration of a short
//! call. So if calls come one after the other, each as soon as the previous one has ended, the thread that
//! serves them spins for a moment and waits for the next.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sync::{self, AtomicBool, AtomicUsize, process_static, thread};

/// How long a thread spins for the next call before it sleeps. Must be longer than a sleeping caller takes
/// to wake up and call again: otherwise neither side ever starts to stay awake.
const LIMIT: Duration = Duration::from_micros(200);

/// Tells a spinning thread that something may have changed.
///
/// It has cache lines of its own (processors fetch them in pairs). Otherwise a spinning thread would keep
/// taking away the cache line that the other thread needs to make progress.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Flag(AtomicBool);

impl Flag {
  /// Clears the flag before spinning.
  pub fn clear(&self) {
    self.0.store(false, Ordering::Relaxed);
  }

  /// Tells spinning threads that something has changed. They see the change once they take the lock under
  /// which it was made.
  pub fn set(&self) {
    self.0.store(true, Ordering::Relaxed);
  }

  /// Whether something has changed. What has changed must be read under its lock.
  pub fn is_set(&self) -> bool {
    self.0.load(Ordering::Relaxed)
  }
}

/// Spins until `is_due` or until `limit` has passed. Returns whether it was due. With one core it does not
/// spin, because it would keep the other thread from making progress.
pub fn until(limit: Duration, is_due: impl Fn() -> bool) -> bool {
  if cores() == 1 {
    return is_due();
  }
  let mut start = None;
  loop {
    for _ in 0..16 {
      if is_due() {
        return true;
      }
      sync::spin_loop();
    }
    // Reading the clock costs as much as several checks, and usually it is not needed.
    let now = sync::now();
    if now - *start.get_or_insert(now) > limit {
      return is_due();
    }
  }
}

/// Decides whether to spin, based on recent success: after each failure in a row it skips twice as many
/// times as before.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpinBackoff {
  failures: u32,
  skips_left: u32,
}

impl SpinBackoff {
  /// Spins the first time.
  pub const NEW: Self = Self {
    failures: 0,
    skips_left: 0,
  };

  /// Limits the skips to 63 in a row. Then spinning costs almost nothing if it never pays, and is resumed
  /// soon if it pays again.
  const MAX_FAILURES: u32 = 6;

  /// Whether to spin this time.
  pub fn is_due(&mut self) -> bool {
    match self.skips_left.checked_sub(1) {
      Some(left) => {
        self.skips_left = left;
        false
      }
      None => true,
    }
  }

  /// Records whether spinning has paid.
  pub fn learn(&mut self, has_paid: bool) {
    self.failures = match has_paid {
      true => 0,
      false => (self.failures + 1).min(Self::MAX_FAILURES),
    };
    self.skips_left = (1 << self.failures) - 1;
  }
}

/// A permit to spin. A process has fewer permits than cores.
pub struct Spinner(());

fn cores() -> usize {
  static CORES: OnceLock<usize> = OnceLock::new();
  *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

process_static! { static SPINNERS: AtomicUsize = AtomicUsize::new(0); }

impl Spinner {
  /// `None` if all permits are taken; always on one core.
  pub fn new() -> Option<Self> {
    let is_free = |spinners| (spinners + 1 < cores()).then_some(spinners + 1);
    SPINNERS
      .fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_free)
      .is_ok()
      // Lazily, because dropping a `Spinner` returns a permit.
      .then(|| Self(()))
  }

  /// Spins for the next call. Returns whether there is one.
  pub fn spin_wait(&self, is_due: impl Fn() -> bool) -> bool {
    until(LIMIT, is_due)
  }
}

impl Drop for Spinner {
  fn drop(&mut self) {
    SPINNERS.fetch_sub(1, Ordering::Relaxed);
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn skips_double_until_spinning_pays_again() {
    let skipped = |backoff: &mut SpinBackoff| (0..).take_while(|_| !backoff.is_due()).count();
    let mut backoff = SpinBackoff::NEW;
    assert_eq!(skipped(&mut backoff), 0);
    for expected in [1, 3, 7, 15, 31, 63, 63] {
      backoff.learn(false);
      assert_eq!(skipped(&mut backoff), expected);
    }
    backoff.learn(true);
    assert_eq!(skipped(&mut backoff), 0);
  }
}
