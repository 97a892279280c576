//! An instance that is restored after a call has the same state as before its first call, whatever the call
//! has changed.

mod common;

use common::{KERNEL, Loaded, World, wat};
use extism_host::plugin::instance::{Ending, Instance, Outcome, Run};

/// `look` returns a digest of all memory and globals, then writes to every third page and to all globals. The
/// digest includes the offset and the contents of a new block.
const GUEST: &str = r#"
  (memory 64)
  (memory $other 2)
  (data (i32.const 70000) "begins with this")
  (global $a (mut i32) (i32.const 1))
  (global $b (mut i64) (i64.const 2))
  (global $c (mut f32) (f32.const 3))
  (global $d (mut f64) (f64.const 4))
  (global $e (mut v128) (v128.const i64x2 5 6))
  (func (export "look") (local $digest i64) (local $at i32) (local $block i64)
    (local.set $digest (i64.mul (i64.extend_i32_u (global.get $a)) (i64.const 31)))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (global.get $b)))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.trunc_f32_u (global.get $c))))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.trunc_f64_u (global.get $d))))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64x2.extract_lane 1 (global.get $e))))
    (loop $next
      (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.load (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 4194304))))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.load $other (i32.const 65536))))
    (local.set $block (call $alloc (i64.const 16)))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (local.get $block)))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (call $load_u64 (i64.add (local.get $block) (i64.const 8)))))
    (call $store_u64 (local.get $block) (local.get $digest))
    (call $store_u64 (i64.add (local.get $block) (i64.const 8)) (i64.const -1))
    (call $output_set (local.get $block) (i64.const 8))
    (local.set $at (i32.const 0))
    (loop $next
      (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (i64.const 77)))
      (local.set $at (i32.add (local.get $at) (i32.const 12288)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const 4194296))))
    (i64.store $other (i32.const 65536) (i64.const 78))
    (global.set $a (i32.const 79))
    (global.set $b (i64.const 80))
    (global.set $c (f32.const 81))
    (global.set $d (f64.const 82))
    (global.set $e (v128.const i64x2 83 84)))
  (func (export "grow") (drop (memory.grow (i32.const 1))))"#;

fn load(body: &str) -> Loaded {
  World::new().load(&[(None, &wat(&format!("(module {KERNEL} {body})")))])
}

fn start(plugin: &Loaded) -> Instance {
  let mut instance = plugin.instance();
  instance.prepare_restore();
  assert_eq!(instance.initialize(), Ok(()));
  instance
}

fn call(plugin: &Loaded, instance: &mut Instance, function: &str) -> Vec<u8> {
  match instance.call(0, plugin.export(function), Vec::new()) {
    Outcome::Returned(Ok(output)) => output.bytes,
    outcome => panic!("{outcome:?}"),
  }
}

/// Asks the system to swap out all private memory. Without swap it does nothing.
#[cfg(target_os = "linux")]
fn swap_out() {
  use rustix::mm::{Advice, madvise};

  let maps = std::fs::read_to_string("/proc/self/maps").expect("the process has maps");
  for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
    let range = line
      .split(' ')
      .next()
      .and_then(|range| range.split_once('-'));
    let (start, end) = range.expect("a line begins with a range");
    let start = usize::from_str_radix(start, 16).expect("an address");
    let length = usize::from_str_radix(end, 16).expect("an address") - start;
    // SAFETY: swapping out changes nothing that the process can see.
    let _ = unsafe { madvise(start as *mut _, length, Advice::LinuxPageOut) };
  }
}

#[test]
#[cfg(target_os = "linux")]
fn restoring_removes_everything_that_a_call_has_written() {
  let plugin = load(GUEST);
  let mut instance = start(&plugin);
  let fresh = call(&plugin, &mut instance, "look");
  let is_restored = instance.restore();
  if !is_restored {
    // Before Linux 6.7, instances are replaced instead.
    return;
  }
  for round in 0..20 {
    assert_eq!(call(&plugin, &mut instance, "look"), fresh, "round {round}");
    if round % 4 == 0 {
      swap_out();
    }
    assert!(instance.restore());
  }
  // The digest detects leftovers.
  call(&plugin, &mut instance, "look");
  instance.reset();
  assert_ne!(call(&plugin, &mut instance, "look"), fresh);
}

#[test]
fn an_instance_that_has_grown_is_not_restored() {
  let plugin = load(GUEST);
  let mut instance = start(&plugin);
  call(&plugin, &mut instance, "grow");
  assert!(!instance.restore());
}

#[test]
fn an_instance_with_a_large_memory_is_not_restored() {
  let plugin = load(r#"(memory 2000) (func (export "run"))"#);
  let mut instance = start(&plugin);
  call(&plugin, &mut instance, "run");
  assert!(!instance.restore());
}

#[test]
fn an_instance_that_can_change_more_than_memories_and_globals_is_not_restored() {
  for body in [
    r#"(table $table 1 funcref)
       (func (export "run") (table.set $table (i32.const 0) (ref.null func)))"#,
    r#"(table $table 1 funcref)
       (func (export "run") (drop (table.grow $table (ref.null func) (i32.const 1))))"#,
    r#"(data $data "x") (func (export "run") (data.drop $data))"#,
    r#"(type $box (struct (field (mut i32))))
       (func (export "run") (drop (struct.new $box (i32.const 1))))"#,
    r#"(global $kept (mut funcref) (ref.null func)) (func (export "run"))"#,
  ] {
    let plugin = load(body);
    let mut instance = start(&plugin);
    call(&plugin, &mut instance, "run");
    assert!(!instance.restore(), "{body}");
  }
}

/// The initialization grows both memories and writes to the new pages. `look` returns a digest of both
/// memories' sizes and contents, of the results of growing them too far, and of what the initialization did.
const GROWING: &str = r#"
  (memory $first 1 20)
  (memory $second 0)
  (global $initialized (mut i32) (i32.const 0))
  (func (export "_initialize")
    (global.set $initialized (i32.add (global.get $initialized) (i32.const 1)))
    (global.set $initialized (i32.add (global.get $initialized)
      (i32.add (i32.mul (memory.grow $first (i32.const 2)) (i32.const 10)) (i32.mul (memory.grow $second (i32.const 3)) (i32.const 100)))))
    (i64.store $first (i32.const 131072) (i64.add (i64.load $first (i32.const 131072)) (i64.const 5)))
    (i64.store $second (i32.const 8) (i64.add (i64.load $second (i32.const 8)) (i64.const 6))))
  (func $digest (param $at i32) (param $end i32) (param $digest i64) (result i64)
    (loop $next
      (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.load (local.get $at))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end))))
    (local.get $digest))
  (func (export "look") (local $digest i64) (local $block i64)
    (local.set $digest (i64.extend_i32_u (i32.add (memory.size $first) (i32.mul (memory.size $second) (i32.const 1000)))))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.extend_i32_s (global.get $initialized))))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.extend_i32_s (memory.grow $first (i32.const 18)))))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.extend_i32_s (memory.grow $second (i32.const -1)))))
    (local.set $digest (i64.add (i64.mul (local.get $digest) (i64.const 31)) (i64.extend_i32_s (memory.grow $second (i32.const 0)))))
    (local.set $digest (i64.add (local.get $digest) (i64.load $second (i32.const 8))))
    (local.set $digest (call $digest (i32.const 0) (i32.mul (memory.size $first) (i32.const 65536)) (local.get $digest)))
    (local.set $block (call $alloc (i64.const 16)))
    (call $store_u64 (local.get $block) (local.get $digest))
    (call $store_u64 (i64.add (local.get $block) (i64.const 8)) (i64.extend_i32_u (global.get $initialized)))
    (call $output_set (local.get $block) (i64.const 16))
    (i64.store $first (i32.const 0) (i64.const 77))
    (i64.store $first (i32.const 196600) (i64.const 78))
    (i64.store $second (i32.const 196600) (i64.const 79)))
  (func (export "beyond") (drop (i64.load $first (i32.const 196608))))
  (func (export "grow") (drop (memory.grow $first (i32.const 1))))"#;

/// Whether this system can restore instances.
fn can_restore() -> bool {
  let plugin = load(GUEST);
  let mut instance = start(&plugin);
  call(&plugin, &mut instance, "look");
  instance.restore()
}

#[test]
fn an_instance_is_restored_and_initialized_again() {
  let plugin = load(GROWING);
  let mut instance = start(&plugin);
  let fresh = call(&plugin, &mut instance, "look");
  // 1 initialization, and the results of growing: 1 page, and failure.
  assert_eq!(fresh.get(8..), Some(11_u64.to_le_bytes().as_slice()));
  if !can_restore() {
    return;
  }
  for round in 0..20 {
    assert!(instance.restore(), "round {round}");
    assert_eq!(instance.initialize(), Ok(()));
    assert!(instance.matches_new_instance());
    assert_eq!(call(&plugin, &mut instance, "look"), fresh, "round {round}");
  }
  assert!(instance.restore());
  assert_eq!(instance.initialize(), Ok(()));
  let outcome = instance.call(0, plugin.export("beyond"), Vec::new());
  assert!(
    matches!(outcome, Outcome::Ended(Ending::Trapped { .. })),
    "{outcome:?}"
  );
}

#[test]
fn an_instance_that_a_call_has_grown_is_not_restored_even_if_its_initialization_can_run_again() {
  let plugin = load(GROWING);
  let mut instance = start(&plugin);
  call(&plugin, &mut instance, "grow");
  assert!(!instance.restore());
}

#[test]
fn an_instance_whose_second_initialization_grows_less_differs_from_a_new_one() {
  let plugin = load(
    r#"(memory 1)
       (func (export "_initialize") (local $key i64)
         (local.set $key (call $alloc (i64.const 1)))
         (if (i64.eqz (call $var_get (local.get $key)))
           (then (drop (memory.grow (i32.const 3))))
           (else (drop (memory.grow (i32.const 1)))))
         (call $var_set (local.get $key) (local.get $key)))
       (func (export "run"))"#,
  );
  let mut instance = start(&plugin);
  assert!(instance.matches_new_instance());
  call(&plugin, &mut instance, "run");
  if !can_restore() {
    return;
  }
  assert!(instance.restore());
  assert_eq!(instance.initialize(), Ok(()));
  assert!(!instance.matches_new_instance());
}
