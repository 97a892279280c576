//! The writer's queue.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::operation::Operation;
use crate::store::wait;
use crate::{Code, Error, Result};

/// The queue's size limit in bytes; `add` blocks while the queue is full. An operation that alone exceeds the
/// limit waits until the queue is empty.
const MAX_QUEUED_BYTES: usize = 64 << 20;

/// The largest number of operations, and approximately of bytes, in one transaction, so that operations do
/// not wait for too many others.
const MAX_GROUP: usize = 1024;
const MAX_GROUP_BYTES: usize = 16 << 20;

/// An operation and the sender for its result.
pub struct QueuedOperation {
  pub operation: Operation,
  pub reply: SyncSender<Result<i64>>,
}

/// What the writer does next.
pub enum Next {
  /// Perform these operations.
  Group(Vec<QueuedOperation>),
  /// The wait timed out: check for expired keys.
  Timeout,
  /// Stop: the queue is closed and empty.
  Closed,
}

#[derive(Default)]
struct OperationQueueState {
  queued: VecDeque<QueuedOperation>,
  bytes: usize,
  is_closed: bool,
  /// Why the writer has failed.
  failure: Option<Error>,
}

/// A bounded queue of operations.
#[derive(Default)]
pub struct OperationQueue {
  state: Mutex<OperationQueueState>,
  added: Condvar,
  taken: Condvar,
}

impl OperationQueue {
  fn lock(&self) -> MutexGuard<'_, OperationQueueState> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Queues an operation, and returns the receiver for its result. Blocks while the queue is full.
  pub fn add(&self, operation: Operation) -> Result<Receiver<Result<i64>>> {
    let (reply, receiver) = sync_channel(1);
    let bytes = operation.bytes();
    let is_full = |state: &mut OperationQueueState| {
      !state.is_closed && !state.queued.is_empty() && state.bytes + bytes > MAX_QUEUED_BYTES
    };
    let mut state = wait::wait_while(&self.taken, self.lock(), is_full)?;
    if let Some(error) = &state.failure {
      return Err(error.clone());
    }
    if state.is_closed {
      return Err(Error::new(Code::Closed, "the store is closed"));
    }
    state.bytes += bytes;
    state.queued.push_back(QueuedOperation { operation, reply });
    drop(state);
    self.added.notify_one();
    Ok(receiver)
  }

  /// Takes a group of operations. Waits up to `max_wait` for the first.
  pub fn take(&self, max_wait: Duration) -> Next {
    let is_idle = |state: &mut OperationQueueState| state.queued.is_empty() && !state.is_closed;
    let (mut state, _) = self
      .added
      .wait_timeout_while(self.lock(), max_wait, is_idle)
      .unwrap_or_else(PoisonError::into_inner);
    let mut group = Vec::new();
    let mut bytes = 0;
    while group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES {
      let Some(next) = state.queued.pop_front() else {
        break;
      };
      bytes += next.operation.bytes();
      group.push(next);
    }
    state.bytes = state.bytes.saturating_sub(bytes);
    match (group.is_empty(), state.is_closed) {
      (true, true) => return Next::Closed,
      (true, false) => return Next::Timeout,
      (false, _) => {}
    }
    drop(state);
    self.taken.notify_all();
    Next::Group(group)
  }

  /// Fails all queued and all future operations with `error`.
  pub fn fail(&self, error: &Error) {
    let mut state = self.lock();
    state.failure = Some(error.clone());
    state.is_closed = true;
    let queued = std::mem::take(&mut state.queued);
    drop(state);
    self.taken.notify_all();
    for operation in queued {
      drop(operation.reply.try_send(Err(error.clone())));
    }
  }

  /// Refuses further operations. Queued ones are still performed.
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

  fn take(queue: &OperationQueue) -> usize {
    match queue.take(SHORT) {
      Next::Group(group) => group.len(),
      Next::Timeout | Next::Closed => 0,
    }
  }

  #[test]
  fn queued_operations_are_taken_in_groups_of_bounded_size() -> Result<()> {
    let queue = OperationQueue::default();
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
  fn an_operation_that_exceeds_the_limit_waits_unless_the_queue_is_empty() -> Result<()> {
    let queue = OperationQueue::default();
    queue.add(set(MAX_QUEUED_BYTES + 1))?;
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
  fn a_closed_queue_delivers_queued_operations_and_refuses_others() -> Result<()> {
    let queue = OperationQueue::default();
    queue.add(set(1))?;
    queue.close();
    let refused = queue.add(set(1)).map(drop).map_err(|error| error.code);
    assert_eq!(refused, Err(Code::Closed));
    assert_eq!(take(&queue), 1);
    assert!(matches!(queue.take(SHORT), Next::Closed));
    Ok(())
  }
}
