//! The only room that knows Node-API. `index.js` is its only caller: it has validated what arrives
//! here, and makes the errors, since an `Error` made natively is of another realm under Jest.

mod boundary;
mod event_queue;
mod host_call;
mod logger;
mod memory_store;
mod plugin;
mod pool;
mod store;
mod store_watch;

use napi_derive::napi;

/// The names of all codes that errors may have, each at the place of its number less one.
#[napi]
pub fn error_codes() -> Vec<&'static str> {
  crate::Code::ALL.map(crate::Code::as_str).to_vec()
}

/// Panics are caught where they can happen and become rejections. The hook that would print them
/// first is this addon's alone, as the Rust standard library is linked into it.
fn silence_panics() {
  static ONCE: std::sync::Once = std::sync::Once::new();
  ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}
