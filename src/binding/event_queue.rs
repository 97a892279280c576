//! How events get to the JavaScript thread, which sleeps in its event loop, spins or waits.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::plugin::spin;
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard};

/// How long the JavaScript thread spins for the result of its only call before it goes on.
const SPIN: Duration = Duration::from_micros(20);

/// What one JavaScript thread has not seen yet.
pub struct EventQueue<E> {
  /// In the order in which they happened. Whoever adds the first wakes the event loop, unless the JavaScript
  /// thread is waiting.
  events: Mutex<VecDeque<E>>,
  /// Whether the JavaScript thread is in [`spin_wait`](Self::spin_wait) or [`wait`](Self::wait).
  is_awaited: AtomicBool,
  /// What it spins on there: whether any event has been added since.
  has_any: spin::Flag,
  /// Signalled, while the JavaScript thread waits, for each event.
  added: Condvar,
}

impl<E> EventQueue<E> {
  /// An empty queue.
  pub fn new() -> Self {
    Self {
      events: Mutex::default(),
      is_awaited: AtomicBool::new(false),
      has_any: spin::Flag::default(),
      added: Condvar::new(),
    }
  }

  fn lock(&self) -> MutexGuard<'_, VecDeque<E>> {
    self.events.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Adds an event; whether the event loop is to be woken now. Any thread.
  #[must_use]
  pub fn push(&self, event: E) -> bool {
    let mut events = self.lock();
    events.push_back(event);
    let is_awaited = self.is_awaited.load(Ordering::Relaxed);
    let must_wake = events.len() == 1 && !is_awaited;
    drop(events);
    self.has_any.set();
    if is_awaited {
      // A system call only if somebody sleeps, in `wait`.
      self.added.notify_one();
    }
    must_wake
  }

  /// Spins for a moment until there is an event; whether there is one. Then it must be taken: nobody is
  /// woken for it. JavaScript thread only, which does nothing else meanwhile.
  pub fn spin_wait(&self) -> bool {
    self.has_any.clear();
    self.is_awaited.store(true, Ordering::Relaxed);
    spin::until(SPIN, || self.has_any.is_set());
    // Under the lock: whoever adds an event from here on wakes the event loop.
    let events = self.lock();
    self.is_awaited.store(false, Ordering::Relaxed);
    !events.is_empty()
  }

  /// Waits until there is an event, however long that takes. As [`spin_wait`](Self::spin_wait) otherwise.
  pub fn wait(&self) {
    if self.spin_wait() {
      return;
    }
    let mut events = self.lock();
    self.is_awaited.store(true, Ordering::Relaxed);
    while events.is_empty() {
      events = self
        .added
        .wait(events)
        .unwrap_or_else(PoisonError::into_inner);
    }
    self.is_awaited.store(false, Ordering::Relaxed);
  }

  /// Moves all events into `events`, which is empty; its memory is used for the next.
  pub fn take_all(&self, events: &mut VecDeque<E>) {
    std::mem::swap(&mut *self.lock(), events);
  }
}
