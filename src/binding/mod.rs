//! The only module that knows Node-API. `index.js` is its only caller: it has validated what arrives
//! here, and makes the errors, since an `Error` made natively is of another realm under Jest.

mod boundary;
mod completion_queue;
mod event_queue;
mod host_call;
mod host_functions;
mod js_thread;
mod logger;
mod memory_store;
mod plugin;
mod plugin_options;
mod pool;
mod protocol;
mod store;
mod store_reply;
mod store_watch;

use napi_derive::napi;

/// The names of all codes that errors may have, each at the index of its number less one.
#[napi]
pub fn error_codes() -> Vec<&'static str> {
  crate::Code::ALL.map(crate::Code::as_str).to_vec()
}
