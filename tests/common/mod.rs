//! What the tests share: a plugin made of guests in WAT, run with a list of jobs.

#![allow(dead_code)] // Each test crate uses its own part.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use extism_host::host::host_memory_get::host_memory_get;
use extism_host::host::log::{Level, Logger};
use extism_host::host::vars::Vars;
use extism_host::host::{Access, HostFunction, Permissions, config, http, log, store, vars};
use extism_host::plugin::LoadedModule;
use extism_host::plugin::instance::{
  CallError, CompileOptions, Compiled, Ending, Finished, Job, Jobs,
};
use extism_host::plugin::prepare::{Limits, Options, PrepareError, Prepared, prepare};
use extism_host::plugin::wasi::Program;
use extism_host::store::{MemoryStore, Store};

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
    ;; Leaves the kernel with next to no room at the end of its memory, so that it looks for freed
    ;; blocks. (Its memory begins at 65, and a block has a header of 12 bytes.)
    (func $exhaust (local $position i64) (local $left i64)
      (local.set $position (i64.sub (call $alloc (i64.const 8)) (i64.const 57)))
      (local.set $left (i64.sub (i64.sub (call $memory_bytes) (local.get $position)) (i64.const 64)))
      (if (i64.gt_s (local.get $left) (i64.const 20))
        (then (drop (call $alloc (i64.sub (local.get $left) (i64.const 14)))))))
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

/// What host functions of the tests leave behind.
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

  /// With another limit for variables.
  pub fn with_vars(limit: usize) -> Self {
    use extism_host::plugin::types::ValueType;

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
    let access = Arc::new(Access::new(Arc::new(store), permissions));
    let mut functions = vec![
      host_memory_get(Arc::clone(&access)),
      config::config_get(BTreeMap::from([("color".to_owned(), "blue".to_owned())])),
    ];
    functions.extend(http::functions(&http::Options::default(), None).unwrap());
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

  /// A module without a name is the main module.
  pub fn prepare(&self, modules: &[(Option<&str>, &[u8])]) -> Result<Prepared, PrepareError> {
    self.prepare_with(modules, Limits::default(), true)
  }

  pub fn prepare_with(
    &self,
    modules: &[(Option<&str>, &[u8])],
    limits: Limits,
    wasi: bool,
  ) -> Result<Prepared, PrepareError> {
    let modules = modules
      .iter()
      .map(|(name, bytes)| LoadedModule {
        name: name.unwrap_or("main").to_owned(),
        bytes: bytes.to_vec(),
      })
      .collect::<Vec<_>>();
    prepare(
      &modules,
      &Options {
        wasi,
        program: &Program::default(),
        limits,
        functions: &self.functions,
        untyped: &[],
        vars: &Arc::default(),
      },
    )
  }

  pub fn compile(&self, prepared: &Prepared) -> Compiled {
    let options = CompileOptions {
      wasi: true,
      ..CompileOptions::default()
    };
    Compiled::new(prepared, &options).unwrap()
  }

  /// Runs one instance with calls of these exports.
  pub fn run(&self, modules: &[(Option<&str>, &[u8])], calls: &[(&str, &[u8])]) -> Report {
    self.run_with(modules, calls, Limits::default())
  }

  pub fn run_with(
    &self,
    modules: &[(Option<&str>, &[u8])],
    calls: &[(&str, &[u8])],
    limits: Limits,
  ) -> Report {
    self.load_with(modules, limits).run(calls)
  }

  pub fn load(&self, modules: &[(Option<&str>, &[u8])]) -> Loaded {
    self.load_with(modules, Limits::default())
  }

  pub fn load_with(&self, modules: &[(Option<&str>, &[u8])], limits: Limits) -> Loaded {
    let prepared = self
      .prepare_with(modules, limits, true)
      .unwrap_or_else(|error| panic!("{error}"));
    Loaded {
      compiled: self.compile(&prepared),
      prepared,
    }
  }
}

/// A plugin of which instances can be run.
pub struct Loaded {
  pub prepared: Prepared,
  pub compiled: Compiled,
}

impl Loaded {
  /// Runs a new instance with calls of these exports.
  pub fn run(&self, calls: &[(&str, &[u8])]) -> Report {
    let list = Rc::new(List::new(calls.iter().map(|(name, input)| {
      Job {
        number: 0,
        export: *self
          .prepared
          .callable
          .get(*name)
          .unwrap_or_else(|| panic!("{name} cannot be called")),
        input: input.to_vec(),
      }
    })));
    let instance = self.compiled.instantiate().unwrap();
    let ending = instance.run(list.clone(), 1 << 20);
    Report {
      initialized: list.initialized.get(),
      taken: list.taken.get(),
      results: list.results.take(),
      ending,
    }
  }
}

/// How a run went.
#[derive(Debug)]
pub struct Report {
  pub initialized: u32,
  /// How many jobs were handed over.
  pub taken: usize,
  pub results: Vec<Finished>,
  pub ending: Ending,
}

impl Report {
  pub fn outputs(&self) -> Vec<String> {
    self
      .results
      .iter()
      .map(|finished| match &finished.result {
        Ok(output) => String::from_utf8_lossy(output).into_owned(),
        Err(error) => format!("error: {error}"),
      })
      .collect()
  }

  pub fn is_trapped(&self) -> bool {
    matches!(self.ending, Ending::Trapped(_))
  }

  pub fn error(&self, job: usize) -> &CallError {
    self.results[job].result.as_ref().unwrap_err()
  }
}

/// Jobs from a list.
pub struct List {
  jobs: RefCell<VecDeque<Job>>,
  pub initialized: Cell<u32>,
  pub taken: Cell<usize>,
  pub results: RefCell<Vec<Finished>>,
}

impl List {
  pub fn new(jobs: impl IntoIterator<Item = Job>) -> Self {
    Self {
      jobs: RefCell::new(jobs.into_iter().collect()),
      initialized: Cell::new(0),
      taken: Cell::new(0),
      results: RefCell::new(Vec::new()),
    }
  }
}

impl Jobs for List {
  fn initialized(&self) {
    self.initialized.set(self.initialized.get() + 1);
  }

  fn next(&self) -> Option<Job> {
    let job = self.jobs.borrow_mut().pop_front();
    if job.is_some() {
      self.taken.set(self.taken.get() + 1);
    }
    job
  }

  fn done(&self, finished: Finished) {
    self.results.borrow_mut().push(finished);
  }
}

/// Runs the body in a child process, because what is tested would take the process with it. The
/// child is this test binary, asked for this one test.
pub fn in_child(test: &str, body: impl FnOnce()) {
  const MARK: &str = "GUARD_TEST_CHILD";
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
