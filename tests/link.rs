//! The linker: what it refuses, and what the linked module does when Wasmtime runs it.

use std::sync::{Arc, Mutex, OnceLock};

use extism_host::abi::{FunctionType, ValueType};
use extism_host::host::{Answer, HostFunction, UntypedFunction};
use extism_host::plugin::LoadedModule;
use extism_host::plugin::link::{
  ExportDescription, ImportDescription, Kind, LinkError, LinkLimits, LinkOptions, Linked, limits,
  link, names,
};
use wasmtime::{Caller, Config, Engine, Extern, Instance, Linker, Module, Store, Val};

/// A stand-in for the kernel: enough of the ABI to show that calls arrive.
const KERNEL: &str = r#"(module
  (memory (export "blocks") 1)
  (memory (export "table") 1)
  (global $length (mut i64) (i64.const 42))
  (func $unnamed_load (export "load_u8") (param i64) (result i32)
    (i32.load8_u (i32.wrap_i64 (local.get 0))))
  (func (export "store_u8") (param i64 i32)
    (i32.store8 (i32.wrap_i64 (local.get 0)) (local.get 1)))
  (func (export "load_u64") (param i64) (result i64)
    (loop $never (br_if $never (i32.const 0)))
    (i64.load (i32.wrap_i64 (local.get 0))))
  (func (export "input_length") (result i64) (global.get $length)))"#;

/// Imports of the kernel and of host functions, as guests have them.
const IMPORTS: &str = r#"
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/user" "hostMemoryGet" (func $get (param i64) (result i64)))"#;

fn wat(text: &str) -> Vec<u8> {
  wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

fn functions() -> Vec<HostFunction> {
  let function = |namespace: &str, name: &str, params: &[ValueType], result| {
    HostFunction::new(namespace, name, params.to_vec(), result, |_| {
      Ok(Answer::Nothing)
    })
  };
  use ValueType::{I32, I64};
  vec![
    function("extism:host/user", "hostMemoryGet", &[I64], Some(I64)),
    function("extism:host/env", "config_get", &[I64], Some(I64)),
    function("extism:host/user", "count", &[I32], None),
  ]
}

/// How a test links: everything except the modules.
#[derive(Clone, Copy)]
struct InstanceSettings<'a> {
  wasi: bool,
  checks: bool,
  limits: LinkLimits,
  untyped: &'a [UntypedFunction],
}

impl Default for InstanceSettings<'_> {
  fn default() -> Self {
    Self {
      wasi: true,
      checks: true,
      limits: LinkLimits::default(),
      untyped: &[],
    }
  }
}

impl InstanceSettings<'_> {
  /// Adds a module. One without a name is the main module.
  fn link(&self, modules: &[(Option<&str>, &[u8])]) -> Result<Linked, LinkError> {
    let modules = modules
      .iter()
      .map(|(name, bytes)| LoadedModule {
        name: name.unwrap_or("main").to_owned(),
        bytes: bytes.to_vec(),
      })
      .collect::<Vec<_>>();
    self.link_loaded(&modules)
  }

  fn link_loaded(&self, modules: &[LoadedModule]) -> Result<Linked, LinkError> {
    link(
      modules,
      &LinkOptions {
        wasi: self.wasi,
        checks: self.checks,
        kernel: KERNEL,
        limits: self.limits,
        functions: &functions(),
        untyped: self.untyped,
        vars: &Arc::default(),
      },
    )
  }
}

fn linked(modules: &[(Option<&str>, &[u8])]) -> Linked {
  InstanceSettings::default()
    .link(modules)
    .unwrap_or_else(|error| panic!("{error}"))
}

fn refused(modules: &[(Option<&str>, &[u8])]) -> LinkError {
  InstanceSettings::default().link(modules).unwrap_err()
}

fn engine() -> &'static Engine {
  static ENGINE: OnceLock<Engine> = OnceLock::new();
  ENGINE.get_or_init(|| {
    let mut config = Config::new();
    config.wasm_gc(true);
    config.wasm_function_references(true);
    config.wasm_tail_call(true);
    config.wasm_multi_memory(true);
    config.wasm_memory64(true);
    config.wasm_relaxed_simd(true);
    config.wasm_threads(true);
    config.memory_reservation(1 << 20);
    Engine::new(&config).unwrap()
  })
}

/// The arguments with which the host functions of [`Running`] were called.
#[derive(Default)]
struct Seen {
  calls: Arc<Mutex<Vec<String>>>,
}

/// An instance whose initializers have run.
struct Running {
  store: Store<Seen>,
  instance: Instance,
  linked: Linked,
}

impl Running {
  fn new(linked: Linked) -> Self {
    let module = Module::new(engine(), &linked.bytes).unwrap_or_else(|error| panic!("{error:?}"));
    let mut linker: Linker<Seen> = Linker::new(engine());
    for import in module.imports() {
      let (namespace, name) = (import.module().to_owned(), import.name().to_owned());
      let ty = import.ty().func().unwrap().clone();
      let called = format!("{namespace} {name}");
      linker
        .func_new(
          &namespace,
          &name,
          ty,
          move |mut caller: Caller<'_, Seen>, params, results| {
            caller.data().calls.lock().unwrap().push(called.clone());
            // WASI finds the memory like this, and writes to the address in the first argument.
            if called.contains("fd_close")
              && let Some(Extern::Memory(memory)) = caller.get_export("memory")
            {
              let address = params[0].unwrap_i32() as usize;
              memory.write(&mut caller, address, &[7])?;
            }
            for (result, param) in results.iter_mut().zip(params.iter().chain([&Val::I64(9)])) {
              *result = *param;
            }
            Ok(())
          },
        )
        .unwrap();
    }
    let mut store = Store::new(engine(), Seen::default());
    let instance = linker
      .instantiate(&mut store, &module)
      .unwrap_or_else(|error| panic!("{error:?}"));
    if let Some(interrupt) = instance.get_memory(&mut store, names::INTERRUPT) {
      assert_eq!(interrupt.grow(&mut store, 1).unwrap(), 0);
      assert!(interrupt.grow(&mut store, 1).is_err());
    }
    for initializer in &linked.initializers {
      let function = instance.get_func(&mut store, &initializer.export).unwrap();
      let arguments = vec![Val::I32(0); initializer.function.params.len()];
      function.call(&mut store, &arguments, &mut []).unwrap();
    }
    Self {
      store,
      instance,
      linked,
    }
  }

  fn call(&mut self, name: &str) -> Result<Option<Val>, wasmtime::Error> {
    let callable = self
      .linked
      .callables
      .iter()
      .find(|callable| callable.name == name)
      .unwrap_or_else(|| panic!("{name} cannot be called"));
    let function = self
      .instance
      .get_func(&mut self.store, &callable.export)
      .unwrap();
    let mut results = vec![Val::I32(0); usize::from(callable.result.is_some())];
    function.call(&mut self.store, &[], &mut results)?;
    Ok(results.pop())
  }

  fn number(&mut self, name: &str) -> i64 {
    match self.call(name).unwrap_or_else(|error| panic!("{error:?}")) {
      Some(Val::I32(number)) => number.into(),
      Some(Val::I64(number)) => number,
      other => panic!("{other:?}"),
    }
  }

  fn calls(&self) -> Vec<String> {
    self.store.data().calls.lock().unwrap().clone()
  }
}

fn run(modules: &[(Option<&str>, &[u8])]) -> Running {
  Running::new(linked(modules))
}

/// The imports and exports of a module.
fn border(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
  let module = Module::new(engine(), bytes).unwrap();
  (
    module
      .imports()
      .map(|import| format!("{} {}", import.module(), import.name()))
      .collect(),
    module
      .exports()
      .map(|export| export.name().to_owned())
      .collect(),
  )
}

/// The number of interrupt checks in each function, by its name.
fn checks(linked: &Linked) -> Vec<(String, usize)> {
  use wasmparser::{KnownCustom, Name, Operator, Parser, Payload};

  let mut labels = std::collections::HashMap::new();
  let mut counts = Vec::new();
  let mut imported = 0;
  for payload in Parser::new(0).parse_all(&linked.bytes) {
    match payload.unwrap() {
      Payload::ImportSection(reader) => imported = reader.count(),
      Payload::CodeSectionEntry(body) => counts.push(
        body
          .get_operators_reader()
          .unwrap()
          .into_iter()
          .filter(|operator| matches!(operator, Ok(Operator::I32AtomicLoad8U { .. })))
          .count(),
      ),
      Payload::CustomSection(section) => {
        if let KnownCustom::Name(reader) = section.as_known() {
          for name in reader {
            if let Name::Function(map) = name.unwrap() {
              for naming in map {
                let naming = naming.unwrap();
                labels.insert(naming.index, naming.name.to_owned());
              }
            }
          }
        }
      }
      _ => {}
    }
  }
  (imported..)
    .zip(counts)
    .map(|(index, count)| (labels.remove(&index).unwrap_or_default(), count))
    .collect()
}

#[test]
fn only_core_modules_are_accepted() {
  let module = wat("(module (func))");
  let with_another_version = {
    let mut bytes = module.clone();
    bytes[4] = 2;
    bytes
  };
  for bytes in [
    &b""[..],
    b"\0as",
    b"\0asm",
    b"(module)",
    br#"{"wasm": [{"path": "/etc/passwd"}]}"#,
    // A component.
    b"\0asm\x0d\0\x01\0",
    &with_another_version,
    &module[..module.len() - 1],
    &module[..module.len() / 2],
  ] {
    assert!(
      matches!(
        refused(&[(None, bytes)]),
        LinkError::InvalidWasm { module, .. } if module == "main"
      ),
      "{bytes:?}"
    );
  }
  assert_eq!(refused(&[]), LinkError::NoMainModule);
}

#[test]
fn errors_do_not_quote_bytes_that_are_not_a_module() {
  let error = refused(&[(None, b"password=secret")]).to_string();
  assert!(!error.contains("secret"), "{error}");
}

#[test]
fn invalid_modules_are_refused() {
  for (section, bytes) in [
    // A start function that does not exist.
    ("start", &[8, 1, 7][..]),
    // An export of a function that does not exist.
    ("export", &[7, 5, 1, 1, b'f', 0, 9]),
    // A shared memory, to which no limit applies.
    ("memory", &[5, 4, 1, 3, 1, 2]),
    // Two sections in the wrong order.
    ("order", &[3, 1, 0, 1, 1, 0]),
    // A function without a body.
    ("function", &[1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0]),
    // `try` and `catch_all`: the old form of exceptions, which Wasmtime does not support.
    (
      "try",
      &[
        1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0, 10, 8, 1, 6, 0, 0x06, 0x40, 0x19, 0x0B, 0x0B,
      ],
    ),
  ] {
    let module = [b"\0asm\x01\0\0\0", bytes].concat();
    assert!(
      matches!(refused(&[(None, &module)]), LinkError::InvalidWasm { .. }),
      "{section}"
    );
  }
}

/// Every index here exists in the linked module, but not in the guest.
#[test]
fn bodies_cannot_refer_to_other_modules() {
  for body in [
    "i32.const 0 i32.load8_u 0 drop",
    "call 1",
    "global.get 0 drop",
    "memory.size 1 drop",
    "i32.const 0 call_indirect 0 (type 0)",
    "ref.func 3 drop",
    "data.drop 0",
    "elem.drop 0",
  ] {
    let module = wat(&format!("(module (func {body}))"));
    assert!(
      matches!(refused(&[(None, &module)]), LinkError::InvalidWasm { .. }),
      "{body}"
    );
  }
}

#[test]
fn atomic_instructions_are_refused() {
  for body in [
    "(drop (i32.atomic.load8_u (i32.const 0)))",
    "(drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1)))",
    "(drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const -1)))",
    "(atomic.fence)",
  ] {
    let module = wat(&format!("(module (memory 1) (func {body}))"));
    assert!(
      matches!(refused(&[(None, &module)]), LinkError::InvalidWasm { .. }),
      "{body}"
    );
  }
}

#[test]
fn missing_imports_are_named() {
  let missing = |import: &str| {
    let module = wat(&format!("(module (import {import}))"));
    match refused(&[(None, &module)]) {
      LinkError::MissingImport {
        path,
        module,
        name,
        is,
      } => {
        assert_eq!(path, ["main"]);
        assert!(
          !is.contains("did you mean") && !is.contains("useWasi"),
          "{is}"
        );
        (module, name)
      }
      other => panic!("{other}"),
    }
  };
  for (module, name) in [
    ("extism:host/user", "no_such_function"),
    ("extism:host/env", "no_such_function"),
    // The edit distance exceeds a third of the name's length.
    ("extism:host/user", "aNewHostMemoryGet"),
    ("extism:host/user", "xxxxxhostMemoryGet"),
    ("extism:host/user", "hostMemoryGetxxxxx"),
    ("env", "extism_no_such_function"),
    ("env", "extism_hostMemoryGet"),
    ("wasi_snapshot_preview1", "no_such_function"),
    ("env", "__indirect_function_table"),
    ("another module", "run"),
    ("", ""),
  ] {
    assert_eq!(
      missing(&format!(r#""{module}" "{name}" (func)"#)),
      (module.to_owned(), name.to_owned())
    );
  }
}

#[test]
fn similar_names_are_suggested() {
  for (module, name, hint) in [
    (
      "extism:host/usr",
      "hostMemoryGet",
      "\"extism:host/user\" \"hostMemoryGet\"",
    ),
    ("extism:host/user", "alloc", "\"extism:host/env\" \"alloc\""),
    ("extism:host/user", "hostMemoryFetch", "\"hostMemoryGet\""),
    ("extism:host/user", "xxxxhostMemoryGet", "\"hostMemoryGet\""),
    ("extism:host/user", "hostMemGet", "\"hostMemoryGet\""),
    (
      "wasi_unstable",
      "fd_write",
      "\"wasi_snapshot_preview1\" \"fd_write\"",
    ),
  ] {
    let module = wat(&format!(r#"(module (import "{module}" "{name}" (func)))"#));
    let message = refused(&[(None, &module)]).to_string();
    assert!(
      message.ends_with(&format!("; did you mean {hint}?")),
      "{message}"
    );
  }
}

#[test]
fn errors_name_the_path_to_each_missing_import() {
  let importing = |imports: &[(&str, &str)]| {
    let imports = imports
      .iter()
      .map(|(module, name)| format!(r#"(import "{module}" "{name}" (func))"#))
      .collect::<String>();
    wat(&format!(r#"(module {imports} (func (export "run")))"#))
  };
  let message = |modules: &[(Option<&str>, &[u8])]| refused(modules).to_string();
  let lost = |path: &str, module: &str| {
    format!(
      "from module \"{path}\": cannot resolve import \"{module}\" \"run\": not provided by host \
       imports nor linked manifest items; it is a function () -> ()"
    )
  };
  let main = importing(&[("a", "run"), ("z", "run")]);
  let a = importing(&[("b", "run"), ("y", "run")]);
  let b = importing(&[("x", "run")]);
  let empty = importing(&[]);
  assert_eq!(
    message(&[(Some("b"), &b), (Some("a"), &a), (None, &main)]),
    [
      lost("main\"/\"a\"/\"b", "x"),
      lost("main\"/\"a", "y"),
      lost("main", "z")
    ]
    .join("\n")
  );
  assert_eq!(
    message(&[(Some("b"), &empty), (Some("a"), &a), (None, &main)]),
    [lost("main\"/\"a", "y"), lost("main", "z")].join("\n")
  );
  // A module that the main module does not reach.
  assert_eq!(message(&[(Some("b"), &b), (None, &empty)]), lost("b", "x"));
  // Modules that import from each other are visited once.
  let circle = importing(&[("c", "run"), ("x", "run")]);
  assert_eq!(
    message(&[(Some("c"), &circle), (None, &importing(&[("c", "run")]))]),
    lost("main\"/\"c", "x")
  );
}

#[test]
fn without_wasi_its_functions_are_missing() {
  let settings = InstanceSettings {
    wasi: false,
    ..InstanceSettings::default()
  };
  let module = wat(
    r#"(module (import "wasi_snapshot_preview1" "fd_write"
         (func (param i32 i32 i32 i32) (result i32))))"#,
  );
  let error = settings.link(&[(None, &module)]).unwrap_err();
  assert!(error.to_string().contains("useWasi: true"), "{error}");
  let module = wat(r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))))"#);
  assert!(matches!(
    settings.link(&[(None, &module)]),
    Err(LinkError::MissingImport { .. })
  ));
}

#[test]
fn types_of_imports_are_compared() {
  for import in [
    r#""extism:host/env" "alloc" (func)"#,
    r#""extism:host/env" "store_u8" (func (param i64 i64))"#,
    r#""extism:host/env" "alloc" (func (param i64) (result i64 i64))"#,
    r#""extism:host/env" "alloc" (func (param externref) (result i64))"#,
    r#""extism:host/env" "alloc" (global i64)"#,
    r#""env" "extism_alloc" (func (param i32) (result i32))"#,
    r#""env" "hostMemoryGet" (func (param i32) (result i64))"#,
    r#""extism:host/user" "hostMemoryGet" (memory 1)"#,
    r#""wasi_snapshot_preview1" "proc_exit" (func (param i64))"#,
    r#""wasi_snapshot_preview1" "fd_write" (func (param i32))"#,
    r#""a" "run" (func (param i32))"#,
    r#""a" "run" (memory 1)"#,
    r#""a" "memory" (func)"#,
    r#""a" "memory" (memory 3)"#,
    r#""a" "memory" (memory 1 4)"#,
    r#""a" "memory" (memory i64 1)"#,
    r#""a" "bounded" (memory 1 4)"#,
    r#""a" "table" (table 4 funcref)"#,
    r#""a" "table" (table 1 externref)"#,
    r#""a" "constant" (global (mut i32))"#,
    r#""a" "constant" (global i64)"#,
    r#""a" "variable" (global i32)"#,
    r#""a" "reference" (global (ref null struct))"#,
  ] {
    let module = wat(&format!("(module (import {import}))"));
    let a = wat(
      r#"(module (func (export "run")) (memory (export "memory") 2)
           (memory (export "bounded") 1 5)
           (table (export "table") 3 funcref)
           (global (export "constant") i32 (i32.const 1))
           (global (export "variable") (mut i32) (i32.const 1))
           (global (export "reference") (ref null i31) (ref.null i31)))"#,
    );
    assert!(
      matches!(
        refused(&[(Some("a"), &a), (None, &module)]),
        LinkError::WrongImportType { .. }
      ),
      "{import}"
    );
    // Compatible types are accepted.
    let module = wat(
      r#"(module
           (import "a" "memory" (memory 1)) (import "a" "bounded" (memory 0 6))
           (import "a" "table" (table 2 funcref)) (import "a" "constant" (global i32))
           (import "a" "variable" (global (mut i32)))
           (import "a" "reference" (global (ref null eq))))"#,
    );
    Running::new(linked(&[(Some("a"), &a), (None, &module)]));
  }
}

#[test]
fn concrete_types_of_imports_are_compared_structurally() {
  let a = wat(
    r#"(module (type $unused (func)) (type $pair (struct (field i32) (field i64)))
         (global (export "pair") (ref null $pair) (ref.null $pair)))"#,
  );
  let importing = |fields: &str| {
    wat(&format!(
      r#"(module (type $mine (struct {fields})) (import "a" "pair" (global (ref null $mine))))"#
    ))
  };
  linked(&[
    (Some("a"), &a),
    (None, &importing("(field i32) (field i64)")),
  ]);
  for fields in ["(field i32) (field i32)", "(field i32)", ""] {
    let error = refused(&[(Some("a"), &a), (None, &importing(fields))]);
    assert!(
      matches!(error, LinkError::WrongImportType { .. }),
      "{fields}: {error}"
    );
  }
}

#[test]
fn a_type_that_no_host_function_has_is_refused() {
  // The same shape, but open to subtypes, so it is another type.
  let module = wat(
    r#"(module (type $open (sub (func (param i64) (result i64))))
         (import "extism:host/user" "hostMemoryGet" (func (type $open))))"#,
  );
  assert!(matches!(
    refused(&[(None, &module)]),
    LinkError::WrongImportType { .. }
  ));
}

#[test]
fn circular_reexports_are_named() {
  let passing_on = |from: &str| {
    wat(&format!(
      r#"(module (import "{from}" "run" (func $run)) (export "run" (func $run)))"#
    ))
  };
  let path = |modules: &[(Option<&str>, &[u8])]| match refused(modules) {
    LinkError::CircularLinking { path } => path.join(" "),
    other => panic!("{other}"),
  };
  assert_eq!(path(&[(None, &passing_on("main"))]), "main main");
  assert_eq!(
    path(&[
      (Some("a"), &passing_on("b")),
      (Some("b"), &passing_on("c")),
      (Some("c"), &passing_on("b")),
      (None, &passing_on("a")),
    ]),
    "b c b"
  );
  // No cycle: it ends at a definition.
  let own = wat(r#"(module (import "main" "run" (func)) (func (export "run")))"#);
  run(&[(None, &own)]).call("run").unwrap();
}

#[test]
fn circular_globals_are_named() {
  let module = |from: &str| {
    wat(&format!(
      r#"(module (import "{from}" "value" (global $other i32))
           (global (export "value") i32 (i32.add (global.get $other) (i32.const 1))))"#
    ))
  };
  assert_eq!(
    refused(&[(Some("a"), &module("main")), (None, &module("a"))]),
    LinkError::CircularLinking {
      path: ["a", "main", "a"].map(str::to_owned).to_vec()
    }
  );
}

#[test]
fn modules_may_import_from_one_another() {
  let even = wat(
    r#"(module
         (import "odd" "is_odd" (func $is_odd (param i32) (result i32)))
         (import "odd" "memory" (memory 1))
         (import "odd" "table" (table 2 funcref))
         (import "odd" "counter" (global $counter (mut i32)))
         (type $unused (func (param f32)))
         (type $predicate (func (param i32) (result i32)))
         (elem (table 0) (i32.const 0) func $is_even)
         (data (i32.const 1) "\02")
         (func $is_even (export "is_even") (param i32) (result i32)
           (global.set $counter (i32.add (global.get $counter) (i32.const 1)))
           (if (result i32) (i32.eqz (local.get 0))
             (then (i32.const 1))
             (else (call $is_odd (i32.sub (local.get 0) (i32.const 1))))))
         (func (export "run") (result i32) (call $is_even (i32.const 10)))
         (func (export "counted") (result i32) (global.get $counter))
         (func (export "bytes") (result i32) (i32.load (i32.const 0)))
         (func (export "indirect") (result i32)
           (i32.add
             (call_indirect (type $predicate) (i32.const 4) (i32.const 0))
             (i32.mul (i32.const 10)
               (call_indirect (type $predicate) (i32.const 4) (i32.const 1)))))
         (func (export "mismatch") (call_indirect (type $unused) (f32.const 0) (i32.const 0))))"#,
  );
  let odd = wat(
    r#"(module
         (type $predicate (func (param i32) (result i32)))
         (import "main" "is_even" (func $is_even (type $predicate)))
         (memory (export "memory") 1)
         (table (export "table") 2 funcref)
         (global (export "counter") (mut i32) (i32.const 0))
         (elem (i32.const 1) $is_odd)
         (data (i32.const 0) "\01\03")
         (func $is_odd (export "is_odd") (param i32) (result i32)
           (if (result i32) (i32.eqz (local.get 0))
             (then (i32.const 0))
             (else (call $is_even (i32.sub (local.get 0) (i32.const 1)))))))"#,
  );
  for modules in [
    [(Some("odd"), odd.as_slice()), (None, &even)],
    [(None, &even), (Some("odd"), &odd)],
  ] {
    let mut running = run(&modules);
    assert_eq!(running.number("run"), 1);
    assert_eq!(running.number("counted"), 6);
    // The main module's data is written last.
    assert_eq!(running.number("bytes"), 0x0201);
    assert_eq!(running.number("indirect"), 1);
    assert!(running.call("mismatch").is_err());
  }
}

#[test]
fn imported_globals_initialize() {
  let a = wat(
    r#"(module (func $seven (result i32) (i32.const 7))
         (global (export "base") i32 (i32.const 8))
         (global (export "sum") i32 (i32.add (i32.const 1) (i32.const 2)))
         (global (export "function") (ref func) (ref.func $seven)))"#,
  );
  let main = wat(
    r#"(module
         (type $number (func (result i32)))
         (import "a" "base" (global $base i32))
         (import "a" "sum" (global $sum i32))
         (import "a" "function" (global $function (ref func)))
         (memory 1)
         (table $filled 4 (ref func) (global.get $function))
         (table $plain 20 funcref)
         (global $own i32 (i32.add (global.get $sum) (global.get $base)))
         (global $again i32 (global.get $own))
         (data (global.get $base) "\2a")
         (data (global.get $again) "\2b")
         (elem (table $plain) (global.get $sum) (ref func) (global.get $function))
         (func (export "at_base") (result i32) (i32.load8_u (i32.const 8)))
         (func (export "at_own") (result i32) (i32.load8_u (i32.const 11)))
         (func (export "own") (result i32) (global.get $again))
         (func (export "from_table") (result i32)
           (i32.add
             (call_indirect $plain (type $number) (i32.const 3))
             (call_ref $number (ref.cast (ref $number) (table.get $filled (i32.const 2)))))))"#,
  );
  let mut running = run(&[(None, &main), (Some("a"), &a)]);
  assert_eq!(running.number("at_base"), 0x2a);
  assert_eq!(running.number("at_own"), 0x2b);
  assert_eq!(running.number("own"), 11);
  assert_eq!(running.number("from_table"), 14);
}

#[test]
fn the_initial_value_of_a_table_must_be_a_constant() {
  let a = wat(
    r#"(module (type $s (struct))
         (global (export "object") (ref struct) (struct.new $s)))"#,
  );
  let main = wat(
    r#"(module (import "a" "object" (global $object (ref struct)))
         (table 1 (ref struct) (global.get $object)))"#,
  );
  assert!(matches!(
    refused(&[(Some("a"), &a), (None, &main)]),
    LinkError::InvalidWasm { .. }
  ));
}

#[test]
fn reexports_lead_to_the_definition() {
  let c = wat(
    r#"(module (func (export "f") (result i32) (i32.const 3))
         (memory (export "m") 2 10)
         (data (i32.const 0) "\05"))"#,
  );
  let b = wat(
    r#"(module (import "c" "f" (func $f (result i32))) (import "c" "m" (memory $m 1))
         (import "extism:host/user" "hostMemoryGet" (func $get (param i64) (result i64)))
         (export "g" (func $f)) (export "n" (memory $m)) (export "get" (func $get)))"#,
  );
  // The limits are those of the memory itself, not those of the import.
  let main = wat(
    r#"(module (import "b" "g" (func $g (result i32))) (import "b" "n" (memory 2 10))
         (import "b" "get" (func $get (param i64) (result i64)))
         (func (export "run") (result i32) (i32.add (call $g) (i32.load8_u (i32.const 0))))
         (func (export "host") (result i64) (call $get (i64.const 77))))"#,
  );
  let mut running = run(&[(None, &main), (Some("b"), &b), (Some("c"), &c)]);
  assert_eq!(running.number("run"), 8);
  assert_eq!(running.number("host"), 77);
  assert_eq!(running.calls(), ["extism-host:function 0"]);
}

#[test]
fn long_chains_link() {
  let count = 10_000;
  let mut modules = (0..count)
    .map(|number| {
      let body = if number + 1 < count {
        format!(
          r#"(import "m{}" "run" (func $run (result i32))) (export "run" (func $run))"#,
          number + 1
        )
      } else {
        r#"(func (export "run") (result i32) (i32.const 5))"#.to_owned()
      };
      LoadedModule {
        name: format!("m{number}"),
        bytes: wat(&format!("(module {body})")),
      }
    })
    .collect::<Vec<_>>();
  modules.push(LoadedModule {
    name: "main".to_owned(),
    bytes: wat(
      r#"(module (import "m0" "run" (func $run (result i32))) (export "run" (func $run)))"#,
    ),
  });
  let linked = InstanceSettings::default().link_loaded(&modules).unwrap();
  assert_eq!(Running::new(linked).number("run"), 5);
}

#[test]
fn many_imports_link() {
  let imports = r#"(import "extism:host/user" "hostMemoryGet" (func (param i64) (result i64)))"#
    .repeat(limits::IMPORTS.max as usize);
  let linked = linked(&[(None, &wat(&format!("(module {imports})")))]);
  assert_eq!(border(&linked.bytes).0, ["extism-host:function 0"]);
}

#[test]
fn names_are_checked() {
  let empty = wat("(module)");
  for name in ["extism-host:guard", "extism-host:", "extism:host/env"] {
    assert_eq!(
      refused(&[(Some(name), &empty), (None, &empty)]),
      LinkError::ReservedName {
        name: name.to_owned()
      }
    );
  }
  for module in [
    r#"(module (func (export "extism-host:start")))"#,
    r#"(module (import "extism-host:function" "0" (func)))"#,
    r#"(module (import "extism-host:kernel" "alloc" (func)))"#,
  ] {
    assert!(
      matches!(
        refused(&[(None, &wat(module))]),
        LinkError::ReservedName { .. }
      ),
      "{module}"
    );
  }
  let duplicate = |module: &str| LinkError::DuplicateModule {
    module: module.to_owned(),
  };
  assert_eq!(
    refused(&[(Some("a"), &empty), (Some("a"), &empty), (None, &empty)]),
    duplicate("a")
  );
  assert_eq!(
    refused(&[(None, &empty), (None, &empty)]),
    duplicate("main")
  );
}

#[test]
fn only_some_exports_can_be_called() {
  let module = wat(
    r#"(module
         (import "extism:host/env" "input_length" (func (result i64)))
         (func (export "code") (result i32) (i32.const 0))
         (func (export "plain"))
         (func (export "_start"))
         (func (export "_initialize"))
         (func (export "__wasm_call_ctors"))
         (func (export "hs_init") (param i32 i32))
         (func (export "argument") (param i32))
         (func (export "long") (result i64) (i64.const 0))
         (func (export "single") (result f32) (f32.const 0))
         (func (export "double") (result f64) (f64.const 0))
         (func (export "pair") (result i32 i32) (i32.const 0) (i32.const 0))
         (func (export "vector") (result v128) (v128.const i64x2 0 0))
         (func (export "reference") (result externref) (ref.null extern))
         (memory (export "memory") 1)
         (table (export "table") 1 funcref)
         (global (export "global") i32 (i32.const 0)))"#,
  );
  let linked = linked(&[(None, &module)]);
  assert_eq!(
    linked
      .callables
      .iter()
      .map(|callable| (callable.name.as_str(), callable.result))
      .collect::<Vec<_>>(),
    [
      ("code", Some(ValueType::I32)),
      ("plain", None),
      ("_start", None),
      ("long", Some(ValueType::I64)),
      ("single", Some(ValueType::F32)),
      ("double", Some(ValueType::F64)),
    ]
  );
  assert_eq!(linked.exports.len(), 16);
  assert_eq!(
    linked.exports[15],
    ExportDescription {
      name: "global".to_owned(),
      kind: Kind::Global
    }
  );
  assert_eq!(
    linked.imports,
    [ImportDescription {
      module: "extism:host/env".to_owned(),
      name: "input_length".to_owned(),
      kind: Kind::Function
    }]
  );
  // `memory` is for WASI, which no module imports here.
  let (imports, exports) = border(&linked.bytes);
  assert!(imports.is_empty());
  assert_eq!(
    exports,
    [
      "extism-host:init/0",
      "extism-host:init/1",
      "extism-host:call/0",
      "extism-host:call/1",
      "extism-host:call/2",
      "extism-host:call/3",
      "extism-host:call/4",
      "extism-host:call/5",
      "extism-host:blocks",
      "extism-host:table",
      "extism-host:interrupt",
      "extism-host:state/global/1",
      "extism-host:state/memory/0",
    ]
  );
  assert_eq!(
    linked.initializers[1].function,
    FunctionType::new([ValueType::I32, ValueType::I32], [])
  );
}

#[test]
fn no_guest_code_runs_before_the_host_calls_it() {
  let module = wat(
    r#"(module (import "extism:host/user" "count" (func $count (param i32)))
         (func $begin (call $count (i32.const 1))) (start $begin)
         (func (export "__wasm_call_ctors") (call $count (i32.const 2)))
         (func (export "_initialize") (call $count (i32.const 3)))
         (func (export "run")))"#,
  );
  let linked = linked(&[(None, &module)]);
  assert!(
    wasmparser::Parser::new(0)
      .parse_all(&linked.bytes)
      .all(|payload| !matches!(payload, Ok(wasmparser::Payload::StartSection { .. })))
  );
  // `_initialize` calls the constructors itself.
  assert_eq!(linked.initializers.len(), 2);
  let mut running = Running::new(linked);
  running.call("run").unwrap();
  assert_eq!(running.calls(), ["extism-host:function 2"; 2]);
}

#[test]
fn dependencies_initialize_first() {
  let b = wat(
    r#"(module (global $steps (export "steps") (mut i32) (i32.const 0))
         (func $begin (global.set $steps (i32.const 1))) (start $begin))"#,
  );
  let append = |digit: i32| {
    format!(
      "(global.set $steps (i32.add (i32.mul (global.get $steps) (i32.const 10)) (i32.const {digit})))"
    )
  };
  let a = wat(&format!(
    r#"(module (import "b" "steps" (global $steps (mut i32)))
         (func (export "_initialize") {}) (export "steps" (global $steps)))"#,
    append(2)
  ));
  let main = wat(&format!(
    r#"(module (import "a" "steps" (global $steps (mut i32)))
         (func $begin {}) (start $begin)
         (func (export "_initialize") {})
         (func (export "hs_init") (param i32 i32) {})
         (func (export "run") (result i32) (global.get $steps)))"#,
    append(3),
    append(4),
    append(5)
  ));
  let mut running = run(&[(None, &main), (Some("a"), &a), (Some("b"), &b)]);
  assert_eq!(running.number("run"), 12345);
}

#[test]
fn the_kernel_is_part_of_the_module() {
  let module = wat(&format!(
    r#"(module {IMPORTS}
         (import "env" "extism_alloc" (func $old_alloc (param i64) (result i64)))
         (import "env" "extism_load_u8" (func $old_load (param i64) (result i32)))
         (memory 1)
         (func (export "run") (result i32)
           (call $store_u8 (i64.const 5) (i32.const 99))
           ;; The guest's own memory is another.
           (i32.store8 (i32.const 5) (i32.const 1))
           (i32.add (call $load_u8 (i64.const 5)) (call $old_load (i64.const 6))))
         (func (export "length") (result i64) (call $input_length))
         (func (export "allocate") (result i64)
           (i64.add (call $alloc (i64.const 3)) (call $old_alloc (i64.const 4)))))"#
  ));
  let mut running = run(&[(None, &module)]);
  assert_eq!(running.number("run"), 99);
  assert_eq!(running.number("length"), 42);
  assert_eq!(running.number("allocate"), 7);
  assert_eq!(
    running.calls(),
    ["extism-host:kernel alloc", "extism-host:kernel alloc"]
  );
  let blocks = running
    .instance
    .get_memory(&mut running.store, names::BLOCKS)
    .unwrap();
  assert_eq!(blocks.data(&running.store)[5], 99);
  assert_eq!(
    border(&running.linked.bytes).0,
    ["extism-host:kernel alloc", "extism-host:function 0"]
  );
}

#[test]
fn a_wrong_kernel_is_an_internal_error() {
  for text in [
    "(module)",
    r#"(module (memory (export "blocks") 1))"#,
    r#"(module (memory (export "blocks") (export "table") 1) (func (export "load_u8")))"#,
    r#"(module (import "a" "b" (func)) (memory (export "blocks") (export "table") 1))"#,
  ] {
    let main = LoadedModule {
      name: "main".to_owned(),
      bytes: wat("(module)"),
    };
    let options = LinkOptions {
      wasi: true,
      checks: true,
      kernel: text,
      limits: LinkLimits::default(),
      functions: &[],
      untyped: &[],
      vars: &Arc::default(),
    };
    assert!(
      matches!(link(&[main], &options), Err(LinkError::Internal(_))),
      "{text}"
    );
  }
}

#[test]
fn untyped_functions_have_the_type_of_their_import() {
  let untyped = UntypedFunction {
    namespace: "extism:host/user".to_owned(),
    name: "any".to_owned(),
    typed: Arc::new(|function, _| {
      HostFunction::new(
        "extism:host/user",
        "any",
        function.params.clone(),
        function.results.first().copied(),
        |_| Ok(Answer::Nothing),
      )
    }),
  };
  let settings = InstanceSettings {
    untyped: &[untyped],
    ..InstanceSettings::default()
  };
  let module = wat(
    r#"(module
         (import "extism:host/user" "any" (func))
         (import "extism:host/user" "any" (func (param f64) (result i32)))
         (import "env" "any" (func (param f64) (result i32)))
         (import "extism:host/user" "count" (func (param i32))))"#,
  );
  let linked = settings.link(&[(None, &module)]).unwrap();
  assert_eq!(
    linked.functions.keys().copied().collect::<Vec<_>>(),
    [2, 3, 4]
  );
  assert_eq!(
    border(&linked.bytes).0,
    [
      "extism-host:function 3",
      "extism-host:function 4",
      "extism-host:function 2"
    ]
  );
  // A host function has at most one result.
  let module = wat(r#"(module (import "env" "any" (func (result i32 i32))))"#);
  assert!(settings.link(&[(None, &module)]).is_err());
}

#[test]
fn each_memory_has_its_wasi() {
  let close =
    r#"(import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))"#;
  let main = wat(&format!(
    r#"(module {close} (import "own" "run" (func $own)) (import "shared" "run" (func $shared))
         (import "none" "run" (func $none))
         (memory (export "memory") 1)
         (func (export "run") (drop (call $close (i32.const 1)))
           (call $own) (call $shared) (call $none)))"#
  ));
  let with = |memory: &str| {
    wat(&format!(
      r#"(module {close} {memory} (func (export "run") (drop (call $close (i32.const 2)))))"#
    ))
  };
  let own = with(r#"(memory (export "memory") 1)"#);
  let shared = with(r#"(import "main" "memory" (memory 1))"#);
  let none = with("");
  let mut running = run(&[
    (Some("own"), &own),
    (Some("shared"), &shared),
    (Some("none"), &none),
    (None, &main),
  ]);
  assert!(running.linked.uses_wasi);
  assert_eq!(running.linked.wasi_memories, 1);
  running.call("run").unwrap();
  let plain = "wasi_snapshot_preview1 fd_close";
  assert_eq!(
    running.calls(),
    [plain, "extism-host:wasi/1 fd_close", plain, plain]
  );
  let memory = |running: &mut Running, name: &str| {
    running
      .instance
      .get_memory(&mut running.store, name)
      .unwrap()
  };
  let first = memory(&mut running, "memory");
  let second = memory(&mut running, "extism-host:memory/1");
  assert_eq!(first.data(&running.store)[1], 7);
  assert_eq!(second.data(&running.store)[1], 0);
}

#[test]
fn initial_sizes_are_limited() {
  let settings = InstanceSettings {
    limits: LinkLimits {
      memory_pages: 83,
      table_elements: 1000,
    },
    ..InstanceSettings::default()
  };
  let memory = |pages: u64| wat(&format!("(module (memory {pages}))"));
  let pages = |linked: Result<Linked, LinkError>| linked.map(|linked| linked.initial_pages);
  assert_eq!(pages(settings.link(&[(None, &memory(83))])), Ok(83));
  assert_eq!(
    pages(settings.link(&[(None, &memory(84))])),
    Err(LinkError::TooMuchMemory {
      module: "main".to_owned(),
      needed: 84,
      allowed: 83
    })
  );
  assert!(
    settings
      .link(&[(Some("a"), &memory(50)), (None, &memory(50))])
      .is_err()
  );
  let huge = wat("(module (memory i64 0x1000000000000))");
  assert!(matches!(
    settings.link(&[(None, &huge)]),
    Err(LinkError::TooMuchMemory { .. })
  ));
  let table = wat("(module (table 600 funcref) (table 500 funcref))");
  assert_eq!(
    pages(settings.link(&[(None, &table)])),
    Err(LinkError::TooManyTableElements {
      module: "main".to_owned(),
      needed: 500,
      allowed: 400
    })
  );
}

#[test]
fn modules_that_take_too_long_to_compile_are_refused() {
  let too_large = |text: &str| match refused(&[(None, &wat(text))]) {
    LinkError::TooLarge {
      what, found, limit, ..
    } => {
      assert!(found > limit);
      what
    }
    other => panic!("{other}"),
  };
  let repeat = |text: &str, count: usize| text.repeat(count);
  let count = |limit: limits::Limit| limit.max as usize + 1;
  for (limit, body) in [
    (
      limits::MEMORIES,
      repeat("(memory 0)", count(limits::MEMORIES)),
    ),
    (
      limits::TABLES,
      repeat("(table 0 funcref)", count(limits::TABLES)),
    ),
    (
      limits::FUNCTIONS,
      format!(
        "(type (func)){}",
        repeat("(func (type 0))", count(limits::FUNCTIONS))
      ),
    ),
    (limits::TYPES, repeat("(type (func))", count(limits::TYPES))),
    (
      limits::IMPORTS,
      repeat(r#"(import "" "" (memory 0))"#, count(limits::IMPORTS)),
    ),
    (
      limits::GLOBALS,
      repeat("(global i32 (i32.const 0))", count(limits::GLOBALS)),
    ),
    (
      limits::DATA_SEGMENTS,
      repeat(r#"(data "")"#, count(limits::DATA_SEGMENTS)),
    ),
    (
      limits::LOCALS,
      format!("(func (local {}))", repeat("i32 ", count(limits::LOCALS))),
    ),
    (
      limits::FUNCTION_COMPLEXITY,
      format!(
        "(func (local {}) {})",
        repeat("i32 ", 9_000),
        repeat("(block)", 2_000)
      ),
    ),
    (
      limits::LOOP_DEPTH,
      format!("(func {} {})", repeat("loop ", 65), repeat("end ", 65)),
    ),
    (
      limits::FUNCTION_LOOP_COMPLEXITY,
      format!(
        "(func (local {}) {})",
        repeat("i32 ", 1_000),
        repeat("(loop)", 540)
      ),
    ),
    // Values on the stack count like locals.
    (
      limits::FUNCTION_COMPLEXITY,
      format!(
        "(type $many (func (param {0}) (result {0}))) (func $f (type $many) {1} {2})",
        repeat("i64 ", 500),
        (0..500)
          .map(|number| format!("local.get {number} "))
          .collect::<String>(),
        repeat("call $f ", 20_000),
      ),
    ),
  ] {
    assert_eq!(too_large(&format!("(module {body})")), limit.what);
  }
  // Two modules that exceed the limit only together.
  let half = wat(&format!("(module {})", repeat("(memory 0)", 9)));
  assert!(matches!(
    refused(&[(Some("a"), &half), (None, &half)]),
    LinkError::TooLarge { .. }
  ));
}

#[test]
fn the_attack_with_locals_and_loops_is_refused() {
  let module = wat(&format!(
    "(module (func (local {}) {}))",
    "i32 ".repeat(49_000),
    "(loop)".repeat(5_000)
  ));
  let message = refused(&[(None, &module)]).to_string();
  assert_eq!(
    message,
    "module \"main\" is too large to compile: locals in one function: 49000; the limit is 10000"
  );
}

/// As in a `printf` that was compiled without optimizations.
#[test]
fn a_function_with_many_locals_and_some_loops_links() {
  let module = wat(&format!(
    "(module (func (local {}) {}))",
    "i32 ".repeat(2_452),
    "(loop)".repeat(53)
  ));
  linked(&[(None, &module)]);
}

#[test]
fn large_guests_link() {
  let module = wat(
    r#"(module
         (memory 1 70) (memory $second i64 1)
         (table 3 10 funcref) (table 2 (ref null func) (ref.null func))
         (type $pair (struct (field i32) (field (ref null func))))
         (rec (type $a (struct (field (ref null $b)))) (type $b (struct (field (ref null $a)))))
         (func $begin) (start $begin)
         (elem (i32.const 0) $begin $begin)
         (elem $passive func $begin)
         (data $passive "passive") (data (i32.const 8) "active") (data (memory $second) (i64.const 1) "\07")
         (func $sum (param i32) (param $acc i64) (result i64)
           (if (result i64) (i32.eqz (local.get 0))
             (then (local.get $acc))
             (else (return_call $sum (i32.sub (local.get 0) (i32.const 1))
               (i64.add (local.get $acc) (i64.extend_i32_u (local.get 0)))))))
         (func (export "run") (result i32)
           (memory.init $passive (i32.const 0) (i32.const 0) (i32.const 7))
           (data.drop $passive)
           (table.init $passive (i32.const 2) (i32.const 0) (i32.const 1))
           (i32.load8_u (i32.const 0)))
         (func (export "wide") (result i32)
           (i32x4.extract_lane 2 (i32x4.add (v128.const i32x4 1 2 3 4) (i32x4.splat (i32.const 5)))))
         (func (export "second") (result i32) (i32.load8_u $second (i64.const 1)))
         (func (export "tail") (result i64) (call $sum (i32.const 100000) (i64.const 0)))
         (func (export "object") (result i32)
           (struct.get $pair 0 (struct.new $pair (i32.const 6) (ref.func $begin))))
         (@custom "producers" "someone")
         (@custom ".debug_info" "much"))"#,
  );
  let linked = linked(&[(None, &module)]);
  for gone in [&b"producers"[..], b".debug_info"] {
    assert!(
      !linked
        .bytes
        .windows(gone.len())
        .any(|window| window == gone)
    );
  }
  let mut running = Running::new(linked);
  assert_eq!(running.number("run"), i64::from(b'p'));
  assert_eq!(running.number("wide"), 8);
  assert_eq!(running.number("second"), 7);
  assert_eq!(running.number("tail"), 5_000_050_000);
  assert_eq!(running.number("object"), 6);
}

#[test]
fn identical_types_of_two_modules_are_shared() {
  let list = "(rec
    (type $list (sub (struct (field i32) (field (ref null $list)) (field (ref null $visit)))))
    (type $visit (func (param (ref null $list)) (result i32))))";
  let a = wat(&format!(
    r#"(module (type $offset (func (param f64 f32))) {list}
         (func (export "make") (param i32) (result (ref $list))
           (struct.new $list (local.get 0) (ref.null $list) (ref.func $visit)))
         (func $visit (type $visit) (struct.get $list 0 (local.get 0)))
         (elem declare func $visit))"#
  ));
  let main = wat(&format!(
    r#"(module {list} (type $other (struct (field i32)))
         (type $longer (sub $list (struct
           (field i32) (field (ref null $list)) (field (ref null $visit)) (field i64))))
         (import "a" "make" (func $make (param i32) (result (ref $list))))
         (func (export "run") (result i32) (local $made (ref null $list))
           (local.set $made (call $make (i32.const 12)))
           (call_ref $visit (local.get $made) (struct.get $list 2 (local.get $made))))
         (func (export "cast") (result i32)
           (i32.add
             (ref.test (ref $list) (call $make (i32.const 1)))
             (i32.mul (i32.const 10) (ref.test (ref $longer) (call $make (i32.const 1)))))))"#
  ));
  let mut running = run(&[(Some("a"), &a), (None, &main)]);
  assert_eq!(running.number("run"), 12);
  assert_eq!(running.number("cast"), 1);
  // A function whose result is a subtype does not match the type, but one declared as a subtype
  // does.
  let types = "(type $f (sub (func (result (ref null any)))))
    (type $g (sub $f (func (result (ref null struct)))))";
  let a = wat(&format!(
    r#"(module {types} (type $plain (func (result (ref null struct))))
         (func (export "f") (type $g) (ref.null struct))
         (func (export "plain") (type $plain) (ref.null struct)))"#
  ));
  let importing = |name: &str| {
    wat(&format!(
      r#"(module {types} (import "a" "{name}" (func $f (type $f)))
           (func (export "run") (result i32) (ref.is_null (call $f))))"#
    ))
  };
  assert_eq!(
    run(&[(Some("a"), &a), (None, &importing("f"))]).number("run"),
    1
  );
  assert!(matches!(
    refused(&[(Some("a"), &a), (None, &importing("plain"))]),
    LinkError::WrongImportType { .. }
  ));
}

#[test]
fn references_to_exported_and_imported_functions_are_declared() {
  let a = wat(r#"(module (func (export "four") (result i32) (i32.const 4)))"#);
  let main = wat(
    r#"(module (type $t (func (result i32)))
         (import "a" "four" (func $four (result i32)))
         (export "four" (func $four))
         (func $five (export "five") (result i32) (i32.const 5))
         (func (export "run") (result i32)
           (i32.add (call_ref $t (ref.func $four)) (call_ref $t (ref.func $five)))))"#,
  );
  assert_eq!(run(&[(Some("a"), &a), (None, &main)]).number("run"), 9);
}

#[test]
fn names_survive_in_backtraces() {
  let a = wat(
    r#"(module (func $fails_here (export "fail") unreachable)
         (func $"extism-host:kernel/load_u8" (export "pretend") unreachable))"#,
  );
  let main = wat(&format!(
    r#"(module $my_plugin {IMPORTS}
         (import "a" "fail" (func $imported (result))) (import "a" "pretend" (func $pretend))
         (func $outer (export "run") (call $imported) (drop (i32.const 0)))
         (func (export "pretend") (call $pretend))
         (func $reads (export "load") (drop (call $load_u8 (i64.const 9999999)))))"#
  ));
  let mut running = run(&[(None, &main), (Some("a"), &a)]);
  let frames = |running: &mut Running, name: &str| {
    let error = running.call(name).unwrap_err();
    let backtrace = error.downcast_ref::<wasmtime::WasmBacktrace>().unwrap();
    backtrace
      .frames()
      .iter()
      .map(|frame| frame.func_name().unwrap_or("?").to_owned())
      .collect::<Vec<_>>()
  };
  assert_eq!(frames(&mut running, "run"), ["fails_here", "outer"]);
  assert_eq!(
    frames(&mut running, "load"),
    ["extism-host:kernel/unnamed_load", "reads"]
  );
  // Only the kernel's functions have such names. A function without a name gets its index in its own
  // module.
  assert_eq!(
    frames(&mut running, "pretend"),
    ["a!wasm-function[1]", "wasm-function[8]"]
  );
  let module = Module::new(engine(), &running.linked.bytes).unwrap();
  assert_eq!(module.name(), Some("my_plugin"));
}

#[test]
fn every_loop_and_every_caller_checks_for_interrupts() {
  let module = wat(
    r#"(module (table 1 funcref) (elem (i32.const 0) $indirect) (type $t (func))
         (func $leaf (result i32) (i32.const 1))
         (func $empty (loop $l (br $l)))
         (func $nested (loop $a (loop $b (loop $c (br $c)) (br $b)) (br $a)))
         (func $recursive (call $recursive))
         (func $indirect (call_indirect (type $t) (i32.const 0)))
         (func $reference (call_ref $t (ref.func $reference)))
         (func $tail (return_call $tail))
         (func $tail_indirect (return_call_indirect (type $t) (i32.const 0)))
         (func $tail_reference (return_call_ref $t (ref.func $tail_reference)))
         (func $switch (param i32) (loop $l (block $m (br_table $l $m $l (local.get 0))) (br $l)))
         (func $typed (param i32) (result i32)
           (local.get 0) (loop $l (param i32) (result i32) (br_if $l (i32.const 1))))
         (func $unreachable unreachable (loop $l (br $l)))
         (func $both (loop $l (call $leaf) (br_if $l)))
         (elem declare func $reference $tail_reference))"#,
  );
  let expected = [
    ("leaf", 0),
    ("empty", 1),
    ("nested", 3),
    ("recursive", 1),
    ("indirect", 1),
    ("reference", 1),
    ("tail", 1),
    ("tail_indirect", 1),
    ("tail_reference", 1),
    ("switch", 1),
    ("typed", 1),
    ("unreachable", 1),
    ("both", 2),
    // The kernel is ours: it has a loop, but no checks.
    ("extism-host:kernel/unnamed_load", 0),
    ("extism-host:kernel/store_u8", 0),
    ("extism-host:kernel/load_u64", 0),
    ("extism-host:kernel/input_length", 0),
  ]
  .map(|(name, count)| (name.to_owned(), count));
  let with = linked(&[(None, &module)]);
  assert_eq!(checks(&with), expected);
  Running::new(with);

  let without = InstanceSettings {
    checks: false,
    ..InstanceSettings::default()
  };
  let without = without.link(&[(None, &module)]).unwrap();
  assert!(checks(&without).iter().all(|(_, count)| *count == 0));
  assert!(
    !border(&without.bytes)
      .1
      .contains(&names::INTERRUPT.to_owned())
  );
}

#[test]
fn every_kind_of_loop_and_call_reaches_an_interrupt_check() {
  // Without a page, a check traps at once. So each guest here must reach a check.
  for body in [
    "(loop $l (br $l))",
    "(loop $a (loop $b (br $b)) (br $a))",
    "(call $run)",
    "(return_call $run)",
    "(call_indirect (type $t) (i32.const 0))",
    "(loop $l (block $m (br_table $l $m $l (i32.const 1))) (br $l))",
  ] {
    let module = wat(&format!(
      r#"(module (type $t (func)) (table 1 funcref) (elem (i32.const 0) $run)
           (func $run (export "run") {body}))"#
    ));
    let linked = linked(&[(None, &module)]);
    let module = Module::new(engine(), &linked.bytes).unwrap();
    let mut store = Store::new(engine(), ());
    let instance = Instance::new(&mut store, &module, &[]).unwrap();
    let run = instance
      .get_typed_func::<(), ()>(&mut store, &names::call(0))
      .unwrap();
    let error = run.call(&mut store, ()).unwrap_err();
    assert_eq!(
      error.downcast_ref::<wasmtime::Trap>(),
      Some(&wasmtime::Trap::MemoryOutOfBounds),
      "{body}"
    );
  }
}

#[test]
fn malformed_names_are_dropped() {
  let mut module = wat(r#"(module (func (export "run")))"#);
  // A function name that claims to be longer than the section.
  module.extend([0, 11, 4, b'n', b'a', b'm', b'e', 1, 4, 1, 0, 9, b'x']);
  let mut running = run(&[(None, &module)]);
  running.call("run").unwrap();
}

/// Corrupted modules: linking fails, or the result is valid.
#[test]
fn damaged_modules_do_no_harm() {
  let whole = [
    wat(&format!(
      r#"(module {IMPORTS} (memory 1) (table 3 funcref) (elem (i32.const 0) $begin)
           (global $g (mut i32) (i32.const 3))
           (type $pair (struct (field i32)))
           (func $begin) (start $begin)
           (func (export "_initialize"))
           (func (export "run") (result i32)
             (loop $l (br_if $l (i32.const 0)))
             (drop (call $get (i64.const 1))) (struct.get $pair 0 (struct.new $pair (i32.const 3)))))"#
    )),
    wat(r#"(module (memory 1) (table 1 funcref) (func (export "f") (result i32) (i32.const 0)))"#),
  ];
  let mut random = 1_u64;
  let mut next = |limit: usize| {
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    (random % limit as u64) as usize
  };
  let mut good = 0;
  let mut validator = wasmparser::Validator::new();
  for round in 0..6_000 {
    let mut bytes = whole[round % whole.len()].clone();
    for _ in 0..1 + next(4) {
      let place = next(bytes.len());
      match next(4) {
        0 => bytes[place] = next(256) as u8,
        1 => bytes[place] ^= 1 << next(8),
        2 => {
          bytes.insert(place, next(256) as u8);
        }
        _ => {
          bytes.remove(place);
        }
      }
    }
    let other = (Some("other"), whole[1].as_slice());
    match InstanceSettings::default().link(&[other, (None, &bytes)]) {
      Ok(linked) => {
        good += 1;
        validator.reset();
        validator
          .validate_all(&linked.bytes)
          .unwrap_or_else(|error| panic!("{error}"));
      }
      Err(LinkError::Internal(message)) => panic!("{message}"),
      Err(_) => {}
    }
  }
  assert!(good > 100, "{good}");
}

/// A plugin as a compiler writes it, if it exists on the machine that runs the tests.
#[test]
fn a_real_plugin_links() {
  let path = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/plugins/say-hello/say-hello.wasm"
  );
  let Ok(bytes) = std::fs::read(path) else {
    return;
  };
  let start = std::time::Instant::now();
  let linked = linked(&[(None, &bytes)]);
  println!("linked {} bytes in {:?}", bytes.len(), start.elapsed());
  wasmparser::validate(&linked.bytes).unwrap();
  assert!(linked.uses_wasi);
  assert!(
    linked
      .callables
      .iter()
      .any(|callable| callable.name == "say_hello")
  );
}
