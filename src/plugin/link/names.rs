//! The names of the linked module's imports and exports.
//!
//! None of them was chosen by a user. The host knows these names, and [`Linked`](super::Linked) lists
//! the numbered ones.

/// The namespace of host functions. Each is named after its number.
pub const FUNCTION: &str = "extism-host:function";

/// The namespace of the kernel functions that the host implements, because the kernel's module does not
/// export them.
pub const KERNEL: &str = "extism-host:kernel";

/// The export of the kernel's memory with the blocks.
pub const BLOCKS: &str = "extism-host:blocks";

/// The export of the kernel's memory with the table of blocks.
pub const TABLE: &str = "extism-host:table";

/// The export of the memory that interrupt checks read.
pub const INTERRUPT: &str = "extism-host:interrupt";

/// The export of the memory that WASI uses. The name is WASI's.
pub const MEMORY: &str = "memory";

/// The export of the user-module memory with this number.
pub fn state_memory(number: u32) -> String {
  format!("extism-host:state/memory/{number}")
}

/// The export of the mutable global with this number.
pub fn state_global(number: u32) -> String {
  format!("extism-host:state/global/{number}")
}

/// Prefix of the kernel's functions in backtraces.
pub const KERNEL_FUNCTION: &str = "extism-host:kernel/";

/// The export of the initializer with this number.
pub fn init(number: usize) -> String {
  format!("extism-host:init/{number}")
}

/// The export of the callable function with this number.
pub fn call(number: usize) -> String {
  format!("extism-host:call/{number}")
}

/// The namespace of WASI for the modules that use the additional WASI memory with this number, counted
/// from 1.
pub fn wasi(number: usize) -> String {
  format!("extism-host:wasi/{number}")
}

/// The export of the additional WASI memory with this number, counted from 1.
pub fn wasi_memory(number: usize) -> String {
  format!("extism-host:memory/{number}")
}
