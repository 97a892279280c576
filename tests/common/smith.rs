//! Random modules by wasm-smith, and the driver: a main module that uses everything that they export.

use arbitrary::Unstructured;
use wasm_encoder::reencode::{Error, Reencode};
use wasm_encoder::{
  AbstractHeapType, BlockType, CodeSection, EntityType, ExportKind, ExportSection, Function,
  FunctionSection, GlobalType, HeapType, ImportSection, InstructionSink, MemArg, MemoryType,
  Module, RefType, TableType, TypeSection, ValType,
};
use wasm_smith::Config;
use wasmparser::{ExternalKind, Parser, Payload, SubType, TypeRef};

use super::fuzz::Random;

/// The driver calls a function of this name, without parameters and results, before anything else.
const BEGIN: &str = "begin";

/// The driver exports a function of this name again, and does not call it.
const REPORT: &str = "report";

/// The number of the driver's functions.
const FUNCTIONS: u64 = 20;

/// A module whose functions all end: the number of loop iterations and calls in a module is limited.
pub fn generate(random: &mut Random, config: &Config) -> Vec<u8> {
  let fuel = *random.choose(&[500, 5000, 100_000]);
  loop {
    let length = 200 + random.below(4000);
    let bytes = random.bytes(length);
    // Some bytes do not produce a module within the limits.
    let Ok(mut module) = wasm_smith::Module::new(config.clone(), &mut Unstructured::new(&bytes))
    else {
      continue;
    };
    module.ensure_termination(fuel).expect("bodies are known");
    return module.to_bytes();
  }
}

/// The definitions of a module that others can import.
#[derive(Default)]
struct Shape {
  /// The types of functions, by index.
  functions: Vec<u32>,
  tables: Vec<TableType>,
  memories: Vec<MemoryType>,
  globals: Vec<GlobalType>,
}

/// The exports of some modules, as imports.
#[derive(Default)]
pub struct Interface {
  types: TypeSection,
  /// The types again, with indices of the module that they come from: the offset of these indices, and the
  /// type.
  subtypes: Vec<(u32, SubType)>,
  imports: Vec<(String, String, EntityType)>,
}

/// Shifts the type indices of a module behind those of others.
struct Shift(u32);

impl Reencode for Shift {
  type Error = std::convert::Infallible;

  fn type_index(&mut self, index: u32) -> Result<u32, Error<Self::Error>> {
    Ok(index + self.0)
  }
}

impl Interface {
  /// Adds the exports of a module.
  pub fn add(&mut self, name: &str, wasm: &[u8]) {
    self
      .try_add(name, wasm)
      .unwrap_or_else(|error| panic!("{error}"));
  }

  fn try_add(&mut self, name: &str, wasm: &[u8]) -> Result<(), Error<std::convert::Infallible>> {
    let mut shift = Shift(u32::try_from(self.subtypes.len()).expect("there are few"));
    let mut shape = Shape::default();
    for payload in Parser::new(0).parse_all(wasm) {
      match payload? {
        Payload::TypeSection(section) => {
          for group in section.clone() {
            let subtypes = group?.into_types().map(|ty| (shift.0, ty));
            self.subtypes.extend(subtypes);
          }
          shift.parse_type_section(&mut self.types, section)?;
        }
        Payload::ImportSection(section) => {
          for import in section.into_imports() {
            match shift.entity_type(import?.ty)? {
              EntityType::Function(ty) => shape.functions.push(ty),
              EntityType::Table(ty) => shape.tables.push(ty),
              EntityType::Memory(ty) => shape.memories.push(ty),
              EntityType::Global(ty) => shape.globals.push(ty),
              other => panic!("{other:?} is not generated"),
            }
          }
        }
        Payload::FunctionSection(section) => {
          for ty in section {
            shape.functions.push(shift.type_index(ty?)?);
          }
        }
        Payload::TableSection(section) => {
          for table in section {
            shape.tables.push(shift.table_type(table?.ty)?);
          }
        }
        Payload::MemorySection(section) => {
          for memory in section {
            shape.memories.push(shift.memory_type(memory?)?);
          }
        }
        Payload::GlobalSection(section) => {
          for global in section {
            shape.globals.push(shift.global_type(global?.ty)?);
          }
        }
        Payload::ExportSection(section) => {
          for export in section {
            let export = export?;
            let index = export.index as usize;
            let ty = match export.kind {
              ExternalKind::Func => EntityType::Function(shape.functions[index]),
              ExternalKind::Table => EntityType::Table(shape.tables[index]),
              ExternalKind::Memory => EntityType::Memory(shape.memories[index]),
              ExternalKind::Global => EntityType::Global(shape.globals[index]),
              other => panic!("{other:?} is not generated"),
            };
            let import = (name.to_owned(), export.name.to_owned(), ty);
            self.imports.push(import);
          }
        }
        _ => {}
      }
    }
    Ok(())
  }

  /// A module that only imports all of it.
  pub fn module(&self) -> Vec<u8> {
    let mut imports = ImportSection::new();
    for (module, name, ty) in &self.imports {
      imports.import(module, name, *ty);
    }
    let mut module = Module::new();
    module.section(&self.types);
    module.section(&imports);
    module.finish()
  }

  /// The parameters and results of a function.
  fn function(&self, ty: u32) -> (Vec<ValType>, Vec<ValType>) {
    let (shift, subtype) = &self.subtypes[ty as usize];
    let function = subtype.unwrap_func();
    let values = |types: &[wasmparser::ValType]| {
      let mut shift = Shift(*shift);
      let types = types.iter().map(|ty| shift.val_type(*ty));
      types.collect::<Result<Vec<_>, _>>().expect("it is known")
    };
    (values(function.params()), values(function.results()))
  }
}

/// The types of a module's imports.
pub fn imports(wasm: &[u8]) -> impl Iterator<Item = TypeRef> {
  let mut types = Vec::new();
  for payload in Parser::new(0).parse_all(wasm) {
    if let Ok(Payload::ImportSection(section)) = payload {
      types.extend(section.into_imports().flatten().map(|import| import.ty));
    }
  }
  types.into_iter()
}

/// The main module.
pub struct Driver {
  pub wasm: Vec<u8>,
  /// Its exports, in the order in which to call them. They take nothing and return an i32.
  pub functions: Vec<String>,
}

impl Driver {
  /// A driver that calls functions with random arguments, up to `most` in each of its own, and then reports
  /// the state. It reports by calling `probe`, a function that takes an i64.
  pub fn new(interface: &Interface, probe: (&str, &str), most: u64, random: &mut Random) -> Self {
    let mut types = interface.types.clone();
    let plain = interface.subtypes.len() as u32;
    types.ty().function([], [ValType::I32]);
    types.ty().function([ValType::I64], []);

    let mut imports = ImportSection::new();
    imports.import(probe.0, probe.1, EntityType::Function(plain + 1));
    let mut begin = None;
    let mut callees = Vec::new();
    let mut exports = ExportSection::new();
    let mut functions_before = 1;
    for (module, name, ty) in &interface.imports {
      imports.import(module, name, *ty);
      if let EntityType::Function(ty) = ty {
        let (params, results) = interface.function(*ty);
        if name == BEGIN && params.is_empty() && results.is_empty() {
          begin = Some(functions_before);
        } else if name == REPORT {
          exports.export(REPORT, ExportKind::Func, functions_before);
        } else if params.iter().all(|ty| can_make(*ty)) {
          callees.push((functions_before, params, results));
        }
        functions_before += 1;
      }
    }

    let mut bodies = Vec::new();
    if !callees.is_empty() {
      for _ in 0..FUNCTIONS {
        let count = 1 + random.below(most);
        let chosen = (0..count).map(|_| random.choose(&callees).clone());
        bodies.push(calls(begin, &chosen.collect::<Vec<_>>(), random));
      }
    }
    bodies.push(state(begin, &interface.imports));

    let mut functions = FunctionSection::new();
    let mut code = CodeSection::new();
    let mut function_names = Vec::new();
    for (index, body) in (functions_before..).zip(&bodies) {
      functions.function(plain);
      let name = format!("call {index}");
      exports.export(&name, ExportKind::Func, index);
      function_names.push(name);
      code.function(body);
    }
    let mut module = Module::new();
    module.section(&types);
    module.section(&imports);
    module.section(&functions);
    module.section(&exports);
    module.section(&code);
    Self {
      wasm: module.finish(),
      functions: function_names,
    }
  }
}

/// Whether the driver can create a value of this type.
fn can_make(ty: ValType) -> bool {
  match ty {
    ValType::Ref(ty) => ty.nullable || ty == I31,
    _ => true,
  }
}

const I31: RefType = RefType {
  nullable: false,
  heap_type: HeapType::Abstract {
    shared: false,
    ty: AbstractHeapType::I31,
  },
};

/// A function of the driver: its index, parameters and results.
type Callee = (u32, Vec<ValType>, Vec<ValType>);

/// Calls functions with random arguments and reports their results.
fn calls(begin: Option<u32>, callees: &[Callee], random: &mut Random) -> Function {
  let results = callees.iter().flat_map(|(_, _, results)| results);
  let mut body = Function::new_with_locals_types(results.copied());
  let mut code = body.instructions();
  if let Some(begin) = begin {
    code.call(begin);
  }
  let mut locals = 0;
  for (index, params, results) in callees {
    for param in params {
      argument(&mut code, *param, random);
    }
    code.call(*index);
    let first = locals;
    locals += results.len() as u32;
    for local in (first..locals).rev() {
      code.local_set(local);
    }
    for (local, ty) in (first..).zip(results) {
      tell(&mut code, *ty, |code| {
        code.local_get(local);
      });
    }
  }
  let result = match random.below(8) {
    0 => random.below(300) as i32,
    _ => 0,
  };
  code.i32_const(result).end();
  body
}

fn argument(code: &mut InstructionSink<'_>, ty: ValType, random: &mut Random) {
  let bits = match random.below(3) {
    0 => random.below(100),
    1 => random.below(100).wrapping_neg(),
    _ => random.next(),
  };
  match ty {
    ValType::I32 => code.i32_const(bits as i32),
    ValType::I64 => code.i64_const(bits as i64),
    ValType::F32 => code.f32_const(f32::from_bits(bits as u32).into()),
    ValType::F64 => code.f64_const(f64::from_bits(bits).into()),
    ValType::V128 => code.v128_const(i128::from(bits as i64) * 0x1_0001),
    ValType::Ref(ty) if ty == I31 => code.i32_const(bits as i32).ref_i31(),
    ValType::Ref(ty) => code.ref_null(ty.heap_type),
  };
}

/// Reports a value; for a reference, whether it is null.
fn tell(code: &mut InstructionSink<'_>, ty: ValType, get: impl Fn(&mut InstructionSink<'_>)) {
  get(code);
  match ty {
    ValType::I32 => code.i64_extend_i32_u(),
    ValType::I64 => code,
    ValType::F32 => code.i32_reinterpret_f32().i64_extend_i32_u(),
    ValType::F64 => code.i64_reinterpret_f64(),
    ValType::V128 => {
      code.i64x2_extract_lane(0).call(0);
      get(code);
      code.i64x2_extract_lane(1)
    }
    ValType::Ref(_) => code.ref_is_null().i64_extend_i32_u(),
  };
  code.call(0);
}

/// Reports all globals, which elements of tables are null, and digests of the memories.
fn state(begin: Option<u32>, imports: &[(String, String, EntityType)]) -> Function {
  const ADDRESS: u32 = 0;
  const DIGEST: u32 = 1;
  let mut body = Function::new([(2, ValType::I64)]);
  let mut code = body.instructions();
  if let Some(begin) = begin {
    code.call(begin);
  }
  let (mut globals, mut tables, mut memories) = (0, 0, 0);
  for (_, _, ty) in imports {
    match ty {
      EntityType::Global(ty) => {
        tell(&mut code, ty.val_type, |code| {
          code.global_get(globals);
        });
        globals += 1;
      }
      EntityType::Table(ty) => {
        code.table_size(tables);
        digest(&mut code, ty.table64, 1, |code| {
          code.table_get(tables).ref_is_null().i64_extend_i32_u();
        });
        tables += 1;
      }
      EntityType::Memory(ty) => {
        code.memory_size(memories);
        if ty.memory64 {
          code.i64_const(16).i64_shl();
        } else {
          code.i32_const(16).i32_shl();
        }
        digest(&mut code, ty.memory64, 8, |code| {
          code.i64_load(MemArg {
            offset: 0,
            align: 0,
            memory_index: memories,
          });
        });
        memories += 1;
      }
      _ => {}
    }
  }
  code.i32_const(0).end();
  return body;

  /// Reports the number on the stack, and a digest of what `load` returns for each multiple of `step` below
  /// it.
  fn digest(
    code: &mut InstructionSink<'_>,
    is_64: bool,
    step: i64,
    load: impl Fn(&mut InstructionSink<'_>),
  ) {
    if !is_64 {
      code.i64_extend_i32_u();
    }
    code.local_tee(ADDRESS).call(0);
    code.i64_const(0).local_set(DIGEST);
    code.block(BlockType::Empty).loop_(BlockType::Empty);
    code.local_get(ADDRESS).i64_eqz().br_if(1);
    code
      .local_get(ADDRESS)
      .i64_const(step)
      .i64_sub()
      .local_tee(ADDRESS);
    if !is_64 {
      code.i32_wrap_i64();
    }
    load(code);
    code
      .local_get(DIGEST)
      .i64_const(0x100_0000_01b3)
      .i64_mul()
      .i64_xor()
      .local_set(DIGEST);
    code.br(0).end().end();
    code.local_get(DIGEST).call(0);
  }
}
