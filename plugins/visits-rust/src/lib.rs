//! Counts visits, and says who came before: what a plugin does with a store, in Rust.

use extism_pdk::*;

#[link(wasm_import_module = "extism:host/user")]
unsafe extern "C" {
  safe fn hostStoreIncrement(key: u64, delta: i64) -> i64;
  safe fn hostStoreGet(key: u64) -> i64;
  safe fn hostStoreSet(key: u64, value: u64, ttl: i64) -> i64;
}

const MISSING: i64 = -1;
const DAY: i64 = 24 * 60 * 60 * 1000;

/// What the store has answered; an error where that is a negative number.
fn text(answer: i64) -> FnResult<String> {
  let offset = u64::try_from(answer).map_err(|_| Error::msg(format!("the store says {answer}")))?;
  match Memory::find(offset) {
    Some(memory) => Ok(memory.to_string()?),
    None => Ok(String::new()),
  }
}

#[plugin_fn]
pub fn visit(name: String) -> FnResult<String> {
  let visits = Memory::new(&format!("visits:{name}"))?;
  let (last, new) = (Memory::new(&"last")?, Memory::new(&name)?);

  let number = text(hostStoreIncrement(visits.offset(), 1))?;
  let before = match hostStoreGet(last.offset()) {
    MISSING => "nobody".to_owned(),
    answer => text(answer)?,
  };
  text(hostStoreSet(last.offset(), new.offset(), DAY))?;
  Ok(format!("visit {number} of {name}, after {before}"))
}
