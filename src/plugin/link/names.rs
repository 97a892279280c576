//! The names that the linked module uses at its border.
//!
//! No name that a user chose is an import or export of the linked module. The host knows these names,
//! and [`Linked`](super::Linked) lists those that are numbered.

/// Where the linked module imports host functions from. Each is named after its number.
pub const FUNCTION: &str = "extism-host:function";

/// Where the linked module imports those functions of the kernel from that the kernel's module does not
/// export.
pub const KERNEL: &str = "extism-host:kernel";

/// The export of the kernel's memory with the blocks.
pub const BLOCKS: &str = "extism-host:blocks";

/// The export of the kernel's memory with the table of blocks.
pub const TABLE: &str = "extism-host:table";

/// The export of the memory that interrupt checks read.
pub const INTERRUPT: &str = "extism-host:interrupt";

/// The export of the memory that WASI uses. The name is WASI's.
pub const MEMORY: &str = "memory";

/// The export of the memory with this number among all that modules define.
pub fn state_memory(number: u32) -> String {
  format!("extism-host:state/memory/{number}")
}

/// The export of the mutable global with this number.
pub fn state_global(number: u32) -> String {
  format!("extism-host:state/global/{number}")
}

/// What the names of the kernel's functions begin with in backtraces.
pub const KERNEL_FUNCTION: &str = "extism-host:kernel/";

/// The export of the initializer with this number.
pub fn init(number: usize) -> String {
  format!("extism-host:init/{number}")
}

/// The export of the callable function with this number.
pub fn call(number: usize) -> String {
  format!("extism-host:call/{number}")
}

/// Where modules import WASI from that have the further WASI memory with this number, from 1.
pub fn wasi(number: usize) -> String {
  format!("extism-host:wasi/{number}")
}

/// The export of the further WASI memory with this number, from 1.
pub fn wasi_memory(number: usize) -> String {
  format!("extism-host:memory/{number}")
}
