//! The database file: locating it, opening it, and mapping its errors.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::iter;
use std::path::{Path, PathBuf};

use redb::{
  Builder, Database, ReadableDatabase, TableDefinition, TableHandle, backends::FileBackend,
};

use super::StoredEntry;
use crate::{Code, Error, Result};

/// The entries, by key.
pub const ENTRIES: TableDefinition<'static, &'static [u8], StoredEntry> =
  TableDefinition::new("extism-host entries");

/// The keys of entries that have a lifetime, sorted by deadline.
pub const DEADLINES: TableDefinition<'static, (u64, &'static [u8]), ()> =
  TableDefinition::new("extism-host deadlines");

/// What a panic of the database says about a file.
pub const INCONSISTENT: &str = "its contents are inconsistent";

/// The length of the magic number at the start of the file. It is written last when a database is created.
const MAGIC: usize = 9;

/// The length of the database's header.
const HEADER: usize = 4096;

/// The largest size of a file whose database is still being created.
const MAX_NEW: u64 = 16 << 20;

/// The canonical path of a file. If the file does not exist, creates it, empty and accessible by its owner
/// only.
pub fn locate(path: &Path) -> Result<PathBuf> {
  let found = match fs::canonicalize(path) {
    Err(error) if error.kind() == ErrorKind::NotFound => {
      create(path).and_then(|()| fs::canonicalize(path))
    }
    found => found,
  };
  let found = found.map_err(|error| cannot_open(&error, path))?;
  let metadata = fs::metadata(&found).map_err(|error| cannot_open(&error, path))?;
  if !metadata.is_file() {
    let what = match metadata.is_dir() {
      true => "a directory; name a file in it",
      false => "not a regular file; name another",
    };
    let message = format!("{} is {what}", found.display());
    return Err(Error::new(Code::InvalidArgument, message));
  }
  Ok(found)
}

fn create(path: &Path) -> io::Result<()> {
  let mut options = OpenOptions::new();
  options.write(true).create(true).truncate(false);
  #[cfg(unix)]
  std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
  options.open(path)?;
  // The directory's entry must be as durable as the file's contents.
  #[cfg(unix)]
  if let Some(directory) = fs::canonicalize(path)?.parent() {
    File::open(directory)?.sync_all()?;
  }
  Ok(())
}

/// Opens a file. If it was not closed properly, the database repairs it, which takes time proportional to its
/// size. May panic if the file is damaged.
pub fn open(path: &Path, cache_bytes: usize) -> Result<Database> {
  let mut file = OpenOptions::new()
    .read(true)
    .write(true)
    .open(path)
    .map_err(|error| cannot_open(&error, path))?;
  empty_unfinished(&mut file).map_err(|error| cannot_open(&error, path))?;
  let opened = Builder::new()
    .set_cache_size(cache_bytes)
    .create_with_backend(FileBackend::new(file).map_err(|error| map_error(error.into(), path))?);
  let database = opened.map_err(|error| map_error(error.into(), path))?;
  create_tables(&database, path)?;
  Ok(database)
}

/// A process that ends while it creates a database leaves a file that has no magic number and holds no data.
/// Truncates such a file, and no other.
fn empty_unfinished(file: &mut File) -> io::Result<()> {
  if is_unfinished(file)? && file.try_lock().is_ok() {
    // Another process may have completed it before we got the lock.
    if is_unfinished(file)? {
      file.set_len(0)?;
    }
    file.unlock()?;
  }
  Ok(())
}

/// Whether the magic number is missing and everything after the header is zero.
fn is_unfinished(file: &mut File) -> io::Result<bool> {
  let length = file.metadata()?.len();
  if length <= HEADER as u64 || length > MAX_NEW {
    return Ok(false);
  }
  io::Seek::rewind(file)?;
  let mut bytes = Vec::new();
  file.read_to_end(&mut bytes)?;
  let is_zero =
    |bytes: Option<&[u8]>| bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
  Ok(is_zero(bytes.get(..MAGIC)) && is_zero(bytes.get(HEADER..)))
}

/// Creates the tables of a new database. A database with other tables belongs to another program.
fn create_tables(database: &Database, path: &Path) -> Result<()> {
  let names = || -> Result<Vec<String>, redb::Error> {
    let transaction = database.begin_read()?;
    let tables = transaction.list_tables()?;
    Ok(tables.map(|table| table.name().to_owned()).collect())
  };
  let names = names().map_err(|error| map_error(error, path))?;
  if names.iter().any(|name| name == ENTRIES.name()) {
    return Ok(());
  }
  if !names.is_empty() {
    return Err(damaged(path, "it is another program's database"));
  }
  let create = || -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(ENTRIES)?;
    transaction.open_table(DEADLINES)?;
    Ok(transaction.commit()?)
  };
  create().map_err(|error| map_error(error, path))
}

pub fn damaged(path: &Path, what: &str) -> Error {
  Error::new(
    Code::StoreDamaged,
    format!(
      "{} is damaged, or is not a store of this library ({what}); restore it from a backup, or name another file",
      path.display()
    ),
  )
}

fn cannot_open(error: &io::Error, path: &Path) -> Error {
  match error.kind() {
    ErrorKind::NotFound => Error::new(
      Code::FileNotFound,
      format!(
        "the directory of {} does not exist; create it first",
        path.display()
      ),
    ),
    _ => io_error(error, path),
  }
}

fn io_error(error: &io::Error, path: &Path) -> Error {
  let path = path.display();
  match error.kind() {
    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Error::new(
      Code::AccessDenied,
      format!(
        "this process may not read and write {path} ({error}); change the permissions of the file or its directory"
      ),
    ),
    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => Error::new(
      Code::StoreFull,
      format!(
        "{path} cannot grow ({error}); its contents are intact; free some space and try again"
      ),
    ),
    ErrorKind::NotADirectory => Error::new(
      Code::FileNotFound,
      format!("a parent in the path {path} is not a directory; name another path"),
    ),
    _ => {
      let message = format!("{path} cannot be read or written: {error}");
      Error::exhausted(&message, iter::once(error as _))
        .unwrap_or_else(|| Error::new(Code::StoreUnavailable, message))
    }
  }
}

/// Maps an error of the database.
pub fn map_error(error: redb::Error, path: &Path) -> Error {
  match error {
    // The magic number is wrong, or the file is shorter than its header says.
    redb::Error::Io(error)
      if matches!(
        error.kind(),
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof
      ) =>
    {
      damaged(path, &error.to_string())
    }
    redb::Error::Io(error) => io_error(&error, path),
    redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Error::new(
      Code::StoreUnavailable,
      format!(
        "{} is open in another process; close it there, or use a store that processes can share",
        path.display()
      ),
    ),
    redb::Error::Corrupted(what) => damaged(path, &what),
    redb::Error::UpgradeRequired(version) => damaged(
      path,
      &format!("its format is version {version}, from an older redb"),
    ),
    error @ (redb::Error::TableTypeMismatch { .. } | redb::Error::TypeDefinitionChanged { .. }) => {
      damaged(path, &error.to_string())
    }
    error => Error::new(
      Code::StoreUnavailable,
      format!("{} cannot be read or written: {error}", path.display()),
    ),
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn an_io_error_of_a_file_has_a_code_and_names_the_file() {
    for (kind, code) in [
      (ErrorKind::PermissionDenied, Code::AccessDenied),
      (ErrorKind::ReadOnlyFilesystem, Code::AccessDenied),
      (ErrorKind::StorageFull, Code::StoreFull),
      (ErrorKind::QuotaExceeded, Code::StoreFull),
      (ErrorKind::FileTooLarge, Code::StoreFull),
      (ErrorKind::NotADirectory, Code::FileNotFound),
      (ErrorKind::TimedOut, Code::StoreUnavailable),
    ] {
      let error = io_error(&io::Error::from(kind), Path::new("a/b.redb"));
      assert_eq!(error.code, code, "{kind:?}");
      assert!(error.message.contains("a/b.redb"), "{}", error.message);
    }
    let missing = cannot_open(&io::Error::from(ErrorKind::NotFound), Path::new("a/b.redb"));
    assert_eq!(missing.code, Code::FileNotFound);
  }
}
