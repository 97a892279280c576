//! Instances come from a pool, and from the system when the pool is full. The difference is not observable,
//! and no state of one instance is left for the next in the same slot.

mod common;

use common::{Ending, Loaded, Use, World, guest};
use extism_host::plugin::instance::{Instance, Run};
use extism_host::plugin::interrupt::Interruptions;

/// More than the pool of one kind has slots for.
const MANY: usize = 1_200;

/// Each call returns how often it was called, from four places where a guest can keep state.
const COUNTS: &str = r#"
  (memory 1)
  (global $count (mut i32) (i32.const 0))
  (table $table 3 funcref)
  (elem declare func $marker)
  (func $marker)
  (func (export "counts") (local $block i64)
    (i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1)))
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (i32.store8 (i32.const 1) (global.get $count))
    (i32.store8 (i32.const 2) (i32.eqz (ref.is_null (table.get $table (i32.const 2)))))
    (table.set $table (i32.const 2) (ref.func $marker))
    ;; The block is new, so what it has is left by somebody else.
    (local.set $block (call $alloc (i64.const 8)))
    (i32.store8 (i32.const 3) (call $load_u8 (local.get $block)))
    (call $store_u64 (local.get $block) (i64.load (i32.const 0)))
    (call $output_set (local.get $block) (i64.const 4)))
  (func (export "spins") (loop $next (br $next)))"#;

fn load(interruptions: Interruptions) -> Loaded {
  World::new().load_with(
    &[(None, &guest(COUNTS))],
    Use::interrupted_by(interruptions),
  )
}

fn outputs(plugin: &Loaded, instance: &mut Instance) -> Vec<String> {
  let report = plugin.run_instance(instance, &[("counts", b""), ("counts", b"")]);
  assert_eq!(report.ending, Ending::Stopped);
  report.outputs()
}

const FRESH: [&str; 2] = ["\u{1}\u{1}\0\0", "\u{2}\u{2}\u{1}\0"];

#[test]
fn more_instances_than_the_pool_has_slots_all_run() {
  let plugin = load(Interruptions::default());
  let mut instances: Vec<_> = (0..MANY).map(|_| plugin.instance()).collect();
  for instance in &mut instances {
    assert_eq!(outputs(&plugin, instance), FRESH);
  }
}

#[test]
fn an_instance_outside_the_pool_is_interrupted_like_the_others() {
  for interruptions in [Interruptions::Page, Interruptions::Epoch] {
    let plugin = load(interruptions);
    let mut instances: Vec<_> = (0..MANY).map(|_| plugin.instance()).collect();
    let mut last = instances.pop().expect("there are many");
    last.interrupt().interrupt();
    let report = plugin.run_instance(&mut last, &[("spins", b"")]);
    assert_eq!(report.ending, Ending::Interrupted);
    for instance in &mut instances {
      assert_eq!(outputs(&plugin, instance), FRESH);
    }
  }
}

#[test]
fn no_data_of_an_instance_is_left_for_the_next_in_its_slot() {
  let plugin = load(Interruptions::default());
  for round in 0..200 {
    let mut instance = plugin.instance();
    assert_eq!(outputs(&plugin, &mut instance), FRESH, "round {round}");
    if round % 3 == 0 {
      // Its interrupt page is closed when its slot is freed.
      instance.interrupt().interrupt();
    }
  }
}
