//! Threads that spin lose no call, and return their permits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::plugin::compilation;
use crate::plugin::instance::export;
use crate::plugin::spin::Spinner;
use crate::plugin::workers::{Queued, WorkerLimits};
use crate::scenario::{Plugin, any, call, check, limits, pause};
use crate::sync::{AtomicUsize, thread};
use crate::violation;

/// Makes enough calls one after the other that the thread spins for the next one.
fn calls_alone(plugin: &Plugin, first: u64) -> u64 {
  let next = first + 10;
  for number in first..next {
    let mut alone = call(number, export::RETURN);
    alone.is_alone = true;
    plugin.push(alone);
    assert_eq!(plugin.wait(number), Ok(()));
  }
  next
}

#[test]
fn no_call_is_lost_to_a_thread_that_spins() {
  check(|| {
    let plugin = Plugin::start(
      WorkerLimits {
        is_eager: true,
        ..limits(any(&[1, 2]))
      },
      &[],
    )
    .unwrap();
    let next = calls_alone(&plugin, 0);
    pause();
    let last = next + any(&[1, 2, 3]);
    let mut is_asleep = false;
    for number in next..last {
      let mut next = call(number, any(&[export::RETURN, export::EXIT]));
      next.is_alone = any(&[false, true]);
      is_asleep |= plugin.workers.push(next) == Queued::Asleep;
    }
    if is_asleep {
      plugin.workers.wake();
    }
    for number in next..last {
      assert_eq!(plugin.wait(number), Ok(()));
    }
    plugin.close_and_wait();
  });
}

#[test]
fn a_close_ends_a_thread_that_spins() {
  check(|| {
    let plugin = Plugin::start(limits(1), &[]).unwrap();
    calls_alone(&plugin, 0);
    pause();
    plugin.close_and_wait();
  });
}

/// Threads that each try to acquire something: at most `most` of them have it at the same time.
fn at_most_at_once<T>(
  most: usize,
  threads: usize,
  acquire: fn() -> Option<T>,
  otherwise: &'static str,
) where
  T: 'static,
{
  let holders = Arc::new(AtomicUsize::new(0));
  let threads: Vec<_> = (0..threads)
    .map(|_| {
      let holders = Arc::clone(&holders);
      thread::spawn(move || {
        if let Some(acquired) = acquire() {
          if holders.fetch_add(1, Ordering::Relaxed) >= most {
            violation(otherwise);
          }
          holders.fetch_sub(1, Ordering::Relaxed);
          drop(acquired);
        }
      })
    })
    .collect();
  threads
    .into_iter()
    .for_each(|thread| thread.join().unwrap());
}

#[test]
fn fewer_threads_spin_than_there_are_cores() {
  check(|| {
    at_most_at_once(2, 4, Spinner::new, "more threads spin than may");
    // A failed attempt has not taken a permit.
    let places: Vec<_> = std::iter::from_fn(Spinner::new).collect();
    assert_eq!(places.len(), 2);
  });
}

#[test]
fn each_compilation_gets_a_permit() {
  check(|| {
    let permit = || Some(compilation::wait_for_permit());
    at_most_at_once(3, 5, permit, "more compilations run than there are cores");
  });
}
