//! The queue of calls, and how threads wait for calls.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::super::instance::PluginRuntime;
use super::super::spin::{SpinBackoff, Spinner};
use super::scaling::ScaleUp;
use super::slot::Slot;
use super::waiting::WaitingCalls;
use super::{Call, WorkerPool};
use crate::sync::{self, MutexGuard};
use crate::{trim, watchdog};

/// How soon the last call must have come for a thread to spin for the next one. Generous, because it
/// includes the time to wake a sleeping thread.
const FAST_WAIT: Duration = Duration::from_micros(300);

/// How many calls must have come one after the other.
const MIN_ALONE_CALLS: u64 = 8;

/// The state behind the queue's lock.
#[derive(Default)]
pub struct CallQueue {
  pub waiting: WaitingCalls,
  /// The number of threads that sleep until there is a call. A wake-up is a system call, which is
  /// skipped if this is 0.
  pub idle: usize,
  /// The number of threads that spin for a call.
  pub spinning: usize,
  /// Whether spinning has paid lately.
  spin_backoff: SpinBackoff,
  /// How many calls found no thread ready.
  pub waited: u64,
  /// How many calls in a row were alone.
  pub alone: u64,
  /// How long a thread waited for the last call that was not queued already.
  last_wait: Option<Duration>,
  pub slots: Vec<Arc<Slot>>,
  /// The source of instances; `None` once the plugin is closed and its last slot is gone. It keeps the
  /// host functions alive, and with them the plugin's store.
  pub runtime: Option<PluginRuntime>,
  /// `None` if no further instance may be started.
  pub scale_up: Option<ScaleUp>,
  /// The number of threads that have been replaced because they are stuck in host calls.
  pub abandoned: usize,
  pub is_closed: bool,
  /// Run when the last slot is gone and the last call has ended.
  pub on_closed: Vec<Box<dyn FnOnce() + Send>>,
}

impl CallQueue {
  /// An empty queue for instances of `runtime`.
  pub fn new(runtime: PluginRuntime) -> Self {
    Self {
      runtime: Some(runtime),
      ..Self::default()
    }
  }

  /// How many threads wait for a call.
  pub fn ready(&self) -> usize {
    self.idle + self.spinning
  }

  /// Whether no slot can take a call now or soon.
  pub fn all_are_stuck(&self) -> bool {
    self.usable_slots() == 0
  }

  /// How many slots can take calls now or soon.
  pub fn usable_slots(&self) -> usize {
    let is_usable = |slot: &&Arc<Slot>| !slot.is_stuck.load(Ordering::Relaxed);
    self.slots.iter().filter(is_usable).count()
  }

  /// Makes the watchdog try again to abandon the threads of stuck slots. Called when a thread may have
  /// become free.
  pub fn reconsider_stuck_slots(&self) {
    let now = sync::now();
    for slot in &self.slots {
      if !slot.is_stuck.load(Ordering::Relaxed) {
        continue;
      }
      if let Some(in_flight) = &mut slot.lock().in_flight {
        in_flight.abandon_at = Some(now);
        watchdog::schedule(now);
      }
    }
  }

  /// Whether to spin for the next call: the last calls came one after the other, and quickly.
  fn is_spinning_due(&mut self) -> bool {
    let is_fast = |wait| wait < FAST_WAIT;
    self.alone >= MIN_ALONE_CALLS
      && self.last_wait.is_some_and(is_fast)
      && self.spin_backoff.is_due()
  }
}

impl WorkerPool {
  /// If the last slot is gone and the last call has ended, frees the source of instances and returns
  /// the callbacks to run; otherwise returns none.
  pub fn closed_callbacks(&self, queue: &mut CallQueue) -> Vec<Box<dyn FnOnce() + Send>> {
    let is_over = queue.is_closed && queue.slots.is_empty();
    if !is_over || self.claimed.load(Ordering::Relaxed) > 0 {
      return Vec::new();
    }
    queue.runtime = None;
    std::mem::take(&mut queue.on_closed)
  }

  /// Whether the plugin is closed and no call is queued.
  pub fn is_drained(&self) -> bool {
    let queue = self.lock();
    queue.is_closed && queue.waiting.is_empty()
  }

  /// Waits for a call and passes it to `accept` under the queue's lock. Returns what `accept` returns,
  /// or `None` if the queue is closed and empty.
  pub fn take<T>(&self, accept: impl FnOnce(&mut CallQueue, Call) -> Option<T>) -> Option<T> {
    let mut queue = self.lock();
    loop {
      if let Some(call) = queue.waiting.pop_front() {
        let another_is_needed = queue.idle > 0 && !queue.waiting.is_empty();
        let ends_burst = queue.waiting.ends_burst();
        let accepted = accept(&mut queue, call);
        drop(queue);
        if ends_burst {
          trim::schedule();
        }
        if another_is_needed {
          self.changed.notify_one();
        }
        return accepted;
      }
      if queue.is_closed {
        return None;
      }
      let since = sync::now();
      let is_due = queue.is_spinning_due();
      queue = match is_due.then(Spinner::new).flatten() {
        Some(spinner) => self.spin(queue, spinner),
        None => self.sleep(queue),
      };
      queue.last_wait = Some(sync::now() - since);
    }
  }

  fn sleep<'a>(&self, mut queue: MutexGuard<'a, CallQueue>) -> MutexGuard<'a, CallQueue> {
    queue.idle += 1;
    let wait = self.changed.wait(queue);
    queue = wait.unwrap_or_else(PoisonError::into_inner);
    queue.idle -= 1;
    queue
  }

  fn spin<'a>(
    &'a self,
    mut queue: MutexGuard<'a, CallQueue>,
    spinner: Spinner,
  ) -> MutexGuard<'a, CallQueue> {
    queue.spinning += 1;
    self.has_changed.clear();
    drop(queue);
    let has_paid = spinner.spin_wait(|| self.has_changed.is_set());
    drop(spinner);
    let mut queue = self.lock();
    queue.spinning -= 1;
    queue.spin_backoff.learn(has_paid);
    queue
  }
}
