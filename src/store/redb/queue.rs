//! What waits for the writer.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::operation::Operation;
use crate::store::wait;
use crate::{Code, Error, Result};

/// How many bytes may wait. Who has more waits until there is room; one that is larger by itself waits for
/// all others.
const MAX_WAITING: usize = 64 << 20;

/// How many operations, and about how many bytes, go into one transaction: so that those that are in it
/// do not wait for too many others.
const MAX_GROUP: usize = 1024;
const MAX_GROUP_BYTES: usize = 16 << 20;

/// An operation, and where the answer goes.
pub struct QueuedOperation {
  pub operation: Operation,
  pub answer: SyncSender<Result<i64>>,
}

/// What the writer is to do next.
pub enum Next {
  /// To do these.
  Group(Vec<QueuedOperation>),
  /// To see what else is due: the time is over.
  Due,
  /// To end: nothing waits, and nothing will.
  End,
}

#[derive(Default)]
struct QueueState {
  waiting: VecDeque<QueuedOperation>,
  bytes: usize,
  is_closed: bool,
  /// Why there is nobody who would do anything.
  failure: Option<Error>,
}

/// Operations that wait, in their order.
#[derive(Default)]
pub struct Queue {
  state: Mutex<QueueState>,
  added: Condvar,
  taken: Condvar,
}

impl Queue {
  fn lock(&self) -> MutexGuard<'_, QueueState> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Adds an operation; its answer can be received. Waits for room.
  pub fn add(&self, operation: Operation) -> Result<Receiver<Result<i64>>> {
    let (answer, receiver) = sync_channel(1);
    let bytes = operation.bytes();
    let has_no_room = |state: &mut QueueState| {
      !state.is_closed && !state.waiting.is_empty() && state.bytes + bytes > MAX_WAITING
    };
    let mut state = wait::wait_while(&self.taken, self.lock(), has_no_room)?;
    if let Some(error) = &state.failure {
      return Err(error.clone());
    }
    if state.is_closed {
      return Err(Error::new(Code::Closed, "the store is closed"));
    }
    state.bytes += bytes;
    state
      .waiting
      .push_back(QueuedOperation { operation, answer });
    drop(state);
    self.added.notify_one();
    Ok(receiver)
  }

  /// Takes what waits, or waits for it for as long as that.
  pub fn take(&self, longest: Duration) -> Next {
    let is_idle = |state: &mut QueueState| state.waiting.is_empty() && !state.is_closed;
    let (mut state, _) = self
      .added
      .wait_timeout_while(self.lock(), longest, is_idle)
      .unwrap_or_else(PoisonError::into_inner);
    let mut group = Vec::new();
    let mut bytes = 0;
    while group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES {
      let Some(next) = state.waiting.pop_front() else {
        break;
      };
      bytes += next.operation.bytes();
      group.push(next);
    }
    state.bytes = state.bytes.saturating_sub(bytes);
    match (group.is_empty(), state.is_closed) {
      (true, true) => return Next::End,
      (true, false) => return Next::Due,
      (false, _) => {}
    }
    drop(state);
    self.taken.notify_all();
    Next::Group(group)
  }

  /// Answers what waits, and what comes, with this error.
  pub fn fail(&self, error: &Error) {
    let mut state = self.lock();
    state.failure = Some(error.clone());
    state.is_closed = true;
    let waiting = std::mem::take(&mut state.waiting);
    drop(state);
    self.taken.notify_all();
    for waiting in waiting {
      drop(waiting.answer.try_send(Err(error.clone())));
    }
  }

  /// Takes no more operations. Those that wait are still done.
  pub fn close(&self) {
    self.lock().is_closed = true;
    self.added.notify_all();
    self.taken.notify_all();
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  const SHORT: Duration = Duration::from_millis(1);

  fn set(bytes: usize) -> Operation {
    Operation::Set {
      entries: vec![(String::new(), vec![0; bytes].into())],
      lifetime: None,
    }
  }

  fn take(queue: &Queue) -> usize {
    match queue.take(SHORT) {
      Next::Group(group) => group.len(),
      Next::Due | Next::End => 0,
    }
  }

  #[test]
  fn what_waits_is_taken_together_in_groups_of_bounded_size() -> Result<()> {
    let queue = Queue::default();
    for _ in 0..MAX_GROUP + 5 {
      queue.add(set(1))?;
    }
    assert_eq!(
      [take(&queue), take(&queue), take(&queue)],
      [MAX_GROUP, 5, 0]
    );
    for _ in 0..3 {
      queue.add(set(MAX_GROUP_BYTES / 2))?;
    }
    assert_eq!([take(&queue), take(&queue)], [2, 1]);
    Ok(())
  }

  #[test]
  fn who_would_exceed_the_bound_waits_for_room_unless_he_is_alone() -> Result<()> {
    let queue = Queue::default();
    queue.add(set(MAX_WAITING + 1))?;
    std::thread::scope(|scope| {
      let second = scope.spawn(|| queue.add(set(1)).map(drop));
      std::thread::sleep(Duration::from_millis(20));
      assert_eq!(take(&queue), 1);
      assert_eq!(second.join().unwrap(), Ok(()));
    });
    assert_eq!(take(&queue), 1);
    Ok(())
  }

  #[test]
  fn a_closed_queue_ends_after_what_waits_and_takes_no_more() -> Result<()> {
    let queue = Queue::default();
    queue.add(set(1))?;
    queue.close();
    let refused = queue.add(set(1)).map(drop).map_err(|error| error.code);
    assert_eq!(refused, Err(Code::Closed));
    assert_eq!(take(&queue), 1);
    assert!(matches!(queue.take(SHORT), Next::End));
    Ok(())
  }
}
