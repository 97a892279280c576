//! What to load: the modules of a plugin, where their bytes come from, and what the plugin may do.

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

/// Memory that one instance may use unless the manifest says otherwise: 256 MiB.
pub const DEFAULT_MAX_PAGES: u32 = 4096;

/// Bytes that an output may have unless the manifest says otherwise: 128 MiB.
pub const DEFAULT_MAX_OUTPUT: u64 = 128 << 20;

/// How much of a file is hashed at once: small enough for the processor's cache.
const HASHED_BYTES: usize = 128 << 10;

/// A plugin as its user describes it.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
  /// The modules, linked by name. One of them is the main module, see [`load`](Self::load).
  pub wasm: Vec<Wasm>,
  /// What the guest reads with `config_get`.
  pub config: BTreeMap<String, String>,
  /// How long a call, or the initialization of an instance, may run. Without it there is no limit
  /// for calls.
  pub timeout: Option<Duration>,
  /// By how many 64 KiB pages all memories of one instance may grow together, those of its modules and
  /// the kernel's; and how many the blocks in the kernel's may have together. Initial sizes may then be
  /// as many pages, or [`DEFAULT_MAX_PAGES`] where that is more. Without it, memories may have
  /// [`DEFAULT_MAX_PAGES`] together, initial sizes included.
  pub max_pages: Option<u32>,
  /// How many bytes an output may have; [`DEFAULT_MAX_OUTPUT`] without it.
  pub max_output: Option<u64>,
  /// How much fuel a call has, and the initialization of an instance: about one unit for each
  /// instruction. Unlimited without it. It slows guests down.
  pub fuel: Option<u64>,
  /// How many bytes the values of the plugin's variables may have; 1 MiB without it.
  pub max_vars: Option<usize>,
  /// Which HTTP requests guests may make; none unless it says otherwise.
  pub http: http::HttpOptions,
  /// Whether guests may import WASI (preview 1). What they get of it is below.
  pub use_wasi: bool,
  /// Directories of this machine that guests may use.
  pub allowed_paths: Vec<AllowedPath>,
  /// Their arguments.
  pub arguments: Vec<String>,
  /// Their environment.
  pub environment: BTreeMap<String, String>,
  /// Where their standard output and error go.
  pub output: OutputTo,
  /// How a call that runs for too long is interrupted; the best way of the system without it.
  pub interruptions: Option<Interruptions>,
  /// Whether instances start from the state after the initialization, if the plugin allows that.
  pub snapshot: bool,
  /// What runs it.
  pub runtime: RuntimeKind,
  /// Where compiled modules are kept; in the user's cache directory unless it says otherwise.
  pub compile_cache: CompileCache,
}

/// What runs a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RuntimeKind {
  /// This crate's own core on Wasmtime.
  #[default]
  Wasmtime,
  /// The reference: the `extism` crate. For plugins that are trusted; it supports fewer options.
  Extism,
}

/// A directory that guests may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedPath {
  /// Where it is.
  pub host: PathBuf,
  /// What guests call it.
  pub guest: PathBuf,
  /// Whether they may only read there.
  pub is_read_only: bool,
}

/// Where the standard output and error of guests go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputTo {
  /// Nowhere.
  #[default]
  Nowhere,
  /// To those of this process.
  Process,
  /// To the plugin's logger.
  Logger,
}

/// One module of a [`Manifest`].
#[derive(Clone, Debug)]
pub struct Wasm {
  /// Where the bytes are.
  pub source: Source,
  /// The name under which other modules import it.
  pub name: Option<String>,
  /// The SHA-256 that the bytes must have, in hexadecimal.
  pub hash: Option<String>,
}

/// Where the bytes of a module are.
#[derive(Clone, Debug)]
pub enum Source {
  /// A file, read when the plugin is made.
  Path(PathBuf),
  /// The bytes themselves.
  Bytes(Vec<u8>),
}

/// A module whose bytes are there.
#[derive(Clone, Debug)]
pub struct LoadedModule {
  /// By what the others import it; [`MAIN`] for the main module.
  pub name: String,
  /// WebAssembly, or at least something that begins like it.
  pub bytes: Vec<u8>,
}

/// What identifies a module: its name for linking, and the BLAKE3 digest of its bytes.
pub type ModuleDigest = (String, blake3::Hash);

impl LoadedModule {
  /// Its digest.
  pub fn digest(&self) -> ModuleDigest {
    (self.name.clone(), blake3::hash(&self.bytes))
  }
}

impl Manifest {
  /// Reads the modules, checks their hashes and gives each its name. Two may get the same here.
  ///
  /// The main module is the one named `main`, else the last one without a name, else the last one.
  /// Other modules without a name are named after their index.
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

  /// The digests of the modules, without keeping their bytes: nothing else is needed of a plugin that is in
  /// the cache. `None` if a module cannot be read or has another hash; [`load`](Self::load) then says why.
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
  // Looked at before it is opened: a pipe or a device would keep the reader for ever.
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
  fn the_main_module_is_the_one_so_named_else_the_last_without_a_name_else_the_last() -> Result<()>
  {
    assert_eq!(names(&[Some("main"), None])?, ["main", "1"]);
    assert_eq!(names(&[None, None, Some("a")])?, ["0", "main", "a"]);
    assert_eq!(names(&[Some("a"), Some("b")])?, ["a", "main"]);
    Ok(())
  }

  #[test]
  fn no_module_is_refused() {
    let refused = names(&[]).map_err(|error| error.code);
    assert_eq!(refused, Err(Code::InvalidArgument));
  }

  #[test]
  fn a_hash_is_compared_in_either_case() {
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
