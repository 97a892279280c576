//! The names that modules have for one another once they are prepared.
//!
//! No name that a user chose reaches the linker: user modules are numbered, and their imports are
//! rewritten. So a user may call a module whatever he likes (`main`, `env`, `extism:host/user`),
//! and what is not in a table of the preparation cannot be imported at all.

/// What begins with this is ours. Modules that import from such a name, or are named or export so,
/// are refused.
pub const RESERVED: &str = "extism-host:";

/// Extism's kernel, and the namespace from which plugins import it.
pub const KERNEL: &str = "extism:host/env";
/// The namespace of host functions, unless they say another.
pub const USER: &str = "extism:host/user";
/// Where plugins built with the 0.x PDK, and TinyGo's `//export` without `//go:wasmimport`, import
/// from.
pub const ENV: &str = "env";
/// WASI preview 1.
pub const WASI: &str = "wasi_snapshot_preview1";
/// The module that Extism calls: to it, the driver; to a user, his own.
pub const MAIN: &str = "main";

/// The guard (`guard.wat`).
pub const GUARD: &str = "extism-host:guard";
/// The gate (`driver.rs`).
pub const GATE: &str = "extism-host:gate";
/// The functions of the host that only the driver and the gate import.
pub const HOST: &str = "extism-host:host";
/// The driver's only export.
pub const RUN: &str = "extism-host:run";

/// The name of the user module that is linked after this many others. Names sort as the numbers do.
pub fn module(rank: usize) -> String {
  format!("extism-host:module/{rank:08}")
}

/// The name under which the gate exports the host function with this number, and the host defines
/// it.
pub fn function(number: usize) -> String {
  format!("function/{number}")
}

/// The table by which the gate reaches what the fixups answer of WASI (`wasi.rs`).
pub const WASI_TABLE: &str = "wasi";

/// The name under which the gate exports what stands for a function of WASI for the user module with this
/// number.
pub fn wasi(module: usize, function: &str) -> String {
  format!("wasi/{module}/{function}")
}

/// The name of the fixup of the user module with this number.
pub fn fixup(module: usize) -> String {
  format!("extism-host:wasi/{module:08}")
}

/// Exports that tell Wasmtime's linker or Extism to run something. They get another name, and the
/// driver runs them instead.
const HIDDEN: [(&str, &str); 4] = [
  ("_start", "extism-host:_start"),
  ("_initialize", "extism-host:_initialize"),
  ("__wasm_call_ctors", "extism-host:__wasm_call_ctors"),
  ("hs_init", "extism-host:hs_init"),
];

/// The export that stands for a module's start section.
pub const START: &str = "extism-host:start";

/// The name under which an export is found once its module is prepared.
pub fn export(name: &str) -> &str {
  HIDDEN
    .iter()
    .find(|(original, _)| *original == name)
    .map_or(name, |(_, hidden)| hidden)
}
