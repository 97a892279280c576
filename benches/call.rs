//! What a call costs in Rust: on one thread, in a new instance, with 1 MiB, and passed from one thread to
//! another and back; and what the store adds to a host function.
//!
//! `cargo bench --ignore-rust-version --bench call` compares with the previous run. With
//! `-- --profile-time 5` it only makes calls, for a profiler.

use std::hint::spin_loop;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use extism_host::abi::ValueType;
use extism_host::host::output::Output;
use extism_host::host::{self, Answer, Environment, HostFunction, Vars};
use extism_host::kernel;
use extism_host::plugin::engine::{EngineKind, engine};
use extism_host::plugin::instance::{Instance, InstanceSettings, Outcome, Run, Template};
use extism_host::plugin::interrupt::Interruptions;
use extism_host::plugin::link::{self, LinkOptions, link};
use extism_host::plugin::{
  Call, CallOutput, Limits, Manifest, Plugin, Queued, Results, Source, Wasm,
};
use extism_host::store::{MemoryStore, Store, Value};
use wasmtime::Module;

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
    set.expect("the store has no size limit");
  }
  Arc::new(store)
}

/// How many host calls the guest makes in one call.
const HOST_CALLS: u64 = 1_000;

/// Compares `hostMemoryGet` with a host function that takes the same key and returns the same value, but does
/// not look it up. Everything else is the same for both, including the call of the guest.
fn store_lookup(criterion: &mut Criterion) {
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
    .expect("the store has no size limit");
  let manifest = Manifest {
    wasm: vec![Wasm {
      source: Source::Bytes(wasm.expect("the guest is valid")),
      name: None,
      hash: None,
    }],
    ..Manifest::default()
  };
  let mut functions = host_functions(&manifest, Arc::new(store));
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
  let plugin = compile(&manifest, &functions);
  for function in ["copy", "hostMemoryGet"] {
    group.throughput(Throughput::Elements(HOST_CALLS));
    let mut instance = plugin.instance();
    group.bench_function(function, |bencher| {
      bencher.iter(|| plugin.call(&mut instance, function, Vec::new()));
    });
  }
}

fn on_one_thread(criterion: &mut Criterion) {
  let mut group = criterion.benchmark_group("on one thread");
  for guest in guests() {
    let plugin = compile(&guest.manifest, &host_functions(&guest.manifest, store()));
    let mut instance = plugin.instance();
    let output = plugin.call(&mut instance, guest.function, guest.input.to_vec());
    assert_eq!(output, guest.output.as_bytes());
    group.bench_function(guest.function, |bencher| {
      bencher.iter(|| plugin.call(&mut instance, guest.function, guest.input.to_vec()));
    });
    group.bench_function(
      format!("{}, in a new instance", guest.function),
      |bencher| {
        bencher.iter(|| plugin.call(&mut plugin.instance(), guest.function, guest.input.to_vec()));
      },
    );
  }
}

/// What it costs to copy 1 MiB into the guest's memory and out of it.
fn large_input(criterion: &mut Criterion) {
  let wasm = wat::parse_str(
    r#"(module
      (import "extism:host/env" "input_offset" (func $offset (result i64)))
      (import "extism:host/env" "input_length" (func $length (result i64)))
      (import "extism:host/env" "output_set" (func $set (param i64 i64)))
      (func (export "echo") (call $set (call $offset) (call $length))))"#,
  );
  let manifest = Manifest {
    wasm: vec![Wasm {
      source: Source::Bytes(wasm.expect("the guest is valid")),
      name: None,
      hash: None,
    }],
    ..Manifest::default()
  };
  let plugin = compile(&manifest, &host_functions(&manifest, store()));
  let mut instance = plugin.instance();
  let input = vec![b'x'; 1 << 20];
  assert_eq!(plugin.call(&mut instance, "echo", input.clone()), input);
  let mut group = criterion.benchmark_group("1 MiB");
  group.throughput(Throughput::Bytes(1 << 20));
  group.bench_function("in and out", |bencher| {
    let input = || input.clone();
    let echo = |input| plugin.call(&mut instance, "echo", input);
    bencher.iter_batched(input, echo, BatchSize::LargeInput);
  });
}

fn host_functions(manifest: &Manifest, store: Arc<dyn Store>) -> Vec<HostFunction> {
  let settings = host::HostSettings {
    config: &manifest.config,
    http: &manifest.http,
    timeout: manifest.timeout,
  };
  host::functions(settings, &Environment::new(store), &Arc::default())
    .expect("the manifest is valid")
}

/// A compiled plugin, whose instances can be called.
struct CompiledPlugin {
  template: Arc<Template>,
  /// The names of its functions, indexed by number.
  functions: Vec<String>,
}

fn compile(manifest: &Manifest, functions: &[HostFunction]) -> CompiledPlugin {
  let modules = manifest.load().expect("the guest loads");
  let kind = EngineKind {
    interruptions: manifest.interruptions.unwrap_or_default(),
    has_fuel: false,
  };
  let options = LinkOptions {
    wasi: manifest.use_wasi,
    checks: kind.interruptions == Interruptions::Page,
    kernel: kernel::TEXT,
    limits: link::LinkLimits::default(),
    functions,
    untyped: &[],
    vars: &Arc::new(Vars::default()),
  };
  let linked = link(&modules, &options).expect("the guest is linked");
  let engine = engine(kind).expect("the engine starts");
  let module = Module::new(&engine, &linked.bytes).expect("the guest compiles");
  let settings = InstanceSettings {
    kind,
    fuel: None,
    growth_pages: link::LinkLimits::default().memory_pages,
    live_bytes: u64::MAX / 2,
    table_elements: link::LinkLimits::default().table_elements,
    max_output: u64::MAX,
    output: Output::Off,
    arguments: Vec::new(),
    environment: Vec::new(),
    allowed_paths: Vec::new(),
  };
  let template = Template::new(&module, &linked, settings).expect("the guest is linked");
  CompiledPlugin {
    template: Arc::new(template),
    functions: linked
      .callables
      .into_iter()
      .map(|callable| callable.name)
      .collect(),
  }
}

impl CompiledPlugin {
  fn instance(&self) -> Instance {
    let mut instance = Instance::new(&self.template).expect("the guest is instantiated");
    instance.initialize().expect("the guest is initialized");
    instance
  }

  fn call(&self, instance: &mut Instance, function: &str, input: Vec<u8>) -> Vec<u8> {
    let mut functions = self.functions.iter();
    let export = functions
      .position(|name| name == function)
      .expect("it exists");
    match instance.call(0, export as u32, input) {
      Outcome::Returned(Ok(output)) => {
        instance.reset();
        output.bytes
      }
      other => panic!("{other:?}"),
    }
  }
}

/// Checks the output of a call, and signals its completion.
struct CallResult {
  output: &'static str,
  is_done: AtomicBool,
}

impl Results for CallResult {
  fn done(&self, _number: u64, result: extism_host::Result<CallOutput>) {
    let result = result.map(|output| output.bytes);
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
      max_queue_bytes: usize::MAX,
      is_isolated: false,
      max_calls: None,
      max_age: None,
    };
    let call_result = Arc::new(CallResult {
      output: guest.output,
      is_done: AtomicBool::new(false),
    });
    let results = Arc::clone(&call_result) as _;
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
          trace: None,
        });
        if queued == Queued::Asleep {
          plugin.wake();
        }
        while !call_result.is_done.swap(false, Ordering::Acquire) {
          spin_loop();
        }
      });
    });
  }
}

criterion_group!(
  benches,
  on_one_thread,
  store_lookup,
  large_input,
  between_threads
);
criterion_main!(benches);
