//! Lets an initialization run again in an instance whose memories it has already grown.
//!
//! WebAssembly cannot shrink a memory. So the linked module stores the size of each memory in a global, which
//! the host can reset: `memory.size` becomes a read of that global, and `memory.grow` a call of a function
//! that grows the memory only if it does not have the pages yet. While an initialization runs again, a guest
//! that reads beyond the size finds zeros instead of a trap. If the memory still has more pages than its size
//! after the initialization, the host replaces the instance.

use wasm_encoder::{
  BlockType, CodeSection, ConstExpr, Function, FunctionSection, GlobalSection, GlobalType,
  Instruction, ValType,
};

use super::resolve::inconsistent;
use super::{LinkError, Modules};

/// The maximum number of pages of a 32-bit memory.
const MAX_PAGES: i64 = 1 << 16;

/// The globals with the sizes of all user-module memories, and the functions that grow them.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
  /// The type `(i32) -> i32`.
  pub ty: u32,
  /// The function that grows memory 0; those of the other memories follow.
  pub first_function: u32,
  /// The global of memory 0; those of the other memories follow.
  pub first_global: u32,
}

/// Whether the sizes of user modules' memories need to be tracked and can be.
pub(super) fn are_tracked(modules: &Modules<'_, '_>, has_initializers: bool) -> bool {
  let users = || {
    let numbered = modules.modules.iter().enumerate();
    numbered
      .filter(|(number, _)| *number != modules.kernel)
      .map(|(_, module)| module)
  };
  has_initializers
    && users().any(|module| module.bodies.iter().any(|body| body.grows_memory))
    && users()
      .flat_map(|module| &module.memories)
      .all(|memory| !memory.memory64 && !memory.shared && memory.page_size_log2.is_none())
}

impl Sizes {
  /// The replacement for `memory.size`.
  pub fn size(&self, memory: u32) -> Instruction<'static> {
    Instruction::GlobalGet(self.first_global + memory)
  }

  /// The replacement for `memory.grow`.
  pub fn grow(&self, memory: u32) -> Instruction<'static> {
    Instruction::Call(self.first_function + memory)
  }

  /// Adds the global and the function of the next memory, which has `initial` pages at first.
  pub fn add(
    &self,
    memory: u32,
    initial: u64,
    globals: &mut GlobalSection,
    functions: &mut FunctionSection,
    code: &mut CodeSection,
  ) -> Result<(), LinkError> {
    let initial = u32::try_from(initial).map_err(|_| inconsistent())?;
    let ty = GlobalType {
      val_type: ValType::I32,
      mutable: true,
      shared: false,
    };
    globals.global(ty, &ConstExpr::i32_const(initial.cast_signed()));
    functions.function(self.ty);
    code.function(&grow(memory, self.first_global + memory));
    Ok(())
  }
}

/// `memory.grow` relative to the size in a global.
fn grow(memory: u32, size: u32) -> Function {
  const DELTA: u32 = 0;
  const MISSING: u32 = 1;
  let mut function = Function::new([(1, ValType::I64)]);
  let mut body = function.instructions();
  // The number of missing pages.
  body.global_get(size).i64_extend_i32_u();
  body.local_get(DELTA).i64_extend_i32_u().i64_add();
  body.memory_size(memory).i64_extend_i32_u().i64_sub();
  body.local_tee(MISSING).i64_const(0).i64_gt_s();
  body.if_(BlockType::Empty);
  {
    body.local_get(MISSING).i64_const(MAX_PAGES).i64_gt_s();
    body.if_(BlockType::Empty).i32_const(-1).return_().end();
    body.local_get(MISSING).i32_wrap_i64().memory_grow(memory);
    body.i32_const(-1).i32_eq();
    body.if_(BlockType::Empty).i32_const(-1).return_().end();
  }
  body.end();
  // Return the old size.
  body.global_get(size);
  body
    .global_get(size)
    .local_get(DELTA)
    .i32_add()
    .global_set(size);
  body.end();
  function
}
