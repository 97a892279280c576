//! Host functions in JavaScript. The guest waits on its thread; the event loop does not.
//!
//! A call of such a function is an [`Event`] among the results of calls, so it wakes the event loop as
//! they do and is seen in the order in which things happened. JavaScript answers it, at once or after
//! any time, and before that may ask for blocks of the guest's memory. That only the guest's thread can
//! do; it is awake then and does nothing else, so JavaScript's waits for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wasmtime::Val;

use super::boundary::{Event, Finished};
use crate::abi::{FunctionType, ValueType};
use crate::host::{
  Answer, Bytes, HostFunction, HostFunctionError, Invocation, UntypedFunction, Vars,
};
use crate::plugin::spin;

/// Bytes of blocks that go with a call, so that JavaScript need not ask for them.
const MAX_SENT: usize = 64 << 10;

/// How long JavaScript's thread looks for what the guest's does before it sleeps.
const LOOK: Duration = Duration::from_micros(20);

/// The functions of one plugin, as JavaScript knows them.
pub struct Functions {
  /// What JavaScript knows the plugin by.
  pub table: u32,
  /// Where its calls go.
  pub finished: Arc<Finished>,
}

impl Functions {
  /// The function with this number.
  pub fn function(&self, number: u32, namespace: String, name: String) -> UntypedFunction {
    let (table, finished) = (self.table, Arc::clone(&self.finished));
    let (to, called) = (namespace.clone(), name.clone());
    UntypedFunction {
      namespace,
      name,
      typed: Arc::new(move |function, vars| {
        let (vars, finished) = (Arc::clone(vars), Arc::clone(&finished));
        let (ty, result) = (function.clone(), function.results.first().copied());
        let body = move |invocation: &mut Invocation<'_>| {
          let channel = Arc::new(Channel::new(Arc::clone(&vars)));
          let call = HostCall::new(table, number, &ty, invocation, Arc::clone(&channel));
          finished.push(Event::HostCall(call));
          serve(&channel, invocation).map(|answer| typed(answer, result))
        };
        HostFunction::new(to.clone(), called.clone(), function.params, result, body)
      }),
    }
  }
}

/// Gives an answer the type of the function's result: JavaScript answers with the bits of a number.
fn typed(answer: Answer, result: Option<ValueType>) -> Answer {
  match (answer, result) {
    (_, None) => Answer::Nothing,
    (Answer::I64(bits), Some(ValueType::I32)) => Answer::I32(bits as i32),
    (Answer::I64(bits), Some(ValueType::F32)) => Answer::F32(f32::from_bits(bits as u32)),
    (Answer::I64(bits), Some(ValueType::F64)) => Answer::F64(f64::from_bits(bits as u64)),
    (answer, Some(_)) => answer,
  }
}

/// What JavaScript wants of the guest's thread.
#[derive(Clone, Debug)]
pub enum Step {
  /// That the guest goes on with this. It is the last step.
  Answer(Answer),
  /// A block with these bytes.
  Store(Bytes),
  /// A block of this many bytes, all zero.
  Allocate(u64),
  /// To know the block that starts at this offset.
  Inspect(u64),
  /// That the call fails with this message when the guest has returned; with none, that it does not.
  SetError(Bytes),
}

/// A call of a function in JavaScript.
pub struct HostCall {
  /// The plugin's call that it is part of.
  pub call: Option<u64>,
  /// What JavaScript reads, see `calls.js`: the numbers of the plugin and of the function, the type of
  /// the result, how many arguments there are; of each its type, its bits in two halves and the length
  /// of its block; then the bytes of those blocks that are here. All numbers have 32 bits. The first is
  /// for the number of this call.
  pub message: Vec<u8>,
  /// What answers it.
  pub channel: Arc<Channel>,
}

impl HostCall {
  fn new(
    table: u32,
    number: u32,
    ty: &FunctionType,
    invocation: &mut Invocation<'_>,
    channel: Arc<Channel>,
  ) -> Self {
    let result = ty.results.first().map_or(0, |result| kind(*result));
    let count = ty.params.len() as u32;
    let mut numbers = vec![0, table, number, result, count];
    let mut blocks = Vec::new();
    for (place, param) in ty.params.iter().enumerate() {
      let bits = invocation.value(place).map_or(0, bits);
      let mut length = 0;
      let mut is_sent = 0;
      if *param == ValueType::I64 {
        let bytes = match bits {
          0 => None,
          _ => invocation.bytes(place),
        };
        let bytes = bytes.unwrap_or_default();
        // The kernel's memory has 32-bit addresses.
        length = bytes.len() as u32;
        if blocks.len() + bytes.len() <= MAX_SENT {
          blocks.extend_from_slice(bytes);
          is_sent = SENT;
        }
      }
      numbers.extend([
        kind(*param) | is_sent,
        bits as u32,
        (bits >> 32) as u32,
        length,
      ]);
    }
    let mut message = Vec::with_capacity(numbers.len() * size_of::<u32>() + blocks.len());
    for number in numbers {
      message.extend_from_slice(&number.to_le_bytes());
    }
    message.extend_from_slice(&blocks);
    Self {
      call: invocation.call(),
      message,
      channel,
    }
  }
}

/// Added to the type of an argument whose block is in the message.
const SENT: u32 = 16;

/// The types of values, as JavaScript knows them; 0 is none.
fn kind(value: ValueType) -> u32 {
  match value {
    ValueType::I32 => 1,
    ValueType::I64 => 2,
    ValueType::F32 => 3,
    ValueType::F64 => 4,
  }
}

fn bits(value: &Val) -> u64 {
  match value {
    Val::I32(value) => *value as u32 as u64,
    Val::I64(value) => *value as u64,
    Val::F32(bits) => u64::from(*bits),
    Val::F64(bits) => *bits,
    _ => 0,
  }
}

/// What JavaScript and the guest's thread say to each other about one call.
pub struct Channel {
  state: Mutex<State>,
  /// Signalled for each change.
  changed: Condvar,
  /// The same, for who looks before it sleeps.
  news: spin::Flag,
  vars: Arc<Vars>,
}

enum State {
  /// The guest's thread waits for JavaScript.
  Open,
  /// JavaScript wants this done.
  Asked(Result<Step, HostFunctionError>),
  /// The guest's thread does it.
  Working,
  /// It has.
  Done(BlockReply),
  /// The call has been answered, or has been interrupted.
  Over,
}

/// A block that JavaScript has asked for.
#[derive(Default)]
pub struct BlockReply {
  /// Where the block is; 0 for none.
  pub offset: u64,
  /// Its length.
  pub length: u64,
  /// What is in it, where that was asked for.
  pub bytes: Option<Bytes>,
}

impl Channel {
  fn new(vars: Arc<Vars>) -> Self {
    Self {
      state: Mutex::new(State::Open),
      changed: Condvar::new(),
      news: spin::Flag::default(),
      vars,
    }
  }

  fn lock(&self) -> MutexGuard<'_, State> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  fn set(&self, mut state: MutexGuard<'_, State>, new: State) {
    *state = new;
    drop(state);
    self.news.set();
    self.changed.notify_all();
  }

  /// Waits until `take` takes something out of the state. Before it sleeps it looks by `look` for
  /// something that happens.
  fn wait<T>(
    &self,
    look: impl FnOnce(&spin::Flag),
    mut take: impl FnMut(&mut State) -> Option<T>,
  ) -> T {
    let mut look = Some(look);
    let mut state = self.lock();
    loop {
      if let Some(taken) = take(&mut state) {
        return taken;
      }
      if let Some(look) = look.take() {
        self.news.clear();
        drop(state);
        look(&self.news);
        state = self.lock();
      } else {
        let woken = self.changed.wait(state);
        state = woken.unwrap_or_else(PoisonError::into_inner);
      }
    }
  }

  /// Whether nobody waits for an answer any more.
  pub fn is_over(&self) -> bool {
    matches!(*self.lock(), State::Over)
  }

  /// Ends it from either side; whoever waits is told.
  pub fn end(&self) {
    let state = self.lock();
    self.set(state, State::Over);
  }

  /// Answers the guest. Whether anybody has waited for it. JavaScript's thread.
  pub fn answer(&self, answer: Result<Step, HostFunctionError>) -> bool {
    let state = self.lock();
    let is_open = matches!(*state, State::Open);
    if is_open {
      self.set(state, State::Asked(answer));
    }
    is_open
  }

  /// Has the guest's thread make a step, and waits for it: microseconds. `None` where the call is over.
  /// JavaScript's thread.
  pub fn ask(&self, step: Step) -> Option<BlockReply> {
    if !self.answer(Ok(step)) {
      return None;
    }
    // The guest's thread is awake, or just being woken.
    let look = |news: &spin::Flag| {
      spin::until(LOOK, || news.is_set());
    };
    self.wait(look, |state| match state {
      State::Done(done) => {
        let done = std::mem::take(done);
        *state = State::Open;
        Some(Some(done))
      }
      State::Over => Some(None),
      _ => None,
    })
  }

  /// The variables of the plugin; `None` where the call is over.
  pub fn vars(&self) -> Option<&Vars> {
    (!self.is_over()).then_some(&self.vars)
  }
}

/// Does what JavaScript wants, on the guest's thread, until it answers.
fn serve(
  channel: &Arc<Channel>,
  invocation: &mut Invocation<'_>,
) -> Result<Answer, HostFunctionError> {
  let interruption = invocation.interruption();
  let interrupted = Arc::clone(channel);
  let _watch = interruption.watch(move || interrupted.end());
  let _over = EndOnDrop(channel);
  loop {
    let step = channel.wait(spin_for_answer, |state| {
      match std::mem::replace(state, State::Over) {
        State::Asked(step) => {
          *state = match &step {
            Ok(Step::Answer(_)) | Err(_) => State::Over,
            Ok(_) => State::Working,
          };
          Some(Some(step))
        }
        State::Over => Some(None),
        other => {
          *state = other;
          None
        }
      }
    });
    // Nobody is told of an interruption: whoever interrupts has told.
    let step = step.unwrap_or_else(|| Err(HostFunctionError::new("the call was interrupted")))?;
    let reply = match step {
      Step::Answer(answer) => return Ok(answer),
      Step::Store(bytes) => BlockReply {
        offset: invocation.store(&bytes),
        length: bytes.len() as u64,
        bytes: None,
      },
      Step::Allocate(length) => BlockReply {
        offset: invocation.alloc(length),
        length,
        bytes: None,
      },
      Step::Inspect(offset) => {
        let bytes = invocation.block(offset).map(Bytes::from);
        let length = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        BlockReply {
          offset,
          length,
          bytes,
        }
      }
      Step::SetError(message) => {
        invocation.set_error(&message);
        BlockReply::default()
      }
    };
    let state = channel.lock();
    if matches!(*state, State::Working) {
      channel.set(state, State::Done(reply));
    }
  }
}

/// Ends a channel when the guest's thread no longer serves it.
struct EndOnDrop<'a>(&'a Channel);

impl Drop for EndOnDrop<'_> {
  fn drop(&mut self) {
    self.0.end();
  }
}

/// Looks for what JavaScript answers, where that has paid lately for this thread: functions that answer
/// at once do so before a thread that sleeps would have been woken.
fn spin_for_answer(news: &spin::Flag) {
  thread_local! {
    static BACKOFF: Cell<spin::SpinBackoff> = const { Cell::new(spin::SpinBackoff::NEW) };
  }
  let mut backoff = BACKOFF.get();
  if backoff.is_due()
    && let Some(spinner) = spin::Spinner::new()
  {
    backoff.learn(spinner.spin_wait(|| news.is_set()));
  }
  BACKOFF.set(backoff);
}

/// The calls that JavaScript has been told of and has not answered, by their numbers.
#[derive(Default)]
pub struct HostCalls {
  open: HashMap<u32, Arc<Channel>>,
  next: u32,
  /// How many there have to be for those that are over to be looked for.
  tidy_at: usize,
}

impl HostCalls {
  const MANY: usize = 256;

  /// Numbers a call.
  pub fn add(&mut self, channel: Arc<Channel>) -> u32 {
    let number = self.next;
    self.next = number.wrapping_add(1);
    if self.open.len() >= self.tidy_at {
      // Some are never answered, and their calls have ended otherwise.
      self.open.retain(|_, channel| !channel.is_over());
      self.tidy_at = Self::MANY.max(2 * self.open.len());
    }
    self.open.insert(number, channel);
    number
  }

  /// The call with that number.
  pub fn get(&self, number: u32) -> Option<Arc<Channel>> {
    self.open.get(&number).cloned()
  }

  /// The call with that number, which is being answered.
  pub fn remove(&mut self, number: u32) -> Option<Arc<Channel>> {
    self.open.remove(&number)
  }
}
