//! The `Plugin` class, and opening plugins off the event loop.

use std::cell::Cell;
use std::collections::HashMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{
  Array, Either, Function, FunctionCallContext, Uint8Array, Uint8ArraySlice,
};
use napi_derive::napi;

use super::boundary::Boundary;
use super::completion_queue::{CompletionQueue, JobResult};
use super::host_functions::JsFunctions;
use super::logger::JsLogger;
use super::memory_store::MemoryStore;
use super::plugin_options::{FunctionName, PluginOptions};
use super::protocol::{CALL_MUST_TAKE, CALL_MUST_WAKE, CALL_QUEUED, CALL_TAKEN, CallArguments};
use super::store::Store as AnyStore;
use crate::host::{Environment, StoreAccess};
use crate::plugin::spin::SpinBackoff;
use crate::plugin::{self, Limits, Queued};
use crate::store::Store;
use crate::{Code, Error};

/// The result of `Plugin::stats`.
#[napi(object, object_from_js = false)]
pub struct PluginStats {
  /// The number of calls that succeeded.
  pub succeeded: f64,
  /// The number of calls that failed, by code.
  pub failed: HashMap<String, f64>,
  /// The number of calls in the queue.
  pub queued: f64,
  /// The number of instances that run a call.
  pub busy: f64,
  /// The number of instances.
  pub instances: f64,
  /// The number of idle instances that are ready for a call.
  pub ready: f64,
  /// The number of instances that have been created and initialized so far.
  pub made: f64,
  /// The number of calls that found no instance ready.
  pub waited: f64,
  /// The number of instances that were replaced, by reason.
  pub replaced: HashMap<String, f64>,
  /// The number of threads that are stuck in host calls and have been replaced.
  pub abandoned_threads: f64,
  /// The state of the snapshot that instances start from: `none`, `pending`, `taken` or `unsupported`.
  pub snapshot: &'static str,
  /// The memory of all instances together, in bytes.
  pub memory_bytes: f64,
  /// The size of the compiled code, in bytes.
  pub code_bytes: f64,
  /// The counters of store operations by guests.
  pub store: StoreStats,
}

/// The counters of store operations by a plugin's guests.
#[napi(object)]
pub struct StoreStats {
  /// The number of keys that were looked up.
  pub reads: f64,
  /// How many of those had a value.
  pub hits: f64,
  /// The number of keys that were changed.
  pub writes: f64,
  /// The number of refused or failed operations, by code.
  pub failed: HashMap<String, f64>,
}

/// An export of the main module, as in `WebAssembly.Module.exports`.
#[napi(object)]
pub struct ExportDescriptor {
  /// Its name.
  pub name: String,
  /// `function`, `table`, `memory` or `global`.
  pub kind: String,
}

/// An import of the main module, as in `WebAssembly.Module.imports`.
#[napi(object)]
pub struct ImportDescriptor {
  /// The module it is imported from.
  pub module: String,
  /// Its name in that module.
  pub name: String,
  /// `function`, `table`, `memory` or `global`.
  pub kind: String,
}

/// Opens a plugin; it arrives as the result of job `call`.
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
    max_queue_bytes: options.max_queue_bytes as usize,
    is_isolated: options.is_isolated,
    max_calls: options
      .max_calls
      .and_then(|calls| NonZeroU64::new(calls as u64)),
    max_age: options
      .max_age_ms
      .map(|age| Duration::from_millis(age as u64)),
  };
  let environment = environment(&options, store, boundary);
  let manifest = plugin::Manifest::from(options);
  let queue = boundary.queue();
  load(call, boundary, move || {
    let results = Arc::clone(&queue) as _;
    let plugin = plugin::Plugin::open(&manifest, limits, &environment, results)?;
    Ok(JobResult::value(Plugin::new(plugin, queue)))
  });
}

/// Restores the signal handlers that turn guests' traps into errors, if other code has replaced them.
/// `listened` names the signals that JavaScript currently listens for. Cheap.
#[napi(catch_unwind)]
pub fn restore_signal_handlers(listened: Vec<String>) {
  plugin::restore_signal_handlers(&listened);
}

/// The environment of a plugin, with its host functions and its logger in JavaScript.
fn environment(options: &PluginOptions, store: Arc<dyn Store>, boundary: &Boundary) -> Environment {
  let functions = JsFunctions {
    plugin_id: options.plugin_id,
    queue: boundary.queue(),
  };
  let names = (0..).zip(&options.functions);
  Environment {
    store: Arc::new(StoreAccess::new(store, (&options.store_permissions).into())),
    logger: Arc::new(JsLogger::new(
      options.plugin_id,
      options.log_level,
      boundary.queue(),
    )),
    functions: names
      .map(|(number, FunctionName { namespace, name })| {
        functions.function(number, namespace.clone(), name.clone())
      })
      .collect(),
  }
}

/// Fills the compile cache for a plugin; an empty result arrives for job `call`.
#[napi(catch_unwind)]
pub fn precompile(call: u32, options: PluginOptions, boundary: &Boundary) {
  // The store's contents do not affect compilation.
  let store = Arc::new(crate::store::MemoryStore::new());
  let environment = environment(&options, store, boundary);
  let manifest = plugin::Manifest::from(options);
  load(call, boundary, move || {
    plugin::Plugin::precompile(&manifest, &environment).map(|()| JobResult::EMPTY)
  });
}

/// Runs `work` on a new thread; its result arrives for job `call`.
///
/// It does not use libuv's pool: the process waits for that pool when it exits, and a plugin's initialization
/// may take arbitrarily long.
fn load(
  call: u32,
  boundary: &Boundary,
  work: impl FnOnce() -> crate::Result<JobResult> + Send + 'static,
) {
  let queue = boundary.queue();
  let results = Arc::clone(&queue);
  let spawned = thread::Builder::new()
    .name("extism-open".to_owned())
    .spawn(move || {
      let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let message = "the runtime panicked while it loaded the plugin";
        Err(Error::new(Code::Internal, message))
      });
      results.push_result(call, result);
    });
  if let Err(error) = spawned {
    let error = Error::no_thread("to load the plugin", &error);
    queue.push_result(call, Err(error));
  }
}

/// A running plugin. When JavaScript drops it and its [`caller`](Self::caller), its unfinished calls are
/// interrupted, so `calls.js` keeps it alive while calls are unfinished.
#[napi]
pub struct Plugin {
  plugin: Arc<plugin::Plugin>,
  queue: Arc<CompletionQueue>,
}

impl Plugin {
  /// Wraps a plugin whose results go to `queue`.
  pub fn new(plugin: plugin::Plugin, queue: Arc<CompletionQueue>) -> Self {
    Self {
      plugin: Arc::new(plugin),
      queue,
    }
  }
}

#[napi]
impl Plugin {
  /// The functions that can be called, with the numbers of their exports.
  #[napi(catch_unwind)]
  pub fn functions(&self) -> HashMap<String, u32> {
    let functions = self.plugin.functions();
    functions
      .map(|(name, export)| (name.to_owned(), export))
      .collect()
  }

  /// Returns the function that queues a call, with its arguments in the header ([`CallArguments`]). If the
  /// result is available at once and may be taken, the function takes it as `take` would. It returns a
  /// `CALL_…` constant.
  #[napi(
    catch_unwind,
    ts_return_type = "(shared: Uint8Array, outOfBand: unknown[]) => number"
  )]
  pub fn caller<'env>(
    &self,
    env: &'env Env,
    boundary: &Boundary,
  ) -> napi::Result<Function<'env, (Uint8Array, Array<'env>), u32>> {
    let plugin = Arc::clone(&self.plugin);
    let js_thread = boundary.js_thread();
    let backoff = Cell::new(SpinBackoff::default());
    env.create_function_from_closure("call", move |context: FunctionCallContext<'_>| {
      let arguments = js_thread.call_arguments();
      let CallArguments { number, export, .. } = arguments;
      let input = js_thread.input(arguments.input_bytes);
      let mut call = call(number, export, input, arguments.timeout_ms);
      call.is_alone = arguments.is_alone;
      call.trace = js_thread.trace(number);
      let queued = plugin.queue(call);
      if queued != Queued::Awaited {
        return Ok(call_outcome(queued));
      }
      let mut spins = backoff.get();
      let mut has_ended = false;
      if spins.is_due() {
        has_ended = js_thread.queue.events.spin_wait();
        spins.learn(has_ended);
      }
      backoff.set(spins);
      match (has_ended, arguments.may_take) {
        (false, _) => Ok(CALL_QUEUED),
        (true, false) => Ok(CALL_MUST_TAKE),
        (true, true) => js_thread.take(&context).map(|()| CALL_TAKEN),
      }
    })
  }

  /// Like the function of [`caller`](Self::caller), for an input that is too long for the inbox. It takes no
  /// results.
  #[napi(catch_unwind)]
  pub fn call_with(
    &self,
    number: u32,
    export_number: u32,
    input: Either<String, Uint8ArraySlice<'_>>,
    timeout_ms: u32,
    boundary: &Boundary,
  ) -> u32 {
    let input = match input {
      Either::A(text) => text.into_bytes(),
      Either::B(bytes) => bytes.to_vec(),
    };
    let mut call = call(number, export_number, input, timeout_ms);
    call.trace = boundary.js_thread().trace(number);
    call_outcome(self.plugin.queue(call))
  }

  /// Wakes up the threads that queued calls need.
  #[napi(catch_unwind)]
  pub fn wake(&self) {
    self.plugin.wake();
  }

  /// Cancels a call. Its result still arrives, and must be ignored.
  #[napi(catch_unwind)]
  pub fn cancel(&self, call: u32) {
    self.plugin.cancel(call.into());
  }

  /// The plugin's counters and current state.
  #[napi(catch_unwind)]
  pub fn stats(&self) -> PluginStats {
    // No counter reaches 2⁵³, so the conversion is exact.
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
      ready: stats.ready as f64,
      made: stats.made as f64,
      waited: stats.waited as f64,
      replaced: stats
        .replaced
        .into_iter()
        .map(|(reason, count)| (reason.as_str().to_owned(), count as f64))
        .collect(),
      abandoned_threads: stats.abandoned_threads as f64,
      snapshot: self.plugin.snapshot().as_str(),
      memory_bytes: stats.memory as f64,
      code_bytes: self.plugin.code_bytes() as f64,
      store: StoreStats {
        reads: store.reads as f64,
        hits: store.hits as f64,
        writes: store.writes as f64,
        failed: by_code(store.failed),
      },
    }
  }

  /// Identifies the code of the plugin.
  #[napi(catch_unwind)]
  pub fn version(&self) -> String {
    self.plugin.version().to_owned()
  }

  /// The exports of the main module.
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

  /// The imports of the main module.
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

  /// Removes all variables.
  #[napi(catch_unwind)]
  pub fn clear_vars(&self) {
    self.plugin.clear_vars();
  }

  /// Cancels the remaining calls of a plugin that is being closed.
  #[napi(catch_unwind)]
  pub fn end_calls(&self) {
    self.plugin.end_calls();
  }

  /// Closes the plugin; an empty result arrives for job `call` once everything is freed.
  #[napi(catch_unwind)]
  pub fn close(&self, call: u32) {
    let queue = Arc::clone(&self.queue);
    self
      .plugin
      .close(move || queue.push_result(call, Ok(JobResult::EMPTY)));
  }
}

fn call_outcome(queued: Queued) -> u32 {
  match queued {
    Queued::Asleep => CALL_MUST_WAKE,
    Queued::Awake | Queued::Awaited => CALL_QUEUED,
  }
}

fn call(number: u32, export: u32, input: Vec<u8>, timeout_ms: u32) -> plugin::Call {
  plugin::Call {
    number: number.into(),
    export,
    input,
    timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into())),
    is_alone: false,
    trace: None,
  }
}
