//! The model checker's version of `src/sync.rs`, with a clock that only the model advances.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock, LockResult, PoisonError};
use std::time::{Duration, Instant};

pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use shuttle::sync::mpsc::{Receiver, sync_channel};
pub use shuttle::sync::{Mutex, MutexGuard};

pub mod thread {
  use std::io::Result;
  use std::num::NonZeroUsize;

  pub use shuttle::thread::{scope, spawn, yield_now};

  /// Two threads may spin, whatever machine the model runs on.
  pub fn available_parallelism() -> Result<NonZeroUsize> {
    Ok(NonZeroUsize::MIN.saturating_add(2))
  }

  #[derive(Default)]
  pub struct Builder {
    name: String,
  }

  impl Builder {
    pub fn new() -> Self {
      Self::default()
    }

    pub fn name(self, name: String) -> Self {
      Self { name }
    }

    /// All threads must end, except the watchdog.
    pub fn spawn(self, run: impl FnOnce() + Send + 'static) -> Result<()> {
      match self.name.as_str() {
        "extism-watchdog" => drop(shuttle::future::spawn(async { run() })),
        _ => drop(spawn(run)),
      }
      Ok(())
    }
  }
}

macro_rules! process_static {
  (static $name:ident: $type:ty = $value:expr;) => {
    shuttle::lazy_static! { static ref $name: $type = $value; }
  };
}

pub(crate) use process_static;

/// The duration of one iteration of a spin-wait.
const LOOK: Duration = Duration::from_micros(5);

#[derive(Default)]
struct Clock {
  elapsed: Duration,
  timers: Vec<Timer>,
  next_timer: u64,
}

struct Timer {
  number: u64,
  at: Duration,
  condvar: Arc<shuttle::sync::Condvar>,
}

thread_local! {
  // All threads of one interleaving share one thread of the system.
  static CLOCK: RefCell<Clock> = RefCell::default();
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

pub fn now() -> Instant {
  *START + CLOCK.with_borrow(|clock| clock.elapsed)
}

/// Called before each interleaving.
pub fn reset_clock() {
  CLOCK.with_borrow_mut(|clock| *clock = Clock::default());
}

/// Advances the clock.
pub fn advance(by: Duration) {
  let due: Vec<_> = CLOCK.with_borrow_mut(|clock| {
    clock.elapsed += by;
    let due = clock.timers.iter();
    let due = due.filter(|timer| timer.at <= clock.elapsed);
    due.map(|timer| Arc::clone(&timer.condvar)).collect()
  });
  due.iter().for_each(|condvar| condvar.notify_all());
}

pub fn spin_loop() {
  advance(LOOK);
  shuttle::hint::spin_loop();
}

/// The checker's own condition variable never times out.
pub struct Condvar(LazyLock<Arc<shuttle::sync::Condvar>>);

impl Default for Condvar {
  fn default() -> Self {
    Self::new()
  }
}

impl Condvar {
  pub const fn new() -> Self {
    Self(LazyLock::new(Arc::default))
  }

  pub fn notify_one(&self) {
    self.0.notify_one();
  }

  pub fn notify_all(&self) {
    self.0.notify_all();
  }

  pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
    self.0.wait(guard)
  }

  pub fn wait_while<'a, T>(
    &self,
    guard: MutexGuard<'a, T>,
    condition: impl FnMut(&mut T) -> bool,
  ) -> LockResult<MutexGuard<'a, T>> {
    self.0.wait_while(guard, condition)
  }

  /// Advancing the clock wakes the thread, repeatedly until it is awake.
  pub fn wait_timeout<'a, T>(
    &self,
    guard: MutexGuard<'a, T>,
    limit: Duration,
  ) -> LockResult<(MutexGuard<'a, T>, ())> {
    let number = CLOCK.with_borrow_mut(|clock| {
      clock.next_timer += 1;
      clock.timers.push(Timer {
        number: clock.next_timer,
        at: clock.elapsed + limit,
        condvar: Arc::clone(&self.0),
      });
      clock.next_timer
    });
    let guard = self.0.wait(guard);
    CLOCK.with_borrow_mut(|clock| clock.timers.retain(|timer| timer.number != number));
    match guard {
      Ok(guard) => Ok((guard, ())),
      Err(error) => Err(PoisonError::new((error.into_inner(), ()))),
    }
  }
}
