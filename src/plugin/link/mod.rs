//! Links the modules of a plugin, the kernel and the interrupt checks into one module.
//!
//! The parts, in the order in which they run:
//!
//! * [`limits`]: limits on a plugin's modules.
//! * `module`: reads and validates each module on its own, bodies included. So nothing in a user module can
//!   refer to what other modules define or what the linker adds.
//! * `type_table`: numbers the types of all modules.
//! * `resolve`: resolves imports.
//! * `merge`: writes the linked module.
//! * `sizes`: tracks the sizes of memories, so that an initialization can run again.
//! * `description`: what the cache stores about the result besides its code.
//!
//! The result has no start section: no guest code runs until the host calls it. It imports only functions,
//! and exports only what [`Linked`] lists and [`names`] describes.

mod description;
pub mod limits;
mod merge;
mod module;
pub mod names;
mod resolve;
mod sizes;
mod type_table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::abi::{FunctionType, ValueType};
use crate::abi::{KERNEL, MAIN, RESERVED};
use crate::host::{HostFunction, UntypedFunction, Vars};
use crate::plugin::LoadedModule;
use limits::LimitUsage;
use module::Module;
use resolve::{Modules, inconsistent, internal};
use type_table::TypeTable;

/// The total initial size of all memories and tables of the user modules.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
  /// Memory pages (64 KiB).
  pub memory_pages: u64,
  /// Table elements.
  pub table_elements: u64,
}

impl Default for LinkLimits {
  fn default() -> Self {
    Self {
      // 256 MiB.
      memory_pages: 4096,
      // 8 MiB of pointers.
      table_elements: 1 << 20,
    }
  }
}

/// How modules are linked.
#[derive(Clone, Copy)]
pub struct LinkOptions<'a> {
  /// Whether guests may import WASI.
  pub wasi: bool,
  /// Whether to insert interrupt checks.
  pub checks: bool,
  /// The kernel's module, as WebAssembly text. It imports nothing, and exports two memories named `blocks`
  /// and `table`, and functions with the names of Extism's ABI.
  pub kernel: &'a str,
  /// Limits on the initial sizes of memories and tables.
  pub limits: LinkLimits,
  /// The available host functions. If two have the same namespace and name, the last one wins. The numbers of
  /// [`Linked::functions`] are positions in this list.
  pub functions: &'a [HostFunction],
  /// Host functions that take on the type with which they are imported. They take precedence.
  pub untyped: &'a [UntypedFunction],
  /// The variables of the plugin.
  pub vars: &'a Arc<Vars>,
}

/// The kind of an export or import, as in `WebAssembly.Module.exports()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "their names are WebAssembly's")]
pub enum Kind {
  Function,
  Table,
  Memory,
  Global,
  Tag,
}

impl Kind {
  /// The name in JavaScript.
  pub const fn as_str(self) -> &'static str {
    match self {
      Self::Function => "function",
      Self::Table => "table",
      Self::Memory => "memory",
      Self::Global => "global",
      Self::Tag => "tag",
    }
  }
}

/// An export of the main module, as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDescription {
  /// The name under which it is exported.
  pub name: String,
  /// The kind of the exported item.
  pub kind: Kind,
}

/// An import of the main module, as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportDescription {
  /// The module that it is imported from.
  pub module: String,
  /// Its name in that module.
  pub name: String,
  /// The kind of the imported item.
  pub kind: Kind,
}

/// A function that must run once before an instance is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initializer {
  /// Its export name in the linked module.
  pub export: String,
  /// Its type: `hs_init` takes two numbers, the others take none.
  pub function: FunctionType,
}

/// A callable export of the main module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callable {
  /// Its original name.
  pub name: String,
  /// Its export name in the linked module.
  pub export: String,
  /// The type of its result, if it has one.
  pub result: Option<ValueType>,
}

/// A plugin as one module, ready to be compiled.
#[derive(Clone, Debug)]
pub struct Linked {
  /// The module, as WebAssembly.
  pub bytes: Vec<u8>,
  /// The initializers, in the order in which they must run.
  pub initializers: Vec<Initializer>,
  /// The callable functions.
  pub callables: Vec<Callable>,
  /// All exports of the main module.
  pub exports: Vec<ExportDescription>,
  /// All imports of the main module.
  pub imports: Vec<ImportDescription>,
  /// The host functions that the module imports, by number.
  pub functions: BTreeMap<usize, HostFunction>,
  /// The number of memories that WASI works on, besides the first.
  pub wasi_memories: usize,
  /// Whether any module imports WASI.
  pub uses_wasi: bool,
  /// The total initial size of all memories of user modules, in pages.
  pub initial_pages: u64,
  /// Whether the module starts from a snapshot.
  pub snapshot: LinkedSnapshot,
  /// The exports of the state that calls can change, if memories and globals are all that they can change.
  pub state: Option<StateExports>,
}

/// The exports of an instance's state, by number: see [`names::state_memory`] and [`names::state_global`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateExports {
  /// The number of memories, counted from 0.
  pub memories: u32,
  /// The mutable globals.
  pub globals: Vec<u32>,
  /// For each memory the one of these globals that contains its size in pages; empty if sizes are not
  /// tracked.
  pub sizes: Vec<u32>,
}

/// The state that instances start from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LinkedSnapshot {
  /// The state that the modules describe.
  #[default]
  None,
  /// The state after the initialization, which has grown memories by this many pages.
  Taken {
    /// Pages of 64 KiB.
    grown_pages: u64,
  },
  /// The state that the modules describe, because a snapshot is not possible, for this reason.
  Unsupported(String),
}

/// Why modules cannot be linked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(
  missing_docs,
  reason = "the messages explain each variant, and name the fields"
)]
pub enum LinkError {
  #[error("there is no main module")]
  NoMainModule,
  #[error("module \"{module}\" is not valid WebAssembly: {message}")]
  InvalidWasm { module: String, message: String },
  #[error("two modules of the manifest are named \"{module}\"; give each its own name")]
  DuplicateModule { module: String },
  #[error(
    "\"{name}\" is a reserved name: a module must not have it as its name, import from it or export it"
  )]
  ReservedName { name: String },
  #[error(
    "from module \"{}\": cannot resolve import \"{module}\" \"{name}\": not provided by host \
     imports nor linked manifest items; it is {is}",
    path.join("\"/\"")
  )]
  MissingImport {
    /// The path of modules from the main module to the importer.
    path: Vec<String>,
    module: String,
    name: String,
    /// The import's type, and a hint how to fix it.
    is: String,
  },
  #[error("{}", list(imports))]
  MissingImports {
    /// At least two `MissingImport`s.
    imports: Vec<LinkError>,
  },
  #[error("module \"{importer}\" imports `{module}.{name}` as {expected}; it is {found}")]
  WrongImportType {
    importer: String,
    module: String,
    name: String,
    expected: String,
    found: String,
  },
  #[error("circular import between modules: {}", path.join(" -> "))]
  CircularLinking { path: Vec<String> },
  #[error(
    "module \"{module}\" starts with {needed} pages of memory, but only {allowed} are left of the limit"
  )]
  TooMuchMemory {
    module: String,
    needed: u64,
    allowed: u64,
  },
  #[error(
    "module \"{module}\" starts with {needed} table elements, but only {allowed} are left of the limit"
  )]
  TooManyTableElements {
    module: String,
    needed: u64,
    allowed: u64,
  },
  #[error("module \"{module}\" is too large to compile: {what}: {found}; the limit is {limit}")]
  TooLarge {
    module: String,
    what: &'static str,
    found: u64,
    limit: u64,
  },
  #[error("internal error: {0}")]
  Internal(String),
}

/// The messages of the errors, one per line. After the first 20, only the number of the remaining ones.
fn list(errors: &[LinkError]) -> String {
  const SHOWN: usize = 20;
  let mut lines: Vec<_> = errors
    .iter()
    .take(SHOWN)
    .map(LinkError::to_string)
    .collect();
  if errors.len() > SHOWN {
    lines.push(format!("and {} more imports", errors.len() - SHOWN));
  }
  lines.join("\n")
}

/// Links the modules of a plugin. The main module is the one named [`MAIN`]. Modules in text format are
/// refused.
pub fn link(modules: &[LoadedModule], options: &LinkOptions<'_>) -> Result<Linked, LinkError> {
  check_names(modules)?;
  let kernel_bytes = assemble(options.kernel)?;
  let mut usage = LimitUsage::default();
  let mut parsed = modules
    .iter()
    .map(|module| Module::parse(module.name.clone(), &module.bytes, &mut usage))
    .collect::<Result<Vec<_>, _>>()?;
  let main = parsed
    .iter()
    .position(|module| module.name == MAIN)
    .ok_or(LinkError::NoMainModule)?;
  let initial_pages = check_sizes(&parsed, options.limits)?;
  let kernel = parsed.len();
  parsed.push(parse_kernel(&kernel_bytes)?);

  let mut types = TypeTable::default();
  let type_numbers = parsed
    .iter()
    .map(|module| types.add_module(module.types.clone()))
    .collect::<Result<Vec<_>, _>>()
    .map_err(internal)?;
  let modules = Modules {
    modules: &parsed,
    types: &type_numbers,
    main,
    kernel,
  };
  check_kernel(&modules, &mut types)?;

  let resolution = resolve::resolve(&modules, &mut types, options)?;
  let entries = Entries::new(&modules, &types, &resolution.order);
  let merge::Merged { bytes, state } =
    merge::merge(&modules, &mut types, &resolution, &entries, options.checks)?;

  let main = parsed.get(main).ok_or_else(inconsistent)?;
  Ok(Linked {
    bytes,
    initializers: entries
      .initializers
      .into_iter()
      .map(|(_, initializer)| initializer)
      .collect(),
    callables: entries
      .callables
      .into_iter()
      .map(|(_, callable)| callable)
      .collect(),
    exports: main
      .exports
      .iter()
      .map(|export| ExportDescription {
        name: export.name.to_owned(),
        kind: Kind::of_export(export.kind),
      })
      .collect(),
    imports: main
      .imports
      .iter()
      .map(|import| ImportDescription {
        module: import.module.to_owned(),
        name: import.name.to_owned(),
        kind: Kind::of_import(import.ty),
      })
      .collect(),
    functions: resolution.functions,
    wasi_memories: resolution.wasi_memories.len().saturating_sub(1),
    uses_wasi: resolution.uses_wasi,
    initial_pages,
    snapshot: LinkedSnapshot::None,
    state,
  })
}

fn check_names(modules: &[LoadedModule]) -> Result<(), LinkError> {
  let mut seen = BTreeSet::new();
  for LoadedModule { name, .. } in modules {
    if name.starts_with(RESERVED) || name == KERNEL {
      return Err(LinkError::ReservedName { name: name.clone() });
    }
    if !seen.insert(name) {
      return Err(LinkError::DuplicateModule {
        module: name.clone(),
      });
    }
  }
  Ok(())
}

/// The total initial size of all memories, in pages. Fails if memories or tables exceed the limits.
fn check_sizes(modules: &[Module<'_>], limits: LinkLimits) -> Result<u64, LinkError> {
  let mut pages = limits.memory_pages;
  let mut elements = limits.table_elements;
  for module in modules {
    for memory in &module.memories {
      pages = pages
        .checked_sub(memory.initial)
        .ok_or(LinkError::TooMuchMemory {
          module: module.name.clone(),
          needed: memory.initial,
          allowed: pages,
        })?;
    }
    for table in &module.tables {
      elements = elements
        .checked_sub(table.ty.initial)
        .ok_or(LinkError::TooManyTableElements {
          module: module.name.clone(),
          needed: table.ty.initial,
          allowed: elements,
        })?;
    }
  }
  Ok(limits.memory_pages - pages)
}

fn assemble(text: &str) -> Result<Vec<u8>, LinkError> {
  wat::parse_str(text).map_err(|error| LinkError::Internal(format!("kernel: {error}")))
}

fn parse_kernel(bytes: &[u8]) -> Result<Module<'_>, LinkError> {
  Module::parse("kernel".to_owned(), bytes, &mut LimitUsage::default()).map_err(internal)
}

/// Fails if the kernel does not implement its interface.
fn check_kernel(modules: &Modules<'_, '_>, types: &mut TypeTable) -> Result<(), LinkError> {
  let wrong = |message: String| Err(LinkError::Internal(format!("kernel: {message}")));
  let kernel = modules
    .modules
    .get(modules.kernel)
    .ok_or_else(inconsistent)?;
  if !kernel.imports.is_empty() || kernel.start.is_some() {
    return wrong("it may neither import anything nor have a start function".to_owned());
  }
  for memory in [merge::KERNEL_BLOCKS, merge::KERNEL_TABLE] {
    if kernel.exported(memory, Kind::Memory).is_none() {
      return wrong(format!("it exports no memory named {memory}"));
    }
  }
  for export in &kernel.exports {
    let Some(expected) = crate::abi::kernel(export.name) else {
      continue;
    };
    let expected = types.add_function(&expected).map_err(internal)?;
    let index = kernel.exported(export.name, Kind::Function);
    let found = index.and_then(|index| modules.function_type(modules.kernel, index));
    if found != Some(expected) {
      return wrong(format!("{} has the wrong type", export.name));
    }
  }
  Ok(())
}

/// A function by its module and its index in that module.
#[derive(Clone, Copy)]
struct FunctionIndex {
  module: usize,
  index: u32,
}

/// The functions that the host calls.
struct Entries {
  initializers: Vec<(FunctionIndex, Initializer)>,
  callables: Vec<(FunctionIndex, Callable)>,
}

impl Entries {
  fn new(modules: &Modules<'_, '_>, types: &TypeTable, order: &[usize]) -> Self {
    let mut entries = Self {
      initializers: Vec::new(),
      callables: Vec::new(),
    };
    for number in order {
      entries.add_initializers(modules, types, *number);
    }
    entries.add_callables(modules, types);
    entries
  }

  /// Adds the initializers of a module, in the order that WASI and Extism imply.
  fn add_initializers(&mut self, modules: &Modules<'_, '_>, types: &TypeTable, number: usize) {
    use ValueType::I32;

    let Some(module) = modules.modules.get(number) else {
      return;
    };
    let find = |name: &str| {
      let index = module.exported(name, Kind::Function)?;
      let ty = modules.function_type(number, index)?;
      Some((index, types.function(ty)?.clone()))
    };
    let plain = FunctionType::default();
    let find_plain = |name: &str| find(name).filter(|(_, function)| *function == plain);

    let mut found = Vec::new();
    found.extend(module.start.map(|index| (index, plain.clone())));
    match find("hs_init") {
      // Haskell: the reactor first, then its runtime.
      Some((index, function)) if function.params == [I32, I32] => {
        found.extend(find_plain("_initialize"));
        found.push((index, function));
      }
      _ => found.extend(find_plain("_initialize").or_else(|| find_plain("__wasm_call_ctors"))),
    }
    for (index, function) in found {
      let export = names::init(self.initializers.len());
      let index = FunctionIndex {
        module: number,
        index,
      };
      self
        .initializers
        .push((index, Initializer { export, function }));
    }
  }

  fn add_callables(&mut self, modules: &Modules<'_, '_>, types: &TypeTable) {
    let Some(module) = modules.modules.get(modules.main) else {
      return;
    };
    for export in &module.exports {
      // These are initializers, which the host calls before anything else.
      if matches!(export.name, "_initialize" | "__wasm_call_ctors" | "hs_init")
        || Kind::of_export(export.kind) != Kind::Function
      {
        continue;
      }
      let function = modules
        .function_type(modules.main, export.index)
        .and_then(|ty| types.function(ty));
      let Some(function) = function else {
        continue;
      };
      let result = match (function.params.as_slice(), function.results.as_slice()) {
        ([], []) => None,
        ([], [result]) => Some(*result),
        _ => continue,
      };
      let callable = Callable {
        name: export.name.to_owned(),
        export: names::call(self.callables.len()),
        result,
      };
      let index = FunctionIndex {
        module: modules.main,
        index: export.index,
      };
      self.callables.push((index, callable));
    }
  }
}
