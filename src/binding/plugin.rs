//! `Plugin` for JavaScript, and how one is made off the event loop.

use std::cell::Cell;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{
  Array, Either, Function, FunctionCallContext, Uint8Array, Uint8ArraySlice,
};
use napi_derive::napi;

use super::boundary::{Boundary, Finished, Outcome};
use super::host_call::Functions;
use super::logger::ToJavaScript;
use super::memory_store::MemoryStore;
use super::store::Store as AnyStore;
use crate::host::store::DEFAULT_MAX_VALUE;
use crate::host::{Access, Environment, Permissions, http};
use crate::plugin::interrupt::Interruptions;
use crate::plugin::spin::SpinBackoff;
use crate::plugin::{self, CompileCache, Limits, Queued, Source};
use crate::store::Store;
use crate::{Code, Error};

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
  /// What JavaScript knows the plugin by when its guests call functions or log.
  pub table: u32,
  /// Functions in JavaScript; each is known by its place.
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

/// What `Plugin::stats` tells.
#[napi(object)]
pub struct PluginStats {
  /// Calls that had an output.
  pub succeeded: f64,
  /// Calls that failed, by code.
  pub failed: HashMap<String, f64>,
  /// Calls that wait.
  pub queued: f64,
  /// Instances that run a call.
  pub busy: f64,
  /// Instances.
  pub instances: f64,
  /// Instances that were replaced, by reason.
  pub replaced: HashMap<String, f64>,
  /// Threads that hang in calls of the host and have been replaced.
  pub abandoned_threads: f64,
  /// What guests have asked of the store.
  pub store: StoreStats,
}

/// What guests have asked of a plugin's store.
#[napi(object)]
pub struct StoreStats {
  /// Keys that were looked up.
  pub reads: f64,
  /// Those of them that had a value.
  pub hits: f64,
  /// Changes that were made.
  pub writes: f64,
  /// What was refused or failed, by code.
  pub failed: HashMap<String, f64>,
}

/// Something that the main module exports, as `WebAssembly.Module.exports` describes it.
#[napi(object)]
pub struct ExportDescriptor {
  /// Its name.
  pub name: String,
  /// `function`, `table`, `memory` or `global`.
  pub kind: String,
}

/// Something that the main module imports, as `WebAssembly.Module.imports` describes it.
#[napi(object)]
pub struct ImportDescriptor {
  /// Where from.
  pub module: String,
  /// Its name there.
  pub name: String,
  /// `function`, `table`, `memory` or `global`.
  pub kind: String,
}

impl From<PluginOptions> for plugin::Manifest {
  fn from(options: PluginOptions) -> Self {
    Self {
      wasm: options.wasm.into_iter().map(plugin::Wasm::from).collect(),
      config: options.config.into_iter().collect(),
      timeout: options.timeout_ms.map(milliseconds),
      max_pages: options.max_pages,
      max_vars: options.max_var_bytes.map(|bytes| bytes as usize),
      max_output: options.max_output_bytes.map(u64::from),
      http: http::Options {
        allowed_hosts: options.allowed_hosts,
        max_response: options.max_http_response_bytes.map(u64::from),
        allows_response_headers: options.allow_http_response_headers,
        extra_certificates: options.extra_certificates.map(PathBuf::from),
      },
      fuel: options.fuel.map(|fuel| fuel as u64),
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

/// Loads and starts a plugin, which arrives under the number `call`.
#[napi(catch_unwind)]
pub fn open_plugin(
  call: u32,
  options: PluginOptions,
  store: Either<&MemoryStore, &AnyStore>,
  boundary: &Boundary,
) {
  let store: Arc<dyn Store> = match store {
    Either::A(store) => store.shared(),
    Either::B(store) => store.shared(),
  };
  let at_least_one = |number: u32| NonZeroUsize::new(number as usize).unwrap_or(NonZeroUsize::MIN);
  let limits = Limits {
    instances: at_least_one(options.instances),
    is_eager: options.eager,
    max_queue: at_least_one(options.max_queue),
    is_isolated: options.is_isolated,
  };
  let environment = environment(&options, store, boundary);
  let manifest = plugin::Manifest::from(options);
  let results = Arc::clone(&boundary.near().finished) as _;
  load(call, boundary, move || {
    plugin::Plugin::open(&manifest, limits, &environment, results).map(Outcome::Opened)
  });
}

/// Puts the handlers back that make errors of guests' traps, if somebody has displaced them. `listened` are
/// the names of those signals that JavaScript has listeners for now. Cheap.
#[napi(catch_unwind)]
pub fn put_back_signal_handlers(listened: Vec<String>) {
  plugin::put_back_signal_handlers(&listened);
}

/// What the plugin has of JavaScript.
fn environment(options: &PluginOptions, store: Arc<dyn Store>, boundary: &Boundary) -> Environment {
  let functions = Functions {
    table: options.table,
    finished: Arc::clone(&boundary.near().finished),
  };
  let names = (0..).zip(&options.functions);
  Environment {
    store: Arc::new(Access::new(store, (&options.store_permissions).into())),
    logger: Arc::new(ToJavaScript::new(
      options.table,
      options.log_level,
      Arc::clone(&functions.finished),
    )),
    functions: names
      .map(|(number, FunctionName { namespace, name })| {
        functions.function(number, namespace.clone(), name.clone())
      })
      .collect(),
  }
}

/// Fills the compile cache with what such a plugin needs; an empty result arrives under the number
/// `call`.
#[napi(catch_unwind)]
pub fn precompile(call: u32, options: PluginOptions, boundary: &Boundary) {
  // What the store has makes no difference to what is compiled.
  let store = Arc::new(crate::store::MemoryStore::new());
  let environment = environment(&options, store, boundary);
  let manifest = plugin::Manifest::from(options);
  load(call, boundary, move || {
    plugin::Plugin::precompile(&manifest, &environment).map(|()| Outcome::Output(Vec::new()))
  });
}

/// Does something on a thread of its own.
///
/// Not on libuv's pool: the end of the process waits for that, and a plugin may take as long as it
/// likes to initialize itself.
fn load(
  call: u32,
  boundary: &Boundary,
  work: impl FnOnce() -> crate::Result<Outcome> + Send + 'static,
) {
  let finished = Arc::clone(&boundary.near().finished);
  let loaded = Arc::clone(&finished);
  let spawned = thread::Builder::new()
    .name("extism-open".to_owned())
    .spawn(move || {
      let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let message = "the runtime panicked while it loaded the plugin";
        Err(Error::new(Code::Internal, message))
      });
      loaded.ended(call, result);
    });
  if let Err(error) = spawned {
    let message = format!("cannot start a thread to load the plugin: {error}");
    finished.ended(call, Err(Error::new(Code::Internal, message)));
  }
}

/// A running plugin. When JavaScript has forgotten it and its [`caller`](Self::caller), what it still
/// does is interrupted; so `calls.js` keeps it for as long as a call is unfinished.
#[napi]
pub struct Plugin {
  plugin: Arc<plugin::Plugin>,
  finished: Arc<Finished>,
}

impl Plugin {
  /// `finished` is where results go.
  pub fn new(plugin: plugin::Plugin, finished: Arc<Finished>) -> Self {
    Self {
      plugin: Arc::new(plugin),
      finished,
    }
  }
}

#[napi]
impl Plugin {
  /// The functions that can be called, each with the number of its export.
  #[napi(catch_unwind)]
  pub fn functions(&self) -> HashMap<String, u32> {
    let functions = self.plugin.functions();
    functions
      .map(|(name, export)| (name.to_owned(), export))
      .collect()
  }

  /// The function that queues a call, whose arguments are in the header ([`Arguments`]). It returns 1
  /// where [`wake`](Self::wake) is to be called, in this turn of the event loop. Where the result has
  /// come meanwhile, it returns 2, and has taken it as `take` would have; or 3 where it may not: then
  /// it is to be taken soon, for nobody will be woken for it. Otherwise it returns 0.
  #[napi(
    catch_unwind,
    ts_return_type = "(shared: Uint8Array, apart: unknown[]) => number"
  )]
  pub fn caller<'env>(
    &self,
    env: &'env Env,
    boundary: &Boundary,
  ) -> napi::Result<Function<'env, (Uint8Array, Array<'env>), u32>> {
    let plugin = Arc::clone(&self.plugin);
    let near = boundary.near();
    let habit = Cell::new(SpinBackoff::default());
    env.create_function_from_closure("call", move |context: FunctionCallContext<'_>| {
      let [number, export, length, timeout_ms, is_alone, may_take, _] = near.arguments();
      let mut call = call(number, export, near.input(length), timeout_ms);
      call.is_alone = is_alone != 0;
      let queued = plugin.queue(call);
      if queued != Queued::Awaited {
        return Ok(u32::from(queued == Queued::Asleep));
      }
      let mut lately = habit.get();
      let mut is_finished = false;
      if lately.is_due() {
        is_finished = near.finished.look();
        lately.learn(is_finished);
      }
      habit.set(lately);
      match (is_finished, may_take) {
        (false, _) => Ok(0),
        (true, 0) => Ok(3),
        (true, _) => near.take(&context).map(|()| 2),
      }
    })
  }

  /// As the function of [`caller`](Self::caller), for an input that is too long for the inbox. It
  /// returns 0 or 1.
  #[napi(catch_unwind)]
  pub fn call_with(
    &self,
    number: u32,
    export_number: u32,
    input: Either<String, Uint8ArraySlice<'_>>,
    timeout_ms: u32,
  ) -> u32 {
    let input = match input {
      Either::A(text) => text.into_bytes(),
      Either::B(bytes) => bytes.to_vec(),
    };
    let queued = self
      .plugin
      .queue(call(number, export_number, input, timeout_ms));
    u32::from(queued == Queued::Asleep)
  }

  /// Wakes the threads that calls need.
  #[napi(catch_unwind)]
  pub fn wake(&self) {
    self.plugin.wake();
  }

  /// Ends a call before its time; its result, which still arrives, means nothing.
  #[napi(catch_unwind)]
  pub fn cancel(&self, call: u32) {
    self.plugin.cancel(call.into());
  }

  /// What the plugin has done, and does at this moment.
  #[napi(catch_unwind)]
  pub fn stats(&self) -> PluginStats {
    // More than 2⁵³ of anything is out of reach.
    let by_code = |failed: Vec<(Code, u64)>| {
      let failed = failed.into_iter();
      failed
        .map(|(code, count)| (code.as_str().to_owned(), count as f64))
        .collect()
    };
    let (stats, store) = (self.plugin.stats(), self.plugin.store_stats());
    PluginStats {
      succeeded: stats.succeeded as f64,
      failed: by_code(stats.failed),
      queued: stats.queued as f64,
      busy: stats.busy as f64,
      instances: stats.instances as f64,
      replaced: stats
        .replaced
        .into_iter()
        .map(|(reason, count)| (reason.as_str().to_owned(), count as f64))
        .collect(),
      abandoned_threads: stats.abandoned_threads as f64,
      store: StoreStats {
        reads: store.reads as f64,
        hits: store.hits as f64,
        writes: store.writes as f64,
        failed: by_code(store.failed),
      },
    }
  }

  /// What the main module exports.
  #[napi(catch_unwind)]
  pub fn exports(&self) -> Vec<ExportDescriptor> {
    let exports = self.plugin.exports().iter();
    exports
      .map(|export| ExportDescriptor {
        name: export.name.clone(),
        kind: export.kind.as_str().to_owned(),
      })
      .collect()
  }

  /// What the main module imports.
  #[napi(catch_unwind)]
  pub fn imports(&self) -> Vec<ImportDescriptor> {
    let imports = self.plugin.imports().iter();
    imports
      .map(|import| ImportDescriptor {
        module: import.module.clone(),
        name: import.name.clone(),
        kind: import.kind.as_str().to_owned(),
      })
      .collect()
  }

  /// Forgets all variables.
  #[napi(catch_unwind)]
  pub fn clear_vars(&self) {
    self.plugin.clear_vars();
  }

  /// Closes the plugin; an empty result arrives under the number `call` when all is freed.
  #[napi(catch_unwind)]
  pub fn close(&self, call: u32) {
    let finished = Arc::clone(&self.finished);
    self
      .plugin
      .close(move || finished.ended(call, Ok(Outcome::Output(Vec::new()))));
  }
}

fn call(number: u32, export: u32, input: Vec<u8>, timeout_ms: u32) -> plugin::Call {
  plugin::Call {
    number: number.into(),
    export,
    input,
    timeout: (timeout_ms > 0).then(|| milliseconds(timeout_ms)),
    is_alone: false,
  }
}

fn milliseconds(milliseconds: u32) -> Duration {
  Duration::from_millis(milliseconds.into())
}
