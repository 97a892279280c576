//! The queue of calls, and how threads wait for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::super::instance::Runtime;
use super::super::spin::{SpinBackoff, Spinner};
use super::scaling::ScaleUp;
use super::slot::Slot;
use super::waiting::Waiting;
use super::{Call, WorkerPool};
use crate::sync::{self, MutexGuard};
use crate::{trim, watchdog};

/// How soon a call must have come for a thread to spin for the next. Longer than it looks: it includes
/// the time in which a thread that sleeps is woken.
const FAST: Duration = Duration::from_micros(300);

/// How many calls must have come one after the other for that.
const ALONE: u64 = 8;

/// What the queue's lock guards.
#[derive(Default)]
pub struct Queue {
  pub waiting: Waiting,
  /// How many threads sleep until there is a call. To wake one is a system call, which is not made for
  /// nobody.
  pub idle: usize,
  /// How many threads spin for a call.
  pub spinning: usize,
  /// Whether that has paid.
  spin_backoff: SpinBackoff,
  /// How many calls came when no thread was there to take them at once.
  pub waited: u64,
  /// How many calls in a row were alone.
  pub alone: u64,
  /// How long a thread waited for the last call that had to be waited for.
  last_wait: Option<Duration>,
  pub slots: Vec<Arc<Slot>>,
  /// Where instances come from; `None` once the plugin is closed and its last slot has gone. It holds
  /// the host functions, and with them the plugin's store.
  pub runtime: Option<Runtime>,
  /// `None` when no further instance may be started.
  pub scale_up: Option<ScaleUp>,
  /// How many threads are stuck in host calls and have been replaced.
  pub abandoned: usize,
  pub is_closed: bool,
  /// Run when the last slot has gone and the last call has ended.
  pub on_closed: Vec<Box<dyn FnOnce() + Send>>,
}

impl Queue {
  /// An empty queue, for instances from there.
  pub fn new(runtime: Runtime) -> Self {
    Self {
      runtime: Some(runtime),
      ..Self::default()
    }
  }

  /// How many threads wait for a call.
  pub fn ready(&self) -> usize {
    self.idle + self.spinning
  }

  /// Whether no slot can take a call, nor will soon.
  pub fn all_are_stuck(&self) -> bool {
    self.able() == 0
  }

  /// How many slots can take calls, or will soon.
  pub fn able(&self) -> usize {
    let is_able = |slot: &&Arc<Slot>| !slot.is_stuck.load(Ordering::Relaxed);
    self.slots.iter().filter(is_able).count()
  }

  /// Has the watchdog try again to abandon the threads of stuck slots, as something has changed.
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

  /// Whether to spin for the next call: calls have come one after the other lately, and fast.
  fn is_spinning_due(&mut self) -> bool {
    let is_fast = |wait| wait < FAST;
    self.alone >= ALONE && self.last_wait.is_some_and(is_fast) && self.spin_backoff.is_due()
  }
}

impl WorkerPool {
  /// What is to be run now that the last slot has gone and the last call has ended, and frees what
  /// instances are made from; nothing before that.
  pub fn closed_callbacks(&self, queue: &mut Queue) -> Vec<Box<dyn FnOnce() + Send>> {
    let is_over = queue.is_closed && queue.slots.is_empty();
    if !is_over || self.taken.load(Ordering::Relaxed) > 0 {
      return Vec::new();
    }
    queue.runtime = None;
    std::mem::take(&mut queue.on_closed)
  }

  /// Whether there is nothing to do any more.
  pub fn is_over(&self) -> bool {
    let queue = self.lock();
    queue.is_closed && queue.waiting.is_empty()
  }

  /// Waits for a call and hands it to `accept` under the queue's lock; what `accept` gives back is
  /// taken. `None` when the queue is closed and empty.
  pub fn take<T>(&self, accept: impl FnOnce(&mut Queue, Call) -> Option<T>) -> Option<T> {
    let mut queue = self.lock();
    loop {
      if let Some(call) = queue.waiting.pop_front() {
        let another_is_needed = queue.idle > 0 && !queue.waiting.is_empty();
        let ends_burst = queue.waiting.ends_burst();
        let accepted = accept(&mut queue, call);
        drop(queue);
        if ends_burst {
          trim::soon();
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

  fn sleep<'a>(&self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
    queue.idle += 1;
    let wait = self.changed.wait(queue);
    queue = wait.unwrap_or_else(PoisonError::into_inner);
    queue.idle -= 1;
    queue
  }

  fn spin<'a>(
    &'a self,
    mut queue: MutexGuard<'a, Queue>,
    spinner: Spinner,
  ) -> MutexGuard<'a, Queue> {
    queue.spinning += 1;
    self.has_news.clear();
    drop(queue);
    let has_paid = spinner.spin_wait(|| self.has_news.is_set());
    drop(spinner);
    let mut queue = self.lock();
    queue.spinning -= 1;
    queue.spin_backoff.learn(has_paid);
    queue
  }
}
