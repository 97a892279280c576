//! Writes the linked module.
//!
//! Each index in a user module is translated through that module's tables ([`Maps`]). An index outside
//! them is an error, so it can never refer to something of another module.

use std::collections::BTreeSet;

use wasm_encoder::reencode::{Error, Reencode, utils};
use wasm_encoder::{
  CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, Elements, Encode,
  EntityType, ExportKind, ExportSection, Function, FunctionSection, GlobalSection, ImportSection,
  Instruction, MemArg, MemorySection, MemoryType, NameMap, NameSection, TableSection, TagSection,
};
use wasmparser::{Operator, TableInit, ValType};

use super::module::{Body, Module};
use super::resolve::{Definition, Modules, Resolution, Resolved, inconsistent, internal};
use super::sizes::{self, Sizes};
use super::type_table::TypeTable;
use super::{Entries, FunctionIndex, Kind, LinkError, StateExports, names};
use crate::abi::{FunctionType, RESERVED, ValueType};

/// The kernel's export of the memory with the blocks.
pub(super) const KERNEL_BLOCKS: &str = "blocks";
/// The kernel's export of the memory with the table of blocks.
pub(super) const KERNEL_TABLE: &str = "table";

/// The linked module.
pub(super) struct Merged {
  pub bytes: Vec<u8>,
  /// The exports of its state, if memories and globals are all that calls can change.
  pub state: Option<StateExports>,
}

/// Writes the linked module.
pub(super) fn merge(
  modules: &Modules<'_, '_>,
  types: &mut TypeTable,
  resolution: &Resolution,
  entries: &Entries,
  checks: bool,
) -> Result<Merged, LinkError> {
  let order = resolution
    .order
    .iter()
    .copied()
    .chain([modules.kernel])
    .collect::<Vec<_>>();
  let layout = Layout::new(modules, resolution, &order)?;
  let mut sizes = None;
  if sizes::are_tracked(modules, !entries.initializers.is_empty()) {
    let ty = FunctionType::new([ValueType::I32], [ValueType::I32]);
    sizes = Some(Sizes {
      ty: types.add_function(&ty).map_err(internal)?,
      first_function: layout.functions,
      first_global: u32::try_from(layout.globals.len()).map_err(|_| inconsistent())?,
    });
  }
  let mut merger = Merger::new(modules, &layout, checks.then_some(layout.memories), sizes);

  // Process the parts in the order of their dependencies; the sections follow in the order of the binary
  // format.
  let mut globals = merger.globals()?;
  for number in &order {
    merger.add(*number)?;
  }
  if let Some(sizes) = sizes {
    let users = order.iter().filter(|number| **number != modules.kernel);
    let memories = users
      .filter_map(|number| modules.modules.get(*number))
      .flat_map(|module| &module.memories);
    for (memory, ty) in (0..).zip(memories) {
      let Merger {
        functions, code, ..
      } = &mut merger;
      sizes.add(memory, ty.initial, &mut globals, functions, code)?;
    }
  }

  let mut module = wasm_encoder::Module::new();
  module.section(types.section());
  let mut imports = ImportSection::new();
  for import in &resolution.host_imports {
    imports.import(
      &import.module,
      &import.name,
      EntityType::Function(import.ty),
    );
  }
  module.section(&imports);
  module.section(&merger.functions);
  module.section(&merger.tables);
  if checks {
    merger.memories.memory(MemoryType {
      minimum: 0,
      maximum: Some(1),
      memory64: false,
      shared: false,
      page_size_log2: None,
    });
  }
  module.section(&merger.memories);
  if !merger.tags.is_empty() {
    module.section(&merger.tags);
  }
  module.section(&globals);
  let mut exports = exports(modules, &layout, resolution, entries, checks)?;
  let state = export_state(modules, &layout, sizes, &mut exports)?;
  module.section(&exports);
  if !merger.referenced.is_empty() {
    // A body may only refer to functions that also occur outside bodies, and the user modules' exports,
    // which some bodies relied on, are gone.
    let referenced = merger.referenced.iter().copied().collect::<Vec<_>>();
    merger
      .elements
      .declared(Elements::Functions(referenced.into()));
  }
  module.section(&merger.elements);
  if layout.data > 0 {
    module.section(&DataCountSection { count: layout.data });
  }
  module.section(&merger.code);
  if layout.data > 0 {
    module.section(&merger.data);
  }
  module.section(&function_names(modules, &layout, resolution));
  Ok(Merged {
    bytes: module.finish(),
    state,
  })
}

/// The index in the linked module for each index of a user module.
#[derive(Default)]
struct Maps {
  functions: Vec<u32>,
  tables: Vec<u32>,
  memories: Vec<u32>,
  globals: Vec<u32>,
  tags: Vec<u32>,
  /// The first data segment, and the number of data segments.
  data: (u32, u32),
  /// The first element segment, and the number of element segments.
  elements: (u32, u32),
}

impl Maps {
  fn of(&self, kind: Kind) -> &[u32] {
    match kind {
      Kind::Function => &self.functions,
      Kind::Table => &self.tables,
      Kind::Memory => &self.memories,
      Kind::Global => &self.globals,
      Kind::Tag => &self.tags,
    }
  }
}

/// The index of everything in the linked module.
struct Layout {
  maps: Vec<Maps>,
  /// All globals, ordered so that each comes after the ones that its initializer reads.
  globals: Vec<Definition>,
  /// The number of functions, imports included.
  functions: u32,
  /// The number of memories that modules define. The interrupt memory comes next.
  memories: u32,
  /// The number of data segments.
  data: u32,
}

impl Layout {
  fn new(
    modules: &Modules<'_, '_>,
    resolution: &Resolution,
    order: &[usize],
  ) -> Result<Self, LinkError> {
    let imported = u32::try_from(resolution.host_imports.len()).map_err(|_| inconsistent())?;
    let (functions, function_count) = number(modules, order, Kind::Function, imported)?;
    let (tables, _) = number(modules, order, Kind::Table, 0)?;
    let (memories, memory_count) = number(modules, order, Kind::Memory, 0)?;
    let (tags, _) = number(modules, order, Kind::Tag, 0)?;
    let globals = order_globals(modules, resolution, order)?;
    let mut global_numbers = modules
      .modules
      .iter()
      .map(|module| vec![0; module.globals.len()])
      .collect::<Vec<_>>();
    for (position, Definition { module, number }) in (0..).zip(&globals) {
      let numbers = global_numbers.get_mut(*module);
      *numbers
        .and_then(|numbers| numbers.get_mut(*number))
        .ok_or_else(inconsistent)? = position;
    }

    let mut maps = Vec::new();
    for (position, module) in modules.modules.iter().enumerate() {
      let map = |kind: Kind, numbers: &[Vec<u32>]| {
        let resolved = resolution.imports.get(position);
        let imports = module.space(kind).imports.iter().map(|import| {
          match resolved.and_then(|resolved| resolved.get(*import))? {
            Resolved::Defined(Definition { module, number }) => {
              numbers.get(*module)?.get(*number).copied()
            }
            Resolved::Import(import) if kind == Kind::Function => u32::try_from(*import).ok(),
            Resolved::Import(_) => None,
          }
        });
        let defined = numbers.get(position).into_iter().flatten();
        imports
          .chain(defined.map(|number| Some(*number)))
          .collect::<Option<Vec<_>>>()
          .ok_or_else(inconsistent)
      };
      maps.push(Maps {
        functions: map(Kind::Function, &functions)?,
        tables: map(Kind::Table, &tables)?,
        memories: map(Kind::Memory, &memories)?,
        globals: map(Kind::Global, &global_numbers)?,
        tags: map(Kind::Tag, &tags)?,
        data: (0, 0),
        elements: (0, 0),
      });
    }

    let (mut data, mut elements) = (0_u32, 0_u32);
    for position in order {
      let module = modules.modules.get(*position).ok_or_else(inconsistent)?;
      let maps = maps.get_mut(*position).ok_or_else(inconsistent)?;
      let data_count = module.data.as_ref().map_or(0, |data| data.count());
      let element_count = u32::try_from(module.elements.len()).map_err(|_| inconsistent())?;
      maps.data = (data, data_count);
      maps.elements = (elements, element_count);
      data = data.checked_add(data_count).ok_or_else(inconsistent)?;
      elements = elements
        .checked_add(element_count)
        .ok_or_else(inconsistent)?;
    }
    Ok(Self {
      maps,
      globals,
      functions: function_count,
      memories: memory_count,
      data,
    })
  }

  /// The index in the linked module for a module's index.
  fn index(&self, module: usize, kind: Kind, index: u32) -> Result<u32, LinkError> {
    let index = usize::try_from(index).ok();
    let maps = self.maps.get(module);
    maps
      .zip(index)
      .and_then(|(maps, index)| maps.of(kind).get(index))
      .copied()
      .ok_or_else(inconsistent)
  }
}

/// Numbers all definitions of a kind, starting with `next`. Also returns the next free number.
fn number(
  modules: &Modules<'_, '_>,
  order: &[usize],
  kind: Kind,
  mut next: u32,
) -> Result<(Vec<Vec<u32>>, u32), LinkError> {
  let mut numbers = vec![Vec::new(); modules.modules.len()];
  for position in order {
    let module = modules.modules.get(*position).ok_or_else(inconsistent)?;
    let defined = u32::try_from(module.space(kind).defined).map_err(|_| inconsistent())?;
    let end = next.checked_add(defined).ok_or_else(inconsistent)?;
    *numbers.get_mut(*position).ok_or_else(inconsistent)? = (next..end).collect();
    next = end;
  }
  Ok((numbers, next))
}

/// All globals, ordered so that each comes after the ones that its initializer reads.
fn order_globals(
  modules: &Modules<'_, '_>,
  resolution: &Resolution,
  order: &[usize],
) -> Result<Vec<Definition>, LinkError> {
  #[derive(Clone, Copy, PartialEq)]
  enum Visit {
    New,
    Open,
    Done,
  }
  let mut states = modules
    .modules
    .iter()
    .map(|module| vec![Visit::New; module.globals.len()])
    .collect::<Vec<_>>();
  let mut set = |definition: Definition, state: Visit| {
    let states = states.get_mut(definition.module);
    let entry = states.and_then(|states| states.get_mut(definition.number));
    entry
      .map(|entry| std::mem::replace(entry, state))
      .ok_or_else(inconsistent)
  };

  let mut ordered = Vec::new();
  for module in order {
    let count = modules
      .modules
      .get(*module)
      .map_or(0, |module| module.globals.len());
    for number in 0..count {
      let root = Definition {
        module: *module,
        number,
      };
      match set(root, Visit::Open)? {
        Visit::New => {}
        // No visit is open between two roots.
        state => {
          set(root, state)?;
          continue;
        }
      }
      // Each entry is a global and the unvisited globals that its initializer reads.
      let mut path = vec![(root, globals_read_by(modules, resolution, root)?)];
      while let Some((definition, unvisited)) = path.last_mut() {
        let Some(next) = unvisited.pop() else {
          set(*definition, Visit::Done)?;
          ordered.push(*definition);
          path.pop();
          continue;
        };
        match set(next, Visit::Open)? {
          Visit::New => path.push((next, globals_read_by(modules, resolution, next)?)),
          Visit::Done => {
            set(next, Visit::Done)?;
          }
          Visit::Open => {
            let start = path
              .iter()
              .position(|(definition, _)| *definition == next)
              .unwrap_or(0);
            let cycle = path.iter().skip(start).map(|(definition, _)| *definition);
            return Err(LinkError::CircularLinking {
              path: cycle
                .chain([next])
                .filter_map(|definition| modules.modules.get(definition.module))
                .map(|module| module.name.clone())
                .collect(),
            });
          }
        }
      }
    }
  }
  Ok(ordered)
}

/// A global, and the module that defines it.
fn global<'m, 'a>(
  modules: &'m Modules<'m, 'a>,
  definition: Definition,
) -> Result<(&'m Module<'a>, &'m wasmparser::Global<'a>), LinkError> {
  let module = modules.modules.get(definition.module);
  let found = module.and_then(|module| Some((module, module.globals.get(definition.number)?)));
  found.ok_or_else(inconsistent)
}

/// The globals that the initializer of a global reads.
fn globals_read_by(
  modules: &Modules<'_, '_>,
  resolution: &Resolution,
  definition: Definition,
) -> Result<Vec<Definition>, LinkError> {
  use super::module::IndexTarget;

  let (module, global) = global(modules, definition)?;
  let mut found = Vec::new();
  for operator in global.init_expr.get_operators_reader() {
    let Operator::GlobalGet { global_index } = operator.map_err(|_| inconsistent())? else {
      continue;
    };
    let read = match module.space(Kind::Global).target(global_index) {
      Some(IndexTarget::Defined(number)) => Some(Definition {
        module: definition.module,
        number,
      }),
      Some(IndexTarget::Import(position)) => {
        let resolved = resolution.imports.get(definition.module);
        match resolved.and_then(|resolved| resolved.get(position)) {
          Some(Resolved::Defined(definition)) => Some(*definition),
          _ => None,
        }
      }
      None => None,
    };
    found.push(read.ok_or_else(inconsistent)?);
  }
  Ok(found)
}

/// An index that a module must not use, or an expression that cannot be linked.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Fault {
  #[error("{0} index is out of range")]
  OutOfRange(&'static str),
  #[error("a table's initial value reads an imported global whose value is not a plain constant")]
  TableInitializer,
}

/// Translates the indices of one module.
struct IndexMapper<'m> {
  types: &'m [u32],
  maps: &'m Maps,
  /// The encoded values of the globals whose initializer is a single constant, by number. Empty for other
  /// globals, and for globals that have not been written yet.
  constants: &'m [Vec<u8>],
  /// Whether a constant expression may read globals.
  may_read_globals: bool,
}

fn map(map: &[u32], index: u32, what: &'static str) -> Result<u32, Error<Fault>> {
  usize::try_from(index)
    .ok()
    .and_then(|index| map.get(index))
    .copied()
    .ok_or(Error::UserError(Fault::OutOfRange(what)))
}

fn map_range(
  (first, count): (u32, u32),
  index: u32,
  what: &'static str,
) -> Result<u32, Error<Fault>> {
  Some(index)
    .filter(|index| *index < count)
    .and_then(|index| first.checked_add(index))
    .ok_or(Error::UserError(Fault::OutOfRange(what)))
}

impl Reencode for IndexMapper<'_> {
  type Error = Fault;

  fn type_index(&mut self, index: u32) -> Result<u32, Error<Fault>> {
    map(self.types, index, "a type")
  }

  fn function_index(&mut self, index: u32) -> Result<u32, Error<Fault>> {
    map(&self.maps.functions, index, "a function")
  }

  fn table_index(&mut self, index: u32) -> Result<u32, Error<Fault>> {
    map(&self.maps.tables, index, "a table")
  }

  fn memory_index(&mut self, index: u32) -> Result<u32, Error<Fault>> {
    map(&self.maps.memories, index, "a memory")
  }

  fn global_index(&mut self, index: u32) -> Result<u32, Error<Fault>> {
    map(&self.maps.globals, index, "a global")
  }

  fn tag_index(&mut self, index: u32) -> Result<u32, Error<Fault>> {
    map(&self.maps.tags, index, "a tag")
  }

  fn data_index(&mut self, index: u32) -> Result<u32, Error<Fault>> {
    map_range(self.maps.data, index, "a data segment")
  }

  fn element_index(&mut self, index: u32) -> Result<u32, Error<Fault>> {
    map_range(self.maps.elements, index, "an element segment")
  }

  /// Replaces globals in a constant expression by their values if these are constants. A global that was
  /// imported is now defined in the same module, and tables must not read such globals. Also, reading one
  /// would keep Wasmtime from initializing memories in advance.
  fn const_expr(
    &mut self,
    expression: wasmparser::ConstExpr<'_>,
  ) -> Result<ConstExpr, Error<Fault>> {
    let mut operators = expression.get_operators_reader();
    let mut bytes = Vec::new();
    while !operators.is_end_then_eof() {
      let operator = operators.read()?;
      if let Operator::GlobalGet { global_index } = operator {
        let number = usize::try_from(self.global_index(global_index)?).ok();
        match number.and_then(|number| self.constants.get(number)) {
          Some(constant) if !constant.is_empty() => {
            bytes.extend_from_slice(constant);
            continue;
          }
          _ if !self.may_read_globals => return Err(Error::UserError(Fault::TableInitializer)),
          _ => {}
        }
      }
      utils::instruction(self, operator)?.encode(&mut bytes);
    }
    Ok(ConstExpr::raw(bytes))
  }
}

/// Collects the sections of the linked module.
struct Merger<'m, 'a> {
  modules: &'m Modules<'m, 'a>,
  layout: &'m Layout,
  /// The memory that interrupt checks load from, if checks are inserted.
  interrupt: Option<u32>,
  sizes: Option<Sizes>,
  constants: Vec<Vec<u8>>,
  functions: FunctionSection,
  tables: TableSection,
  memories: MemorySection,
  tags: TagSection,
  elements: ElementSection,
  code: CodeSection,
  data: DataSection,
  /// The functions that bodies refer to by `ref.func`.
  referenced: BTreeSet<u32>,
}

impl<'m, 'a> Merger<'m, 'a> {
  fn new(
    modules: &'m Modules<'m, 'a>,
    layout: &'m Layout,
    interrupt: Option<u32>,
    sizes: Option<Sizes>,
  ) -> Self {
    Self {
      modules,
      layout,
      interrupt,
      sizes,
      constants: Vec::new(),
      functions: FunctionSection::new(),
      tables: TableSection::new(),
      memories: MemorySection::new(),
      tags: TagSection::new(),
      elements: ElementSection::new(),
      code: CodeSection::new(),
      data: DataSection::new(),
      referenced: BTreeSet::new(),
    }
  }

  fn module(&self, number: usize) -> Result<(&'m Module<'a>, &'m [u32], &'m Maps), LinkError> {
    let module = self.modules.modules.get(number);
    let types = self.modules.types.get(number);
    let maps = self.layout.maps.get(number);
    match (module, types, maps) {
      (Some(module), Some(types), Some(maps)) => Ok((module, types, maps)),
      _ => Err(inconsistent()),
    }
  }

  /// Writes the globals of all modules.
  fn globals(&mut self) -> Result<GlobalSection, LinkError> {
    let mut section = GlobalSection::new();
    for Definition { module, number } in &self.layout.globals {
      let (module, types, maps) = self.module(*module)?;
      let global = module.globals.get(*number).ok_or_else(inconsistent)?;
      let mut mapper = IndexMapper {
        types,
        maps,
        constants: &self.constants,
        may_read_globals: true,
      };
      let ty = mapper.global_type(global.ty).map_err(failed(module))?;
      let init = mapper
        .const_expr(global.init_expr.clone())
        .map_err(failed(module))?;
      section.global(ty, &init);
      let constant = constant(&mut mapper, &global.init_expr).map_err(failed(module))?;
      self.constants.push(constant);
    }
    Ok(section)
  }

  /// Adds everything else of a module.
  fn add(&mut self, number: usize) -> Result<(), LinkError> {
    let (module, types, maps) = self.module(number)?;
    let constants = std::mem::take(&mut self.constants);
    let mut mapper = IndexMapper {
      types,
      maps,
      constants: &constants,
      may_read_globals: true,
    };
    let is_kernel = number == self.modules.kernel;
    let inserted = Inserted {
      interrupt: self.interrupt.filter(|_| !is_kernel),
      sizes: self.sizes.filter(|_| !is_kernel),
    };
    self
      .add_with(module, &mut mapper, inserted)
      .map_err(failed(module))?;
    self.constants = constants;
    Ok(())
  }

  fn add_with(
    &mut self,
    module: &Module<'a>,
    mapper: &mut IndexMapper<'_>,
    inserted: Inserted,
  ) -> Result<(), Error<Fault>> {
    for ty in &module.functions {
      self.functions.function(mapper.type_index(*ty)?);
    }
    mapper.may_read_globals = false;
    for table in &module.tables {
      let ty = mapper.table_type(table.ty)?;
      match &table.init {
        TableInit::RefNull => self.tables.table(ty),
        TableInit::Expr(init) => {
          let init = mapper.const_expr(init.clone())?;
          self.tables.table_with_init(ty, &init)
        }
      };
    }
    mapper.may_read_globals = true;
    for memory in &module.memories {
      self.memories.memory(mapper.memory_type(*memory)?);
    }
    for tag in &module.tags {
      self.tags.tag(mapper.tag_type(*tag)?);
    }
    for element in &module.elements {
      mapper.parse_element(&mut self.elements, element.clone())?;
    }
    for body in &module.bodies {
      self.add_body(body, mapper, inserted)?;
    }
    if let Some(data) = &module.data {
      mapper.parse_data_section(&mut self.data, data.clone())?;
    }
    Ok(())
  }

  fn add_body(
    &mut self,
    body: &Body<'a>,
    mapper: &mut IndexMapper<'_>,
    inserted: Inserted,
  ) -> Result<(), Error<Fault>> {
    let mut function = mapper.new_function_with_parsed_locals(&body.body)?;
    let Inserted { interrupt, sizes } = inserted;
    if let Some(memory) = interrupt
      && body.calls
    {
      check(&mut function, memory);
    }
    let mut operators = body.body.get_operators_reader()?;
    while !operators.eof() {
      let operator = operators.read()?;
      let is_loop = matches!(operator, Operator::Loop { .. });
      if let Operator::RefFunc { function_index } = operator {
        self
          .referenced
          .insert(mapper.function_index(function_index)?);
      }
      function.instruction(&match (sizes, operator) {
        (Some(sizes), Operator::MemorySize { mem }) => sizes.size(mapper.memory_index(mem)?),
        (Some(sizes), Operator::MemoryGrow { mem }) => sizes.grow(mapper.memory_index(mem)?),
        (_, operator) => mapper.instruction(operator)?,
      });
      if let Some(memory) = interrupt
        && is_loop
      {
        check(&mut function, memory);
      }
    }
    self.code.function(&function);
    Ok(())
  }
}

/// What is inserted into the bodies of a module.
#[derive(Clone, Copy)]
struct Inserted {
  /// The memory that interrupt checks load from.
  interrupt: Option<u32>,
  sizes: Option<Sizes>,
}

/// Inserts an interrupt check. The load is atomic because the compiler would remove a plain load if an
/// earlier one from the same address is certain to have happened.
fn check(function: &mut Function, memory: u32) {
  function.instruction(&Instruction::I32Const(0));
  function.instruction(&Instruction::I32AtomicLoad8U(MemArg {
    offset: 0,
    align: 0,
    memory_index: memory,
  }));
  function.instruction(&Instruction::Drop);
}

/// The encoding of an initializer that is a single constant; empty for others.
fn constant(
  mapper: &mut IndexMapper<'_>,
  expression: &wasmparser::ConstExpr<'_>,
) -> Result<Vec<u8>, Error<Fault>> {
  let mut operators = expression.get_operators_reader();
  let mut bytes = Vec::new();
  let operator = operators.read()?;
  if operators.is_end_then_eof() {
    match operator {
      Operator::I32Const { .. }
      | Operator::I64Const { .. }
      | Operator::F32Const { .. }
      | Operator::F64Const { .. }
      | Operator::V128Const { .. }
      | Operator::RefNull { .. }
      | Operator::RefFunc { .. } => utils::instruction(mapper, operator)?.encode(&mut bytes),
      Operator::GlobalGet { global_index } => {
        let number = usize::try_from(mapper.global_index(global_index)?).ok();
        let constant = number.and_then(|number| mapper.constants.get(number));
        bytes.extend(constant.into_iter().flatten());
      }
      _ => {}
    }
  }
  Ok(bytes)
}

/// Adds the module's name to an error.
fn failed(module: &Module<'_>) -> impl Fn(Error<Fault>) -> LinkError {
  move |error| LinkError::InvalidWasm {
    module: module.name.clone(),
    message: match error {
      Error::ParseError(error) => error.to_string(),
      error => error.to_string(),
    },
  }
}

fn exports(
  modules: &Modules<'_, '_>,
  layout: &Layout,
  resolution: &Resolution,
  entries: &Entries,
  checks: bool,
) -> Result<ExportSection, LinkError> {
  let mut exports = ExportSection::new();
  let function = |index: FunctionIndex| layout.index(index.module, Kind::Function, index.index);
  for (index, initializer) in &entries.initializers {
    exports.export(&initializer.export, ExportKind::Func, function(*index)?);
  }
  for (index, callable) in &entries.callables {
    exports.export(&callable.export, ExportKind::Func, function(*index)?);
  }
  if resolution.uses_wasi {
    for (number, memory) in resolution.wasi_memories.iter().enumerate() {
      let Some(Definition {
        module,
        number: defined,
      }) = memory
      else {
        continue;
      };
      let name = match number {
        0 => names::MEMORY.to_owned(),
        number => names::wasi_memory(number),
      };
      let imported = modules
        .modules
        .get(*module)
        .map_or(0, |module| module.space(Kind::Memory).imports.len());
      let index = u32::try_from(imported + defined).map_err(|_| inconsistent())?;
      let index = layout.index(*module, Kind::Memory, index)?;
      exports.export(&name, ExportKind::Memory, index);
    }
  }
  let kernel = modules
    .modules
    .get(modules.kernel)
    .ok_or_else(inconsistent)?;
  for (name, export) in [(KERNEL_BLOCKS, names::BLOCKS), (KERNEL_TABLE, names::TABLE)] {
    let index = kernel
      .exported(name, Kind::Memory)
      .ok_or_else(inconsistent)?;
    let index = layout.index(modules.kernel, Kind::Memory, index)?;
    exports.export(export, ExportKind::Memory, index);
  }
  if checks {
    exports.export(names::INTERRUPT, ExportKind::Memory, layout.memories);
  }
  Ok(exports)
}

/// Exports the memories and mutable globals of user modules, if these are all that calls can change.
fn export_state(
  modules: &Modules<'_, '_>,
  layout: &Layout,
  sizes: Option<Sizes>,
  exports: &mut ExportSection,
) -> Result<Option<StateExports>, LinkError> {
  let changes_references =
    |module: &Module<'_>| module.bodies.iter().any(|body| body.changes_references);
  if modules.modules.iter().any(changes_references) {
    return Ok(None);
  }
  let mut state = StateExports::default();
  for (number, definition) in (0..).zip(&layout.globals) {
    let (_, global) = global(modules, *definition)?;
    match global.ty.content_type {
      _ if !global.ty.mutable => {}
      ValType::Ref(_) => return Ok(None),
      _ => {
        exports.export(&names::state_global(number), ExportKind::Global, number);
        state.globals.push(number);
      }
    }
  }
  for (number, module) in modules.modules.iter().enumerate() {
    if number == modules.kernel {
      continue;
    }
    let imported = module.space(Kind::Memory).imports.len();
    for index in (imported..).take(module.memories.len()) {
      let index = u32::try_from(index).map_err(|_| inconsistent())?;
      let index = layout.index(number, Kind::Memory, index)?;
      exports.export(
        &names::state_memory(state.memories),
        ExportKind::Memory,
        index,
      );
      state.memories += 1;
      if let Some(sizes) = sizes {
        let size = sizes.first_global + index;
        exports.export(&names::state_global(size), ExportKind::Global, size);
        state.globals.push(size);
        state.sizes.push(size);
      }
    }
  }
  Ok(Some(state))
}

/// The names of functions, for backtraces.
fn function_names(
  modules: &Modules<'_, '_>,
  layout: &Layout,
  resolution: &Resolution,
) -> NameSection {
  let count = layout
    .maps
    .iter()
    .flat_map(|maps| maps.functions.iter())
    .max()
    .and_then(|last| usize::try_from(*last).ok())
    .map_or(0, |last| last + 1);
  let mut labels = vec![String::new(); count];
  for (import, label) in resolution.host_imports.iter().zip(&mut labels) {
    label.clone_from(&import.label);
  }
  for (number, module) in modules.modules.iter().enumerate() {
    let imported = module.space(Kind::Function).imports.len();
    let mut set = |index: u32, label: String| {
      // A module's name for an import is not the function's own name.
      let is_defined = usize::try_from(index).is_ok_and(|index| index >= imported);
      let index = layout.index(number, Kind::Function, index).ok();
      let index = index.and_then(|index| usize::try_from(index).ok());
      if let Some(entry) = index.and_then(|index| labels.get_mut(index))
        && is_defined
      {
        *entry = label;
      }
    };
    if number == modules.kernel {
      for export in &module.exports {
        if Kind::of_export(export.kind) == Kind::Function {
          set(
            export.index,
            format!("{}{}", names::KERNEL_FUNCTION, export.name),
          );
        }
      }
    } else {
      // Without a name, a backtrace would show the index in the linked module.
      let prefix = match number == modules.main {
        true => String::new(),
        false => format!("{}!", module.name),
      };
      for index in (0..).skip(imported).take(module.functions.len()) {
        set(index, format!("{prefix}wasm-function[{index}]"));
      }
    }
    for (index, name) in &module.names.functions {
      if number == modules.kernel {
        set(*index, format!("{}{name}", names::KERNEL_FUNCTION));
      } else if !name.starts_with(RESERVED) {
        set(*index, (*name).to_owned());
      }
    }
  }

  let mut section = NameSection::new();
  let main = modules.modules.get(modules.main);
  if let Some(name) = main.and_then(|main| main.names.module) {
    section.module(name);
  }
  let mut functions = NameMap::new();
  for (index, label) in (0..).zip(&labels) {
    if !label.is_empty() {
      functions.append(index, label);
    }
  }
  section.functions(&functions);
  section
}
