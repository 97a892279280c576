//! One Extism instance, with an engine of its own, for one thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use extism::{CompiledPlugin, PluginBuilder};

use super::manifest::{DEFAULT_MAX_PAGES, LoadedModule, Manifest};
use crate::store::Store;
use crate::{Code, Error, Result, host};

/// All that is needed to make an instance, on any thread, as often as it takes.
pub struct Blueprint {
  pub(super) modules: Vec<LoadedModule>,
  pub(super) config: BTreeMap<String, String>,
  pub(super) timeout: Option<Duration>,
  pub(super) max_pages: u32,
  pub(super) use_wasi: bool,
  pub(super) store: Arc<dyn Store>,
  pub(super) compile_cache: Option<PathBuf>,
}

impl Blueprint {
  pub(super) fn new(
    manifest: &Manifest,
    modules: Vec<LoadedModule>,
    store: Arc<dyn Store>,
    compile_cache: Option<PathBuf>,
  ) -> Self {
    Self {
      modules,
      config: manifest.config.clone(),
      timeout: manifest.timeout,
      max_pages: manifest.max_pages.unwrap_or(DEFAULT_MAX_PAGES),
      use_wasi: manifest.use_wasi,
      store,
      compile_cache,
    }
  }

  /// Compiles the modules, with an engine that no other instance has: Extism's time-outs interrupt
  /// whatever runs on the engine.
  fn compile(&self) -> Result<CompiledPlugin> {
    let wasm = self.modules.iter().map(|module| {
      let data = extism::Wasm::data(module.bytes.as_slice());
      data.with_name(module.name.as_str())
    });
    let mut manifest = extism::Manifest::new(wasm)
      .with_config(self.config.iter())
      .with_memory_max(self.max_pages)
      .disallow_all_hosts();
    if let Some(timeout) = self.timeout {
      manifest = manifest.with_timeout(timeout);
    }
    let builder = PluginBuilder::new(manifest)
      .with_wasi(self.use_wasi)
      .with_functions(host::functions(&self.store));
    let builder = match &self.compile_cache {
      Some(configuration) => builder.with_cache_config(configuration),
      None => builder.with_cache_disabled(),
    };
    builder.compile().map_err(|error| {
      Error::new(
        Code::InvalidWasm,
        format!("the module cannot be compiled: {error:#}"),
      )
    })
  }
}

/// An instance that runs one call at a time.
pub struct Instance {
  compiled: CompiledPlugin,
  /// `None` after a call that may have left the guest half-way through something. Extism would go
  /// on with the broken instance.
  plugin: Option<extism::Plugin>,
  timeout: Option<Duration>,
}

impl Instance {
  /// Compiles and links the plugin on this thread.
  pub fn new(blueprint: &Blueprint) -> Result<Self> {
    let compiled = blueprint.compile()?;
    let plugin = instantiate(&compiled)?;
    Ok(Self {
      compiled,
      plugin: Some(plugin),
      timeout: blueprint.timeout,
    })
  }

  /// Calls `function`, which must be one of the main module's plugin functions.
  pub fn call(&mut self, function: &str, input: &[u8]) -> Result<Vec<u8>> {
    // Taken out and put back only after a call that ended well: whatever else happens, a panic
    // included, the next call gets a new instance.
    let mut plugin = match self.plugin.take() {
      Some(plugin) => plugin,
      None => instantiate(&self.compiled)?,
    };
    let started = Clock::now();
    let result = plugin.call::<_, Vec<u8>>(function, input);
    let result = result.map_err(|error| classify(&error, started.elapsed(), self.timeout));
    match &result {
      Ok(_) => self.plugin = Some(plugin),
      Err(error) if error.code == Code::PluginError => self.plugin = Some(plugin),
      Err(_) => {}
    }
    result
  }
}

fn instantiate(compiled: &CompiledPlugin) -> Result<extism::Plugin> {
  extism::Plugin::new_from_compiled(compiled).map_err(|error| {
    Error::new(
      Code::InvalidWasm,
      format!("the module cannot be instantiated: {error:#}"),
    )
  })
}

/// Extism reports how a call ended in the text of its error, next to what the plugin says itself.
fn classify(error: &extism::Error, took: Duration, timeout: Option<Duration>) -> Error {
  let message = error.to_string();
  // A plugin can say "timeout" too; our own clock decides.
  if let Some(timeout) = timeout.filter(|timeout| message == "timeout" && took >= *timeout) {
    return Error::new(
      Code::Timeout,
      format!(
        "EXTISM: call canceled due to timeout, it ran longer than {} ms",
        timeout.as_millis()
      ),
    );
  }
  // Bare for a guest that grows its memory; under other causes for an input that finds no room.
  if error.root_cause().to_string() == "oom" {
    return Error::new(
      Code::OutOfMemory,
      "the plugin asked for more memory than its limit",
    );
  }
  if let Some(trap) = error
    .chain()
    .find_map(|cause| cause.downcast_ref::<wasmtime::Trap>())
  {
    return Error::new(Code::Trap, format!("the plugin trapped: {trap}"));
  }
  Error::new(
    Code::PluginError,
    format!("Plugin-originated error: {message}"),
  )
}
