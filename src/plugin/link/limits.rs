//! What a plugin may hold, so that compiling it takes bounded time and memory.
//!
//! The compiler's cost is not proportional to the size of a module: 96 KB with 50,000 locals and 5,000
//! loops in one function took 38 seconds and 2.6 GB. Each limit is at least three times what the largest
//! real modules found need (docs/architecture.md has them), except for data segments, of which no engine
//! takes more. In the worst cases found, what passes still takes minutes of one core, so the limits do not
//! replace a deadline for untrusted plugins.

use super::LinkError;

/// A number that must not be exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
  /// What is counted.
  pub what: &'static str,
  /// The largest number that is accepted.
  pub most: u64,
}

/// Bytes of all user modules together, data and names included.
pub const BYTES: Limit = limit("bytes of WebAssembly", 384 << 20);
/// Bytes of all function bodies together.
pub const CODE_BYTES: Limit = limit("bytes of code", 256 << 20);
/// Functions that user modules define.
pub const FUNCTIONS: Limit = limit("functions", 300_000);
/// Types that user modules define.
pub const TYPES: Limit = limit("types", 50_000);
/// Imports of user modules, those from one another included.
pub const IMPORTS: Limit = limit("imports", 100_000);
/// Exports of user modules.
pub const EXPORTS: Limit = limit("exports", 250_000);
/// Globals that user modules define.
pub const GLOBALS: Limit = limit("globals", 100_000);
/// Memories that user modules define. Each reserves some gigabytes of address space.
pub const MEMORIES: Limit = limit("memories", 16);
/// Tables that user modules define.
pub const TABLES: Limit = limit("tables", 32);
/// Tags that user modules define.
pub const TAGS: Limit = limit("tags", 1_000);
/// Data segments: as many as the WebAssembly JavaScript API allows, and Wasmtime.
pub const DATA_SEGMENTS: Limit = limit("data segments", 100_000);
/// Element segments.
pub const ELEMENT_SEGMENTS: Limit = limit("element segments", 50_000);
/// Elements of all segments together.
pub const ELEMENTS: Limit = limit("elements in segments", 1 << 20);
/// Bytes of one function's body.
pub const BODY_BYTES: Limit = limit("bytes in one function", 4 << 20);
/// Parameters and locals of one function.
pub const LOCALS: Limit = limit("locals in one function", 10_000);
/// Blocks, loops, conditions and `br_table` targets of one function.
pub const CONTROLS: Limit = limit("blocks and branch targets in one function", 200_000);
/// The complexity of one function: see [`PLUGIN_COMPLEXITY`].
pub const FUNCTION_COMPLEXITY: Limit = limit("the complexity of one function", 16 << 20);
/// The complexity of all functions together.
///
/// The compiler tracks each local and each value on the stack through each block. So a block, loop,
/// condition or `br_table` target counts as many as the function has locals, plus the values that it
/// takes and gives; a call, branch or constructor counts the values that it takes and gives.
pub const PLUGIN_COMPLEXITY: Limit = limit("the complexity of all functions", 160 << 20);

/// Loops inside one another. 500 of them with 500 locals, 12 KB, took 90 seconds to compile.
pub const LOOP_DEPTH: Limit = limit("loops inside one another", 64);
/// The complexity of the loops of one function: see [`PLUGIN_LOOP_COMPLEXITY`].
pub const FUNCTION_LOOP_COMPLEXITY: Limit =
  limit("the complexity of the loops of one function", 512 << 20);
/// The complexity of all loops together.
///
/// The compiler assigns registers to all values that live through a loop, and its work grows with the
/// square of their number. So a loop counts the square of the number of locals and values on the stack.
/// Without optimizations, compilers leave thousands of locals that do not live that long: `printf` of a C library
/// has 2,452 and 53 loops, 319 million. In the worst case found, a complexity of 250 million takes 22 seconds.
pub const PLUGIN_LOOP_COMPLEXITY: Limit = limit("the complexity of all loops", 512 << 20);

/// The longest name section that is read, in bytes. Longer ones are dropped.
pub const NAME_SECTION_BYTES: usize = 4 << 20;

const fn limit(what: &'static str, most: u64) -> Limit {
  Limit { what, most }
}

impl Limit {
  /// Refuses a number above the limit.
  pub fn check(&self, module: &str, found: u64) -> Result<(), LinkError> {
    if found <= self.most {
      return Ok(());
    }
    Err(LinkError::TooLarge {
      module: module.to_owned(),
      what: self.what,
      found,
      limit: self.most,
    })
  }
}

/// How much of a limit the modules read so far have used.
pub(super) struct Count {
  limit: Limit,
  used: u64,
}

impl Count {
  const fn new(limit: Limit) -> Self {
    Self { limit, used: 0 }
  }

  /// Counts more. `module` is named if that exceeds the limit.
  pub fn add(&mut self, module: &str, more: u64) -> Result<(), LinkError> {
    self.used = self.used.saturating_add(more);
    self.limit.check(module, self.used)
  }
}

/// What all modules of a plugin use together.
pub(super) struct Usage {
  pub bytes: Count,
  pub code_bytes: Count,
  pub functions: Count,
  pub types: Count,
  pub imports: Count,
  pub exports: Count,
  pub globals: Count,
  pub memories: Count,
  pub tables: Count,
  pub tags: Count,
  pub data_segments: Count,
  pub element_segments: Count,
  pub elements: Count,
  pub complexity: Count,
  pub loop_complexity: Count,
}

impl Default for Usage {
  fn default() -> Self {
    Self {
      bytes: Count::new(BYTES),
      code_bytes: Count::new(CODE_BYTES),
      functions: Count::new(FUNCTIONS),
      types: Count::new(TYPES),
      imports: Count::new(IMPORTS),
      exports: Count::new(EXPORTS),
      globals: Count::new(GLOBALS),
      memories: Count::new(MEMORIES),
      tables: Count::new(TABLES),
      tags: Count::new(TAGS),
      data_segments: Count::new(DATA_SEGMENTS),
      element_segments: Count::new(ELEMENT_SEGMENTS),
      elements: Count::new(ELEMENTS),
      complexity: Count::new(PLUGIN_COMPLEXITY),
      loop_complexity: Count::new(PLUGIN_LOOP_COMPLEXITY),
    }
  }
}
