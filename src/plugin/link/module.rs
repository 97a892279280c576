//! Reads and validates one module on its own.
//!
//! Function bodies are validated too, with only the proposals that guests may use. So a body can only
//! refer to what its own module declares, and cannot use atomic instructions, although the engine
//! enables them for the interrupt checks.

use std::collections::HashMap;

use wasmparser::{
  BinaryReader, DataSectionReader, Element, ElementItems, Encoding, Export, ExternalKind,
  FuncToValidate, FuncValidatorAllocations, FunctionBody, Global, Import, KnownCustom, MemoryType,
  ModuleArity, Name, NameSectionReader, Operator, OperatorsReader, Parser, Payload, Table, TagType,
  TypeRef, TypeSectionReader, ValidPayload, Validator, ValidatorResources, WasmFeatures,
};

use super::limits::{self, LimitUsage};
use super::{Kind, LinkError};
use crate::abi::RESERVED;

/// The proposals that guests may use. Threads are excluded, because no limit applies to a shared
/// memory.
pub(super) fn features() -> WasmFeatures {
  WasmFeatures::WASM2
    | WasmFeatures::RELAXED_SIMD
    | WasmFeatures::TAIL_CALL
    | WasmFeatures::EXTENDED_CONST
    | WasmFeatures::MULTI_MEMORY
    | WasmFeatures::MEMORY64
    | WasmFeatures::FUNCTION_REFERENCES
    | WasmFeatures::GC
    | WasmFeatures::EXCEPTIONS
}

/// A validated function body.
pub(super) struct Body<'a> {
  pub body: FunctionBody<'a>,
  /// Whether it contains a call of any kind.
  pub calls: bool,
  /// Whether it changes more of an instance than memories and globals: tables, segments, or the
  /// garbage-collected heap.
  pub changes_references: bool,
  /// Whether it contains `memory.grow`.
  pub grows_memory: bool,
}

/// An index space: the imports, followed by the definitions.
#[derive(Default)]
pub(super) struct Space {
  /// The positions of the imports in [`Module::imports`].
  pub imports: Vec<usize>,
  /// The number of definitions.
  pub defined: usize,
}

/// What an index refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IndexTarget {
  /// The import at this position of [`Module::imports`].
  Import(usize),
  /// The definition with this number.
  Defined(usize),
}

impl Space {
  /// What the index refers to.
  pub fn target(&self, index: u32) -> Option<IndexTarget> {
    let index = usize::try_from(index).ok()?;
    match self.imports.get(index) {
      Some(position) => Some(IndexTarget::Import(*position)),
      None => {
        let number = index - self.imports.len();
        (number < self.defined).then_some(IndexTarget::Defined(number))
      }
    }
  }
}

/// The names of a module and its functions.
#[derive(Default)]
pub(super) struct Names<'a> {
  pub module: Option<&'a str>,
  /// By index, unsorted.
  pub functions: Vec<(u32, &'a str)>,
}

/// A parsed and validated module.
pub(super) struct Module<'a> {
  pub name: String,
  pub types: Option<TypeSectionReader<'a>>,
  pub imports: Vec<Import<'a>>,
  /// The types of the functions that it defines.
  pub functions: Vec<u32>,
  pub tables: Vec<Table<'a>>,
  pub memories: Vec<MemoryType>,
  pub tags: Vec<TagType>,
  pub globals: Vec<Global<'a>>,
  pub exports: Vec<Export<'a>>,
  exports_by_name: HashMap<&'a str, usize>,
  pub start: Option<u32>,
  pub elements: Vec<Element<'a>>,
  pub bodies: Vec<Body<'a>>,
  pub data: Option<DataSectionReader<'a>>,
  pub names: Names<'a>,
  function_space: Space,
  table_space: Space,
  memory_space: Space,
  global_space: Space,
  tag_space: Space,
}

impl<'a> Module<'a> {
  /// Reads and validates a module, and adds its contents to `usage`.
  pub fn parse(name: String, bytes: &'a [u8], usage: &mut LimitUsage) -> Result<Self, LinkError> {
    // The parser rejects these too, but its message quotes the bytes.
    if !bytes.starts_with(b"\0asm") {
      return Err(LinkError::InvalidWasm {
        module: name,
        message: "it does not start with the bytes \\0asm".to_owned(),
      });
    }
    usage.bytes.add(&name, size(bytes.len()))?;

    let mut module = Self {
      name,
      types: None,
      imports: Vec::new(),
      functions: Vec::new(),
      tables: Vec::new(),
      memories: Vec::new(),
      tags: Vec::new(),
      globals: Vec::new(),
      exports: Vec::new(),
      exports_by_name: HashMap::new(),
      start: None,
      elements: Vec::new(),
      bodies: Vec::new(),
      data: None,
      names: Names::default(),
      function_space: Space::default(),
      table_space: Space::default(),
      memory_space: Space::default(),
      global_space: Space::default(),
      tag_space: Space::default(),
    };
    module.read(bytes, usage).map_err(|error| match error {
      ReadError::Malformed(message) => LinkError::InvalidWasm {
        module: module.name.clone(),
        message,
      },
      ReadError::Refused(error) => error,
    })?;
    module.check_reserved_names()?;
    Ok(module)
  }

  fn read(&mut self, bytes: &'a [u8], usage: &mut LimitUsage) -> Result<(), ReadError> {
    let mut validator = Validator::new_with_features(features());
    let mut allocations = FuncValidatorAllocations::default();
    let mut is_complete = false;
    for payload in Parser::new(0).parse_all(bytes) {
      let payload = payload?;
      // Before the validator, so that a rejected module never causes large allocations.
      self.count(&payload, usage)?;
      match validator.payload(&payload)? {
        ValidPayload::End(_) => is_complete = true,
        ValidPayload::Func(function, body) => {
          let (body, next) = self.body(function, body, allocations, usage)?;
          allocations = next;
          self.bodies.push(body);
        }
        _ => {}
      }
      self.keep(payload)?;
    }
    if is_complete {
      Ok(())
    } else {
      Err(ReadError::Malformed("it is truncated".to_owned()))
    }
  }

  /// Counts the contents of a section.
  fn count(&self, payload: &Payload<'a>, usage: &mut LimitUsage) -> Result<(), ReadError> {
    let name = &self.name;
    match payload {
      Payload::Version { encoding, .. } if *encoding != Encoding::Module => {
        return Err(ReadError::Malformed(
          "it is a component, not a core module".to_owned(),
        ));
      }
      Payload::TypeSection(reader) => {
        limits::TYPES.check(name, reader.count().into())?;
        for group in reader.clone() {
          usage.types.add(name, size(group?.types().len()))?;
        }
      }
      Payload::ImportSection(reader) => usage.imports.add(name, reader.count().into())?,
      Payload::FunctionSection(reader) => usage.functions.add(name, reader.count().into())?,
      Payload::TableSection(reader) => usage.tables.add(name, reader.count().into())?,
      Payload::MemorySection(reader) => usage.memories.add(name, reader.count().into())?,
      Payload::TagSection(reader) => usage.tags.add(name, reader.count().into())?,
      Payload::GlobalSection(reader) => usage.globals.add(name, reader.count().into())?,
      Payload::ExportSection(reader) => usage.exports.add(name, reader.count().into())?,
      Payload::ElementSection(reader) => {
        usage.element_segments.add(name, reader.count().into())?;
        for element in reader.clone() {
          let count = match element?.items {
            ElementItems::Functions(items) => items.count(),
            ElementItems::Expressions(_, items) => items.count(),
          };
          usage.elements.add(name, count.into())?;
        }
      }
      Payload::DataSection(reader) => usage.data_segments.add(name, reader.count().into())?,
      Payload::CodeSectionEntry(body) => {
        let length = size(body.as_bytes().len());
        limits::BODY_BYTES.check(name, length)?;
        usage.code_bytes.add(name, length)?;
      }
      _ => {}
    }
    Ok(())
  }

  /// Stores the contents of a valid section.
  fn keep(&mut self, payload: Payload<'a>) -> Result<(), ReadError> {
    match payload {
      Payload::TypeSection(reader) => self.types = Some(reader),
      Payload::ImportSection(reader) => {
        for import in reader.into_imports() {
          let import = import?;
          let position = self.imports.len();
          self
            .space_mut(Kind::of_import(import.ty))
            .imports
            .push(position);
          self.imports.push(import);
        }
      }
      Payload::FunctionSection(reader) => {
        self.functions = reader.into_iter().collect::<Result<_, _>>()?;
        self.function_space.defined = self.functions.len();
      }
      Payload::TableSection(reader) => {
        self.tables = reader.into_iter().collect::<Result<_, _>>()?;
        self.table_space.defined = self.tables.len();
      }
      Payload::MemorySection(reader) => {
        self.memories = reader.into_iter().collect::<Result<_, _>>()?;
        self.memory_space.defined = self.memories.len();
      }
      Payload::TagSection(reader) => {
        self.tags = reader.into_iter().collect::<Result<_, _>>()?;
        self.tag_space.defined = self.tags.len();
      }
      Payload::GlobalSection(reader) => {
        self.globals = reader.into_iter().collect::<Result<_, _>>()?;
        self.global_space.defined = self.globals.len();
      }
      Payload::ExportSection(reader) => {
        self.exports = reader.into_iter().collect::<Result<_, _>>()?;
        let exports = self.exports.iter().enumerate();
        self.exports_by_name = exports
          .map(|(position, export)| (export.name, position))
          .collect();
      }
      Payload::StartSection { func, .. } => self.start = Some(func),
      Payload::ElementSection(reader) => {
        self.elements = reader.into_iter().collect::<Result<_, _>>()?;
      }
      Payload::DataSection(reader) => self.data = Some(reader),
      Payload::CustomSection(section) => {
        if section.data().len() <= limits::NAME_SECTION_BYTES
          && let KnownCustom::Name(reader) = section.as_known()
          && let Some(names) = Names::read(reader)
        {
          self.names = names;
        }
      }
      _ => {}
    }
    Ok(())
  }

  /// Validates a body and estimates its compilation cost.
  fn body(
    &self,
    function: FuncToValidate<ValidatorResources>,
    body: FunctionBody<'a>,
    allocations: FuncValidatorAllocations,
    usage: &mut LimitUsage,
  ) -> Result<(Body<'a>, FuncValidatorAllocations), ReadError> {
    let name = &self.name;
    let mut validator = function.into_validator(allocations);
    let mut reader: BinaryReader<'a> = body.get_binary_reader();
    validator.read_locals(&mut reader)?;
    let locals = u64::from(validator.len_locals());
    limits::LOCALS.check(name, locals)?;

    let mut operators = OperatorsReader::new(reader);
    let mut controls = 0_u64;
    let mut complexity = locals;
    let mut calls = false;
    let mut changes_references = false;
    let mut grows_memory = false;
    let mut loops = LoopCost::default();
    while !operators.eof() {
      let (operator, offset) = operators.read_with_offset()?;
      let stack = u64::from(validator.operand_stack_height());
      loops.add(name, &operator, locals + stack)?;
      changes_references |= does_change_references(&operator);
      grows_memory |= matches!(operator, Operator::MemoryGrow { .. });
      // The number of blocks or branch targets, and whether the operator's values count.
      let (targets, values) = match &operator {
        Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::If { .. }
        | Operator::TryTable { .. } => (1, true),
        Operator::BrTable { targets } => (u64::from(targets.len()) + 1, true),
        Operator::Call { .. }
        | Operator::CallIndirect { .. }
        | Operator::CallRef { .. }
        | Operator::ReturnCall { .. }
        | Operator::ReturnCallIndirect { .. }
        | Operator::ReturnCallRef { .. } => {
          calls = true;
          (0, true)
        }
        Operator::Else
        | Operator::Br { .. }
        | Operator::BrIf { .. }
        | Operator::BrOnNull { .. }
        | Operator::BrOnNonNull { .. }
        | Operator::BrOnCast { .. }
        | Operator::BrOnCastFail { .. }
        | Operator::Return
        | Operator::StructNew { .. }
        | Operator::ArrayNewFixed { .. }
        | Operator::Throw { .. } => (0, true),
        Operator::StructNewDefault { struct_type_index } => {
          let visitor = validator.visitor(offset);
          let fields = visitor.sub_type_at(*struct_type_index);
          complexity =
            complexity.saturating_add(fields.map_or(0, |ty| match &ty.composite_type.inner {
              wasmparser::CompositeInnerType::Struct(ty) => size(ty.fields.len()),
              _ => 0,
            }));
          (0, false)
        }
        _ => (0, false),
      };
      if values {
        let arity = operator.operator_arity(&validator.visitor(offset));
        // An operator without an arity is invalid, and the validator reports it.
        let values = arity.map_or(0, |(takes, gives)| u64::from(takes) + u64::from(gives));
        controls += targets;
        let cost = match targets {
          0 => values,
          _ => targets.saturating_mul(locals + values),
        };
        complexity = complexity.saturating_add(cost);
        limits::CONTROLS.check(name, controls)?;
        limits::FUNCTION_COMPLEXITY.check(name, complexity)?;
      }
      validator.op(offset, &operator)?;
    }
    operators.finish()?;
    limits::FUNCTION_COMPLEXITY.check(name, complexity)?;
    usage.complexity.add(name, complexity)?;
    usage.loop_complexity.add(name, loops.complexity)?;
    let body = Body {
      body,
      calls,
      changes_references,
      grows_memory,
    };
    Ok((body, validator.into_allocations()))
  }

  fn check_reserved_names(&self) -> Result<(), LinkError> {
    let imports = self.imports.iter().map(|import| import.module);
    let exports = self.exports.iter().map(|export| export.name);
    match imports
      .chain(exports)
      .find(|name| name.starts_with(RESERVED))
    {
      Some(name) => Err(LinkError::ReservedName {
        name: name.to_owned(),
      }),
      None => Ok(()),
    }
  }

  /// The index space of `kind`.
  pub fn space(&self, kind: Kind) -> &Space {
    match kind {
      Kind::Function => &self.function_space,
      Kind::Table => &self.table_space,
      Kind::Memory => &self.memory_space,
      Kind::Global => &self.global_space,
      Kind::Tag => &self.tag_space,
    }
  }

  fn space_mut(&mut self, kind: Kind) -> &mut Space {
    match kind {
      Kind::Function => &mut self.function_space,
      Kind::Table => &mut self.table_space,
      Kind::Memory => &mut self.memory_space,
      Kind::Global => &mut self.global_space,
      Kind::Tag => &mut self.tag_space,
    }
  }

  /// The export named `name`.
  pub fn export(&self, name: &str) -> Option<&Export<'a>> {
    self.exports.get(*self.exports_by_name.get(name)?)
  }

  /// The index of the export named `name`, if it is of this kind.
  pub fn exported(&self, name: &str, kind: Kind) -> Option<u32> {
    let export = self.export(name)?;
    (Kind::of_export(export.kind) == kind).then_some(export.index)
  }

  /// The type index of the function with this index, within this module.
  pub fn function_type(&self, index: u32) -> Option<u32> {
    match self.function_space.target(index)? {
      IndexTarget::Import(position) => match self.imports.get(position)?.ty {
        TypeRef::Func(ty) | TypeRef::FuncExact(ty) => Some(ty),
        _ => None,
      },
      IndexTarget::Defined(number) => self.functions.get(number).copied(),
    }
  }
}

impl<'a> Names<'a> {
  /// `None` if the section is malformed.
  fn read(reader: NameSectionReader<'a>) -> Option<Self> {
    let mut names = Self::default();
    for name in reader {
      match name.ok()? {
        Name::Module { name, .. } => names.module = Some(name),
        Name::Function(map) => {
          for naming in map {
            let naming = naming.ok()?;
            names.functions.push((naming.index, naming.name));
          }
        }
        _ => {}
      }
    }
    Some(names)
  }
}

impl Kind {
  /// The kind of an import.
  pub(super) fn of_import(ty: TypeRef) -> Self {
    match ty {
      TypeRef::Func(_) | TypeRef::FuncExact(_) => Self::Function,
      TypeRef::Table(_) => Self::Table,
      TypeRef::Memory(_) => Self::Memory,
      TypeRef::Global(_) => Self::Global,
      TypeRef::Tag(_) => Self::Tag,
    }
  }

  /// The kind of an export.
  pub(super) fn of_export(kind: ExternalKind) -> Self {
    match kind {
      ExternalKind::Func | ExternalKind::FuncExact => Self::Function,
      ExternalKind::Table => Self::Table,
      ExternalKind::Memory => Self::Memory,
      ExternalKind::Global => Self::Global,
      ExternalKind::Tag => Self::Tag,
    }
  }
}

/// The compilation cost of a function's loops.
#[derive(Default)]
struct LoopCost {
  /// Whether each open block is a loop.
  blocks: Vec<bool>,
  /// The number of open loops.
  depth: u64,
  complexity: u64,
}

impl LoopCost {
  /// `live` is the number of locals and of values on the stack.
  fn add(&mut self, module: &str, operator: &Operator<'_>, live: u64) -> Result<(), LinkError> {
    match operator {
      Operator::Block { .. } | Operator::If { .. } | Operator::TryTable { .. } => {
        self.blocks.push(false);
      }
      Operator::Loop { .. } => {
        self.blocks.push(true);
        self.depth += 1;
        self.complexity = self.complexity.saturating_add(live.saturating_mul(live));
        limits::LOOP_DEPTH.check(module, self.depth)?;
        limits::FUNCTION_LOOP_COMPLEXITY.check(module, self.complexity)?;
      }
      Operator::End => {
        let is_loop = self.blocks.pop() == Some(true);
        self.depth = self.depth.saturating_sub(u64::from(is_loop));
      }
      _ => {}
    }
    Ok(())
  }
}

/// Why a module could not be read.
enum ReadError {
  Malformed(String),
  Refused(LinkError),
}

impl From<wasmparser::BinaryReaderError> for ReadError {
  fn from(error: wasmparser::BinaryReaderError) -> Self {
    Self::Malformed(error.to_string())
  }
}

impl From<LinkError> for ReadError {
  fn from(error: LinkError) -> Self {
    Self::Refused(error)
  }
}

fn size(length: usize) -> u64 {
  u64::try_from(length).unwrap_or(u64::MAX)
}

fn does_change_references(operator: &Operator<'_>) -> bool {
  matches!(
    operator,
    Operator::TableCopy { .. }
      | Operator::TableFill { .. }
      | Operator::TableGrow { .. }
      | Operator::TableInit { .. }
      | Operator::TableSet { .. }
      | Operator::DataDrop { .. }
      | Operator::ElemDrop { .. }
      | Operator::StructNew { .. }
      | Operator::StructNewDefault { .. }
      | Operator::ArrayNew { .. }
      | Operator::ArrayNewData { .. }
      | Operator::ArrayNewDefault { .. }
      | Operator::ArrayNewElem { .. }
      | Operator::ArrayNewFixed { .. }
      | Operator::Throw { .. }
  )
}
