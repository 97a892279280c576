//! Starts instances from the state that their initialization leaves.
//!
//! The plugin is linked once more without interrupt checks, instantiated and initialized here; then
//! memories and globals of that instance are written into the linked module (`wasmtime-wizer`), whose
//! initializers are done with. Without the checks, because the interrupt memory must begin with 0 pages:
//! else the compiler knows that the load in a check cannot fault, and removes it.
//!
//! All instances begin with the same state, so the initialization may depend on nothing that differs among
//! them or changes: a host function or a file that it uses makes the snapshot fail, and the plugin starts
//! as without one. Random bytes and the clock are allowed, as nearly every runtime asks for them; what was
//! read is the same in all instances.

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
use super::engine::{self, Kind};
use super::instance::{Ending, Instance, Run, Settings, Template};
use super::interrupt::Interruptions;
use super::link::{Linked, Snapshot};
use crate::host::Guest;
use crate::host::guest::PAGE;
use crate::host::output::Output;

/// How often a guest is interrupted again whose time is over: by epochs, one may be missed.
const REPEAT: Duration = Duration::from_millis(1);

/// Bytes of zeros between two segments that become one.
const MAX_GAP: u64 = 64 << 10;

/// What came of an attempt to take a snapshot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
  /// Whether another attempt would come to the same.
  pub is_final: bool,
  /// What the initialization has read that differs from one instance to the next.
  pub frozen: Vec<&'static str>,
}

/// Writes the state after the initialization into the linked module. If that cannot be done, `linked` stays
/// unchanged but for the reason.
///
/// `unchecked` is the same without interrupt checks.
pub fn apply(
  linked: &mut Linked,
  unchecked: &Linked,
  settings: Settings,
  timeout: Duration,
) -> Applied {
  let mut applied = Applied {
    is_final: true,
    frozen: Vec::new(),
  };
  if linked.initializers.is_empty() {
    linked.snapshot = Snapshot::Taken { grown_pages: 0 };
    return applied;
  }
  // wasmtime-wizer asserts what it expects of a module.
  let taken = catch_unwind(AssertUnwindSafe(|| {
    take(linked, unchecked, settings, timeout)
  }));
  linked.snapshot = match taken {
    Ok(Ok(taken)) => {
      linked.bytes = taken.bytes;
      linked.initializers.clear();
      applied.frozen = taken.frozen;
      Snapshot::Taken {
        grown_pages: taken.grown_pages,
      }
    }
    Ok(Err(failure)) => {
      applied.is_final = failure.is_final;
      Snapshot::Unsupported(failure.reason)
    }
    Err(_) => Snapshot::Unsupported("the module cannot be rewritten".to_owned()),
  };
  applied
}

struct Taken {
  bytes: Vec<u8>,
  grown_pages: u64,
  frozen: Vec<&'static str>,
}

struct Failure {
  reason: String,
  is_final: bool,
}

impl From<wasmtime::Error> for Failure {
  fn from(error: wasmtime::Error) -> Self {
    format!("{error:#}").into()
  }
}

impl From<String> for Failure {
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
  settings: Settings,
  timeout: Duration,
) -> Result<Taken, Failure> {
  let wizer = Wizer::new();
  let (module, _) = wizer.instrument(&linked.bytes)?;
  let (_, instrumented) = wizer.instrument(&unchecked.bytes)?;
  let settings = Settings {
    kind: Kind {
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
  let instrumented = compilation::on_own_threads(compile).map_err(|error| error.message)??;
  let template = Template::isolated(&instrumented, unchecked, settings)
    .and_then(|template| Instance::new(&Arc::new(template)));
  let mut instance = template.map_err(|error| error.message)?;
  initialize(&mut instance, timeout)?;
  let (instance, store) = instance.parts();
  let guest = store.data();
  let (left, has_read) = (guest.limiter.growth_left(), guest.has_read);
  let mut state = State { instance, store };
  let bytes = wizer.snapshot(&module, &mut state).now_or_never();
  let bytes = bytes.ok_or_else(|| "the snapshot waits".to_owned())??;
  let read = [
    (has_read.random, "random numbers"),
    (has_read.clock, "the time"),
  ];
  Ok(Taken {
    bytes: coalesce(&bytes).map_err(|error| error.to_string())?,
    grown_pages: growth_pages.saturating_sub(left / PAGE),
    frozen: read
      .into_iter()
      .filter_map(|(is_read, what)| is_read.then_some(what))
      .collect(),
  })
}

/// Initializes an instance, unless that takes too long.
fn initialize(instance: &mut Instance, timeout: Duration) -> Result<(), Failure> {
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
          format!("the initialization needs more than itself: {error}")
        }
        Ending::Interrupted => format!("the initialization takes longer than {timeout:?}"),
        ending => format!("the initialization fails: {ending:?}"),
      };
      Failure { reason, is_final }
    })
  })
}

/// Joins data segments that are near one another, and drops those that nothing uses: Wasmtime looks at each
/// whenever it makes an instance, and a snapshot has thousands.
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

/// The segments of a snapshot: first passive ones, by the numbers that code may name, then the active ones,
/// sorted, which it cannot name.
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

/// The state of an instance, by the names that wasmtime-wizer gives its memories and globals.
struct State<'a> {
  instance: wasmtime::Instance,
  store: &'a mut Store<Guest>,
}

impl InstanceState for State<'_> {
  async fn global_get(&mut self, name: &str, _: ValType) -> SnapshotVal {
    let global = self.instance.get_global(&mut *self.store, name);
    match global.map(|global| global.get(&mut *self.store)) {
      Some(Val::I32(value)) => SnapshotVal::I32(value),
      Some(Val::I64(value)) => SnapshotVal::I64(value),
      Some(Val::F32(bits)) => SnapshotVal::F32(bits),
      Some(Val::F64(bits)) => SnapshotVal::F64(bits),
      Some(Val::V128(value)) => SnapshotVal::V128(value.as_u128()),
      // wasmtime-wizer refuses mutable globals of other types, and both modules have the same globals.
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
