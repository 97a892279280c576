//! Turns the modules of a manifest into those that Extism is given.
//!
//! Each user module is read once and written once; code and data are copied as they are. What
//! changes is what it is linked to and what runs it:
//!
//! * imports of the kernel go to the guard, those of host functions to the gate, those of other user
//!   modules to the names that these have now;
//! * `_start`, `_initialize`, `__wasm_call_ctors`, `hs_init` and the start section become exports that
//!   nobody but the driver knows: linking runs no code of a guest;
//! * memories and tables get a maximum.
//!
//! Nothing that the user wrote is handed on as text: bytes that are no WebAssembly module are
//! refused here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use wasm_encoder::reencode::{Reencode, RoundtripReencoder};
use wasm_encoder::{
  ExportKind, ExportSection, ImportSection, MemorySection, RawSection, TableSection,
};
use wasmparser::types::{EntityType, TypesRef};
use wasmparser::{
  CompositeInnerType, Encoding, Export, ExternalKind, Import, Parser, Payload, TableInit, TypeRef,
  ValidPayload, Validator, WasmFeatures,
};

use super::driver::{self, Callable, Initializer};
use super::manifest::LoadedModule;
use super::names::{self, ENV, GATE, GUARD, KERNEL, MAIN, RESERVED, START, USER, WASI};
use super::types::{self, FunctionType, ValueType};
use super::wasi::{self, Program, StandIn};
use crate::host::{HostFunction, UntypedFunction, Vars};

/// The guard's text. It is assembled when the first plugin is loaded, and not by a build script:
/// Extism has Wasmtime's `wat` feature on, so the assembler is in the binary anyway; it takes less
/// than a millisecond, once; and nothing generated lies about.
const GUARD_TEXT: &str = include_str!("guard.wat");

/// The kernel's memory and the guard's, in pages, when they are instantiated.
pub const OWN_PAGES: u64 = 16 + 1;

/// The bytes of a page.
const PAGE: u64 = 64 << 10;

/// The largest number of pages that a memory may be limited to. One less than there can be, for the
/// reason in [`maximum_pages`].
const MOST_PAGES: u64 = 65_535;

/// The length of the longest custom section that is copied. Only the names of functions are, for
/// the messages of traps.
const NAME_SECTION_LIMIT: usize = 4 << 20;

/// What an instance may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
  /// Pages (64 KiB) of all memories together: those of the guests, the kernel's and the guard's. With
  /// [`growth_pages`](Self::growth_pages), of their initial sizes.
  pub memory_pages: u64,
  /// Pages by which all memories may grow together, and which the live blocks in the kernel's may have
  /// together. Without it they may grow as far as [`memory_pages`](Self::memory_pages) lets them, and
  /// the blocks with them.
  pub growth_pages: Option<u32>,
  /// Elements of all tables together.
  pub table_elements: u64,
}

impl Default for Limits {
  fn default() -> Self {
    Self {
      // 256 MiB.
      memory_pages: 4096,
      growth_pages: None,
      // 8 MiB of pointers.
      table_elements: 1 << 20,
    }
  }
}

/// What decides how modules are prepared.
#[derive(Clone, Copy)]
pub struct Options<'a> {
  /// Whether guests may import WASI.
  pub wasi: bool,
  /// What guests see of the program that they would be, where they may import WASI.
  pub program: &'a Program,
  /// What an instance may use.
  pub limits: Limits,
  /// The host functions that exist. Where two have the same namespace and name, the last one counts.
  /// The numbers of [`Prepared::functions`] are places in this list.
  pub functions: &'a [HostFunction],
  /// Those that have the type with which they are imported, and come before the others.
  pub untyped: &'a [UntypedFunction],
  /// The variables of the plugin.
  pub vars: &'a Arc<Vars>,
}

/// A module that Extism is given.
#[derive(Clone, Debug)]
pub struct PreparedModule {
  /// The name by which the others import from it.
  pub name: String,
  /// WebAssembly.
  pub bytes: Vec<u8>,
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
  /// Where from.
  pub module: String,
  /// Its name there.
  pub name: String,
  /// What it is.
  pub kind: Kind,
}

/// A plugin, ready to be compiled.
#[derive(Clone, Debug)]
pub struct Prepared {
  /// All modules, in the order in which they are linked. The last is the driver, named `main`.
  pub modules: Vec<PreparedModule>,
  /// The exports of the main module that can be called, with the number by which the driver knows
  /// each.
  pub callable: BTreeMap<String, u32>,
  /// All exports of the main module.
  pub exports: Vec<ExportDescription>,
  /// All imports of the main module.
  pub imports: Vec<ImportDescription>,
  /// The host functions that are imported, by the numbers that the gate has for them.
  pub functions: BTreeMap<usize, HostFunction>,
  /// How far the memories may grow together, in pages, beyond their initial sizes.
  pub growth_pages: u32,
}

/// Why modules cannot be a plugin.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(
  missing_docs,
  reason = "the messages say what each is, and name the fields"
)]
pub enum PrepareError {
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
     imports nor linked manifest items{hint}",
    path.join("\"/\"")
  )]
  MissingImport {
    /// The importer at the end, and before it the modules that lead there from the main module.
    path: Vec<String>,
    module: String,
    name: String,
    /// Empty, or what to do about it.
    hint: &'static str,
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
  #[error("the memory limit of {pages} pages leaves nothing for a plugin")]
  LimitTooLow { pages: u64 },
  #[error("internal error: {0}")]
  Internal(String),
}

/// Prepares the modules of a plugin. The main module is the one that is named so; text is refused.
pub fn prepare(modules: &[LoadedModule], options: &Options<'_>) -> Result<Prepared, PrepareError> {
  check_names(modules)?;
  let modules = modules
    .iter()
    .map(|module| Module::parse(module.name.clone(), &module.bytes))
    .collect::<Result<Vec<_>, _>>()?;
  let main = modules
    .iter()
    .position(|module| module.name == MAIN)
    .ok_or(PrepareError::NoMainModule)?;

  let resolver = Resolver::new(&modules, options);
  let targets = resolver.resolve_all(main)?;
  let order = link_order(&modules, &targets, main)?;
  let ranks = Ranks::new(&order);
  let budget = Budget::new(&modules, options.limits)?;

  let functions = resolver.imported.into_inner();
  let gate = functions
    .iter()
    .map(|(number, function)| driver::Gated {
      number: *number,
      function: function.function.clone(),
      is_conversing: function.is_conversing(),
    })
    .collect::<Vec<_>>();

  let stand_ins = targets
    .iter()
    .flatten()
    .filter_map(|target| match target {
      Target::StandIn(stand_in) => Some(stand_in.clone()),
      _ => None,
    })
    // A module may import a function several times.
    .collect::<BTreeSet<_>>()
    .into_iter()
    .collect::<Vec<_>>();

  let mut prepared = vec![
    PreparedModule {
      name: GUARD.to_owned(),
      bytes: guard()?.to_vec(),
    },
    PreparedModule {
      name: GATE.to_owned(),
      bytes: driver::gate(&gate, &stand_ins),
    },
  ];
  let mut initializers = Vec::new();
  for number in order {
    let (Some(module), Some(targets)) = (modules.get(number), targets.get(number)) else {
      continue;
    };
    let name = ranks.name(number);
    initializers.extend(module.initializers(&name));
    let places = stand_ins.iter().enumerate();
    let places = places
      .filter(|(_, stand_in)| stand_in.module == number)
      .collect::<Vec<_>>();
    let fixup = (!places.is_empty()).then(|| PreparedModule {
      name: names::fixup(number),
      bytes: wasi::fixup(&name, options.program, &places),
    });
    prepared.push(PreparedModule {
      bytes: module.rewrite(targets, &ranks, &budget)?,
      name,
    });
    prepared.extend(fixup);
  }

  let module = modules.get(main).ok_or(PrepareError::NoMainModule)?;
  let (callable, callables) = module.callables();
  prepared.push(PreparedModule {
    name: MAIN.to_owned(),
    bytes: driver::driver(
      &initializers,
      &ranks.name(main),
      &callables,
      budget.live_bytes,
    ),
  });

  Ok(Prepared {
    modules: prepared,
    callable,
    exports: module
      .exports
      .iter()
      .map(|export| ExportDescription {
        name: export.name.to_owned(),
        kind: export_kind(export.kind),
      })
      .collect(),
    imports: module
      .imports
      .iter()
      .map(|import| ImportDescription {
        module: import.module.to_owned(),
        name: import.name.to_owned(),
        kind: import_kind(import.ty),
      })
      .collect(),
    functions,
    growth_pages: budget.growth_pages,
  })
}

/// The guard, assembled.
fn guard() -> Result<&'static [u8], PrepareError> {
  static GUARD: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
  GUARD
    .get_or_init(|| wat::parse_str(GUARD_TEXT).map_err(|error| error.to_string()))
    .as_deref()
    .map_err(|message| PrepareError::Internal(format!("guard: {message}")))
}

fn check_names(modules: &[LoadedModule]) -> Result<(), PrepareError> {
  let mut seen = BTreeSet::new();
  for LoadedModule { name, .. } in modules {
    if name.starts_with(RESERVED) || name == KERNEL {
      return Err(PrepareError::ReservedName { name: name.clone() });
    }
    if !seen.insert(name) {
      return Err(PrepareError::DuplicateModule {
        module: name.clone(),
      });
    }
  }
  Ok(())
}

/// The proposals that Extism's configuration of Wasmtime knows. Wasmtime has the last word when it
/// compiles; what is refused here is refused with a better message. Threads are not among them: no
/// limit reaches a shared memory.
fn features() -> WasmFeatures {
  WasmFeatures::WASM2
    | WasmFeatures::RELAXED_SIMD
    | WasmFeatures::TAIL_CALL
    | WasmFeatures::EXTENDED_CONST
    | WasmFeatures::MULTI_MEMORY
    | WasmFeatures::MEMORY64
    | WasmFeatures::FUNCTION_REFERENCES
    | WasmFeatures::GC
}

/// A section of a user module.
enum Section<'a> {
  /// Copied as it is.
  Raw {
    id: u8,
    bytes: &'a [u8],
  },
  Imports,
  Tables,
  Memories,
  Exports,
}

/// A table that a module defines.
struct Table<'a> {
  ty: wasmparser::TableType,
  init: TableInit<'a>,
}

/// A user module, read.
struct Module<'a> {
  name: String,
  sections: Vec<Section<'a>>,
  types: wasmparser::types::Types,
  imports: Vec<Import<'a>>,
  tables: Vec<Table<'a>>,
  memories: Vec<wasmparser::MemoryType>,
  exports: Vec<Export<'a>>,
  exports_by_name: HashMap<&'a str, usize>,
  start: Option<u32>,
}

impl<'a> Module<'a> {
  fn parse(name: String, bytes: &'a [u8]) -> Result<Self, PrepareError> {
    let invalid = |message: String| PrepareError::InvalidWasm {
      module: name.clone(),
      message,
    };
    let malformed = |error: wasmparser::BinaryReaderError| invalid(error.to_string());
    // The parser would say so too, but it quotes what it found.
    if !bytes.starts_with(b"\0asm") {
      return Err(invalid(
        "it does not begin with the bytes of a module".to_owned(),
      ));
    }

    // The validator sees everything but the bodies of functions. Wasmtime validates these when
    // it compiles them; to do it here as well would double what a large module costs.
    let mut validator = Validator::new_with_features(features());
    let mut types = None;
    let mut sections = Vec::new();
    let mut imports = Vec::new();
    let mut tables = Vec::new();
    let mut memories = Vec::new();
    let mut exports: Vec<Export<'a>> = Vec::new();
    let mut start = None;

    for payload in Parser::new(0).parse_all(bytes) {
      let payload = payload.map_err(malformed)?;
      if let Payload::Version { encoding, .. } = &payload
        && *encoding != Encoding::Module
      {
        return Err(invalid("it is a component, not a core module".to_owned()));
      }
      if let ValidPayload::End(found) = validator.payload(&payload).map_err(malformed)? {
        types = Some(found);
      }
      match payload {
        Payload::ImportSection(reader) => {
          for import in reader.into_imports() {
            imports.push(import.map_err(malformed)?);
          }
          sections.push(Section::Imports);
        }
        Payload::TableSection(reader) => {
          for table in reader {
            let table = table.map_err(malformed)?;
            tables.push(Table {
              ty: table.ty,
              init: table.init,
            });
          }
          sections.push(Section::Tables);
        }
        Payload::MemorySection(reader) => {
          for memory in reader {
            memories.push(memory.map_err(malformed)?);
          }
          sections.push(Section::Memories);
        }
        Payload::ExportSection(reader) => {
          for export in reader {
            exports.push(export.map_err(malformed)?);
          }
          sections.push(Section::Exports);
        }
        Payload::StartSection { func, .. } => {
          start = Some(func);
          // The start function becomes an export. The section of exports comes right
          // before this one where there is any.
          if !sections
            .iter()
            .any(|section| matches!(section, Section::Exports))
          {
            sections.push(Section::Exports);
          }
        }
        Payload::CustomSection(reader) => {
          let range = reader.range();
          let length = range.end - range.start;
          if reader.name() == "name" && length <= NAME_SECTION_LIMIT as u64 {
            sections.push(Section::Raw {
              id: 0,
              bytes: slice(bytes, range)
                .ok_or_else(|| invalid("a section lies outside the module".to_owned()))?,
            });
          }
        }
        payload => {
          if let Some((id, range)) = payload.as_section() {
            sections.push(Section::Raw {
              id,
              bytes: slice(bytes, range)
                .ok_or_else(|| invalid("a section lies outside the module".to_owned()))?,
            });
          }
        }
      }
    }

    for name in imports
      .iter()
      .map(|import| import.module)
      .chain(exports.iter().map(|export| export.name))
    {
      if name.starts_with(RESERVED) {
        return Err(PrepareError::ReservedName {
          name: name.to_owned(),
        });
      }
    }
    Ok(Self {
      exports_by_name: exports
        .iter()
        .enumerate()
        .map(|(place, export)| (export.name, place))
        .collect(),
      types: types.ok_or_else(|| invalid("it has no end".to_owned()))?,
      name,
      sections,
      imports,
      tables,
      memories,
      exports,
      start,
    })
  }

  fn export(&self, name: &str) -> Option<&Export<'a>> {
    self.exports.get(*self.exports_by_name.get(name)?)
  }

  /// The type of an exported function. `None` for other exports, and where a vector or a
  /// reference occurs.
  fn exported_function(&self, name: &str) -> Option<FunctionType> {
    let export = self.export(name)?;
    function_type(
      self.types.as_ref(),
      self.types.as_ref().entity_type_from_export(export)?,
    )
  }

  /// Whether it exports a memory with 32-bit addresses as `memory`: the one that WASI uses.
  fn exports_memory(&self) -> bool {
    let ty = self
      .export("memory")
      .and_then(|export| self.types.as_ref().entity_type_from_export(export));
    matches!(ty, Some(EntityType::Memory(memory)) if !memory.memory64 && !memory.shared)
  }

  /// What initializes this module, in the order that WASI and Extism imply.
  fn initializers(&self, prepared_name: &str) -> Vec<Initializer> {
    use ValueType::I32;

    let mut initializers = Vec::new();
    let mut add = |export: &str, function: FunctionType| {
      initializers.push(Initializer {
        module: prepared_name.to_owned(),
        export: names::export(export).to_owned(),
        function,
      });
    };
    let plain = FunctionType::default();
    let is_plain = |name: &str| self.exported_function(name).as_ref() == Some(&plain);

    if self.start.is_some() {
      add(START, plain.clone());
    }
    match self.exported_function("hs_init") {
      // Haskell: the reactor first, then its runtime.
      Some(function) if function.params == [I32, I32] => {
        if is_plain("_initialize") {
          add("_initialize", plain.clone());
        }
        add("hs_init", function);
      }
      _ => {
        if is_plain("_initialize") {
          add("_initialize", plain.clone());
        } else if is_plain("__wasm_call_ctors") {
          add("__wasm_call_ctors", plain.clone());
        }
      }
    }
    initializers
  }

  /// The exports that can be called, by name and for the driver.
  fn callables(&self) -> (BTreeMap<String, u32>, Vec<Callable>) {
    let mut by_name = BTreeMap::new();
    let mut callables = Vec::new();
    for export in &self.exports {
      // These are ours to call.
      if matches!(export.name, "_initialize" | "__wasm_call_ctors" | "hs_init") {
        continue;
      }
      let Some(function) = self.exported_function(export.name) else {
        continue;
      };
      let returns_code = match (function.params.as_slice(), function.results.as_slice()) {
        ([], []) => false,
        ([], [ValueType::I32]) => true,
        _ => continue,
      };
      by_name.insert(export.name.to_owned(), callables.len() as u32);
      callables.push(Callable {
        export: names::export(export.name).to_owned(),
        returns_code,
      });
    }
    (by_name, callables)
  }

  /// Writes the module anew.
  fn rewrite(
    &self,
    targets: &[Target],
    ranks: &Ranks,
    budget: &Budget,
  ) -> Result<Vec<u8>, PrepareError> {
    let mut reencoder = RoundtripReencoder;
    let unwritable = |error: wasm_encoder::reencode::Error| PrepareError::InvalidWasm {
      module: self.name.clone(),
      message: error.to_string(),
    };
    let mut module = wasm_encoder::Module::new();
    for section in &self.sections {
      match section {
        Section::Raw { id, bytes } => {
          module.section(&RawSection {
            id: *id,
            data: bytes,
          });
        }
        Section::Imports => {
          let mut imports = ImportSection::new();
          for (import, target) in self.imports.iter().zip(targets) {
            let mut ty = reencoder.entity_type(import.ty).map_err(unwritable)?;
            if let wasm_encoder::EntityType::Memory(memory) = &mut ty {
              memory.maximum = memory
                .maximum
                .map(|maximum| maximum_pages(maximum, budget.memory_pages));
            }
            let (module, name) = target.names(import, ranks);
            imports.import(&module, &name, ty);
          }
          module.section(&imports);
        }
        Section::Tables => {
          let mut tables = TableSection::new();
          for table in &self.tables {
            let mut ty = reencoder.table_type(table.ty).map_err(unwritable)?;
            let maximum = ty.minimum.saturating_add(budget.table_share);
            ty.maximum = Some(ty.maximum.unwrap_or(maximum).min(maximum));
            match &table.init {
              TableInit::RefNull => {
                tables.table(ty);
              }
              TableInit::Expr(init) => {
                let init = reencoder.const_expr(init.clone()).map_err(unwritable)?;
                tables.table_with_init(ty, &init);
              }
            }
          }
          module.section(&tables);
        }
        Section::Memories => {
          let mut memories = MemorySection::new();
          for memory in &self.memories {
            let mut ty = reencoder.memory_type(*memory).map_err(unwritable)?;
            ty.maximum = Some(maximum_pages(
              ty.maximum.unwrap_or(u64::MAX),
              budget.memory_pages,
            ));
            memories.memory(ty);
          }
          module.section(&memories);
        }
        Section::Exports => {
          let mut exports = ExportSection::new();
          for export in &self.exports {
            let kind = reencoder.export_kind(export.kind).map_err(unwritable)?;
            exports.export(names::export(export.name), kind, export.index);
          }
          if let Some(start) = self.start {
            exports.export(START, ExportKind::Func, start);
          }
          module.section(&exports);
        }
      }
    }
    Ok(module.finish())
  }
}

/// The maximum that a memory gets, which is one page more than it may have.
///
/// Extism ends a call as out of memory when a memory grows *to* its maximum, so with the number
/// that the author wrote his last page would be lost. The limit itself is kept by Extism's count of
/// all pages.
fn maximum_pages(declared: u64, limit: u64) -> u64 {
  declared.min(limit) + 1
}

fn slice(bytes: &[u8], range: std::ops::Range<u64>) -> Option<&[u8]> {
  bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

/// Where an import is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
  /// A user module.
  Module(usize),
  /// A function of the kernel, which is to say the guard's.
  Kernel(String),
  /// A host function: its place among those that exist.
  HostFunction(usize),
  /// The end of the guest by itself.
  Exit,
  /// WASI, as it is.
  Wasi,
  /// A function of WASI that the module's fixup has.
  StandIn(StandIn),
}

impl Target {
  fn names(&self, import: &Import<'_>, ranks: &Ranks) -> (String, String) {
    match self {
      Self::Module(number) => (ranks.name(*number), names::export(import.name).to_owned()),
      Self::Kernel(name) => (GUARD.to_owned(), name.clone()),
      Self::HostFunction(number) => (GATE.to_owned(), names::function(*number)),
      Self::Exit => (GATE.to_owned(), driver::PROC_EXIT.to_owned()),
      Self::Wasi => (WASI.to_owned(), import.name.to_owned()),
      Self::StandIn(StandIn { module, name }) => (GATE.to_owned(), names::wasi(*module, name)),
    }
  }
}

/// Finds what imports stand for.
struct Resolver<'m> {
  modules: &'m [Module<'m>],
  by_name: HashMap<&'m str, usize>,
  wasi: bool,
  program: &'m Program,
  functions: &'m [HostFunction],
  /// By namespace and name.
  function_places: HashMap<(&'m str, &'m str), usize>,
  untyped: &'m [UntypedFunction],
  vars: &'m Arc<Vars>,
  /// Host functions that have been found, by their numbers.
  imported: RefCell<BTreeMap<usize, HostFunction>>,
}

impl<'m> Resolver<'m> {
  fn new(modules: &'m [Module<'m>], options: &Options<'m>) -> Self {
    Self {
      modules,
      by_name: modules
        .iter()
        .enumerate()
        .map(|(number, module)| (module.name.as_str(), number))
        .collect(),
      wasi: options.wasi,
      program: options.program,
      functions: options.functions,
      function_places: options
        .functions
        .iter()
        .enumerate()
        .map(|(place, function)| ((function.namespace.as_str(), function.name.as_str()), place))
        .collect(),
      untyped: options.untyped,
      vars: options.vars,
      imported: RefCell::default(),
    }
  }

  /// The targets of all imports, module by module. What is wrong is found depth first from the main
  /// module, in the order of the imports; then in the modules that it does not lead to.
  ///
  /// Walks with a stack of its own, as [`link_order`] does.
  fn resolve_all(&self, main: usize) -> Result<Vec<Vec<Target>>, PrepareError> {
    let mut targets = vec![Vec::new(); self.modules.len()];
    let mut seen = BTreeSet::new();
    let others = (0..self.modules.len()).filter(|number| *number != main);
    for root in [main].into_iter().chain(others) {
      let mut path = Vec::new();
      if seen.insert(root) {
        path.push(root);
      }
      while let Some(number) = path.last().copied() {
        let (Some(importer), Some(found)) = (self.modules.get(number), targets.get_mut(number))
        else {
          break;
        };
        let Some(import) = importer.imports.get(found.len()) else {
          path.pop();
          continue;
        };
        let Some(target) = self.resolve(importer, import)? else {
          return Err(self.missing(&path, import));
        };
        if let Target::Module(next) = target
          && seen.insert(next)
        {
          path.push(next);
        }
        found.push(target);
      }
    }
    Ok(targets)
  }

  fn missing(&self, path: &[usize], import: &Import<'_>) -> PrepareError {
    let modules = path.iter().filter_map(|number| self.modules.get(*number));
    PrepareError::MissingImport {
      path: modules.map(|module| module.name.clone()).collect(),
      module: import.module.to_owned(),
      name: import.name.to_owned(),
      hint: if import.module == WASI && !self.wasi {
        ": pass `useWasi: true` to give the plugin WASI"
      } else {
        ""
      },
    }
  }

  /// `None` where nothing provides it. The user's own modules come first, as they do in Extism.
  fn resolve(
    &self,
    importer: &Module<'_>,
    import: &Import<'_>,
  ) -> Result<Option<Target>, PrepareError> {
    if let Some(target) = self.exported(importer, import)? {
      return Ok(Some(target));
    }
    let expected = match import.ty {
      TypeRef::Func(_) => importer
        .types
        .as_ref()
        .entity_type_from_import(import)
        .and_then(|ty| function_type(importer.types.as_ref(), ty)),
      _ => None,
    };
    if let Some(target) = self.untyped(import, expected.as_ref()) {
      return Ok(Some(target));
    }
    let found = match import.module {
      KERNEL => self.of_kernel(import.name),
      ENV => self.of_env(import.name),
      WASI if self.wasi => self.of_wasi(importer, import.name),
      module => self.host_function(module, import.name),
    };
    let Some((target, found)) = found else {
      return Ok(None);
    };
    if !matches!(import.ty, TypeRef::Func(_)) {
      return Err(wrong_type(
        importer,
        import,
        kind_name(import_kind(import.ty)).to_owned(),
        "a function".to_owned(),
      ));
    }
    if expected.as_ref() != Some(&found) {
      return Err(wrong_type(
        importer,
        import,
        expected.map_or_else(
          || "a function with vectors or references".to_owned(),
          |expected| format!("a function {expected}"),
        ),
        format!("a function {found}"),
      ));
    }
    Ok(Some(target))
  }

  /// What another user module exports under this name.
  fn exported(
    &self,
    importer: &Module<'_>,
    import: &Import<'_>,
  ) -> Result<Option<Target>, PrepareError> {
    let Some(number) = self.by_name.get(import.module) else {
      return Ok(None);
    };
    let Some(exporter) = self.modules.get(*number) else {
      return Ok(None);
    };
    let Some(export) = exporter.export(import.name) else {
      return Ok(None);
    };
    let (wanted, kind) = (import_kind(import.ty), export_kind(export.kind));
    if wanted != kind {
      return Err(wrong_type(
        importer,
        import,
        kind_name(wanted).to_owned(),
        kind_name(kind).to_owned(),
      ));
    }
    // Types with vectors and references are compared by Wasmtime when it links.
    if let (Some(expected), Some(found)) = (
      importer
        .types
        .as_ref()
        .entity_type_from_import(import)
        .and_then(|ty| function_type(importer.types.as_ref(), ty)),
      exporter.exported_function(import.name),
    ) && expected != found
    {
      return Err(wrong_type(
        importer,
        import,
        format!("a function {expected}"),
        format!("a function {found}"),
      ));
    }
    Ok(Some(Target::Module(*number)))
  }

  fn of_kernel(&self, name: &str) -> Option<(Target, FunctionType)> {
    match types::kernel(name) {
      Some(function) => Some((Target::Kernel(name.to_owned()), function)),
      None => self.host_function(KERNEL, name),
    }
  }

  /// Plugins built in 2023 import from `env` what is in `extism:host/env` today, under a longer
  /// name, and host functions under their own.
  fn of_env(&self, name: &str) -> Option<(Target, FunctionType)> {
    self
      .host_function(ENV, name)
      .or_else(|| self.of_kernel(name.strip_prefix("extism_")?))
      .or_else(|| self.host_function(USER, name))
  }

  fn of_wasi(&self, importer: &Module<'_>, name: &str) -> Option<(Target, FunctionType)> {
    if name == driver::PROC_EXIT {
      return Some((Target::Exit, driver::proc_exit_type()));
    }
    let function = types::wasi(name)?;
    // Without a memory that it exports, WASI's own functions fail.
    let module = self.by_name.get(importer.name.as_str());
    let target = match module {
      Some(module) if self.program.answers(name) && importer.exports_memory() => {
        let (module, name) = (*module, name.to_owned());
        Target::StandIn(StandIn { module, name })
      }
      _ => Target::Wasi,
    };
    Some((target, function))
  }

  /// A function that has whatever type the import has, provided that host functions can have it.
  ///
  /// Of its namespace, or of the other of the two that have stood for host functions.
  fn untyped(&self, import: &Import<'_>, expected: Option<&FunctionType>) -> Option<Target> {
    let expected = expected.filter(|function| function.results.len() <= 1)?;
    let other = match import.module {
      ENV => USER,
      USER => ENV,
      module => module,
    };
    let find = |namespace: &str| {
      self
        .untyped
        .iter()
        .find(|function| function.namespace == namespace && function.name == import.name)
    };
    let found = find(import.module).or_else(|| find(other))?;
    let mut imported = self.imported.borrow_mut();
    let is_same = |function: &HostFunction| {
      (&function.namespace, &function.name, &function.function)
        == (&found.namespace, &found.name, expected)
    };
    let known = imported.iter().find(|(_, function)| is_same(function));
    let number = known.map(|(number, _)| *number).unwrap_or_else(|| {
      // After those that have places of their own.
      let last = imported.keys().next_back().map_or(0, |last| last + 1);
      let number = last.max(self.functions.len());
      imported.insert(number, (found.typed)(expected.clone(), self.vars));
      number
    });
    Some(Target::HostFunction(number))
  }

  fn host_function(&self, namespace: &str, name: &str) -> Option<(Target, FunctionType)> {
    let place = *self.function_places.get(&(namespace, name))?;
    let function = self.functions.get(place)?;
    self.imported.borrow_mut().insert(place, function.clone());
    Some((Target::HostFunction(place), function.function.clone()))
  }
}

fn wrong_type(
  importer: &Module<'_>,
  import: &Import<'_>,
  expected: String,
  found: String,
) -> PrepareError {
  PrepareError::WrongImportType {
    importer: importer.name.clone(),
    module: import.module.to_owned(),
    name: import.name.to_owned(),
    expected,
    found,
  }
}

fn function_type(types: TypesRef<'_>, ty: EntityType) -> Option<FunctionType> {
  match ty {
    EntityType::Func(id) | EntityType::FuncExact(id) => {
      match &types.get(id)?.composite_type.inner {
        CompositeInnerType::Func(function) => FunctionType::from_wasm(function),
        _ => None,
      }
    }
    _ => None,
  }
}

fn import_kind(ty: TypeRef) -> Kind {
  match ty {
    TypeRef::Func(_) | TypeRef::FuncExact(_) => Kind::Function,
    TypeRef::Table(_) => Kind::Table,
    TypeRef::Memory(_) => Kind::Memory,
    TypeRef::Global(_) => Kind::Global,
    TypeRef::Tag(_) => Kind::Tag,
  }
}

fn export_kind(kind: ExternalKind) -> Kind {
  match kind {
    ExternalKind::Func | ExternalKind::FuncExact => Kind::Function,
    ExternalKind::Table => Kind::Table,
    ExternalKind::Memory => Kind::Memory,
    ExternalKind::Global => Kind::Global,
    ExternalKind::Tag => Kind::Tag,
  }
}

fn kind_name(kind: Kind) -> &'static str {
  match kind {
    Kind::Function => "a function",
    Kind::Table => "a table",
    Kind::Memory => "a memory",
    Kind::Global => "a global",
    Kind::Tag => "a tag",
  }
}

/// The modules so that each comes after those that it imports from; the main module last.
///
/// Walks with a stack of its own: a manifest may chain more modules than the thread's stack is
/// deep.
fn link_order(
  modules: &[Module<'_>],
  targets: &[Vec<Target>],
  main: usize,
) -> Result<Vec<usize>, PrepareError> {
  let dependencies = targets
    .iter()
    .map(|targets| {
      targets
        .iter()
        .filter_map(|target| match target {
          Target::Module(number) => Some(*number),
          _ => None,
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    })
    .collect::<Vec<_>>();
  let name = |number: usize| {
    modules
      .get(number)
      .map_or_else(String::new, |module| module.name.clone())
  };

  let mut order = Vec::new();
  let mut done = BTreeSet::new();
  let roots = (0..modules.len())
    .filter(|number| *number != main)
    .chain([main]);
  for root in roots {
    if done.contains(&root) {
      continue;
    }
    // Each entry is a module and how many of its dependencies have been looked at.
    let mut path = vec![(root, 0)];
    while let Some((number, looked_at)) = path.last_mut() {
      let number = *number;
      let next = dependencies
        .get(number)
        .and_then(|dependencies| dependencies.get(*looked_at))
        .copied();
      *looked_at += 1;
      match next {
        None => {
          done.insert(number);
          order.push(number);
          path.pop();
        }
        Some(next) if done.contains(&next) => {}
        Some(next) => {
          if let Some(place) = path.iter().position(|(number, _)| *number == next) {
            return Err(PrepareError::CircularLinking {
              path: path
                .iter()
                .skip(place)
                .map(|(number, _)| name(*number))
                .chain([name(next)])
                .collect(),
            });
          }
          path.push((next, 0));
        }
      }
    }
  }
  Ok(order)
}

/// The places of modules in the order of linking. Their names follow it, because Extism links by
/// name, and recurses where a module comes before one that it needs.
struct Ranks(HashMap<usize, usize>);

impl Ranks {
  fn new(order: &[usize]) -> Self {
    Self(
      order
        .iter()
        .enumerate()
        .map(|(rank, number)| (*number, rank))
        .collect(),
    )
  }

  fn name(&self, number: usize) -> String {
    names::module(self.0.get(&number).copied().unwrap_or(usize::MAX))
  }
}

/// How memories and tables share their limits.
struct Budget {
  /// The most that one memory may have.
  memory_pages: u64,
  /// What all memories together may grow by.
  growth_pages: u32,
  /// How many bytes the live blocks in the kernel's memory may have.
  live_bytes: u64,
  /// What each table may grow by. Nothing counts what tables have together, so what is left of
  /// the limit is divided among them.
  table_share: u64,
}

impl Budget {
  fn new(modules: &[Module<'_>], limits: Limits) -> Result<Self, PrepareError> {
    let all_pages = limits.memory_pages.min(MOST_PAGES);
    let mut pages = all_pages
      .checked_sub(OWN_PAGES)
      .ok_or(PrepareError::LimitTooLow {
        pages: limits.memory_pages,
      })?;
    let mut elements = limits.table_elements;
    let mut tables = 0;
    for module in modules {
      for memory in &module.memories {
        pages = pages
          .checked_sub(memory.initial)
          .ok_or(PrepareError::TooMuchMemory {
            module: module.name.clone(),
            needed: memory.initial,
            allowed: pages,
          })?;
      }
      for table in &module.tables {
        elements =
          elements
            .checked_sub(table.ty.initial)
            .ok_or(PrepareError::TooManyTableElements {
              module: module.name.clone(),
              needed: table.ty.initial,
              allowed: elements,
            })?;
        tables += 1;
      }
    }
    // Without a limit of their own, blocks end with the memory that they are in.
    let (growth_pages, live_bytes) = match limits.growth_pages {
      Some(pages) => (pages, u64::from(pages) * PAGE),
      None => (u32::try_from(pages).unwrap_or(u32::MAX), i64::MAX as u64),
    };
    let initial_pages = all_pages - pages;
    Ok(Self {
      memory_pages: u64::min(initial_pages + u64::from(growth_pages), MOST_PAGES),
      growth_pages,
      live_bytes,
      table_share: elements / u64::max(tables, 1),
    })
  }
}
