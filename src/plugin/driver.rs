//! Writes the two modules that are made for each plugin: the driver, which Extism calls, and the
//! gate, through which guests reach host functions.
//!
//! Both speak to the host by the functions of [`HOST`]. The host's part is in `instance.rs` and
//! `host/`, and the types here and there must agree; Wasmtime refuses to link where they do not.
//!
//! The host never allocates in the kernel. Where it has bytes for a guest it says how many; the
//! driver or the gate asks the guard for a block, and has the host fill it ([`TAKE`]).

use wasm_encoder::{
  BlockType, CodeSection, ConstExpr, DataCountSection, DataSection, ElementSection, Elements,
  EntityType, ExportKind, ExportSection, Function, FunctionSection, ImportSection, Instruction,
  MemoryType, Module, RefType, TableSection, TableType, TypeSection, ValType,
};

use super::names::{self, GUARD, HOST, RUN};
use super::types::{FunctionType, ValueType};
use super::wasi::{self, StandIn};

/// `() -> (initialize: i32)`: the driver runs, which has called nothing else yet. It says whether the
/// modules are still to be initialized, and does not return where the run is not to go on.
pub const STARTED: &str = "started";
/// `() -> (go on: i32)`: every module has been initialized.
pub const INITIALIZED: &str = "initialized";
/// `() -> (export: i32, length: i64)`: waits for a job. The export's number in the driver's table,
/// or a negative number when there are no more jobs; the length of the input.
pub const NEXT: &str = "next";
/// `(offset: i64, length: i64) -> (step: i32, value: i64, length: i64)`: a step of a conversing host
/// function has been made, and this is its block; the next step. See [`gate`].
pub const RESUME: &str = "resume";
/// `(offset: i64, length: i64)`: fills a block with the bytes that the host has ready.
pub const TAKE: &str = "take";
/// `(code: i32, output offset: i64, output length: i64, error offset: i64, error length: i64,
/// kernel memory: i64) -> (go on: i32)`: a job has ended.
pub const DONE: &str = "done";
/// As [`DONE`], without a result: the guest has exited. It does not return.
pub const EXIT: &str = "exit";
/// `(descriptor: i32, offset: i64, length: i64)`: the guest has written this to standard output or error.
pub const OUTPUT: &str = "output";
/// `()`: the guard has no room for a block within the limit of live bytes. It does not return.
pub const OUT_OF_MEMORY: &str = "out_of_memory";
/// The gate's `proc_exit`. It is not WASI's, because a guest that exits with code 0 has ended well,
/// and its output must be read; and because the code is then known from our own record and not from
/// a message.
pub const PROC_EXIT: &str = "proc_exit";

/// The type of [`PROC_EXIT`].
pub fn proc_exit_type() -> FunctionType {
  FunctionType::new([ValueType::I32], [])
}

/// The steps of a conversing host function, as it returns them: this, a value and a length.
///
/// The value is its result, as bits; or where the length is not negative, what [`TAKE`] has is.
pub const ANSWER: i32 = 0;
/// A block of that length, filled by [`TAKE`].
pub const STORE: i32 = 1;
/// A block of that length.
pub const ALLOCATE: i32 = 2;
/// The length of the block that starts at the value.
pub const LOOK: i32 = 3;
/// As [`STORE`], and the block is the error of the call; for a length of 0 there is none.
pub const SET_ERROR: i32 = 4;

/// What the host is told when a job has ended, after the code: functions of the guard.
const RESULT: [&str; 5] = [
  "output_offset",
  "output_length",
  "error_get",
  "control.error_length",
  "memory_bytes",
];

/// The type of [`DONE`] and of [`EXIT`].
fn result_type(results: &[ValueType]) -> FunctionType {
  let mut params = vec![ValueType::I32];
  params.extend([ValueType::I64; RESULT.len()]);
  FunctionType::new(params, results.iter().copied())
}

/// A function that the driver calls once, before the first job.
#[derive(Clone, Debug)]
pub struct Initializer {
  /// The prepared module.
  pub module: String,
  /// Its export.
  pub export: String,
  /// Its type. Arguments are zeros, results are dropped.
  pub function: FunctionType,
}

/// An export of the main module that jobs may name.
#[derive(Clone, Debug)]
pub struct Callable {
  /// The export, as the prepared module has it.
  pub export: String,
  /// Whether it returns a code. The other type is `() -> ()`, which counts as code 0.
  pub returns_code: bool,
}

/// Writes the driver. `main` is the prepared main module's name; the place of an export in
/// `callables` is the number that the host function `next` returns for it. `live_bytes` is how many
/// bytes the live blocks may have together.
pub fn driver(
  initializers: &[Initializer],
  main: &str,
  callables: &[Callable],
  live_bytes: u64,
) -> Vec<u8> {
  use ValueType::{I32, I64};

  let mut builder = Builder::default();
  let started = builder.import(HOST, STARTED, &FunctionType::new([], [I32]));
  let initialized = builder.import(HOST, INITIALIZED, &FunctionType::new([], [I32]));
  let next = builder.import(HOST, NEXT, &FunctionType::new([], [I32, I64]));
  let take = builder.import(HOST, TAKE, &FunctionType::new([I64, I64], []));
  let done = builder.import(HOST, DONE, &result_type(&[I32]));
  let limit = builder.import(GUARD, "control.limit", &FunctionType::new([I64], []));
  let reset = builder.import(GUARD, "control.reset", &FunctionType::default());
  let input = builder.import(GUARD, "control.input", &FunctionType::new([I64], [I64]));
  let result = builder.import_result();
  let initializers = initializers
    .iter()
    .map(|initializer| {
      let function = builder.import(
        &initializer.module,
        &initializer.export,
        &initializer.function,
      );
      (function, initializer)
    })
    .collect::<Vec<_>>();
  let plain = FunctionType::default();
  let coded = FunctionType::new([], [I32]);
  let exports = callables
    .iter()
    .map(|callable| {
      let function = if callable.returns_code {
        &coded
      } else {
        &plain
      };
      builder.import(main, &callable.export, function)
    })
    .collect::<Vec<_>>();

  let plain_type = builder.type_of(&plain);
  let coded_type = builder.type_of(&coded);

  // The locals of the loop.
  let (export, length, offset, code) = (0, 1, 2, 3);
  let mut body = Function::new([(1, ValType::I32), (2, ValType::I64), (1, ValType::I32)]);
  let mut write = |instruction: Instruction<'_>| {
    body.instruction(&instruction);
  };

  write(Instruction::Call(started));
  write(Instruction::If(BlockType::Empty));
  write(Instruction::I64Const(live_bytes as i64));
  write(Instruction::Call(limit));
  // A guest may call the host from its initialization, and the host may hand out bytes then.
  write(Instruction::Call(reset));
  for (function, initializer) in initializers {
    for param in &initializer.function.params {
      write(zero(*param));
    }
    write(Instruction::Call(function));
    for _ in &initializer.function.results {
      write(Instruction::Drop);
    }
  }
  write(Instruction::Call(initialized));
  write(Instruction::I32Eqz);
  write(Instruction::If(BlockType::Empty));
  write(Instruction::Return);
  write(Instruction::End);
  write(Instruction::End);

  write(Instruction::Loop(BlockType::Empty));
  {
    write(Instruction::Call(reset));
    write(Instruction::Call(next));
    write(Instruction::LocalSet(length));
    write(Instruction::LocalTee(export));
    write(Instruction::I32Const(0));
    write(Instruction::I32LtS);
    write(Instruction::If(BlockType::Empty));
    write(Instruction::Return);
    write(Instruction::End);

    write(Instruction::LocalGet(length));
    write(Instruction::Call(input));
    write(Instruction::LocalTee(offset));
    write(Instruction::I64Const(0));
    write(Instruction::I64Ne);
    write(Instruction::If(BlockType::Empty));
    write(Instruction::LocalGet(offset));
    write(Instruction::LocalGet(length));
    write(Instruction::Call(take));
    write(Instruction::End);

    // What is in the second table returns a code; what is not, is in the first.
    write(Instruction::I32Const(0));
    write(Instruction::LocalSet(code));
    write(Instruction::LocalGet(export));
    write(Instruction::TableGet(1));
    write(Instruction::RefIsNull);
    write(Instruction::If(BlockType::Empty));
    write(Instruction::LocalGet(export));
    write(Instruction::CallIndirect {
      type_index: plain_type,
      table_index: 0,
    });
    write(Instruction::Else);
    write(Instruction::LocalGet(export));
    write(Instruction::CallIndirect {
      type_index: coded_type,
      table_index: 1,
    });
    write(Instruction::LocalSet(code));
    write(Instruction::End);

    write(Instruction::LocalGet(code));
    for function in result {
      write(Instruction::Call(function));
    }
    write(Instruction::Call(done));
    write(Instruction::BrIf(0));
  }
  write(Instruction::End);
  write(Instruction::End);

  let run = builder.define(&plain, body);
  builder.exports.export(RUN, ExportKind::Func, run);

  // Two tables of the same length: what is without a code is in the first, the rest in the
  // second.
  for _ in 0..2 {
    builder.tables.table(TableType {
      element_type: RefType::FUNCREF,
      table64: false,
      minimum: exports.len() as u64,
      maximum: Some(exports.len() as u64),
      shared: false,
    });
  }
  for (place, (function, callable)) in exports.iter().zip(callables).enumerate() {
    builder.elements.active(
      Some(u32::from(callable.returns_code)),
      &ConstExpr::i32_const(place as i32),
      Elements::Functions(vec![*function].into()),
    );
  }
  builder.finish()
}

/// A host function as the gate needs it.
pub struct Gated {
  /// Its number.
  pub number: usize,
  /// Its type, as guests see it.
  pub function: FunctionType,
  /// Whether it answers in steps.
  pub is_conversing: bool,
}

/// Writes the gate: for each host function one of the same type, which adds to every argument that
/// may be an offset the length of the live block that starts there (0 where none does), and turns
/// bytes that the host answers with into a block of the guest. And [`PROC_EXIT`].
///
/// A host function that is [`answers_bytes`] has a second result in the host: how many bytes it
/// has for [`TAKE`], or a negative number when its first result is a plain number.
///
/// A conversing host function has other results: its first step. The gate makes the step, tells the
/// host by [`RESUME`], which returns the next, and so on up to [`ANSWER`].
///
/// It also has what stands between guests and WASI, see `wasi.rs`.
pub fn gate(functions: &[Gated], stand_ins: &[StandIn]) -> Vec<u8> {
  use ValueType::I64;

  let mut builder = Builder::default();
  let length = builder.import(GUARD, "length", &FunctionType::new([I64], [I64]));
  let alloc = builder.import(GUARD, "control.alloc", &FunctionType::new([I64], [I64]));
  let take = builder.import(HOST, TAKE, &FunctionType::new([I64, I64], []));
  let exit = builder.import(HOST, EXIT, &result_type(&[]));
  let error_set = builder.import(GUARD, "error_set", &FunctionType::new([I64], []));
  let resume = builder.import(HOST, RESUME, &FunctionType::new([I64, I64], STEP));
  let result = builder.import_result();
  let inner = functions
    .iter()
    .map(|gated| {
      let function = host_type(&gated.function, gated.is_conversing);
      builder.import(HOST, &names::function(gated.number), &function)
    })
    .collect::<Vec<_>>();

  for (gated, inner) in functions.iter().zip(inner) {
    let function = &gated.function;
    // Locals: the parameters, then the number of bytes, the offset and the step.
    let bytes = function.params.len() as u32;
    let (offset, step) = (bytes + 1, bytes + 2);
    let mut body = Function::new([(2, ValType::I64), (1, ValType::I32)]);
    let mut write = |instruction: Instruction<'_>| {
      body.instruction(&instruction);
    };
    for (param, value) in function.params.iter().enumerate() {
      write(Instruction::LocalGet(param as u32));
      if *value == I64 {
        write(Instruction::LocalGet(param as u32));
        write(Instruction::Call(length));
      }
    }
    write(Instruction::Call(inner));
    if gated.is_conversing {
      for local in [bytes, offset, step] {
        write(Instruction::LocalSet(local));
      }
      let is_step = |number| {
        [
          Instruction::LocalGet(step),
          Instruction::I32Const(number),
          Instruction::I32Eq,
        ]
      };
      write(Instruction::Loop(BlockType::Empty));
      write(Instruction::LocalGet(step));
      write(Instruction::If(BlockType::Empty));
      is_step(LOOK).into_iter().for_each(&mut write);
      write(Instruction::If(BlockType::Empty));
      write(Instruction::LocalGet(offset));
      write(Instruction::Call(length));
      write(Instruction::LocalSet(bytes));
      write(Instruction::Else);
      write(Instruction::LocalGet(bytes));
      write(Instruction::Call(alloc));
      write(Instruction::LocalTee(offset));
      write(Instruction::I64Const(0));
      write(Instruction::I64Ne);
      for instruction in is_step(ALLOCATE) {
        write(instruction);
      }
      write(Instruction::I32Eqz);
      write(Instruction::I32And);
      write(Instruction::If(BlockType::Empty));
      write(Instruction::LocalGet(offset));
      write(Instruction::LocalGet(bytes));
      write(Instruction::Call(take));
      write(Instruction::End);
      is_step(SET_ERROR).into_iter().for_each(&mut write);
      write(Instruction::If(BlockType::Empty));
      write(Instruction::LocalGet(offset));
      write(Instruction::Call(error_set));
      write(Instruction::End);
      write(Instruction::End);
      write(Instruction::LocalGet(offset));
      write(Instruction::LocalGet(bytes));
      write(Instruction::Call(resume));
      for local in [bytes, offset, step] {
        write(Instruction::LocalSet(local));
      }
      // To the loop, past both conditions.
      write(Instruction::Br(1));
      write(Instruction::End);
      write(Instruction::End);
      if let [result] = function.results.as_slice()
        && *result != I64
      {
        write(Instruction::LocalGet(offset));
        match result {
          ValueType::F64 => write(Instruction::F64ReinterpretI64),
          ValueType::F32 => {
            write(Instruction::I32WrapI64);
            write(Instruction::F32ReinterpretI32);
          }
          ValueType::I32 | I64 => write(Instruction::I32WrapI64),
        }
      }
    } else if answers_bytes(function) {
      write(Instruction::LocalSet(bytes));
      write(Instruction::LocalSet(offset));
    }
    if answers_bytes(function) {
      write(Instruction::LocalGet(bytes));
      write(Instruction::I64Const(0));
      write(Instruction::I64LtS);
      write(Instruction::If(BlockType::Empty));
      write(Instruction::LocalGet(offset));
      write(Instruction::Return);
      write(Instruction::End);

      write(Instruction::LocalGet(bytes));
      write(Instruction::Call(alloc));
      write(Instruction::LocalTee(offset));
      write(Instruction::I64Const(0));
      write(Instruction::I64Ne);
      write(Instruction::If(BlockType::Empty));
      write(Instruction::LocalGet(offset));
      write(Instruction::LocalGet(bytes));
      write(Instruction::Call(take));
      write(Instruction::End);
      write(Instruction::LocalGet(offset));
    }
    write(Instruction::End);
    let function = builder.define(function, body);
    builder
      .exports
      .export(&names::function(gated.number), ExportKind::Func, function);
  }

  let mut body = Function::new([]);
  body.instruction(&Instruction::LocalGet(0));
  for function in result {
    body.instruction(&Instruction::Call(function));
  }
  body
    .instruction(&Instruction::Call(exit))
    .instruction(&Instruction::Unreachable)
    .instruction(&Instruction::End);
  let function = builder.define(&proc_exit_type(), body);
  builder.export_function(PROC_EXIT, function);
  if !stand_ins.is_empty() {
    wasi::gate(&mut builder, stand_ins);
  }
  builder.finish()
}

/// Whether a host function of this type may answer with bytes: it returns one i64.
pub fn answers_bytes(function: &FunctionType) -> bool {
  function.results == [ValueType::I64]
}

/// The results of a conversing host function.
const STEP: [ValueType; 3] = [ValueType::I32, ValueType::I64, ValueType::I64];

/// The type of a host function as the gate imports it and the host defines it.
pub fn host_type(function: &FunctionType, is_conversing: bool) -> FunctionType {
  let mut host = FunctionType::default();
  for param in &function.params {
    host.params.push(*param);
    if *param == ValueType::I64 {
      host.params.push(ValueType::I64);
    }
  }
  if is_conversing {
    host.results.extend(STEP);
    return host;
  }
  host.results.extend(&function.results);
  if answers_bytes(function) {
    host.results.push(ValueType::I64);
  }
  host
}

fn table_type(minimum: u32) -> TableType {
  TableType {
    element_type: RefType::FUNCREF,
    table64: false,
    minimum: minimum.into(),
    maximum: None,
    shared: false,
  }
}

fn zero(value: ValueType) -> Instruction<'static> {
  match value {
    ValueType::I32 => Instruction::I32Const(0),
    ValueType::I64 => Instruction::I64Const(0),
    ValueType::F32 => Instruction::F32Const(0.0.into()),
    ValueType::F64 => Instruction::F64Const(0.0.into()),
  }
}

/// A module in the making. Imports come first, so they are all asked for before the first function
/// is defined.
#[derive(Default)]
pub struct Builder {
  types: TypeSection,
  known: Vec<FunctionType>,
  imports: ImportSection,
  functions: FunctionSection,
  tables: TableSection,
  exports: ExportSection,
  elements: ElementSection,
  code: CodeSection,
  data: DataSection,
  /// How many imports are no functions.
  other_imports: u32,
}

impl Builder {
  /// The index of a type.
  pub fn type_of(&mut self, function: &FunctionType) -> u32 {
    if let Some(index) = self.known.iter().position(|known| known == function) {
      return index as u32;
    }
    self.types.ty().function(
      function.params.iter().map(|value| ValType::from(*value)),
      function.results.iter().map(|value| ValType::from(*value)),
    );
    self.known.push(function.clone());
    (self.known.len() - 1) as u32
  }

  /// Returns the index of the function. Functions are imported before anything else is.
  pub fn import(&mut self, module: &str, name: &str, function: &FunctionType) -> u32 {
    let function = self.type_of(function);
    self
      .imports
      .import(module, name, EntityType::Function(function));
    self.imports.len() - 1
  }

  /// Returns the indices of the functions of [`RESULT`].
  fn import_result(&mut self) -> [u32; RESULT.len()] {
    let number = FunctionType::new([], [ValueType::I64]);
    RESULT.map(|name| self.import(GUARD, name, &number))
  }

  /// Imports a memory of any size, which has the index 0.
  pub fn import_memory(&mut self, module: &str, name: &str) {
    self.other_imports += 1;
    let memory = MemoryType {
      minimum: 0,
      maximum: None,
      memory64: false,
      shared: false,
      page_size_log2: None,
    };
    self.imports.import(module, name, memory);
  }

  /// Imports a table of functions of any size, which has the index 0.
  pub fn import_table(&mut self, module: &str, name: &str) {
    self.other_imports += 1;
    self.imports.import(module, name, table_type(0));
  }

  /// Defines a table of so many functions, and returns its index.
  pub fn table(&mut self, length: u32) -> u32 {
    self.tables.table(table_type(length));
    self.tables.len() - 1
  }

  /// Bytes to be copied into a memory; returns their index.
  pub fn passive_data(&mut self, bytes: Vec<u8>) -> u32 {
    self.data.passive(bytes);
    self.data.len() - 1
  }

  /// Puts a function into the table with the index 0, when the module is linked.
  pub fn put_into_table(&mut self, place: u32, function: u32) {
    self.elements.active(
      Some(0),
      &ConstExpr::i32_const(place as i32),
      Elements::Functions(vec![function].into()),
    );
  }

  /// Exports the function with this index.
  pub fn export_function(&mut self, name: &str, function: u32) {
    self.exports.export(name, ExportKind::Func, function);
  }

  /// Exports the table with this index.
  pub fn export_table(&mut self, name: &str, table: u32) {
    self.exports.export(name, ExportKind::Table, table);
  }

  /// Exports the memory.
  pub fn export_memory(&mut self, name: &str) {
    self.exports.export(name, ExportKind::Memory, 0);
  }

  /// Returns the index of the function.
  pub fn define(&mut self, function: &FunctionType, body: Function) -> u32 {
    let function = self.type_of(function);
    self.functions.function(function);
    self.code.function(&body);
    self.imports.len() - self.other_imports + self.functions.len() - 1
  }

  /// Writes the module.
  pub fn finish(self) -> Vec<u8> {
    let mut module = Module::new();
    module
      .section(&self.types)
      .section(&self.imports)
      .section(&self.functions)
      .section(&self.tables)
      .section(&self.exports)
      .section(&self.elements)
      .section(&DataCountSection {
        count: self.data.len(),
      })
      .section(&self.code)
      .section(&self.data);
    module.finish()
  }
}
