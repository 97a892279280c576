//! What worker threads have for the JavaScript thread: results of calls, calls of its functions, and
//! messages for its loggers, in the order in which they happened.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use napi::bindgen_prelude::{Array, ToNapiValue};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Status};

use super::event_queue::EventQueue;
use super::host_call::HostCall;
use crate::Result;
use crate::plugin::{CallOutput, Results, WeakWorkers};

/// What JavaScript is told of.
pub enum Event {
  /// The job of this number has ended.
  Ended(u32, Result<JobResult>),
  /// A guest calls a function in JavaScript.
  HostCall(HostCall),
  /// A guest has a message for its logger.
  Log(LogMessage),
}

/// What comes of a call, or of something else that JavaScript waits for.
pub enum JobResult {
  /// An output.
  Output(CallOutput),
  /// A value of JavaScript.
  Value(AppendValue),
}

/// Appends a value to an array, on the JavaScript thread.
type AppendValue = Box<dyn FnOnce(&Env, &mut Array<'_>) -> napi::Result<()> + Send>;

impl JobResult {
  /// A result without output.
  pub const EMPTY: Self = Self::Output(CallOutput {
    bytes: Vec::new(),
    is_set: false,
  });

  /// A value that needs nothing of the JavaScript thread before it is converted.
  pub fn value(value: impl ToNapiValue + Send + 'static) -> Self {
    Self::Value(Box::new(|_, values| values.insert(value)))
  }
}

/// A message for a plugin's logger, that JavaScript has not read yet.
pub struct LogMessage {
  /// The plugin's call that it is part of.
  pub call: Option<u64>,
  /// What JavaScript reads.
  pub bytes: Vec<u8>,
  /// Counts it until it is read.
  pub unread: UnreadBytes,
}

/// A number of bytes that is part of a sum until this is dropped.
pub struct UnreadBytes {
  bytes: usize,
  sum: Arc<AtomicUsize>,
}

impl UnreadBytes {
  /// Adds to the sum.
  pub fn new(bytes: usize, sum: &Arc<AtomicUsize>) -> Self {
    sum.fetch_add(bytes, Ordering::Relaxed);
    Self {
      bytes,
      sum: Arc::clone(sum),
    }
  }
}

impl Drop for UnreadBytes {
  fn drop(&mut self) {
    self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
  }
}

/// Calls a JavaScript function without arguments; weak, so that it alone keeps no process alive.
pub type Wake = ThreadsafeFunction<(), (), (), Status, false, true>;

/// What one JavaScript thread has not seen yet, and what wakes it.
pub struct CompletionQueue {
  /// What the JavaScript thread takes from.
  pub events: EventQueue<Event>,
  /// Wakes the event loop.
  pub wake: Wake,
  plugins: Mutex<Plugins>,
}

/// The plugins of a JavaScript thread.
#[derive(Default)]
struct Plugins {
  /// Those that are open or being opened, and some that are not any more.
  workers: Vec<WeakWorkers>,
  has_ended: bool,
}

impl CompletionQueue {
  /// A queue that calls `wake` when it gets its first event.
  pub fn new(wake: Wake) -> Self {
    Self {
      events: EventQueue::new(),
      wake,
      plugins: Mutex::default(),
    }
  }

  /// Ends what the JavaScript thread has started, since the thread itself has ended: plugins stop, also those that
  /// are being opened, and results are dropped.
  pub fn end(&self) {
    let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
    plugins.has_ended = true;
    let workers = std::mem::take(&mut plugins.workers);
    drop(plugins);
    workers.iter().for_each(WeakWorkers::abort);
    self.events.end();
  }

  /// Adds what came of the job that JavaScript numbered `number`. Any thread.
  pub fn push_result(&self, number: u32, result: Result<JobResult>) {
    self.push(Event::Ended(number, result));
  }

  /// Adds an event. Any thread.
  pub fn push(&self, event: Event) {
    if self.events.push(event) {
      // Fails only when the environment is going away, and nobody waits any more.
      self.wake.call((), ThreadsafeFunctionCallMode::NonBlocking);
    }
  }
}

impl Results for CompletionQueue {
  fn starting(&self, workers: WeakWorkers) {
    let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
    if plugins.has_ended {
      drop(plugins);
      return workers.abort();
    }
    plugins.workers.retain(WeakWorkers::is_alive);
    plugins.workers.push(workers);
  }

  fn done(&self, number: u64, result: Result<CallOutput>) {
    // The numbers of calls are what JavaScript gave: 32 bits.
    self.push_result(number as u32, result.map(JobResult::Output));
  }
}
