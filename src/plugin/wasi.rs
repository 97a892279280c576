//! What stands between a guest and Wasmtime's WASI: the guest's standard output and error, its arguments
//! and its environment. Everything else is WASI's own.
//!
//! Extism has one switch for output, an environment variable of the whole process, and none for
//! arguments and environment. The functions in question write to the memory of the guest that calls them
//! or read it, which a host function cannot. So a module of ours does it, the *fixup*, one for each user
//! module. It imports the guest's memory, so it is linked after the guest; and the guest imports its
//! functions, so they have to be there before. Hence the gate has a stand-in for each, which calls it by a
//! table that the fixup fills when it is linked. No guest runs before that: linking runs none.
//!
//! What the fixup does not answer itself it passes to WASI, which looks for the memory in the module that
//! calls: the fixup exports the guest's.

use std::collections::BTreeMap;

use wasm_encoder::{BlockType, Function, Instruction, MemArg, ValType};

use super::driver::{Builder, OUTPUT};
use super::names::{self, GATE, GUARD, HOST, WASI};
use super::types::{self, FunctionType, ValueType};

/// What a guest sees of the program that it would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
  /// Its arguments, of which the first is its name.
  pub arguments: Vec<String>,
  /// Its environment: names and values.
  pub environment: Vec<(String, String)>,
  /// Whether what it writes to standard output and error goes anywhere.
  pub has_output: bool,
}

impl Program {
  /// Whether the function of WASI with this name is the fixup's.
  pub fn answers(&self, name: &str) -> bool {
    match name {
      // A guest could otherwise move or close its standard streams, and what is taken here for one of them
      // would be something else, or the other way round.
      "fd_write" | "fd_close" | "fd_renumber" => true,
      "args_get" | "args_sizes_get" => !self.arguments.is_empty(),
      "environ_get" | "environ_sizes_get" => !self.environment.is_empty(),
      _ => false,
    }
  }
}

/// A function of WASI that a user module gets from its fixup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StandIn {
  /// The number of the module.
  pub module: usize,
  /// The function.
  pub name: String,
}

// WASI's numbers.
const SUCCESS: i32 = 0;
const BAD_DESCRIPTOR: i32 = 8;
const INVALID: i32 = 28;
const NO_MEMORY: i32 = 48;
const LAST_STREAM: i32 = 2;

/// How many bytes are passed to the host at once.
const PIECE: i32 = 64 << 10;
/// How many pieces a guest may write at once.
const MOST_VECTORS: i32 = 1024;

/// Adds the stand-ins to the gate, with their table. All functions that the gate imports must be imported
/// already.
pub fn gate(builder: &mut Builder, stand_ins: &[StandIn]) {
  let table = builder.table(stand_ins.len() as u32);
  builder.export_table(names::WASI_TABLE, table);
  for (place, StandIn { module, name }) in stand_ins.iter().enumerate() {
    let Some(function) = types::wasi(name) else {
      continue;
    };
    let type_index = builder.type_of(&function);
    let mut body = Function::new([]);
    for param in 0..function.params.len() as u32 {
      body.instruction(&Instruction::LocalGet(param));
    }
    body
      .instruction(&Instruction::I32Const(place as i32))
      .instruction(&Instruction::CallIndirect {
        type_index,
        table_index: table,
      })
      .instruction(&Instruction::End);
    let defined = builder.define(&function, body);
    builder.export_function(&names::wasi(*module, name), defined);
  }
}

/// Writes the fixup of a user module. `prepared_name` is what that is called when it is linked, and
/// `places` are those of its functions in the gate's table.
pub fn fixup(prepared_name: &str, program: &Program, places: &[(usize, &StandIn)]) -> Vec<u8> {
  use ValueType::{I32, I64};

  let mut builder = Builder::default();
  let mut inner = BTreeMap::new();
  for (_, StandIn { name, .. }) in places {
    if let Some(function) = types::wasi(name) {
      inner.insert(name.as_str(), builder.import(WASI, name, &function));
    }
  }
  let write = Write {
    alloc: builder.import(GUARD, "control.alloc", &FunctionType::new([I64], [I64])),
    free: builder.import(GUARD, "free", &FunctionType::new([I64], [])),
    store_u8: builder.import(GUARD, "store_u8", &FunctionType::new([I64, I32], [])),
    store_u64: builder.import(GUARD, "store_u64", &FunctionType::new([I64, I64], [])),
    output: builder.import(HOST, OUTPUT, &FunctionType::new([I32, I64, I64], [])),
    has_output: program.has_output,
  };
  builder.import_memory(prepared_name, "memory");
  builder.import_table(GATE, names::WASI_TABLE);
  builder.export_memory("memory");
  for (place, StandIn { name, .. }) in places {
    let (Some(function), Some(inner)) = (types::wasi(name), inner.get(name.as_str())) else {
      continue;
    };
    let body = match name.as_str() {
      "fd_write" => write.body(*inner),
      "fd_close" | "fd_renumber" => not_of_streams(&function, *inner),
      "args_sizes_get" => sizes(&program.arguments),
      "args_get" => strings(&mut builder, &program.arguments),
      "environ_sizes_get" => sizes(&environment(program)),
      "environ_get" => strings(&mut builder, &environment(program)),
      _ => continue,
    };
    let defined = builder.define(&function, body);
    builder.put_into_table(*place as u32, defined);
  }
  builder.finish()
}

fn environment(program: &Program) -> Vec<String> {
  let entries = program.environment.iter();
  entries
    .map(|(name, value)| format!("{name}={value}"))
    .collect()
}

/// A place in the guest's memory.
const fn at(offset: u64) -> MemArg {
  MemArg {
    offset,
    align: 0,
    memory_index: 0,
  }
}

/// `(count: i32, bytes: i32) -> errno`: how many strings there are, and their bytes with a NUL each.
fn sizes(strings: &[String]) -> Function {
  let bytes = strings.iter().map(|string| string.len() + 1).sum::<usize>();
  let mut body = Function::new([]);
  for (param, number) in [(0, strings.len()), (1, bytes)] {
    body
      .instruction(&Instruction::LocalGet(param))
      .instruction(&Instruction::I32Const(number as i32))
      .instruction(&Instruction::I32Store(at(0)));
  }
  body
    .instruction(&Instruction::I32Const(SUCCESS))
    .instruction(&Instruction::End);
  body
}

/// `(pointers: i32, buffer: i32) -> errno`: the strings, each with a NUL, and where each begins.
fn strings(builder: &mut Builder, strings: &[String]) -> Function {
  let mut body = Function::new([]);
  let mut bytes = Vec::new();
  for (place, string) in strings.iter().enumerate() {
    body
      .instruction(&Instruction::LocalGet(0))
      .instruction(&Instruction::LocalGet(1))
      .instruction(&Instruction::I32Const(bytes.len() as i32))
      .instruction(&Instruction::I32Add)
      .instruction(&Instruction::I32Store(at(4 * place as u64)));
    bytes.extend_from_slice(string.as_bytes());
    bytes.push(0);
  }
  let length = bytes.len() as i32;
  let data_index = builder.passive_data(bytes);
  body
    .instruction(&Instruction::LocalGet(1))
    .instruction(&Instruction::I32Const(0))
    .instruction(&Instruction::I32Const(length))
    .instruction(&Instruction::MemoryInit { mem: 0, data_index })
    .instruction(&Instruction::I32Const(SUCCESS))
    .instruction(&Instruction::End);
  body
}

/// A function of WASI that refuses descriptors of the standard streams.
fn not_of_streams(function: &FunctionType, inner: u32) -> Function {
  let params = 0..function.params.len() as u32;
  let mut body = Function::new([]);
  for param in params.clone() {
    body
      .instruction(&Instruction::LocalGet(param))
      .instruction(&Instruction::I32Const(LAST_STREAM))
      .instruction(&Instruction::I32LeU)
      .instruction(&Instruction::If(BlockType::Empty))
      .instruction(&Instruction::I32Const(BAD_DESCRIPTOR))
      .instruction(&Instruction::Return)
      .instruction(&Instruction::End);
  }
  for param in params {
    body.instruction(&Instruction::LocalGet(param));
  }
  body
    .instruction(&Instruction::Call(inner))
    .instruction(&Instruction::End);
  body
}

/// The functions that `fd_write` calls besides WASI's.
struct Write {
  alloc: u32,
  free: u32,
  store_u8: u32,
  store_u64: u32,
  output: u32,
  has_output: bool,
}

impl Write {
  /// `(descriptor: i32, vectors: i32, count: i32, written: i32) -> errno`.
  ///
  /// The bytes go through blocks that the guard makes and checks, as all that the host reads does. A place
  /// outside of the guest's memory is a trap, which is the guest's own.
  fn body(&self, inner: u32) -> Function {
    let (descriptor, vectors, count, written) = (0, 1, 2, 3);
    let (pointer, length, piece, place) = (4, 5, 6, 7);
    let (block, total) = (8, 9);
    let mut body = Function::new([(4, ValType::I32), (2, ValType::I64)]);
    let mut write = |instructions: &[Instruction<'_>]| {
      for instruction in instructions {
        body.instruction(instruction);
      }
    };
    use Instruction as I;
    let failed = |errno| {
      [
        I::If(BlockType::Empty),
        I::I32Const(errno),
        I::Return,
        I::End,
      ]
    };

    // Anything but standard output and error is WASI's.
    write(&[
      I::LocalGet(descriptor),
      I::I32Const(1),
      I::I32Sub,
      I::I32Const(1),
      I::I32GtU,
      I::If(BlockType::Empty),
      I::LocalGet(descriptor),
      I::LocalGet(vectors),
      I::LocalGet(count),
      I::LocalGet(written),
      I::Call(inner),
      I::Return,
      I::End,
    ]);
    write(&[I::LocalGet(count), I::I32Const(MOST_VECTORS), I::I32GtU]);
    write(&failed(INVALID));

    write(&[I::Loop(BlockType::Empty), I::LocalGet(count)]);
    write(&[I::If(BlockType::Empty)]);
    write(&[
      I::LocalGet(vectors),
      I::I32Load(at(0)),
      I::LocalSet(pointer),
    ]);
    write(&[I::LocalGet(vectors), I::I32Load(at(4)), I::LocalSet(length)]);
    write(&[
      I::LocalGet(total),
      I::LocalGet(length),
      I::I64ExtendI32U,
      I::I64Add,
      I::LocalTee(total),
      I::I64Const(i64::from(i32::MAX)),
      I::I64GtU,
    ]);
    write(&failed(INVALID));
    if self.has_output {
      write(&[I::Loop(BlockType::Empty), I::LocalGet(length)]);
      write(&[I::If(BlockType::Empty)]);
      // The smaller of both.
      write(&[
        I::LocalGet(length),
        I::I32Const(PIECE),
        I::LocalGet(length),
        I::I32Const(PIECE),
        I::I32LtU,
        I::Select,
        I::LocalTee(piece),
        I::I64ExtendI32U,
        I::Call(self.alloc),
        I::LocalTee(block),
        I::I64Eqz,
      ]);
      write(&failed(NO_MEMORY));
      write(&[I::I32Const(0), I::LocalSet(place)]);
      let to = [
        I::LocalGet(block),
        I::LocalGet(place),
        I::I64ExtendI32U,
        I::I64Add,
      ];
      let from = [I::LocalGet(pointer), I::LocalGet(place), I::I32Add];
      for (width, load, store) in [
        (8, I::I64Load(at(0)), self.store_u64),
        (1, I::I32Load8U(at(0)), self.store_u8),
      ] {
        // For as long as there are so many left.
        write(&[
          I::Loop(BlockType::Empty),
          I::LocalGet(piece),
          I::LocalGet(place),
          I::I32Sub,
          I::I32Const(width),
          I::I32GeU,
          I::If(BlockType::Empty),
        ]);
        write(&to);
        write(&from);
        write(&[load, I::Call(store)]);
        write(&[
          I::LocalGet(place),
          I::I32Const(width),
          I::I32Add,
          I::LocalSet(place),
          I::Br(1),
          I::End,
          I::End,
        ]);
      }
      write(&[
        I::LocalGet(descriptor),
        I::LocalGet(block),
        I::LocalGet(piece),
        I::I64ExtendI32U,
        I::Call(self.output),
        I::LocalGet(block),
        I::Call(self.free),
        I::LocalGet(pointer),
        I::LocalGet(piece),
        I::I32Add,
        I::LocalSet(pointer),
        I::LocalGet(length),
        I::LocalGet(piece),
        I::I32Sub,
        I::LocalSet(length),
        I::Br(1),
        I::End,
        I::End,
      ]);
    }
    write(&[
      I::LocalGet(vectors),
      I::I32Const(8),
      I::I32Add,
      I::LocalSet(vectors),
      I::LocalGet(count),
      I::I32Const(1),
      I::I32Sub,
      I::LocalSet(count),
      I::Br(1),
      I::End,
      I::End,
    ]);
    write(&[
      I::LocalGet(written),
      I::LocalGet(total),
      I::I32WrapI64,
      I::I32Store(at(0)),
      I::I32Const(SUCCESS),
      I::End,
    ]);
    body
  }
}
