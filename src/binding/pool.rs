//! A thread pool for blocking work. (Guests have their own threads.)
//!
//! It is not libuv's pool: that is small, the process waits for it when it exits, and Node needs it for files
//! and DNS.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::completion_queue::{CompletionQueue, JobResult};
use crate::{Code, Error, Result};

/// The largest number of threads. They mostly wait for a disk or another machine, so there may be more
/// threads than cores.
const MAX_THREADS: usize = 16;

/// How long an idle thread waits for a job before it ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct PoolState {
  jobs: VecDeque<Job>,
  threads: usize,
  idle: usize,
}

struct Pool {
  state: Mutex<PoolState>,
  added: Condvar,
}

static POOL: Pool = Pool {
  state: Mutex::new(PoolState {
    jobs: VecDeque::new(),
    threads: 0,
    idle: 0,
  }),
  added: Condvar::new(),
};

/// Runs `work` on the pool; its result arrives for job `number`.
pub fn run(
  number: u32,
  queue: &Arc<CompletionQueue>,
  work: impl FnOnce() -> Result<JobResult> + Send + 'static,
) {
  let results = Arc::clone(queue);
  let started = spawn(move || {
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
      let message = "a store operation panicked";
      Err(Error::new(Code::Internal, message))
    });
    results.push_result(number, result);
  });
  if let Err(error) = started {
    let error = Error::no_thread("for store operations", &error);
    queue.push_result(number, Err(error));
  }
}

/// Runs a job without a result on the pool. Fails if the pool has no thread and cannot start one; then the
/// job does not run.
pub fn spawn(job: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
  let mut state = POOL.lock();
  if state.idle <= state.jobs.len() && state.threads < MAX_THREADS {
    let name = "extism-store".to_owned();
    let started = thread::Builder::new().name(name).spawn(|| POOL.work());
    match started {
      Ok(_) => state.threads += 1,
      Err(error) if state.threads == 0 => return Err(error),
      // The existing threads will run the job.
      Err(_) => {}
    }
  }
  state.jobs.push_back(Box::new(job));
  drop(state);
  POOL.added.notify_one();
  Ok(())
}

impl Pool {
  fn lock(&self) -> MutexGuard<'_, PoolState> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Runs jobs until the thread has been idle for [`IDLE_TIMEOUT`].
  fn work(&self) {
    let mut state = self.lock();
    loop {
      if let Some(job) = state.jobs.pop_front() {
        drop(state);
        // Nothing awaits the job here; the thread must survive a panic to run the next job.
        drop(catch_unwind(AssertUnwindSafe(job)));
        state = self.lock();
        continue;
      }
      state.idle += 1;
      let waited = self
        .added
        .wait_timeout_while(state, IDLE_TIMEOUT, |state| state.jobs.is_empty());
      let (woken, time) = waited.unwrap_or_else(PoisonError::into_inner);
      state = woken;
      state.idle -= 1;
      if time.timed_out() && state.jobs.is_empty() {
        state.threads -= 1;
        return;
      }
    }
  }
}
