//! Random guests do the same on both runtimes: our core, and the `extism` crate.
//!
//! The guests come from wasm-smith. They import functions that use Extism's ABI, from a module written here,
//! [`SAFE`], that passes only what is valid: `extism` would follow any offset. Guests know blocks by small numbers,
//! as both runtimes lay blocks out differently. A main module calls all of them: see [`Driver`].
//!
//!     DIFFERENTIAL_FUZZ_SECONDS=600 cargo test --profile checks --ignore-rust-version --test differential_fuzz
//!
//! runs for ten minutes instead of a few seconds; see [`Fuzzer`] for the first seed. A failing seed is printed; add it
//! to `differential_fuzz_corpus.txt`, which every run begins with.

mod common;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use common::fuzz::{Fuzzer, Random};
use common::smith::{Driver, Interface, generate};
use common::{Lines, wat};
use extism_host::host::Environment;
use extism_host::host::log::Level;
use extism_host::plugin::{
  Call, CallOutput, CompileCache, Limits, Manifest, Plugin, Queued, Results, RuntimeKind, Source,
  Wasm,
};
use extism_host::store::{MemoryStore, Store};
use extism_host::{Code, Result};
use wasm_smith::Config;
use wasmtime::Trap;

const FUZZER: Fuzzer = Fuzzer {
  test: "random_guests_do_the_same_on_both_runtimes",
  prefix: "DIFFERENTIAL_FUZZ",
  corpus: include_str!("differential_fuzz_corpus.txt"),
};

/// The module that uses the ABI. It keeps up to 16 blocks in numbered slots of its memory, each with its offset
/// (i64), its length (i32), and whether it is an output or error of this call (i32), which must not be freed.
/// Numbers that guests pass are reduced to valid ones.
const SAFE: &str = r#"
  (memory 1)
  (global $next (mut i32) (i32.const 0))
  (global $digest (mut i64) (i64.const 0))
  ;; The address of a slot.
  (func $slot (param i32) (result i32)
    (i32.shl (i32.and (local.get 0) (i32.const 15)) (i32.const 4)))
  (func $offset (param i32) (result i64) (i64.load (call $slot (local.get 0))))
  (func $size (param i32) (result i32) (i32.load offset=8 (call $slot (local.get 0))))
  (func $pin (param i32) (i32.store offset=12 (call $slot (local.get 0)) (i32.const 1)))
  ;; Puts a block into the next slot, and frees the one that is there.
  (func $keep (param $offset i64) (param $length i32) (result i32) (local $slot i32)
    (local.set $slot (i32.and (global.get $next) (i32.const 15)))
    (global.set $next (i32.add (global.get $next) (i32.const 1)))
    (call $release (local.get $slot))
    (i64.store (call $slot (local.get $slot)) (local.get $offset))
    (i32.store offset=8 (call $slot (local.get $slot)) (local.get $length))
    (local.get $slot))
  (func $release (export "free") (param $slot i32)
    (local.set $slot (call $slot (local.get $slot)))
    (if (i32.and (i64.ne (i64.load (local.get $slot)) (i64.const 0))
                 (i32.eqz (i32.load offset=12 (local.get $slot))))
      (then (call $free (i64.load (local.get $slot)))))
    (memory.fill (local.get $slot) (i32.const 0) (i32.const 16)))
  ;; A block that somebody else has made; -1 if it is empty.
  (func $found (param $offset i64) (result i32)
    (if (i64.eqz (local.get $offset)) (then (return (i32.const -1))))
    (call $keep (local.get $offset) (i32.wrap_i64 (call $length (local.get $offset)))))
  ;; A block with a key of one letter: only a to d exist.
  (func $key (param $number i32) (result i64) (local $offset i64)
    (local.set $offset (call $alloc (i64.const 1)))
    (call $store_u8 (local.get $offset)
      (i32.add (i32.const 97) (i32.and (local.get $number) (i32.const 7))))
    (local.get $offset))
  ;; Makes letters of a block.
  (func $write (param $slot i32) (local $index i32) (local $at i64)
    (block $end (loop $next
      (br_if $end (i32.ge_u (local.get $index) (call $size (local.get $slot))))
      (local.set $at
        (i64.add (call $offset (local.get $slot)) (i64.extend_i32_u (local.get $index))))
      (call $store_u8 (local.get $at)
        (i32.add (i32.const 97) (i32.and (call $load_u8 (local.get $at)) (i32.const 15))))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (br $next))))

  ;; The blocks of the call before are gone.
  (func (export "begin")
    (memory.fill (i32.const 0) (i32.const 0) (i32.const 256))
    (global.set $next (i32.const 0)))
  (func $tell (export "tell") (param i64)
    (global.set $digest
      (i64.xor (i64.mul (global.get $digest) (i64.const 0x100000001b3)) (local.get 0))))
  ;; A block of zeros.
  (func (export "alloc") (param $length i32) (result i32) (local $offset i64) (local $index i32)
    (local.set $length (i32.rem_u (local.get $length) (i32.const 700)))
    (local.set $offset (call $alloc (i64.extend_i32_u (local.get $length))))
    (block $end (loop $next
      (br_if $end (i32.ge_u (local.get $index) (local.get $length)))
      (call $store_u8
        (i64.add (local.get $offset) (i64.extend_i32_u (local.get $index))) (i32.const 0))
      (local.set $index (i32.add (local.get $index) (i32.const 1)))
      (br $next)))
    (call $keep (local.get $offset) (local.get $length)))
  (func (export "length") (param $slot i32) (result i64)
    (call $length (call $offset (local.get $slot))))
  (func (export "store_u8") (param $slot i32) (param $index i32) (param $value i32)
    (if (call $size (local.get $slot)) (then
      (call $store_u8
        (i64.add (call $offset (local.get $slot))
          (i64.extend_i32_u (i32.rem_u (local.get $index) (call $size (local.get $slot)))))
        (local.get $value)))))
  (func (export "load_u8") (param $slot i32) (param $index i32) (result i32)
    (if (i32.eqz (call $size (local.get $slot))) (then (return (i32.const -1))))
    (call $load_u8
      (i64.add (call $offset (local.get $slot))
        (i64.extend_i32_u (i32.rem_u (local.get $index) (call $size (local.get $slot)))))))
  (func (export "store_u64") (param $slot i32) (param $index i32) (param $value i64)
    (if (i32.ge_u (call $size (local.get $slot)) (i32.const 8)) (then
      (call $store_u64
        (i64.add (call $offset (local.get $slot))
          (i64.extend_i32_u (i32.rem_u (local.get $index)
            (i32.sub (call $size (local.get $slot)) (i32.const 7)))))
        (local.get $value)))))
  (func (export "load_u64") (param $slot i32) (param $index i32) (result i64)
    (if (i32.lt_u (call $size (local.get $slot)) (i32.const 8)) (then (return (i64.const -1))))
    (call $load_u64
      (i64.add (call $offset (local.get $slot))
        (i64.extend_i32_u (i32.rem_u (local.get $index)
          (i32.sub (call $size (local.get $slot)) (i32.const 7)))))))
  (func (export "input_length") (result i64) (call $input_length))
  (func (export "input_load_u8") (param $index i64) (result i32)
    (if (i64.eqz (call $input_length)) (then (return (i32.const -1))))
    (call $input_load_u8 (i64.rem_u (local.get $index) (call $input_length))))
  (func (export "input_load_u64") (param $index i64) (result i64)
    (if (i64.lt_u (call $input_length) (i64.const 8)) (then (return (i64.const -1))))
    (call $input_load_u64
      (i64.rem_u (local.get $index) (i64.sub (call $input_length) (i64.const 7)))))
  ;; Makes a part of a block the output. Not an empty one: see `__test__/guests/differences.wat`.
  (func (export "output_set") (param $slot i32) (param $start i32) (param $length i32)
    (local $size i32)
    (local.set $size (call $size (local.get $slot)))
    (if (local.get $size)
      (then
        (local.set $start (i32.rem_u (local.get $start) (local.get $size)))
        (local.set $length (i32.add (i32.const 1)
          (i32.rem_u (local.get $length) (i32.sub (local.get $size) (local.get $start)))))
        (call $pin (local.get $slot))
        (call $output_set
          (i64.add (call $offset (local.get $slot)) (i64.extend_i32_u (local.get $start)))
          (i64.extend_i32_u (local.get $length))))))
  (func (export "output_length") (result i64) (call $output_length))
  (func (export "error_set") (param $slot i32)
    (call $write (local.get $slot))
    (call $pin (local.get $slot))
    (call $error_set (call $offset (local.get $slot))))
  (func (export "error_clear") (call $error_set (i64.const 0)))
  (func (export "has_error") (result i32) (i64.ne (call $error_get) (i64.const 0)))
  (func (export "var_set") (param $key i32) (param $slot i32) (local $name i64)
    (local.set $name (call $key (local.get $key)))
    (call $var_set (local.get $name) (call $offset (local.get $slot)))
    (call $free (local.get $name)))
  (func (export "var_delete") (param $key i32) (local $name i64)
    (local.set $name (call $key (local.get $key)))
    (call $var_set (local.get $name) (i64.const 0))
    (call $free (local.get $name)))
  (func (export "var_get") (param $key i32) (result i32) (local $name i64) (local $found i32)
    (local.set $name (call $key (local.get $key)))
    (local.set $found (call $found (call $var_get (local.get $name))))
    (call $free (local.get $name))
    (local.get $found))
  (func (export "config_get") (param $key i32) (result i32) (local $name i64) (local $found i32)
    (local.set $name (call $key (local.get $key)))
    (local.set $found (call $found (call $config_get (local.get $name))))
    (call $free (local.get $name))
    (local.get $found))
  (func (export "host_memory_get") (param $key i32) (result i32)
    (local $name i64) (local $found i32)
    (local.set $name (call $key (local.get $key)))
    (local.set $found (call $found (call $host_memory_get (local.get $name))))
    (call $free (local.get $name))
    (local.get $found))
  (func (export "log_info") (param $slot i32) (call $log_info (call $offset (local.get $slot))))
  (func (export "log_error") (param $slot i32) (call $log_error (call $offset (local.get $slot))))
  (func (export "get_log_level") (result i32) (call $get_log_level))
  ;; Outputs the digest of what was told.
  (func (export "told") (result i32) (local $offset i64)
    (local.set $offset (call $alloc (i64.const 8)))
    (call $store_u64 (local.get $offset) (global.get $digest))
    (call $output_set (local.get $offset) (i64.const 8))
    (i32.const 0))"#;

/// The imports of [`SAFE`].
const IMPORTS: &str = r#"
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "free" (func $free (param i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))
  (import "extism:host/env" "load_u64" (func $load_u64 (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "input_load_u64" (func $input_load_u64 (param i64) (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/env" "output_length" (func $output_length (result i64)))
  (import "extism:host/env" "error_set" (func $error_set (param i64)))
  (import "extism:host/env" "error_get" (func $error_get (result i64)))
  (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
  (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
  (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))
  (import "extism:host/env" "log_info" (func $log_info (param i64)))
  (import "extism:host/env" "log_error" (func $log_error (param i64)))
  (import "extism:host/env" "get_log_level" (func $get_log_level (result i32)))
  (import "extism:host/user" "hostMemoryGet" (func $host_memory_get (param i64) (result i64)))"#;

/// The modules of a case, by name, and the functions of the main module.
struct Case {
  modules: Vec<(&'static str, Vec<u8>)>,
  functions: Vec<String>,
  inputs: Vec<Vec<u8>>,
}

impl Case {
  fn new(random: &mut Random, safe: &[u8]) -> Self {
    let mut interface = Interface::default();
    interface.add("safe", safe);
    let config = Config {
      available_imports: Some(interface.module()),
      disallow_traps: random.below(4) != 0,
      canonicalize_nans: true,
      exceptions_enabled: false,
      threads_enabled: false,
      export_everything: true,
      allow_start_export: false,
      max_memory32_bytes: 1 << 20,
      max_memory64_bytes: 1 << 20,
      memory_max_size_required: true,
      max_table_elements: 1000,
      table_max_size_required: true,
      max_funcs: 10,
      min_funcs: 2,
      max_globals: 10,
      max_types: 10,
      max_data_segments: 3,
      max_element_segments: 3,
      ..Config::default()
    };
    let guest = generate(random, &config);
    interface.add("guest", &guest);
    let driver = Driver::new(&interface, ("safe", "tell"), 20, random);
    let inputs = driver.functions.iter();
    Self {
      inputs: inputs
        .map(|_| {
          let length = *random.choose(&[0, 1, 7, 8, 100, 3000]);
          random.bytes(length)
        })
        .collect(),
      modules: vec![
        ("safe", safe.to_vec()),
        ("guest", guest),
        ("main", driver.wasm),
      ],
      functions: driver.functions,
    }
  }

  fn manifest(&self, runtime: RuntimeKind) -> Manifest {
    let modules = self.modules.iter();
    Manifest {
      wasm: modules
        .map(|(name, bytes)| Wasm {
          source: Source::Bytes(bytes.clone()),
          name: Some((*name).to_owned()),
          hash: None,
        })
        .collect(),
      config: BTreeMap::from([("a", "blue"), ("b", ""), ("c", "💜")].map(owned)),
      compile_cache: CompileCache::Off,
      runtime,
      ..Manifest::default()
    }
  }
}

fn owned((key, value): (&str, &str)) -> (String, String) {
  (key.to_owned(), value.to_owned())
}

/// Passes the result of the one call that runs to the test.
struct Waiting(Mutex<Sender<Result<Vec<u8>>>>);

impl Results for Waiting {
  fn done(&self, _: u64, result: Result<CallOutput>) {
    let result = result.map(|output| output.bytes);
    let sender = self.0.lock().expect("no panic");
    sender.send(result).expect("the test waits");
  }
}

/// What came of a plugin.
#[derive(Debug, PartialEq)]
struct Report {
  calls: Vec<Result<Vec<u8>>>,
  logged: Vec<(Level, String)>,
}

/// Runs a case. If it cannot be opened: why.
fn run(case: &Case, runtime: RuntimeKind) -> Result<Report, Code> {
  let store = MemoryStore::new();
  for (key, value) in [("a", "👋 Hello World 🌍"), ("b", ""), ("d", "value")] {
    store
      .set(key, value.as_bytes(), None)
      .expect("there is room");
  }
  let lines = Arc::new(Lines::default());
  let mut environment = Environment::new(Arc::new(store));
  environment.logger = Arc::clone(&lines) as _;
  let one = NonZeroUsize::MIN;
  let limits = Limits {
    instances: one,
    is_eager: false,
    max_queue: one,
    max_queue_bytes: usize::MAX,
    is_isolated: false,
    max_calls: None,
    max_age: None,
  };
  let (sender, results) = channel();
  let waiting = Arc::new(Waiting(Mutex::new(sender)));
  let plugin = Plugin::open(&case.manifest(runtime), limits, &environment, waiting)
    .map_err(|error| error.code)?;
  let mut calls = Vec::new();
  for (function, input) in case.functions.iter().zip(&case.inputs) {
    // After each call, what it told.
    for (name, input) in [(function.as_str(), input.clone()), ("told", Vec::new())] {
      let queued = plugin.queue(Call {
        number: calls.len() as u64,
        export: plugin.function(name).expect("there is such a function"),
        input,
        timeout: None,
        is_alone: false,
      });
      if queued == Queued::Asleep {
        plugin.wake();
      }
      calls.push(results.recv().expect("the call ends"));
    }
  }
  let (sender, closed) = channel();
  plugin.close(move || sender.send(()).expect("the test waits"));
  closed.recv().expect("it closes");
  let logged = lines.0.lock().expect("no panic").clone();
  Ok(Report { calls, logged })
}

/// Whether a call did the same: of messages, only the plugin's own count.
fn are_same(core: &Result<Vec<u8>>, reference: &Result<Vec<u8>>) -> bool {
  match (core, reference) {
    (Err(core), Err(reference)) if core.code != Code::PluginError => core.code == reference.code,
    (Err(core), Err(reference)) => {
      // `extism` does not tell what a guest returned that has set an error message, too.
      let is_same_code = reference.return_code == 0 || core.return_code == reference.return_code;
      core.code == reference.code && core.message == reference.message && is_same_code
    }
    _ => core == reference,
  }
}

/// Why a call may do something else, after which nothing can be compared.
fn known_difference(core: &Result<Vec<u8>>, reference: &Result<Vec<u8>>) -> Option<&'static str> {
  let code = |result: &Result<Vec<u8>>| result.as_ref().err().map(|error| error.code);
  let message = |result: &Result<Vec<u8>>| {
    let error = result.as_ref().err();
    error.map_or_else(String::new, |error| error.message.clone())
  };
  if code(core) != Some(Code::OutOfMemory) && code(reference) == Some(Code::OutOfMemory) {
    // For `extism`, what grows to its declared maximum is out of memory.
    return Some("grown to the maximum");
  }
  if code(core) == Some(Code::PluginError) && message(reference).contains("invalid utf-8") {
    // `extism` has a message of its own for an error that is not UTF-8.
    return Some("not UTF-8");
  }
  let exhausted = Trap::StackOverflow.to_string();
  [core, reference]
    .iter()
    .any(|result| message(result).contains(&exhausted))
    // How deep a stack may be depends on the code around.
    .then_some("stack exhausted")
}

#[test]
fn random_guests_do_the_same_on_both_runtimes() {
  FUZZER.run(
    || {
      let safe = wat(&format!("(module {IMPORTS} {SAFE})"));
      move |seed| {
        let case = Case::new(&mut Random(seed), &safe);
        let core = run(&case, RuntimeKind::Wasmtime);
        let reference = run(&case, RuntimeKind::Extism);
        let (core, reference) = match (core, reference) {
          (Ok(core), Ok(reference)) => (core, reference),
          (core, reference) => {
            assert_eq!(core, reference, "seed {seed}");
            return "not opened";
          }
        };
        for (number, (core, reference)) in core.calls.iter().zip(&reference.calls).enumerate() {
          if let Some(reason) = known_difference(core, reference) {
            return reason;
          }
          assert!(
            are_same(core, reference),
            "seed {seed}, call {number}: {core:?}, {reference:?}"
          );
        }
        assert_eq!(core.logged, reference.logged, "seed {seed}");
        let mut calls = core.calls.iter();
        match calls.find_map(|call| call.as_ref().err()) {
          Some(error) if error.code == Code::PluginError => "error",
          Some(error) if error.code == Code::Trap => "trap",
          Some(_) => "other error",
          None => "outputs only",
        }
      }
    },
    |endings| {
      for ending in ["error", "trap"] {
        assert!(endings.contains_key(ending), "no guest ended so: {ending}");
      }
    },
  );
}
