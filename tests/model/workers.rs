//! Each call ends exactly once, whatever else happens.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::Code;
use crate::plugin::instance::{Startup, export, open_gate};
use crate::plugin::page;
use crate::plugin::stats::ReplaceReason;
use crate::plugin::workers::{Queued, WorkerLimits};
use crate::scenario::{Plugin, Time, any, call, check, limits};
use crate::sync::{self, thread};
use crate::violation;

const SECOND: Duration = Duration::from_secs(1);

/// The ways in which a guest ends without interruption.
const BY_ITSELF: [u32; 3] = [export::RETURN, export::TRAP, export::EXIT];

fn expected(export: u32) -> Result<(), Code> {
  match export {
    export::TRAP => Err(Code::Trap),
    _ => Ok(()),
  }
}

/// The result of an instance that starts like this, unless a timeout comes first.
fn failure(startup: Startup) -> Result<(), Code> {
  match startup {
    Startup::Succeeds => Ok(()),
    Startup::Fails => Err(Code::InvalidWasm),
    Startup::Traps => Err(Code::Trap),
    Startup::Loops | Startup::Hangs => Err(Code::Timeout),
  }
}

fn nothing_is_left() {
  let instances = page::owned();
  if instances > 0 {
    violation(format!("{instances} instances are left"));
  }
}

#[test]
fn no_call_is_lost_while_threads_fall_asleep_and_instances_are_added() {
  check(|| {
    let plugin = Plugin::start(limits(2), &[]).unwrap();
    let exports = [any(&BY_ITSELF), any(&BY_ITSELF), any(&BY_ITSELF)];
    for (number, export) in (0..).zip(exports) {
      plugin.push(call(number, export));
    }
    for (number, export) in (0..).zip(exports) {
      assert_eq!(plugin.wait(number), expected(export));
    }
    plugin.close_and_wait();
    nothing_is_left();
  });
}

#[test]
fn a_further_instance_serves_while_the_first_is_busy() {
  check(|| {
    let plugin = Plugin::start(limits(2), &[]).unwrap();
    plugin.push(call(0, export::LOOP));
    plugin.push(call(1, export::RETURN));
    plugin.push(call(2, export::RETURN));
    assert_eq!(plugin.wait(1), Ok(()));
    assert_eq!(plugin.wait(2), Ok(()));
    plugin.workers.cancel(0);
    assert_eq!(plugin.wait(0), Err(Code::Canceled));
    plugin.close_and_wait();
    nothing_is_left();
  });
}

#[test]
fn one_wake_up_is_enough_for_several_calls() {
  check(|| {
    let plugin = Plugin::start(
      WorkerLimits {
        is_eager: true,
        ..limits(2)
      },
      &[],
    )
    .unwrap();
    for first in [0, 3] {
      let exports = [export::LOOP, export::RETURN, export::RETURN];
      let mut is_asleep = false;
      for (number, export) in (first..).zip(exports) {
        is_asleep |= plugin.workers.push(call(number, export)) == Queued::Asleep;
      }
      if is_asleep {
        plugin.workers.wake();
      }
      assert_eq!(plugin.wait(first + 1), Ok(()));
      assert_eq!(plugin.wait(first + 2), Ok(()));
      plugin.workers.cancel(first);
      assert_eq!(plugin.wait(first), Err(Code::Canceled));
    }
    plugin.close_and_wait();
    nothing_is_left();
  });
}

#[test]
fn a_cancel_ends_one_call_and_affects_no_other() {
  check(|| {
    let instances = any(&[1, 2]);
    let plugin = Plugin::start(limits(instances), &[]).unwrap();
    let export = any(&[export::RETURN, export::LOOP, export::WAIT]);
    plugin.push(call(0, export));
    plugin.push(call(1, export::RETURN));
    let canceler = plugin.clone();
    let canceler = thread::spawn(move || canceler.workers.cancel(0));
    plugin.push(call(2, export::RETURN));
    let result = plugin.wait(0);
    assert!(result == Err(Code::Canceled) || (result == Ok(()) && export == export::RETURN));
    assert_eq!(plugin.wait(1), Ok(()));
    assert_eq!(plugin.wait(2), Ok(()));
    canceler.join().unwrap();
    plugin.close_and_wait();
    nothing_is_left();
  });
}

#[test]
fn a_deadline_ends_one_call_and_affects_no_other() {
  check(|| {
    let instances = any(&[1, 2]);
    let plugin = Plugin::start(limits(instances), &[]).unwrap();
    let export = any(&[export::RETURN, export::LOOP, export::WAIT]);
    let time = Time::passes(SECOND / 10);
    let mut late = call(0, export);
    late.timeout = Some(SECOND / 2);
    plugin.push(late);
    plugin.push(call(1, export::RETURN));
    let result = plugin.wait(0);
    assert!(result == Err(Code::Timeout) || (result == Ok(()) && export == export::RETURN));
    plugin.push(call(2, export::RETURN));
    assert_eq!(plugin.wait(1), Ok(()));
    assert_eq!(plugin.wait(2), Ok(()));
    plugin.close_and_wait();
    drop(time);
  });
}

#[test]
fn a_deadline_and_a_cancel_end_a_call_once() {
  check(|| {
    let plugin = Plugin::start(limits(1), &[]).unwrap();
    let time = Time::passes(SECOND / 10);
    for number in 0..2 {
      let mut late = call(number, any(&[export::LOOP, export::WAIT]));
      late.timeout = Some(SECOND / 2);
      plugin.push(late);
    }
    plugin.workers.cancel(0);
    assert!([Err(Code::Timeout), Err(Code::Canceled)].contains(&plugin.wait(0)));
    assert_eq!(plugin.wait(1), Err(Code::Timeout));
    plugin.push(call(2, export::RETURN));
    assert_eq!(plugin.wait(2), Ok(()));
    plugin.close_and_wait();
    drop(time);
  });
}

#[test]
fn a_deadline_before_the_next_scheduled_one_is_met() {
  check(|| {
    let plugin = Plugin::start(
      WorkerLimits {
        is_eager: true,
        ..limits(2)
      },
      &[],
    )
    .unwrap();
    let time = Time::passes(SECOND / 4);
    for (number, limit) in [(0, 1000 * SECOND), (1, SECOND)] {
      let mut late = call(number, export::LOOP);
      late.timeout = Some(limit);
      plugin.push(late);
    }
    assert_eq!(plugin.wait(1), Err(Code::Timeout));
    plugin.workers.cancel(0);
    assert_eq!(plugin.wait(0), Err(Code::Canceled));
    plugin.close_and_wait();
    drop(time);
  });
}

#[test]
fn the_close_callback_runs_once_after_the_last_call() {
  check(|| {
    let plugin = Plugin::start(limits(2), &[]).unwrap();
    let export = any(&BY_ITSELF);
    plugin.push(call(0, export));
    plugin.push(call(1, export::LOOP));
    let closer = plugin.clone();
    let closer = thread::spawn(move || closer.close());
    let canceler = plugin.clone();
    let canceler = thread::spawn(move || canceler.workers.cancel(1));
    plugin.push(call(2, export::RETURN));
    plugin.close_and_wait();
    closer.join().unwrap();
    canceler.join().unwrap();
    plugin.wait_until_closed();
    assert_eq!(plugin.wait(0), expected(export));
    assert_eq!(plugin.wait(1), Err(Code::Canceled));
    assert!([Ok(()), Err(Code::Closed)].contains(&plugin.wait(2)));
    nothing_is_left();
  });
}

#[test]
fn the_close_callback_runs_after_a_call_that_timed_out() {
  check(|| {
    let plugin = Plugin::start(limits(1), &[]).unwrap();
    let time = Time::passes(SECOND / 10);
    let mut late = call(0, export::LOOP);
    late.timeout = Some(SECOND / 2);
    plugin.push(late);
    plugin.close_and_wait();
    assert_eq!(plugin.wait(0), Err(Code::Timeout));
    drop(time);
  });
}

#[test]
fn a_dropped_plugin_leaves_nothing() {
  check(|| {
    let plugin = Plugin::start(limits(2), &[]).unwrap();
    for number in 0..2 {
      plugin.push(call(
        number,
        any(&[export::RETURN, export::LOOP, export::WAIT]),
      ));
    }
    drop(plugin);
    while page::owned() > 0 {
      thread::yield_now();
    }
  });
}

#[test]
fn an_abandoned_thread_is_replaced_and_its_result_dropped() {
  check(|| {
    let instances = any(&[1, 2]);
    let plugin = Plugin::start(limits(instances), &[]).unwrap();
    let time = Time::passes(SECOND / 10);
    let mut late = call(0, export::HANG);
    late.timeout = Some(SECOND / 2);
    plugin.push(late);
    assert_eq!(plugin.wait(0), Err(Code::Timeout));
    plugin.push(call(1, export::RETURN));
    assert_eq!(plugin.wait(1), Ok(()));
    let opener = thread::spawn(open_gate);
    plugin.push(call(2, export::RETURN));
    assert_eq!(plugin.wait(2), Ok(()));
    opener.join().unwrap();
    while plugin.workers.abandoned() > 0 {
      thread::yield_now();
    }
    plugin.close_and_wait();
    nothing_is_left();
    drop(time);
  });
}

#[test]
fn a_host_call_that_returns_while_it_is_abandoned_costs_no_call() {
  check(|| {
    let plugin = Plugin::start(limits(1), &[]).unwrap();
    let time = Time::passes(SECOND / 10);
    let mut late = call(0, export::HANG);
    late.timeout = Some(SECOND / 2);
    plugin.push(late);
    let export = any(&BY_ITSELF);
    plugin.push(call(1, export));
    let opener = thread::spawn(open_gate);
    assert!([Ok(()), Err(Code::Timeout)].contains(&plugin.wait(0)));
    assert_eq!(plugin.wait(1), expected(export));
    let is_closed_first = any(&[false, true]);
    if !is_closed_first {
      plugin.push(call(2, export::LOOP));
      plugin.workers.cancel(2);
      assert_eq!(plugin.wait(2), Err(Code::Canceled));
    }
    plugin.close_and_wait();
    opener.join().unwrap();
    drop(time);
  });
}

#[test]
fn calls_fail_if_all_threads_are_stuck() {
  check(|| {
    let plugin = Plugin::start(limits(1), &[]).unwrap();
    let time = Time::passes(SECOND / 10);
    // One more than the maximum number of abandoned threads.
    let last = 16;
    for number in 0..=last {
      let mut late = call(number, export::HANG);
      late.timeout = Some(SECOND / 2);
      plugin.push(late);
      assert_eq!(plugin.wait(number), Err(Code::Timeout));
    }
    // It may be queued before its thread is known to be stuck.
    plugin.push(call(last + 1, export::RETURN));
    let is_closed_first = any(&[false, true]);
    if is_closed_first {
      plugin.close_and_wait();
    }
    assert_eq!(plugin.wait(last + 1), Err(Code::Unavailable));
    open_gate();
    plugin.close_and_wait();
    drop(time);
  });
}

#[test]
fn a_further_instance_that_does_not_start_costs_no_call() {
  use Startup::{Fails, Hangs, Loops, Succeeds, Traps};

  check(|| {
    let startup = any(&[Fails, Traps, Loops, Hangs]);
    let limits = WorkerLimits {
      initialization_timeout: SECOND,
      ..limits(2)
    };
    let plugin = Plugin::start(limits, &[Succeeds, startup, Succeeds]).unwrap();
    let time = Time::passes(SECOND / 10);
    plugin.push(call(0, export::RETURN));
    plugin.push(call(1, export::RETURN));
    plugin.push(call(2, export::RETURN));
    assert_eq!(plugin.wait(0), Ok(()));
    assert_eq!(plugin.wait(1), Ok(()));
    assert_eq!(plugin.wait(2), Ok(()));
    let opener = thread::spawn(open_gate);
    plugin.close_and_wait();
    opener.join().unwrap();
    drop(time);
  });
}

#[test]
fn a_replacement_that_does_not_start_costs_one_call() {
  use Startup::{Fails, Hangs, Loops, Succeeds, Traps};

  check(|| {
    let startup = any(&[Fails, Traps, Loops, Hangs]);
    let limits = WorkerLimits {
      initialization_timeout: SECOND,
      ..limits(1)
    };
    let plugin = Plugin::start(limits, &[Succeeds, startup, Succeeds]).unwrap();
    let time = Time::passes(SECOND / 10);
    plugin.push(call(0, export::TRAP));
    assert_eq!(plugin.wait(0), Err(Code::Trap));
    plugin.push(call(1, export::RETURN));
    plugin.push(call(2, export::RETURN));
    assert!([failure(startup), Err(Code::Timeout)].contains(&plugin.wait(1)));
    // The clock may have advanced too fast for later instances, too.
    assert!([Ok(()), Err(Code::Timeout)].contains(&plugin.wait(2)));
    drop(time);
    plugin.push(call(3, export::RETURN));
    assert!([Ok(()), Err(Code::Timeout)].contains(&plugin.wait(3)));
    plugin.push(call(4, export::RETURN));
    assert_eq!(plugin.wait(4), Ok(()));
    let opener = thread::spawn(open_gate);
    plugin.close_and_wait();
    opener.join().unwrap();
  });
}

/// How many instances were replaced for this reason.
fn number_of(plugin: &Plugin, reason: ReplaceReason) -> u64 {
  let replaced = plugin.workers.stats().replaced;
  let counts = replaced.into_iter().filter(|(other, _)| *other == reason);
  counts.map(|(_, count)| count).sum()
}

/// Each instance is replaced after one call.
fn limits_of_one_call(instances: usize) -> WorkerLimits {
  WorkerLimits {
    max_calls: NonZeroU64::new(1),
    ..limits(instances)
  }
}

#[test]
fn an_instance_that_is_recycled_costs_no_call() {
  check(|| {
    let plugin = Plugin::start(
      WorkerLimits {
        max_calls: any(&[None, NonZeroU64::new(1), NonZeroU64::new(2)]),
        ..limits(any(&[1, 2]))
      },
      &[],
    )
    .unwrap();
    let exports = [(); 5].map(|()| any(&[export::RETURN, export::LEAK, export::TRAP]));
    for (number, export) in (0..).zip(exports) {
      plugin.push(call(number, export));
    }
    for (number, export) in (0..).zip(exports) {
      assert_eq!(plugin.wait(number), expected(export));
    }
    plugin.close_and_wait();
    nothing_is_left();
  });
}

#[test]
fn leaks_and_age_are_detected_after_a_call() {
  check(|| {
    let max_age = any(&[None, Some(SECOND)]);
    let (export, reason) = match max_age {
      None => (export::LEAK, ReplaceReason::Memory),
      Some(_) => (export::RETURN, ReplaceReason::Age),
    };
    let limits = WorkerLimits {
      max_age,
      ..limits(1)
    };
    let plugin = Plugin::start(limits, &[]).unwrap();
    for number in 0..3 {
      plugin.push(call(number, export));
      assert_eq!(plugin.wait(number), Ok(()));
      if number == 0 {
        sync::advance(SECOND);
      }
    }
    assert_eq!(number_of(&plugin, reason), 1);
    plugin.close_and_wait();
    nothing_is_left();
  });
}

#[test]
fn a_successor_that_does_not_start_costs_no_call() {
  use Startup::{Fails, Hangs, Loops, Succeeds, Traps};

  check(|| {
    let startup = any(&[Fails, Traps, Loops, Hangs]);
    let limits = WorkerLimits {
      initialization_timeout: SECOND,
      ..limits_of_one_call(1)
    };
    let plugin = Plugin::start(limits, &[Succeeds, startup, Succeeds]).unwrap();
    let time = Time::passes(SECOND / 10);
    for number in 0..3 {
      plugin.push(call(number, any(&[export::RETURN, export::LEAK])));
    }
    let opener = thread::spawn(open_gate);
    let results = [0, 1, 2].map(|number| plugin.wait(number));
    plugin.close_and_wait();
    opener.join().unwrap();
    while plugin.workers.abandoned() > 0 {
      thread::yield_now();
    }
    // An abandoned thread takes the old instance with it, and the clock may be too fast for the next one.
    let is_right = |result: &Result<(), Code>| match number_of(&plugin, ReplaceReason::Interrupted)
    {
      0 => *result == Ok(()),
      _ => [Ok(()), Err(Code::Timeout)].contains(result),
    };
    assert!(results.iter().all(is_right), "{results:?}");
    drop(time);
  });
}

#[test]
fn a_call_can_be_canceled_after_the_successor_failed_to_start() {
  use Startup::{Fails, Succeeds, Traps};

  check(|| {
    let startups = [Succeeds, any(&[Fails, Traps]), Succeeds];
    let plugin = Plugin::start(limits_of_one_call(1), &startups).unwrap();
    plugin.push(call(0, export::RETURN));
    plugin.push(call(1, export::LOOP));
    assert_eq!(plugin.wait(0), Ok(()));
    plugin.workers.cancel(1);
    assert_eq!(plugin.wait(1), Err(Code::Canceled));
    plugin.push(call(2, export::RETURN));
    assert_eq!(plugin.wait(2), Ok(()));
    plugin.close_and_wait();
    nothing_is_left();
  });
}

#[test]
fn a_cancel_does_not_reach_the_successor_of_its_instance() {
  use Startup::{Fails, Succeeds};

  check(|| {
    let limits = limits_of_one_call(any(&[1, 2]));
    let plugin = Plugin::start(limits, &[Succeeds, any(&[Succeeds, Fails]), Succeeds]).unwrap();
    let export = any(&[export::RETURN, export::LOOP]);
    plugin.push(call(0, export));
    let canceler = plugin.clone();
    let canceler = thread::spawn(move || canceler.workers.cancel(0));
    plugin.push(call(1, export::RETURN));
    plugin.push(call(2, export::RETURN));
    let result = plugin.wait(0);
    assert!(result == Err(Code::Canceled) || (result == Ok(()) && export == export::RETURN));
    // If the cancel came first, the instance is gone and the next one may fail.
    let second = plugin.wait(1);
    let third = plugin.wait(2);
    if result == Ok(()) {
      assert_eq!((second, third), (Ok(()), Ok(())));
    }
    canceler.join().unwrap();
    plugin.close_and_wait();
    nothing_is_left();
  });
}

#[test]
fn a_plugin_that_is_dropped_or_closed_while_an_instance_is_recycled_leaves_nothing() {
  use Startup::{Fails, Loops, Succeeds};

  check(|| {
    let second = any(&[Succeeds, Fails, Loops]);
    let limits = WorkerLimits {
      initialization_timeout: SECOND,
      ..limits_of_one_call(1)
    };
    let plugin = Plugin::start(limits, &[Succeeds, second, Succeeds]).unwrap();
    let time = Time::passes(SECOND / 10);
    plugin.push(call(0, export::RETURN));
    plugin.push(call(1, export::RETURN));
    assert_eq!(plugin.wait(0), Ok(()));
    let is_closed_first = any(&[false, true]);
    if is_closed_first {
      plugin.close_and_wait();
      // The clock may have advanced too fast for later instances.
      assert!([Ok(()), Err(Code::Timeout)].contains(&plugin.wait(1)));
    }
    drop(plugin);
    while page::owned() > 0 {
      thread::yield_now();
    }
    drop(time);
  });
}

#[test]
fn a_plugin_starts_with_all_instances_or_fails() {
  use Startup::{Fails, Hangs, Loops, Succeeds, Traps};

  check(|| {
    let limits = WorkerLimits {
      is_eager: true,
      initialization_timeout: SECOND,
      ..limits(2)
    };
    let time = Time::passes(SECOND / 10);
    let first = any(&[Succeeds, Fails, Traps, Loops, Hangs]);
    let second = any(&[Succeeds, Fails, Traps, Loops, Hangs]);
    let plugin = Plugin::start(limits, &[first, second, Succeeds]);
    open_gate();
    match plugin {
      Ok(plugin) => {
        assert_eq!((first, second), (Succeeds, Succeeds));
        plugin.push(call(0, export::RETURN));
        assert_eq!(plugin.wait(0), Ok(()));
        plugin.close_and_wait();
      }
      Err(error) => {
        let failures = [failure(first), failure(second), Err(Code::Timeout)];
        assert!(failures.contains(&Err(error.code)));
      }
    }
    while page::owned() > 0 {
      thread::yield_now();
    }
    drop(time);
  });
}
