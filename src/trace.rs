//! Records what a call does, for a caller that traces it: when it started and ended, the operations on its
//! store and its HTTP requests. Calls that nobody traces record nothing.

use std::cell::RefCell;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::{self, Mutex, MutexGuard};

/// How many operations of a call are recorded. Guests can make many more; those are only counted.
const MAX_OPERATIONS: usize = 128;

thread_local! {
  /// The trace of the call that this thread runs.
  static CURRENT: RefCell<Option<Arc<CallTrace>>> = const { RefCell::new(None) };
}

/// The record of one traced call. The caller and the worker thread share it.
pub struct CallTrace {
  queued: Instant,
  traceparent: Option<String>,
  records_operations: bool,
  progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
  started: Option<Instant>,
  ended: Option<Instant>,
  operations: Vec<Operation>,
  dropped: u32,
}

/// The record of a call so far.
#[derive(Debug, Default)]
pub struct Summary {
  /// The time that it waited for an instance.
  pub queued: Duration,
  /// The time that it ran; `None` if it never started.
  pub ran: Option<Duration>,
  /// Its first operations.
  pub operations: Vec<Operation>,
  /// The number of operations beyond those.
  pub dropped: u32,
}

/// An operation of a guest that has ended.
#[derive(Debug)]
pub struct Operation {
  /// When it started, after the call was queued.
  pub offset: Duration,
  /// The duration.
  pub duration: Duration,
  /// The operation itself.
  pub kind: OperationKind,
  /// The reason of a failure.
  pub error: Option<String>,
}

/// The kind of an operation.
#[derive(Debug)]
pub enum OperationKind {
  /// A host function that used the store.
  Store {
    /// The name of the host function.
    function: &'static str,
    /// The kind of store.
    system: &'static str,
  },
  /// An HTTP request, with its redirects.
  Http {
    /// The method.
    method: String,
    /// The URL, without credentials, query and fragment.
    url: String,
    /// The status of the response, if there was one.
    status: Option<u16>,
  },
}

impl CallTrace {
  /// The trace of a call that is being queued. Without `records_operations`, it only measures the call, and
  /// no HTTP request carries `traceparent`.
  pub fn new(traceparent: Option<String>, records_operations: bool) -> Self {
    Self {
      queued: sync::now(),
      traceparent,
      records_operations,
      progress: Mutex::default(),
    }
  }

  /// The header for the call's HTTP requests.
  pub fn traceparent(&self) -> Option<&str> {
    self.traceparent.as_deref()
  }

  /// The record of the call so far. The operations move to the caller.
  pub fn summary(&self) -> Summary {
    let now = sync::now();
    let mut progress = self.lock();
    let end = progress.ended.unwrap_or(now);
    let started = progress.started;
    Summary {
      queued: started
        .unwrap_or(now)
        .saturating_duration_since(self.queued),
      ran: started.map(|started| end.saturating_duration_since(started)),
      operations: std::mem::take(&mut progress.operations),
      dropped: progress.dropped,
    }
  }

  /// Starts an operation. It is recorded when [`OngoingOperation::end`] is called.
  pub fn begin(self: &Arc<Self>) -> OngoingOperation {
    OngoingOperation {
      trace: Arc::clone(self),
      started: sync::now(),
    }
  }

  fn lock(&self) -> MutexGuard<'_, Progress> {
    self.progress.lock().unwrap_or_else(PoisonError::into_inner)
  }
}

/// An operation that has not ended.
pub struct OngoingOperation {
  trace: Arc<CallTrace>,
  started: Instant,
}

impl OngoingOperation {
  /// Records the operation.
  pub fn end(self, kind: OperationKind, error: Option<String>) {
    let duration = sync::now().saturating_duration_since(self.started);
    let mut progress = self.trace.lock();
    if progress.operations.len() >= MAX_OPERATIONS {
      progress.dropped = progress.dropped.saturating_add(1);
      return;
    }
    progress.operations.push(Operation {
      offset: self.started.saturating_duration_since(self.trace.queued),
      duration,
      kind,
      error,
    });
  }
}

/// The trace of the call that this thread runs; `None` if nobody traces it.
pub fn current() -> Option<Arc<CallTrace>> {
  CURRENT.with_borrow(Option::clone)
}

/// Runs a call on this thread. Its operations are recorded in `trace`.
pub fn run<T>(trace: Option<Arc<CallTrace>>, call: impl FnOnce() -> T) -> T {
  let Some(trace) = trace else { return call() };
  trace.lock().started = Some(sync::now());
  if trace.records_operations {
    CURRENT.set(Some(Arc::clone(&trace)));
  }
  let _scope = TraceScope(trace);
  call()
}

/// Ends the run of a traced call, also if it panics.
struct TraceScope(Arc<CallTrace>);

impl Drop for TraceScope {
  fn drop(&mut self) {
    CURRENT.set(None);
    self.0.lock().ended = Some(sync::now());
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  const READ: fn() -> OperationKind = || OperationKind::Store {
    function: "hostStoreGet",
    system: "memory",
  };

  #[test]
  fn a_call_that_never_started_has_only_waited() {
    let summary = CallTrace::new(None, true).summary();
    assert_eq!((summary.ran, summary.operations.len()), (None, 0));
  }

  #[test]
  fn operations_beyond_the_limit_are_only_counted() {
    let trace = Arc::new(CallTrace::new(None, true));
    run(Some(Arc::clone(&trace)), || {
      for _ in 0..MAX_OPERATIONS + 2 {
        if let Some(trace) = current() {
          trace.begin().end(READ(), None);
        }
      }
    });
    let summary = trace.summary();
    assert_eq!(summary.operations.len(), MAX_OPERATIONS);
    assert_eq!(summary.dropped, 2);
    assert!(summary.ran.is_some() && current().is_none());
  }

  #[test]
  fn a_trace_that_only_measures_records_no_operations() {
    let trace = Arc::new(CallTrace::new(None, false));
    run(Some(Arc::clone(&trace)), || assert!(current().is_none()));
    assert!(trace.summary().ran.is_some());
  }

  #[test]
  fn a_call_that_panics_leaves_no_trace_behind() {
    let trace = Arc::new(CallTrace::new(None, true));
    let call = || run(Some(Arc::clone(&trace)), || std::panic::panic_any(()));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
    assert!(panicked.is_err() && current().is_none());
    assert!(trace.summary().ran.is_some());
  }
}
