//! Where compiled modules are kept between starts.
//!
//! What lies in the cache is executed, so it is only ever a directory that belongs to this user
//! and that nobody else can enter.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::manifest::hexadecimal;
use crate::{Code, Error, Result};

/// How many bytes the cache may have unless its user says otherwise: 512 MiB.
const DEFAULT_MAX_BYTES: u64 = 512 << 20;

/// Whether compiled modules are kept, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileCache {
  /// Nowhere: plugins are compiled anew.
  Off,
  /// In a directory.
  On {
    /// The directory, which is made if it is not there. Without it, `extism-host` in the user's cache
    /// directory; where that cannot be had, plugins are compiled anew.
    directory: Option<PathBuf>,
    /// How many bytes it may have, 512 MiB without it. Wasmtime holds it to that now and then: at most
    /// once an hour, when something new has been compiled.
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
  /// The configuration file for Wasmtime's cache, made where it is not there yet; `None` where
  /// nothing is to be kept, or nothing can be in the default directory.
  ///
  /// Fails where the directory was named by its user and cannot be used.
  pub(super) fn configuration(&self) -> Result<Option<PathBuf>> {
    match self.configure(Use::AsItIs) {
      Ok(configuration) => Ok(Some(configuration)),
      Err(error) if error.code == Code::CacheUnavailable => Ok(None),
      Err(error) => Err(error),
    }
  }

  /// As [`configuration`](Self::configuration), for who only wants to fill the cache: fails, with
  /// [`Code::CacheUnavailable`], also where that says `None`.
  pub(super) fn configuration_to_fill(&self) -> Result<PathBuf> {
    self.configure(Use::ToFill)
  }

  fn configure(&self, usage: Use) -> Result<PathBuf> {
    let unavailable = |message: &str| Error::new(Code::CacheUnavailable, message);
    let Self::On {
      directory,
      max_bytes,
    } = self
    else {
      return Err(unavailable("compiled modules are not to be kept"));
    };
    let (directory, code) = match directory {
      Some(directory) => (directory.clone(), Code::InvalidArgument),
      None => {
        let message = "this user has no cache directory; name one with compileCache.directory";
        let caches = dirs::cache_dir().ok_or_else(|| unavailable(message))?;
        (caches.join("extism-host"), Code::CacheUnavailable)
      }
    };
    let max_bytes = max_bytes.unwrap_or(DEFAULT_MAX_BYTES);
    configure(&directory, max_bytes, usage).map_err(|reason| {
      let directory = directory.display();
      Error::new(
        code,
        format!("compiled modules cannot be kept in \"{directory}\": {reason}"),
      )
    })
  }
}

/// What a directory is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
  /// To be read, and written to if it can be: one that has been filled may be read-only.
  AsItIs,
  /// To be written to.
  ToFill,
}

/// Makes the directory where it is not there, and Wasmtime's configuration in it. What keeps it from
/// that is said so that it follows a colon.
fn configure(directory: &Path, max_bytes: u64, usage: Use) -> Result<PathBuf, String> {
  // Without a slash at its end, which would have a link followed.
  let directory: PathBuf = std::path::absolute(directory)
    .map_err(|error| error.to_string())?
    .components()
    .collect();
  make_private_directory(&directory)?;
  let modules = directory.join("modules");
  make_private_directory(&modules)?;
  let Some(modules) = modules.to_str() else {
    return Err("its path is not Unicode".to_owned());
  };
  // Left to itself, Wasmtime compresses what is used often so strongly that to read it takes twice as
  // long: it is there to spare time, and not space.
  let text = format!(
    "[cache]\ndirectory = {}\nfiles-total-size-soft-limit = \"{max_bytes}\"\n\
     baseline-compression-level = 1\noptimized-compression-level = 1\n",
    quoted(modules)
  );
  // Named after what it says: plugins with other settings, or for which the directory lies under
  // another path, have files of their own and never rewrite each other's.
  let mut name = hexadecimal(&Sha256::digest(&text));
  name.truncate(16);
  let configuration = directory.join(format!("wasmtime-{name}.toml"));
  let is_there = || fs::read_to_string(&configuration).ok().as_deref() == Some(&text);
  if usage == Use::ToFill || !is_there() {
    replace_file(&configuration, &text)
      .map_err(|error| format!("it cannot be written to ({error})"))?;
  }
  Ok(configuration)
}

/// As a string of TOML.
fn quoted(text: &str) -> String {
  let escape = |character: char| match character {
    '"' | '\\' => format!("\\{character}"),
    _ if character.is_control() => format!("\\u{:04X}", u32::from(character)),
    _ => character.to_string(),
  };
  format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

/// Writes beside the file and renames, so that nobody ever reads half of it.
fn replace_file(path: &Path, text: &str) -> io::Result<()> {
  // A name that nobody else makes up, in this process or in another.
  let unique = RandomState::new().hash_one(std::process::id());
  let beside = path.with_extension(format!("{unique:016x}.tmp"));
  let written = fs::File::create(&beside)
    .and_then(|mut file| file.write_all(text.as_bytes()))
    .and_then(|()| fs::rename(&beside, path));
  if written.is_err() {
    let _ = fs::remove_file(&beside);
  }
  written
}

#[cfg(unix)]
fn make_private_directory(path: &Path) -> Result<(), String> {
  use std::os::unix::fs::{DirBuilderExt, MetadataExt};

  let mut builder = fs::DirBuilder::new();
  let made = builder.recursive(true).mode(0o700).create(path);
  // Not followed: a link could lead into somebody else's directory.
  let metadata = match (fs::symlink_metadata(path), made) {
    (Ok(metadata), _) => metadata,
    (Err(_), Err(error)) => return Err(format!("it cannot be made ({error})")),
    (Err(error), Ok(())) => return Err(error.to_string()),
  };
  let reason = if metadata.is_symlink() {
    "it is a link; name the directory itself".to_owned()
  } else if !metadata.is_dir() {
    "it is not a directory".to_owned()
  } else if metadata.uid() != rustix::process::geteuid().as_raw() {
    format!(
      "it belongs to another user ({}), whose code would be run",
      metadata.uid()
    )
  } else if metadata.mode() & 0o077 != 0 {
    format!(
      "it is not private: others have rights to it (its mode is {:03o} and must be 700)",
      metadata.mode() & 0o777
    )
  } else {
    return Ok(());
  };
  Err(reason)
}

#[cfg(not(unix))]
fn make_private_directory(path: &Path) -> Result<(), String> {
  // The user's cache directory is private by the rights that it inherits; another is the user's to
  // choose.
  fs::create_dir_all(path).map_err(|error| format!("it cannot be made ({error})"))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
  use std::os::unix::fs::{PermissionsExt, symlink};

  use super::*;

  /// A directory that is removed in the end.
  struct Temporary(PathBuf);

  impl Temporary {
    fn new() -> Self {
      let unique = RandomState::new().hash_one(0);
      let path = std::env::temp_dir().join(format!("extism-host-cache-{unique:016x}"));
      fs::create_dir(&path).expect("there is a place for temporary files");
      Self(path)
    }
  }

  impl Drop for Temporary {
    fn drop(&mut self) {
      let _ = fs::remove_dir_all(&self.0);
    }
  }

  fn reason(directory: &Path) -> String {
    configure(directory, 1, Use::AsItIs).expect_err("the directory is refused")
  }

  #[test]
  fn a_directory_is_made_private_and_one_that_others_can_enter_or_a_link_is_not_taken() {
    let base = Temporary::new();
    let private = base.0.join("not/there/yet");
    configure(&private, 1, Use::AsItIs).expect("it can be made");
    let metadata = fs::metadata(&private).expect("it is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o700);
    let link = base.0.join("link/");
    symlink(&private, base.0.join("link")).expect("links can be made");
    assert!(reason(&link).contains("is a link"));
    fs::set_permissions(&private, fs::Permissions::from_mode(0o750)).expect("it is ours");
    assert!(reason(&private).contains("its mode is 750"));
    let file = base.0.join("file");
    fs::write(&file, "").expect("files can be made");
    assert!(reason(&file).contains("is not a directory"));
    assert!(reason(&file.join("below")).contains("cannot be made"));
  }

  #[test]
  fn settings_that_differ_have_files_of_their_own_which_wasmtime_can_read() {
    let base = Temporary::new();
    let directory = base.0.join("with \"quotes\", a \\ and \u{1f}");
    let small = configure(&directory, 1, Use::AsItIs).expect("it can be made");
    let large = configure(&directory, u64::MAX, Use::AsItIs).expect("it can be made");
    assert_ne!(small, large);
    assert_eq!(configure(&directory, 1, Use::AsItIs), Ok(small.clone()));
    for configuration in [small, large] {
      let module = extism::Wasm::data(b"\0asm\x01\0\0\0".as_slice());
      extism::PluginBuilder::new(extism::Manifest::new([module]))
        .with_cache_config(configuration)
        .compile()
        .expect("the configuration is understood");
    }
  }

  #[test]
  fn only_a_directory_that_was_named_is_missed_when_it_cannot_be_had() {
    let refused = CompileCache::On {
      directory: Some(PathBuf::from("/dev/null/cache")),
      max_bytes: None,
    };
    let code = refused.configuration().map_err(|error| error.code);
    assert_eq!(code, Err(Code::InvalidArgument));
    assert_eq!(CompileCache::Off.configuration(), Ok(None));
    let unfilled = CompileCache::Off.configuration_to_fill();
    assert_eq!(
      unfilled.map_err(|error| error.code),
      Err(Code::CacheUnavailable)
    );
  }
}
