//! The state of a JavaScript thread, and how it takes events from its queue: many at a time, as numbers and
//! bytes in shared memory.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use napi::bindgen_prelude::{
  Array, ArrayBuffer, FunctionCallContext, ToNapiValue, Uint8Array, Uint8ArraySlice, Uint32Array,
};

use super::completion_queue::{CompletionQueue, Event, JobResult, Wake};
use super::host_call::{BlockReply, Channel, HostCall, OpenHostCalls, Step};
use super::protocol::{
  self, CallArguments, EMPTY_OUTPUT, HEADER_COUNT, HEADER_HAS_MORE, HEADER_INPUT_BYTES,
  HEADER_ITEMS, HEADER_MAY_SPIN, HEADER_REPLY, HEADER_REPLY_BITS, HEADER_REPLY_TO,
  HEADER_SHARED_BYTES_USED, HOST_CALL, ITEM_LENGTH, LOG, Location, NO_CALL, REPLY_BYTES,
  REPLY_STORE,
};
use crate::host::{Answer, Bytes, HostFunctionError};
use crate::plugin::CallOutput;
use crate::plugin::spin::SpinBackoff;
use crate::trace::{CallTrace, Summary};
use crate::{Code, Error};

/// Outputs up to this many bytes share a buffer; longer ones get their own.
const MAX_SHARED: usize = 1024;

/// Outputs of at least this many bytes are handed over without copying; for shorter ones a copy is cheaper.
const MIN_ADOPTED: usize = 1 << 20;

/// The state of one JavaScript thread. Worker threads only access `queue`.
pub struct JsThreadState {
  /// The queue that worker threads push to.
  pub queue: Arc<CompletionQueue>,
  /// Unanswered host calls.
  pub host_calls: RefCell<OpenHostCalls>,
  /// The memory into which JavaScript writes short inputs.
  inbox: Uint8Array,
  header: RefCell<Uint32Array>,
  /// Events taken from the queue that did not fit into the shared memory.
  backlog: RefCell<VecDeque<Event>>,
  /// Decides whether to spin after host calls have been answered.
  spin_backoff: Cell<SpinBackoff>,
  /// The traces of unfinished calls that JavaScript traces, by number.
  traces: RefCell<HashMap<u32, Arc<CallTrace>>>,
}

impl JsThreadState {
  /// JavaScript must keep `inbox` and `header` private.
  pub fn new(wake: Wake, inbox: Uint8Array, header: Uint32Array) -> Self {
    Self {
      queue: Arc::new(CompletionQueue::new(wake)),
      host_calls: RefCell::default(),
      inbox,
      header: RefCell::new(header),
      backlog: RefCell::default(),
      spin_backoff: Cell::default(),
      traces: RefCell::default(),
    }
  }

  /// Traces the call that will have this number, see [`CallTrace::new`].
  pub fn start_trace(&self, call: u32, traceparent: Option<String>, records_operations: bool) {
    let trace = Arc::new(CallTrace::new(traceparent, records_operations));
    self.traces.borrow_mut().insert(call, trace);
  }

  /// The trace of a call that JavaScript traces.
  pub fn trace(&self, call: u32) -> Option<Arc<CallTrace>> {
    self.traces.borrow().get(&call).cloned()
  }

  /// Ends the trace of a call, and returns its record.
  pub fn end_trace(&self, call: u32) -> Option<Summary> {
    let trace = self.traces.borrow_mut().remove(&call);
    trace.map(|trace| trace.summary())
  }

  /// The arguments of a call in the header.
  pub fn call_arguments(&self) -> CallArguments {
    CallArguments::read(&self.header.borrow())
  }

  /// Copies an input from the inbox, with spare capacity for an output.
  pub fn input(&self, length: u32) -> Vec<u8> {
    const CAPACITY: usize = 256;
    let input = self.inbox.get(..length as usize).unwrap_or_default();
    let mut copy = Vec::with_capacity(input.len().max(CAPACITY));
    copy.extend_from_slice(input);
    copy
  }

  /// Replies to a host call as the header says. Returns the offset of the block if it allocated one, 0
  /// otherwise, and a negative number if the host call has ended.
  pub fn reply(&self) -> f64 {
    let header = self.header.borrow();
    let number = |index| protocol::number(&header, index);
    let bytes = || {
      let inbox = self.inbox.get(..number(HEADER_INPUT_BYTES) as usize);
      Bytes::from(inbox.unwrap_or_default())
    };
    let host_call = number(HEADER_REPLY_TO);
    let answer = match number(HEADER_REPLY) {
      REPLY_STORE => return offset_of(self.request(host_call, Step::Store(bytes()))),
      REPLY_BYTES => Answer::Bytes(bytes()),
      _ => {
        let (low, high) = (number(HEADER_REPLY_BITS), number(HEADER_REPLY_BITS + 1));
        Answer::I64((u64::from(low) | u64::from(high) << 32) as i64)
      }
    };
    match self.finish(host_call, Ok(Step::Answer(answer))) {
      true => 0.0,
      false => -1.0,
    }
  }

  /// The channel of an unanswered host call.
  pub fn channel(&self, host_call: u32) -> Option<Arc<Channel>> {
    self.host_calls.borrow().get(host_call)
  }

  /// Has the guest's thread perform a step.
  pub fn request(&self, host_call: u32, step: Step) -> Option<BlockReply> {
    self.channel(host_call)?.request(step)
  }

  /// Answers a host call; returns whether its guest was waiting.
  pub fn finish(&self, host_call: u32, answer: Result<Step, HostFunctionError>) -> bool {
    let channel = self.host_calls.borrow_mut().remove(host_call);
    channel.is_some_and(|channel| channel.send(answer))
  }

  /// Takes as many events as fit. The arguments are a buffer for short outputs and an array. Writes into the
  /// header how many events it has taken, whether more remain, and an item for each. Values that do not go
  /// into the buffer are appended to the array, in the order of the items.
  pub fn take(&self, context: &FunctionCallContext<'_>) -> napi::Result<()> {
    let mut shared = context.get::<Uint8ArraySlice<'_>>(0)?;
    let mut header = self.header.borrow_mut();
    let used = protocol::number(&header, HEADER_SHARED_BYTES_USED);
    let mut backlog = self.backlog.borrow_mut();
    if backlog.is_empty() {
      if protocol::number(&header, HEADER_MAY_SPIN) != 0 {
        self.spin_wait();
      }
      self.queue.events.take_all(&mut backlog);
    }
    // SAFETY: both slices are memory of JavaScript. This is its thread, which does not run JavaScript before
    // the slices are dropped, so nothing else reads or writes them and they do not move. `header` is never
    // exposed to code that could detach it (`calls.js`). `shared` has just been looked up; if it is detached,
    // its length is 0.
    let (header, shared) = unsafe { (header.as_mut(), shared.as_mut()) };
    let writer = EventWriter {
      context,
      host_calls: &self.host_calls,
      shared: shared.get_mut(used as usize..).unwrap_or_default(),
      offset: used,
    };
    let has_host_calls = writer.write(&mut backlog, header)?;
    if has_host_calls {
      // JavaScript answers most of them synchronously, and takes events again afterwards.
      self.queue.events.stay_attentive();
    }
    Ok(())
  }

  /// Spins for the next event, if spinning has recently paid off.
  fn spin_wait(&self) {
    let mut backoff = self.spin_backoff.get();
    if backoff.is_due() {
      backoff.learn(self.queue.events.spin_wait());
    }
    self.spin_backoff.set(backoff);
  }
}

/// The offset that JavaScript gets for a block; negative if the host call has ended.
pub fn offset_of(reply: Option<BlockReply>) -> f64 {
  reply.map_or(-1.0, |reply| reply.offset as f64)
}

/// Writes events into the memory that JavaScript reads.
struct EventWriter<'a> {
  context: &'a FunctionCallContext<'a>,
  host_calls: &'a RefCell<OpenHostCalls>,
  /// The free part of the buffer for short outputs.
  shared: &'a mut [u8],
  /// The offset of that part in the buffer.
  offset: u32,
}

impl EventWriter<'_> {
  /// Writes as many events as fit; returns whether they include host calls.
  fn write(mut self, events: &mut VecDeque<Event>, header: &mut [u32]) -> napi::Result<bool> {
    let Some((head, items)) = header.split_at_mut_checked(HEADER_ITEMS as usize) else {
      return Err(napi::Error::from_reason("the header is too short"));
    };
    let mut items = items.chunks_exact_mut(ITEM_LENGTH as usize);
    let mut count = 0;
    let mut has_host_calls = false;
    while self.shared.len() >= MAX_SHARED
      && let Some(item) = items.next()
      && let Some(event) = events.pop_front()
    {
      let (number, code, location) = self.write_event(event);
      item.copy_from_slice(&[number, code, location.offset, location.length]);
      has_host_calls |= code == HOST_CALL;
      count += 1;
    }
    head[HEADER_COUNT as usize] = count;
    head[HEADER_HAS_MORE as usize] = u32::from(!events.is_empty());
    Ok(has_host_calls)
  }

  /// Writes one event; returns its number, its code and the location of its bytes.
  fn write_event(&mut self, event: Event) -> (u32, u32, Location) {
    let empty = Location {
      offset: self.offset,
      length: 0,
    };
    match event {
      Event::Ended(number, Ok(result)) => {
        let is_empty = |output: &CallOutput| output.is_set && output.bytes.is_empty();
        let code = match &result {
          JobResult::Output(output) if is_empty(output) => EMPTY_OUTPUT,
          _ => 0,
        };
        match self.write_result(result) {
          Ok(location) => (number, code, location),
          // A result that cannot be converted must not block the ones after it.
          Err(_) => (number, Code::Internal.number(), empty),
        }
      }
      Event::Ended(number, Err(error)) => {
        let code = error.code.number();
        let location = self.write_bytes(error_text(error));
        (number, code, location.unwrap_or(empty))
      }
      Event::HostCall(call) => match self.write_host_call(call) {
        Ok((number, location)) => (number, HOST_CALL, location),
        // Write an empty log message, which JavaScript ignores.
        Err(_) => (NO_CALL, LOG, empty),
      },
      Event::Log(message) => {
        let number = message.call.map_or(NO_CALL, |call| call as u32);
        let location = self.write_bytes(message.bytes);
        (number, LOG, location.unwrap_or(empty))
      }
    }
  }

  /// Numbers a host call and writes its message.
  fn write_host_call(&mut self, mut call: HostCall) -> napi::Result<(u32, Location)> {
    let mut host_calls = self.host_calls.borrow_mut();
    let number = host_calls.add(Arc::clone(&call.channel));
    call.set_number(number);
    let location = self.write_bytes(call.message);
    if location.is_err() {
      host_calls.remove(number);
      call.channel.end();
    }
    Ok((call.call.map_or(NO_CALL, |call| call as u32), location?))
  }

  fn write_result(&mut self, result: JobResult) -> napi::Result<Location> {
    match result {
      JobResult::Output(output) => self.write_bytes(output.bytes),
      JobResult::Value(append) => {
        append(self.context.env, &mut self.values()?)?;
        Ok(Location::JS_VALUE)
      }
    }
  }

  fn write_bytes(&mut self, bytes: Vec<u8>) -> napi::Result<Location> {
    match bytes.len() {
      0..=MAX_SHARED => {
        let (slot, free) = std::mem::take(&mut self.shared).split_at_mut(bytes.len());
        slot.copy_from_slice(&bytes);
        self.shared = free;
        let location = Location {
          offset: self.offset,
          // Both fit into 32 bits, as the buffer is small.
          length: bytes.len() as u32,
        };
        self.offset += location.length;
        Ok(location)
      }
      MIN_ADOPTED.. => self.write_memory(ArrayBuffer::from_data(self.context.env, bytes)?),
      _ => self.write_memory(ArrayBuffer::copy_from(self.context.env, bytes)?),
    }
  }

  fn write_memory(&mut self, memory: impl ToNapiValue) -> napi::Result<Location> {
    self.values()?.insert(memory)?;
    Ok(Location::OUT_OF_BAND)
  }

  /// The array for values outside the shared buffer.
  fn values(&self) -> napi::Result<Array<'_>> {
    self.context.get(1)
  }
}

/// Encodes an error's message. A plugin error is prefixed with its code and a NUL; a trap is followed by the
/// functions of its backtrace, each preceded by a NUL.
fn error_text(error: Error) -> Vec<u8> {
  let mut text = match error.code {
    Code::PluginError => format!("{}\0{}", error.return_code, error.message),
    _ => error.message,
  };
  for frame in &error.backtrace {
    text.push('\0');
    // The guest chose the names, which may contain NUL.
    text.push_str(&frame.replace('\0', "\u{FFFD}"));
  }
  text.into_bytes()
}
