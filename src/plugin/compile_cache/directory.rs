//! The rules for a directory whose files are executed, and ways to open and write such files.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Creates the directory unless it exists, and a private directory `modules` in it, whose path is
/// returned. The error is phrased to follow a colon.
pub(super) fn make_modules_directory(directory: &Path) -> Result<PathBuf, String> {
  // Strip a trailing slash: the kernel would follow a link in front of it.
  let directory: PathBuf = std::path::absolute(directory)
    .map_err(|error| error.to_string())?
    .components()
    .collect();
  make_private_directory(&directory)?;
  let modules = directory.join("modules");
  make_private_directory(&modules)?;
  Ok(modules)
}

#[cfg(unix)]
fn make_private_directory(path: &Path) -> Result<(), String> {
  use std::os::unix::fs::{DirBuilderExt, MetadataExt};

  let mut builder = fs::DirBuilder::new();
  let made = builder.recursive(true).mode(0o700).create(path);
  // Do not follow links: one could lead into somebody else's directory.
  let metadata = match (fs::symlink_metadata(path), made) {
    (Ok(metadata), _) => metadata,
    (Err(_), Err(error)) => return Err(format!("it cannot be created ({error})")),
    (Err(error), Ok(())) => return Err(error.to_string()),
  };
  let reason = if metadata.is_symlink() {
    "it is a link; name the directory itself".to_owned()
  } else if !metadata.is_dir() {
    "it is not a directory".to_owned()
  } else if metadata.uid() != rustix::process::geteuid().as_raw() {
    format!(
      "it belongs to another user ({}), whose files would be executed",
      metadata.uid()
    )
  } else if metadata.mode() & 0o077 != 0 {
    format!(
      "it is not private: other users can access it (its mode is {:03o} and must be 700)",
      metadata.mode() & 0o777
    )
  } else {
    return Ok(());
  };
  Err(reason)
}

#[cfg(not(unix))]
fn make_private_directory(path: &Path) -> Result<(), String> {
  // The user's cache directory inherits private rights. Any other directory is the user's choice.
  fs::create_dir_all(path).map_err(|error| format!("it cannot be created ({error})"))
}

/// Whether this is a regular file that belongs to this user and that nobody else can write.
///
/// The directory was checked when it was opened, by its path. If somebody can rename one of its
/// parents, the path may lead elsewhere by now, so the open file is checked as well.
#[cfg(unix)]
pub(super) fn is_ours(metadata: &fs::Metadata) -> bool {
  use std::os::unix::fs::MetadataExt;

  let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
  metadata.is_file() && is_own && metadata.mode() & 0o022 == 0
}

#[cfg(not(unix))]
pub(super) fn is_ours(metadata: &fs::Metadata) -> bool {
  metadata.is_file()
}

/// Opens a file so that it can be read and mapped as code.
pub(super) fn open_executable(path: &Path) -> io::Result<File> {
  let mut options = OpenOptions::new();
  options.read(true);
  #[cfg(windows)]
  {
    use std::os::windows::fs::OpenOptionsExt;

    const FILE_GENERIC_READ: u32 = 0x0012_0089;
    const FILE_GENERIC_EXECUTE: u32 = 0x0012_00A0;
    options.access_mode(FILE_GENERIC_READ | FILE_GENERIC_EXECUTE);
  }
  options.open(path)
}

/// Whether an open file keeps its content when its name is removed or replaced, on this computer or
/// another. Network file systems do not promise that: a mapped page that cannot be read any more
/// kills the process (`SIGBUS`).
#[cfg(target_os = "linux")]
pub(super) fn keeps_open_files(file: &File) -> bool {
  // From `linux/magic.h` and the sources of the file systems.
  const REMOTE: [u32; 11] = [
    0x0000_6969, // NFS
    0x0000_517B, // SMB
    0xFF53_4D42, // CIFS
    0xFE53_4D42, // SMB 2 and 3
    0x6573_5546, // FUSE
    0x0102_1997, // 9P
    0x00C3_6400, // Ceph
    0x5346_414F, // AFS
    0x0BD0_0BD0, // Lustre
    0x4750_4653, // GPFS
    0x7461_636F, // OCFS2
  ];
  // Only the lower 32 bits count: the field is wider or signed on some processors.
  rustix::fs::fstatfs(file).is_ok_and(|system| !REMOTE.contains(&(system.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn keeps_open_files(_: &File) -> bool {
  true
}

/// A new file that only this user can read and write, removed on drop unless it was renamed.
pub(super) struct TemporaryFile {
  file: Option<File>,
  path: PathBuf,
}

impl TemporaryFile {
  /// Creates a file whose name is the path with a unique suffix and `.tmp` appended.
  pub(super) fn beside(path: &Path) -> io::Result<Self> {
    let unique = RandomState::new().hash_one(std::process::id());
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{unique:016x}.tmp"));
    let path = PathBuf::from(name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
      use std::os::unix::fs::OpenOptionsExt;
      options.mode(0o600);
    }
    let file = Some(options.open(&path)?);
    Ok(Self { file, path })
  }

  pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
    match &mut self.file {
      Some(file) => file.write_all(bytes),
      None => Err(io::ErrorKind::NotFound.into()),
    }
  }

  /// Gives the file its name. Readers see the old file or all of the new one.
  pub(super) fn rename(mut self, path: &Path) -> io::Result<()> {
    // Windows does not rename a file that is open for writing.
    let file = self.file.take();
    drop(file);
    let renamed = fs::rename(&self.path, path);
    if renamed.is_err() {
      let _ = fs::remove_file(&self.path);
    }
    renamed
  }
}

impl Drop for TemporaryFile {
  fn drop(&mut self) {
    if self.file.take().is_some() {
      let _ = fs::remove_file(&self.path);
    }
  }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
  use std::os::unix::fs::{PermissionsExt, symlink};

  use super::super::tests::Temporary;
  use super::*;

  fn reason(directory: &Path) -> String {
    make_modules_directory(directory).expect_err("the directory is refused")
  }

  #[test]
  fn a_new_directory_is_private_and_shared_directories_links_and_files_are_refused() {
    let base = Temporary::new();
    let private = base.0.join("not/there/yet");
    let modules = make_modules_directory(&private).expect("it can be created");
    for directory in [&private, &modules] {
      let metadata = fs::metadata(directory).expect("it exists");
      assert_eq!(metadata.permissions().mode() & 0o777, 0o700);
    }
    let link = base.0.join("link/");
    symlink(&private, base.0.join("link")).expect("links can be made");
    assert!(reason(&link).contains("is a link"));
    fs::set_permissions(&private, fs::Permissions::from_mode(0o750)).expect("it is ours");
    assert!(reason(&private).contains("its mode is 750"));
    let file = base.0.join("file");
    fs::write(&file, "").expect("files can be made");
    assert!(reason(&file).contains("is not a directory"));
    assert!(reason(&file.join("below")).contains("cannot be created"));
  }

  #[test]
  fn the_modules_directory_obeys_the_same_rules() {
    let base = Temporary::new();
    let modules = make_modules_directory(&base.0.join("cache")).expect("it can be created");
    fs::set_permissions(&modules, fs::Permissions::from_mode(0o701)).expect("it is ours");
    assert!(reason(&base.0.join("cache")).contains("its mode is 701"));
    fs::rename(&modules, base.0.join("elsewhere")).expect("it is ours");
    symlink(base.0.join("elsewhere"), &modules).expect("links can be made");
    assert!(reason(&base.0.join("cache")).contains("is a link"));
  }

  #[test]
  fn a_temporary_file_is_private_and_disappears_unless_it_is_renamed() {
    let base = Temporary::new();
    let path = base.0.join("file");
    let mut file = TemporaryFile::beside(&path).expect("files can be made");
    file.write_all(b"content").expect("it can be written");
    file.rename(&path).expect("it can be renamed");
    let mode = fs::metadata(&path).expect("it exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(TemporaryFile::beside(&path));
    let file = TemporaryFile::beside(&path).expect("files can be made");
    assert!(file.rename(&base.0.join("no/such/directory")).is_err());
    assert_eq!(fs::read_dir(&base.0).expect("it exists").count(), 1);
  }
}
