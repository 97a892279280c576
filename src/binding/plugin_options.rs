//! What JavaScript says of a plugin that is to be loaded.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;

use crate::host::store::DEFAULT_MAX_VALUE;
use crate::host::{Permissions, http};
use crate::plugin::interrupt::Interruptions;
use crate::plugin::{self, CompileCache, Source};

/// A manifest and options, as `index.js` has merged them.
#[napi(object)]
pub struct PluginOptions {
  /// The modules.
  pub wasm: Vec<WasmOptions>,
  /// What the guest reads with `config_get`.
  pub config: HashMap<String, String>,
  /// Milliseconds that a call may take.
  pub timeout_ms: Option<u32>,
  /// Pages of 64 KiB that an instance's memories may grow by.
  pub max_pages: Option<u32>,
  /// Bytes that the values of the plugin's variables may have.
  pub max_var_bytes: Option<u32>,
  /// Hosts that guests may send HTTP requests to.
  pub allowed_hosts: Vec<String>,
  /// Bytes that the body of an HTTP response may have.
  pub max_http_response_bytes: Option<u32>,
  /// Whether guests may read the headers of HTTP responses.
  pub allow_http_response_headers: bool,
  /// A file with certificates that are trusted.
  pub extra_certificates: Option<String>,
  /// Bytes that an output may have.
  pub max_output_bytes: Option<u32>,
  /// Units of fuel that a call has.
  pub fuel: Option<f64>,
  /// Whether each call has an instance of its own.
  pub is_isolated: bool,
  /// Whether instances start from the state after the initialization.
  pub snapshot: bool,
  /// How many calls an instance serves before it is replaced.
  pub max_calls: Option<f64>,
  /// How many milliseconds old an instance may be after a call and not be replaced.
  pub max_age_ms: Option<f64>,
  /// Whether guests may import WASI.
  pub use_wasi: bool,
  /// Directories that they may use then.
  pub allowed_paths: Vec<AllowedPath>,
  /// Their arguments.
  pub arguments: Vec<String>,
  /// Their environment.
  pub environment: HashMap<String, String>,
  /// Where their output goes: `process`, `logger`, or nowhere.
  pub output: Option<String>,
  /// How a call that runs for too long is interrupted: `page` or `epoch`; the best way of the system
  /// without it.
  pub interruption: Option<String>,
  /// What runs the plugin: `extism` for the reference runtime; the default without it.
  pub runtime: Option<String>,
  /// Where compiled modules are kept; nowhere without it.
  pub compile_cache: Option<CompileCacheOptions>,
  /// How many instances; at least 1.
  pub instances: u32,
  /// Whether all of them are started at once.
  pub eager: bool,
  /// How many calls may be unfinished; at least 1.
  pub max_queue: u32,
  /// How many bytes the inputs of waiting calls may have together.
  pub max_queue_bytes: f64,
  /// What JavaScript knows the plugin by when its guests call functions or log.
  pub plugin_id: u32,
  /// Functions in JavaScript; each is known by its index.
  pub functions: Vec<FunctionName>,
  /// What guests may do with the store.
  pub store_permissions: StorePermissions,
  /// The least level of messages that are wanted, from 0 for trace to 4 for error; none without it.
  pub log_level: Option<u32>,
}

/// A directory that guests may use.
#[napi(object)]
pub struct AllowedPath {
  /// Where it is.
  pub host: String,
  /// What guests call it.
  pub guest: String,
  /// Whether they may only read there.
  pub read_only: bool,
}

/// What guests may do with the store.
#[napi(object)]
pub struct StorePermissions {
  /// What is put before each key.
  pub prefix: String,
  /// Whether they may change it.
  pub can_write: bool,
  /// Bytes that a value may have which they set.
  pub max_value_bytes: Option<f64>,
  /// Keys that there may be when they add one.
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

/// A function in JavaScript.
#[napi(object)]
pub struct FunctionName {
  /// Where guests import it from.
  pub namespace: String,
  /// The name under which they do.
  pub name: String,
}

/// Where compiled modules are kept.
#[napi(object)]
pub struct CompileCacheOptions {
  /// The directory; without it, the default.
  pub directory: Option<String>,
  /// How many bytes it may have; without it, the default.
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

/// One module: a path or bytes.
#[napi(object)]
pub struct WasmOptions {
  /// Where the file is.
  pub path: Option<String>,
  /// The bytes.
  pub data: Option<Uint8Array>,
  /// The name for linking.
  pub name: Option<String>,
  /// SHA-256 in hexadecimal.
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
