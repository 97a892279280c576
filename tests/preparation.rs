//! What is refused before anything is linked, and what becomes of what is not.

mod common;

use common::{World, guest, wat};
use extism_host::plugin::prepare::{
  ExportDescription, ImportDescription, Kind, Limits, PrepareError, Prepared,
};

fn refused(modules: &[(Option<&str>, &[u8])]) -> PrepareError {
  World::new().prepare(modules).unwrap_err()
}

#[test]
fn only_modules_are_taken() {
  let module = guest("");
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
          PrepareError::InvalidWasm { module, .. } if module == "main"
      ),
      "{bytes:?}"
    );
  }
  assert_eq!(refused(&[]), PrepareError::NoMainModule);
}

#[test]
fn errors_do_not_quote_what_is_no_module() {
  let error = refused(&[(None, b"password=secret")]).to_string();
  assert!(!error.contains("secret"), "{error}");
}

#[test]
fn invalid_modules_are_refused() {
  for (section, bytes) in [
    // A start function that there is not.
    ("start", &[8, 1, 7][..]),
    // An export of a function that there is not.
    ("export", &[7, 5, 1, 1, b'f', 0, 9]),
    // A shared memory: no limit would reach it.
    ("memory", &[5, 4, 1, 3, 1, 2]),
    // Two sections in the wrong order.
    ("order", &[3, 1, 0, 1, 1, 0]),
    // A function without a body.
    ("function", &[1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0]),
  ] {
    let module = [b"\0asm\x01\0\0\0", bytes].concat();
    assert!(
      matches!(
        refused(&[(None, &module)]),
        PrepareError::InvalidWasm { .. }
      ),
      "{section}"
    );
  }
}

#[test]
fn missing_imports_are_named() {
  let missing = |import: &str| {
    let module = wat(&format!("(module (import {import}))"));
    match refused(&[(None, &module)]) {
      PrepareError::MissingImport {
        path,
        module,
        name,
        hint,
      } => {
        assert_eq!((path, hint), (vec!["main".to_owned()], ""));
        (module, name)
      }
      other => panic!("{other}"),
    }
  };
  for (module, name) in [
    ("extism:host/user", "no_such_function"),
    ("extism:host/env", "no_such_function"),
    ("env", "extism_no_such_function"),
    ("env", "extism_hostMemoryGet"),
    ("wasi_snapshot_preview1", "no_such_function"),
    ("wasi_unstable", "fd_write"),
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
fn the_way_to_a_missing_import_is_named_and_the_first_one_counts() {
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
       imports nor linked manifest items"
    )
  };
  let main = importing(&[("a", "run"), ("z", "run")]);
  let a = importing(&[("b", "run"), ("y", "run")]);
  let b = importing(&[("x", "run")]);
  let empty = importing(&[]);
  assert_eq!(
    message(&[(Some("b"), &b), (Some("a"), &a), (None, &main)]),
    lost("main\"/\"a\"/\"b", "x")
  );
  assert_eq!(
    message(&[(Some("b"), &empty), (Some("a"), &a), (None, &main)]),
    lost("main\"/\"a", "y")
  );
  // A module that the main module does not lead to.
  assert_eq!(message(&[(Some("b"), &b), (None, &empty)]), lost("b", "x"));
  // Modules in a circle are walked through once.
  let circle = importing(&[("c", "run"), ("x", "run")]);
  assert_eq!(
    message(&[(Some("c"), &circle), (None, &importing(&[("c", "run")]))]),
    lost("main\"/\"c", "x")
  );
}

#[test]
fn without_wasi_its_functions_are_missing() {
  let module = wat(
    r#"(module (import "wasi_snapshot_preview1" "fd_write"
             (func (param i32 i32 i32 i32) (result i32))))"#,
  );
  let error = World::new()
    .prepare_with(&[(None, &module)], Limits::default(), false)
    .unwrap_err();
  assert!(error.to_string().contains("useWasi: true"), "{error}");
  let module = wat(r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))))"#);
  assert!(matches!(
    World::new().prepare_with(&[(None, &module)], Limits::default(), false),
    Err(PrepareError::MissingImport { .. })
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
  ] {
    let module = wat(&format!("(module (import {import}))"));
    let a = wat(r#"(module (func (export "run")) (memory (export "memory") 1))"#);
    assert!(
      matches!(
        refused(&[(Some("a"), &a), (None, &module)]),
        PrepareError::WrongImportType { .. }
      ),
      "{import}"
    );
  }
}

#[test]
fn circles_are_named() {
  let importing = |from: &str| {
    wat(&format!(
      r#"(module (import "{from}" "run" (func)) (func (export "run")))"#
    ))
  };
  let path = |modules: &[(Option<&str>, &[u8])]| match refused(modules) {
    PrepareError::CircularLinking { path } => path.join(" "),
    other => panic!("{other}"),
  };
  assert_eq!(path(&[(None, &importing("main"))]), "main main");
  assert_eq!(
    path(&[
      (Some("a"), &importing("b")),
      (Some("b"), &importing("c")),
      (Some("c"), &importing("b")),
      (None, &importing("a")),
    ]),
    "b c b"
  );
  assert_eq!(
    path(&[(Some("a"), &importing("main")), (None, &importing("a"))]),
    "a main a"
  );
}

#[test]
fn long_chains_link() {
  let count = 300;
  let modules = (0..count)
    .map(|number| {
      let import = if number + 1 < count {
        format!(r#"(import "m{}" "run" (func))"#, number + 1)
      } else {
        String::new()
      };
      (
        format!("m{number}"),
        wat(&format!(r#"(module {import} (func (export "run")))"#)),
      )
    })
    .collect::<Vec<_>>();
  let main = wat(r#"(module (import "m0" "run" (func)) (func (export "run")))"#);
  let mut sources = modules
    .iter()
    .map(|(name, bytes)| (Some(name.as_str()), bytes.as_slice()))
    .collect::<Vec<_>>();
  sources.push((None, &main));
  let report = World::new().run(&sources, &[("run", b"")]);
  assert_eq!(report.outputs(), [""]);
}

#[test]
fn names_are_checked() {
  let empty = wat("(module)");
  for name in ["extism-host:guard", "extism-host:", "extism:host/env"] {
    assert_eq!(
      refused(&[(Some(name), &empty), (None, &empty)]),
      PrepareError::ReservedName {
        name: name.to_owned()
      }
    );
  }
  let export = wat(r#"(module (func (export "extism-host:start")))"#);
  assert_eq!(
    refused(&[(None, &export)]),
    PrepareError::ReservedName {
      name: "extism-host:start".to_owned()
    }
  );
  let duplicate = |module: &str| PrepareError::DuplicateModule {
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
  assert_eq!(
    refused(&[(Some("main"), &empty), (None, &empty)]),
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
             (func (export "pair") (result i32 i32) (i32.const 0) (i32.const 0))
             (func (export "reference") (result externref) (ref.null extern))
             (memory (export "memory") 1)
             (table (export "table") 1 funcref)
             (global (export "global") i32 (i32.const 0)))"#,
  );
  let prepared = World::new().prepare(&[(None, &module)]).unwrap();
  assert_eq!(
    prepared.callable.keys().collect::<Vec<_>>(),
    ["_start", "code", "plain"]
  );
  assert_eq!(prepared.exports.len(), 13);
  assert_eq!(
    prepared.exports[12],
    ExportDescription {
      name: "global".to_owned(),
      kind: Kind::Global
    }
  );
  assert_eq!(
    prepared.imports,
    [ImportDescription {
      module: "extism:host/env".to_owned(),
      name: "input_length".to_owned(),
      kind: Kind::Function
    }]
  );
}

#[test]
fn initial_sizes_are_limited() {
  let limits = Limits {
    memory_pages: 100,
    growth_pages: None,
    table_elements: 1000,
  };
  let prepare =
    |modules: &[(Option<&str>, &[u8])]| World::new().prepare_with(modules, limits, true);
  let memory = |pages: u64| wat(&format!("(module (memory {pages}))"));
  assert_eq!(prepare(&[(None, &memory(83))]).unwrap().growth_pages, 0);
  assert_eq!(prepare(&[(None, &memory(3))]).unwrap().growth_pages, 80);
  assert_eq!(
    prepare(&[(None, &memory(84))]).unwrap_err(),
    PrepareError::TooMuchMemory {
      module: "main".to_owned(),
      needed: 84,
      allowed: 83
    }
  );
  assert!(prepare(&[(Some("a"), &memory(50)), (None, &memory(50))]).is_err());
  let table = wat("(module (table 600 funcref) (table 500 funcref))");
  assert_eq!(
    prepare(&[(None, &table)]).unwrap_err(),
    PrepareError::TooManyTableElements {
      module: "main".to_owned(),
      needed: 500,
      allowed: 400
    }
  );
  assert_eq!(
    World::new()
      .prepare_with(
        &[(None, &memory(0))],
        Limits {
          memory_pages: 16,
          growth_pages: None,
          table_elements: 0
        },
        true
      )
      .unwrap_err(),
    PrepareError::LimitTooLow { pages: 16 }
  );
}

#[test]
fn a_limit_of_growth_leaves_initial_sizes_alone() {
  let limits = Limits {
    memory_pages: 100,
    growth_pages: Some(2),
    table_elements: 0,
  };
  let prepare = |pages: u64| {
    let memory = wat(&format!("(module (memory {pages}))"));
    let prepared = World::new().prepare_with(&[(None, &memory)], limits, true);
    prepared.map(|prepared| prepared.growth_pages)
  };
  assert_eq!(prepare(0), Ok(2));
  assert_eq!(prepare(83), Ok(2));
  assert!(matches!(
    prepare(84),
    Err(PrepareError::TooMuchMemory { .. })
  ));
}

#[test]
fn what_is_written_is_valid() {
  let module = wat(
    r#"(module
             (import "extism:host/env" "alloc" (func (param i64) (result i64)))
             (import "env" "hostMemoryGet" (func $get (param i64) (result i64)))
             (type $pair (struct (field i32) (field (ref null func))))
             (memory 1 70)
             (memory i64 1)
             (table 3 10 funcref)
             (table 2 (ref null func) (ref.null func))
             (global (mut i32) (i32.const 1))
             (func $begin)
             (start $begin)
             (elem (i32.const 0) $get $begin)
             (data "passive")
             (data (i32.const 8) "active")
             (func (export "run") (result i32)
               (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 7))
               (i32.const 0))
             (@custom "producers" "someone")
             (@custom ".debug_info" "much"))"#,
  );
  let prepared = World::new().prepare(&[(None, &module)]).unwrap();
  validate(&prepared);
  let user = &prepared.modules[2].bytes;
  for gone in [&b"producers"[..], b".debug_info"] {
    assert!(!user.windows(gone.len()).any(|window| window == gone));
  }
}

/// Each prepared module on its own, bodies included.
fn validate(prepared: &Prepared) {
  for module in &prepared.modules {
    wasmparser::validate(&module.bytes).unwrap_or_else(|error| panic!("{}: {error}", module.name));
  }
}

/// Bytes that were a module once: an error, or a module that is valid.
#[test]
fn damaged_modules_do_no_harm() {
  let world = World::new();
  let whole = [
    guest(
      r#"(func $begin) (start $begin)
               (func (export "_initialize"))
               (table 3 funcref) (elem (i32.const 0) $begin)
               (func (export "run") (result i32) (i32.const 0))"#,
    ),
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
    if let Ok(prepared) = world.prepare(&[(None, &bytes)]) {
      good += 1;
      // Bodies are not validated by the preparation.
      if wasmparser::validate(&bytes).is_ok() {
        validate(&prepared);
      }
    }
  }
  assert!(good > 100, "{good}");
}
