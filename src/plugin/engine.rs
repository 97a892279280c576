//! The engines of the process: two for each kind of configuration, shared by all plugins.
//!
//! The first keeps a *pool*: address space for the memories and tables of [`POOLED_MEMORIES`] and so on,
//! reserved once, so that an instance is made and dropped in microseconds. The second maps the memories of
//! each instance anew. It serves when the pool is full, and where address space is short (`ulimit -v`).
//! Compiled code of a kind runs on both.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use wasmtime::{
  Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
  WasmBacktraceDetails,
};

use super::interrupt::Interruptions;
use super::link::limits;
use crate::{Code, Error, Result, signals};

/// What tells engines apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
  /// How instances are interrupted.
  pub interruptions: Interruptions,
  /// Whether what guests run is counted.
  pub has_fuel: bool,
}

/// Where the memories and tables of instances come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allocation {
  /// From the pool.
  Pooled,
  /// From the operating system, for each instance.
  OnDemand,
}

/// Memories in the pool of each kind. An instance has three besides its own: blocks, their table, and the
/// interrupt page. Each reserves 4 GiB of address space and takes no memory until it is used; together they
/// are 16 of the 128 TiB that a process has on x86-64.
const POOLED_MEMORIES: u32 = 4096;

/// Tables in the pool of each kind. Each reserves 16 MiB of address space.
const POOLED_TABLES: u32 = 4096;

/// Memories that the linker adds.
const ADDED_MEMORIES: u32 = 3;

/// Elements of a table: what all may begin with and what they may grow by.
const MAX_TABLE_ELEMENTS: usize = 2 << 20;

/// What Wasmtime keeps of an instance besides: functions, globals, imports.
const MAX_INSTANCE_BYTES: usize = 64 << 20;

/// What a memory reserves: all that 32 bits can address, so that no load needs a comparison.
const MEMORY_BYTES: u64 = 4 << 30;

/// And the inaccessible pages behind it, for the offsets in loads.
const GUARD_BYTES: u64 = 32 << 20;

/// The engine of that kind that makes instances as quickly as possible: from the pool, if there can be one.
/// Made when it is first asked for.
pub fn engine(kind: Kind) -> Result<Engine> {
  // Before the first engine, and again with each plugin, in case somebody has displaced the handlers.
  signals::ensure_installed();
  match shared(kind, Allocation::Pooled) {
    // A pool is address space and nothing else, so that is what is short.
    Err(_) => on_demand(kind),
    pooled => pooled,
  }
  .map_err(|error| {
    let message = format!("the WebAssembly runtime cannot be started: {error:#}");
    Error::exhausted(&message, error.chain()).unwrap_or_else(|| Error::new(Code::Internal, message))
  })
}

/// The engine of that kind that needs no pool.
pub fn on_demand(kind: Kind) -> wasmtime::Result<Engine> {
  shared(kind, Allocation::OnDemand)
}

fn shared(kind: Kind, allocation: Allocation) -> wasmtime::Result<Engine> {
  static ENGINES: LazyLock<Mutex<HashMap<(Kind, Allocation), Engine>>> =
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

/// A pool that every plugin fits into which the linker accepts.
fn pool() -> PoolingAllocationConfig {
  let mut pool = PoolingAllocationConfig::new();
  pool
    .total_core_instances(POOLED_MEMORIES)
    .total_memories(POOLED_MEMORIES)
    .total_tables(POOLED_TABLES)
    .total_gc_heaps(POOLED_MEMORIES)
    // Guests run on the stacks of our threads.
    .total_stacks(0)
    .max_memories_per_module(limits::MEMORIES.most as u32 + ADDED_MEMORIES)
    .max_tables_per_module(limits::TABLES.most as u32)
    .table_elements(MAX_TABLE_ELEMENTS)
    .max_core_instance_size(MAX_INSTANCE_BYTES)
    .max_memory_size(MEMORY_BYTES as usize)
    // Places that are given back are cleared together, before anybody gets them again: each time, all cores
    // must forget the pages.
    .decommit_batch_size(16);
  // `pagemap_scan` stays off. It would make clearing three times as fast, but it misses pages that are not
  // present at that moment: swapped out, or being moved by the kernel. What an instance had written there
  // would be left for the next.
  pool
}

fn configuration(kind: Kind) -> Config {
  let mut config = Config::new();
  config
    // The same for all memories, garbage-collected heaps included, since they share the pool.
    .memory_reservation(MEMORY_BYTES)
    .memory_guard_size(GUARD_BYTES)
    .gc_heap_reservation(MEMORY_BYTES)
    .gc_heap_guard_size(GUARD_BYTES)
    .cranelift_opt_level(OptLevel::Speed)
    .consume_fuel(kind.has_fuel)
    .epoch_interruption(kind.interruptions == Interruptions::Epoch)
    // What guests may use is checked by the linker, which lets no atomics and shared memories pass. The
    // interrupt checks are atomic loads.
    .wasm_threads(true)
    .wasm_multi_memory(true)
    .wasm_memory64(true)
    .wasm_tail_call(true)
    .wasm_extended_const(true)
    .wasm_function_references(true)
    .wasm_gc(true)
    .wasm_exceptions(true)
    .wasm_relaxed_simd(true)
    // Names of functions are enough, and cost nothing until a trap.
    .wasm_backtrace_details(WasmBacktraceDetails::Disable)
    .generate_address_map(false)
    .native_unwind_info(false);
  config
}
