//! The layout of what Rust and JavaScript share: an array of numbers (the header), a buffer for short
//! outputs, and messages. JavaScript reads these constants from the addon.
//!
//! The header begins with what JavaScript has to say to a function of this side. After that come how
//! many results there are, whether there are more, and the results.

#![allow(missing_docs, reason = "constants of a group are explained together")]

use napi_derive::napi;

use crate::abi;

// The arguments of a call: the number that its result has, the function, how many bytes of the inbox
// are its input, how many milliseconds it may take (0 for the plugin's limit), whether its caller waits
// for nothing else, and whether its result may be taken at once.
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

/// For every function that takes results: how many bytes of the shared buffer are used.
#[napi]
pub const HEADER_SHARED_BYTES_USED: u32 = 6;

// How many results have been taken, and whether there are more.
#[napi]
pub const HEADER_COUNT: u32 = 7;
#[napi]
pub const HEADER_HAS_MORE: u32 = 8;

/// For `take`: whether it may spin for the next event, since guests have just been answered, and are likely to
/// go on with a host call or to end.
#[napi]
pub const HEADER_MAY_SPIN: u32 = 9;

// What a reply to a host call is: the number of the host call, one of the `REPLY_…`, and the bits of a number in
// two halves. Bytes are in the inbox, and `HEADER_INPUT_BYTES` tells how many.
#[napi]
pub const HEADER_REPLY_TO: u32 = 10;
#[napi]
pub const HEADER_REPLY: u32 = 11;
#[napi]
pub const HEADER_REPLY_BITS: u32 = 12;

// Kinds of replies: the answer is a number; it is a block with these bytes; such a block is made before the answer.
#[napi]
pub const REPLY_NUMBER: u32 = 0;
#[napi]
pub const REPLY_BYTES: u32 = 1;
#[napi]
pub const REPLY_STORE: u32 = 2;

/// Where the results begin.
#[napi]
pub const HEADER_ITEMS: u32 = 14;

/// What a result has in the header: the number of its call, its code (0 if the call succeeded), and its
/// [`Location`].
#[napi]
pub const ITEM_LENGTH: u32 = 4;

/// In place of an offset: the next of the values that are handed over beside the shared buffer.
#[napi]
pub const OUT_OF_BAND: u32 = u32::MAX;

/// In place of a length: the value beside the buffer is what JavaScript gets, and not memory with bytes.
#[napi]
pub const JS_VALUE: u32 = 1;

/// In place of a code: a host function in JavaScript has been called; its message is where an output
/// would be.
#[napi]
pub const HOST_CALL: u32 = u32::MAX;

/// In place of a code: a message for the plugin's logger is where an output would be.
#[napi]
pub const LOG: u32 = u32::MAX - 1;

/// In place of a code: the call succeeded, with an output without bytes. With the code 0, no bytes are no output.
#[napi]
pub const EMPTY_OUTPUT: u32 = u32::MAX - 2;

/// In place of a call's number: none.
#[napi]
pub const NO_CALL: u32 = u32::MAX;

// What starting a call returns: the call is queued; it is queued, and `Plugin::wake` must be called in
// this turn of the event loop; its result has been taken; there are results that must be taken soon, for
// nobody will be woken for them.
pub const CALL_QUEUED: u32 = 0;
#[napi]
pub const CALL_MUST_WAKE: u32 = 1;
#[napi]
pub const CALL_TAKEN: u32 = 2;
#[napi]
pub const CALL_MUST_TAKE: u32 = 3;

// The message of a host call is numbers of 32 bits: its number, the plugin, the function, the type of the
// result, and how many arguments there are. Each argument has its type, its bits in two halves and the
// length of its block. Then come the bytes of blocks that are included.
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

// The types of arguments and results. 0 is none.
#[napi]
pub const TYPE_I32: u32 = 1;
#[napi]
pub const TYPE_I64: u32 = 2;
#[napi]
pub const TYPE_F32: u32 = 3;
#[napi]
pub const TYPE_F64: u32 = 4;

/// Added to the type of an argument whose block is included.
#[napi]
pub const BLOCK_INCLUDED: u32 = 16;

// The message for a logger is two numbers of 32 bits, the plugin and the level, and the text.
#[napi]
pub const LOG_PLUGIN: u32 = 0;
#[napi]
pub const LOG_LEVEL: u32 = 1;
#[napi]
pub const LOG_TEXT: u32 = 2;

/// Extism's kernel, and the namespace from which plugins import it.
#[napi]
pub const KERNEL_NAMESPACE: &str = abi::KERNEL;

/// The namespace of host functions, unless they say another.
#[napi]
pub const USER_NAMESPACE: &str = abi::USER;

/// WASI preview 1.
#[napi]
pub const WASI_NAMESPACE: &str = abi::WASI;

/// The name of the module whose functions are called.
#[napi]
pub const MAIN_MODULE: &str = abi::MAIN;

/// What begins with this is ours.
#[napi]
pub const RESERVED_PREFIX: &str = abi::RESERVED;

/// What JavaScript says of a call.
pub struct CallArguments {
  /// The number that its result has.
  pub number: u32,
  /// The function.
  pub export: u32,
  /// How many bytes of the inbox are its input.
  pub input_bytes: u32,
  /// How long it may take; 0 for the plugin's limit.
  pub timeout_ms: u32,
  /// Whether its caller waits for nothing else.
  pub is_alone: bool,
  /// Whether its result may be taken at once.
  pub may_take: bool,
}

impl CallArguments {
  /// Reads them from the header; what a short one does not have is 0.
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

/// A number of the header; 0 beyond its end.
pub fn number(header: &[u32], index: u32) -> u32 {
  header.get(index as usize).copied().unwrap_or_default()
}

/// Where JavaScript finds the bytes of a result.
#[derive(Clone, Copy)]
pub struct Location {
  /// Their offset in the shared buffer.
  pub offset: u32,
  /// How many there are.
  pub length: u32,
}

impl Location {
  /// Memory beside the shared buffer.
  pub const OUT_OF_BAND: Self = Self {
    offset: OUT_OF_BAND,
    length: 0,
  };

  /// A value beside the shared buffer.
  pub const JS_VALUE: Self = Self {
    offset: OUT_OF_BAND,
    length: JS_VALUE,
  };
}
