//! The only room that knows Node-API. `index.js` is its only caller: it has validated what arrives
//! here, and makes the errors, since an `Error` made natively is of another realm under Jest.

mod completions;
mod memory_store;
mod plugin;

use napi_derive::napi;

/// An error on its way to `index.js`.
#[napi(object)]
pub struct Failure {
  /// The stable code.
  pub code: String,
  /// The message for people.
  pub message: String,
}

impl From<crate::Error> for Failure {
  fn from(error: crate::Error) -> Self {
    Self {
      code: error.code.as_str().to_owned(),
      message: error.message,
    }
  }
}

/// Panics are caught where they can happen and become rejections. The hook that would print them
/// first is this addon's alone, as the Rust standard library is linked into it.
fn silence_panics() {
  static ONCE: std::sync::Once = std::sync::Once::new();
  ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}
