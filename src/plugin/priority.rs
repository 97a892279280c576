//! The priority of threads whose calls compute until they are interrupted.
//!
//! The operating system lets a thread that computes finish its time slice, of some milliseconds, before it runs
//! one that has just been woken. So a plugin whose calls all run to their deadlines would make the calls of all
//! others wait, and the event loop. A lower priority changes that, and costs nobody anything while a core is free.

use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// What is added to the nice value: such a thread has a tenth of what others have of a core that all want. Not
/// less: it may hold a lock that another thread waits for.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// How long a call must have computed. What is canceled sooner bothers nobody.
const MIN_CPU: Duration = Duration::from_millis(1);

/// Which part of the time it must have computed. Threads that share the cores each have a part only; one with a
/// low priority beside a busy one with a usual priority has less than this, and gets its priority back.
const MIN_SHARE: u32 = 8;

/// What this thread does from some moment on.
pub struct Effort {
  since: Instant,
  cpu: Duration,
}

impl Effort {
  /// From now on.
  pub fn begin() -> Self {
    Self {
      since: Instant::now(),
      cpu: cpu_time(),
    }
  }

  /// Whether it has computed for much of the time. A thread that waited for a host function has not.
  pub fn is_high(&self) -> bool {
    let cpu = cpu_time().saturating_sub(self.cpu);
    cpu >= MIN_CPU && cpu >= self.since.elapsed() / MIN_SHARE
  }
}

/// The CPU time that this thread has used. Always 0 on systems where threads have no priority of their own.
fn cpu_time() -> Duration {
  #[cfg(target_os = "linux")]
  {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
  }
  #[cfg(not(target_os = "linux"))]
  Duration::ZERO
}

/// Runs this on a thread of low priority, and waits for it. On another thread, because one without privileges
/// cannot get its priority back.
pub fn run_low<T: Send>(run: impl Fn() -> T + Sync) -> T {
  let low = || {
    // Not refused: the value rises. It is that of this thread.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICE);
    run()
  };
  thread::scope(|scope| {
    let builder = thread::Builder::new().name("extism-instance".to_owned());
    match builder.spawn_scoped(scope, low).map(ScopedJoinHandle::join) {
      Ok(Ok(result)) => result,
      Ok(Err(panic)) => resume_unwind(panic),
      // There is no thread for it.
      Err(_) => run(),
    }
  })
}
