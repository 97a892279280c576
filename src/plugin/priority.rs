//! Lowers the priority of threads whose calls compute until they are interrupted.
//!
//! The operating system lets a busy thread finish its time slice of a few milliseconds before it runs a
//! thread that has just been woken. So a plugin whose calls all run into their deadlines would delay the
//! calls of all others, and the event loop. A lower priority avoids that, and costs nothing while a core is
//! free.

use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Added to the nice value. Such a thread gets a tenth of the CPU share of a normal one if they compete for a
/// core. Not less: it may hold a lock that another thread waits for.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// The minimum CPU time of a call to count as busy. A call that is canceled sooner disturbs nobody.
const MIN_CPU: Duration = Duration::from_millis(1);

/// The minimum share of the elapsed time that it must have computed (1/8). Threads that compete for cores
/// each get only a part. A low-priority thread beside a busy normal one gets less than this, and so regains
/// its priority.
const MIN_SHARE: u32 = 8;

/// Measures the CPU time of this thread from some moment on.
pub struct CpuMeter {
  since: Instant,
  cpu: Duration,
}

impl CpuMeter {
  /// Starts measuring now.
  pub fn start() -> Self {
    Self {
      since: Instant::now(),
      cpu: cpu_time(),
    }
  }

  /// Whether the thread has computed for much of the time, and not waited for a host function.
  pub fn is_busy(&self) -> bool {
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

/// Runs `run` on a new thread of low priority, and waits for it. It needs a new thread because a thread
/// without privileges cannot raise its priority again.
pub fn run_low<T: Send>(run: impl Fn() -> T + Sync) -> T {
  let low = || {
    // Raising the nice value is always allowed. It affects only this thread.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICE);
    run()
  };
  thread::scope(|scope| {
    let builder = thread::Builder::new().name("extism-instance".to_owned());
    match builder.spawn_scoped(scope, low).map(ScopedJoinHandle::join) {
      Ok(Ok(result)) => result,
      Ok(Err(panic)) => resume_unwind(panic),
      // The thread could not be started.
      Err(_) => run(),
    }
  })
}
