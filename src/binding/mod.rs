//! The Node-API binding; no other module uses Node-API. The package's JavaScript is its only caller: it
//! validates the arguments and creates the errors, since under Jest an `Error` that is created natively
//! belongs to another realm.

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
mod trace;

use napi_derive::napi;

/// The names of all error codes. The index of a code is its number minus 1.
#[napi]
pub fn error_codes() -> Vec<&'static str> {
  crate::Code::ALL.map(crate::Code::as_str).to_vec()
}
