//! The host functions that a plugin has in JavaScript.

use std::sync::Arc;

use super::completion_queue::{CompletionQueue, Event};
use super::host_call::{Channel, HostCall, serve};
use crate::abi::ValueType;
use crate::host::{Answer, HostFunction, Invocation, UntypedFunction};

/// The functions of one plugin, as JavaScript knows them.
pub struct JsFunctions {
  /// What JavaScript knows the plugin by.
  pub plugin_id: u32,
  /// Where its calls go.
  pub queue: Arc<CompletionQueue>,
}

impl JsFunctions {
  /// The function with this number.
  pub fn function(&self, number: u32, namespace: String, name: String) -> UntypedFunction {
    let (plugin_id, queue) = (self.plugin_id, Arc::clone(&self.queue));
    let (to, called) = (namespace.clone(), name.clone());
    UntypedFunction {
      namespace,
      name,
      typed: Arc::new(move |function, vars| {
        let (vars, queue) = (Arc::clone(vars), Arc::clone(&queue));
        let (ty, result) = (function.clone(), function.results.first().copied());
        let body = move |invocation: &mut Invocation<'_>| {
          let channel = Arc::new(Channel::new(Arc::clone(&vars)));
          let call = HostCall::new(plugin_id, number, &ty, invocation, Arc::clone(&channel));
          queue.push(Event::HostCall(call));
          serve(&channel, invocation).map(|answer| typed(answer, result))
        };
        HostFunction::new(to.clone(), called.clone(), function.params, result, body)
      }),
    }
  }
}

/// Gives an answer the type of the function's result: JavaScript answers with the bits of a number.
fn typed(answer: Answer, result: Option<ValueType>) -> Answer {
  match (answer, result) {
    (_, None) => Answer::Nothing,
    (Answer::I64(bits), Some(ValueType::I32)) => Answer::I32(bits as i32),
    (Answer::I64(bits), Some(ValueType::F32)) => Answer::F32(f32::from_bits(bits as u32)),
    (Answer::I64(bits), Some(ValueType::F64)) => Answer::F64(f64::from_bits(bits as u64)),
    (answer, Some(_)) => answer,
  }
}
