//! `http_request` and what belongs to it. Plugins cannot make requests: one that tries is told so.
//! One that only imports these functions is not hindered.

use super::{Answer, HostFunction, HostFunctionError};
use crate::plugin::names::KERNEL;
use crate::plugin::types::ValueType::{I32, I64};

/// The three functions of the PDK.
pub fn functions() -> Vec<HostFunction> {
  vec![
    HostFunction::new(KERNEL, "http_request", [I64, I64], Some(I64), |_| {
      Err(HostFunctionError::new(
        "http_request: HTTP is not available to plugins",
      ))
    }),
    HostFunction::new(KERNEL, "http_status_code", [], Some(I32), |_| {
      Ok(Answer::I32(0))
    }),
    HostFunction::new(KERNEL, "http_headers", [], Some(I64), |_| Ok(Answer::ZERO)),
  ]
}
