//! Waiting for another machine or thread, on behalf of a store.
//!
//! On the thread of a guest the waiting ends when the guest's call does, with [`Code::Canceled`]. A change
//! that was on its way may be made all the same. Other threads wait to the end.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::interruption::Interruption;
use crate::{Code, Error, Result};

/// How soon a thread that waits for another thread sees that its call has ended.
const POLL: Duration = Duration::from_millis(5);

/// Runs a future to its end.
pub fn block_on<T>(runtime: &Runtime, future: impl Future<Output = Result<T>>) -> Result<T> {
  match Interruption::current() {
    None => runtime.block_on(future),
    Some(interruption) => interruption
      .block_on(runtime, future)
      .unwrap_or_else(|| Err(canceled())),
  }
}

/// Waits for another thread's answer; `None` if that thread has gone.
pub fn receive<T>(answer: &Receiver<T>) -> Result<Option<T>> {
  let Some(interruption) = Interruption::current() else {
    return Ok(answer.recv().ok());
  };
  loop {
    match answer.recv_timeout(POLL) {
      Ok(answer) => return Ok(Some(answer)),
      Err(RecvTimeoutError::Disconnected) => return Ok(None),
      Err(RecvTimeoutError::Timeout) if interruption.is_canceled() => return Err(canceled()),
      Err(RecvTimeoutError::Timeout) => {}
    }
  }
}

/// Waits while `condition` holds.
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

/// Locks what other threads lock for as long as a store makes them wait.
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

/// What an operation fails with whose call has ended.
fn canceled() -> Error {
  Error::new(
    Code::Canceled,
    "the call ended while it waited for its store; a change may have been made",
  )
}

#[cfg(test)]
mod tests {
  use std::sync::Arc;
  use std::sync::mpsc::sync_channel;

  use tokio::runtime::Builder;

  use super::*;

  /// Runs `wait` on the thread of a guest whose call ends meanwhile.
  fn ended(wait: impl FnOnce() -> Result<()> + Send) {
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
  fn all_waiting_ends_with_the_call() {
    let runtime = Builder::new_current_thread().build().unwrap();
    ended(|| block_on(&runtime, std::future::pending()));
    let (_sender, receiver) = sync_channel::<()>(1);
    ended(move || receive(&receiver).map(drop));
    let (mutex, condvar) = (Mutex::new(()), Condvar::new());
    ended(|| wait_while(&condvar, mutex.lock().unwrap(), |()| true).map(drop));
    let _held = mutex.lock().unwrap();
    ended(|| lock(&mutex).map(drop));
  }

  #[test]
  fn what_is_there_is_taken_and_a_call_that_has_ended_waits_for_nothing() -> Result<()> {
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
