//! How events get to the JavaScript thread, which sleeps in its event loop, spins or waits.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use crate::plugin::spin;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How long the JavaScript thread spins for the result of its only call before it goes on.
const SPIN: Duration = Duration::from_micros(20);

/// What one JavaScript thread has not seen yet.
pub struct EventQueue<E> {
  state: Mutex<QueueState<E>>,
  /// What the JavaScript thread spins on: whether any event has been added since.
  has_any: spin::Flag,
  /// Signalled, while the JavaScript thread sleeps in [`wait`](Self::wait), for each event.
  added: Condvar,
}

struct QueueState<E> {
  /// In the order in which they happened.
  events: VecDeque<E>,
  consumer: Consumer,
  /// Whether the JavaScript thread is gone: events are dropped.
  has_ended: bool,
}

/// What the JavaScript thread does about events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Consumer {
  /// It returns to its event loop: whoever adds the first event wakes that.
  EventLoop,
  /// It takes events soon, without being woken.
  Attentive,
  /// It sleeps in [`wait`](EventQueue::wait).
  Asleep,
}

impl<E> EventQueue<E> {
  /// An empty queue.
  pub fn new() -> Self {
    Self {
      state: Mutex::new(QueueState {
        events: VecDeque::new(),
        consumer: Consumer::EventLoop,
        has_ended: false,
      }),
      has_any: spin::Flag::default(),
      added: Condvar::new(),
    }
  }

  fn lock(&self) -> MutexGuard<'_, QueueState<E>> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Adds an event; whether the event loop is to be woken now. Any thread.
  #[must_use]
  pub fn push(&self, event: E) -> bool {
    let mut state = self.lock();
    if state.has_ended {
      // What it owns may have much to do when it is dropped.
      drop(state);
      drop(event);
      return false;
    }
    state.events.push_back(event);
    let is_first = state.events.len() == 1;
    let consumer = state.consumer;
    drop(state);
    self.has_any.set();
    // A system call, whether anybody sleeps or not.
    if consumer == Consumer::Asleep {
      self.added.notify_one();
    }
    is_first && consumer == Consumer::EventLoop
  }

  /// Spins for a moment until there is an event; whether there is one. Then it must be taken: nobody is
  /// woken for it. JavaScript thread only, which does nothing else meanwhile.
  pub fn spin_wait(&self) -> bool {
    self.has_any.clear();
    let mut state = self.lock();
    if state.events.is_empty() {
      state.consumer = Consumer::Attentive;
      drop(state);
      spin::until(SPIN, || self.has_any.is_set());
      state = self.lock();
    }
    // Whoever adds an event from here on wakes the event loop.
    state.consumer = Consumer::EventLoop;
    !state.events.is_empty()
  }

  /// Waits until there is an event, however long that takes. As [`spin_wait`](Self::spin_wait) otherwise.
  pub fn wait(&self) {
    if self.spin_wait() {
      return;
    }
    let mut state = self.lock();
    state.consumer = Consumer::Asleep;
    while state.events.is_empty() {
      state = self
        .added
        .wait(state)
        .unwrap_or_else(PoisonError::into_inner);
    }
    state.consumer = Consumer::EventLoop;
  }

  /// Until events are taken the next time, which must be soon, nobody wakes the event loop for them.
  pub fn stay_attentive(&self) {
    self.lock().consumer = Consumer::Attentive;
  }

  /// Drops all events, from now on too. They may own what has this queue, and would keep it forever.
  pub fn end(&self) {
    let mut state = self.lock();
    state.has_ended = true;
    let events = std::mem::take(&mut state.events);
    drop(state);
    drop(events);
  }

  /// Moves all events into `events`, which is empty; its memory is used for the next.
  pub fn take_all(&self, events: &mut VecDeque<E>) {
    let mut state = self.lock();
    state.consumer = Consumer::EventLoop;
    std::mem::swap(&mut state.events, events);
  }
}
