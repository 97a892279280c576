//! Plugins from Rust: what the Jest tests show from JavaScript, without Node.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use extism_host::host::{Answer, Environment, HostFunction, UntypedFunction};
use extism_host::plugin::{
  Call, CallOutput, Limits, Manifest, Plugin, Queued, Results, Source, Wasm,
};
use extism_host::store::{MemoryStore, Store, Value};
use extism_host::{Code, Result};

const GUEST: &str = include_str!("../__test__/guests/many.wat");

fn wasm(text: &str) -> Wasm {
  Wasm {
    source: Source::Bytes(wat::parse_str(text).expect("the guest is valid")),
    name: None,
    hash: None,
  }
}

fn limits(instances: usize, max_queue: usize) -> Limits {
  Limits {
    instances: NonZeroUsize::new(instances).expect("at least one"),
    is_eager: false,
    max_queue: NonZeroUsize::new(max_queue).expect("at least one"),
    max_queue_bytes: usize::MAX,
    is_isolated: false,
    max_calls: None,
    max_age: None,
  }
}

fn manifest(text: &str) -> Manifest {
  Manifest {
    wasm: vec![wasm(text)],
    ..Manifest::default()
  }
}

/// A plugin, and the receivers of its calls' results.
struct Opened {
  plugin: Plugin,
  waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
  senders: Mutex<HashMap<u64, Sender<Result<Vec<u8>>>>>,
  last_number: AtomicU64,
}

impl Results for Waiting {
  fn done(&self, number: u64, result: Result<CallOutput>) {
    let result = result.map(|output| output.bytes);
    let sender = self.senders.lock().expect("no panic").remove(&number);
    let sender = sender.expect("a call ends once");
    sender.send(result).expect("the test waits");
  }
}

impl Deref for Opened {
  type Target = Plugin;

  fn deref(&self) -> &Plugin {
    &self.plugin
  }
}

fn try_open(manifest: &Manifest, limits: Limits, store: Arc<dyn Store>) -> Result<Opened> {
  try_open_with(manifest, limits, &Environment::new(store))
}

fn try_open_with(manifest: &Manifest, limits: Limits, environment: &Environment) -> Result<Opened> {
  let waiting = Arc::<Waiting>::default();
  let plugin = Plugin::open(manifest, limits, environment, Arc::clone(&waiting) as _)?;
  Ok(Opened { plugin, waiting })
}

fn open(manifest: &Manifest, limits: Limits) -> Opened {
  try_open(manifest, limits, Arc::new(MemoryStore::new())).expect("the plugin opens")
}

/// Opens a plugin whose function `block` calls a host function that ignores interruptions for `time`.
fn open_blocking(time: Duration, timeout: Duration, limits: Limits) -> Opened {
  let guest = r#"(module
    (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
    (import "extism:host/env" "input_length" (func $input_length (result i64)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (import "extism:host/user" "block" (func $block))
    (func (export "block") (call $block))
    (func (export "echo") (call $output_set (call $input_offset) (call $input_length))))"#;
  let block = UntypedFunction {
    namespace: "extism:host/user".to_owned(),
    name: "block".to_owned(),
    typed: Arc::new(move |function, _| {
      HostFunction::new(
        "extism:host/user",
        "block",
        function.params,
        None,
        move |_| {
          std::thread::sleep(time);
          Ok(Answer::Nothing)
        },
      )
    }),
  };
  let environment = Environment {
    functions: vec![block],
    ..Environment::new(Arc::new(MemoryStore::new()))
  };
  let manifest = Manifest {
    timeout: Some(timeout),
    ..manifest(guest)
  };
  try_open_with(&manifest, limits, &environment).expect("the plugin opens")
}

/// Queues a call. Returns its number, and the receiver of its result.
fn queue(plugin: &Opened, function: &str, input: &[u8]) -> (u64, Receiver<Result<Vec<u8>>>) {
  let (sender, receiver) = channel();
  let number = plugin.waiting.last_number.fetch_add(1, Ordering::Relaxed) + 1;
  let mut senders = plugin.waiting.senders.lock().expect("no panic");
  senders.insert(number, sender);
  drop(senders);
  let queued = plugin.queue(Call {
    number,
    export: plugin.function(function).expect("there is such a function"),
    input: input.to_vec(),
    timeout: None,
    is_alone: false,
    trace: None,
  });
  if queued == Queued::Asleep {
    plugin.wake();
  }
  (number, receiver)
}

fn start(plugin: &Opened, function: &str, input: &[u8]) -> Receiver<Result<Vec<u8>>> {
  queue(plugin, function, input).1
}

fn call(plugin: &Opened, function: &str, input: &[u8]) -> Result<Vec<u8>, Code> {
  let result = start(plugin, function, input).recv().expect("done is run");
  result.map_err(|error| error.code)
}

#[test]
fn a_call_returns_its_output_or_fails_with_the_matching_code() {
  let manifest = Manifest {
    timeout: Some(Duration::from_millis(200)),
    ..manifest(GUEST)
  };
  let plugin = open(&manifest, limits(1, 8));
  assert_eq!(call(&plugin, "echo", b"hello"), Ok(b"hello".to_vec()));
  assert_eq!(call(&plugin, "silent", b"hello"), Ok(Vec::new()));
  assert_eq!(call(&plugin, "fail", b"why"), Err(Code::PluginError));
  assert_eq!(call(&plugin, "return_three", b""), Err(Code::PluginError));
  assert_eq!(call(&plugin, "trap", b""), Err(Code::Trap));
  assert_eq!(call(&plugin, "recurse", b""), Err(Code::Trap));
  assert_eq!(call(&plugin, "loop_for_ever", b""), Err(Code::Timeout));
  assert_eq!(call(&plugin, "grow_for_ever", b""), Err(Code::OutOfMemory));
  assert_eq!(plugin.function("nothing"), None);
  assert_eq!(
    call(&plugin, "echo", b"still here"),
    Ok(b"still here".to_vec())
  );
}

#[test]
fn an_instance_keeps_its_state_until_it_is_replaced() {
  let plugin = open(&manifest(GUEST), limits(1, 8));
  assert_eq!(call(&plugin, "count", b""), Ok(vec![1]));
  assert_eq!(call(&plugin, "fail", b"x"), Err(Code::PluginError));
  assert_eq!(call(&plugin, "count", b""), Ok(vec![2]));
  assert_eq!(call(&plugin, "trap", b""), Err(Code::Trap));
  assert_eq!(call(&plugin, "count", b""), Ok(vec![1]));
}

#[test]
fn a_host_function_reads_the_current_value_from_the_store() {
  let store = Arc::new(MemoryStore::new());
  let plugin =
    try_open(&manifest(GUEST), limits(2, 8), Arc::clone(&store) as _).expect("the plugin opens");
  for (name, value) in [("read_store", "first"), ("read_store_by_env", "second")] {
    assert_eq!(store.set_value("key", Value::text(value), None), Ok(()));
    assert_eq!(call(&plugin, name, b"key"), Ok(value.into()));
  }
  assert_eq!(call(&plugin, "read_store", b"missing"), Ok(Vec::new()));
  assert_eq!(call(&plugin, "read_store", b"\xFF"), Ok(Vec::new()));
}

#[test]
fn more_calls_than_the_queue_holds_are_refused_at_once_and_the_others_end() {
  let plugin = open(&manifest(GUEST), limits(1, 4));
  let calls: Vec<_> = (0..5).map(|_| start(&plugin, "compute", &[4])).collect();
  let codes: Vec<_> = calls
    .iter()
    .map(|call| {
      call
        .recv()
        .expect("done is run")
        .map_err(|error| error.code)
    })
    .collect();
  assert!(codes[..4].iter().all(|code| *code == Ok(Vec::new())));
  assert_eq!(codes[4], Err(Code::QueueFull));
  assert_eq!(
    call(&plugin, "echo", b"room again"),
    Ok(b"room again".to_vec())
  );
}

#[test]
fn calls_from_many_threads_each_get_their_own_output() {
  let plugin = open(&manifest(GUEST), limits(2, 1_000));
  let together = Barrier::new(4);
  std::thread::scope(|scope| {
    for thread in 0..4 {
      let (plugin, together) = (&plugin, &together);
      scope.spawn(move || {
        together.wait();
        for index in 0..100 {
          let input = format!("{thread}/{index}").into_bytes();
          assert_eq!(call(plugin, "echo", &input), Ok(input));
        }
      });
    }
  });
}

#[test]
fn closing_finishes_accepted_calls_refuses_new_ones_and_reports_when_all_is_freed() {
  let store: Arc<MemoryStore> = Arc::default();
  let plugin =
    try_open(&manifest(GUEST), limits(2, 8), Arc::clone(&store) as _).expect("the plugin opens");
  let accepted: Vec<_> = (0..4).map(|_| start(&plugin, "compute", &[2])).collect();
  let (closed, is_closed) = channel();
  plugin.close(move || closed.send(()).expect("the test waits"));
  assert_eq!(call(&plugin, "echo", b"late"), Err(Code::Closed));
  for call in accepted {
    assert_eq!(call.recv().expect("done is run"), Ok(Vec::new()));
  }
  is_closed.recv().expect("closing ends");
  // The watchdog may be polling at this moment.
  while Arc::strong_count(&store) > 1 {
    std::thread::yield_now();
  }
  let (closed, is_closed) = channel();
  plugin.close(move || closed.send(()).expect("the test waits"));
  is_closed.recv().expect("closing again ends at once");
}

#[test]
fn plugins_that_cannot_run_are_refused_with_the_reason() {
  let refused = |text: &str, use_wasi: bool| {
    let manifest = Manifest {
      use_wasi,
      ..manifest(text)
    };
    match try_open(&manifest, limits(1, 1), Arc::new(MemoryStore::new())) {
      Ok(_) => panic!("the plugin opened"),
      Err(error) => (error.code, error.message),
    }
  };
  let wasi = "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i32 i32 i32 i32) (result i32))))";
  let (code, message) = refused(wasi, false);
  assert_eq!(code, Code::MissingImport);
  assert!(
    message.contains(r#""wasi_snapshot_preview1" "fd_write""#),
    "{message}"
  );
  let unknown = "(module (import \"env\" \"unknown\" (func)))";
  let (code, message) = refused(unknown, true);
  assert_eq!(code, Code::MissingImport);
  assert!(message.contains(r#""env" "unknown""#), "{message}");
}

#[test]
fn two_modules_of_one_name_are_refused() {
  let named = |name: Option<&str>| Wasm {
    name: name.map(str::to_owned),
    ..wasm("(module)")
  };
  let manifest = Manifest {
    wasm: vec![named(Some("a")), named(Some("a")), named(None)],
    ..Manifest::default()
  };
  let opened = try_open(&manifest, limits(1, 1), Arc::new(MemoryStore::new()));
  let code = opened.err().map(|error| error.code);
  assert_eq!(code, Some(Code::InvalidArgument));
}

#[test]
fn canceling_a_call_ends_it_at_once_and_no_other() {
  let plugin = open(&manifest(GUEST), limits(1, 8));
  let (number, looping) = queue(&plugin, "loop_for_ever", b"");
  let waiting = start(&plugin, "echo", b"next");
  plugin.cancel(number + 100);
  plugin.cancel(number);
  plugin.cancel(number);
  let ended = looping.recv().expect("done is run");
  assert_eq!(ended.map_err(|error| error.code), Err(Code::Canceled));
  assert_eq!(waiting.recv().expect("done is run"), Ok(b"next".to_vec()));
}

#[test]
fn stuck_threads_are_replaced_up_to_a_limit_and_then_calls_are_refused() {
  // Longer than it takes to get that many of them stuck.
  let plugin = open_blocking(
    Duration::from_secs(9),
    Duration::from_millis(50),
    limits(1, 100),
  );
  for abandoned in 0..16 {
    assert_eq!(plugin.abandoned_threads(), abandoned);
    assert_eq!(call(&plugin, "block", b""), Err(Code::Timeout));
    assert_eq!(call(&plugin, "echo", b"replaced"), Ok(b"replaced".to_vec()));
  }
  assert_eq!(call(&plugin, "block", b""), Err(Code::Timeout));
  assert_eq!(call(&plugin, "echo", b""), Err(Code::Unavailable));
  assert_eq!(call(&plugin, "echo", b""), Err(Code::Unavailable));
  while plugin.abandoned_threads() > 0 || call(&plugin, "echo", b"x") == Err(Code::Unavailable) {
    std::thread::sleep(Duration::from_millis(100));
  }
  assert_eq!(
    call(&plugin, "echo", b"awake again"),
    Ok(b"awake again".to_vec())
  );
}

#[test]
fn if_all_started_instances_are_stuck_the_next_call_gets_a_new_one() {
  let plugin = open_blocking(
    Duration::from_secs(60),
    Duration::from_millis(100),
    limits(2, 100),
  );
  // One after the other, so that one instance is enough for them; the last one gets stuck.
  for _ in 0..17 {
    assert_eq!(call(&plugin, "block", b""), Err(Code::Timeout));
  }
  assert_eq!(call(&plugin, "echo", b"x"), Ok(b"x".to_vec()));
  assert_eq!(plugin.abandoned_threads(), 16);
}

#[test]
fn closing_does_not_wait_for_stuck_threads() {
  let plugin = open_blocking(
    Duration::from_secs(60),
    Duration::from_millis(20),
    limits(2, 100),
  );
  // More than can be abandoned, so that one slot is stuck when the plugin is closed.
  let calls: Vec<_> = (0..17).map(|_| start(&plugin, "block", b"")).collect();
  for call in calls {
    let result = call.recv().expect("done is run");
    assert_eq!(result.map_err(|error| error.code), Err(Code::Timeout));
  }
  assert_eq!(call(&plugin, "echo", b"x"), Ok(b"x".to_vec()));
  let (closed, is_closed) = channel();
  plugin.close(move || closed.send(()).expect("the test waits"));
  is_closed
    .recv_timeout(Duration::from_secs(30))
    .expect("closing ends long before the sleep does");
}

/// The initialization ends the first time and never again: the instances of a plugin share variables.
const ENDLESS_FROM_THE_SECOND_ON: &str = r#"
  (module
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
    (import "extism:host/env" "var_get" (func $get (param i64) (result i64)))
    (import "extism:host/env" "var_set" (func $set (param i64 i64)))
    (import "extism:host/user" "hostMemoryGet" (func (param i64) (result i64)))
    (func (export "_initialize") (local $name i64)
      (local.set $name (call $alloc (i64.const 1)))
      (call $store (local.get $name) (i32.const 110))
      (if (i64.ne (call $get (local.get $name)) (i64.const 0))
        (then (loop $again (br $again))))
      (call $set (local.get $name) (local.get $name)))
    (func (export "nothing"))
    (func (export "trap") unreachable))
"#;

/// Waits until no instance of the plugins with this store is left. An instance whose guest imports
/// `hostMemoryGet` keeps the store alive.
fn wait_until_nothing_runs(store: &Arc<MemoryStore>) {
  let started = Instant::now();
  while Arc::strong_count(store) > 1 {
    assert!(
      started.elapsed() < Duration::from_secs(10),
      "an instance runs on"
    );
    std::thread::sleep(Duration::from_micros(100));
  }
}

#[test]
fn a_plugin_that_is_dropped_while_an_instance_starts_leaves_nothing_running() {
  let store: Arc<MemoryStore> = Arc::default();
  let manifest = manifest(ENDLESS_FROM_THE_SECOND_ON);
  for round in 0..200 {
    let plugin =
      try_open(&manifest, limits(1, 1), Arc::clone(&store) as _).expect("the plugin opens");
    // After this the thread creates the next instance, which starts by the end of the longest wait.
    assert_eq!(call(&plugin, "trap", b""), Err(Code::Trap));
    std::thread::sleep(Duration::from_micros(round * 10));
    drop(plugin);
    wait_until_nothing_runs(&store);
  }
}

#[test]
fn a_plugin_that_is_dropped_while_a_further_instance_starts_leaves_nothing_running() {
  let store: Arc<MemoryStore> = Arc::default();
  let manifest = manifest(ENDLESS_FROM_THE_SECOND_ON);
  for round in 0..100 {
    let plugin =
      try_open(&manifest, limits(3, 8), Arc::clone(&store) as _).expect("the plugin opens");
    let calls: Vec<_> = (0..4).map(|_| start(&plugin, "nothing", b"")).collect();
    for call in calls {
      assert_eq!(call.recv().expect("done is run"), Ok(Vec::new()));
    }
    // Some are still compiling then, some are initializing.
    std::thread::sleep(Duration::from_micros(round * 100));
    drop(plugin);
    wait_until_nothing_runs(&store);
  }
}

#[test]
fn closing_waits_for_instances_that_are_starting() {
  let store: Arc<MemoryStore> = Arc::default();
  for round in 0..50 {
    let plugin =
      try_open(&manifest(GUEST), limits(4, 8), Arc::clone(&store) as _).expect("the plugin opens");
    let accepted: Vec<_> = (0..6).map(|_| start(&plugin, "echo", b"x")).collect();
    std::thread::sleep(Duration::from_micros(round * 100));
    let (closed, is_closed) = channel();
    plugin.close(move || closed.send(()).expect("the test waits"));
    for call in accepted {
      assert_eq!(call.recv().expect("done is run"), Ok(b"x".to_vec()));
    }
    is_closed.recv().expect("closing ends");
    wait_until_nothing_runs(&store);
  }
}

#[test]
fn an_initialization_that_times_out_before_it_starts_does_not_run() {
  let store: Arc<MemoryStore> = Arc::default();
  let endless = r#"
    (module
      (import "extism:host/user" "hostMemoryGet" (func (param i64) (result i64)))
      (func (export "_initialize") (loop $again (br $again))))
  "#;
  for round in 0..200 {
    let manifest = Manifest {
      timeout: Some(Duration::from_micros(round * 10)),
      ..manifest(endless)
    };
    let opened = try_open(&manifest, limits(2, 1), Arc::clone(&store) as _);
    assert_eq!(opened.err().map(|error| error.code), Some(Code::Timeout));
    wait_until_nothing_runs(&store);
  }
}
