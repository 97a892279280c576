//! Starts instances from the state after their initialization.
//!
//! The plugin is linked a second time without interrupt checks, and that version is instantiated and
//! initialized here. Then its memories and globals are written into the linked module (`wasmtime-wizer`),
//! and the initializers are removed. The checks must go because the interrupt memory has to start with 0
//! pages: otherwise the compiler knows that the load in a check cannot fault, and removes it.
//!
//! All instances start with the same state, so the initialization must not depend on anything that differs
//! among them or changes over time. If it uses a host function or a file, the snapshot fails, and the
//! plugin starts normally. Random bytes and the clock are allowed, because nearly every language runtime
//! reads them; all instances then start with the same values.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use wasm_encoder::{ConstExpr, DataCountSection, DataSection, RawSection};
use wasmparser::{DataKind, DataSectionReader, FunctionBody, Operator, Parser, Payload, ValType};
use wasmtime::{Module, Store, Val};
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};

use super::compilation;
use super::engine::{self, EngineKind};
use super::instance::{Ending, Instance, InstanceSettings, Run, Template};
use super::interrupt::Interruptions;
use super::link::{Linked, LinkedSnapshot};
use crate::host::Guest;
use crate::host::guest::PAGE;
use crate::host::output::Output;

/// How often a timed-out guest is interrupted again: with epochs, an interruption may be missed.
const REPEAT: Duration = Duration::from_millis(1);

/// Segments with at most this many bytes between them are merged, with zeros in the gap.
const MAX_GAP: u64 = 64 << 10;

/// The result of an attempt to take a snapshot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SnapshotAttempt {
  /// Whether another attempt would have the same result.
  pub is_final: bool,
  /// What the initialization has read that would differ between instances.
  pub frozen: Vec<&'static str>,
}

/// Writes the state after the initialization into the linked module. If that fails, only the `snapshot`
/// field of `linked` changes, to the reason.
///
/// `unchecked` is the same module without interrupt checks.
pub fn apply(
  linked: &mut Linked,
  unchecked: &Linked,
  settings: InstanceSettings,
  timeout: Duration,
) -> SnapshotAttempt {
  let mut attempt = SnapshotAttempt {
    is_final: true,
    frozen: Vec::new(),
  };
  if linked.initializers.is_empty() {
    linked.snapshot = LinkedSnapshot::Taken { grown_pages: 0 };
    return attempt;
  }
  // wasmtime-wizer panics if a module does not meet its assumptions.
  let taken = catch_unwind(AssertUnwindSafe(|| {
    take(linked, unchecked, settings, timeout)
  }));
  linked.snapshot = match taken {
    Ok(Ok(taken)) => {
      linked.bytes = taken.bytes;
      linked.initializers.clear();
      attempt.frozen = taken.frozen;
      LinkedSnapshot::Taken {
        grown_pages: taken.grown_pages,
      }
    }
    Ok(Err(failure)) => {
      attempt.is_final = failure.is_final;
      LinkedSnapshot::Unsupported(failure.reason)
    }
    Err(_) => LinkedSnapshot::Unsupported("the module cannot be rewritten".to_owned()),
  };
  attempt
}

struct TakenSnapshot {
  bytes: Vec<u8>,
  grown_pages: u64,
  frozen: Vec<&'static str>,
}

struct SnapshotFailure {
  reason: String,
  is_final: bool,
}

impl From<wasmtime::Error> for SnapshotFailure {
  fn from(error: wasmtime::Error) -> Self {
    format!("{error:#}").into()
  }
}

impl From<String> for SnapshotFailure {
  fn from(reason: String) -> Self {
    Self {
      reason,
      is_final: true,
    }
  }
}

fn take(
  linked: &Linked,
  unchecked: &Linked,
  settings: InstanceSettings,
  timeout: Duration,
) -> Result<TakenSnapshot, SnapshotFailure> {
  let wizer = Wizer::new();
  let (module, _) = wizer.instrument(&linked.bytes)?;
  let (_, instrumented) = wizer.instrument(&unchecked.bytes)?;
  let settings = InstanceSettings {
    kind: EngineKind {
      interruptions: Interruptions::Epoch,
      has_fuel: false,
    },
    fuel: None,
    output: Output::Off,
    ..settings
  };
  let growth_pages = settings.growth_pages;
  let engine = engine::on_demand(settings.kind)?;
  let compile = || Module::new(&engine, instrumented);
  let instrumented = compilation::on_own_pool(compile).map_err(|error| error.message)??;
  let template = Template::isolated(&instrumented, unchecked, settings)
    .and_then(|template| Instance::new(&Arc::new(template)));
  let mut instance = template.map_err(|error| error.message)?;
  initialize(&mut instance, timeout)?;
  let (instance, store) = instance.parts();
  let guest = store.data();
  let (left, has_read) = (guest.limiter.growth_left(), guest.has_read);
  let mut state = WizerState { instance, store };
  let bytes = wizer.snapshot(&module, &mut state).now_or_never();
  let bytes = bytes.ok_or_else(|| "writing the snapshot did not complete".to_owned())??;
  let read = [
    (has_read.random, "random numbers"),
    (has_read.clock, "the time"),
  ];
  Ok(TakenSnapshot {
    bytes: coalesce(&bytes).map_err(|error| error.to_string())?,
    grown_pages: growth_pages.saturating_sub(left / PAGE),
    frozen: read
      .into_iter()
      .filter_map(|(is_read, what)| is_read.then_some(what))
      .collect(),
  })
}

/// Initializes an instance within `timeout`.
fn initialize(instance: &mut Instance, timeout: Duration) -> Result<(), SnapshotFailure> {
  let interrupt = instance.interrupt().clone();
  let (ended, has_ended) = channel::<()>();
  thread::scope(|scope| {
    scope.spawn(move || {
      let mut wait = timeout;
      while has_ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
        interrupt.interrupt();
        wait = REPEAT;
      }
    });
    let initialized = instance.initialize();
    drop(ended);
    initialized.map_err(|ending| {
      let is_final = ending != Ending::Interrupted;
      let reason = match ending {
        Ending::HostFunction(error) => {
          format!("the initialization reaches outside the instance: {error}")
        }
        Ending::Interrupted => format!("the initialization takes longer than {timeout:?}"),
        ending => format!("the initialization fails: {ending:?}"),
      };
      SnapshotFailure { reason, is_final }
    })
  })
}

/// Merges neighbouring data segments, and drops those that nothing uses. Wasmtime visits every segment when
/// it creates an instance, and a snapshot has thousands.
fn coalesce(wasm: &[u8]) -> wasmparser::Result<Vec<u8>> {
  let mut module = wasm_encoder::Module::new();
  let mut keeps_passive = false;
  let mut segments = DataSection::new();
  for payload in Parser::new(0).parse_all(wasm) {
    match payload? {
      Payload::CodeSectionEntry(body) => keeps_passive |= names_segments(&body)?,
      Payload::DataSection(reader) => segments = joined(reader, keeps_passive)?,
      _ => {}
    }
  }
  for payload in Parser::new(0).parse_all(wasm) {
    let payload = payload?;
    match &payload {
      Payload::DataCountSection { .. } => {
        module.section(&DataCountSection {
          count: segments.len(),
        });
      }
      Payload::DataSection(_) => {
        module.section(&segments);
      }
      payload => {
        if let Some((id, range)) = payload.as_section() {
          let data = wasm.get(range.start as usize..range.end as usize);
          let data = data.unwrap_or_default();
          module.section(&RawSection { id, data });
        }
      }
    }
  }
  Ok(module.finish())
}

fn names_segments(body: &FunctionBody<'_>) -> wasmparser::Result<bool> {
  let mut operators = body.get_operators_reader()?;
  while !operators.eof() {
    if matches!(
      operators.read()?,
      Operator::MemoryInit { .. } | Operator::ArrayNewData { .. }
    ) {
      return Ok(true);
    }
  }
  Ok(false)
}

/// The data segments of a snapshot: first the passive ones, which code refers to by number, then the active
/// ones, sorted, which code does not refer to.
fn joined(segments: DataSectionReader<'_>, keeps_passive: bool) -> wasmparser::Result<DataSection> {
  let mut section = DataSection::new();
  let mut joined: Vec<ActiveSegment> = Vec::new();
  for segment in segments {
    let segment = segment?;
    let DataKind::Active {
      memory_index: memory,
      offset_expr,
    } = segment.kind
    else {
      if keeps_passive {
        section.passive(segment.data.iter().copied());
      }
      continue;
    };
    let (start, is_64) = match offset_expr.get_operators_reader().read()? {
      Operator::I64Const { value } => (value as u64, true),
      Operator::I32Const { value } => (u64::from(value as u32), false),
      _ => (0, false),
    };
    if let Some(last) = joined.last_mut()
      && last.memory == memory
      && let Some(gap) = start.checked_sub(last.start + last.bytes.len() as u64)
      && gap <= MAX_GAP
    {
      last.bytes.resize((start - last.start) as usize, 0);
      last.bytes.extend_from_slice(segment.data);
      continue;
    }
    joined.push(ActiveSegment {
      memory,
      start,
      is_64,
      bytes: segment.data.to_vec(),
    });
  }
  for segment in joined {
    let offset = match segment.is_64 {
      true => ConstExpr::i64_const(segment.start as i64),
      false => ConstExpr::i32_const(segment.start as i32),
    };
    section.active(segment.memory, &offset, segment.bytes);
  }
  Ok(section)
}

struct ActiveSegment {
  memory: u32,
  start: u64,
  is_64: bool,
  bytes: Vec<u8>,
}

/// The state of an instance, under the names that wasmtime-wizer gives its memories and globals.
struct WizerState<'a> {
  instance: wasmtime::Instance,
  store: &'a mut Store<Guest>,
}

impl InstanceState for WizerState<'_> {
  async fn global_get(&mut self, name: &str, _: ValType) -> SnapshotVal {
    let global = self.instance.get_global(&mut *self.store, name);
    match global.map(|global| global.get(&mut *self.store)) {
      Some(Val::I32(value)) => SnapshotVal::I32(value),
      Some(Val::I64(value)) => SnapshotVal::I64(value),
      Some(Val::F32(bits)) => SnapshotVal::F32(bits),
      Some(Val::F64(bits)) => SnapshotVal::F64(bits),
      Some(Val::V128(value)) => SnapshotVal::V128(value.as_u128()),
      // wasmtime-wizer rejects mutable globals of other types, and both modules have the same globals.
      _ => unreachable!("a global that is not in the module"),
    }
  }

  async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
    match self.instance.get_memory(&mut *self.store, name) {
      Some(memory) => contents(memory.data(&*self.store)),
      // The interrupt memory, which the instance does not have.
      None => contents(&[]),
    }
  }
}
