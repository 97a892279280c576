//! `Plugin` for JavaScript, and how one is made off the event loop.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use napi::bindgen_prelude::{AsyncTask, Either, Uint8Array, Uint8ArraySlice};
use napi::{Env, Task};
use napi_derive::napi;

use super::Failure;
use super::completions::{Completions, Finished};
use super::memory_store::MemoryStore;
use crate::plugin::{self, Limits, Source};
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
  /// Pages of 64 KiB that an instance's memories may have.
  pub max_pages: Option<u32>,
  /// Bytes that the plugin's variables may take.
  pub max_var_bytes: Option<u32>,
  /// Bytes that an output may have.
  pub max_output_bytes: Option<u32>,
  /// Whether guests may import WASI.
  pub use_wasi: bool,
  /// How many instances; at least 1.
  pub instances: u32,
  /// How many calls may be unfinished; at least 1.
  pub max_queue: u32,
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

/// Opens a plugin on a thread of libuv's pool.
pub struct OpenPlugin {
  manifest: plugin::Manifest,
  limits: Limits,
  store: Arc<dyn Store>,
  finished: Arc<Finished>,
}

impl Task for OpenPlugin {
  type Output = crate::Result<plugin::Plugin>;
  type JsValue = Either<Plugin, Failure>;

  fn compute(&mut self) -> napi::Result<Self::Output> {
    let open = || plugin::Plugin::open(&self.manifest, self.limits, Arc::clone(&self.store));
    Ok(catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| {
      let message = "the runtime panicked while it loaded the plugin";
      Err(Error::new(Code::Internal, message))
    }))
  }

  fn resolve(&mut self, _env: Env, output: Self::Output) -> napi::Result<Self::JsValue> {
    Ok(match output {
      Ok(plugin) => Either::A(Plugin {
        plugin,
        finished: Arc::clone(&self.finished),
      }),
      Err(error) => Either::B(error.into()),
    })
  }
}

/// Loads and starts a plugin; resolves to it, or to what went wrong.
#[napi(catch_unwind)]
pub fn open_plugin(
  options: PluginOptions,
  store: &MemoryStore,
  completions: &Completions,
) -> AsyncTask<OpenPlugin> {
  let at_least_one = |number: u32| NonZeroUsize::new(number as usize).unwrap_or(NonZeroUsize::MIN);
  AsyncTask::new(OpenPlugin {
    limits: Limits {
      instances: at_least_one(options.instances),
      max_queue: at_least_one(options.max_queue),
    },
    manifest: plugin::Manifest {
      wasm: options.wasm.into_iter().map(plugin::Wasm::from).collect(),
      config: options.config.into_iter().collect(),
      timeout: options
        .timeout_ms
        .map(|milliseconds| Duration::from_millis(milliseconds.into())),
      max_pages: options.max_pages,
      max_vars: options.max_var_bytes.map(|bytes| bytes as usize),
      max_output: options.max_output_bytes.map(u64::from),
      use_wasi: options.use_wasi,
    },
    store: store.shared(),
    finished: completions.finished(),
  })
}

/// A running plugin. When JavaScript has forgotten it, what it still does is interrupted; so
/// `index.js` keeps it for as long as a call is unfinished.
#[napi]
pub struct Plugin {
  plugin: plugin::Plugin,
  finished: Arc<Finished>,
}

#[napi]
impl Plugin {
  /// Whether there is such a function.
  #[napi(catch_unwind)]
  pub fn function_exists(&self, name: String) -> bool {
    self.plugin.function_exists(&name)
  }

  /// Queues a call of function `name` under the number `call`, with which its result arrives at the
  /// completions. `timeoutMs` is the call's own limit.
  #[napi(catch_unwind)]
  pub fn call(
    &self,
    call: f64,
    name: String,
    input: Option<Either<String, Uint8ArraySlice<'_>>>,
    timeout_ms: Option<u32>,
  ) {
    let input = match input {
      None => Vec::new(),
      Some(Either::A(text)) => text.into_bytes(),
      Some(Either::B(bytes)) => bytes.to_vec(),
    };
    let finished = Arc::clone(&self.finished);
    let timeout = timeout_ms.map(|milliseconds| Duration::from_millis(milliseconds.into()));
    let done = Box::new(move |result| finished.push(call, result));
    self.plugin.call(call as u64, &name, input, timeout, done);
  }

  /// Ends a call before its time; its result, which still arrives, means nothing.
  #[napi(catch_unwind)]
  pub fn cancel(&self, call: f64) {
    self.plugin.cancel(call as u64);
  }

  /// How many threads hang in calls of the host and have been replaced.
  #[napi(getter, catch_unwind)]
  pub fn abandoned_threads(&self) -> u32 {
    u32::try_from(self.plugin.abandoned_threads()).unwrap_or(u32::MAX)
  }

  /// Closes the plugin; an empty result arrives under the number `call` when all is freed.
  #[napi(catch_unwind)]
  pub fn close(&self, call: f64) {
    let finished = Arc::clone(&self.finished);
    self
      .plugin
      .close(move || finished.push(call, Ok(Vec::new())));
  }
}
