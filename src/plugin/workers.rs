//! The threads that run calls: one instance each, one bounded queue for all of them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::Limits;
use super::instance::{Blueprint, Instance};
use crate::{Code, Error, Result};

/// What is run with the result of a call.
pub type Done = Box<dyn FnOnce(Result<Vec<u8>>) + Send>;

/// A call that waits for an instance.
pub struct Job {
  pub(super) function: Arc<str>,
  pub(super) input: Vec<u8>,
  pub(super) done: Done,
}

/// The worker threads of one plugin. They end when the last call has ended after
/// [`close`](Self::close) or after the drop.
pub struct Workers {
  queue: Arc<Queue>,
}

struct Queue {
  state: Mutex<State>,
  /// Signalled for each job, and for all workers when the queue is closed.
  changed: Condvar,
  max_unfinished: usize,
}

#[derive(Default)]
struct State {
  waiting: VecDeque<Job>,
  /// Calls that were accepted and have no result yet, the waiting ones included.
  unfinished: usize,
  workers: usize,
  is_closed: bool,
  /// Run when the last worker has gone.
  on_closed: Vec<Box<dyn FnOnce() + Send>>,
}

impl Workers {
  /// Starts one thread an instance and waits until all of them can take calls.
  pub fn start(blueprint: &Arc<Blueprint>, limits: Limits) -> Result<Self> {
    let workers = Self {
      queue: Arc::new(Queue {
        state: Mutex::default(),
        changed: Condvar::new(),
        max_unfinished: limits.max_queue.get(),
      }),
    };
    // The first compiles and fills the cache; the others then find it full, and start at once.
    received(&workers.spawn(blueprint)?)?;
    let others = (1..limits.instances.get())
      .map(|_| workers.spawn(blueprint))
      .collect::<Result<Vec<_>>>()?;
    others.iter().try_for_each(received)?;
    Ok(workers)
  }

  /// Starts a thread, which says through the channel whether it has an instance.
  fn spawn(&self, blueprint: &Arc<Blueprint>) -> Result<Receiver<Result<()>>> {
    let (ready, is_ready) = sync_channel(1);
    let (queue, blueprint) = (Arc::clone(&self.queue), Arc::clone(blueprint));
    self.queue.lock().workers += 1;
    let spawned = thread::Builder::new()
      .name("extism-host".to_owned())
      .spawn(move || {
        let instance = catch_unwind(AssertUnwindSafe(|| Instance::new(&blueprint)));
        // Not needed any more, and it must be gone when the plugin is said to be closed.
        drop(blueprint);
        match instance {
          Ok(Ok(instance)) => {
            let _ = ready.send(Ok(()));
            work(&queue, instance);
          }
          Ok(Err(error)) => {
            let _ = ready.send(Err(error));
          }
          Err(_) => {}
        }
        queue.leave();
      });
    match spawned {
      Ok(_) => Ok(is_ready),
      Err(error) => {
        self.queue.leave();
        Err(Error::new(
          Code::Internal,
          format!("cannot start a thread for an instance: {error}"),
        ))
      }
    }
  }

  /// Queues a job, or ends it at once with the reason why not.
  pub fn push(&self, job: Job) {
    let mut state = self.queue.lock();
    let refused = if state.is_closed {
      Error::new(Code::Closed, "the plugin is closed")
    } else if state.unfinished >= self.queue.max_unfinished {
      Error::new(
        Code::QueueFull,
        format!(
          "{} calls are unfinished already; wait for one, or raise maxQueue or instances",
          state.unfinished
        ),
      )
    } else {
      state.unfinished += 1;
      state.waiting.push_back(job);
      drop(state);
      self.queue.changed.notify_one();
      return;
    };
    drop(state);
    (job.done)(Err(refused));
  }

  /// Lets the workers go when nothing waits any more, then runs `closed`.
  pub fn close(&self, closed: Option<Box<dyn FnOnce() + Send>>) {
    let mut state = self.queue.lock();
    state.is_closed = true;
    state.on_closed.extend(closed);
    let run_now = match state.workers {
      0 => std::mem::take(&mut state.on_closed),
      _ => Vec::new(),
    };
    drop(state);
    self.queue.changed.notify_all();
    run_now.into_iter().for_each(|closed| closed());
  }
}

impl Drop for Workers {
  fn drop(&mut self) {
    self.close(None);
  }
}

impl Queue {
  /// Nothing that could panic runs under the lock, so a poisoned one is still sound.
  fn lock(&self) -> MutexGuard<'_, State> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Waits for a job; `None` when the queue is closed and empty.
  fn next(&self) -> Option<Job> {
    let mut state = self.lock();
    loop {
      if let Some(job) = state.waiting.pop_front() {
        return Some(job);
      }
      if state.is_closed {
        return None;
      }
      state = self
        .changed
        .wait(state)
        .unwrap_or_else(PoisonError::into_inner);
    }
  }

  /// Counts a worker out; the last one says that the plugin is closed.
  fn leave(&self) {
    let mut state = self.lock();
    state.workers -= 1;
    let closed = match state.workers {
      0 => std::mem::take(&mut state.on_closed),
      _ => Vec::new(),
    };
    drop(state);
    closed.into_iter().for_each(|closed| closed());
  }
}

fn received(is_ready: &Receiver<Result<()>>) -> Result<()> {
  // A thread that panicked drops its sender.
  is_ready.recv().unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Error {
  Error::new(
    Code::Internal,
    "the runtime panicked; the instance is replaced",
  )
}

fn work(queue: &Queue, mut instance: Instance) {
  while let Some(job) = queue.next() {
    let call = AssertUnwindSafe(|| instance.call(&job.function, &job.input));
    let result = catch_unwind(call).unwrap_or_else(|_| Err(panicked()));
    // Counted out first: who has seen a result can count on a free place.
    queue.lock().unfinished -= 1;
    (job.done)(result);
  }
}
