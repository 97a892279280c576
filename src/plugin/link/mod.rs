//! Links the modules of a plugin, the kernel and the interrupt checks into one module.
//!
//! The parts, in the order of their work:
//!
//! * [`limits`]: what a plugin may hold at most.
//! * `module`: reads and validates each module on its own, bodies included. So nothing in a user module can
//!   name what other modules define or what the linker adds.
//! * `type_table`: numbers the types of all modules.
//! * `resolve`: what each import stands for.
//! * `merge`: writes the one module.
//! * `sizes`: the sizes of memories, where an initialization may run again.
//! * `description`: what the cache keeps of the result beside its code.
//!
//! The result has no start section: nothing of a guest runs until the host calls it. It imports only
//! functions, and exports only what [`Linked`] lists and [`names`] describes.

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
use limits::Usage;
use module::Module;
use resolve::{Modules, inconsistent, internal};
use type_table::TypeTable;

/// What the memories and tables of the user modules may have together when they are instantiated.
#[derive(Clone, Copy, Debug)]
pub struct LinkLimits {
  /// Pages (64 KiB) of memory.
  pub memory_pages: u64,
  /// Elements of tables.
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
pub struct Options<'a> {
  /// Whether guests may import WASI.
  pub wasi: bool,
  /// Whether to insert interrupt checks.
  pub checks: bool,
  /// The kernel's module, as WebAssembly text. It imports nothing, exports two memories named `blocks` and
  /// `table`, and functions that are named as in Extism's ABI.
  pub kernel: &'a str,
  /// How large memories and tables may be at first.
  pub limits: LinkLimits,
  /// The host functions that exist. If two have the same namespace and name, the last one counts.
  /// The numbers of [`Linked::functions`] are positions in this list.
  pub functions: &'a [HostFunction],
  /// Host functions that have the type with which they are imported. They come before the others.
  pub untyped: &'a [UntypedFunction],
  /// The variables of the plugin.
  pub vars: &'a Arc<Vars>,
}

/// What a module exports or imports, in the words of `WebAssembly.Module.exports()`.
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
  /// Its name in JavaScript.
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

/// An export of the main module as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDescription {
  /// Its name.
  pub name: String,
  /// What it is.
  pub kind: Kind,
}

/// An import of the main module as its author wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportDescription {
  /// The module that it is imported from.
  pub module: String,
  /// Its name there.
  pub name: String,
  /// What it is.
  pub kind: Kind,
}

/// A function that must run once before an instance is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initializer {
  /// Its name among the exports of the linked module.
  pub export: String,
  /// Its type: `hs_init` takes two numbers, the others nothing.
  pub function: FunctionType,
}

/// An export of the main module that can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callable {
  /// The name that its author gave it.
  pub name: String,
  /// Its name among the exports of the linked module.
  pub export: String,
  /// The type of its result, if it has one.
  pub result: Option<ValueType>,
}

/// A plugin as one module, ready to be compiled.
#[derive(Clone, Debug)]
pub struct Linked {
  /// The module.
  pub bytes: Vec<u8>,
  /// What must run first, in this order.
  pub initializers: Vec<Initializer>,
  /// What can be called.
  pub callables: Vec<Callable>,
  /// All exports of the main module.
  pub exports: Vec<ExportDescription>,
  /// All imports of the main module.
  pub imports: Vec<ImportDescription>,
  /// The host functions that the module imports, by number.
  pub functions: BTreeMap<usize, HostFunction>,
  /// How many memories WASI works on beside the first.
  pub wasi_memories: usize,
  /// Whether any module imports WASI.
  pub uses_wasi: bool,
  /// Pages of all memories of user modules when they are instantiated.
  pub initial_pages: u64,
  /// What the module starts from.
  pub snapshot: Snapshot,
  /// How many memories user modules define, and which globals are mutable, if these are all that calls can
  /// change of an instance.
  pub state: Option<StateExports>,
}

/// What an instance exports of its state, by number: see [`names::state_memory`] and [`names::state_global`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateExports {
  /// How many memories, from 0.
  pub memories: u32,
  /// The mutable globals.
  pub globals: Vec<u32>,
  /// For each memory the one of these globals that has its size in pages; empty if sizes are not tracked.
  pub sizes: Vec<u32>,
}

/// What instances start from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Snapshot {
  /// The state that the modules describe.
  #[default]
  None,
  /// The state after the initialization, which has grown memories by so many pages.
  Taken {
    /// Pages of 64 KiB.
    grown_pages: u64,
  },
  /// The state that the modules describe, since there can be no snapshot, for this reason.
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
  #[error("\"{name}\" is reserved: no module may be named so, import from it or export it")]
  ReservedName { name: String },
  #[error(
    "from module \"{}\": cannot resolve import \"{module}\" \"{name}\": not provided by host \
     imports nor linked manifest items; it is {is}",
    path.join("\"/\"")
  )]
  MissingImport {
    /// The importer at the end, and before it the modules that lead there from the main module.
    path: Vec<String>,
    module: String,
    name: String,
    /// What it would have to be, and what to do about it.
    is: String,
  },
  #[error("{}", list(imports))]
  MissingImports {
    /// Each a `MissingImport`, at least two.
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
  #[error("modules import from one another in a circle: {}", path.join(" -> "))]
  CircularLinking { path: Vec<String> },
  #[error(
    "module \"{module}\" needs {needed} pages of memory at the start; {allowed} are left of the limit"
  )]
  TooMuchMemory {
    module: String,
    needed: u64,
    allowed: u64,
  },
  #[error(
    "module \"{module}\" needs {needed} table elements at the start; {allowed} are left of the limit"
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

/// One message for each of the errors; how many are left out, if there are many.
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

/// Links the modules of a plugin. The main module is the one that is named so; text is refused.
pub fn link(modules: &[LoadedModule], options: &Options<'_>) -> Result<Linked, LinkError> {
  check_names(modules)?;
  let kernel_bytes = assemble(options.kernel)?;
  let mut usage = Usage::default();
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
    snapshot: Snapshot::None,
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

/// The pages of all memories at first. Refuses modules that need more than the limits.
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
  Module::parse("kernel".to_owned(), bytes, &mut Usage::default()).map_err(internal)
}

/// Refuses a kernel that does not keep its side of the interface.
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

/// A function by its module and its index there.
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

  /// What initializes a module, in the order that WASI and Extism imply.
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
      let place = FunctionIndex {
        module: number,
        index,
      };
      self
        .initializers
        .push((place, Initializer { export, function }));
    }
  }

  fn add_callables(&mut self, modules: &Modules<'_, '_>, types: &TypeTable) {
    let Some(module) = modules.modules.get(modules.main) else {
      return;
    };
    for export in &module.exports {
      // The host calls these before anything else.
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
      let place = FunctionIndex {
        module: modules.main,
        index: export.index,
      };
      self.callables.push((place, callable));
    }
  }
}
