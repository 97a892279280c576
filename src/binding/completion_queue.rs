//! The queue from worker threads to a JavaScript thread: results of calls, host calls and log messages, in
//! order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use napi::bindgen_prelude::{Array, ToNapiValue};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Status};

use super::event_queue::EventQueue;
use super::host_call::HostCall;
use crate::Result;
use crate::plugin::{CallOutput, Results, WeakWorkers};

/// An event for JavaScript.
pub enum Event {
  /// The job with this number has ended.
  Ended(u32, Result<JobResult>),
  /// A guest calls a host function in JavaScript.
  HostCall(HostCall),
  /// A guest has logged a message.
  Log(LogMessage),
}

/// The result of a call, or of another job that JavaScript awaits.
pub enum JobResult {
  /// A call's output.
  Output(CallOutput),
  /// A JavaScript value.
  Value(AppendValue),
}

/// Creates a value and appends it to an array, on the JavaScript thread.
type AppendValue = Box<dyn FnOnce(&Env, &mut Array<'_>) -> napi::Result<()> + Send>;

impl JobResult {
  /// A result without output.
  pub const EMPTY: Self = Self::Output(CallOutput {
    bytes: Vec::new(),
    is_set: false,
  });

  /// A value that can be converted without access to the JavaScript thread.
  pub fn value(value: impl ToNapiValue + Send + 'static) -> Self {
    Self::Value(Box::new(|_, values| values.insert(value)))
  }
}

/// A log message that JavaScript has not read yet.
pub struct LogMessage {
  /// The number of the call that logged it.
  pub call: Option<u64>,
  /// The encoded message, see `protocol.rs`.
  pub bytes: Vec<u8>,
  /// Counts its bytes until it is read.
  pub unread: UnreadBytes,
}

/// Adds a number of bytes to a sum until it is dropped.
pub struct UnreadBytes {
  bytes: usize,
  sum: Arc<AtomicUsize>,
}

impl UnreadBytes {
  /// Adds `bytes` to `sum`.
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

/// Calls a JavaScript function without arguments. Weak, so that it does not keep the process alive by itself.
pub type Wake = ThreadsafeFunction<(), (), (), Status, false, true>;

/// The events that one JavaScript thread has not taken yet, and the function that wakes it up.
pub struct CompletionQueue {
  /// The pending events.
  pub events: EventQueue<Event>,
  /// Wakes up the event loop.
  pub wake: Wake,
  plugins: Mutex<ThreadPlugins>,
}

/// The plugins that a JavaScript thread has opened.
#[derive(Default)]
struct ThreadPlugins {
  /// Workers of plugins that are open or opening, and some of closed ones.
  workers: Vec<WeakWorkers>,
  has_ended: bool,
}

impl CompletionQueue {
  /// A queue that calls `wake` when an event is pushed while it is empty.
  pub fn new(wake: Wake) -> Self {
    Self {
      events: EventQueue::new(),
      wake,
      plugins: Mutex::default(),
    }
  }

  /// Called when the JavaScript thread has ended: stops its plugins, also those that are still opening, and
  /// drops all results.
  pub fn end(&self) {
    let mut plugins = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
    plugins.has_ended = true;
    let workers = std::mem::take(&mut plugins.workers);
    drop(plugins);
    workers.iter().for_each(WeakWorkers::abort);
    self.events.end();
  }

  /// Pushes the result of the job `number`. Callable from any thread.
  pub fn push_result(&self, number: u32, result: Result<JobResult>) {
    self.push(Event::Ended(number, result));
  }

  /// Pushes an event. Callable from any thread.
  pub fn push(&self, event: Event) {
    if self.events.push(event) {
      // Fails only during the environment's teardown, when nothing awaits the event.
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
    // JavaScript numbers calls with 32 bits.
    self.push_result(number as u32, result.map(JobResult::Output));
  }
}
