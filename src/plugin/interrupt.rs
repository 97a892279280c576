//! Waiting until an interruption has struck.
//!
//! Extism interrupts by a message to a thread of its own, which then raises the epoch of an engine.
//! An instance can end by itself while the message is on its way, and the epoch is raised under the
//! next one, which has the same engine. So before that one is made, [`all_have_struck`] makes sure
//! that no message is left.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use extism::{
  CancelHandle, CompiledPlugin, Function, Manifest, Plugin, PluginBuilder, UserData, Wasm,
};

/// Calls the host until it is interrupted.
const PROBE: &str = r#"
  (module
    (import "extism:host/user" "wait" (func $wait))
    (func (export "run") (loop $again (call $wait) (br $again))))
"#;

thread_local! {
  /// What interrupts the probe on this thread; `None` once that has been asked for.
  static INTERRUPT: RefCell<Option<CancelHandle>> = const { RefCell::new(None) };
}

/// Returns when all interruptions that were sent before have raised their epochs.
///
/// It runs a probe, with an engine that nobody else has, and has it interrupted. Messages are taken
/// one after the other, so when the probe ends those before have been taken too.
pub fn all_have_struck() -> Result<(), extism::Error> {
  // One at a time: the probes share an engine, and another's interruption must not end this one.
  static COMPILED: Mutex<Option<CompiledPlugin>> = Mutex::new(None);
  let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
  let compiled = match &mut *compiled {
    Some(compiled) => compiled,
    none => none.insert(compile()?),
  };
  let mut plugin = Plugin::new_from_compiled(compiled)?;
  INTERRUPT.set(Some(plugin.cancel_handle()));
  // It ends with an error: it has been interrupted.
  let _ = plugin.call::<&[u8], ()>("run", &[]);
  Ok(())
}

fn compile() -> Result<CompiledPlugin, extism::Error> {
  let wait = Function::new(
    "wait",
    [],
    [],
    UserData::<()>::default(),
    |_, _, _, _| match INTERRUPT.take() {
      Some(interrupt) => interrupt.cancel(),
      None => {
        std::thread::yield_now();
        Ok(())
      }
    },
  );
  let manifest = Manifest::new([Wasm::data(PROBE)]);
  PluginBuilder::new(manifest)
    .with_wasi(false)
    .with_functions([wait])
    .with_cache_disabled()
    .compile()
}
