//! The engines of the process: one for each kind of configuration, shared by all plugins.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use wasmtime::{Config, Engine, OptLevel, WasmBacktraceDetails};

use super::interrupt::Interruptions;
use crate::{Code, Error, Result, signals};

/// What tells engines apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
  /// How instances are interrupted.
  pub interruptions: Interruptions,
  /// Whether what guests run is counted.
  pub has_fuel: bool,
}

/// The engine of that kind. Made when it is first asked for.
pub fn engine(kind: Kind) -> Result<Engine> {
  // Before the first engine, and again with each plugin, in case somebody has displaced the handlers.
  signals::ensure_installed();
  static ENGINES: LazyLock<Mutex<HashMap<Kind, Engine>>> = LazyLock::new(Mutex::default);
  let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
  if let Some(engine) = engines.get(&kind) {
    return Ok(engine.clone());
  }
  let engine = Engine::new(&configuration(kind)).map_err(|error| {
    Error::new(
      Code::Internal,
      format!("the WebAssembly runtime cannot be started: {error:#}"),
    )
  })?;
  engines.insert(kind, engine.clone());
  Ok(engine)
}

fn configuration(kind: Kind) -> Config {
  let mut config = Config::new();
  config
    .cranelift_opt_level(OptLevel::Speed)
    .consume_fuel(kind.has_fuel)
    .epoch_interruption(kind.interruptions == Interruptions::Epoch)
    // What guests may use is checked by the linker, which lets no atomics and shared memories pass. The
    // interrupt checks are atomic loads.
    .wasm_threads(true)
    .wasm_multi_memory(true)
    .wasm_memory64(true)
    .wasm_tail_call(true)
    .wasm_extended_const(true)
    .wasm_function_references(true)
    .wasm_gc(true)
    .wasm_relaxed_simd(true)
    // Names of functions are enough, and cost nothing until a trap.
    .wasm_backtrace_details(WasmBacktraceDetails::Disable)
    .generate_address_map(false)
    .native_unwind_info(false);
  config
}
