//! Caches compiled modules on disk.
//!
//! Each artefact is one file, `modules/<key>.cwasm`: the output of Wasmtime's compiler, the linker's
//! description, then a trailer with a magic number and a digest. Wasmtime maps such a file from its first
//! byte and ignores what follows the code.
//!
//! The digest protects against damage: Wasmtime executes an artefact without checking it, so one flipped
//! bit can crash the process. It does not protect against tampering, which is why the directory must be
//! private (see [`directory`]).
//!
//! A file is never changed after it has got its final name, only replaced or removed as a whole. So any
//! number of processes can share a cache without locks.

mod directory;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use twox_hash::XxHash3_128;
use wasmtime::{Engine, Module};

use super::manifest::hexadecimal;
use crate::{Code, Error, Result};
use directory::TemporaryFile;

/// The size limit if the user sets none: 512 MiB.
const DEFAULT_MAX_BYTES: u64 = 512 << 20;

/// A cache hit updates the file's modification time, at most once per interval.
const TOUCH_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// A temporary file of this age was left by a process that died.
const ABANDONED_AFTER: Duration = Duration::from_secs(60 * 60);

/// Identifies the file format. Change it together with the format.
const MAGIC: [u8; 8] = *b"EXTHOST2";

const TRAILER_LENGTH: usize = MAGIC.len() + size_of::<u128>();

/// Small enough for the processor's cache, large enough that system calls do not matter.
const READ_BYTES: usize = 128 << 10;

/// Whether and where compiled modules are cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileCache {
  /// No cache: plugins are compiled at each start.
  Off,
  /// A cache in a directory.
  On {
    /// The directory, created if it does not exist. Default: `extism-host` in the user's cache
    /// directory; if that cannot be used, plugins are compiled at each start.
    directory: Option<PathBuf>,
    /// The maximum size of all artefacts together, in bytes. Default: 512 MiB. When a new one is stored,
    /// the least recently used ones are evicted.
    max_bytes: Option<u64>,
  },
}

impl Default for CompileCache {
  fn default() -> Self {
    Self::On {
      directory: None,
      max_bytes: None,
    }
  }
}

impl CompileCache {
  /// Opens the directory, and creates it if it does not exist. `None` if the cache is off, or if the
  /// default directory cannot be used.
  ///
  /// Fails if the user named a directory that cannot be used. A read-only directory can be used, for
  /// reading.
  pub fn open(&self) -> Result<Option<ArtefactDirectory>> {
    match self.open_directory(RequiredAccess::Read) {
      Ok(directory) => Ok(Some(directory)),
      Err(error) if error.code == Code::CacheUnavailable => Ok(None),
      Err(error) => Err(error),
    }
  }

  /// Opens the cache in order to fill it. Unlike [`open`](Self::open), this fails if the cache is off, if
  /// the default directory cannot be used (both with [`Code::CacheUnavailable`]), or if the directory is
  /// read-only.
  pub fn open_to_fill(&self) -> Result<ArtefactDirectory> {
    self.open_directory(RequiredAccess::Write)
  }

  fn open_directory(&self, access: RequiredAccess) -> Result<ArtefactDirectory> {
    let unavailable = |message: &str| Error::new(Code::CacheUnavailable, message);
    let Self::On {
      directory,
      max_bytes,
    } = self
    else {
      return Err(unavailable("the compile cache is turned off"));
    };
    let (directory, code) = match directory {
      Some(directory) => (directory.clone(), Code::InvalidArgument),
      None => {
        let message = "this user has no cache directory; set compileCache.directory";
        let caches = dirs::cache_dir().ok_or_else(|| unavailable(message))?;
        (caches.join("extism-host"), Code::CacheUnavailable)
      }
    };
    let max_bytes = max_bytes.unwrap_or(DEFAULT_MAX_BYTES);
    ArtefactDirectory::open(&directory, max_bytes, access).map_err(|reason| {
      let directory = directory.display();
      Error::new(
        code,
        format!("the compile cache cannot use the directory \"{directory}\": {reason}"),
      )
    })
  }
}

/// The required access to a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RequiredAccess {
  /// Reading. Writing is attempted, and may fail.
  Read,
  /// Reading and writing.
  Write,
}

/// Identifies an artefact: a digest of everything that the compiled code depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
  /// Hashes the parts together with their lengths: `["ab", "c"]` and `["a", "bc"]` differ.
  pub fn new(parts: &[&[u8]]) -> Self {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"extism-host artefact\0");
    for part in parts {
      hasher.update(&(part.len() as u64).to_le_bytes());
      hasher.update(part);
    }
    Self(hasher.finalize().into())
  }
}

/// The output of Wasmtime's compiler, and a description of it.
///
/// Loading foreign bytes as an artefact means executing them. So the only constructor is one that
/// compiles.
pub struct Artefact {
  code: Vec<u8>,
  description: Vec<u8>,
}

impl Artefact {
  /// Compiles a module. `description` is stored with it.
  pub fn compile(engine: &Engine, wasm: &[u8], description: Vec<u8>) -> wasmtime::Result<Self> {
    let code = engine.precompile_module(wasm)?;
    Ok(Self { code, description })
  }

  /// Creates a module from a copy of the artefact. Fails if the engine has other settings than the one
  /// that compiled it.
  pub fn to_module(&self, engine: &Engine) -> wasmtime::Result<Module> {
    // SAFETY: the bytes must come from Wasmtime's compiler. They do: only `compile` makes an
    // `Artefact`, and nothing changes it. Wasmtime checks the settings of the engine itself.
    unsafe { Module::deserialize(engine, &self.code) }
  }
}

/// A cache hit.
pub struct Cached {
  /// The module.
  pub module: Module,
  /// The description that was stored with the module.
  pub description: Vec<u8>,
}

/// A private directory with artefacts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArtefactDirectory {
  path: PathBuf,
  max_bytes: u64,
}

impl ArtefactDirectory {
  /// The error is phrased to follow a colon.
  fn open(directory: &Path, max_bytes: u64, access: RequiredAccess) -> Result<Self, String> {
    let path = directory::make_modules_directory(directory)?;
    if access == RequiredAccess::Write {
      let name = path.join(file_name(&Key::new(&[b"is it writable?"])));
      TemporaryFile::beside(&name).map_err(|error| format!("it cannot be written to ({error})"))?;
    }
    Ok(Self { path, max_bytes })
  }

  /// Loads the artefact with this key. `None` on a cache miss: it does not exist, it is damaged (then the
  /// file is removed), or the engine cannot use it.
  ///
  /// The file is opened once. Its digest is checked and its content mapped through that one descriptor,
  /// so it does not matter what happens to the name meanwhile.
  pub fn load(&self, key: &Key, engine: &Engine) -> Option<Cached> {
    let path = self.path.join(file_name(key));
    let file = directory::open_executable(&path).ok()?;
    let metadata = file.metadata().ok()?;
    if !directory::is_ours(&metadata) {
      return None;
    }
    if !is_intact(&file, metadata.len(), key).ok()? {
      let _ = fs::remove_file(&path);
      return None;
    }
    touch(&file, &path, &metadata);
    let mapped = match directory::keeps_open_files(&file) {
      true => map_intact(&file, engine),
      false => None,
    };
    Some(Cached {
      // Code cannot be mapped from a file system that is mounted with `noexec`.
      module: mapped.or_else(|| read(&file, key, engine))?,
      description: read_description(&file, metadata.len())?,
    })
  }

  /// Stores an artefact, then evicts the least recently used ones until all fit into the limit.
  ///
  /// Fails if the directory cannot be written to, or if the artefact alone exceeds the limit. Callers
  /// that do not need to fill the cache can ignore that: [`load`](Self::load) keeps working.
  pub fn store(&self, key: &Key, artefact: &Artefact) -> io::Result<()> {
    let Artefact { code, description } = artefact;
    let description_length = (description.len() as u64).to_le_bytes();
    let parts = [code.as_slice(), description.as_slice(), &description_length];
    let length = parts.iter().map(|part| part.len()).sum::<usize>() + TRAILER_LENGTH;
    let length = length as u64;
    if length > self.max_bytes {
      let message = format!(
        "the compiled module has {length} bytes, compileCache.maxBytes is {}",
        self.max_bytes
      );
      return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let name = file_name(key);
    let path = self.path.join(&name);
    let mut digest = XxHash3_128::new();
    let mut file = TemporaryFile::beside(&path)?;
    for part in parts {
      digest.write(part);
      file.write_all(part)?;
    }
    file.write_all(&trailer(digest, key))?;
    if let Err(error) = file.rename(&path) {
      // Windows cannot replace a file that is mapped. If that file is intact, this is not an error.
      if !self.has_intact(key) {
        return Err(error);
      }
    }
    self.evict(&name);
    Ok(())
  }

  fn has_intact(&self, key: &Key) -> bool {
    let is_intact = |file: File| is_intact(&file, file.metadata()?.len(), key);
    File::open(self.path.join(file_name(key)))
      .and_then(is_intact)
      .unwrap_or(false)
  }

  /// Removes the least recently used artefacts until the rest fits into the limit, but never the one
  /// named `newest`. Also removes abandoned temporary files.
  ///
  /// Other processes may do the same now, so a missing file is not an error.
  fn evict(&self, newest: &str) {
    let Ok(entries) = fs::read_dir(&self.path) else {
      return;
    };
    let mut artefacts = Vec::new();
    let mut total: u64 = 0;
    for entry in entries.flatten() {
      let name = entry.file_name();
      let (Some(kind), Ok(metadata)) = (name.to_str().and_then(FileKind::of), entry.metadata())
      else {
        continue;
      };
      let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
      match kind {
        FileKind::Artefact => {
          total = total.saturating_add(metadata.len());
          if name != newest {
            artefacts.push((modified, metadata.len(), entry.path()));
          }
        }
        FileKind::Temporary => {
          if modified.elapsed().is_ok_and(|age| age >= ABANDONED_AFTER) {
            let _ = fs::remove_file(entry.path());
          }
        }
      }
    }
    artefacts.sort();
    for (_, length, path) in artefacts {
      if total <= self.max_bytes {
        break;
      }
      // A file that cannot be removed still takes up its bytes.
      match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {}
        _ => total -= length,
      }
    }
  }
}

fn file_name(key: &Key) -> String {
  format!("{}.cwasm", hexadecimal(&key.0))
}

/// The kind of a file in the directory, by its name. Other files are left alone.
#[derive(Debug, PartialEq, Eq)]
enum FileKind {
  Artefact,
  Temporary,
}

impl FileKind {
  fn of(name: &str) -> Option<Self> {
    let (key, rest) = name.split_once('.')?;
    if key.len() != 2 * size_of::<Key>() || !key.bytes().all(|byte| byte.is_ascii_hexdigit()) {
      return None;
    }
    match rest {
      "cwasm" => Some(Self::Artefact),
      _ if rest.starts_with("cwasm.") && rest.ends_with(".tmp") => Some(Self::Temporary),
      _ => None,
    }
  }
}

/// The trailer of a file, given the digest of everything before it. The key is part of the digest, so a
/// file under another file's name counts as damaged.
fn trailer(mut digest: XxHash3_128, key: &Key) -> [u8; TRAILER_LENGTH] {
  digest.write(&MAGIC);
  digest.write(&key.0);
  let mut trailer = [0; TRAILER_LENGTH];
  let (magic, sum) = trailer.split_at_mut(MAGIC.len());
  magic.copy_from_slice(&MAGIC);
  sum.copy_from_slice(&digest.finish_128().to_le_bytes());
  trailer
}

/// Whether the next `length` bytes are a file that was stored under this key. An error means that they
/// could not be read, not that they are damaged.
fn is_intact(mut file: impl Read, length: u64, key: &Key) -> io::Result<bool> {
  let Some(artefact_length) = length.checked_sub(TRAILER_LENGTH as u64) else {
    return Ok(false);
  };
  let mut digest = XxHash3_128::new();
  let mut artefact = (&mut file).take(artefact_length);
  let mut buffer = vec![0; READ_BYTES];
  loop {
    match artefact.read(&mut buffer) {
      Ok(0) => break,
      Ok(count) => digest.write(buffer.get(..count).unwrap_or_default()),
      Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
      Err(error) => return Err(error),
    }
  }
  let mut actual = [0; TRAILER_LENGTH];
  match file.read_exact(&mut actual) {
    Ok(()) => Ok(actual == trailer(digest, key)),
    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
    Err(error) => Err(error),
  }
}

/// The description in a file that is intact.
fn read_description(mut file: &File, length: u64) -> Option<Vec<u8>> {
  let end = length.checked_sub((TRAILER_LENGTH + size_of::<u64>()) as u64)?;
  file.seek(SeekFrom::Start(end)).ok()?;
  let mut description_length = [0; size_of::<u64>()];
  file.read_exact(&mut description_length).ok()?;
  let description_length = u64::from_le_bytes(description_length);
  file
    .seek(SeekFrom::Start(end.checked_sub(description_length)?))
    .ok()?;
  let mut description = Vec::new();
  file
    .take(description_length)
    .read_to_end(&mut description)
    .ok()?;
  Some(description)
}

/// Creates a module from the mapped file, if the system allows that and the engine can use it.
///
/// The file must have been found intact through this descriptor, and `keeps_open_files` must be true.
fn map_intact(file: &File, engine: &Engine) -> Option<Module> {
  let file = file.try_clone().ok()?;
  // SAFETY: two things are required.
  //
  // The file must hold the output of Wasmtime's compiler. Its digest was computed from this very file,
  // and only `store` writes files with such a digest, from an `Artefact`, which only the compiler makes.
  // Somebody else could forge one, but would need to write to a file that `is_ours` accepts: that takes
  // the rights of this user, who can change this process anyway. Wasmtime itself refuses the output of
  // another version or of an engine with other settings. The trailer is harmless: Wasmtime finds
  // everything by offsets from the first byte, and tests load such files.
  //
  // The file must not change while the module lives. `store` never writes to a file that has its final
  // name: it renames a new one over it. Removing or replacing the name leaves the open file and its
  // mapping unchanged on the file systems that `keeps_open_files` lets through.
  unsafe { Module::deserialize_open_file(engine, file) }.ok()
}

/// Creates a module from a copy of the file, if it is intact and the engine can use it.
fn read(mut file: &File, key: &Key, engine: &Engine) -> Option<Module> {
  file.rewind().ok()?;
  let mut bytes = Vec::new();
  file.read_to_end(&mut bytes).ok()?;
  // Check the copy as well: a network file system may return something else this time.
  if !is_intact(bytes.as_slice(), bytes.len() as u64, key).ok()? {
    return None;
  }
  // SAFETY: the bytes must be the output of Wasmtime's compiler. Their digest shows that they are what
  // `store` wrote, as in `map_intact`. They are a copy in this process, so nobody changes them.
  unsafe { Module::deserialize(engine, &bytes) }.ok()
}

/// Marks the file as used now. Errors are ignored, because the mark only affects the order of eviction.
fn touch(file: &File, path: &Path, metadata: &fs::Metadata) {
  // A time in the future is corrected, too.
  let is_recent = |modified: SystemTime| modified.elapsed().is_ok_and(|age| age < TOUCH_INTERVAL);
  if metadata.modified().is_ok_and(is_recent) {
    return;
  }
  let now = SystemTime::now();
  if cfg!(windows) {
    // Windows can only do this with a file that is open for writing.
    let _ = File::options()
      .write(true)
      .open(path)
      .and_then(|file| file.set_modified(now));
  } else {
    let _ = file.set_modified(now);
  }
}

#[cfg(test)]
mod tests {
  use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, RandomState};

  use super::*;

  /// A directory that is removed at the end of the test.
  pub(super) struct Temporary(pub(super) PathBuf);

  impl Temporary {
    pub(super) fn new() -> Self {
      let unique = RandomState::new().hash_one(0);
      let path = std::env::temp_dir().join(format!("extism-host-cache-{unique:016x}"));
      fs::create_dir(&path).expect("there is a place for temporary files");
      Self(path)
    }

    fn cache(&self, max_bytes: u64) -> ArtefactDirectory {
      let directory = self.0.join("cache");
      ArtefactDirectory::open(&directory, max_bytes, RequiredAccess::Write)
        .expect("it can be created")
    }
  }

  impl Drop for Temporary {
    fn drop(&mut self) {
      let _ = fs::remove_dir_all(&self.0);
    }
  }

  /// A module whose function `number` returns the number. Its data segment is mapped, too.
  fn artefact(engine: &Engine, number: i32) -> Artefact {
    let text = format!(
      r#"(module
        (memory 2)
        (data (i32.const 70000) "data")
        (func (export "number") (result i32)
          (if (i32.ne (i32.load8_u (i32.const 70003)) (i32.const 97)) (then unreachable))
          (i32.const {number})))"#
    );
    let wasm = wat::parse_str(text).expect("the text is a module");
    Artefact::compile(engine, &wasm, b"described".to_vec()).expect("it can be compiled")
  }

  fn number(module: &Module) -> i32 {
    let mut store = wasmtime::Store::new(module.engine(), ());
    let instance = wasmtime::Instance::new(&mut store, module, &[]).expect("it has no imports");
    let number = instance.get_typed_func::<(), i32>(&mut store, "number");
    let number = number.expect("it is exported");
    number.call(&mut store, ()).expect("it does not trap")
  }

  fn key(number: u8) -> Key {
    Key::new(&[&[number]])
  }

  fn path(cache: &ArtefactDirectory, key: &Key) -> PathBuf {
    cache.path.join(file_name(key))
  }

  fn names(cache: &ArtefactDirectory) -> Vec<String> {
    let entries = fs::read_dir(&cache.path).expect("it exists");
    let name = |entry: io::Result<fs::DirEntry>| entry.expect("it can be read").file_name();
    let mut names: Vec<_> = entries
      .map(|entry| name(entry).into_string().expect("names are Unicode"))
      .collect();
    names.sort();
    names
  }

  fn set_age(path: &Path, age: Duration) {
    let file = File::options().write(true).open(path).expect("it exists");
    let modified = SystemTime::now() - age;
    file.set_modified(modified).expect("it is ours");
  }

  fn age(path: &Path) -> Duration {
    let metadata = fs::metadata(path).expect("it exists");
    let modified = metadata.modified().expect("files have times");
    modified.elapsed().unwrap_or_default()
  }

  /// How many bytes the file of an artefact has.
  fn length(artefact: &Artefact) -> u64 {
    let parts = artefact.code.len() + artefact.description.len();
    (parts + size_of::<u64>() + TRAILER_LENGTH) as u64
  }

  const HOUR: Duration = Duration::from_secs(60 * 60);

  #[test]
  fn an_unusable_directory_is_an_error_only_if_the_user_named_it() {
    let refused = CompileCache::On {
      directory: Some(PathBuf::from("/dev/null/cache")),
      max_bytes: None,
    };
    for code in [
      refused.open().map_err(|error| error.code).err(),
      refused.open_to_fill().map_err(|error| error.code).err(),
    ] {
      assert_eq!(code, Some(Code::InvalidArgument));
    }
    assert_eq!(CompileCache::Off.open(), Ok(None));
    let unfilled = CompileCache::Off.open_to_fill();
    assert_eq!(
      unfilled.map_err(|error| error.code),
      Err(Code::CacheUnavailable)
    );
  }

  #[test]
  fn keys_depend_on_the_boundaries_of_their_parts() {
    let keys = [
      Key::new(&[b"ab", b"c"]),
      Key::new(&[b"a", b"bc"]),
      Key::new(&[b"abc"]),
      Key::new(&[b"abc", b""]),
      Key::new(&[]),
    ];
    for (index, key) in keys.iter().enumerate() {
      assert!(!keys[..index].contains(key));
    }
    assert_eq!(Key::new(&[b"ab", b"c"]), keys[0]);
  }

  #[test]
  fn a_stored_artefact_is_loaded_and_runs() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    assert!(cache.load(&key(1), &engine).is_none());
    let artefact = artefact(&engine, 1);
    cache.store(&key(1), &artefact).expect("it can be stored");
    // Not `load` alone, which would read the file if it could not be mapped.
    let file = directory::open_executable(&path(&cache, &key(1))).expect("it exists");
    let mapped = map_intact(&file, &engine).expect("code can be mapped");
    let Cached {
      module: loaded,
      description,
    } = cache.load(&key(1), &engine).expect("it is there");
    assert_eq!(description, b"described");
    // The files of loaded modules can be removed and replaced.
    cache
      .store(&key(1), &artefact)
      .expect("it can be stored again");
    fs::remove_dir_all(&cache.path).expect("it can be removed");
    for module in [
      mapped,
      loaded,
      artefact.to_module(&engine).expect("it is intact"),
    ] {
      assert_eq!(number(&module), 1);
    }
  }

  #[test]
  fn code_that_cannot_be_mapped_is_read() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    let stored = cache.store(&key(1), &artefact(&engine, 1));
    stored.expect("it can be stored");
    let file = File::open(path(&cache, &key(1))).expect("it exists");
    let module = read(&file, &key(1), &engine).expect("it is intact");
    assert_eq!(number(&module), 1);
    assert!(read(&file, &key(2), &engine).is_none());
  }

  #[test]
  fn a_damaged_file_is_never_loaded_and_removed() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    let artefact = artefact(&engine, 1);
    cache.store(&key(1), &artefact).expect("it can be stored");
    let path = path(&cache, &key(1));
    let intact = fs::read(&path).expect("it exists");
    let mut damaged = vec![Vec::new(), vec![0; intact.len()], artefact.code.clone()];
    let random = BuildHasherDefault::<DefaultHasher>::default();
    for round in 0..300_u32 {
      // Half of them in the trailer and shortly before.
      let from = if round % 2 == 0 { 0 } else { intact.len() - 64 };
      let random = random.hash_one(round) as usize;
      let index = from + (random >> 3) % (intact.len() - from);
      let mut flipped = intact.clone();
      flipped[index] ^= 1 << (random & 7);
      damaged.push(flipped);
      damaged.push(intact[..index].to_vec());
    }
    damaged.push([&intact[..], b"\0"].concat());
    damaged.push([b"\0", &intact[..]].concat());
    for damaged in damaged {
      fs::write(&path, damaged).expect("it is ours");
      assert!(cache.load(&key(1), &engine).is_none());
      assert!(!path.exists());
    }
    cache
      .store(&key(1), &artefact)
      .expect("it can be stored anew");
    assert!(cache.load(&key(1), &engine).is_some());
  }

  #[test]
  fn a_file_under_another_files_name_counts_as_damaged() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    let stored = cache.store(&key(1), &artefact(&engine, 1));
    stored.expect("it can be stored");
    fs::copy(path(&cache, &key(1)), path(&cache, &key(2))).expect("it can be copied");
    assert!(cache.load(&key(2), &engine).is_none());
    assert_eq!(names(&cache), [file_name(&key(1))]);
  }

  #[test]
  fn an_artefact_of_an_engine_with_other_settings_is_a_miss_and_stays() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    let stored = cache.store(&key(1), &artefact(&engine, 1));
    stored.expect("it can be stored");
    let mut config = wasmtime::Config::new();
    config.consume_fuel(true);
    let other = Engine::new(&config).expect("the settings are valid");
    assert!(cache.load(&key(1), &other).is_none());
    assert!(cache.load(&key(1), &engine).is_some());
  }

  #[test]
  fn the_least_recently_used_artefacts_are_evicted() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let artefact = artefact(&engine, 1);
    let length = length(&artefact);
    let cache = base.cache(3 * length);
    for number in 1..=3 {
      cache
        .store(&key(number), &artefact)
        .expect("it can be stored");
      set_age(
        &path(&cache, &key(number)),
        24 * HOUR * (10 - u32::from(number)),
      );
    }
    cache.load(&key(1), &engine).expect("it is there");
    fs::write(cache.path.join("other"), vec![0; 1 << 20]).expect("it is ours");
    cache.store(&key(4), &artefact).expect("it can be stored");
    let mut expected = vec!["other".to_owned()];
    expected.extend([1, 3, 4].map(|number| file_name(&key(number))));
    expected.sort();
    assert_eq!(names(&cache), expected);
    // The new one stays, whatever the clock said when the others were used.
    let one = base.cache(length);
    set_age(&path(&cache, &key(4)), Duration::ZERO);
    one.store(&key(5), &artefact).expect("it can be stored");
    assert_eq!(names(&one).len(), 2);
    assert!(one.load(&key(5), &engine).is_some());
  }

  #[test]
  fn an_artefact_that_exceeds_the_limit_alone_is_not_stored_and_evicts_nothing() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let artefact = artefact(&engine, 1);
    let length = length(&artefact);
    base
      .cache(length)
      .store(&key(1), &artefact)
      .expect("it fits");
    let small = base.cache(length - 1);
    let error = small
      .store(&key(2), &artefact)
      .expect_err("it does not fit");
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    assert_eq!(names(&small), [file_name(&key(1))]);
  }

  #[test]
  fn a_hit_marks_the_file_as_used_at_most_once_a_day() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    let stored = cache.store(&key(1), &artefact(&engine, 1));
    stored.expect("it can be stored");
    let path = path(&cache, &key(1));
    set_age(&path, 23 * HOUR);
    cache.load(&key(1), &engine).expect("it is there");
    assert!(age(&path) >= 23 * HOUR);
    set_age(&path, 25 * HOUR);
    cache.load(&key(1), &engine).expect("it is there");
    assert!(age(&path) < HOUR);
  }

  #[test]
  fn abandoned_temporary_files_are_removed_after_an_hour() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    let in_use = format!("{}.0123456789abcdef.tmp", file_name(&key(1)));
    let abandoned = format!("{}.fedcba9876543210.tmp", file_name(&key(1)));
    for name in [&in_use, &abandoned, "users.tmp"] {
      fs::write(cache.path.join(name), "").expect("files can be made");
    }
    set_age(&cache.path.join(&abandoned), 2 * HOUR);
    set_age(&cache.path.join("users.tmp"), 2 * HOUR);
    let stored = cache.store(&key(2), &artefact(&engine, 1));
    stored.expect("it can be stored");
    let mut expected = [in_use, file_name(&key(2)), "users.tmp".to_owned()];
    expected.sort();
    assert_eq!(names(&cache), expected);
  }

  #[cfg(unix)]
  #[test]
  fn files_are_private_and_those_that_others_can_write_are_not_loaded() {
    use std::os::unix::fs::PermissionsExt;

    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    let stored = cache.store(&key(1), &artefact(&engine, 1));
    stored.expect("it can be stored");
    let path = path(&cache, &key(1));
    let metadata = fs::metadata(&path).expect("it exists");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).expect("it is ours");
    assert!(cache.load(&key(1), &engine).is_none());
    assert!(path.exists());
  }

  #[cfg(target_os = "linux")]
  #[test]
  fn a_read_only_directory_loads_and_cannot_be_filled() {
    use std::os::unix::fs::PermissionsExt;

    let (base, engine) = (Temporary::new(), Engine::default());
    let cache = base.cache(DEFAULT_MAX_BYTES);
    let artefact = artefact(&engine, 1);
    cache.store(&key(1), &artefact).expect("it can be stored");
    fs::write(path(&cache, &key(2)), "damaged").expect("it is ours");
    let directory = base.0.join("cache");
    let nobody = 65_534;
    for path in [
      &path(&cache, &key(1)),
      &path(&cache, &key(2)),
      &cache.path,
      &directory,
    ] {
      if !fs::metadata(path).expect("it exists").is_file() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o500)).expect("it is ours");
      }
      if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(nobody), None).expect("root may");
      }
    }
    let read_only = || {
      // Root may write everywhere. The user is a property of the thread here.
      if rustix::process::geteuid().is_root() {
        let user = rustix::process::Uid::from_raw(nobody);
        let group = rustix::process::Gid::from_raw(nobody);
        rustix::thread::set_thread_res_gid(group, group, group).expect("root may");
        rustix::thread::set_thread_res_uid(user, user, user).expect("root may");
      }
      let options = CompileCache::On {
        directory: Some(directory.clone()),
        max_bytes: None,
      };
      let cache = options.open().expect("it can be read").expect("it is on");
      let module = cache.load(&key(1), &engine).expect("it is there").module;
      assert_eq!(number(&module), 1);
      assert!(cache.load(&key(2), &engine).is_none());
      assert!(cache.store(&key(3), &artefact).is_err());
      let error = options.open_to_fill().expect_err("it is read-only");
      assert_eq!(error.code, Code::InvalidArgument);
      assert!(error.message.contains("it cannot be written to"));
    };
    std::thread::scope(|scope| scope.spawn(read_only).join().expect("the assertions hold"));
    for path in [&directory, &cache.path] {
      fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("it is ours");
    }
  }

  #[test]
  fn threads_store_load_and_evict_at_once() {
    let (base, engine) = (Temporary::new(), Engine::default());
    let artefacts: Vec<_> = (0..4).map(|number| artefact(&engine, number)).collect();
    let length = length(&artefacts[0]);
    // Small enough for evictions: 4 artefacts have to share the index of 3.
    let cache = base.cache(3 * length + length / 2);
    let hits = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
      for thread in 0..8_usize {
        let (cache, engine, artefacts, hits) = (&cache, &engine, &artefacts, &hits);
        scope.spawn(move || {
          for round in 0..100 {
            let index = (thread + round) % 4;
            let key = key(index as u8);
            if let Some(Cached { module, .. }) = cache.load(&key, engine) {
              assert_eq!(number(&module), index as i32);
              hits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            cache
              .store(&key, &artefacts[index])
              .expect("it can be stored");
          }
        });
      }
    });
    assert!(hits.into_inner() > 0);
    assert!(names(&cache).iter().all(|name| name.ends_with(".cwasm")));
  }
}
