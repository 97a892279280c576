//! Guests that attack the host. A successful attack may crash or hang the process, so each runs in a
//! child process. It must end with an error or an empty value, and the process must be sound
//! afterwards: an honest call follows each attack.

mod common;

use common::{Ending, Report, Use, World, guest, in_child, wat};
use extism_host::plugin::instance::CallError;
use extism_host::plugin::link::LinkError;

/// How an attack ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
  /// The kernel or WebAssembly stops it.
  Trap,
  /// A host function finds no block at the offset, and fails.
  Refused,
  /// The call succeeds without an output.
  Empty,
  /// The call fails with the message "ok", which the attack has set.
  Message,
}

fn outcome(report: &Report) -> Outcome {
  match (&report.ending, report.results.first()) {
    (Ending::Trapped(message), None) => {
      assert!(!message.contains("internal"), "{message}");
      Outcome::Trap
    }
    (Ending::HostFunction(_), None) => Outcome::Refused,
    (Ending::Stopped, Some(result)) => match result {
      Ok(output) if output.is_empty() => Outcome::Empty,
      Err(CallError::Failed {
        message: Some(message),
        ..
      }) if message == "ok" => Outcome::Message,
      other => panic!("{other:?}"),
    },
    other => panic!("{other:?}"),
  }
}

/// Runs `body` as the function `attack`, with 16 bytes of input and "ok", "color", "hello" in
/// memory.
fn attack(body: &str) -> Report {
  let attacker = World::new().load(&[(None, &attacker(body))]);
  let report = attacker.run(&[("attack", b"sixteen bytes in")]);
  let after = attacker.run(&[("echo", b"still here")]);
  assert_eq!(after.outputs(), ["still here"]);
  report
}

fn attacker(body: &str) -> Vec<u8> {
  guest(&format!(
    r#"(data (i32.const 0) "ok")
           (data (i32.const 16) "color")
           (data (i32.const 32) "hello")
           (func $color (result i64) (call $block (i32.const 16) (i32.const 5)))
           (func $hello (result i64) (call $block (i32.const 32) (i32.const 5)))
           (func $ok (result i64) (call $block (i32.const 0) (i32.const 2)))
           ;; Writes 64 bytes of a forged header from here on.
           (func $scribble (param $at i64) (local $index i64)
             (loop $next
               (call $store_u8 (i64.add (local.get $at) (local.get $index)) (i32.const 0x7f))
               (local.set $index (i64.add (local.get $index) (i64.const 1)))
               (br_if $next (i64.lt_u (local.get $index) (i64.const 64)))))
           (func (export "echo") (call $output (call $input_offset)))
           (func $attack_again (export "attack") (local $p i64) (local $q i64) (local $r i64) {body})"#
  ))
}

fn check(cases: &[(&str, Outcome)]) {
  for (body, expected) in cases {
    assert_eq!(outcome(&attack(body)), *expected, "{body}");
  }
}

/// Every function that takes an offset, with `$p` as the offset.
const TAKES_OFFSET: [&str; 14] = [
  "(drop (call $length (local.get $p)))",
  "(drop (call $length_unsafe (local.get $p)))",
  "(call $free (local.get $p))",
  "(drop (call $host_memory_get (local.get $p)))",
  "(drop (call $config_get (local.get $p)))",
  "(drop (call $var_get (local.get $p)))",
  "(call $var_set (local.get $p) (i64.const 0))",
  "(call $var_set (call $color) (local.get $p))",
  "(call $log_trace (local.get $p))",
  "(call $log_debug (local.get $p))",
  "(call $log_info (local.get $p))",
  "(call $log_warn (local.get $p))",
  "(call $log_error (local.get $p))",
  "(call $error_set (local.get $p)) (call $error_set (i64.const 0))",
];

#[test]
fn forged_header() {
  in_child("forged_header", || {
    check(&[
      // Where another allocator would keep its header.
      (
        "(drop (call $alloc (i64.const 1)))
                 (local.set $p (call $alloc (i64.const 8)))
                 (call $store_u8 (i64.sub (local.get $p) (i64.const 1)) (i32.const 0x7f))
                 (drop (call $host_memory_get (local.get $p)))",
        Outcome::Trap,
      ),
      (
        "(drop (call $alloc (i64.const 1)))
                 (local.set $p (call $alloc (i64.const 8)))
                 (call $store_u64 (i64.sub (local.get $p) (i64.const 8)) (i64.const -1))
                 (call $log_error (local.get $p))",
        Outcome::Trap,
      ),
      // A word that starts inside the block and ends after it.
      (
        "(local.set $p (call $alloc (i64.const 8)))
                 (drop (call $alloc (i64.const 8)))
                 (call $store_u64 (i64.add (local.get $p) (i64.const 1)) (i64.const -1))",
        Outcome::Trap,
      ),
      (
        "(local.set $p (call $alloc (i64.const 7)))
                 (call $store_u64 (local.get $p) (i64.const -1))",
        Outcome::Trap,
      ),
      // The byte right after it.
      (
        "(local.set $p (call $alloc (i64.const 8)))
                 (call $store_u8 (i64.add (local.get $p) (i64.const 8)) (i32.const 1))",
        Outcome::Trap,
      ),
      // The start of the kernel's memory, the end of the address space, and addresses that wrap.
      (
        "(call $store_u8 (i64.const 0) (i32.const 1))",
        Outcome::Trap,
      ),
      (
        "(call $store_u64 (i64.const 1) (i64.const -1))",
        Outcome::Trap,
      ),
      (
        "(call $store_u64 (i64.const -1) (i64.const -1))",
        Outcome::Trap,
      ),
      (
        "(call $store_u64 (i64.const -8) (i64.const -1))",
        Outcome::Trap,
      ),
      (
        "(local.set $p (call $alloc (i64.const 8)))
                 (call $store_u8 (i64.add (local.get $p) (i64.const 0x100000000)) (i32.const 1))",
        Outcome::Trap,
      ),
      (
        "(call $store_u8 (call $memory_bytes) (i32.const 1))",
        Outcome::Trap,
      ),
      // The byte right after the input, which fills its block.
      (
        "(drop (call $load_u8 (i64.add (call $input_offset) (i64.const 16))))",
        Outcome::Trap,
      ),
      // Before, between and after blocks, when another block was used last.
      (
        "(local.set $p (call $alloc (i64.const 8)))
                 (local.set $q (call $alloc (i64.const 8)))
                 (drop (call $load_u64 (local.get $p)))
                 (call $store_u8 (i64.sub (local.get $q) (i64.const 1)) (i32.const 1))",
        Outcome::Trap,
      ),
      (
        "(call $store_u8 (i64.sub (call $input_offset) (i64.const 1)) (i32.const 1))",
        Outcome::Trap,
      ),
    ]);
  });
}

#[test]
fn forged_chain() {
  in_child("forged_chain", || {
    // A header forged inside one of the guest's own blocks: status active, sizes huge or zero. No block
    // starts after it.
    for header in [
      "(i64.const 0x7fffffff00000001)",
      "(i64.const 1)",
      "(i64.const -1)",
    ] {
      for function in TAKES_OFFSET {
        let report = attack(&format!(
          "(local.set $p (call $alloc (i64.const 256)))
                     (call $store_u64 (i64.add (local.get $p) (i64.const 52)) {header})
                     (call $store_u64 (i64.add (local.get $p) (i64.const 60)) {header})
                     (local.set $p (i64.add (local.get $p) (i64.const 64)))
                     {function}"
        ));
        let expected = if function.contains("error_set") {
          Outcome::Trap
        } else if ["length", "free", "host_memory_get"]
          .iter()
          .any(|name| function.contains(name))
        {
          Outcome::Empty
        } else {
          Outcome::Refused
        };
        assert_eq!(outcome(&report), expected, "{function}");
      }
    }
  });
}

#[test]
fn forged_after_error_set() {
  in_child("forged_after_error_set", || {
    check(&[
      (
        "(drop (call $alloc (i64.const 1)))
                 (local.set $p (call $ok))
                 (call $error_set (local.get $p))
                 (call $store_u8 (i64.sub (local.get $p) (i64.const 1)) (i32.const 0x7f))",
        Outcome::Trap,
      ),
      // The host reads the error after the call: it must not have been freed and reused.
      (
        "(local.set $p (call $ok))
                 (call $error_set (local.get $p))
                 (call $free (local.get $p))
                 (local.set $q (call $alloc (i64.const 2)))
                 (call $scribble (local.get $q))",
        Outcome::Trap,
      ),
      (
        "(local.set $p (call $ok))
                 (call $error_set (local.get $p))
                 (call $free (local.get $p))
                 (local.set $q (call $alloc (i64.const 2)))
                 (call $store_u8 (local.get $q) (i32.const 0x7f))",
        Outcome::Message,
      ),
      (
        "(call $error_set (call $ok)) (call $reset)",
        Outcome::Message,
      ),
      (
        "(call $error_set (i64.add (call $ok) (i64.const 1)))",
        Outcome::Trap,
      ),
      (
        "(local.set $p (call $ok)) (call $free (local.get $p))
                 (call $error_set (local.get $p))",
        Outcome::Trap,
      ),
      ("(call $error_set (i64.const -1))", Outcome::Trap),
      ("(call $error_set (i64.const 1))", Outcome::Trap),
    ]);
  });
}

#[test]
fn sizes_at_the_limits() {
  in_child("sizes_at_the_limits", || {
    // Not a block: nothing may be read or written there, and the host finds no block.
    for size in [
      "0",
      "-1",
      "-2",
      "-12",
      "-64",
      "0x80000000",
      "0xffffffff",
      "0x100000000",
      "0x100000008",
      "0x1000000000000",
      "0x1000000000008",
      "0x7fffffffffffffff",
      "0x8000000000000000",
      "0xffffffff00000000",
      "0xffffffff00000008",
    ] {
      check(&[
        (
          &format!(
            "(local.set $p (call $alloc (i64.const {size})))
                         (if (i64.ne (local.get $p) (i64.const 0)) (then (unreachable)))
                         (call $output_set (local.get $p) (i64.const 0))
                         (call $error_set (local.get $p))
                         (call $log_error (local.get $p))
                         (drop (call $host_memory_get (local.get $p)))"
          ),
          Outcome::Empty,
        ),
        (
          &format!(
            "(local.set $p (call $alloc (i64.const {size})))
                         (call $output_set (local.get $p) (i64.const {size}))
                         (call $store_u8 (local.get $p) (i32.const 1))"
          ),
          Outcome::Trap,
        ),
      ]);
    }
    // As large as possible: more than the instance's limit.
    let report = attack("(drop (call $alloc (i64.const 0x7fffffff)))");
    assert_eq!(report.ending, Ending::OutOfMemory);
  });
}

/// The kernel computes the remaining space by subtraction. If that ever wrapped, the blocks after that
/// would have no memory.
#[test]
fn blocks_end_at_the_end_of_a_page() {
  in_child("blocks_end_at_the_end_of_a_page", || {
    let plugin = World::new().load(&[(
      None,
      &attacker(
        "(local.set $r (call $input_load_u64 (i64.const 0)))
                 (local.set $p (call $alloc (local.get $r)))
                 (local.set $q (call $alloc (i64.const 3000000)))
                 (call $store_u8 (i64.add (local.get $q) (i64.const 2999999)) (i32.const 1))
                 (drop (call $load_u64 (i64.add (local.get $q) (i64.const 2999992))))
                 (call $store_u8
                   (i64.add (local.get $p) (i64.sub (local.get $r) (i64.const 1)))
                   (i32.const 1))
                 (drop (call $host_memory_get (local.get $q)))
                 (call $log_error (local.get $q))",
      ),
    )]);
    for page in [1, 2, 16, 17, 18, 64] {
      for distance in 60..200 {
        let size: u64 = page * 65536 - distance;
        let report = plugin.run(&[("attack", &size.to_le_bytes())]);
        assert_eq!(outcome(&report), Outcome::Empty, "{page} {distance}");
      }
    }
  });
}

#[test]
fn frees_by_the_host() {
  in_child("frees_by_the_host", || {
    // Extism's built-in functions free their arguments. The attack then writes into that range after
    // another block has been put there: to a place that was once a header.
    let function = [
      "(drop (call $config_get (local.get $p)))",
      "(drop (call $var_get (local.get $p)))",
      "(call $var_set (local.get $p) (i64.const 0))",
      "(call $var_set (call $color) (local.get $p))",
      "(call $log_trace (local.get $p))",
      "(call $log_debug (local.get $p))",
      "(call $log_info (local.get $p))",
      "(call $log_warn (local.get $p))",
      "(call $log_error (local.get $p))",
      "(drop (call $host_memory_get (local.get $p)))",
    ];
    for function in function {
      // Writes over the whole block are allowed: it still belongs to the guest, and contains no header.
      check(&[(
                &format!(
                    "(local.set $p (call $alloc (i64.const 300)))
                     {function}
                     (local.set $q (call $alloc (i64.const 100)))
                     (local.set $r (call $alloc (i64.const 100)))
                     (loop $next
                       (call $scribble (local.get $p))
                       (local.set $p (i64.add (local.get $p) (i64.const 1)))
                       (br_if $next (i64.lt_u
                         (local.get $p)
                         (i64.sub (local.get $q) (i64.const 128)))))
                     (drop (call $host_memory_get (local.get $q)))
                     (call $log_error (local.get $r))
                     (if (i64.ne (call $length (local.get $q)) (i64.const 100)) (then (unreachable)))
                     (if (i64.ne (call $length (local.get $r)) (i64.const 100)) (then (unreachable)))"
                ),
                Outcome::Empty,
            )]);
      // Blocks that the guest frees itself are gone.
      check(&[(
        &format!(
          "(local.set $p (call $alloc (i64.const 300)))
                     {function}
                     (call $free (local.get $p))
                     (local.set $q (call $alloc (i64.const 100)))
                     (local.set $r (call $alloc (i64.const 100)))
                     (call $scribble (i64.add (local.get $p) (i64.const 150)))"
        ),
        Outcome::Trap,
      )]);
    }
    check(&[(
      "(local.set $p (call $color))
             (drop (call $http_request (local.get $p) (local.get $p)))",
      Outcome::Refused,
    )]);
  });
}

#[test]
fn outputs_outside_blocks() {
  in_child("outputs_outside_blocks", || {
    for (offset, length) in [
      ("(local.get $p)", "(i64.const 9)"),
      ("(local.get $p)", "(i64.const -1)"),
      ("(local.get $p)", "(i64.const 0x100000000)"),
      ("(i64.add (local.get $p) (i64.const 8))", "(i64.const 1)"),
      ("(i64.add (local.get $p) (i64.const 8))", "(i64.const -4)"),
      ("(i64.add (local.get $p) (i64.const 4))", "(i64.const -4)"),
      ("(i64.add (local.get $p) (i64.const 4))", "(i64.const 5)"),
      ("(i64.sub (local.get $p) (i64.const 1))", "(i64.const 1)"),
      ("(i64.sub (local.get $p) (i64.const 1))", "(i64.const 9)"),
      (
        "(i64.add (local.get $p) (i64.const 0x100000000))",
        "(i64.const 8)",
      ),
      ("(i64.const 0)", "(i64.const 1)"),
      ("(i64.const 0)", "(i64.const -1)"),
      ("(i64.const -1)", "(i64.const 1)"),
      ("(i64.const -1)", "(i64.const 2)"),
      ("(i64.const -8)", "(i64.const 16)"),
      ("(i64.const 1)", "(i64.const 64)"),
      ("(call $memory_bytes)", "(i64.const 1)"),
      (
        "(i64.const 0x7fffffffffffffff)",
        "(i64.const 0x7fffffffffffffff)",
      ),
    ] {
      check(&[(
        &format!(
          "(drop (call $alloc (i64.const 1)))
                     (local.set $p (call $alloc (i64.const 8)))
                     (drop (call $alloc (i64.const 8)))
                     (call $output_set {offset} {length})"
        ),
        Outcome::Trap,
      )]);
    }
    check(&[
      (
        "(local.set $p (call $ok)) (call $free (local.get $p))
                 (call $output_set (local.get $p) (i64.const 2))",
        Outcome::Trap,
      ),
      (
        "(call $output_set (i64.const -1) (i64.const 0))",
        Outcome::Empty,
      ),
      (
        "(call $output_set (i64.const 5) (i64.const 0))",
        Outcome::Empty,
      ),
    ]);
    // An output may start inside a block. If that block is freed, it still exists when the host reads
    // the output.
    let report = attack(
      "(local.set $p (call $color))
             (call $output_set (i64.add (local.get $p) (i64.const 2)) (i64.const 3))
             (call $free (local.get $p))
             (local.set $q (call $alloc (i64.const 5)))
             (call $store_u8 (i64.add (local.get $q) (i64.const 3)) (i32.const 0x7f))",
    );
    assert_eq!(report.outputs(), ["lor"]);
  });
}

#[test]
fn invalid_frees() {
  in_child("invalid_frees", || {
    check(&[
            // Twice: the second call is ignored.
            (
                "(local.set $p (call $color)) (call $free (local.get $p)) (call $free (local.get $p))",
                Outcome::Empty,
            ),
            // Twice, with another block at the same offset in between: that block is freed, once.
            (
                "(local.set $p (call $alloc (i64.const 64))) (call $free (local.get $p))
                 (local.set $q (call $alloc (i64.const 64)))
                 (call $free (local.get $p)) (call $free (local.get $p))
                 (call $free (local.get $q))
                 (if (i64.ne (call $length (local.get $q)) (i64.const 0)) (then (unreachable)))",
                Outcome::Empty,
            ),
            // Not a block: ignored.
            (
                "(local.set $p (call $color))
                 (call $free (i64.add (local.get $p) (i64.const 1)))
                 (call $free (i64.sub (local.get $p) (i64.const 12)))
                 (call $free (i64.add (local.get $p) (i64.const 0x100000000)))
                 (call $free (i64.const 0)) (call $free (i64.const 1)) (call $free (i64.const 77))
                 (call $free (i64.const -1)) (call $free (i64.const 0x8000000000000000))
                 (call $free (call $memory_bytes))
                 (if (i64.ne (call $length (local.get $p)) (i64.const 5)) (then (unreachable)))",
                Outcome::Empty,
            ),
            // The input: ignored.
            (
                "(call $free (call $input_offset))
                 (local.set $p (call $alloc (i64.const 16)))
                 (if (i64.eq (local.get $p) (call $input_offset)) (then (unreachable)))
                 (if (i32.ne (call $input_load_u8 (i64.const 0)) (i32.const 115)) (then (unreachable)))
                 (if (i64.ne (call $length (call $input_offset)) (i64.const 16)) (then (unreachable)))",
                Outcome::Empty,
            ),
            // Reading and writing freed blocks.
            (
                "(local.set $p (call $color)) (call $free (local.get $p))
                 (drop (call $load_u8 (local.get $p)))",
                Outcome::Trap,
            ),
            (
                "(local.set $p (call $color)) (call $free (local.get $p))
                 (call $store_u8 (local.get $p) (i32.const 1))",
                Outcome::Trap,
            ),
            (
                "(local.set $p (call $color)) (call $free (local.get $p))
                 (call $log_error (local.get $p))",
                Outcome::Refused,
            ),
        ]);
  });
}

#[test]
fn guests_calling_host_only_functions() {
  in_child("guests_calling_host_only_functions", || {
    check(&[
            // Nothing happens: the blocks and the input stay.
            (
                "(local.set $p (call $color)) (call $reset)
                 (if (i64.ne (call $length (local.get $p)) (i64.const 5)) (then (unreachable)))
                 (if (i64.ne (call $input_length) (i64.const 16)) (then (unreachable)))
                 (call $store_u8 (local.get $p) (i32.const 1))",
                Outcome::Empty,
            ),
            (
                "(call $input_set (i64.const 0) (i64.const -1))
                 (call $input_set (i64.const -8) (i64.const 16))
                 (if (i64.ne (call $input_length) (i64.const 16)) (then (unreachable)))
                 (drop (call $input_load_u8 (i64.const 0x7fffffff)))",
                Outcome::Empty,
            ),
            // Past the input there are zeros.
            (
                "(if (i32.ne (call $input_load_u8 (i64.const 16)) (i32.const 0)) (then (unreachable)))
                 (if (i32.ne (call $input_load_u8 (i64.const -1)) (i32.const 0)) (then (unreachable)))
                 (if (i64.ne (call $input_load_u64 (i64.const 9)) (i64.const 0)) (then (unreachable)))
                 (if (i64.ne (call $input_load_u64 (i64.const -1)) (i64.const 0)) (then (unreachable)))
                 (if (i64.ne (call $input_load_u64 (i64.const -8)) (i64.const 0)) (then (unreachable)))
                 (if (i64.eq (call $input_load_u64 (i64.const 8)) (i64.const 0)) (then (unreachable)))",
                Outcome::Empty,
            ),
            (
                "(drop (call $output_offset)) (drop (call $output_length)) (drop (call $error_get))
                 (drop (call $memory_bytes)) (drop (call $get_log_level))
                 (drop (call $http_status_code)) (drop (call $http_headers))",
                Outcome::Empty,
            ),
        ]);
  });
}

#[test]
fn garbage_offsets() {
  in_child("garbage_offsets", || {
    // The only blocks are the input, 16 bytes from 64, and those that the functions create.
    let offsets = [
      1_i64,
      16,
      63,
      65,
      71,
      72,
      73,
      79,
      81,
      65472,
      65536,
      -1,
      -12,
      0x7fff_ffff,
      0xffff_ffff,
      0x1_0000_0000,
      0x1_0000_0040,
      i64::MAX,
      i64::MIN,
      i64::MIN + 64,
    ];
    let run = |function: &str, expected: &dyn Fn(i64) -> Outcome| {
      let plugin = World::new().load(&[(
        None,
        &attacker(&format!(
          "(local.set $p (call $input_load_u64 (i64.const 0))) {function}"
        )),
      )]);
      for offset in offsets {
        let mut input = [0; 16];
        input[..8].copy_from_slice(&offset.to_le_bytes());
        let report = plugin.run(&[("attack", &input)]);
        assert_eq!(outcome(&report), expected(offset), "{offset} {function}");
      }
      let after = plugin.run(&[("echo", b"still here")]);
      assert_eq!(after.outputs(), ["still here"]);
    };
    for function in TAKES_OFFSET {
      let expected = if function.contains("error_set") {
        Outcome::Trap
      } else if ["length", "free", "host_memory_get"]
        .iter()
        .any(|name| function.contains(name))
      {
        Outcome::Empty
      } else {
        Outcome::Refused
      };
      run(function, &|_| expected);
    }
    let in_input = |size: i64| {
      move |offset: i64| {
        if offset >= 64 && offset <= 80 - size {
          Outcome::Empty
        } else {
          Outcome::Trap
        }
      }
    };
    run("(drop (call $load_u8 (local.get $p)))", &in_input(1));
    run("(drop (call $load_u64 (local.get $p)))", &in_input(8));
    run(
      "(call $store_u8 (local.get $p) (i32.const 1))",
      &in_input(1),
    );
    run(
      "(call $store_u64 (local.get $p) (i64.const 1))",
      &in_input(8),
    );
    run(
      "(call $output_set (local.get $p) (i64.const 100))",
      &in_input(100),
    );
  });
}

#[test]
fn inner_names() {
  let world = World::new();
  for (module, name) in [
    ("extism-host:kernel", "alloc"),
    ("extism-host:function", "0"),
    ("extism-host:wasi/1", "fd_write"),
    ("extism-host:", ""),
  ] {
    let guest = wat(&format!(r#"(module (import "{module}" "{name}" (func)))"#));
    assert_eq!(
      world.link(&[(None, &guest)]).unwrap_err(),
      LinkError::ReservedName {
        name: module.to_owned()
      }
    );
  }
  // What the linker adds is not accessible under the kernel's name either.
  for name in [
    "blocks",
    "table",
    "memory",
    "extism-host:blocks",
    "extism-host:table",
    "extism-host:interrupt",
    "extism-host:init/0",
    "extism-host:call/0",
    "function/0",
    "0",
    "__heap_base",
  ] {
    for (module, prefix) in [
      ("extism:host/env", ""),
      ("extism:host/user", ""),
      ("env", ""),
      ("env", "extism_"),
      ("main", ""),
    ] {
      let guest = wat(&format!(
        r#"(module (import "{module}" "{prefix}{name}" (func)))"#
      ));
      assert!(
        matches!(
          world.link(&[(None, &guest)]).unwrap_err(),
          LinkError::MissingImport { .. }
        ),
        "{module} {name}"
      );
    }
  }
  for import in [
    r#""extism:host/env" "memory" (memory 1)"#,
    r#""extism:host/env" "blocks" (memory 1)"#,
    r#""extism:host/env" "table" (memory 1)"#,
    r#""extism:host/env" "extism-host:interrupt" (memory 0)"#,
    r#""extism:host/env" "extism_context" (global (mut externref))"#,
    r#""extism:host/env" "alloc" (memory 1)"#,
    r#""extism:host/env" "alloc" (func (param i32) (result i32))"#,
  ] {
    let guest = wat(&format!("(module (import {import}))"));
    assert!(world.link(&[(None, &guest)]).is_err(), "{import}");
  }
}

#[test]
fn blocks_of_another_call() {
  in_child("blocks_of_another_call", || {
    let plugin = World::new().load(&[(
      None,
      &guest(
        r#"(global $kept (mut i64) (i64.const 0))
                   (func (export "keep")
                     (global.set $kept (call $alloc (i64.const 100)))
                     (call $store_u8 (global.get $kept) (i32.const 1)))
                   (func (export "length") (result i32)
                     (i32.wrap_i64 (call $length (global.get $kept))))
                   (func (export "store")
                     (call $store_u8 (global.get $kept) (i32.const 1)))
                   (func (export "output")
                     (call $output_set (global.get $kept) (i64.const 8)))
                   (func (export "error") (call $error_set (global.get $kept)))
                   (func (export "ended") (result i32)
                     (i32.wrap_i64 (i64.add
                       (i64.add (call $output_offset) (call $output_length))
                       (i64.add (call $input_offset) (i64.add (call $input_length)
                         (call $error_get))))))
                   (func (export "set")
                     (call $error_set (global.get $kept))
                     (call $output_set (global.get $kept) (i64.const 8)))"#,
      ),
    )]);
    for function in ["store", "output", "error", "set"] {
      let report = plugin.run(&[("keep", b""), (function, b"")]);
      assert!(report.is_trapped(), "{function}: {report:?}");
      assert_eq!(report.results.len(), 1);
    }
    let report = plugin.run(&[("keep", b"x"), ("length", b""), ("ended", b"")]);
    assert_eq!(report.outputs(), ["", "", ""]);
  });
}

/// A block in place of a larger freed one: the bytes after its end are inaccessible.
#[test]
fn blocks_that_reuse_freed_memory() {
  in_child("blocks_that_reuse_freed_memory", || {
    let begin = "(drop (call $alloc (i64.const 1)))
             (local.set $p (call $alloc (i64.const 1000)))
             (local.set $q (call $alloc (i64.const 64)))
             (call $free (local.get $p))
             (local.set $r (call $alloc (i64.const 600)))
             (if (i64.ne (local.get $r) (local.get $p)) (then (unreachable)))";
    for (body, expected) in [
      ("", Outcome::Empty),
      (
        "(call $store_u8 (i64.add (local.get $r) (i64.const 600)) (i32.const 1))",
        Outcome::Trap,
      ),
      (
        "(call $store_u8 (i64.sub (local.get $r) (i64.const 1)) (i32.const 1))",
        Outcome::Trap,
      ),
      (
        "(call $store_u64 (i64.add (local.get $r) (i64.const 593)) (i64.const 1))",
        Outcome::Trap,
      ),
      (
        "(call $store_u64 (i64.add (local.get $r) (i64.const 592)) (i64.const 1))",
        Outcome::Empty,
      ),
      (
        "(call $output_set (local.get $p) (i64.const 601))",
        Outcome::Trap,
      ),
      (
        "(call $free (local.get $p)) (call $free (local.get $r)) (call $free (local.get $r))
                 (local.set $r (call $alloc (i64.const 100)))
                 (call $scribble (local.get $r))
                 (local.set $p (call $alloc (i64.const 700)))
                 (call $scribble (local.get $p))
                 (if (i64.ne (call $length (local.get $p)) (i64.const 700)) (then (unreachable)))
                 (if (i64.ne (call $length (local.get $q)) (i64.const 64)) (then (unreachable)))
                 (call $log_error (local.get $q))",
        Outcome::Empty,
      ),
      // Nothing of the previous block is left in it.
      (
        "(call $scribble (local.get $r)) (call $free (local.get $r))
                 (local.set $r (call $alloc (i64.const 1000)))
                 (if (i64.ne (local.get $r) (local.get $p)) (then (unreachable)))
                 (if (i64.ne (call $load_u64 (local.get $r)) (i64.const 0)) (then (unreachable)))",
        Outcome::Empty,
      ),
    ] {
      check(&[(&format!("{begin} {body}"), expected)]);
    }
  });
}

/// Every function that takes an address in a block, with `$p` as the address. All trap outside blocks.
const TAKES_PLACE: [&str; 6] = [
  "(drop (call $load_u8 (local.get $p)))",
  "(drop (call $load_u64 (local.get $p)))",
  "(call $store_u8 (local.get $p) (i32.const 1))",
  "(call $store_u64 (local.get $p) (i64.const 1))",
  "(call $output_set (local.get $p) (i64.const 1))",
  "(call $error_set (local.get $p))",
];

/// A live block whose offset is moved by this many bytes: where 32 bits wrap, and where 64 bits wrap.
const MOVED: [&str; 12] = [
  "0x100000000",
  "0x200000000",
  "0x7fffffff00000000",
  "0x8000000000000000",
  "0xffffffff00000000",
  "0xffffffff80000000",
  "0x80000000",
  "0xfffffff8",
  "0xfffffffffffffff8",
  "0xffffffffffffffff",
  "0x0000ffff00000000",
  "0x4000000000000000",
];

#[test]
fn offsets_that_wrap() {
  in_child("offsets_that_wrap", || {
    let begin = "(local.set $q (call $alloc (i64.const 8)))
                 (local.set $p (call $alloc (i64.const 64)))
                 (drop (call $load_u64 (local.get $p)))";
    for moved in MOVED {
      let moved = format!("(local.set $p (i64.add (local.get $p) (i64.const {moved})))");
      for function in TAKES_PLACE {
        check(&[(&format!("{begin} {moved} {function}"), Outcome::Trap)]);
      }
      check(&[(
        &format!(
          "{begin} (local.set $r (local.get $p)) {moved}
           (if (i64.ne (call $length (local.get $p)) (i64.const 0)) (then (unreachable)))
           (if (i64.ne (call $length_unsafe (local.get $p)) (i64.const 0)) (then (unreachable)))
           (call $free (local.get $p))
           (if (i64.ne (call $length (local.get $r)) (i64.const 64)) (then (unreachable)))
           (call $store_u64 (local.get $r) (i64.const -1))"
        ),
        Outcome::Empty,
      )]);
      // A length that makes the end wrap to inside the block.
      check(&[(
        &format!("{begin} (local.set $r (local.get $p)) {moved}
           (call $output_set (local.get $p) (i64.add (i64.sub (local.get $r) (local.get $p)) (i64.const 1)))"),
        Outcome::Trap,
      )]);
    }
    for length in [
      "65",
      "0x100000000",
      "0x100000001",
      "0x7fffffffffffffff",
      "-1",
      "-64",
    ] {
      check(&[(
        &format!("{begin} (call $output_set (local.get $p) (i64.const {length}))"),
        Outcome::Trap,
      )]);
    }
  });
}

#[test]
fn frees_of_blocks_that_the_call_still_needs() {
  in_child("frees_of_blocks_that_the_call_still_needs", || {
    // Each time the guest frees the block, allocates again and writes there.
    let reuse = "(call $free (local.get $p)) (call $free (local.get $p))
                 (local.set $q (call $alloc (i64.const 5)))
                 (call $store_u8 (local.get $q) (i32.const 0x21))
                 (if (i64.eq (local.get $q) (local.get $p)) (then (unreachable)))
                 (if (i64.eqz (call $length (local.get $p))) (then (unreachable)))
                 (drop (call $load_u8 (local.get $p)))";
    let report = attack(&format!(
      "(local.set $p (call $color)) (call $output (local.get $p)) {reuse}"
    ));
    assert_eq!(report.outputs(), ["color"]);
    let report = attack(&format!(
      "(local.set $p (call $color))
       (call $output_set (i64.add (local.get $p) (i64.const 4)) (i64.const 1)) {reuse}"
    ));
    assert_eq!(report.outputs(), ["r"]);
    let report = attack(&format!(
      "(local.set $p (call $color)) (call $error_set (local.get $p)) {reuse}"
    ));
    assert_eq!(report.outputs(), ["error: color"]);
    let report = attack(&format!(
      "(local.set $p (call $input_offset)) (call $output_set (local.get $p) (i64.const 7)) {reuse}"
    ));
    assert_eq!(report.outputs(), ["sixteen"]);
    // A former output or error can be freed.
    for replaced in [
      "(call $output (local.get $p)) (call $output (call $input_offset))",
      "(call $output (local.get $p)) (call $output_set (i64.const 0) (i64.const 0))",
      "(call $error_set (local.get $p)) (call $error_set (i64.const 0))",
    ] {
      check(&[(
        &format!(
          "(local.set $p (call $color)) {replaced} (call $free (local.get $p))
           (drop (call $load_u8 (local.get $p)))"
        ),
        Outcome::Trap,
      )]);
    }
    // Inside a block, at its last byte, and right after it.
    for inside in ["1", "4", "5", "8", "16", "-1", "-16"] {
      check(&[(
        &format!(
          "(local.set $p (call $alloc (i64.const 5)))
           (call $free (i64.add (local.get $p) (i64.const {inside})))
           (if (i64.ne (call $length (local.get $p)) (i64.const 5)) (then (unreachable)))
           (call $store_u8 (local.get $p) (i32.const 1))"
        ),
        Outcome::Empty,
      )]);
    }
  });
}

/// Two guests with memories and tables of their own. The linked module contains more of each: the other
/// guest's, the kernel's and the interrupt memory. No index may lead there.
#[test]
fn indices_of_other_modules() {
  let world = World::new();
  let honest = wat(
    r#"(module (memory 1) (table 4 funcref) (global (mut i64) (i64.const 7)) (func)
         (data "secret") (func (export "value") (result i32) (i32.const 1)))"#,
  );
  let module = |body: &str| {
    wat(&format!(
      r#"(module
           (import "honest" "value" (func $value (result i32)))
           (memory 1) (memory 1) (table 4 funcref) (global $own (mut i64) (i64.const 0))
           (type $plain (func)) (elem $own func $value) (data $own "x")
           (func (export "attack") {body}))"#
    ))
  };
  let linked = |body: &str| world.link(&[(Some("honest"), &honest), (None, &module(body))]);
  // Its own things.
  for body in [
    "(drop (i32.load 1 (i32.const 0)))",
    "(memory.copy 0 1 (i32.const 0) (i32.const 0) (i32.const 1))",
    "(drop (table.get 0 (i32.const 0)))",
    "(global.set 0 (i64.const 1))",
    "(memory.init 1 0 (i32.const 0) (i32.const 0) (i32.const 1))",
  ] {
    assert!(linked(body).is_ok(), "{body}");
  }
  for index in [2, 3, 4, 5, 6, 100, u32::MAX] {
    for body in [
      format!("(drop (i32.load {index} (i32.const 0)))"),
      format!("(i32.store {index} (i32.const 0) (i32.const 1))"),
      format!("(drop (v128.load {index} (i32.const 0)))"),
      format!("(drop (memory.size {index}))"),
      format!("(drop (memory.grow {index} (i32.const 1)))"),
      format!("(memory.fill {index} (i32.const 0) (i32.const 1) (i32.const 1))"),
      format!("(memory.copy 0 {index} (i32.const 0) (i32.const 0) (i32.const 1))"),
      format!("(memory.copy {index} 0 (i32.const 0) (i32.const 0) (i32.const 1))"),
      format!("(memory.init {index} 0 (i32.const 0) (i32.const 0) (i32.const 1))"),
      format!("(memory.init 0 {index} (i32.const 0) (i32.const 0) (i32.const 1))"),
      format!("(data.drop {index})"),
      format!("(elem.drop {index})"),
      format!("(drop (table.get {index} (i32.const 0)))"),
      format!("(table.set {index} (i32.const 0) (ref.null func))"),
      format!("(drop (table.grow {index} (ref.null func) (i32.const 1)))"),
      format!("(call_indirect {index} (type $plain) (i32.const 0))"),
      format!("(table.copy 0 {index} (i32.const 0) (i32.const 0) (i32.const 1))"),
      format!("(drop (global.get {index}))"),
      format!("(global.set {index} (i64.const 0))"),
      format!("(call {index})"),
      format!("(return_call {index})"),
      format!("(drop (ref.func {index}))"),
    ] {
      let error = linked(&body).expect_err(&body);
      assert!(
        matches!(error, LinkError::InvalidWasm { .. }),
        "{body}: {error}"
      );
    }
  }
  // In segments and exports too.
  for module in [
    r#"(module (memory 1) (data (memory 1) (i32.const 0) "x"))"#,
    r#"(module (table 1 funcref) (func) (elem (table 1) (i32.const 0) func 0))"#,
    r#"(module (memory 1) (export "stolen" (memory 1)))"#,
    r#"(module (table 1 funcref) (export "stolen" (table 1)))"#,
    r#"(module (export "stolen" (func 0)))"#,
    r#"(module (global i32 (global.get 5)))"#,
    r#"(module (start 9))"#,
  ] {
    let error = world.link(&[(None, &wat(module))]).expect_err(module);
    assert!(
      matches!(error, LinkError::InvalidWasm { .. }),
      "{module}: {error}"
    );
  }
}

/// Runs the `attack` of a module, then its `honest` in another instance of the same plugin.
fn attack_module(module: &str) -> Report {
  let module = wat(&format!("(module {module} (func (export \"honest\")))"));
  let plugin = World::new().load_with(&[(None, &module)], Use::growing_by(64));
  let report = plugin.run(&[("attack", b"")]);
  let after = plugin.run(&[("honest", b"")]);
  assert_eq!((after.ending, after.results.len()), (Ending::Stopped, 1));
  report
}

#[test]
fn growth_without_end() {
  in_child("growth_without_end", || {
    for (memories, grow) in [
      ("(memory 1)", "(memory.grow (i32.const 1))"),
      ("(memory 1)", "(memory.grow (i32.const 65535))"),
      ("(memory 0) (memory 0)", "(memory.grow 1 (i32.const 7))"),
      (
        "(memory i64 1)",
        "(i32.wrap_i64 (memory.grow (i64.const 1)))",
      ),
      (
        "(memory i64 1)",
        "(i32.wrap_i64 (memory.grow (i64.const 0x100000000)))",
      ),
    ] {
      let report = attack_module(&format!(
        r#"{memories} (func (export "attack")
             (loop $next (br_if $next (i32.ne {grow} (i32.const -1)))))"#
      ));
      assert_eq!(report.ending, Ending::OutOfMemory, "{memories} {grow}");
    }
    // Sizes that no memory or table can have are refused, and the guest continues: WebAssembly returns
    // -1.
    for (definition, grow) in [
      ("(memory 1 3)", "(memory.grow (i32.const 3))"),
      ("(memory 1 3)", "(memory.grow (i32.const -1))"),
      (
        "(table 1 funcref)",
        "(table.grow (ref.null func) (i32.const -1))",
      ),
      (
        "(table 1 3 funcref)",
        "(table.grow (ref.null func) (i32.const 3))",
      ),
      (
        "(table 1 externref)",
        "(table.grow (ref.null extern) (i32.const 0x7fffffff))",
      ),
      (
        "(table i64 1 funcref)",
        "(i32.wrap_i64 (table.grow (ref.null func) (i64.const -1)))",
      ),
    ] {
      let report = attack_module(&format!(
        r#"{definition} (func (export "attack") (result i32) {grow})"#
      ));
      assert_eq!(report.ending, Ending::Stopped, "{definition} {grow}");
      assert_eq!(report.outputs(), ["error: the plugin returned the code -1"]);
    }
    // Both tables together reach the limit, but not more.
    let report = attack_module(
      r#"(table $a 0 funcref) (table $b 0 externref)
         (func (export "attack") (result i32) (local $grown i32)
           (block $end (loop $next
             (br_if $end (i32.eq (table.grow $a (ref.null func) (i32.const 1000)) (i32.const -1)))
             (br_if $end (i32.eq (table.grow $b (ref.null extern) (i32.const 1000)) (i32.const -1)))
             (br $next)))
           (i32.add (table.size $a) (table.size $b)))"#,
    );
    let allowed = Use::default().table_elements / 1000 * 1000;
    assert_eq!(
      report.outputs(),
      [format!("error: the plugin returned the code {allowed}")]
    );
  });
}

#[test]
fn garbage_without_end() {
  in_child("garbage_without_end", || {
    let types = "(type $bytes (array (mut i8)))
                 (type $refs (array (mut (ref null $bytes))))
                 (type $nested (array (mut (ref null $refs))))
                 (type $cell (struct (field (mut (ref null $cell))) (field i64)))
                 (global $list (mut (ref null $cell)) (ref.null $cell))
                 (global $kept (mut (ref null $refs)) (ref.null $refs))";
    for body in [
      "(loop $next
         (global.set $list (struct.new $cell (global.get $list) (i64.const 1))) (br $next))",
      "(drop (array.new_default $bytes (i32.const -1)))",
      "(drop (array.new_default $bytes (i32.const 0x7fffffff)))",
      "(drop (array.new_default $refs (i32.const -1)))",
      "(drop (array.new_default $refs (i32.const 0x20000000)))",
      "(drop (array.new_default $nested (i32.const 0x40000000)))",
      "(drop (array.new $bytes (i32.const 1) (i32.const 0xfffffff0)))",
      "(loop $next
         (global.set $kept (array.new $refs
           (array.new_default $bytes (i32.const 1000000)) (i32.const 100000)))
         (global.set $list (struct.new $cell (global.get $list) (i64.const 1)))
         (local.set $held (array.new $nested (global.get $kept) (i32.const 100000)))
         (call $attack)
         (drop (array.len (local.get $held))))",
    ] {
      let report = attack_module(&format!(
        r#"{types} (func $attack (export "attack") (local $held (ref null $nested)) {body})"#
      ));
      assert_eq!(report.ending, Ending::OutOfMemory, "{body}");
    }
    // Garbage is collected, so a guest may allocate more objects than it may hold.
    let report = attack_module(&format!(
      r#"{types} (func (export "attack") (local $left i32) (local.set $left (i32.const 500))
           (loop $next
             (drop (array.new_default $bytes (i32.const 100000)))
             (local.set $left (i32.sub (local.get $left) (i32.const 1)))
             (br_if $next (local.get $left))))"#
    ));
    assert_eq!(report.ending, Ending::Stopped);
  });
}

#[test]
fn recursion_without_end() {
  in_child("recursion_without_end", || {
    for (definitions, body) in [
      ("", "(call $attack)"),
      ("(func $other (call $attack))", "(call $other)"),
      (
        "(table funcref (elem $attack)) (type $plain (func))",
        "(call_indirect (type $plain) (i32.const 0))",
      ),
      (
        "(type $plain (func)) (elem declare func $attack)",
        "(call_ref $plain (ref.func $attack))",
      ),
      (
        // Large frames.
        "(func $wide (param i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 i64 v128 v128 v128 v128)
           (call $attack)
           (drop (i64.add (local.get 0) (local.get 11))))",
        "(call $wide (i64.const 1) (i64.const 2) (i64.const 3) (i64.const 4) (i64.const 5)
           (i64.const 6) (i64.const 7) (i64.const 8) (i64.const 9) (i64.const 10) (i64.const 11)
           (i64.const 12) (v128.const i64x2 1 1) (v128.const i64x2 1 1) (v128.const i64x2 1 1)
           (v128.const i64x2 1 1))",
      ),
    ] {
      let report = attack_module(&format!(
        r#"{definitions} (func $attack (export "attack") {body})"#
      ));
      assert_eq!(
        report.ending,
        Ending::Trapped("wasm trap: call stack exhausted".to_owned()),
        "{body}"
      );
    }
    // Host functions when the stack is nearly full.
    let report = attack(
      "(drop (call $host_memory_get (call $hello))) (call $free (i64.const 1)) (call $attack_again)",
    );
    assert_eq!(
      report.ending,
      Ending::Trapped("wasm trap: call stack exhausted".to_owned())
    );
    // Tail calls need no stack, however many there are.
    let report = attack_module(
      r#"(func $attack (export "attack") (return_call $count (i32.const 20000000)))
         (func $count (param $left i32)
           (if (local.get $left)
             (then (return_call $other (i32.sub (local.get $left) (i32.const 1))))))
         (func $other (param $left i32) (return_call $count (local.get $left)))"#,
    );
    assert_eq!(report.ending, Ending::Stopped);
  });
}
