//! The manifest and options of a plugin, as JavaScript passes them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;

use crate::host::store::DEFAULT_MAX_VALUE;
use crate::host::{Permissions, http};
use crate::plugin::interrupt::Interruptions;
use crate::plugin::{self, CompileCache, Source};

/// A manifest and options, as `index.js` merges them.
#[napi(object)]
pub struct PluginOptions {
  /// The modules.
  pub wasm: Vec<WasmOptions>,
  /// The configuration that guests read with `config_get`.
  pub config: HashMap<String, String>,
  /// The time limit of a call in milliseconds.
  pub timeout_ms: Option<u32>,
  /// How many pages of 64 KiB an instance's memories may grow by.
  pub max_pages: Option<u32>,
  /// The limit of all values of the plugin's variables in bytes.
  pub max_var_bytes: Option<u32>,
  /// The hosts that guests may send HTTP requests to.
  pub allowed_hosts: Vec<String>,
  /// The size limit of an HTTP response's body in bytes.
  pub max_http_response_bytes: Option<u32>,
  /// Whether guests may read the headers of HTTP responses.
  pub allow_http_response_headers: bool,
  /// A file with additional certificates to trust.
  pub extra_certificates: Option<String>,
  /// The size limit of an output in bytes.
  pub max_output_bytes: Option<u32>,
  /// The fuel of a call.
  pub fuel: Option<f64>,
  /// Whether each call gets a new instance.
  pub is_isolated: bool,
  /// Whether instances start from a snapshot of the state after initialization.
  pub snapshot: bool,
  /// How many calls an instance serves before it is replaced.
  pub max_calls: Option<f64>,
  /// The age in milliseconds from which an instance is replaced after a call.
  pub max_age_ms: Option<f64>,
  /// Whether guests may import WASI.
  pub use_wasi: bool,
  /// The directories that guests may use through WASI.
  pub allowed_paths: Vec<AllowedPath>,
  /// The guests' WASI arguments.
  pub arguments: Vec<String>,
  /// The guests' WASI environment variables.
  pub environment: HashMap<String, String>,
  /// Where the guests' output goes: `process`, `logger`, or nowhere if it is missing.
  pub output: Option<String>,
  /// How calls are interrupted: `page` or `epoch`; the best way for the system by default.
  pub interruption: Option<String>,
  /// The runtime: `extism` is the reference runtime; missing means the default.
  pub runtime: Option<String>,
  /// The compile cache; no cache if missing.
  pub compile_cache: Option<CompileCacheOptions>,
  /// The number of instances; at least 1.
  pub instances: u32,
  /// Whether all instances start immediately.
  pub eager: bool,
  /// The limit of unfinished calls; at least 1.
  pub max_queue: u32,
  /// The limit of the inputs of queued calls in bytes.
  pub max_queue_bytes: f64,
  /// JavaScript's id of the plugin, for host calls and log messages.
  pub plugin_id: u32,
  /// The host functions in JavaScript; a function's index is its number.
  pub functions: Vec<FunctionName>,
  /// What guests may do with the store.
  pub store_permissions: StorePermissions,
  /// The lowest level that is logged, from 0 for trace to 4 for error; missing to log nothing.
  pub log_level: Option<u32>,
}

/// A directory that guests may use.
#[napi(object)]
pub struct AllowedPath {
  /// Its path on the host.
  pub host: String,
  /// The path that guests see.
  pub guest: String,
  /// Whether guests may only read.
  pub read_only: bool,
}

/// What guests may do with the store.
#[napi(object)]
pub struct StorePermissions {
  /// Prepended to each key.
  pub prefix: String,
  /// Whether guests may write.
  pub can_write: bool,
  /// The size limit of values that guests set, in bytes.
  pub max_value_bytes: Option<f64>,
  /// The limit of keys under the prefix.
  pub max_keys: Option<f64>,
}

impl From<&StorePermissions> for Permissions {
  fn from(permissions: &StorePermissions) -> Self {
    Self {
      prefix: permissions.prefix.clone(),
      can_write: permissions.can_write,
      max_value: permissions
        .max_value_bytes
        .map_or(DEFAULT_MAX_VALUE, |bytes| bytes as usize),
      max_keys: permissions.max_keys.map(|keys| keys as u64),
    }
  }
}

/// The name of a host function in JavaScript.
#[napi(object)]
pub struct FunctionName {
  /// Where guests import it from.
  pub namespace: String,
  /// The name under which they do.
  pub name: String,
}

/// The compile cache.
#[napi(object)]
pub struct CompileCacheOptions {
  /// The directory; missing means the default.
  pub directory: Option<String>,
  /// The size limit in bytes; missing means the default.
  pub max_bytes: Option<i64>,
}

impl From<Option<CompileCacheOptions>> for CompileCache {
  fn from(options: Option<CompileCacheOptions>) -> Self {
    match options {
      None => Self::Off,
      Some(options) => Self::On {
        directory: options.directory.map(PathBuf::from),
        max_bytes: options
          .max_bytes
          .and_then(|bytes| u64::try_from(bytes).ok()),
      },
    }
  }
}

/// A module: a path or bytes.
#[napi(object)]
pub struct WasmOptions {
  /// The path of the file.
  pub path: Option<String>,
  /// The bytes.
  pub data: Option<Uint8Array>,
  /// The module's name for linking.
  pub name: Option<String>,
  /// The SHA-256 hash in hexadecimal.
  pub hash: Option<String>,
}

impl From<WasmOptions> for plugin::Wasm {
  fn from(wasm: WasmOptions) -> Self {
    Self {
      source: match (wasm.path, wasm.data) {
        (Some(path), _) => Source::Path(PathBuf::from(path)),
        (None, data) => Source::Bytes(data.map(|data| data.to_vec()).unwrap_or_default()),
      },
      name: wasm.name,
      hash: wasm.hash,
    }
  }
}

impl From<PluginOptions> for plugin::Manifest {
  fn from(options: PluginOptions) -> Self {
    Self {
      wasm: options.wasm.into_iter().map(plugin::Wasm::from).collect(),
      config: options.config.into_iter().collect(),
      timeout: options
        .timeout_ms
        .map(|timeout| Duration::from_millis(timeout.into())),
      max_pages: options.max_pages,
      max_vars: options.max_var_bytes.map(|bytes| bytes as usize),
      max_output: options.max_output_bytes.map(u64::from),
      http: http::HttpOptions {
        allowed_hosts: options.allowed_hosts,
        max_response: options.max_http_response_bytes.map(u64::from),
        allows_response_headers: options.allow_http_response_headers,
        extra_certificates: options.extra_certificates.map(PathBuf::from),
      },
      fuel: options.fuel.map(|fuel| fuel as u64),
      snapshot: options.snapshot,
      use_wasi: options.use_wasi,
      allowed_paths: options
        .allowed_paths
        .into_iter()
        .map(|path| plugin::AllowedPath {
          host: path.host.into(),
          guest: path.guest.into(),
          is_read_only: path.read_only,
        })
        .collect(),
      arguments: options.arguments,
      environment: options.environment.into_iter().collect(),
      output: match options.output.as_deref() {
        Some("process") => plugin::OutputTo::Process,
        Some("logger") => plugin::OutputTo::Logger,
        _ => plugin::OutputTo::Nowhere,
      },
      interruptions: match options.interruption.as_deref() {
        Some("epoch") => Some(Interruptions::Epoch),
        Some("page") => Some(Interruptions::Page),
        _ => None,
      },
      runtime: match options.runtime.as_deref() {
        Some("extism") => plugin::RuntimeKind::Extism,
        _ => plugin::RuntimeKind::Wasmtime,
      },
      compile_cache: options.compile_cache.into(),
    }
  }
}
