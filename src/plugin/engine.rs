//! The Wasmtime engines of the process: two for each configuration, shared by all plugins.
//!
//! The first allocates from a *pool*: address space for [`POOLED_MEMORIES`] memories, for tables and so on
//! is reserved once, so that an instance is created and dropped in microseconds. The second maps the
//! memories of each instance separately. It is used when the pool is full, and if address space is short
//! (`ulimit -v`). Code compiled for a configuration runs on both.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use wasmtime::{
  Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
  WasmBacktraceDetails,
};

use super::interrupt::Interruptions;
use super::link::limits;
use crate::{Code, Error, Result, signals};

/// The configuration that distinguishes engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EngineKind {
  /// How instances are interrupted.
  pub interruptions: Interruptions,
  /// Whether the engine counts the fuel that guests use.
  pub has_fuel: bool,
}

/// How the memories and tables of instances are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocation {
  /// From the pool.
  Pooled,
  /// From the operating system, for each instance.
  OnDemand,
}

/// Memories in each pool. An instance has three besides its own: blocks, their table, and the interrupt
/// page. Each reserves 4 GiB of address space and takes no memory until it is used; together they reserve
/// 16 of the 128 TiB that a process has on x86-64.
const POOLED_MEMORIES: u32 = 4096;

/// Tables in each pool. Each reserves 16 MiB of address space.
const POOLED_TABLES: u32 = 4096;

/// How many memories the linker adds.
const ADDED_MEMORIES: u32 = 3;

/// Maximum size of a table: the initial elements of all tables plus their allowed growth.
const MAX_TABLE_ELEMENTS: usize = 2 << 20;

/// Maximum size of an instance's other data in Wasmtime: functions, globals, imports.
const MAX_INSTANCE_BYTES: usize = 64 << 20;

/// The address space that a memory reserves: all that 32 bits can address, so that loads need no bounds
/// check.
const MEMORY_BYTES: u64 = 4 << 30;

/// The inaccessible pages after a memory, for the static offsets in loads.
const GUARD_BYTES: u64 = 32 << 20;

/// The engine that creates instances fastest: with a pool, if that can be reserved. Created on first use.
pub fn engine(kind: EngineKind) -> Result<Engine> {
  // Before the first engine, and again for each plugin, in case something has displaced the handlers.
  signals::ensure_installed();
  match shared(kind, Allocation::Pooled) {
    // A pool only reserves address space, so that must be what is short.
    Err(_) => on_demand(kind),
    pooled => pooled,
  }
  .map_err(|error| {
    let message = format!("the WebAssembly runtime cannot be started: {error:#}");
    Error::exhausted(&message, error.chain()).unwrap_or_else(|| Error::new(Code::Internal, message))
  })
}

/// The engine without a pool.
pub fn on_demand(kind: EngineKind) -> wasmtime::Result<Engine> {
  shared(kind, Allocation::OnDemand)
}

fn shared(kind: EngineKind, allocation: Allocation) -> wasmtime::Result<Engine> {
  static ENGINES: LazyLock<Mutex<HashMap<(EngineKind, Allocation), Engine>>> =
    LazyLock::new(Mutex::default);
  let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
  if let Some(engine) = engines.get(&(kind, allocation)) {
    return Ok(engine.clone());
  }
  let mut configuration = configuration(kind);
  if allocation == Allocation::Pooled {
    configuration.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
  }
  let engine = Engine::new(&configuration)?;
  engines.insert((kind, allocation), engine.clone());
  Ok(engine)
}

/// A pool that fits every plugin that the linker accepts.
fn pool() -> PoolingAllocationConfig {
  let mut pool = PoolingAllocationConfig::new();
  pool
    .total_core_instances(POOLED_MEMORIES)
    .total_memories(POOLED_MEMORIES)
    .total_tables(POOLED_TABLES)
    .total_gc_heaps(POOLED_MEMORIES)
    // Guests run on the stacks of our own threads.
    .total_stacks(0)
    .max_memories_per_module(limits::MEMORIES.max as u32 + ADDED_MEMORIES)
    .max_tables_per_module(limits::TABLES.max as u32)
    .table_elements(MAX_TABLE_ELEMENTS)
    .max_core_instance_size(MAX_INSTANCE_BYTES)
    .max_memory_size(MEMORY_BYTES as usize)
    // Clear freed slots in batches, before they are used again: each time, all cores must flush the pages
    // from their TLBs.
    .decommit_batch_size(16);
  // `pagemap_scan` stays off. It would clear slots three times as fast, but it misses pages that are not
  // present at that moment because they are swapped out or being moved by the kernel. An instance's data
  // there would leak to the next one.
  pool
}

fn configuration(kind: EngineKind) -> Config {
  let mut config = Config::new();
  config
    // The same for all memories, garbage-collected heaps included, because they share the pool.
    .memory_reservation(MEMORY_BYTES)
    .memory_guard_size(GUARD_BYTES)
    .gc_heap_reservation(MEMORY_BYTES)
    .gc_heap_guard_size(GUARD_BYTES)
    .cranelift_opt_level(OptLevel::Speed)
    .consume_fuel(kind.has_fuel)
    .epoch_interruption(kind.interruptions == Interruptions::Epoch)
    // The linker checks which features guests use, and rejects atomics and shared memories. The interrupt
    // checks are atomic loads.
    .wasm_threads(true)
    .wasm_multi_memory(true)
    .wasm_memory64(true)
    .wasm_tail_call(true)
    .wasm_extended_const(true)
    .wasm_function_references(true)
    .wasm_gc(true)
    .wasm_exceptions(true)
    .wasm_relaxed_simd(true)
    // Function names are enough, and cost nothing until a trap.
    .wasm_backtrace_details(WasmBacktraceDetails::Disable)
    .generate_address_map(false)
    .native_unwind_info(false);
  config
}
