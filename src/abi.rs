//! The interface between guests and host: function types, the namespaces that guests import from, and the functions
//! of Extism's kernel and of WASI.

use std::fmt;

/// The prefix of our internal names. A module that uses it for its name, an import namespace or an export is
/// refused.
pub const RESERVED: &str = "extism-host:";

/// The namespace of Extism's kernel.
pub const KERNEL: &str = "extism:host/env";
/// The default namespace of host functions.
pub const USER: &str = "extism:host/user";
/// The namespace that plugins built with the 0.x PDK import from, and so does TinyGo's `//export` without
/// `//go:wasmimport`.
pub const ENV: &str = "env";
/// WASI preview 1.
pub const WASI: &str = "wasi_snapshot_preview1";
/// The name of the main module, whose functions are called.
pub const MAIN: &str = "main";

/// The other of the two namespaces whose host functions stand in for each other.
pub fn twin(namespace: &str) -> Option<&'static str> {
  match namespace {
    ENV => Some(USER),
    USER => Some(ENV),
    _ => None,
  }
}

/// The type of a number that a function takes or returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "their names are WebAssembly's")]
pub enum ValueType {
  I32,
  I64,
  F32,
  F64,
}

impl ValueType {
  /// `None` for vectors and references, which no host function takes or returns.
  pub fn from_wasm(value: wasmparser::ValType) -> Option<Self> {
    match value {
      wasmparser::ValType::I32 => Some(Self::I32),
      wasmparser::ValType::I64 => Some(Self::I64),
      wasmparser::ValType::F32 => Some(Self::F32),
      wasmparser::ValType::F64 => Some(Self::F64),
      _ => None,
    }
  }
}

impl From<ValueType> for wasm_encoder::ValType {
  fn from(value: ValueType) -> Self {
    match value {
      ValueType::I32 => Self::I32,
      ValueType::I64 => Self::I64,
      ValueType::F32 => Self::F32,
      ValueType::F64 => Self::F64,
    }
  }
}

impl From<ValueType> for wasmtime::ValType {
  fn from(value: ValueType) -> Self {
    match value {
      ValueType::I32 => Self::I32,
      ValueType::I64 => Self::I64,
      ValueType::F32 => Self::F32,
      ValueType::F64 => Self::F64,
    }
  }
}

impl ValueType {
  /// Whether `value` has this type.
  pub fn is_of(self, value: &wasmtime::Val) -> bool {
    use wasmtime::Val;
    matches!(
      (self, value),
      (Self::I32, Val::I32(_))
        | (Self::I64, Val::I64(_))
        | (Self::F32, Val::F32(_))
        | (Self::F64, Val::F64(_))
    )
  }

  /// Zero of this type.
  pub fn zero(self) -> wasmtime::Val {
    use wasmtime::Val;
    match self {
      Self::I32 => Val::I32(0),
      Self::I64 => Val::I64(0),
      Self::F32 => Val::F32(0),
      Self::F64 => Val::F64(0),
    }
  }
}

/// The type of a function whose parameters and results are all numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FunctionType {
  /// The types of its parameters.
  pub params: Vec<ValueType>,
  /// The types of its results.
  pub results: Vec<ValueType>,
}

impl FunctionType {
  /// A type with these parameters and results.
  pub fn new(
    params: impl IntoIterator<Item = ValueType>,
    results: impl IntoIterator<Item = ValueType>,
  ) -> Self {
    Self {
      params: params.into_iter().collect(),
      results: results.into_iter().collect(),
    }
  }

  /// `None` if the type contains a vector or a reference.
  pub fn from_wasm(function: &wasmparser::FuncType) -> Option<Self> {
    let numbers = |values: &[wasmparser::ValType]| {
      values
        .iter()
        .map(|value| ValueType::from_wasm(*value))
        .collect::<Option<Vec<_>>>()
    };
    Some(Self {
      params: numbers(function.params())?,
      results: numbers(function.results())?,
    })
  }

  /// Parses the notation of the tables below: one letter per number (`i` i32, `l` i64, `f` f32, `d` f64),
  /// parameters before the colon, results after it.
  pub(crate) fn from_letters(letters: &str) -> Self {
    let (params, results) = letters.split_once(':').unwrap_or((letters, ""));
    let numbers = |letters: &str| {
      letters
        .chars()
        .map(|letter| match letter {
          'l' => ValueType::I64,
          'f' => ValueType::F32,
          'd' => ValueType::F64,
          _ => ValueType::I32,
        })
        .collect::<Vec<_>>()
    };
    Self {
      params: numbers(params),
      results: numbers(results),
    }
  }
}

impl fmt::Display for FunctionType {
  fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let list = |values: &[ValueType]| {
      values
        .iter()
        .map(|value| match value {
          ValueType::I32 => "i32",
          ValueType::I64 => "i64",
          ValueType::F32 => "f32",
          ValueType::F64 => "f64",
        })
        .collect::<Vec<_>>()
        .join(", ")
    };
    write!(
      formatter,
      "({}) -> ({})",
      list(&self.params),
      list(&self.results)
    )
  }
}

/// The functions of Extism's kernel.
const KERNEL_FUNCTIONS: [(&str, &str); 20] = [
  ("alloc", "l:l"),
  ("error_get", ":l"),
  ("error_set", "l:"),
  ("free", "l:"),
  ("input_length", ":l"),
  ("input_load_u64", "l:l"),
  ("input_load_u8", "l:i"),
  ("input_offset", ":l"),
  ("input_set", "ll:"),
  ("length", "l:l"),
  ("length_unsafe", "l:l"),
  ("load_u64", "l:l"),
  ("load_u8", "l:i"),
  ("memory_bytes", ":l"),
  ("output_length", ":l"),
  ("output_offset", ":l"),
  ("output_set", "ll:"),
  ("reset", ":"),
  ("store_u64", "ll:"),
  ("store_u8", "li:"),
];

/// The functions of WASI preview 1.
const WASI_FUNCTIONS: [(&str, &str); 46] = [
  ("args_get", "ii:i"),
  ("args_sizes_get", "ii:i"),
  ("clock_res_get", "ii:i"),
  ("clock_time_get", "ili:i"),
  ("environ_get", "ii:i"),
  ("environ_sizes_get", "ii:i"),
  ("fd_advise", "illi:i"),
  ("fd_allocate", "ill:i"),
  ("fd_close", "i:i"),
  ("fd_datasync", "i:i"),
  ("fd_fdstat_get", "ii:i"),
  ("fd_fdstat_set_flags", "ii:i"),
  ("fd_fdstat_set_rights", "ill:i"),
  ("fd_filestat_get", "ii:i"),
  ("fd_filestat_set_size", "il:i"),
  ("fd_filestat_set_times", "illi:i"),
  ("fd_pread", "iiili:i"),
  ("fd_prestat_dir_name", "iii:i"),
  ("fd_prestat_get", "ii:i"),
  ("fd_pwrite", "iiili:i"),
  ("fd_read", "iiii:i"),
  ("fd_readdir", "iiili:i"),
  ("fd_renumber", "ii:i"),
  ("fd_seek", "ilii:i"),
  ("fd_sync", "i:i"),
  ("fd_tell", "ii:i"),
  ("fd_write", "iiii:i"),
  ("path_create_directory", "iii:i"),
  ("path_filestat_get", "iiiii:i"),
  ("path_filestat_set_times", "iiiilli:i"),
  ("path_link", "iiiiiii:i"),
  ("path_open", "iiiiillii:i"),
  ("path_readlink", "iiiiii:i"),
  ("path_remove_directory", "iii:i"),
  ("path_rename", "iiiiii:i"),
  ("path_symlink", "iiiii:i"),
  ("path_unlink_file", "iii:i"),
  ("poll_oneoff", "iiii:i"),
  ("proc_exit", "i:"),
  ("proc_raise", "i:i"),
  ("random_get", "ii:i"),
  ("sched_yield", ":i"),
  ("sock_accept", "iii:i"),
  ("sock_recv", "iiiiii:i"),
  ("sock_send", "iiiii:i"),
  ("sock_shutdown", "ii:i"),
];

/// The type of a kernel function that guests may import.
pub fn kernel(name: &str) -> Option<FunctionType> {
  find(&KERNEL_FUNCTIONS, name)
}

/// The type of a WASI function that guests may import. `proc_exit` is included.
pub fn wasi(name: &str) -> Option<FunctionType> {
  find(&WASI_FUNCTIONS, name)
}

/// The WASI functions that access something outside the instance: files, directories and sockets.
pub fn file_system() -> impl Iterator<Item = (&'static str, FunctionType)> {
  let reaches_out = |name: &str| {
    name.starts_with("path_") || name.starts_with("sock_") || IN_AND_OUT.contains(&name)
  };
  let functions = WASI_FUNCTIONS.iter();
  functions
    .filter(move |(name, _)| reaches_out(name))
    .map(|(name, letters)| (*name, FunctionType::from_letters(letters)))
}

/// Those that take an open file descriptor and read, write or close it.
const IN_AND_OUT: [&str; 6] = [
  "fd_close",
  "fd_pread",
  "fd_pwrite",
  "fd_read",
  "fd_readdir",
  "fd_renumber",
];

fn find(table: &[(&str, &str)], name: &str) -> Option<FunctionType> {
  table
    .iter()
    .find(|(entry, _)| *entry == name)
    .map(|(_, letters)| FunctionType::from_letters(letters))
}
