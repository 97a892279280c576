//! No event is lost between threads that add events and JavaScript's thread.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use crate::event_queue::EventQueue;
use crate::scenario::{any, check, pause};
use crate::sync::{Condvar, Mutex, thread};

/// An event loop: remembers wake-ups until they are processed.
#[derive(Default)]
struct EventLoop {
  wake_ups: Mutex<usize>,
  woken: Condvar,
}

impl EventLoop {
  fn wake(&self) {
    *self.wake_ups.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    self.woken.notify_all();
  }

  fn sleep(&self) {
    let wake_ups = self.wake_ups.lock().unwrap_or_else(PoisonError::into_inner);
    let woken = self.woken.wait_while(wake_ups, |wake_ups| *wake_ups == 0);
    *woken.unwrap_or_else(PoisonError::into_inner) -= 1;
  }
}

#[test]
fn no_event_is_lost_on_its_way_to_the_javascript_thread() {
  const EACH: usize = 3;

  check(|| {
    let queue = Arc::new(EventQueue::new());
    let event_loop = Arc::new(EventLoop::default());
    for producer in 0..2 {
      let (queue, event_loop) = (Arc::clone(&queue), Arc::clone(&event_loop));
      thread::spawn(move || {
        for number in 0..EACH {
          pause();
          if queue.push((producer, number)) {
            event_loop.wake();
          }
        }
      });
    }
    let mut next = [0; 2];
    let mut events = VecDeque::new();
    while next != [EACH; 2] {
      match any(&["sleep", "spin", "wait", "be busy"]) {
        "sleep" => event_loop.sleep(),
        "spin" if !queue.spin_wait() => continue,
        "spin" => {}
        "be busy" => {
          queue.stay_attentive();
          pause();
        }
        // JavaScript, too, must not wait here for an event that it has already taken.
        _ => queue.wait(),
      }
      queue.take_all(&mut events);
      for (producer, number) in events.drain(..) {
        assert_eq!(number, next[producer], "an event overtook another");
        next[producer] += 1;
      }
    }
  });
}
