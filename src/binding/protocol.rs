//! The layout of the memory that Rust and JavaScript share: an array of numbers (the header), a buffer for
//! short outputs, and messages. JavaScript reads these constants from the addon.
//!
//! The header begins with JavaScript's arguments to a function on the Rust side, followed by the number of
//! results, whether more remain, and the results.

#![allow(missing_docs, reason = "constants of a group are documented together")]

use napi_derive::napi;

use crate::abi;

// The arguments of a call: the number of its result, the export, how many bytes of the inbox are its input,
// its time limit in milliseconds (0 for the plugin's limit), whether it is the caller's only pending call,
// and whether its result may be taken at once.
#[napi]
pub const HEADER_NUMBER: u32 = 0;
#[napi]
pub const HEADER_EXPORT: u32 = 1;
#[napi]
pub const HEADER_INPUT_BYTES: u32 = 2;
#[napi]
pub const HEADER_TIMEOUT_MS: u32 = 3;
#[napi]
pub const HEADER_IS_ALONE: u32 = 4;
#[napi]
pub const HEADER_MAY_TAKE: u32 = 5;

/// For every function that takes results: how many bytes of the shared buffer are in use.
#[napi]
pub const HEADER_SHARED_BYTES_USED: u32 = 6;

// The number of results that have been taken, and whether more remain.
#[napi]
pub const HEADER_COUNT: u32 = 7;
#[napi]
pub const HEADER_HAS_MORE: u32 = 8;

/// For `take`: whether it may spin for the next event. JavaScript sets this after answering guests, which are
/// then likely to make another host call or to finish soon.
#[napi]
pub const HEADER_MAY_SPIN: u32 = 9;

// A reply to a host call: the number of the host call, one of `REPLY_…`, and the bits of a number in two
// halves. Bytes are in the inbox, and `HEADER_INPUT_BYTES` is their length.
#[napi]
pub const HEADER_REPLY_TO: u32 = 10;
#[napi]
pub const HEADER_REPLY: u32 = 11;
#[napi]
pub const HEADER_REPLY_BITS: u32 = 12;

// Kinds of replies: answer with a number; answer with a new block with these bytes; allocate such a block
// without answering yet.
#[napi]
pub const REPLY_NUMBER: u32 = 0;
#[napi]
pub const REPLY_BYTES: u32 = 1;
#[napi]
pub const REPLY_STORE: u32 = 2;

/// Where the results begin.
#[napi]
pub const HEADER_ITEMS: u32 = 14;

/// The length of a result in the header: the number of its call, its code (0 if the call succeeded), and its
/// [`Location`].
#[napi]
pub const ITEM_LENGTH: u32 = 4;

/// In place of an offset: the result is the next value in the array beside the shared buffer.
#[napi]
pub const OUT_OF_BAND: u32 = u32::MAX;

/// In place of a length: the value beside the buffer is the result itself, not memory with its bytes.
#[napi]
pub const JS_VALUE: u32 = 1;

/// In place of a code: a guest calls a host function in JavaScript; the location is that of its message.
#[napi]
pub const HOST_CALL: u32 = u32::MAX;

/// In place of a code: a guest has logged a message; the location is that of the message.
#[napi]
pub const LOG: u32 = u32::MAX - 1;

/// In place of a code: the call succeeded with an empty output. With the code 0, no bytes mean no output.
#[napi]
pub const EMPTY_OUTPUT: u32 = u32::MAX - 2;

/// In place of a call's number: there is no call.
#[napi]
pub const NO_CALL: u32 = u32::MAX;

// The results of queuing a call: it is queued; it is queued and `Plugin::wake` must be called in this turn of
// the event loop; its result has been taken; results must be taken soon, as they cause no wake-up.
pub const CALL_QUEUED: u32 = 0;
#[napi]
pub const CALL_MUST_WAKE: u32 = 1;
#[napi]
pub const CALL_TAKEN: u32 = 2;
#[napi]
pub const CALL_MUST_TAKE: u32 = 3;

// The message of a host call consists of 32-bit numbers: its number, the plugin, the function, the type of
// the result, and the number of arguments. Each argument has its type, its bits in two halves and the length
// of its block. The bytes of included blocks follow.
#[napi]
pub const HOST_CALL_NUMBER: u32 = 0;
#[napi]
pub const HOST_CALL_PLUGIN: u32 = 1;
#[napi]
pub const HOST_CALL_FUNCTION: u32 = 2;
#[napi]
pub const HOST_CALL_RESULT: u32 = 3;
#[napi]
pub const HOST_CALL_COUNT: u32 = 4;
#[napi]
pub const HOST_CALL_ARGUMENTS: u32 = 5;
#[napi]
pub const ARGUMENT_TYPE: u32 = 0;
#[napi]
pub const ARGUMENT_BITS: u32 = 1;
#[napi]
pub const ARGUMENT_BLOCK_LENGTH: u32 = 3;
#[napi]
pub const ARGUMENT_LENGTH: u32 = 4;

// The types of arguments and results. 0 means no result.
#[napi]
pub const TYPE_I32: u32 = 1;
#[napi]
pub const TYPE_I64: u32 = 2;
#[napi]
pub const TYPE_F32: u32 = 3;
#[napi]
pub const TYPE_F64: u32 = 4;

/// Flag of an argument's type: its block is included.
#[napi]
pub const BLOCK_INCLUDED: u32 = 16;

// The message for a logger consists of two 32-bit numbers, the plugin and the level, and the text.
#[napi]
pub const LOG_PLUGIN: u32 = 0;
#[napi]
pub const LOG_LEVEL: u32 = 1;
#[napi]
pub const LOG_TEXT: u32 = 2;

/// The namespace of Extism's kernel, from which plugins import it.
#[napi]
pub const KERNEL_NAMESPACE: &str = abi::KERNEL;

/// The default namespace of host functions.
#[napi]
pub const USER_NAMESPACE: &str = abi::USER;

/// The namespace of WASI preview 1.
#[napi]
pub const WASI_NAMESPACE: &str = abi::WASI;

/// The name of the main module, whose functions are called.
#[napi]
pub const MAIN_MODULE: &str = abi::MAIN;

/// Names with this prefix are reserved.
#[napi]
pub const RESERVED_PREFIX: &str = abi::RESERVED;

/// The arguments of a call in the header.
pub struct CallArguments {
  /// The number of its result.
  pub number: u32,
  /// The number of the exported function.
  pub export: u32,
  /// How many bytes of the inbox are its input.
  pub input_bytes: u32,
  /// The time limit in milliseconds; 0 for the plugin's limit.
  pub timeout_ms: u32,
  /// Whether it is the caller's only pending call.
  pub is_alone: bool,
  /// Whether its result may be taken at once.
  pub may_take: bool,
}

impl CallArguments {
  /// Reads the arguments from the header.
  pub fn read(header: &[u32]) -> Self {
    Self {
      number: number(header, HEADER_NUMBER),
      export: number(header, HEADER_EXPORT),
      input_bytes: number(header, HEADER_INPUT_BYTES),
      timeout_ms: number(header, HEADER_TIMEOUT_MS),
      is_alone: number(header, HEADER_IS_ALONE) != 0,
      may_take: number(header, HEADER_MAY_TAKE) != 0,
    }
  }
}

/// A number in the header; 0 beyond its end.
pub fn number(header: &[u32], index: u32) -> u32 {
  header.get(index as usize).copied().unwrap_or_default()
}

/// The location of a result's bytes.
#[derive(Clone, Copy)]
pub struct Location {
  /// The offset in the shared buffer.
  pub offset: u32,
  /// The length in bytes.
  pub length: u32,
}

impl Location {
  /// Memory outside the shared buffer.
  pub const OUT_OF_BAND: Self = Self {
    offset: OUT_OF_BAND,
    length: 0,
  };

  /// A JavaScript value outside the shared buffer.
  pub const JS_VALUE: Self = Self {
    offset: OUT_OF_BAND,
    length: JS_VALUE,
  };
}
