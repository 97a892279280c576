//! One call of a host function in JavaScript. The guest waits on its thread; the event loop does not.
//!
//! JavaScript answers it, at once or after any time, and before that may ask for blocks of the guest's
//! memory. That only the guest's thread can do; it is awake then and does nothing else, so the
//! JavaScript thread waits for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wasmtime::Val;

use super::protocol::{
  ARGUMENT_BITS, ARGUMENT_BLOCK_LENGTH, ARGUMENT_LENGTH, ARGUMENT_TYPE, BLOCK_INCLUDED,
  HOST_CALL_ARGUMENTS, HOST_CALL_COUNT, HOST_CALL_FUNCTION, HOST_CALL_NUMBER, HOST_CALL_PLUGIN,
  HOST_CALL_RESULT, TYPE_F32, TYPE_F64, TYPE_I32, TYPE_I64,
};
use crate::abi::{FunctionType, ValueType};
use crate::host::{Answer, Bytes, HostFunctionError, Invocation, Vars};
use crate::plugin::spin;

/// How many bytes of blocks a message includes, so that JavaScript need not ask for them.
const MAX_INCLUDED: usize = 64 << 10;

/// How long the JavaScript thread spins for what the guest's does before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

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
  /// What JavaScript reads, see `protocol.rs`.
  pub message: Vec<u8>,
  /// What answers it.
  pub channel: Arc<Channel>,
}

impl HostCall {
  /// `number` is that of the function.
  pub fn new(
    plugin_id: u32,
    number: u32,
    ty: &FunctionType,
    invocation: &mut Invocation<'_>,
    channel: Arc<Channel>,
  ) -> Self {
    let result = ty.results.first().map_or(0, |result| kind(*result));
    let mut numbers = vec![0; HOST_CALL_ARGUMENTS as usize];
    numbers[HOST_CALL_PLUGIN as usize] = plugin_id;
    numbers[HOST_CALL_FUNCTION as usize] = number;
    numbers[HOST_CALL_RESULT as usize] = result;
    numbers[HOST_CALL_COUNT as usize] = ty.params.len() as u32;
    let mut blocks = Vec::new();
    for (index, param) in ty.params.iter().enumerate() {
      let bits = invocation.value(index).map_or(0, bits);
      let mut length = 0;
      let mut included = 0;
      if *param == ValueType::I64 {
        let bytes = match bits {
          0 => None,
          _ => invocation.bytes(index),
        };
        let bytes = bytes.unwrap_or_default();
        // The kernel's memory has 32-bit addresses.
        length = bytes.len() as u32;
        if blocks.len() + bytes.len() <= MAX_INCLUDED {
          blocks.extend_from_slice(bytes);
          included = BLOCK_INCLUDED;
        }
      }
      let mut argument = [0; ARGUMENT_LENGTH as usize];
      argument[ARGUMENT_TYPE as usize] = kind(*param) | included;
      argument[ARGUMENT_BITS as usize] = bits as u32;
      argument[ARGUMENT_BITS as usize + 1] = (bits >> 32) as u32;
      argument[ARGUMENT_BLOCK_LENGTH as usize] = length;
      numbers.extend(argument);
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

  /// Writes the number under which JavaScript answers it into the message.
  pub fn set_number(&mut self, number: u32) {
    let start = HOST_CALL_NUMBER as usize * size_of::<u32>();
    if let Some(place) = self.message.get_mut(start..start + size_of::<u32>()) {
      place.copy_from_slice(&number.to_le_bytes());
    }
  }
}

/// The number of a type.
fn kind(value: ValueType) -> u32 {
  match value {
    ValueType::I32 => TYPE_I32,
    ValueType::I64 => TYPE_I64,
    ValueType::F32 => TYPE_F32,
    ValueType::F64 => TYPE_F64,
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
  state: Mutex<ChannelState>,
  guest: Side,
  js: Side,
  vars: Arc<Vars>,
}

/// How one of the two threads waits for the other.
#[derive(Default)]
struct Side {
  /// What it looks at while it spins.
  has_news: spin::Flag,
  /// Whether it sleeps; changed under the lock of the state.
  is_asleep: AtomicBool,
  woken: Condvar,
}

impl Side {
  /// Tells it that the state has changed, and lets it see the state.
  fn tell(&self, state: MutexGuard<'_, ChannelState>) {
    let is_asleep = self.is_asleep.load(Ordering::Relaxed);
    drop(state);
    self.has_news.set();
    // A system call, whether it sleeps or not.
    if is_asleep {
      self.woken.notify_one();
    }
  }
}

enum ChannelState {
  /// The guest's thread waits for JavaScript.
  Open,
  /// JavaScript wants this done.
  Asked(Result<Step, HostFunctionError>),
  /// The guest's thread does it.
  Working,
  /// It has done it.
  Replied(BlockReply),
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
  /// A channel of a call that JavaScript has not been told of.
  pub fn new(vars: Arc<Vars>) -> Self {
    Self {
      state: Mutex::new(ChannelState::Open),
      guest: Side::default(),
      js: Side::default(),
      vars,
    }
  }

  fn lock(&self) -> MutexGuard<'_, ChannelState> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Waits on one side until `take` takes something out of the state. Before it sleeps it calls `spin`
  /// once, to wait for the flag.
  fn wait<T>(
    &self,
    side: &Side,
    spin: impl FnOnce(&spin::Flag),
    mut take: impl FnMut(&mut ChannelState) -> Option<T>,
  ) -> T {
    let mut spin = Some(spin);
    let mut state = self.lock();
    loop {
      if let Some(taken) = take(&mut state) {
        return taken;
      }
      if let Some(spin) = spin.take() {
        side.has_news.clear();
        drop(state);
        spin(&side.has_news);
        state = self.lock();
      } else {
        side.is_asleep.store(true, Ordering::Relaxed);
        let woken = side.woken.wait(state);
        state = woken.unwrap_or_else(PoisonError::into_inner);
        side.is_asleep.store(false, Ordering::Relaxed);
      }
    }
  }

  /// Whether nobody waits for an answer any more.
  pub fn is_over(&self) -> bool {
    matches!(*self.lock(), ChannelState::Over)
  }

  /// Ends it from either side; whoever waits is told.
  pub fn end(&self) {
    let mut state = self.lock();
    *state = ChannelState::Over;
    self.guest.tell(state);
    self.js.tell(self.lock());
  }

  /// Answers the guest. Whether anybody has waited for it. JavaScript's thread.
  pub fn answer(&self, answer: Result<Step, HostFunctionError>) -> bool {
    let mut state = self.lock();
    let is_open = matches!(*state, ChannelState::Open);
    if is_open {
      *state = ChannelState::Asked(answer);
      self.guest.tell(state);
    }
    is_open
  }

  /// Has the guest's thread make a step, and waits for it: microseconds. `None` where the call is over.
  /// JavaScript's thread.
  pub fn ask(&self, step: Step) -> Option<BlockReply> {
    let is_asleep = self.guest.is_asleep.load(Ordering::Relaxed);
    if !self.answer(Ok(step)) {
      return None;
    }
    let spin = |has_news: &spin::Flag| {
      // To wake a thread takes longer, and may need this core.
      if !is_asleep {
        spin::until(SPIN, || has_news.is_set());
      }
    };
    self.wait(&self.js, spin, |state| match state {
      ChannelState::Replied(reply) => {
        let reply = std::mem::take(reply);
        *state = ChannelState::Open;
        Some(Some(reply))
      }
      ChannelState::Over => Some(None),
      _ => None,
    })
  }

  /// The variables of the plugin; `None` where the call is over.
  pub fn vars(&self) -> Option<&Vars> {
    (!self.is_over()).then_some(&self.vars)
  }
}

/// Does what JavaScript wants, on the guest's thread, until it answers.
pub fn serve(
  channel: &Arc<Channel>,
  invocation: &mut Invocation<'_>,
) -> Result<Answer, HostFunctionError> {
  let interruption = invocation.interruption();
  let interrupted = Arc::clone(channel);
  let _watch = interruption.watch(move || interrupted.end());
  let _over = EndOnDrop(channel);
  loop {
    let step = channel.wait(
      &channel.guest,
      spin_for_answer,
      |state| match std::mem::replace(state, ChannelState::Over) {
        ChannelState::Asked(step) => {
          *state = match &step {
            Ok(Step::Answer(_)) | Err(_) => ChannelState::Over,
            Ok(_) => ChannelState::Working,
          };
          Some(Some(step))
        }
        ChannelState::Over => Some(None),
        other => {
          *state = other;
          None
        }
      },
    );
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
    let mut state = channel.lock();
    if matches!(*state, ChannelState::Working) {
      *state = ChannelState::Replied(reply);
      channel.js.tell(state);
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

/// Spins until JavaScript answers, if that has paid lately for this thread: functions that answer at once
/// do so before a thread that sleeps would have been woken.
fn spin_for_answer(changed: &spin::Flag) {
  thread_local! {
    static BACKOFF: Cell<spin::SpinBackoff> = const { Cell::new(spin::SpinBackoff::NEW) };
  }
  let mut backoff = BACKOFF.get();
  if backoff.is_due()
    && let Some(spinner) = spin::Spinner::new()
  {
    backoff.learn(spinner.spin_wait(|| changed.is_set()));
  }
  BACKOFF.set(backoff);
}

/// The calls that JavaScript has been told of and has not answered, by their numbers.
#[derive(Default)]
pub struct OpenHostCalls {
  open: HashMap<u32, Arc<Channel>>,
  next: u32,
  /// Prune finished calls when the map reaches this size.
  prune_at: usize,
}

impl OpenHostCalls {
  const MIN_PRUNE: usize = 256;

  /// Numbers a call.
  pub fn add(&mut self, channel: Arc<Channel>) -> u32 {
    let number = self.next;
    self.next = number.wrapping_add(1);
    if self.open.len() >= self.prune_at {
      // Some are never answered, and their calls have ended otherwise.
      self.open.retain(|_, channel| !channel.is_over());
      self.prune_at = Self::MIN_PRUNE.max(2 * self.open.len());
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
