//! The host functions that guests can call, one file each.

mod host_memory_get;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use extism::{CurrentPlugin, Function, UserData, Val, ValType};

use crate::store::Store;

/// Where host functions are found by guests: Extism's namespace for them, and `env`, where
/// TinyGo's `//export` puts every import.
pub const NAMESPACES: [&str; 2] = [extism::EXTISM_USER_MODULE, "env"];

/// The names of all host functions, for the check of a module's imports.
pub const NAMES: [&str; 1] = [host_memory_get::NAME];

/// The host functions of a plugin that reads from `store`.
pub fn functions(store: &Arc<dyn Store>) -> Vec<Function> {
  NAMESPACES
    .iter()
    .map(|namespace| host_memory_get::function(Arc::clone(store)).with_namespace(*namespace))
    .collect()
}

/// A host function that takes one offset into kernel memory and returns one.
///
/// A panic in `body` becomes an error of the call: it must not unwind into Extism, which would
/// leave its locks poisoned.
fn from_offset_to_offset<F>(name: &str, body: F) -> Function
where
  F: Fn(&mut CurrentPlugin, u64) -> Result<u64, extism::Error> + Send + Sync + 'static,
{
  // What the function needs is captured in `body`: Extism's own user data is a mutex, which would
  // make all instances wait for one another.
  let user_data = UserData::<()>::default();
  let name_of_panic = name.to_owned();
  Function::new(
    name,
    [ValType::I64],
    [ValType::I64],
    user_data,
    move |plugin, inputs, outputs, _| {
      let offset = inputs.first().and_then(Val::i64).unwrap_or_default() as u64;
      let result = catch_unwind(AssertUnwindSafe(|| body(plugin, offset)))
        .unwrap_or_else(|_| Err(extism::Error::msg(format!("{name_of_panic} panicked"))))?;
      if let Some(output) = outputs.first_mut() {
        *output = Val::I64(result as i64);
      }
      Ok(())
    },
  )
}
