//! Limits on a plugin's modules, so that compiling it takes bounded time and memory.
//!
//! The compiler's cost is not proportional to the size of a module: 96 KB with 50,000 locals and 5,000 loops
//! in one function took 38 seconds and 2.6 GB. Each limit is at least three times what the largest known real
//! modules need (docs/architecture.md lists them), except for data segments, of which no engine accepts more.
//! In the worst known cases, modules within the limits still take minutes of one core, so the limits do not
//! replace a deadline for untrusted plugins.

use super::LinkError;

/// A limit on the number of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
  /// What is counted, for the error message.
  pub what: &'static str,
  /// The largest accepted number.
  pub max: u64,
}

/// Total size of all user modules in bytes, data and names included.
pub const BYTES: Limit = limit("bytes of WebAssembly", 384 << 20);
/// Total size of all function bodies in bytes.
pub const CODE_BYTES: Limit = limit("bytes of code", 256 << 20);
/// Functions that user modules define.
pub const FUNCTIONS: Limit = limit("functions", 300_000);
/// Types that user modules define.
pub const TYPES: Limit = limit("types", 50_000);
/// Imports of user modules, imports from each other included.
pub const IMPORTS: Limit = limit("imports", 100_000);
/// Exports of user modules.
pub const EXPORTS: Limit = limit("exports", 250_000);
/// Globals that user modules define.
pub const GLOBALS: Limit = limit("globals", 100_000);
/// Memories that user modules define. Each reserves several gigabytes of address space.
pub const MEMORIES: Limit = limit("memories", 16);
/// Tables that user modules define.
pub const TABLES: Limit = limit("tables", 32);
/// Tags that user modules define.
pub const TAGS: Limit = limit("tags", 1_000);
/// Data segments. The WebAssembly JavaScript API and Wasmtime have the same limit.
pub const DATA_SEGMENTS: Limit = limit("data segments", 100_000);
/// Element segments.
pub const ELEMENT_SEGMENTS: Limit = limit("element segments", 50_000);
/// Elements of all segments together.
pub const ELEMENTS: Limit = limit("elements in segments", 1 << 20);
/// Size of one function body in bytes.
pub const BODY_BYTES: Limit = limit("bytes in one function", 4 << 20);
/// Parameters and locals of one function.
pub const LOCALS: Limit = limit("locals in one function", 10_000);
/// Blocks, loops, conditions and `br_table` targets in one function.
pub const CONTROLS: Limit = limit("blocks and branch targets in one function", 200_000);
/// The complexity of one function: see [`PLUGIN_COMPLEXITY`].
pub const FUNCTION_COMPLEXITY: Limit = limit("the complexity of one function", 16 << 20);
/// The complexity of all functions together.
///
/// The compiler tracks each local and each value on the stack through each block. So a block, loop, condition
/// or `br_table` target counts as the number of the function's locals plus the values that it takes and
/// returns; a call, branch or constructor counts as the values that it takes and returns.
pub const PLUGIN_COMPLEXITY: Limit = limit("the complexity of all functions", 160 << 20);

/// The nesting depth of loops. 500 nested loops with 500 locals, 12 KB, took 90 seconds to compile.
pub const LOOP_DEPTH: Limit = limit("nested loops", 64);
/// The complexity of the loops of one function: see [`PLUGIN_LOOP_COMPLEXITY`].
pub const FUNCTION_LOOP_COMPLEXITY: Limit =
  limit("the complexity of the loops of one function", 512 << 20);
/// The complexity of all loops together.
///
/// The compiler assigns registers to all values that are live in a loop, and its work grows with the square
/// of their number. So a loop counts as the square of the number of locals and values on the stack. Without
/// optimizations, compilers produce thousands of locals that are live only briefly: `printf` of a C library
/// has 2,452 locals and 53 loops, a complexity of 319 million. In the worst known case, a complexity of 250
/// million takes 22 seconds.
pub const PLUGIN_LOOP_COMPLEXITY: Limit = limit("the complexity of all loops", 512 << 20);

/// The largest name section that is read, in bytes. Larger ones are dropped.
pub const NAME_SECTION_BYTES: usize = 4 << 20;

const fn limit(what: &'static str, max: u64) -> Limit {
  Limit { what, max }
}

impl Limit {
  /// Fails if `found` exceeds the limit.
  pub fn check(&self, module: &str, found: u64) -> Result<(), LinkError> {
    if found <= self.max {
      return Ok(());
    }
    Err(LinkError::TooLarge {
      module: module.to_owned(),
      what: self.what,
      found,
      limit: self.max,
    })
  }
}

/// How much of a limit all modules read so far have used.
pub(super) struct LimitCounter {
  limit: Limit,
  used: u64,
}

impl LimitCounter {
  const fn new(limit: Limit) -> Self {
    Self { limit, used: 0 }
  }

  /// Adds `more`. Fails, naming `module`, if that exceeds the limit.
  pub fn add(&mut self, module: &str, more: u64) -> Result<(), LinkError> {
    self.used = self.used.saturating_add(more);
    self.limit.check(module, self.used)
  }
}

/// What all modules of a plugin use together.
pub(super) struct LimitUsage {
  pub bytes: LimitCounter,
  pub code_bytes: LimitCounter,
  pub functions: LimitCounter,
  pub types: LimitCounter,
  pub imports: LimitCounter,
  pub exports: LimitCounter,
  pub globals: LimitCounter,
  pub memories: LimitCounter,
  pub tables: LimitCounter,
  pub tags: LimitCounter,
  pub data_segments: LimitCounter,
  pub element_segments: LimitCounter,
  pub elements: LimitCounter,
  pub complexity: LimitCounter,
  pub loop_complexity: LimitCounter,
}

impl Default for LimitUsage {
  fn default() -> Self {
    Self {
      bytes: LimitCounter::new(BYTES),
      code_bytes: LimitCounter::new(CODE_BYTES),
      functions: LimitCounter::new(FUNCTIONS),
      types: LimitCounter::new(TYPES),
      imports: LimitCounter::new(IMPORTS),
      exports: LimitCounter::new(EXPORTS),
      globals: LimitCounter::new(GLOBALS),
      memories: LimitCounter::new(MEMORIES),
      tables: LimitCounter::new(TABLES),
      tags: LimitCounter::new(TAGS),
      data_segments: LimitCounter::new(DATA_SEGMENTS),
      element_segments: LimitCounter::new(ELEMENT_SEGMENTS),
      elements: LimitCounter::new(ELEMENTS),
      complexity: LimitCounter::new(PLUGIN_COMPLEXITY),
      loop_complexity: LimitCounter::new(PLUGIN_LOOP_COMPLEXITY),
    }
  }
}
