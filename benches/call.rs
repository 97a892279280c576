//! What a call costs in Rust: on one thread, and handed from one thread to another and back; and what the
//! store adds to a host function.
//!
//! `cargo bench --ignore-rust-version --bench call` compares with the run before. With
//! `-- --profile-time 5` it does nothing but calls, for a profiler.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hint::spin_loop;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use extism_host::host::{self, Answer, Environment, HostFunction, Vars};
use extism_host::plugin::instance::{CompileOptions, Compiled, Ending, Finished, Job, Jobs};
use extism_host::plugin::prepare::{self, Options};
use extism_host::plugin::types::ValueType;
use extism_host::plugin::wasi::Program;
use extism_host::plugin::{Call, Limits, Manifest, Plugin, Queued, Results, Source, Wasm};
use extism_host::store::{MemoryStore, Store, Value};

struct Guest {
  function: &'static str,
  input: &'static [u8],
  output: &'static str,
  manifest: Manifest,
}

fn guests() -> [Guest; 2] {
  let wasm = |bytes| Wasm {
    source: Source::Bytes(bytes),
    name: None,
    hash: None,
  };
  let count_vowels = wat::parse_str(include_str!("../bench/support/count-vowels.wat"));
  [
    Guest {
      function: "count_vowels",
      input: b"Hello, World!",
      output: r#"{"count": 03}"#,
      manifest: Manifest {
        wasm: vec![wasm(count_vowels.expect("the guest is valid"))],
        ..Manifest::default()
      },
    },
    Guest {
      function: "say_hello",
      input: b"Jane Doe",
      output: "👋 Hello Jane Doe\nkey: hello, value: 👋 Hello World 🌍\nkey: message, value: I 💜 Extism 😍",
      manifest: Manifest {
        wasm: vec![wasm(
          include_bytes!("../plugins/say-hello/say-hello.wasm").to_vec(),
        )],
        use_wasi: true,
        ..Manifest::default()
      },
    },
  ]
}

fn store() -> Arc<dyn Store> {
  let store = MemoryStore::new();
  for (key, value) in [
    ("hello", "👋 Hello World 🌍"),
    ("message", "I 💜 Extism 😍"),
  ] {
    let set = store.set_value(key, Value::text(value), None);
    set.expect("it has no bound");
  }
  Arc::new(store)
}

/// As many jobs as are to be measured, one after the other.
struct Measured {
  job: Job,
  output: &'static str,
  left: Cell<u64>,
  start: Cell<Option<Instant>>,
  took: Cell<Duration>,
  is_checked: RefCell<bool>,
}

impl Jobs for Measured {
  fn next(&self) -> Option<Job> {
    let start = self.start.get().unwrap_or_else(Instant::now);
    self.start.set(Some(start));
    self.took.set(start.elapsed());
    self.left.set(self.left.get().checked_sub(1)?);
    Some(self.job.clone())
  }

  fn done(&self, finished: Finished) {
    if !self.is_checked.replace(true) {
      assert_eq!(finished.result.as_deref(), Ok(self.output.as_bytes()));
    }
  }
}

/// The guest calls its host as often as this in one call.
const HOST_CALLS: u64 = 1_000;

/// What `hostMemoryGet` costs a guest beside a function that is handed the same key and answers with the same
/// value, and looks nothing up. Everything else of the call is in both, and so is the call of the guest.
fn looking_up(criterion: &mut Criterion) {
  let mut group = criterion.benchmark_group("host function, 1,000 calls");
  let wasm = wat::parse_str(
    r#"(module
      (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
      (import "extism:host/env" "free" (func $free (param i64)))
      (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
      (import "extism:host/user" "hostMemoryGet" (func $get (param i64) (result i64)))
      (import "extism:host/user" "copy" (func $copy (param i64) (result i64)))
      (func $key (result i64) (local $key i64)
        (local.set $key (call $alloc (i64.const 8)))
        (call $store (local.get $key) (i64.const 0x6567617373656d)) ;; "message" and a zero
        (local.get $key))
      (func (export "hostMemoryGet") (result i32) (local $key i64) (local $left i32)
        (local.set $key (call $key))
        (local.set $left (i32.const 1000))
        (loop $next
          (call $free (call $get (local.get $key)))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br_if $next (local.get $left)))
        (i32.const 0))
      (func (export "copy") (result i32) (local $key i64) (local $left i32)
        (local.set $key (call $key))
        (local.set $left (i32.const 1000))
        (loop $next
          (call $free (call $copy (local.get $key)))
          (local.set $left (i32.sub (local.get $left) (i32.const 1)))
          (br_if $next (local.get $left)))
        (i32.const 0)))"#,
  );
  let value: Arc<[u8]> = "I 💜 Extism 😍".as_bytes().into();
  let store = MemoryStore::new();
  store
    .set("message\0", &value, None)
    .expect("it has no bound");
  let manifest = Manifest {
    wasm: vec![Wasm {
      source: Source::Bytes(wasm.expect("the guest is valid")),
      name: None,
      hash: None,
    }],
    ..Manifest::default()
  };
  let vars = Arc::new(Vars::default());
  let mut functions = host::functions(&manifest, &Environment::new(Arc::new(store)), &vars)
    .expect("the manifest is valid");
  functions.push(HostFunction::new(
    "extism:host/user",
    "copy",
    [ValueType::I64],
    Some(ValueType::I64),
    move |call| {
      assert!(call.text(0).is_some());
      Ok(Answer::Bytes(Arc::clone(&value)))
    },
  ));
  for function in ["copy", "hostMemoryGet"] {
    let compiled = compile(&manifest, &functions, &vars);
    group.throughput(Throughput::Elements(HOST_CALLS));
    group.bench_function(function, |bencher| {
      bencher.iter_custom(|iterations| measure(&compiled, function, b"", "", iterations));
    });
  }
}

fn on_one_thread(criterion: &mut Criterion) {
  let mut group = criterion.benchmark_group("on one thread");
  for guest in guests() {
    let vars = Arc::new(Vars::default());
    let functions = host::functions(&guest.manifest, &Environment::new(store()), &vars)
      .expect("the manifest is valid");
    let compiled = compile(&guest.manifest, &functions, &vars);
    group.bench_function(guest.function, |bencher| {
      bencher.iter_custom(|iterations| {
        measure(
          &compiled,
          guest.function,
          guest.input,
          guest.output,
          iterations,
        )
      });
    });
  }
}

/// A plugin that can be called, and the numbers of its functions.
type CompiledGuest = (Compiled, BTreeMap<String, u32>);

fn compile(manifest: &Manifest, functions: &[HostFunction], vars: &Arc<Vars>) -> CompiledGuest {
  let modules = manifest.load().expect("the guest loads");
  let options = Options {
    wasi: manifest.use_wasi,
    program: &Program::default(),
    limits: prepare::Limits::default(),
    functions,
    untyped: &[],
    vars,
  };
  let prepared = prepare::prepare(&modules, &options).expect("the guest is prepared");
  let options = CompileOptions {
    wasi: manifest.use_wasi,
    ..CompileOptions::default()
  };
  let compiled = Compiled::new(&prepared, &options).expect("the guest compiles");
  (compiled, prepared.callable)
}

/// How long that many calls take.
fn measure(
  (compiled, callable): &CompiledGuest,
  function: &str,
  input: &[u8],
  output: &'static str,
  calls: u64,
) -> Duration {
  let jobs = Rc::new(Measured {
    job: Job {
      number: 0,
      export: callable[function],
      input: input.to_vec(),
    },
    output,
    left: Cell::new(calls),
    start: Cell::default(),
    took: Cell::default(),
    is_checked: RefCell::default(),
  });
  let instance = compiled.instantiate().expect("the guest is instantiated");
  let ending = instance.run(Rc::clone(&jobs) as Rc<dyn Jobs>, u64::MAX);
  assert_eq!(ending, Ending::Stopped);
  jobs.took.get()
}

/// Who waits for the one call.
struct Waiting {
  output: &'static str,
  is_done: AtomicBool,
}

impl Results for Waiting {
  fn done(&self, _number: u64, result: extism_host::Result<Vec<u8>>) {
    assert_eq!(result.as_deref(), Ok(self.output.as_bytes()));
    self.is_done.store(true, Ordering::Release);
  }
}

fn between_threads(criterion: &mut Criterion) {
  let mut group = criterion.benchmark_group("between two threads");
  for guest in guests() {
    let limits = Limits {
      instances: NonZeroUsize::MIN,
      is_eager: true,
      max_queue: NonZeroUsize::MIN,
      is_isolated: false,
    };
    let waiting = Arc::new(Waiting {
      output: guest.output,
      is_done: AtomicBool::new(false),
    });
    let results = Arc::clone(&waiting) as _;
    let plugin =
      Plugin::open(&guest.manifest, limits, &Environment::new(store()), results).expect("it opens");
    let export = plugin.function(guest.function).expect("it exists");
    group.bench_function(guest.function, |bencher| {
      bencher.iter(|| {
        let mut input = Vec::with_capacity(256);
        input.extend_from_slice(guest.input);
        let queued = plugin.queue(Call {
          number: 0,
          export,
          input,
          timeout: None,
          is_alone: true,
        });
        if queued == Queued::Asleep {
          plugin.wake();
        }
        while !waiting.is_done.swap(false, Ordering::Acquire) {
          spin_loop();
        }
      });
    });
  }
}

criterion_group!(benches, on_one_thread, looking_up, between_threads);
criterion_main!(benches);
