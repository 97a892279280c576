//! Shared by the tests: a plugin made of guests in WAT, run with a list of calls.

#![allow(dead_code)] // Each test crate uses its own part.

pub mod fuzz;
pub mod smith;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use extism_host::abi::ValueType;
use extism_host::host::host_memory_get::host_memory_get;
use extism_host::host::log::{Level, Logger};
use extism_host::host::output::Output;
use extism_host::host::vars::Vars;
use extism_host::host::{
  HostFunction, HostFunctionError, Permissions, StoreAccess, config, http, log, store, vars,
};
use extism_host::kernel;
use extism_host::plugin::LoadedModule;
use extism_host::plugin::engine::{EngineKind, engine};
use extism_host::plugin::instance::{
  self, CallError, Instance, InstanceSettings, Outcome, Run, Template,
};
use extism_host::plugin::interrupt::Interruptions;
use extism_host::plugin::link::{self, LinkError, LinkOptions, Linked, link};
use extism_host::store::{MemoryStore, Store};
use wasmtime::Module;

/// The imports of the kernel, for guests.
pub const KERNEL: &str = r#"
    (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
    (import "extism:host/env" "free" (func $free (param i64)))
    (import "extism:host/env" "length" (func $length (param i64) (result i64)))
    (import "extism:host/env" "length_unsafe" (func $length_unsafe (param i64) (result i64)))
    (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))
    (import "extism:host/env" "load_u64" (func $load_u64 (param i64) (result i64)))
    (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
    (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
    (import "extism:host/env" "input_length" (func $input_length (result i64)))
    (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
    (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
    (import "extism:host/env" "input_load_u64" (func $input_load_u64 (param i64) (result i64)))
    (import "extism:host/env" "input_set" (func $input_set (param i64 i64)))
    (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
    (import "extism:host/env" "output_offset" (func $output_offset (result i64)))
    (import "extism:host/env" "output_length" (func $output_length (result i64)))
    (import "extism:host/env" "error_set" (func $error_set (param i64)))
    (import "extism:host/env" "error_get" (func $error_get (result i64)))
    (import "extism:host/env" "reset" (func $reset))
    (import "extism:host/env" "memory_bytes" (func $memory_bytes (result i64)))
    (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
    (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
    (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
    (import "extism:host/env" "http_request" (func $http_request (param i64 i64) (result i64)))
    (import "extism:host/env" "http_status_code" (func $http_status_code (result i32)))
    (import "extism:host/env" "http_headers" (func $http_headers (result i64)))
    (import "extism:host/env" "log_trace" (func $log_trace (param i64)))
    (import "extism:host/env" "log_debug" (func $log_debug (param i64)))
    (import "extism:host/env" "log_info" (func $log_info (param i64)))
    (import "extism:host/env" "log_warn" (func $log_warn (param i64)))
    (import "extism:host/env" "log_error" (func $log_error (param i64)))
    (import "extism:host/env" "get_log_level" (func $get_log_level (result i32)))
    (import "extism:host/user" "hostMemoryGet" (func $host_memory_get (param i64) (result i64)))
    (import "extism:host/user" "hostStoreGet" (func $store_get (param i64) (result i64)))
    (import "extism:host/user" "hostStoreSet" (func $store_set (param i64 i64 i64) (result i64)))
    (import "extism:host/user" "hostStoreDelete" (func $store_delete (param i64) (result i64)))
    (import "extism:host/user" "hostStoreKeys" (func $store_keys (param i64 i64 i64) (result i64)))
    (import "extism:host/user" "hostStoreIncrement" (func $store_increment (param i64 i64) (result i64)))
    (import "extism:host/user" "hostStoreCompareAndSwap" (func $store_swap (param i64 i64 i64 i64) (result i64)))
    (import "extism:host/user" "hostStoreGetMany" (func $store_get_many (param i64) (result i64)))
    (import "extism:host/user" "count" (func $count (param i32)))
"#;

/// Functions that most guests need. They come after the imports.
pub const LIBRARY: &str = r#"
    (memory $library 1)
    ;; A block with the $length bytes from $address of the guest's memory.
    (func $block (param $address i32) (param $length i32) (result i64)
      (local $offset i64) (local $index i32)
      (local.set $offset (call $alloc (i64.extend_i32_u (local.get $length))))
      (block $end (loop $next
        (br_if $end (i32.ge_u (local.get $index) (local.get $length)))
        (call $store_u8
          (i64.add (local.get $offset) (i64.extend_i32_u (local.get $index)))
          (i32.load8_u (i32.add (local.get $address) (local.get $index))))
        (local.set $index (i32.add (local.get $index) (i32.const 1)))
        (br $next)))
      (local.get $offset))
    ;; Makes the block the output.
    (func $output (param $offset i64)
      (call $output_set (local.get $offset) (call $length (local.get $offset))))
"#;

/// A guest with all imports and the library.
pub fn guest(body: &str) -> Vec<u8> {
  wat(&format!("(module {KERNEL} {LIBRARY} {body})"))
}

pub fn wat(text: &str) -> Vec<u8> {
  wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

/// Guests that never end by themselves: their definitions, and the code that runs them.
pub const ENDLESS: [(&str, &str); 10] = [
  (
    "an empty loop",
    r#"(func (export "run") (loop $next (br $next)))"#,
  ),
  (
    "nested loops",
    r#"(func (export "run") (local $left i32)
         (loop $outer
           (local.set $left (i32.const 3))
           (loop $inner
             (local.set $left (i32.sub (local.get $left) (i32.const 1)))
             (br_if $inner (local.get $left)))
           (br $outer)))"#,
  ),
  (
    // Deep, and wide enough to be endless.
    "a recursion",
    r#"(func $recurse (param $depth i32)
         (if (local.get $depth) (then
           (call $recurse (i32.sub (local.get $depth) (i32.const 1)))
           (call $recurse (i32.sub (local.get $depth) (i32.const 1))))))
       (func (export "run") (call $recurse (i32.const 1000)))"#,
  ),
  (
    "a recursion through a table",
    r#"(type $step (func (param i32)))
       (table 2 funcref) (elem (i32.const 0) $left $right)
       (func $left (param $depth i32)
         (if (local.get $depth) (then
           (call_indirect (type $step) (i32.sub (local.get $depth) (i32.const 1)) (i32.const 1))
           (call_indirect (type $step) (i32.sub (local.get $depth) (i32.const 1)) (i32.const 0)))))
       (func $right (param $depth i32)
         (if (local.get $depth) (then
           (call_indirect (type $step) (i32.sub (local.get $depth) (i32.const 1)) (i32.const 0))
           (call_indirect (type $step) (i32.sub (local.get $depth) (i32.const 1)) (i32.const 1)))))
       (func (export "run") (call $left (i32.const 1000)))"#,
  ),
  (
    "a br_table",
    r#"(func (export "run") (local $state i32)
         (loop $next
           (block $b (block $a
             (br_table $next $a $b $next (local.get $state)))
             (local.set $state (i32.const 2)) (br $next))
           (local.set $state (i32.const 7)) (br $next)))"#,
  ),
  (
    "tail calls",
    r#"(func $even (param i32) (return_call $odd (i32.add (local.get 0) (i32.const 1))))
       (func $odd (param i32) (return_call $even (i32.sub (local.get 0) (i32.const 1))))
       (func (export "run") (return_call $even (i32.const 0)))"#,
  ),
  (
    "tail calls through a table",
    r#"(type $plain (func))
       (table 1 funcref) (elem (i32.const 0) $again)
       (func $again (export "run") (return_call_indirect (type $plain) (i32.const 0)))"#,
  ),
  (
    "a loop that calls the host",
    r#"(func (export "run") (loop $next (call $tick) (br $next)))"#,
  ),
  (
    "a loop that allocates",
    r#"(func (export "run")
         (loop $next (call $free (call $alloc (i64.const 100))) (br $next)))"#,
  ),
  (
    "a loop through the blocks",
    r#"(func (export "run") (local $block i64)
         (local.set $block (call $alloc (i64.const 100)))
         (loop $next
           (call $store_u8 (local.get $block) (i32.add (call $load_u8 (local.get $block)) (i32.const 1)))
           (br $next)))"#,
  ),
];

#[derive(Default)]
pub struct Lines(pub Mutex<Vec<(Level, String)>>);

impl Logger for Lines {
  fn level(&self) -> Option<Level> {
    Some(Level::Info)
  }

  fn log(&self, _: Option<u64>, level: Level, message: &str) {
    self.0.lock().unwrap().push((level, message.to_owned()));
  }
}

/// The host functions of the tests, and what they record.
#[derive(Clone)]
pub struct World {
  pub counts: Arc<Mutex<Vec<i32>>>,
  pub lines: Arc<Lines>,
  pub vars: Arc<Vars>,
  pub functions: Vec<HostFunction>,
}

impl World {
  pub fn new() -> Self {
    Self::with_vars(4096)
  }

  /// Like [`new`](Self::new), with another limit for variables.
  pub fn with_vars(limit: usize) -> Self {
    let counts = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::new(Lines::default());
    let vars = Arc::new(Vars::new(limit));
    let store = MemoryStore::bounded(16 << 20);
    for (key, value) in [
      ("hello", "👋 Hello World 🌍".as_bytes()),
      ("message", "I 💜 Extism 😍".as_bytes()),
      ("empty", &[]),
      ("large", &[7; 300_000]),
    ] {
      store.set(key, value, None).expect("there is room");
    }
    let permissions = Permissions {
      can_write: true,
      ..Permissions::default()
    };
    let access = Arc::new(StoreAccess::new(Arc::new(store), permissions));
    let mut functions = vec![
      host_memory_get(Arc::clone(&access)),
      config::config_get(BTreeMap::from([("color".to_owned(), "blue".to_owned())])),
    ];
    functions.extend(http::functions(&http::HttpOptions::default(), None).unwrap());
    functions.extend(vars::functions(&vars));
    functions.extend(store::functions(&access));
    let logger: Arc<dyn Logger> = lines.clone();
    functions.extend(log::functions(&logger));
    let counter = counts.clone();
    functions.push(HostFunction::new(
      "extism:host/user",
      "count",
      [ValueType::I32],
      None,
      move |call| {
        let value = call.value(0).and_then(|value| value.i32()).unwrap();
        counter.lock().unwrap().push(value);
        Ok(extism_host::host::Answer::Nothing)
      },
    ));
    Self {
      counts,
      lines,
      vars,
      functions,
    }
  }

  pub fn counts(&self) -> Vec<i32> {
    self.counts.lock().unwrap().clone()
  }

  /// Links modules. A module without a name is the main module.
  pub fn link(&self, modules: &[(Option<&str>, &[u8])]) -> Result<Linked, LinkError> {
    self.link_with(modules, Use::default())
  }

  pub fn link_with(
    &self,
    modules: &[(Option<&str>, &[u8])],
    allowed: Use,
  ) -> Result<Linked, LinkError> {
    let modules = modules
      .iter()
      .map(|(name, bytes)| LoadedModule {
        name: name.unwrap_or("main").to_owned(),
        bytes: bytes.to_vec(),
      })
      .collect::<Vec<_>>();
    link(
      &modules,
      &LinkOptions {
        wasi: true,
        checks: allowed.interruptions == Interruptions::Page,
        kernel: kernel::TEXT,
        limits: link::LinkLimits::default(),
        functions: &self.functions,
        untyped: &[],
        vars: &Arc::default(),
      },
    )
  }

  /// Runs one instance with calls of these exports.
  pub fn run(&self, modules: &[(Option<&str>, &[u8])], calls: &[(&str, &[u8])]) -> Report {
    self.run_with(modules, calls, Use::default())
  }

  pub fn run_with(
    &self,
    modules: &[(Option<&str>, &[u8])],
    calls: &[(&str, &[u8])],
    allowed: Use,
  ) -> Report {
    self.load_with(modules, allowed).run(calls)
  }

  pub fn load(&self, modules: &[(Option<&str>, &[u8])]) -> Loaded {
    self.load_with(modules, Use::default())
  }

  pub fn load_with(&self, modules: &[(Option<&str>, &[u8])], allowed: Use) -> Loaded {
    let linked = self
      .link_with(modules, allowed)
      .unwrap_or_else(|error| panic!("{error}"));
    let kind = EngineKind {
      interruptions: allowed.interruptions,
      has_fuel: allowed.fuel.is_some(),
    };
    let engine = engine(kind).expect("the engine starts");
    let module = Module::new(&engine, &linked.bytes).unwrap_or_else(|error| panic!("{error:#}"));
    let growth_pages = match allowed.growth_pages {
      Some(pages) => pages,
      None => link::LinkLimits::default().memory_pages - linked.initial_pages,
    };
    let settings = InstanceSettings {
      kind,
      fuel: allowed.fuel,
      growth_pages,
      live_bytes: allowed
        .live_bytes
        .or_else(|| Some(allowed.growth_pages? * 65536))
        .unwrap_or(u64::MAX / 2),
      table_elements: allowed.table_elements,
      max_output: 1 << 20,
      output: Output::Off,
      arguments: Vec::new(),
      environment: Vec::new(),
      allowed_paths: Vec::new(),
    };
    let template = Template::new(&module, &linked, settings).expect("the plugin is linked");
    Loaded {
      linked,
      template: Arc::new(template),
    }
  }
}

/// What an instance may use, and how it is interrupted.
#[derive(Clone, Copy)]
pub struct Use {
  pub interruptions: Interruptions,
  pub fuel: Option<u64>,
  /// The pages by which memories may grow, and that live blocks may have. `None`: the default of a plugin
  /// without a limit of its own.
  pub growth_pages: Option<u64>,
  /// The bytes that live blocks may have, if different from `growth_pages`.
  pub live_bytes: Option<u64>,
  /// The elements by which tables may grow.
  pub table_elements: u64,
}

impl Default for Use {
  fn default() -> Self {
    Self {
      interruptions: Interruptions::default(),
      fuel: None,
      growth_pages: None,
      live_bytes: None,
      table_elements: link::LinkLimits::default().table_elements,
    }
  }
}

impl Use {
  pub fn growing_by(pages: u64) -> Self {
    Self {
      growth_pages: Some(pages),
      ..Self::default()
    }
  }

  pub fn interrupted_by(interruptions: Interruptions) -> Self {
    Self {
      interruptions,
      ..Self::default()
    }
  }
}

/// A plugin that can be instantiated.
pub struct Loaded {
  pub linked: Linked,
  pub template: Arc<Template>,
}

impl Loaded {
  /// The number of a function.
  pub fn export(&self, name: &str) -> u32 {
    let mut callables = self.linked.callables.iter();
    let number = callables.position(|callable| callable.name == name);
    number.unwrap_or_else(|| panic!("{name} cannot be called")) as u32
  }

  /// Creates an instance. No guest code has run in it.
  pub fn instance(&self) -> Instance {
    Instance::new(&self.template).expect("the plugin is instantiated")
  }

  /// Runs a new instance with calls of these exports, as a worker does.
  pub fn run(&self, calls: &[(&str, &[u8])]) -> Report {
    self.run_instance(&mut self.instance(), calls)
  }

  /// The same, with an existing instance that has not run.
  pub fn run_instance(&self, instance: &mut Instance, calls: &[(&str, &[u8])]) -> Report {
    let mut report = Report {
      is_initialized: false,
      taken: 0,
      results: Vec::new(),
      ending: Ending::Stopped,
    };
    if let Err(ending) = instance.initialize() {
      report.ending = ending.into();
      return report;
    }
    report.is_initialized = true;
    for (name, input) in calls {
      report.taken += 1;
      match instance.call(0, self.export(name), input.to_vec()) {
        Outcome::Returned(result) => {
          report.results.push(result.map(|output| output.bytes));
          instance.reset();
        }
        Outcome::Exited(result) => {
          report.results.push(result.map(|output| output.bytes));
          report.ending = Ending::Exited;
          return report;
        }
        Outcome::Ended(ending) => {
          report.ending = ending.into();
          return report;
        }
      }
    }
    report
  }
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
  pub is_initialized: bool,
  /// How many calls were started.
  pub taken: usize,
  /// The results of the calls that returned.
  pub results: Vec<Result<Vec<u8>, CallError>>,
  pub ending: Ending,
}

impl Report {
  pub fn outputs(&self) -> Vec<String> {
    self
      .results
      .iter()
      .map(|result| match result {
        Ok(output) => String::from_utf8_lossy(output).into_owned(),
        Err(error) => format!("error: {error}"),
      })
      .collect()
  }

  pub fn is_trapped(&self) -> bool {
    matches!(self.ending, Ending::Trapped(_))
  }

  pub fn error(&self, call: usize) -> &CallError {
    self.results[call].as_ref().unwrap_err()
  }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
  /// All calls were made; the instance could serve another one.
  Stopped,
  /// The guest exited, or its `_start` has run.
  Exited,
  /// The guest exited with this code during the initialization.
  ExitedEarly(i32),
  Trapped(String),
  OutOfMemory,
  OutOfFuel,
  Interrupted,
  HostFunction(HostFunctionError),
  Panicked(String),
}

impl From<instance::Ending> for Ending {
  fn from(ending: instance::Ending) -> Self {
    match ending {
      instance::Ending::Exited(code) => Self::ExitedEarly(code),
      instance::Ending::Trapped { message, .. } => Self::Trapped(message),
      instance::Ending::OutOfMemory => Self::OutOfMemory,
      instance::Ending::OutOfFuel => Self::OutOfFuel,
      instance::Ending::Interrupted => Self::Interrupted,
      instance::Ending::HostFunction(error) => Self::HostFunction(error),
      instance::Ending::Panicked(message) => Self::Panicked(message),
    }
  }
}

/// Counts in an instance that nobody interrupts. Each call adds to what the previous calls have left, so
/// anything lost shows.
pub const INNOCENT: &str = r#"
  (global $sum (mut i64) (i64.const 0))
  (func (export "add") (local $left i32)
    (local.set $left (i32.const 2000))
    (loop $next
      (global.set $sum (i64.add (global.get $sum) (i64.const 1)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $next (local.get $left)))
    (call $store_u64 (call $input_offset) (global.get $sum))
    (call $output_set (call $input_offset) (i64.const 8)))"#;

/// Runs `body` beside an instance that counts, on the same engine, and checks that no count is lost.
pub fn beside_an_innocent(interruptions: Interruptions, body: impl FnOnce()) {
  let plugin = World::new().load_with(
    &[(None, &guest(INNOCENT))],
    Use::interrupted_by(interruptions),
  );
  let is_over = Arc::new(AtomicBool::new(false));
  let calls = Arc::new(AtomicU64::new(0));
  let (stop, counted) = (Arc::clone(&is_over), Arc::clone(&calls));
  let innocent = std::thread::spawn(move || {
    let mut instance = plugin.instance();
    instance.initialize().expect("it has nothing to initialize");
    let export = plugin.export("add");
    while !stop.load(Ordering::SeqCst) || counted.load(Ordering::SeqCst) == 0 {
      let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
      match instance.call(number, export, vec![0; 8]) {
        Outcome::Returned(Ok(sum)) => {
          assert_eq!(sum.bytes, (number * 2000).to_le_bytes(), "call {number}");
        }
        other => panic!("call {number}: {other:?}"),
      }
      instance.reset();
    }
  });
  body();
  is_over.store(true, Ordering::SeqCst);
  innocent
    .join()
    .expect("the innocent instance loses nothing");
}

/// Runs the body in a child process, because the tested code would end the process. The child is this test
/// binary, started for this one test.
pub fn in_child(test: &str, body: impl FnOnce()) {
  const MARK: &str = "EXTISM_HOST_TEST_CHILD";
  if std::env::var(MARK).as_deref() == Ok(test) {
    body();
    return;
  }
  let mut child = Command::new(std::env::current_exe().unwrap())
    .args(["--exact", test, "--nocapture", "--test-threads=1"])
    .env(MARK, test)
    .stdout(Stdio::null())
    .spawn()
    .unwrap();
  let deadline = Instant::now() + Duration::from_secs(120);
  loop {
    if let Some(status) = child.try_wait().unwrap() {
      assert!(status.success(), "{test}: {status}");
      return;
    }
    if Instant::now() > deadline {
      child.kill().unwrap();
      panic!("{test} hangs");
    }
    std::thread::sleep(Duration::from_millis(5));
  }
}
