//! Delivers events to a JavaScript thread that sleeps in its event loop, spins or waits.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use crate::plugin::spin;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// How long the JavaScript thread spins for the result of its only call before it continues.
const SPIN: Duration = Duration::from_micros(20);

/// The events that one JavaScript thread has not taken yet.
pub struct EventQueue<E> {
  state: Mutex<EventQueueState<E>>,
  /// Set on each push; the JavaScript thread clears it and spins on it.
  has_any: spin::Flag,
  /// Notified for each event while the JavaScript thread sleeps in [`wait`](Self::wait).
  added: Condvar,
}

struct EventQueueState<E> {
  /// In order of occurrence.
  events: VecDeque<E>,
  consumer: Consumer,
  /// Whether the JavaScript thread has ended, so events are dropped.
  has_ended: bool,
}

/// How the JavaScript thread learns of new events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Consumer {
  /// It returns to its event loop: the first event must wake it up.
  EventLoop,
  /// It takes events soon without being woken up.
  Attentive,
  /// It sleeps in [`wait`](EventQueue::wait).
  Asleep,
}

impl<E> EventQueue<E> {
  /// An empty queue.
  pub fn new() -> Self {
    Self {
      state: Mutex::new(EventQueueState {
        events: VecDeque::new(),
        consumer: Consumer::EventLoop,
        has_ended: false,
      }),
      has_any: spin::Flag::default(),
      added: Condvar::new(),
    }
  }

  fn lock(&self) -> MutexGuard<'_, EventQueueState<E>> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Pushes an event; returns whether the caller must wake up the event loop. Callable from any thread.
  #[must_use]
  pub fn push(&self, event: E) -> bool {
    let mut state = self.lock();
    if state.has_ended {
      // Dropping an event may do a lot of work; do it outside the lock.
      drop(state);
      drop(event);
      return false;
    }
    state.events.push_back(event);
    let is_first = state.events.len() == 1;
    let consumer = state.consumer;
    drop(state);
    self.has_any.set();
    // Notifying costs a system call even if no thread sleeps.
    if consumer == Consumer::Asleep {
      self.added.notify_one();
    }
    is_first && consumer == Consumer::EventLoop
  }

  /// Spins briefly until there is an event; returns whether there is one. The caller must then take it, as it
  /// causes no wake-up. JavaScript thread only; it does nothing else meanwhile.
  pub fn spin_wait(&self) -> bool {
    self.has_any.clear();
    let mut state = self.lock();
    if state.events.is_empty() {
      state.consumer = Consumer::Attentive;
      drop(state);
      spin::until(SPIN, || self.has_any.is_set());
      state = self.lock();
    }
    // From here on a push wakes up the event loop.
    state.consumer = Consumer::EventLoop;
    !state.events.is_empty()
  }

  /// Blocks until there is an event, which the caller must take, as with [`spin_wait`](Self::spin_wait).
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

  /// Suppresses wake-ups until events are taken the next time, which must be soon.
  pub fn stay_attentive(&self) {
    self.lock().consumer = Consumer::Attentive;
  }

  /// Drops all events, now and in the future. Events may own a reference to this queue, which would keep it
  /// alive forever.
  pub fn end(&self) {
    let mut state = self.lock();
    state.has_ended = true;
    let events = std::mem::take(&mut state.events);
    drop(state);
    drop(events);
  }

  /// Swaps all events into `events`, which must be empty, so that its memory is reused.
  pub fn take_all(&self, events: &mut VecDeque<E>) {
    let mut state = self.lock();
    state.consumer = Consumer::EventLoop;
    std::mem::swap(&mut state.events, events);
  }
}
