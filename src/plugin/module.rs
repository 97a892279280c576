//! What a module wants and offers, read from its bytes before anything is compiled.

use std::collections::HashMap;

use wasmparser::types::EntityType;
use wasmparser::{Parser, ValType, Validator, WasmFeatures};

use super::manifest::{LoadedModule, MAIN};
use crate::{Code, Error, Result, host};

const WASI: &str = "wasi_snapshot_preview1";

/// What guests can import from `extism:host/env`: Extism's kernel and its built-in functions.
const EXTISM_FUNCTIONS: [&str; 32] = [
  "alloc",
  "config_get",
  "error_get",
  "error_set",
  "free",
  "get_log_level",
  "http_headers",
  "http_request",
  "http_status_code",
  "input_length",
  "input_load_u64",
  "input_load_u8",
  "input_offset",
  "input_set",
  "length",
  "length_unsafe",
  "load_u64",
  "load_u8",
  "log_debug",
  "log_error",
  "log_info",
  "log_trace",
  "log_warn",
  "memory_bytes",
  "output_length",
  "output_offset",
  "output_set",
  "reset",
  "store_u64",
  "store_u8",
  "var_get",
  "var_set",
];

/// An inspected module.
pub struct Module {
  imports: Vec<(String, String)>,
  exports: HashMap<String, Export>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Export {
  /// `() -> i32` or `() -> ()`: what a plugin's functions look like.
  PluginFunction,
  Other,
}

impl Module {
  /// Validates `bytes` and reads their imports and exports.
  pub fn inspect(name: &str, bytes: &[u8]) -> Result<Self> {
    let invalid = |reason: String| {
      Error::new(
        Code::InvalidWasm,
        format!("module \"{name}\" is not valid WebAssembly: {reason}"),
      )
    };
    if !Parser::is_core_wasm(bytes) {
      return Err(invalid(
        "it is a component; Extism runs core modules".to_owned(),
      ));
    }
    let types = Validator::new_with_features(WasmFeatures::all())
      .validate_all(bytes)
      .map_err(|error| invalid(error.to_string()))?;
    let types = types.as_ref();
    let imports = types.core_imports().into_iter().flatten();
    let exports = types.core_exports().into_iter().flatten();
    Ok(Self {
      imports: imports
        .map(|(module, name, _)| (module.to_owned(), name.to_owned()))
        .collect(),
      exports: exports
        .map(|(name, entity)| {
          let is_plugin_function = match entity {
            EntityType::Func(id) | EntityType::FuncExact(id) => {
              let function = types[id].unwrap_func();
              function.params().is_empty() && matches!(function.results(), [] | [ValType::I32])
            }
            _ => false,
          };
          let export = match is_plugin_function {
            true => Export::PluginFunction,
            false => Export::Other,
          };
          (name.to_owned(), export)
        })
        .collect(),
    })
  }

  /// The names of the functions that can be called.
  pub fn functions(&self) -> impl Iterator<Item = &str> {
    self
      .exports
      .iter()
      .filter(|(_, export)| **export == Export::PluginFunction)
      .map(|(name, _)| name.as_str())
  }
}

/// Inspects all modules of a plugin, checks that somebody provides each import, and gives back the
/// main one.
pub fn inspect_all(modules: &[LoadedModule], use_wasi: bool) -> Result<Module> {
  let mut inspected = HashMap::new();
  for module in modules {
    inspected.insert(
      module.name.as_str(),
      Module::inspect(&module.name, &module.bytes)?,
    );
  }
  for (importer, module) in &inspected {
    for (namespace, name) in &module.imports {
      let found = match namespace.as_str() {
        extism::EXTISM_ENV_MODULE => EXTISM_FUNCTIONS.contains(&name.as_str()),
        WASI => use_wasi,
        _ => false,
      } || (host::NAMESPACES.contains(&namespace.as_str())
        && host::NAMES.contains(&name.as_str()))
        || inspected
          .get(namespace.as_str())
          .is_some_and(|provider| provider.exports.contains_key(name));
      if !found {
        let advice = match namespace.as_str() {
          WASI => "pass `useWasi: true` to give the plugin WASI",
          _ => "no host function and no linked module has that name",
        };
        return Err(Error::new(
          Code::MissingImport,
          format!("module \"{importer}\" imports `{namespace}.{name}`: {advice}"),
        ));
      }
    }
  }
  inspected
    .remove(MAIN)
    .ok_or_else(|| Error::new(Code::Internal, "no main module was loaded"))
}
