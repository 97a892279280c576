//! Threads for what blocks and is no guest: a guest has a thread of its own.
//!
//! They are not libuv's: those are few, the end of the process waits for them, and Node needs them for
//! files and names.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::completion_queue::{CompletionQueue, JobResult};
use crate::{Code, Error, Result};

/// How many there are at most. What they do is to wait, for a disk or another machine; so there may be
/// more than cores.
const MAX_THREADS: usize = 16;

/// How long one waits for something to do before it ends.
const IDLE: Duration = Duration::from_secs(10);

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

/// Does something on one of the threads; what comes of it arrives under `number`.
pub fn run(
  number: u32,
  queue: &Arc<CompletionQueue>,
  work: impl FnOnce() -> Result<JobResult> + Send + 'static,
) {
  let results = Arc::clone(queue);
  let started = spawn(move || {
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
      let message = "an operation of a store panicked";
      Err(Error::new(Code::Internal, message))
    });
    results.push_result(number, result);
  });
  if let Err(error) = started {
    let error = Error::no_thread("for operations of stores", &error);
    queue.push_result(number, Err(error));
  }
}

/// As [`run`], for what nobody waits for. Where there is no thread for it, and none can be started, it is
/// not done.
pub fn spawn(job: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
  let mut state = POOL.lock();
  if state.idle <= state.jobs.len() && state.threads < MAX_THREADS {
    let name = "extism-store".to_owned();
    let started = thread::Builder::new().name(name).spawn(|| POOL.work());
    match started {
      Ok(_) => state.threads += 1,
      Err(error) if state.threads == 0 => return Err(error),
      // The others will come to it.
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

  /// What a thread does.
  fn work(&self) {
    let mut state = self.lock();
    loop {
      if let Some(job) = state.jobs.pop_front() {
        drop(state);
        // What panics here nobody waits for; the thread must be there for the others.
        drop(catch_unwind(AssertUnwindSafe(job)));
        state = self.lock();
        continue;
      }
      state.idle += 1;
      let waited = self
        .added
        .wait_timeout_while(state, IDLE, |state| state.jobs.is_empty());
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
