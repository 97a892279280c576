//! From a manifest to a compiled module: read, link, take a snapshot and compile, or load the result from the
//! cache.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Engine, Module};

use super::compilation;
use super::compile_cache::{Artefact, ArtefactDirectory, Key};
use super::engine::{self, EngineKind};
use super::instance::{InstanceSettings, Template};
use super::interrupt::Interruptions;
use super::link::{self, LinkError, LinkOptions, Linked, LinkedSnapshot};
use super::manifest::{
  DEFAULT_MAX_OUTPUT, DEFAULT_MAX_PAGES, LoadedModule, Manifest, ModuleDigest, OutputTo,
};
use super::snapshot;
use crate::abi::{self, KERNEL, WASI};
use crate::host::output::Output;
use crate::host::{self, Environment, HostFunction, Vars, log};
use crate::{Code, Error, Result, kernel};

/// The maximum duration of an initialization if calls have no timeout.
pub const INITIALIZATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Part of the cache key. Raise it when the linker's output changes for the same input.
const LINKER_VERSION: [u8; 1] = [4];

/// Everything that is needed to load a plugin.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
  pub manifest: &'a Manifest,
  pub environment: &'a Environment,
  pub vars: &'a Arc<Vars>,
  /// `None` if compiled modules are not cached.
  pub cache: Option<&'a ArtefactDirectory>,
}

/// A plugin that can be instantiated.
pub struct Loaded {
  pub linked: Linked,
  pub module: Module,
  /// The modules that it was made from.
  pub digests: Vec<ModuleDigest>,
  /// Whether it is in the cache now.
  pub stored: io::Result<()>,
}

impl Loader<'_> {
  /// Loads the plugin. Its instances start from a snapshot only if one is in the cache.
  pub fn load(&self) -> Result<Loaded> {
    if let Some(digests) = self.cache.and_then(|_| self.manifest.digests()) {
      let with_snapshot = self.manifest.snapshot.then(|| self.cached(&digests, true));
      if let Some(loaded) = with_snapshot.flatten().transpose()? {
        return Ok(loaded);
      }
      if let Some(loaded) = self.cached(&digests, false).transpose()? {
        return Ok(loaded);
      }
    }
    self.load_uncached(false)
  }

  /// Loads the plugin with a snapshot, if it supports that. This compiles it twice, unless it is in the
  /// cache.
  pub fn load_with_snapshot(&self) -> Result<Loaded> {
    if let Some(digests) = self.cache.and_then(|_| self.manifest.digests())
      && let Some(loaded) = self.cached(&digests, true).transpose()?
    {
      return Ok(loaded);
    }
    self.load_uncached(true)
  }

  /// The template that creates instances.
  pub fn template(&self, loaded: &Loaded) -> Result<Template> {
    Template::new(
      &loaded.module,
      &loaded.linked,
      self.settings(&loaded.linked),
    )
  }

  /// The host functions that this crate provides.
  pub fn functions(&self) -> Result<Vec<HostFunction>> {
    let settings = host::HostSettings {
      config: &self.manifest.config,
      http: &self.manifest.http,
      timeout: self.manifest.timeout,
    };
    host::functions(settings, self.environment, self.vars)
  }

  /// The linker's options.
  pub fn link_options<'a>(&'a self, functions: &'a [HostFunction]) -> LinkOptions<'a> {
    let max_pages = self.manifest.max_pages.unwrap_or(0);
    LinkOptions {
      wasi: self.manifest.use_wasi,
      checks: self.kind().interruptions == Interruptions::Page,
      kernel: kernel::TEXT,
      limits: link::LinkLimits {
        memory_pages: u64::from(max_pages.max(DEFAULT_MAX_PAGES)),
        ..link::LinkLimits::default()
      },
      functions,
      untyped: &self.environment.functions,
      vars: self.vars,
    }
  }

  fn cached(&self, digests: &[ModuleDigest], has_snapshot: bool) -> Option<Result<Loaded>> {
    let cache = self.cache?;
    let cached = || {
      let functions = self.functions()?;
      let options = self.link_options(&functions);
      let engine = engine::engine(self.kind())?;
      let key = self.cache_key(digests, has_snapshot, &options, &engine);
      let loaded = cache.load(&key, &engine).and_then(|hit| {
        let linked = Linked::from_description(&hit.description, &options)?;
        Some(Loaded {
          linked,
          module: hit.module,
          digests: digests.to_vec(),
          stored: Ok(()),
        })
      });
      Ok(loaded)
    };
    cached().transpose()
  }

  /// Reads, checks, links and compiles the modules.
  fn load_uncached(&self, has_snapshot: bool) -> Result<Loaded> {
    let modules = self.manifest.load()?;
    let functions = self.functions()?;
    let options = self.link_options(&functions);
    let engine = engine::engine(self.kind())?;
    let digests: Vec<_> = modules.iter().map(LoadedModule::digest).collect();
    let mut linked = link::link(&modules, &options).map_err(link_error)?;
    let is_final = !has_snapshot || self.take_snapshot(&mut linked, &modules, &options)?;
    let failed = |error: wasmtime::Error| {
      let message = format!("the plugin cannot be compiled: {error:#}");
      Error::exhausted(&message, error.chain())
        .unwrap_or_else(|| Error::new(Code::InvalidWasm, message))
    };
    let permit = compilation::wait_for_permit();
    let (module, stored) = match self.cache {
      Some(cache) if is_final => {
        let key = self.cache_key(&digests, has_snapshot, &options, &engine);
        let compile = || Artefact::compile(&engine, &linked.bytes, linked.describe());
        let artefact = compilation::on_own_pool(compile)?.map_err(failed)?;
        drop(permit);
        let stored = cache.store(&key, &artefact);
        let module = match cache.load(&key, &engine) {
          Some(cached) => cached.module,
          None => artefact.to_module(&engine).map_err(failed)?,
        };
        (module, stored)
      }
      _ => {
        let compile = || Module::new(&engine, &linked.bytes);
        let module = compilation::on_own_pool(compile)?.map_err(failed)?;
        let message =
          "the initialization took too long for a snapshot; the next attempt may succeed";
        (module, Err(io::Error::other(message)))
      }
    };
    Ok(Loaded {
      linked,
      module,
      digests,
      stored,
    })
  }

  /// Takes a snapshot. Returns whether another attempt would have the same result.
  fn take_snapshot(
    &self,
    linked: &mut Linked,
    modules: &[LoadedModule],
    options: &LinkOptions<'_>,
  ) -> Result<bool> {
    let unchecked = LinkOptions {
      checks: false,
      ..*options
    };
    let unchecked = link::link(modules, &unchecked).map_err(link_error)?;
    let timeout = self.manifest.timeout.unwrap_or(INITIALIZATION_TIMEOUT);
    let settings = self.settings(linked);
    let permit = compilation::wait_for_permit();
    let attempt = snapshot::apply(linked, &unchecked, settings, timeout);
    drop(permit);
    if !attempt.frozen.is_empty() {
      let frozen = attempt.frozen.join(" and ");
      self.warn(&format!(
        "the plugin's initialization read {frozen} before the snapshot was taken: all instances start with the same values"
      ));
    }
    Ok(attempt.is_final)
  }

  /// Warns that a requested snapshot could not be taken.
  pub fn warn_no_snapshot(&self, reason: &str) {
    self.warn(&format!(
      "no snapshot could be taken, so the plugin starts normally: {reason}"
    ));
  }

  /// Logs a warning to the plugin's logger.
  fn warn(&self, message: &str) {
    log::warn(&*self.environment.logger, message);
  }

  /// The configuration of the engine.
  fn kind(&self) -> EngineKind {
    EngineKind {
      // Other systems cannot close a page.
      interruptions: self
        .manifest
        .interruptions
        .filter(|interruptions| cfg!(unix) || *interruptions == Interruptions::Epoch)
        .unwrap_or_default(),
      has_fuel: self.manifest.fuel.is_some(),
    }
  }

  /// A digest of everything that the linked and compiled module depends on.
  fn cache_key(
    &self,
    modules: &[ModuleDigest],
    has_snapshot: bool,
    options: &LinkOptions<'_>,
    engine: &Engine,
  ) -> Key {
    let manifest = self.manifest;
    // Everything that an initialization may have observed.
    let snapshot = has_snapshot.then_some((
      &manifest.arguments,
      &manifest.environment,
      &manifest.allowed_paths,
      manifest.max_pages,
    ));
    let settings = format!(
      "{} {} {} {:?} {:?} {:?} {snapshot:?}",
      env!("CARGO_PKG_VERSION"),
      options.wasi,
      options.checks,
      options.limits,
      options.functions,
      replacing(options),
    );
    let compatibility = compatibility(engine);
    let mut parts: Vec<&[u8]> = vec![
      &LINKER_VERSION,
      options.kernel.as_bytes(),
      settings.as_bytes(),
      &compatibility,
    ];
    for (name, digest) in modules {
      parts.extend([name.as_bytes(), digest.as_bytes()]);
    }
    Key::new(&parts)
  }

  fn settings(&self, linked: &Linked) -> InstanceSettings {
    let manifest = self.manifest;
    InstanceSettings {
      kind: self.kind(),
      fuel: manifest.fuel,
      growth_pages: growth_pages(manifest, linked),
      live_bytes: manifest
        .max_pages
        .map_or(u64::MAX / 2, |pages| u64::from(pages) * host::guest::PAGE),
      table_elements: link::LinkLimits::default().table_elements,
      max_output: manifest.max_output.unwrap_or(DEFAULT_MAX_OUTPUT),
      output: match manifest.output {
        OutputTo::Nowhere => Output::Off,
        OutputTo::Process => Output::Inherited,
        OutputTo::Logger => Output::Logged(Arc::clone(&self.environment.logger)),
      },
      arguments: manifest.arguments.clone(),
      environment: manifest.environment.clone().into_iter().collect(),
      allowed_paths: manifest.allowed_paths.clone(),
    }
  }
}

/// The names of the untyped functions that can change how an import is resolved. The cache's key contains them.
///
/// Any other function can only resolve an import that would be missing without it, and a cache hit checks that it exists
/// ([`Linked::from_description`]). So functions that no module imports do not change the key, and a plugin that was
/// compiled with placeholders is a hit once it has the functions.
fn replacing<'a>(options: &LinkOptions<'a>) -> BTreeSet<(&'a str, &'a str)> {
  let names = options.untyped.iter();
  let names: BTreeSet<_> = names
    .map(|function| (function.namespace.as_str(), function.name.as_str()))
    .collect();
  let is_given_twice =
    |namespace: &str, name| abi::twin(namespace).is_some_and(|twin| names.contains(&(twin, name)));
  let may_replace = |&&(namespace, name): &&(&'a str, &'a str)| {
    [KERNEL, WASI].contains(&namespace)
      || name.starts_with("extism_")
      || options.functions.iter().any(|known| known.name == name)
      || is_given_twice(namespace, name)
  };
  names.iter().filter(may_replace).copied().collect()
}

/// The number of pages by which all memories of an instance together may grow.
pub fn growth_pages(manifest: &Manifest, linked: &Linked) -> u64 {
  let grown_pages = match &linked.snapshot {
    LinkedSnapshot::Taken { grown_pages } => *grown_pages,
    _ => 0,
  };
  let pages = match manifest.max_pages {
    // The user's limit applies to what a plugin adds to the initial memories of its modules: their size was
    // chosen by a compiler, and is often a megabyte.
    Some(pages) => u64::from(pages),
    None => u64::from(DEFAULT_MAX_PAGES).saturating_sub(linked.initial_pages),
  };
  pages.saturating_sub(grown_pages)
}

/// Distinguishes the artefacts of this engine from those of another configuration or version of Wasmtime.
fn compatibility(engine: &Engine) -> [u8; 8] {
  use std::hash::{DefaultHasher, Hash, Hasher};

  let mut hasher = DefaultHasher::new();
  engine.precompile_compatibility_hash().hash(&mut hasher);
  hasher.finish().to_le_bytes()
}

pub fn link_error(error: LinkError) -> Error {
  let code = match &error {
    LinkError::MissingImport { .. } | LinkError::MissingImports { .. } => Code::MissingImport,
    LinkError::CircularLinking { .. } => Code::CircularLinking,
    LinkError::ReservedName { .. } => Code::ReservedName,
    LinkError::TooMuchMemory { .. } | LinkError::TooManyTableElements { .. } => Code::OutOfMemory,
    LinkError::NoMainModule | LinkError::DuplicateModule { .. } => Code::InvalidArgument,
    LinkError::Internal(_) => Code::Internal,
    _ => Code::InvalidWasm,
  };
  Error::new(code, error.to_string())
}
