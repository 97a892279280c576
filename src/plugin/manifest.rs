//! A plugin's manifest: its modules, where their bytes come from, and what the plugin may do.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::iter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::compile_cache::CompileCache;
use super::interrupt::Interruptions;
use crate::abi::MAIN;
use crate::host::http;
use crate::{Code, Error, Result};

/// The default memory limit of one instance: 256 MiB.
pub const DEFAULT_MAX_PAGES: u32 = 4096;

/// The default maximum size of an output: 128 MiB.
pub const DEFAULT_MAX_OUTPUT: u64 = 128 << 20;

/// How much of a file is hashed at a time: small enough for the processor's cache.
const HASHED_BYTES: usize = 128 << 10;

/// A plugin as its user describes it.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
  /// The modules, linked by name. One of them is the main module, see [`load`](Self::load).
  pub wasm: Vec<Wasm>,
  /// The values that the guest reads with `config_get`.
  pub config: BTreeMap<String, String>,
  /// The maximum duration of a call, and of the initialization of an instance. If `None`, calls have no
  /// limit.
  pub timeout: Option<Duration>,
  /// The number of 64 KiB pages by which all memories of one instance together may grow, the kernel's
  /// included; also the limit of all blocks in the kernel's memory together. The initial sizes may add up
  /// to the same number, or to [`DEFAULT_MAX_PAGES`] if that is more. If `None`, all memories together may
  /// have [`DEFAULT_MAX_PAGES`], initial sizes included.
  pub max_pages: Option<u32>,
  /// The maximum size of an output, in bytes; [`DEFAULT_MAX_OUTPUT`] if `None`.
  pub max_output: Option<u64>,
  /// The fuel for each call, and for the initialization of an instance: about one unit per instruction.
  /// Unlimited if `None`. Counting fuel slows guests down.
  pub fuel: Option<u64>,
  /// The maximum size of the values of the plugin's variables together, in bytes; 1 MiB if `None`.
  pub max_vars: Option<usize>,
  /// Which HTTP requests guests may make. Default: none.
  pub http: http::HttpOptions,
  /// Whether guests may import WASI (preview 1). The fields below configure it.
  pub use_wasi: bool,
  /// The directories of this machine that guests may access.
  pub allowed_paths: Vec<AllowedPath>,
  /// The guests' arguments.
  pub arguments: Vec<String>,
  /// The guests' environment variables.
  pub environment: BTreeMap<String, String>,
  /// The destination of the guests' standard output and error.
  pub output: OutputTo,
  /// How a call that runs for too long is interrupted; the best method of the system if `None`.
  pub interruptions: Option<Interruptions>,
  /// Whether instances start from the state after the initialization, if the plugin supports that.
  pub snapshot: bool,
  /// The runtime that runs the plugin.
  pub runtime: RuntimeKind,
  /// Where compiled modules are cached. Default: the user's cache directory.
  pub compile_cache: CompileCache,
}

/// The runtime that runs a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RuntimeKind {
  /// This crate's own core on Wasmtime.
  #[default]
  Wasmtime,
  /// The reference: the `extism` crate. For trusted plugins only; it supports fewer options.
  Extism,
}

/// A directory that guests may access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedPath {
  /// Its path on this machine.
  pub host: PathBuf,
  /// Its path in the guest.
  pub guest: PathBuf,
  /// Whether guests may only read.
  pub is_read_only: bool,
}

/// The destination of the guests' standard output and error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputTo {
  /// Discarded.
  #[default]
  Nowhere,
  /// The same streams of this process.
  Process,
  /// The plugin's logger.
  Logger,
}

/// One module of a [`Manifest`].
#[derive(Clone, Debug)]
pub struct Wasm {
  /// The source of the bytes.
  pub source: Source,
  /// The name under which other modules import it.
  pub name: Option<String>,
  /// The expected SHA-256 of the bytes, in hexadecimal.
  pub hash: Option<String>,
}

/// The source of a module's bytes.
#[derive(Clone, Debug)]
pub enum Source {
  /// A file, read when the plugin is loaded.
  Path(PathBuf),
  /// The bytes themselves.
  Bytes(Vec<u8>),
}

/// A module whose bytes have been read.
#[derive(Clone, Debug)]
pub struct LoadedModule {
  /// The name under which other modules import it; [`MAIN`] for the main module.
  pub name: String,
  /// The bytes. They start with WebAssembly's magic number; nothing else has been checked.
  pub bytes: Vec<u8>,
}

/// Identifies a module: its name for linking, and the BLAKE3 digest of its bytes.
pub type ModuleDigest = (String, blake3::Hash);

impl LoadedModule {
  /// The digest of this module.
  pub fn digest(&self) -> ModuleDigest {
    (self.name.clone(), blake3::hash(&self.bytes))
  }
}

impl Manifest {
  /// Reads the modules, checks their hashes and names each of them. Two may get the same name.
  ///
  /// The main module is the one named `main`, else the last one without a name, else the last one. Other
  /// modules without a name are named after their index.
  pub fn load(&self) -> Result<Vec<LoadedModule>> {
    let load = |(name, wasm): (String, &Wasm)| {
      let bytes = wasm.load()?;
      Ok(LoadedModule { name, bytes })
    };
    self
      .names()?
      .into_iter()
      .zip(&self.wasm)
      .map(load)
      .collect()
  }

  /// The digests of the modules, without keeping their bytes in memory: a plugin that is in the cache needs
  /// nothing else. `None` if a module cannot be read or has the wrong hash; [`load`](Self::load) then
  /// returns the reason.
  pub fn digests(&self) -> Option<Vec<ModuleDigest>> {
    let digest = |(name, wasm): (String, &Wasm)| Some((name, wasm.digest()?));
    let names = self.names().ok()?;
    names.into_iter().zip(&self.wasm).map(digest).collect()
  }

  fn names(&self) -> Result<Vec<String>> {
    let main = self.main_index().ok_or_else(|| {
      Error::new(
        Code::InvalidArgument,
        "the manifest names no module: its `wasm` is empty",
      )
    })?;
    let name = |(index, wasm): (usize, &Wasm)| match &wasm.name {
      _ if index == main => MAIN.to_owned(),
      Some(name) => name.clone(),
      None => index.to_string(),
    };
    Ok(self.wasm.iter().enumerate().map(name).collect())
  }

  fn main_index(&self) -> Option<usize> {
    let named_main = |wasm: &Wasm| wasm.name.as_deref() == Some(MAIN);
    self
      .wasm
      .iter()
      .position(named_main)
      .or_else(|| self.wasm.iter().rposition(|wasm| wasm.name.is_none()))
      .or_else(|| self.wasm.len().checked_sub(1))
  }
}

impl Wasm {
  fn digest(&self) -> Option<blake3::Hash> {
    match (&self.source, &self.hash) {
      (Source::Path(path), None) => hash_file(path).ok(),
      (Source::Bytes(bytes), None) => Some(blake3::hash(bytes)),
      _ => Some(blake3::hash(&self.load().ok()?)),
    }
  }

  fn load(&self) -> Result<Vec<u8>> {
    let (bytes, origin) = match &self.source {
      Source::Path(path) => (read_file(path)?, format!("\"{}\"", path.display())),
      Source::Bytes(bytes) => (bytes.clone(), "the given data".to_owned()),
    };
    if let Some(expected) = &self.hash {
      let actual = hexadecimal(&Sha256::digest(&bytes));
      if !actual.eq_ignore_ascii_case(expected) {
        return Err(Error::new(
          Code::HashMismatch,
          format!("hash mismatch: {origin} has SHA-256 {actual}, the manifest says {expected}"),
        ));
      }
    }
    if !bytes.starts_with(b"\0asm") {
      let what = match bytes.is_empty() {
        true => "is empty",
        false => "does not begin with the bytes \\0asm",
      };
      return Err(Error::new(
        Code::InvalidWasm,
        format!("{origin} is not WebAssembly: it {what}"),
      ));
    }
    Ok(bytes)
  }
}

fn hash_file(path: &Path) -> Result<blake3::Hash> {
  let mut file = BufReader::with_capacity(HASHED_BYTES, open_file(path)?);
  let mut hasher = blake3::Hasher::new();
  loop {
    let bytes = file.fill_buf().map_err(|error| cannot_read(path, &error))?;
    let count = bytes.len();
    if count == 0 {
      return Ok(hasher.finalize());
    }
    hasher.update(bytes);
    file.consume(count);
  }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
  let mut bytes = Vec::new();
  let mut file = open_file(path)?;
  match file.read_to_end(&mut bytes) {
    Ok(_) => Ok(bytes),
    Err(error) => Err(cannot_read(path, &error)),
  }
}

fn cannot_read(path: &Path, error: &io::Error) -> Error {
  let unreadable = unreadable(path, &error.to_string());
  Error::exhausted(&unreadable.message, iter::once(error as _)).unwrap_or(unreadable)
}

fn unreadable(path: &Path, reason: &str) -> Error {
  let path = path.display();
  Error::new(
    Code::FileNotFound,
    format!("cannot read \"{path}\": {reason}"),
  )
}

fn open_file(path: &Path) -> Result<File> {
  // Check before opening: reading a pipe or a device could block forever.
  let metadata = std::fs::metadata(path).map_err(|error| cannot_read(path, &error))?;
  if metadata.is_dir() {
    return Err(unreadable(path, "it is a directory, not a file"));
  }
  if !metadata.is_file() {
    return Err(unreadable(path, "it is not a regular file"));
  }
  File::open(path).map_err(|error| cannot_read(path, &error))
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
  bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
  use super::*;

  const EMPTY_MODULE: &[u8] = b"\0asm\x01\0\0\0";

  fn wasm(name: Option<&str>) -> Wasm {
    Wasm {
      source: Source::Bytes(EMPTY_MODULE.to_vec()),
      name: name.map(str::to_owned),
      hash: None,
    }
  }

  fn names(modules: &[Option<&str>]) -> Result<Vec<String>> {
    let manifest = Manifest {
      wasm: modules.iter().map(|name| wasm(*name)).collect(),
      ..Manifest::default()
    };
    let loaded = manifest.load()?;
    Ok(loaded.into_iter().map(|module| module.name).collect())
  }

  #[test]
  fn the_main_module_is_the_one_named_main_else_the_last_unnamed_else_the_last() -> Result<()> {
    assert_eq!(names(&[Some("main"), None])?, ["main", "1"]);
    assert_eq!(names(&[None, None, Some("a")])?, ["0", "main", "a"]);
    assert_eq!(names(&[Some("a"), Some("b")])?, ["a", "main"]);
    Ok(())
  }

  #[test]
  fn a_manifest_without_modules_is_refused() {
    let refused = names(&[]).map_err(|error| error.code);
    assert_eq!(refused, Err(Code::InvalidArgument));
  }

  #[test]
  fn hashes_are_compared_case_insensitively() {
    let hash = hexadecimal(&Sha256::digest(EMPTY_MODULE));
    let with_hash = |hash: &str| {
      let mut wasm = wasm(None);
      wasm.hash = Some(hash.to_owned());
      wasm.load().map(drop).map_err(|error| error.code)
    };
    assert_eq!(with_hash(&hash), Ok(()));
    assert_eq!(with_hash(&hash.to_uppercase()), Ok(()));
    assert_eq!(with_hash("00"), Err(Code::HashMismatch));
  }
}
