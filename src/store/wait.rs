//! Blocking waits of a store, for another machine or thread.
//!
//! On a guest's thread a wait ends when the guest's call does, with [`Code::Canceled`]. A change that was
//! already under way may still be made. Other threads wait until it is done.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::interruption::Interruption;
use crate::{Code, Error, Result};

/// How often a waiting thread checks whether its call has been canceled.
const POLL: Duration = Duration::from_millis(5);

/// Runs a future to completion, or until the call is canceled.
pub fn block_on<T>(runtime: &Runtime, future: impl Future<Output = Result<T>>) -> Result<T> {
  match Interruption::current() {
    None => runtime.block_on(future),
    Some(interruption) => interruption
      .block_on(runtime, future)
      .unwrap_or_else(|| Err(canceled())),
  }
}

/// Waits for another thread's reply; `None` if that thread has ended.
pub fn receive<T>(replies: &Receiver<T>) -> Result<Option<T>> {
  let Some(interruption) = Interruption::current() else {
    return Ok(replies.recv().ok());
  };
  loop {
    match replies.recv_timeout(POLL) {
      Ok(reply) => return Ok(Some(reply)),
      Err(RecvTimeoutError::Disconnected) => return Ok(None),
      Err(RecvTimeoutError::Timeout) if interruption.is_canceled() => return Err(canceled()),
      Err(RecvTimeoutError::Timeout) => {}
    }
  }
}

/// Waits while `condition` holds, or until the call is canceled.
pub fn wait_while<'a, T>(
  changed: &Condvar,
  mut guard: MutexGuard<'a, T>,
  mut condition: impl FnMut(&mut T) -> bool,
) -> Result<MutexGuard<'a, T>> {
  let Some(interruption) = Interruption::current() else {
    let waited = changed.wait_while(guard, condition);
    return Ok(waited.unwrap_or_else(PoisonError::into_inner));
  };
  while condition(&mut guard) {
    if interruption.is_canceled() {
      return Err(canceled());
    }
    let waited = changed.wait_timeout(guard, POLL);
    (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
  }
  Ok(guard)
}

/// Locks a mutex that another thread may hold while it waits for its store.
pub fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
  let Some(interruption) = Interruption::current() else {
    return Ok(mutex.lock().unwrap_or_else(PoisonError::into_inner));
  };
  loop {
    match mutex.try_lock() {
      Ok(guard) => return Ok(guard),
      Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
      Err(TryLockError::WouldBlock) if interruption.is_canceled() => return Err(canceled()),
      Err(TryLockError::WouldBlock) => thread::sleep(POLL),
    }
  }
}

fn canceled() -> Error {
  Error::new(
    Code::Canceled,
    "the call ended while it waited for its store; its change may have been made all the same",
  )
}

#[cfg(test)]
mod tests {
  use std::sync::Arc;
  use std::sync::mpsc::sync_channel;

  use tokio::runtime::Builder;

  use super::*;

  /// Checks that `wait`, on a guest's thread, fails when the guest's call is canceled.
  fn assert_ends_when_canceled(wait: impl FnOnce() -> Result<()> + Send) {
    let interruption = Arc::<Interruption>::default();
    thread::scope(|scope| {
      let guest = scope.spawn(|| {
        let _current = interruption.enter();
        wait()
      });
      thread::sleep(Duration::from_millis(20));
      assert!(!guest.is_finished());
      interruption.cancel();
      let waited = guest.join().unwrap();
      assert_eq!(waited.map_err(|error| error.code), Err(Code::Canceled));
    });
  }

  #[test]
  fn every_kind_of_wait_ends_with_the_call() {
    let runtime = Builder::new_current_thread().build().unwrap();
    assert_ends_when_canceled(|| block_on(&runtime, std::future::pending()));
    let (_sender, receiver) = sync_channel::<()>(1);
    assert_ends_when_canceled(move || receive(&receiver).map(drop));
    let (mutex, condvar) = (Mutex::new(()), Condvar::new());
    assert_ends_when_canceled(|| wait_while(&condvar, mutex.lock().unwrap(), |()| true).map(drop));
    let _held = mutex.lock().unwrap();
    assert_ends_when_canceled(|| lock(&mutex).map(drop));
  }

  #[test]
  fn a_result_that_is_ready_is_returned_and_a_canceled_call_does_not_wait() -> Result<()> {
    let runtime = Builder::new_current_thread().build().unwrap();
    let interruption = Arc::<Interruption>::default();
    let current = interruption.enter();
    assert_eq!(block_on(&runtime, async { Ok(1) })?, 1);
    let (sender, receiver) = sync_channel(1);
    sender.send(2).unwrap();
    assert_eq!(receive(&receiver)?, Some(2));
    drop(sender);
    assert_eq!(receive(&receiver)?, None);
    let mutex = Mutex::new(3);
    assert_eq!(*lock(&mutex)?, 3);
    interruption.cancel();
    assert!(block_on(&runtime, std::future::pending::<Result<()>>()).is_err());
    drop(current);
    assert!(Interruption::current().is_none());
    Ok(())
  }
}
