//! The `Boundary` class: one per JavaScript thread.
//!
//! A Node-API conversion costs more than a short call. So inputs and results go through shared memory
//! (`protocol.rs`), many results at a time. The methods here are for everything less frequent.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use napi::Env;
use napi::bindgen_prelude::{
  Array, Either3, Function, Null, Uint8Array, Uint8ArraySlice, Uint32Array, Undefined,
};
use napi_derive::napi;

use super::completion_queue::CompletionQueue;
use super::host_call::Step;
use super::js_thread::{JsThreadState, offset_of};
use super::trace::TraceSummary;
use crate::host::{Answer, Bytes, HostFunctionError};

/// The boundary of one JavaScript thread.
#[napi]
pub struct Boundary {
  js_thread: Rc<JsThreadState>,
  /// Whether the queue's `wake` keeps the process alive.
  is_referenced: Cell<bool>,
}

#[napi]
impl Boundary {
  /// `settle` is called on this thread when results can be taken. The caller writes short inputs into
  /// `inbox`, and both sides write numbers into `header`. The caller must keep both private, including their
  /// buffers.
  #[napi(constructor, catch_unwind)]
  pub fn new(
    env: Env,
    settle: Function<'_, (), ()>,
    inbox: Uint8Array,
    header: Uint32Array,
  ) -> napi::Result<Self> {
    silence_panics();
    let wake = settle
      .build_threadsafe_function::<()>()
      .callee_handled::<false>()
      .weak::<true>()
      .build()?;
    let js_thread = JsThreadState::new(wake, inbox, header);
    // A worker thread may be terminated at any time, and this object may outlive it: events in flight keep
    // the queue alive.
    env.add_env_cleanup_hook(Arc::clone(&js_thread.queue), |queue| queue.end())?;
    Ok(Self {
      js_thread: Rc::new(js_thread),
      is_referenced: Cell::new(false),
    })
  }

  /// Returns the function that takes results, see [`JsThreadState::take`].
  ///
  /// It is a function and not a method, so that Node-API need not look up and check the receiver. Numbers go
  /// through the header because passing one costs more than writing it there.
  #[napi(
    catch_unwind,
    ts_return_type = "(shared: Uint8Array, outOfBand: unknown[]) => void"
  )]
  pub fn taker<'env>(
    &self,
    env: &'env Env,
  ) -> napi::Result<Function<'env, (Uint8Array, Array<'env>), ()>> {
    let js_thread = self.js_thread();
    env.create_function_from_closure("take", move |context| js_thread.take(&context))
  }

  /// Waits until a result can be taken. Blocks the event loop.
  #[napi(catch_unwind)]
  pub fn wait(&self) {
    self.js_thread.queue.events.wait();
  }

  /// Returns the function that replies to a host call as the header says, see [`JsThreadState::reply`]. It
  /// and the methods below return `false`, a negative number or `null` if the host call has ended: it was
  /// answered, or its guest was interrupted.
  #[napi(catch_unwind, ts_return_type = "() => number")]
  pub fn replier<'env>(&self, env: &'env Env) -> napi::Result<Function<'env, (), f64>> {
    let js_thread = self.js_thread();
    env.create_function_from_closure("reply", move |_| Ok(js_thread.reply()))
  }

  /// Traces the call that is started next with this number. Its HTTP requests carry `traceparent`. Without
  /// `records_operations`, the trace only measures the call.
  #[napi(catch_unwind)]
  pub fn start_trace(&self, call: u32, traceparent: Option<String>, records_operations: bool) {
    self
      .js_thread
      .start_trace(call, traceparent, records_operations);
  }

  /// Ends the trace of a call, and returns its record; `null` if the call is not traced.
  #[napi(catch_unwind)]
  pub fn end_trace(&self, call: u32) -> Option<TraceSummary> {
    self.js_thread.end_trace(call).map(TraceSummary::from)
  }

  /// Answers a host call with the offset of a new block with these bytes.
  #[napi(catch_unwind)]
  pub fn answer_with(&self, host_call: u32, bytes: Uint8ArraySlice<'_>) -> bool {
    let answer = Answer::Bytes(Bytes::from(&*bytes));
    self.js_thread.finish(host_call, Ok(Step::Answer(answer)))
  }

  /// Fails a host call, which fails the plugin's call with this message.
  #[napi(catch_unwind)]
  pub fn fail(&self, host_call: u32, message: String) -> bool {
    self
      .js_thread
      .finish(host_call, Err(HostFunctionError::new(message)))
  }

  /// Allocates a block with these bytes, and returns its offset; 0 if it does not fit, or has no bytes.
  #[napi(catch_unwind)]
  pub fn store(&self, host_call: u32, bytes: Uint8ArraySlice<'_>) -> f64 {
    offset_of(
      self
        .js_thread
        .request(host_call, Step::Store(Bytes::from(&*bytes))),
    )
  }

  /// Allocates a zeroed block, and returns its offset.
  #[napi(catch_unwind)]
  pub fn allocate(&self, host_call: u32, length: f64) -> f64 {
    offset_of(
      self
        .js_thread
        .request(host_call, Step::Allocate(length as u64)),
    )
  }

  /// The length of the block that starts at `offset`; 0 if none does.
  #[napi(catch_unwind)]
  pub fn length(&self, host_call: u32, offset: f64) -> f64 {
    let reply = self
      .js_thread
      .request(host_call, Step::Inspect(offset as u64));
    reply.map_or(-1.0, |reply| reply.length as f64)
  }

  /// A copy of the block that starts at `offset`; empty if none does.
  #[napi(catch_unwind)]
  pub fn read(&self, host_call: u32, offset: f64) -> Option<Uint8Array> {
    let reply = self
      .js_thread
      .request(host_call, Step::Inspect(offset as u64))?;
    Some(Uint8Array::new(
      reply.bytes.map(|bytes| bytes.to_vec()).unwrap_or_default(),
    ))
  }

  /// Sets the error of the plugin's call; an empty message clears it.
  #[napi(catch_unwind)]
  pub fn set_error(&self, host_call: u32, message: Uint8ArraySlice<'_>) -> bool {
    let step = Step::SetError(Bytes::from(&*message));
    self.js_thread.request(host_call, step).is_some()
  }

  /// The value of a variable; `undefined` if it is not set.
  #[napi(catch_unwind, ts_return_type = "Uint8Array | undefined | null")]
  pub fn get_variable(&self, host_call: u32, name: String) -> Either3<Uint8Array, Undefined, Null> {
    let channel = self.js_thread.channel(host_call);
    let vars = channel.as_ref().and_then(|channel| channel.vars());
    match vars.map(|vars| vars.get(&name)) {
      None => Either3::C(Null),
      Some(None) => Either3::B(()),
      Some(Some(value)) => Either3::A(Uint8Array::new(value.to_vec())),
    }
  }

  /// Sets a variable; returns the reason if it is refused.
  #[napi(catch_unwind, ts_return_type = "string | undefined | null")]
  pub fn set_variable(
    &self,
    host_call: u32,
    name: String,
    value: Uint8ArraySlice<'_>,
  ) -> Either3<String, Undefined, Null> {
    let channel = self.js_thread.channel(host_call);
    let vars = channel.as_ref().and_then(|channel| channel.vars());
    match vars.map(|vars| vars.set(&name, &value)) {
      None => Either3::C(Null),
      Some(Ok(())) => Either3::B(()),
      Some(Err(error)) => Either3::A(error.to_string()),
    }
  }

  /// Removes a variable.
  #[napi(catch_unwind)]
  pub fn delete_variable(&self, host_call: u32, name: String) -> bool {
    let channel = self.js_thread.channel(host_call);
    let vars = channel.as_ref().and_then(|channel| channel.vars());
    vars.map(|vars| vars.remove(&name)).is_some()
  }

  /// Sets whether this object keeps the process alive.
  #[napi(catch_unwind)]
  pub fn keep_alive(&self, env: Env, alive: bool) -> napi::Result<()> {
    if alive == self.is_referenced.get() {
      return Ok(());
    }
    let raw = self.js_thread.queue.wake.raw();
    // SAFETY: this is the thread of `env`, which created the function (`Boundary` is a JavaScript object of
    // that thread), and the queue holds a reference to the function, so it has not been freed.
    let status = unsafe {
      match alive {
        true => napi::sys::napi_ref_threadsafe_function(env.raw(), raw),
        false => napi::sys::napi_unref_threadsafe_function(env.raw(), raw),
      }
    };
    napi::check_status!(status)?;
    self.is_referenced.set(alive);
    Ok(())
  }
}

impl Boundary {
  /// The state of this JavaScript thread.
  pub fn js_thread(&self) -> Rc<JsThreadState> {
    Rc::clone(&self.js_thread)
  }

  /// The queue into which worker threads push events for this thread.
  pub fn queue(&self) -> Arc<CompletionQueue> {
    Arc::clone(&self.js_thread.queue)
  }
}

/// Panics are caught at the boundary and become rejections. The hook that would print them first belongs to
/// this addon alone, as the Rust standard library is linked into it.
fn silence_panics() {
  static ONCE: std::sync::Once = std::sync::Once::new();
  ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}
