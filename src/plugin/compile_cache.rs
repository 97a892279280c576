//! Where compiled modules are kept between starts.
//!
//! What lies in the cache is executed, so it is only ever a directory that belongs to this user
//! and that nobody else can enter. Where there is none, plugins are compiled anew.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The configuration file for Wasmtime's cache, made where it is not there yet; `None` where no
/// private directory can be had.
pub fn configuration() -> Option<PathBuf> {
  let directory = dirs::cache_dir()?.join("extism-host");
  fs::create_dir_all(directory.parent()?).ok()?;
  make_private_directory(&directory)?;
  let configuration = directory.join("wasmtime.toml");
  let artifacts = directory.join("modules");
  make_private_directory(&artifacts)?;
  // A JSON string of a path is a TOML string too as long as nothing in it needs an escape.
  let artifacts = artifacts.to_str().filter(|path| {
    path
      .chars()
      .all(|character| !character.is_control() && !matches!(character, '"' | '\\'))
  })?;
  let text =
    format!("[cache]\ndirectory = \"{artifacts}\"\nfiles-total-size-soft-limit = \"512Mi\"\n");
  if fs::read_to_string(&configuration).ok().as_deref() != Some(&text) {
    replace_file(&configuration, &text)?;
  }
  Some(configuration)
}

/// Writes beside the file and renames, so that another process never reads half of it.
fn replace_file(path: &Path, text: &str) -> Option<()> {
  let beside = path.with_extension(format!("{}.tmp", std::process::id()));
  let written = fs::File::create(&beside)
    .and_then(|mut file| file.write_all(text.as_bytes()))
    .and_then(|()| fs::rename(&beside, path));
  if written.is_err() {
    let _ = fs::remove_file(&beside);
  }
  written.ok()
}

#[cfg(unix)]
fn make_private_directory(path: &Path) -> Option<()> {
  use std::os::unix::fs::{DirBuilderExt, MetadataExt};

  let _ = fs::DirBuilder::new().mode(0o700).create(path);
  // Not followed: a link could lead into somebody else's directory.
  let metadata = fs::symlink_metadata(path).ok()?;
  let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
  (metadata.is_dir() && is_ours && metadata.mode() & 0o077 == 0).then_some(())
}

#[cfg(not(unix))]
fn make_private_directory(path: &Path) -> Option<()> {
  // The user's cache directory is private by the rights that it inherits.
  fs::create_dir_all(path).ok()
}

#[cfg(all(test, unix))]
mod tests {
  use std::os::unix::fs::PermissionsExt;

  use super::*;

  #[test]
  fn a_directory_that_others_can_enter_or_a_link_is_not_taken() -> std::io::Result<()> {
    let base = std::env::temp_dir().join(format!("extism-host-cache-{}", std::process::id()));
    fs::create_dir_all(&base)?;
    let private = base.join("private");
    assert_eq!(make_private_directory(&private), Some(()));
    let link = base.join("link");
    std::os::unix::fs::symlink(&private, &link)?;
    assert_eq!(make_private_directory(&link), None);
    fs::set_permissions(&private, fs::Permissions::from_mode(0o755))?;
    assert_eq!(make_private_directory(&private), None);
    fs::remove_dir_all(&base)
  }
}
