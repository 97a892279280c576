//! Converts the record of a traced call for JavaScript.

use std::time::Duration;

use napi_derive::napi;

use crate::trace::{Operation, OperationKind, Summary};

/// The record of a traced call.
#[napi(object, object_from_js = false)]
pub struct TraceSummary {
  /// The time that it waited for an instance, in milliseconds.
  pub queue_ms: f64,
  /// The time that it ran, in milliseconds; missing if it never started.
  pub run_ms: Option<f64>,
  /// Its first operations.
  pub operations: Vec<TracedOperation>,
  /// The number of operations beyond those.
  pub dropped_operations: u32,
}

/// An operation of a guest: one on its store if there is a `system`, otherwise an HTTP request.
#[napi(object, object_from_js = false)]
pub struct TracedOperation {
  /// When it started, in milliseconds after the call.
  pub offset_ms: f64,
  /// The duration, in milliseconds.
  pub duration_ms: f64,
  /// The name of the host function, or the method of the request.
  pub name: String,
  /// The kind of store.
  pub system: Option<&'static str>,
  /// The URL of the request.
  pub url: Option<String>,
  /// The status of the response.
  pub status: Option<u32>,
  /// The reason of a failure: the code of a store's error, or a message.
  pub error: Option<String>,
}

fn milliseconds(duration: Duration) -> f64 {
  duration.as_secs_f64() * 1e3
}

impl From<Summary> for TraceSummary {
  fn from(summary: Summary) -> Self {
    let operations = summary.operations.into_iter();
    Self {
      queue_ms: milliseconds(summary.queued),
      run_ms: summary.ran.map(milliseconds),
      operations: operations.map(TracedOperation::from).collect(),
      dropped_operations: summary.dropped,
    }
  }
}

impl From<Operation> for TracedOperation {
  fn from(operation: Operation) -> Self {
    let (name, system, url, status) = match operation.kind {
      OperationKind::Store { function, system } => (function.to_owned(), Some(system), None, None),
      OperationKind::Http {
        method,
        url,
        status,
      } => (method, None, Some(url), status),
    };
    Self {
      offset_ms: milliseconds(operation.offset),
      duration_ms: milliseconds(operation.duration),
      name,
      system,
      url,
      status: status.map(u32::from),
      error: operation.error,
    }
  }
}
