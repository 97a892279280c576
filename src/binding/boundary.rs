//! What goes over the boundary without Node-API's conversions, of which each costs more than a
//! short call: a call's input lies in memory that both sides know, and finished calls come back
//! many at a time, as numbers in such memory and bytes in a buffer that their outputs share.
//!
//! All of that memory is touched by the JavaScript thread alone. Worker threads see only
//! [`Finished`], the list of what has happened.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use napi::bindgen_prelude::{
  Array, ArrayBuffer, Either3, Function, FunctionCallContext, Null, ToNapiValue, Uint8Array,
  Uint8ArraySlice, Uint32Array, Undefined,
};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Status};
use napi_derive::napi;

use super::event_queue::EventQueue;
use super::host_call::{BlockReply, Channel, HostCall, HostCalls, Step};
use super::logger::Message;
use super::plugin::Plugin;
use super::silence_panics;
use super::store::{Place, Reply};
use crate::host::{Answer, Bytes, HostFunctionError};
use crate::plugin;
use crate::{Code, Result};

/// Outputs up to this many bytes share a buffer; longer ones have one of their own.
const MAX_SHARED: usize = 1024;

/// Outputs from this many bytes on are handed over as they are: to copy them would cost more.
const MIN_ADOPTED: usize = 1 << 20;

/// What the header begins with: what JavaScript has to say to a function of this side. The arguments
/// of a call are its number, its export, the length of its input in the inbox, the milliseconds that
/// it may take (0 for the plugin's limit), whether it is alone, and whether its result may be taken at
/// once. The last one is for every function that takes results: how much of the shared buffer is used.
pub type Arguments = [u32; 7];

/// What comes after that in the header: how many calls there are, and whether there are more.
const SUMMARY: usize = 2;

/// What a call has in the header: its number, its code (0 where it succeeded), the offset of its
/// bytes in the shared buffer ([`APART`] where they are not there), and their length ([`AS_IT_IS`] where
/// what is apart is no bytes).
const ITEM: usize = 4;

/// In place of an offset: the next of the values that are handed over apart.
const APART: u32 = u32::MAX;

/// In place of a length: what is handed over apart is what JavaScript gets.
const AS_IT_IS: u32 = 1;

/// In place of a code: a host function in JavaScript has been called; its message is where an output
/// would be.
const HOST_CALL: u32 = u32::MAX;

/// In place of a code: a message for the plugin's logger; the numbers of the plugin and of its level,
/// then the text, are where an output would be.
const LOG: u32 = u32::MAX - 1;

/// In place of a call's number: none.
const NO_CALL: u32 = u32::MAX;

/// What JavaScript is told of.
pub enum Event {
  /// What came of the call of this number.
  Ended(u32, Result<Outcome>),
  /// A guest calls a function of JavaScript's.
  HostCall(HostCall),
  /// A guest has something to say.
  Log(Message),
}

/// What comes of a call, or of something else that JavaScript waits for.
pub enum Outcome {
  /// The output.
  Output(Vec<u8>),
  /// A plugin has been opened.
  Opened(plugin::Plugin),
  /// A store has done something.
  Store(Reply),
}

/// Calls a JavaScript function without arguments; weak, so that it alone keeps no process alive.
type Wake = ThreadsafeFunction<(), (), (), Status, false, true>;

/// Calls that have ended, and what else has happened that JavaScript has not seen yet.
pub struct Finished {
  events: EventQueue<Event>,
  wake: Wake,
}

impl Finished {
  fn new(wake: Wake) -> Self {
    Self {
      events: EventQueue::new(),
      wake,
    }
  }

  /// Adds what came of the call that JavaScript numbered `call`. Any thread.
  pub fn ended(&self, call: u32, result: Result<Outcome>) {
    self.push(Event::Ended(call, result));
  }

  /// Adds something that has happened. Any thread.
  pub fn push(&self, event: Event) {
    if self.events.push(event) {
      // Fails only when the environment is going away, and nobody waits any more.
      self.wake.call((), ThreadsafeFunctionCallMode::NonBlocking);
    }
  }

  /// See [`EventQueue::spin_wait`].
  pub fn look(&self) -> bool {
    self.events.spin_wait()
  }
}

impl plugin::Results for Finished {
  fn done(&self, number: u64, result: Result<Vec<u8>>) {
    // The numbers of calls are what JavaScript gave: 32 bits.
    self.ended(number as u32, result.map(Outcome::Output));
  }
}

/// One JavaScript thread's boundary.
#[napi]
pub struct Boundary {
  near: Rc<Near>,
  /// Whether `finished.wake` keeps the process alive.
  is_referenced: Cell<bool>,
}

/// What the functions on the JavaScript thread share.
pub struct Near {
  pub finished: Arc<Finished>,
  /// Where JavaScript puts short inputs.
  inbox: Uint8Array,
  header: RefCell<Uint32Array>,
  /// Taken from `finished` and not written yet, for want of room.
  rest: RefCell<VecDeque<Event>>,
  /// Calls of functions in JavaScript that have not been answered.
  host_calls: RefCell<HostCalls>,
}

#[napi]
impl Boundary {
  /// `settle` is called, on this thread, when there are finished calls to be taken. Short inputs are
  /// put into `inbox`, and numbers into `header`, either way. Both must stay with the caller: nobody
  /// else may have them or their buffers.
  #[napi(constructor, catch_unwind)]
  pub fn new(
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
    Ok(Self {
      near: Rc::new(Near {
        finished: Arc::new(Finished::new(wake)),
        inbox,
        header: RefCell::new(header),
        rest: RefCell::default(),
        host_calls: RefCell::default(),
      }),
      is_referenced: Cell::new(false),
    })
  }

  /// The function that takes finished calls. It is given a buffer for short outputs and an array. It
  /// writes into the header how many calls it has taken, whether there are more (for which there was no
  /// room), and four numbers for each call ([`ITEM`]). What is not in the buffer it adds to the array,
  /// in the order of the calls.
  ///
  /// It is a function rather than a method because Node-API then need not look up and check what
  /// belongs to the receiver; and numbers are in the header because to pass one costs more than to
  /// write it.
  #[napi(
    catch_unwind,
    ts_return_type = "(shared: Uint8Array, apart: unknown[]) => void"
  )]
  pub fn taker<'env>(
    &self,
    env: &'env Env,
  ) -> napi::Result<Function<'env, (Uint8Array, Array<'env>), ()>> {
    let near = Rc::clone(&self.near);
    env.create_function_from_closure("take", move |context| near.take(&context))
  }

  /// Waits until there is a finished call to be taken. The event loop stands still meanwhile.
  #[napi(catch_unwind)]
  pub fn wait(&self) {
    self.near.finished.events.wait();
  }

  /// Answers a call of a function in JavaScript with the bits of a number. This and all that follow
  /// return `false`, a negative number or `null` where the call is over: its guest has been
  /// interrupted, or it has been answered.
  #[napi(catch_unwind)]
  pub fn answer(&self, host_call: u32, low: u32, high: u32) -> bool {
    let bits = u64::from(low) | u64::from(high) << 32;
    self.finish(host_call, Ok(Step::Answer(Answer::I64(bits as i64))))
  }

  /// Answers it with the offset of a block with these bytes.
  #[napi(catch_unwind)]
  pub fn answer_with(&self, host_call: u32, bytes: Uint8ArraySlice<'_>) -> bool {
    let answer = Answer::Bytes(Bytes::from(&*bytes));
    self.finish(host_call, Ok(Step::Answer(answer)))
  }

  /// Ends the plugin's call that it is part of, with this message.
  #[napi(catch_unwind)]
  pub fn fail(&self, host_call: u32, message: String) -> bool {
    self.finish(host_call, Err(HostFunctionError::new(message)))
  }

  /// Makes a block with these bytes, and returns its offset; 0 where there is no room for it, or no
  /// bytes.
  #[napi(catch_unwind)]
  pub fn store(&self, host_call: u32, bytes: Uint8ArraySlice<'_>) -> f64 {
    offset_of(self.ask(host_call, Step::Store(Bytes::from(&*bytes))))
  }

  /// Makes a block of that many bytes, all zero.
  #[napi(catch_unwind)]
  pub fn allocate(&self, host_call: u32, length: f64) -> f64 {
    offset_of(self.ask(host_call, Step::Allocate(length as u64)))
  }

  /// The length of the block that starts at the offset; 0 where none does.
  #[napi(catch_unwind)]
  pub fn length(&self, host_call: u32, offset: f64) -> f64 {
    let done = self.ask(host_call, Step::Inspect(offset as u64));
    done.map_or(-1.0, |done| done.length as f64)
  }

  /// A copy of the block that starts at the offset; empty where none does.
  #[napi(catch_unwind)]
  pub fn read(&self, host_call: u32, offset: f64) -> Option<Uint8Array> {
    let done = self.ask(host_call, Step::Inspect(offset as u64))?;
    Some(Uint8Array::new(
      done.bytes.map(|bytes| bytes.to_vec()).unwrap_or_default(),
    ))
  }

  /// Sets the error of the plugin's call; no bytes for none.
  #[napi(catch_unwind)]
  pub fn set_error(&self, host_call: u32, message: Uint8ArraySlice<'_>) -> bool {
    let step = Step::SetError(Bytes::from(&*message));
    self.ask(host_call, step).is_some()
  }

  /// The variable of that name: `undefined` where there is none.
  #[napi(catch_unwind, ts_return_type = "Uint8Array | undefined | null")]
  pub fn get_variable(&self, host_call: u32, name: String) -> Either3<Uint8Array, Undefined, Null> {
    let channel = self.channel(host_call);
    let vars = channel.as_ref().and_then(|channel| channel.vars());
    match vars.map(|vars| vars.get(&name)) {
      None => Either3::C(Null),
      Some(None) => Either3::B(()),
      Some(Some(value)) => Either3::A(Uint8Array::new(value.to_vec())),
    }
  }

  /// Sets it; returns the reason why not, where there is one.
  #[napi(catch_unwind, ts_return_type = "string | undefined | null")]
  pub fn set_variable(
    &self,
    host_call: u32,
    name: String,
    value: Uint8ArraySlice<'_>,
  ) -> Either3<String, Undefined, Null> {
    let channel = self.channel(host_call);
    let vars = channel.as_ref().and_then(|channel| channel.vars());
    match vars.map(|vars| vars.set(&name, &value)) {
      None => Either3::C(Null),
      Some(Ok(())) => Either3::B(()),
      Some(Err(error)) => Either3::A(error.to_string()),
    }
  }

  /// Removes it.
  #[napi(catch_unwind)]
  pub fn delete_variable(&self, host_call: u32, name: String) -> bool {
    let channel = self.channel(host_call);
    let vars = channel.as_ref().and_then(|channel| channel.vars());
    vars.map(|vars| vars.remove(&name)).is_some()
  }

  /// Keeps the process alive, or lets it go.
  #[napi(catch_unwind)]
  pub fn keep_alive(&self, env: Env, alive: bool) -> napi::Result<()> {
    if alive == self.is_referenced.get() {
      return Ok(());
    }
    let raw = self.near.finished.wake.raw();
    // SAFETY: this is the thread of `env`, which made the function (`Boundary` is a JavaScript
    // object of it), and `finished` holds a reference to the function, so it has not been freed.
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

/// What JavaScript is told of a block that it has asked for.
fn offset_of(done: Option<BlockReply>) -> f64 {
  done.map_or(-1.0, |done| done.offset as f64)
}

impl Boundary {
  fn channel(&self, host_call: u32) -> Option<Arc<Channel>> {
    self.near.host_calls.borrow().get(host_call)
  }

  fn ask(&self, host_call: u32, step: Step) -> Option<BlockReply> {
    self.channel(host_call)?.ask(step)
  }

  fn finish(&self, host_call: u32, answer: Result<Step, HostFunctionError>) -> bool {
    let channel = self.near.host_calls.borrow_mut().remove(host_call);
    channel.is_some_and(|channel| channel.answer(answer))
  }

  /// What the functions on the JavaScript thread share.
  pub fn near(&self) -> Rc<Near> {
    Rc::clone(&self.near)
  }
}

impl Near {
  /// What JavaScript has put into the header.
  pub fn arguments(&self) -> Arguments {
    let header = self.header.borrow();
    header.first_chunk().copied().unwrap_or_default()
  }

  /// The first bytes of the inbox, with some room for an output.
  pub fn input(&self, length: u32) -> Vec<u8> {
    const ROOM: usize = 256;
    let input = self.inbox.get(..length as usize).unwrap_or_default();
    let mut copy = Vec::with_capacity(input.len().max(ROOM));
    copy.extend_from_slice(input);
    copy
  }

  /// Takes as many finished calls as there is room for; see [`Boundary::taker`].
  pub fn take(&self, context: &FunctionCallContext<'_>) -> napi::Result<()> {
    let [.., used] = self.arguments();
    let mut shared = context.get::<Uint8ArraySlice<'_>>(0)?;
    let mut header = self.header.borrow_mut();
    let mut rest = self.rest.borrow_mut();
    if rest.is_empty() {
      self.finished.events.take_all(&mut rest);
    }
    // SAFETY: both are memory of JavaScript, whose thread is this one and does not run JavaScript
    // before they have been dropped, so nothing else reads or writes them and they stay where they
    // are. `header` is handed to nobody who could detach it (`calls.js`). The other has just been
    // looked up; detached, it has no bytes.
    let (header, shared) = unsafe { (header.as_mut(), shared.as_mut()) };
    let writer = Writer {
      context,
      finished: &self.finished,
      host_calls: &self.host_calls,
      shared: shared.get_mut(used as usize..).unwrap_or_default(),
      offset: used,
    };
    writer.write(&mut rest, header)
  }
}

/// Where JavaScript finds finished calls; see [`Boundary::taker`].
struct Writer<'a> {
  context: &'a FunctionCallContext<'a>,
  finished: &'a Arc<Finished>,
  host_calls: &'a RefCell<HostCalls>,
  /// The free part of the buffer for short outputs.
  shared: &'a mut [u8],
  /// The offset of that part in the buffer.
  offset: u32,
}

impl Writer<'_> {
  /// Takes as much from `list` as there is room for.
  fn write(mut self, list: &mut VecDeque<Event>, header: &mut [u32]) -> napi::Result<()> {
    let (_, results) = header
      .split_at_mut_checked(size_of::<Arguments>() / size_of::<u32>())
      .unwrap_or_default();
    let Some((summary, items)) = results.split_first_chunk_mut::<SUMMARY>() else {
      return Err(napi::Error::from_reason("the header is too short"));
    };
    let mut items = items.chunks_exact_mut(ITEM);
    let mut count = 0;
    while self.shared.len() >= MAX_SHARED
      && let Some(item) = items.next()
      && let Some(event) = list.pop_front()
    {
      let (number, code, place) = match event {
        Event::Ended(number, Ok(outcome)) => match self.place(outcome) {
          Ok(place) => (number, 0, place),
          // What cannot be handed over must not keep what comes after it from being so.
          Err(_) => (number, Code::Internal.number(), (self.offset, 0)),
        },
        Event::Ended(number, Err(error)) => {
          let place = self.place_bytes(error_text(error.message, &error.backtrace));
          let place = place.unwrap_or((self.offset, 0));
          (number, error.code.number(), place)
        }
        Event::HostCall(call) => match self.place_host_call(call) {
          Ok((number, place)) => (number, HOST_CALL, place),
          // Nothing that can be read: nothing happens.
          Err(_) => (NO_CALL, LOG, (self.offset, 0)),
        },
        Event::Log(message) => {
          let number = message.call.map_or(NO_CALL, |call| call as u32);
          let place = self.place_bytes(message.take());
          (number, LOG, place.unwrap_or((self.offset, 0)))
        }
      };
      item.copy_from_slice(&[number, code, place.0, place.1]);
      count += 1;
    }
    *summary = [count, u32::from(!list.is_empty())];
    Ok(())
  }

  /// Numbers a call of a function in JavaScript and puts its message where JavaScript finds it.
  fn place_host_call(&mut self, call: HostCall) -> napi::Result<(u32, (u32, u32))> {
    let HostCall {
      call,
      mut message,
      channel,
    } = call;
    let mut host_calls = self.host_calls.borrow_mut();
    let number = host_calls.add(Arc::clone(&channel));
    if let Some(first) = message.first_chunk_mut() {
      *first = number.to_le_bytes();
    }
    let place = self.place_bytes(message);
    if place.is_err() {
      host_calls.remove(number);
      channel.end();
    }
    Ok((call.map_or(NO_CALL, |call| call as u32), place?))
  }

  /// Puts something where JavaScript finds it: offset and length.
  fn place(&mut self, outcome: Outcome) -> napi::Result<(u32, u32)> {
    match outcome {
      Outcome::Opened(plugin) => {
        let plugin = Plugin::new(plugin, Arc::clone(self.finished));
        self.place_as_it_is(plugin)
      }
      Outcome::Store(reply) => {
        let (context, finished) = (self.context, self.finished);
        reply.place(context.env, finished, self)
      }
      Outcome::Output(bytes) => self.place_bytes(bytes),
    }
  }

  fn place_bytes(&mut self, bytes: Vec<u8>) -> napi::Result<(u32, u32)> {
    match bytes.len() {
      0..=MAX_SHARED => {
        let (place, free) = std::mem::take(&mut self.shared).split_at_mut(bytes.len());
        place.copy_from_slice(&bytes);
        self.shared = free;
        let offset = self.offset;
        // Neither is larger than the buffer, which is small.
        self.offset += bytes.len() as u32;
        Ok((offset, bytes.len() as u32))
      }
      MIN_ADOPTED.. => self.place_apart(ArrayBuffer::from_data(self.context.env, bytes)?),
      _ => self.place_apart(ArrayBuffer::copy_from(self.context.env, bytes)?),
    }
  }

  fn place_apart(&mut self, value: impl ToNapiValue) -> napi::Result<(u32, u32)> {
    self.context.get::<Array<'_>>(1)?.insert(value)?;
    Ok((APART, 0))
  }

  fn place_as_it_is(&mut self, value: impl ToNapiValue) -> napi::Result<(u32, u32)> {
    self.place_apart(value)?;
    Ok((APART, AS_IT_IS))
  }
}

/// A message, and after it the functions of a backtrace, with NULs between.
fn error_text(message: String, backtrace: &[String]) -> Vec<u8> {
  let mut text = message;
  for frame in backtrace {
    text.push('\0');
    // Names are the guest's.
    text.push_str(&frame.replace('\0', "\u{FFFD}"));
  }
  text.into_bytes()
}

impl Place<(u32, u32)> for &mut Writer<'_> {
  fn value(self, value: impl ToNapiValue) -> napi::Result<(u32, u32)> {
    self.place_as_it_is(value)
  }
}
