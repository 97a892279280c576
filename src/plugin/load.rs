//! From a manifest to a compiled module: read, link, take a snapshot, compile; or take all that from the cache.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Engine, Module};

use super::compilation;
use super::compile_cache::{Artefact, ArtefactDirectory, Key};
use super::engine::{self, Kind};
use super::instance::{Settings, Template};
use super::interrupt::Interruptions;
use super::link::{self, LinkError, Linked, Snapshot};
use super::manifest::{
  DEFAULT_MAX_OUTPUT, DEFAULT_MAX_PAGES, LoadedModule, Manifest, ModuleDigest, OutputTo,
};
use super::snapshot;
use crate::abi::{self, KERNEL, WASI};
use crate::host::output::Output;
use crate::host::{self, Environment, HostFunction, Vars, log};
use crate::{Code, Error, Result, kernel};

/// How long an initialization may run if calls have no limit.
pub const INITIALIZATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Part of the cache's key. Raise it when the linker writes something else for the same input.
const LINKER_VERSION: [u8; 1] = [4];

/// What a plugin is loaded from.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
  pub manifest: &'a Manifest,
  pub environment: &'a Environment,
  pub vars: &'a Arc<Vars>,
  /// `None` if compiled modules are not kept.
  pub cache: Option<&'a ArtefactDirectory>,
}

/// A plugin that can be instantiated.
pub struct Loaded {
  pub linked: Linked,
  pub module: Module,
  /// What it was made from.
  pub digests: Vec<ModuleDigest>,
  /// Whether the cache has it now.
  pub stored: io::Result<()>,
}

impl Loader<'_> {
  /// Loads the plugin. Its instances start from a snapshot only if the cache has one.
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
    self.load_anew(false)
  }

  /// Loads the plugin with a snapshot, if it allows that. This compiles it twice unless the cache has it.
  pub fn load_with_snapshot(&self) -> Result<Loaded> {
    if let Some(digests) = self.cache.and_then(|_| self.manifest.digests())
      && let Some(loaded) = self.cached(&digests, true).transpose()?
    {
      return Ok(loaded);
    }
    self.load_anew(true)
  }

  /// What instances are made from.
  pub fn template(&self, loaded: &Loaded) -> Result<Template> {
    Template::new(
      &loaded.module,
      &loaded.linked,
      self.settings(&loaded.linked),
    )
  }

  /// The host functions that come with the plugin.
  pub fn functions(&self) -> Result<Vec<HostFunction>> {
    let settings = host::Settings {
      config: &self.manifest.config,
      http: &self.manifest.http,
      timeout: self.manifest.timeout,
    };
    host::functions(settings, self.environment, self.vars)
  }

  /// How the modules are linked.
  pub fn link_options<'a>(&'a self, functions: &'a [HostFunction]) -> link::Options<'a> {
    let max_pages = self.manifest.max_pages.unwrap_or(0);
    link::Options {
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

  /// Reads and checks the modules, makes one of them, and compiles that.
  fn load_anew(&self, has_snapshot: bool) -> Result<Loaded> {
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
    let turn = compilation::wait_for_turn();
    let (module, stored) = match self.cache {
      Some(cache) if is_final => {
        let key = self.cache_key(&digests, has_snapshot, &options, &engine);
        let compile = || Artefact::compile(&engine, &linked.bytes, linked.describe());
        let artefact = compilation::on_own_threads(compile)?.map_err(failed)?;
        drop(turn);
        let stored = cache.store(&key, &artefact);
        let module = match cache.load(&key, &engine) {
          Some(cached) => cached.module,
          None => artefact.to_module(&engine).map_err(failed)?,
        };
        (module, stored)
      }
      _ => {
        let compile = || Module::new(&engine, &linked.bytes);
        let module = compilation::on_own_threads(compile)?.map_err(failed)?;
        let message =
          "the initialization took too long for a snapshot, which may be different next time";
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

  /// Whether the next attempt would have the same result.
  fn take_snapshot(
    &self,
    linked: &mut Linked,
    modules: &[LoadedModule],
    options: &link::Options<'_>,
  ) -> Result<bool> {
    let unchecked = link::Options {
      checks: false,
      ..*options
    };
    let unchecked = link::link(modules, &unchecked).map_err(link_error)?;
    let timeout = self.manifest.timeout.unwrap_or(INITIALIZATION_TIMEOUT);
    let settings = self.settings(linked);
    let turn = compilation::wait_for_turn();
    let applied = snapshot::apply(linked, &unchecked, settings, timeout);
    drop(turn);
    if !applied.frozen.is_empty() {
      let frozen = applied.frozen.join(" and ");
      self.warn(&format!(
        "the plugin's initialization read {frozen}: all its instances start with what it read then (snapshot)"
      ));
    }
    Ok(applied.is_final)
  }

  /// Tells the plugin's logger why there is no snapshot, though one was asked for.
  pub fn warn_of_no_snapshot(&self, reason: &str) {
    self.warn(&format!(
      "there is no snapshot, the plugin starts normally: {reason}"
    ));
  }

  /// Tells the plugin's logger.
  fn warn(&self, message: &str) {
    log::warn(&*self.environment.logger, message);
  }

  /// The engine's kind.
  fn kind(&self) -> Kind {
    Kind {
      // A page cannot be closed elsewhere.
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
    options: &link::Options<'_>,
    engine: &Engine,
  ) -> Key {
    let manifest = self.manifest;
    // What an initialization may have seen.
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

  fn settings(&self, linked: &Linked) -> Settings {
    let manifest = self.manifest;
    Settings {
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

/// The names of the untyped functions that may change how an import is resolved: they belong to the cache's key.
///
/// Any other one resolves an import that is missing otherwise, and a hit checks that it is there
/// ([`Linked::from_description`]). So functions that no module imports make no difference, and a plugin that was
/// compiled with placeholders is a hit for one that has the functions.
fn replacing<'a>(options: &link::Options<'a>) -> BTreeSet<(&'a str, &'a str)> {
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

/// Pages by which the memories of an instance may grow together.
pub fn growth_pages(manifest: &Manifest, linked: &Linked) -> u64 {
  let grown_pages = match &linked.snapshot {
    Snapshot::Taken { grown_pages } => *grown_pages,
    _ => 0,
  };
  let pages = match manifest.max_pages {
    // The user's limit is for what a plugin adds to the memories that its modules begin with: these a
    // compiler has chosen, and many begin with a megabyte.
    Some(pages) => u64::from(pages),
    None => u64::from(DEFAULT_MAX_PAGES).saturating_sub(linked.initial_pages),
  };
  pages.saturating_sub(grown_pages)
}

/// What tells artefacts of this engine from those of another configuration or version of Wasmtime.
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
