//! Random modules behave the same when they are linked as when Wasmtime runs them unlinked.
//!
//! The modules come from wasm-smith. A main module made here, the driver, imports all that they export: it calls
//! their functions with random arguments and tells the test the results, and at the end the globals, tables and
//! memories. Modules import from those before them. In some cases two import functions from each other; unlinked,
//! the host then passes the calls of one of them on.
//!
//!     LINK_FUZZ_SECONDS=600 cargo test --profile checks --ignore-rust-version --test link_fuzz
//!
//! runs for ten minutes instead of a few seconds; see [`Fuzzer`] for the first seed. A failing seed is printed; add it
//! to `link_fuzz_corpus.txt`, which every run begins with.

mod common;

use std::sync::Arc;

use common::fuzz::{Fuzzer, Random};
use common::smith::{Driver, Interface, generate, imports};
use extism_host::abi::ValueType::I64;
use extism_host::host::{Answer, HostFunction};
use extism_host::plugin::LoadedModule;
use extism_host::plugin::engine::{Kind, engine};
use extism_host::plugin::interrupt::Interruptions;
use extism_host::plugin::link::{LinkError, LinkLimits, Options, link, names};
use extism_host::{kernel, signals};
use wasm_smith::Config;
use wasmparser::{Parser, Payload, TypeRef, Validator, WasmFeatures};
use wasmtime::{
  Caller, Engine, ExternType, Func, Instance, Linker, Module, Store, StoreLimits,
  StoreLimitsBuilder, Trap, Val,
};

const FUZZER: Fuzzer = Fuzzer {
  test: "linked_modules_behave_as_unlinked_ones",
  prefix: "LINK_FUZZ",
  corpus: include_str!("link_fuzz_corpus.txt"),
};

/// Where the driver tells what it has seen.
const PROBE: (&str, &str) = ("probe", "tell");

/// What a memory may grow to: 1 MiB.
const MEMORY_BYTES: usize = 1 << 20;
/// What a table may grow to.
const TABLE_ELEMENTS: usize = 2000;

/// What wasm-smith may generate: all that guests may use.
fn config(random: &mut Random) -> Config {
  Config {
    disallow_traps: random.below(4) == 0,
    // Which bits a NaN has depends on how the compiler arranges operands.
    canonicalize_nans: true,
    exceptions_enabled: false,
    threads_enabled: false,
    export_everything: true,
    allow_start_export: true,
    max_memories: 3,
    max_memory32_bytes: MEMORY_BYTES as u64 / 4,
    max_memory64_bytes: MEMORY_BYTES as u128 / 4,
    max_tables: 3,
    max_table_elements: TABLE_ELEMENTS as u64 / 2,
    max_funcs: 8,
    max_globals: 20,
    max_data_segments: 5,
    max_element_segments: 8,
    max_elements: 20,
    max_imports: 20,
    max_types: 20,
    min_funcs: 1,
    ..Config::default()
  }
}

/// A plugin: its modules without the driver, each after those that it imports from, if possible.
struct Case {
  modules: Vec<(&'static str, Vec<u8>)>,
  /// Whether the first two import functions from each other.
  is_circular: bool,
  driver: Driver,
}

impl Case {
  fn new(random: &mut Random) -> Self {
    let (modules, is_circular) = match random.below(4) {
      0 => (Self::acyclic(random, &["a"]), false),
      1 => (Self::acyclic(random, &["a", "b"]), false),
      2 => (Self::acyclic(random, &["a", "b", "c"]), false),
      _ => (Self::circular(random), true),
    };
    // The linker follows the driver's imports, and this is the order in which Wasmtime instantiates.
    let mut interface = Interface::default();
    let mut order = modules.iter().collect::<Vec<_>>();
    if is_circular {
      order.reverse();
    }
    for (name, wasm) in order {
      interface.add(name, wasm);
    }
    let driver = Driver::new(&interface, PROBE, 1, random);
    Self {
      modules,
      is_circular,
      driver,
    }
  }

  /// Each module may import from those before it.
  fn acyclic(random: &mut Random, module_names: &[&'static str]) -> Vec<(&'static str, Vec<u8>)> {
    let mut modules = Vec::new();
    let mut interface = Interface::default();
    for name in module_names {
      let config = Config {
        available_imports: Some(interface.module()),
        ..config(random)
      };
      let wasm = generate(random, &config);
      interface.add(name, &wasm);
      modules.push((*name, wasm));
    }
    modules
  }

  /// Two modules that import functions from each other, and one of them what else the other has.
  fn circular(random: &mut Random) -> Vec<(&'static str, Vec<u8>)> {
    let exports = wat::parse_str(
      r#"(module
           (func (export "nothing"))
           (func (export "number") (param i32) (result i32) unreachable)
           (func (export "numbers") (param f32 i64) (result f64 i64) unreachable)
           (func (export "vector") (param v128 i32) (result v128) unreachable))"#,
    )
    .expect("it is valid");
    let mut interface = Interface::default();
    interface.add("b", &exports);
    let config = Config {
      allow_start_export: false,
      ..config(random)
    };
    let first = Config {
      available_imports: Some(interface.module()),
      ..config.clone()
    };
    let first = generate(random, &first);
    let mut interface = Interface::default();
    interface.add("a", &first);
    let second = Config {
      available_imports: Some(interface.module()),
      exports: Some(exports),
      export_everything: false,
      ..config
    };
    vec![("a", first), ("b", generate(random, &second))]
  }

  /// Whether a start function could see that the linker writes all segments before any start function runs.
  fn depends_on_segments(&self) -> bool {
    let has_start = |wasm: &[u8]| {
      let mut payloads = Parser::new(0).parse_all(wasm);
      payloads.any(|payload| matches!(payload, Ok(Payload::StartSection { .. })))
    };
    let mut modules = self.modules.iter();
    // The modules after that with the first start function.
    modules.any(|(_, wasm)| has_start(wasm))
      && modules.any(|(_, wasm)| {
        imports(wasm).any(|ty| matches!(ty, TypeRef::Memory(_) | TypeRef::Table(_)))
      })
  }
}

/// What a call told, and how it ended.
type Told = (Vec<i64>, Result<i32, String>);

/// All calls of a case, or why there were none.
type Report = Result<Vec<Told>, String>;

/// What the host knows of an instance.
struct State {
  told: Vec<i64>,
  limits: StoreLimits,
  /// Of two modules that import from each other, the one that is instantiated last.
  last: Option<Instance>,
}

fn new_store(engine: &Engine) -> Store<State> {
  let limits = StoreLimitsBuilder::new()
    .memory_size(MEMORY_BYTES)
    .table_elements(TABLE_ELEMENTS)
    .build();
  let state = State {
    told: Vec::new(),
    limits,
    last: None,
  };
  let mut store = Store::new(engine, state);
  store.limiter(|state| &mut state.limits);
  store.set_epoch_deadline(u64::MAX / 2);
  store
}

fn new_linker(engine: &Engine, module: &str, name: &str) -> Linker<State> {
  let mut linker = Linker::new(engine);
  linker
    .func_wrap(module, name, |mut caller: Caller<'_, State>, value: i64| {
      caller.data_mut().told.push(value);
    })
    .expect("it is the first");
  linker
}

/// The name of a trap, or what else ended a call.
fn ending(error: &wasmtime::Error) -> String {
  match error.downcast_ref::<Trap>() {
    Some(trap) => format!("{trap:?}"),
    None => error.root_cause().to_string(),
  }
}

fn call(store: &mut Store<State>, function: Func) -> Told {
  let mut results = vec![Val::I32(0); function.ty(&*store).results().len()];
  let called = function.call(&mut *store, &[], &mut results);
  let result = called.map(|()| results.first().map_or(0, Val::unwrap_i32));
  let told = std::mem::take(&mut store.data_mut().told);
  (told, result.map_err(|error| ending(&error)))
}

fn compile(engine: &Engine, wasm: &[u8]) -> Module {
  Module::new(engine, wasm).unwrap_or_else(|error| panic!("{error:?}"))
}

fn run_unlinked(case: &Case, engine: &Engine) -> Report {
  let mut store = new_store(engine);
  let mut linker = new_linker(engine, PROBE.0, PROBE.1);
  // The functions of the module that comes later take the place of those that pass calls on.
  linker.allow_shadowing(case.is_circular);
  for (name, wasm) in &case.modules {
    let module = compile(engine, wasm);
    if case.is_circular {
      pass_on_calls(&mut store, &mut linker, &module, "b");
    }
    let instance = linker
      .instantiate(&mut store, &module)
      .map_err(|error| ending(&error))?;
    store.data_mut().last = Some(instance);
    linker
      .instance(&mut store, name, instance)
      .expect("nothing has this name");
  }
  let driver = compile(engine, &case.driver.wasm);
  let driver = linker
    .instantiate(&mut store, &driver)
    .unwrap_or_else(|error| panic!("{error:?}"));
  let functions = case.driver.functions.iter();
  Ok(
    functions
      .map(|name| {
        let function = driver.get_func(&mut store, name).expect("it is exported");
        call(&mut store, function)
      })
      .collect(),
  )
}

/// Defines the functions that a module imports from one that comes later.
fn pass_on_calls(
  store: &mut Store<State>,
  linker: &mut Linker<State>,
  module: &Module,
  later: &str,
) {
  for import in module.imports().filter(|import| import.module() == later) {
    let ExternType::Func(ty) = import.ty() else {
      unreachable!("only functions are imported so");
    };
    let name = import.name().to_owned();
    let function = Func::new(
      &mut *store,
      ty,
      move |mut caller: Caller<'_, State>, arguments, results| {
        let last = caller.data().last.expect("all are instantiated");
        let function = last.get_func(&mut caller, &name).expect("it is exported");
        function.call(caller, arguments, results)
      },
    );
    linker
      .define(&mut *store, later, import.name(), function)
      .expect("it may be defined twice");
  }
}

fn run_linked(case: &Case, engine: &Engine, checks: bool) -> Result<Report, LinkError> {
  let named = |(name, bytes): (&str, &Vec<u8>)| LoadedModule {
    name: name.to_owned(),
    bytes: bytes.clone(),
  };
  let modules = case.modules.iter().map(|(name, wasm)| (*name, wasm));
  let modules = modules
    .chain([("main", &case.driver.wasm)])
    .map(named)
    .collect::<Vec<_>>();
  let linked = link(
    &modules,
    &Options {
      wasi: false,
      checks,
      kernel: kernel::TEXT,
      limits: LinkLimits::default(),
      functions: &[HostFunction::new(PROBE.0, PROBE.1, [I64], None, |_| {
        Ok(Answer::Nothing)
      })],
      untyped: &[],
      vars: &Arc::default(),
    },
  )?;
  // Wasmtime looks at less: it has more proposals enabled.
  Validator::new_with_features(WasmFeatures::WASM3 | WasmFeatures::THREADS)
    .validate_all(&linked.bytes)
    .unwrap_or_else(|error| panic!("{error}"));

  let module = compile(engine, &linked.bytes);
  let mut store = new_store(engine);
  let linker = new_linker(engine, names::FUNCTION, "0");
  let instance = match linker.instantiate(&mut store, &module) {
    Ok(instance) => instance,
    Err(error) => return Ok(Err(ending(&error))),
  };
  if checks {
    let interrupt = instance.get_memory(&mut store, names::INTERRUPT);
    let interrupt = interrupt.expect("there are checks");
    interrupt.grow(&mut store, 1).expect("it has no page");
  }
  for initializer in &linked.initializers {
    let function = instance.get_func(&mut store, &initializer.export);
    if let (_, Err(error)) = call(&mut store, function.expect("it is exported")) {
      return Ok(Err(error));
    }
  }
  let functions = case.driver.functions.iter().map(|name| {
    let callable = linked
      .callables
      .iter()
      .find(|callable| callable.name == *name);
    let export = &callable.expect("it can be called").export;
    let function = instance.get_func(&mut store, export);
    call(&mut store, function.expect("it is exported"))
  });
  Ok(Ok(functions.collect()))
}

/// Compares as much as must be the same. How it ended.
fn compare(case: &Case, unlinked: &Report, linked: &Report) -> &'static str {
  if case.depends_on_segments() {
    return "order of segments";
  }
  let (unlinked, linked) = match (unlinked, linked) {
    (Ok(unlinked), Ok(linked)) => (unlinked, linked),
    (Err(unlinked), Err(linked)) => {
      // Linked, each step of instantiation is one of all modules, and start functions come last.
      assert!(
        unlinked == linked || case.modules.len() > 1,
        "{unlinked}, {linked}"
      );
      return "not started";
    }
    (unlinked, linked) => panic!("unlinked: {unlinked:?}, linked: {linked:?}"),
  };
  let mut result = "returned";
  for (number, (unlinked, linked)) in unlinked.iter().zip(linked).enumerate() {
    // How deep a stack may be depends on the code around.
    let is_exhausted = |told: &Told| told.1 == Err(format!("{:?}", Trap::StackOverflow));
    if is_exhausted(unlinked) || is_exhausted(linked) {
      return "stack exhausted";
    }
    assert_eq!(unlinked, linked, "call {number}");
    if unlinked.1.is_err() {
      result = "trapped";
    }
  }
  assert_eq!(unlinked.len(), linked.len());
  result
}

#[test]
fn linked_modules_behave_as_unlinked_ones() {
  let engines = || {
    [Interruptions::Page, Interruptions::Epoch].map(|interruptions| {
      let kind = Kind {
        interruptions,
        has_fuel: false,
      };
      (
        engine(kind).expect("the engine starts"),
        interruptions == Interruptions::Page,
      )
    })
  };
  FUZZER.run(
    || {
      let engines = engines();
      move |seed| {
        let case = Case::new(&mut Random(seed));
        let _in_guest = signals::enter_guest();
        let mut result = "";
        let unlinked = run_unlinked(&case, &engines[0].0);
        for (engine, checks) in &engines {
          let linked = match run_linked(&case, engine, *checks) {
            Ok(linked) => linked,
            // See the linker's `Fault::TableInitializer`.
            Err(LinkError::InvalidWasm { message, .. })
              if message.contains("table's initial value") =>
            {
              return "not linked";
            }
            Err(error) => panic!("seed {seed}: {error}"),
          };
          result = compare(&case, &unlinked, &linked);
        }
        result
      }
    },
    |endings| {
      for ending in ["returned", "trapped", "not started"] {
        assert!(endings.contains_key(ending), "no case ended so: {ending}");
      }
    },
  );
}
