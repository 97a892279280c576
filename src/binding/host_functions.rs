//! Host functions that are implemented in JavaScript.

use std::sync::Arc;

use super::completion_queue::{CompletionQueue, Event};
use super::host_call::{Channel, HostCall, serve};
use crate::abi::ValueType;
use crate::host::{Answer, HostFunction, Invocation, UntypedFunction};

/// Creates one plugin's host functions in JavaScript.
pub struct JsFunctions {
  /// JavaScript's id of the plugin.
  pub plugin_id: u32,
  /// The queue for host calls.
  pub queue: Arc<CompletionQueue>,
}

impl JsFunctions {
  /// The host function that JavaScript knows by `number`.
  pub fn function(&self, number: u32, namespace: String, name: String) -> UntypedFunction {
    let (plugin_id, queue) = (self.plugin_id, Arc::clone(&self.queue));
    let (own_namespace, own_name) = (namespace.clone(), name.clone());
    UntypedFunction {
      namespace,
      name,
      typed: Arc::new(move |function, vars| {
        let (vars, queue) = (Arc::clone(vars), Arc::clone(&queue));
        let (function_type, result) = (function.clone(), function.results.first().copied());
        let body = move |invocation: &mut Invocation<'_>| {
          let channel = Arc::new(Channel::new(Arc::clone(&vars)));
          let call = HostCall::new(
            plugin_id,
            number,
            &function_type,
            invocation,
            Arc::clone(&channel),
          );
          queue.push(Event::HostCall(call));
          serve(&channel, invocation).map(|answer| convert(answer, result))
        };
        HostFunction::new(
          own_namespace.clone(),
          own_name.clone(),
          function.params,
          result,
          body,
        )
      }),
    }
  }
}

/// Converts an answer to the function's result type: JavaScript answers with the bits of a number.
fn convert(answer: Answer, result: Option<ValueType>) -> Answer {
  match (answer, result) {
    (_, None) => Answer::Nothing,
    (Answer::I64(bits), Some(ValueType::I32)) => Answer::I32(bits as i32),
    (Answer::I64(bits), Some(ValueType::F32)) => Answer::F32(f32::from_bits(bits as u32)),
    (Answer::I64(bits), Some(ValueType::F64)) => Answer::F64(f64::from_bits(bits as u64)),
    (answer, Some(_)) => answer,
  }
}
