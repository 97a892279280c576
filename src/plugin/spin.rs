//! Brief spinning in place of sleep, where it costs nobody anything.
//!
//! To put a thread to sleep and wake it again costs tens of microseconds: many times what a short
//! call takes. So where calls are made one after the other, each as soon as the one before has
//! ended, the thread that serves them stays awake for a moment and looks for the next.

use std::hint;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread looks for the next call before it sleeps. It has to be longer than a caller that
/// sleeps takes to wake up and call again: only then does either begin to stay awake.
const LIMIT: Duration = Duration::from_micros(200);

/// Spins until `is_due` or the time is over; whether it was due.
pub fn until(limit: Duration, is_due: impl Fn() -> bool) -> bool {
  let start = Instant::now();
  loop {
    // The clock costs as much as several looks.
    for _ in 0..16 {
      if is_due() {
        return true;
      }
      hint::spin_loop();
    }
    if start.elapsed() > limit {
      return is_due();
    }
  }
}

/// What tells whether spinning has paid lately: each time that it has not, it is left out for twice
/// as many times as before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Habit {
  failures: u32,
  left_out: u32,
}

impl Habit {
  /// At most 63 times in a row it is left out: where it never pays, that costs next to nothing, and where
  /// it pays again, that is noticed soon.
  const MAX_FAILURES: u32 = 6;

  /// Whether to spin this time.
  pub fn is_due(&mut self) -> bool {
    match self.left_out.checked_sub(1) {
      Some(left) => {
        self.left_out = left;
        false
      }
      None => true,
    }
  }

  /// Learns whether it has paid.
  pub fn learn(&mut self, has_paid: bool) {
    self.failures = match has_paid {
      true => 0,
      false => (self.failures + 1).min(Self::MAX_FAILURES),
    };
    self.left_out = (1 << self.failures) - 1;
  }
}

/// A thread's place among those of the process that spin; there are fewer than there are cores.
pub struct Spinner(());

static SPINNERS: AtomicUsize = AtomicUsize::new(0);

impl Spinner {
  /// `None` where all places are taken; always so on one core.
  pub fn new() -> Option<Self> {
    use std::sync::OnceLock;
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZeroUsize::get));
    let is_free = |spinners| (spinners + 1 < cores).then_some(spinners + 1);
    SPINNERS
      .fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_free)
      .is_ok()
      .then_some(Self(()))
  }

  /// Looks for the next call; whether there is one.
  pub fn look(&self, is_due: impl Fn() -> bool) -> bool {
    until(LIMIT, is_due)
  }
}

impl Drop for Spinner {
  fn drop(&mut self) {
    SPINNERS.fetch_sub(1, Ordering::Relaxed);
  }
}
