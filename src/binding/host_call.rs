//! Calls of host functions in JavaScript. The guest's thread blocks; the event loop does not.
//!
//! JavaScript answers at any time, and until then may access blocks of the guest's memory. Only the guest's
//! thread can do that. It is awake then and does nothing else, so the JavaScript thread waits for it.

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

/// How many bytes of blocks a message includes, so that JavaScript need not request them.
const MAX_INCLUDED: usize = 64 << 10;

/// How long the JavaScript thread spins for the guest's thread before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// A request from JavaScript to the guest's thread.
#[derive(Clone, Debug)]
pub enum Step {
  /// Resume the guest with this result. Always the last step.
  Answer(Answer),
  /// Allocate a block with these bytes.
  Store(Bytes),
  /// Allocate a zeroed block of this length.
  Allocate(u64),
  /// Read the block that starts at this offset.
  Inspect(u64),
  /// Set the plugin's error, with which the call fails when the guest returns; an empty message clears it.
  SetError(Bytes),
}

/// A call of a host function in JavaScript.
pub struct HostCall {
  /// The number of the plugin's call that it belongs to.
  pub call: Option<u64>,
  /// The encoded message for JavaScript, see `protocol.rs`.
  pub message: Vec<u8>,
  /// The channel to the guest's thread.
  pub channel: Arc<Channel>,
}

impl HostCall {
  /// Encodes a call of the function `number`.
  pub fn new(
    plugin_id: u32,
    number: u32,
    function_type: &FunctionType,
    invocation: &mut Invocation<'_>,
    channel: Arc<Channel>,
  ) -> Self {
    let result = function_type
      .results
      .first()
      .map_or(0, |result| type_number(*result));
    let mut numbers = vec![0; HOST_CALL_ARGUMENTS as usize];
    numbers[HOST_CALL_PLUGIN as usize] = plugin_id;
    numbers[HOST_CALL_FUNCTION as usize] = number;
    numbers[HOST_CALL_RESULT as usize] = result;
    numbers[HOST_CALL_COUNT as usize] = function_type.params.len() as u32;
    let mut blocks = Vec::new();
    for (index, param) in function_type.params.iter().enumerate() {
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
      argument[ARGUMENT_TYPE as usize] = type_number(*param) | included;
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

  /// Writes the host call's number into the message.
  pub fn set_number(&mut self, number: u32) {
    let start = HOST_CALL_NUMBER as usize * size_of::<u32>();
    if let Some(slot) = self.message.get_mut(start..start + size_of::<u32>()) {
      slot.copy_from_slice(&number.to_le_bytes());
    }
  }
}

fn type_number(value: ValueType) -> u32 {
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

/// The channel between JavaScript and the guest's thread for one host call.
pub struct Channel {
  state: Mutex<ChannelState>,
  guest: WaitingSide,
  js: WaitingSide,
  vars: Arc<Vars>,
}

/// The state in which one of the two threads waits for the other.
#[derive(Default)]
struct WaitingSide {
  /// Set when the state changes; the thread spins on it.
  has_changed: spin::Flag,
  /// Whether the thread sleeps. Changed under the lock of the state.
  is_asleep: AtomicBool,
  woken: Condvar,
}

impl WaitingSide {
  /// Notifies the thread of a change of the state, and unlocks the state.
  fn notify(&self, state: MutexGuard<'_, ChannelState>) {
    let is_asleep = self.is_asleep.load(Ordering::Relaxed);
    drop(state);
    self.has_changed.set();
    // Notifying costs a system call even if the thread is awake.
    if is_asleep {
      self.woken.notify_one();
    }
  }
}

enum ChannelState {
  /// The guest's thread waits for JavaScript.
  Open,
  /// JavaScript has requested this step.
  Requested(Result<Step, HostFunctionError>),
  /// The guest's thread performs the step.
  Working,
  /// The guest's thread has performed the step.
  Replied(BlockReply),
  /// The call was answered or interrupted.
  Ended,
}

/// The reply to a request for a block.
#[derive(Default)]
pub struct BlockReply {
  /// The block's offset; 0 if there is none.
  pub offset: u64,
  /// Its length.
  pub length: u64,
  /// Its contents, if requested.
  pub bytes: Option<Bytes>,
}

impl Channel {
  /// A channel for a new call.
  pub fn new(vars: Arc<Vars>) -> Self {
    Self {
      state: Mutex::new(ChannelState::Open),
      guest: WaitingSide::default(),
      js: WaitingSide::default(),
      vars,
    }
  }

  fn lock(&self) -> MutexGuard<'_, ChannelState> {
    self.state.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Waits on one side until `take` returns a value. Calls `spin` once, to spin on the flag, before it
  /// sleeps.
  fn wait<T>(
    &self,
    side: &WaitingSide,
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
        side.has_changed.clear();
        drop(state);
        spin(&side.has_changed);
        state = self.lock();
      } else {
        side.is_asleep.store(true, Ordering::Relaxed);
        let woken = side.woken.wait(state);
        state = woken.unwrap_or_else(PoisonError::into_inner);
        side.is_asleep.store(false, Ordering::Relaxed);
      }
    }
  }

  /// Whether the call has ended.
  pub fn has_ended(&self) -> bool {
    matches!(*self.lock(), ChannelState::Ended)
  }

  /// Ends the call from either side, and notifies both.
  pub fn end(&self) {
    let mut state = self.lock();
    *state = ChannelState::Ended;
    self.guest.notify(state);
    self.js.notify(self.lock());
  }

  /// Sends a step to the guest's thread; returns whether it was waiting. JavaScript thread only.
  pub fn send(&self, step: Result<Step, HostFunctionError>) -> bool {
    let mut state = self.lock();
    let is_open = matches!(*state, ChannelState::Open);
    if is_open {
      *state = ChannelState::Requested(step);
      self.guest.notify(state);
    }
    is_open
  }

  /// Has the guest's thread perform a step, and waits for the reply, which takes microseconds. `None` if the
  /// call has ended. JavaScript thread only.
  pub fn request(&self, step: Step) -> Option<BlockReply> {
    let is_asleep = self.guest.is_asleep.load(Ordering::Relaxed);
    if !self.send(Ok(step)) {
      return None;
    }
    let spin = |has_changed: &spin::Flag| {
      // Waking a thread takes longer than spinning, and the thread may need this core.
      if !is_asleep {
        spin::until(SPIN, || has_changed.is_set());
      }
    };
    self.wait(&self.js, spin, |state| match state {
      ChannelState::Replied(reply) => {
        let reply = std::mem::take(reply);
        *state = ChannelState::Open;
        Some(Some(reply))
      }
      ChannelState::Ended => Some(None),
      _ => None,
    })
  }

  /// The variables of the plugin; `None` if the call has ended.
  pub fn vars(&self) -> Option<&Vars> {
    (!self.has_ended()).then_some(&self.vars)
  }
}

/// Performs JavaScript's steps on the guest's thread until it answers.
pub fn serve(
  channel: &Arc<Channel>,
  invocation: &mut Invocation<'_>,
) -> Result<Answer, HostFunctionError> {
  let interruption = invocation.interruption();
  let interrupted = Arc::clone(channel);
  let _watch = interruption.watch(move || interrupted.end());
  let _end_on_drop = EndOnDrop(channel);
  loop {
    let step = channel.wait(
      &channel.guest,
      spin_for_answer,
      |state| match std::mem::replace(state, ChannelState::Ended) {
        ChannelState::Requested(step) => {
          *state = match &step {
            Ok(Step::Answer(_)) | Err(_) => ChannelState::Ended,
            Ok(_) => ChannelState::Working,
          };
          Some(Some(step))
        }
        ChannelState::Ended => Some(None),
        other => {
          *state = other;
          None
        }
      },
    );
    // This error is never reported: the code that interrupted the call reports why.
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
      channel.js.notify(state);
    }
  }
}

struct EndOnDrop<'a>(&'a Channel);

impl Drop for EndOnDrop<'_> {
  fn drop(&mut self) {
    self.0.end();
  }
}

/// Spins until JavaScript answers, if spinning has recently paid off on this thread: a function that answers
/// synchronously does so faster than a sleeping thread wakes up.
fn spin_for_answer(has_changed: &spin::Flag) {
  thread_local! {
    static BACKOFF: Cell<spin::SpinBackoff> = const { Cell::new(spin::SpinBackoff::NEW) };
  }
  let mut backoff = BACKOFF.get();
  if backoff.is_due()
    && let Some(spinner) = spin::Spinner::new()
  {
    backoff.learn(spinner.spin_wait(|| has_changed.is_set()));
  }
  BACKOFF.set(backoff);
}

/// The unanswered host calls that JavaScript knows, by number.
#[derive(Default)]
pub struct OpenHostCalls {
  open: HashMap<u32, Arc<Channel>>,
  next: u32,
  /// Prune finished calls when the map reaches this size.
  prune_at: usize,
}

impl OpenHostCalls {
  const MIN_PRUNE: usize = 256;

  /// Adds a call, and returns its number.
  pub fn add(&mut self, channel: Arc<Channel>) -> u32 {
    let number = self.next;
    self.next = number.wrapping_add(1);
    if self.open.len() >= self.prune_at {
      // Some calls end without an answer.
      self.open.retain(|_, channel| !channel.has_ended());
      self.prune_at = Self::MIN_PRUNE.max(2 * self.open.len());
    }
    self.open.insert(number, channel);
    number
  }

  pub fn get(&self, number: u32) -> Option<Arc<Channel>> {
    self.open.get(&number).cloned()
  }

  /// Removes a call that is being answered.
  pub fn remove(&mut self, number: u32) -> Option<Arc<Channel>> {
    self.open.remove(&number)
  }
}
