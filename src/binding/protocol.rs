//! The layout of the memory that Rust and JavaScript share: an array of numbers (the header), and a
//! buffer for short outputs. `lib/calls.js` reads and writes the same.

/// What the header begins with: what JavaScript has to say to a function of this side.
pub const ARGUMENTS: usize = 7;

/// What comes after that in the header: how many results there are, and whether there are more.
pub const SUMMARY: usize = 2;

/// What a result has in the header: the number of its call, its code (0 if the call succeeded), and its
/// [`Location`].
pub const ITEM: usize = 4;

/// In place of an offset: the next of the values that are handed over beside the shared buffer.
const OUT_OF_BAND: u32 = u32::MAX;

/// In place of a length: the value beside the buffer is what JavaScript gets, and not memory with bytes.
const JS_VALUE: u32 = 1;

/// In place of a code: a host function in JavaScript has been called; its message is where an output
/// would be.
pub const HOST_CALL: u32 = u32::MAX;

/// In place of a code: a message for the plugin's logger; the numbers of the plugin and of its level,
/// then the text, are where an output would be.
pub const LOG: u32 = u32::MAX - 1;

/// In place of a call's number: none.
pub const NO_CALL: u32 = u32::MAX;

/// Added to the type of an argument whose block is in the message of a host call.
pub const BLOCK_INCLUDED: u32 = 16;

/// What JavaScript says of a call.
pub struct CallArguments {
  /// The number that its result has.
  pub number: u32,
  /// The function.
  pub export: u32,
  /// How many bytes of the inbox are its input.
  pub length: u32,
  /// How long it may take; 0 for the plugin's limit.
  pub timeout_ms: u32,
  /// Whether its caller waits for nothing else.
  pub is_alone: bool,
  /// Whether its result may be taken at once.
  pub may_take: bool,
}

impl From<[u32; ARGUMENTS]> for CallArguments {
  fn from(arguments: [u32; ARGUMENTS]) -> Self {
    let [number, export, length, timeout_ms, is_alone, may_take, _] = arguments;
    Self {
      number,
      export,
      length,
      timeout_ms,
      is_alone: is_alone != 0,
      may_take: may_take != 0,
    }
  }
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
