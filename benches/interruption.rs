//! How long an endless guest keeps running after an interruption, for both interruption mechanisms.
//!
//!     cargo bench --ignore-rust-version --bench interruption
//!
//! prints the median and the 99th percentile in microseconds. On an idle machine, the guest and the thread
//! that interrupts it each have a core.

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{ENDLESS, Ending, Use, World, guest};
use extism_host::plugin::instance::Run;
use extism_host::plugin::interrupt::Interruptions;

const ROUNDS: usize = 2000;

/// How long the guest runs before it is interrupted.
const DELAY: Duration = Duration::from_micros(500);

/// The watchdog's interval between repeated interruptions.
const REPEAT: Duration = Duration::from_millis(1);

/// The endless guests to measure.
const GUESTS: [&str; 3] = ["an empty loop", "a recursion", "a loop that allocates"];

/// Measures many runs of a guest; returns the sorted times.
fn measure(body: &str, interruptions: Interruptions) -> Vec<Duration> {
  let wasm = guest(body);
  let plugin = World::new().load_with(&[(None, &wasm)], Use::interrupted_by(interruptions));
  let mut times = (0..ROUNDS)
    .map(|_| {
      let mut instance = plugin.instance();
      let interrupt = instance.interrupt().clone();
      let has_ended = AtomicBool::new(false);
      std::thread::scope(|scope| {
        let interrupting = scope.spawn(|| {
          std::thread::sleep(DELAY);
          let interrupted_at = Instant::now();
          interrupt.interrupt();
          while interrupt.needs_repeating() && !has_ended.load(Ordering::SeqCst) {
            std::thread::sleep(REPEAT);
            interrupt.interrupt();
          }
          interrupted_at
        });
        let report = plugin.run_instance(&mut instance, &[("run", b"")]);
        let ended = Instant::now();
        has_ended.store(true, Ordering::SeqCst);
        assert_eq!(report.ending, Ending::Interrupted);
        ended - interrupting.join().expect("it does not panic")
      })
    })
    .collect::<Vec<_>>();
  times.sort();
  times
}

fn main() {
  println!("{:30} {:>8} {:>8}", "µs", "p50", "p99");
  for interruptions in [Interruptions::Page, Interruptions::Epoch] {
    for (name, body) in ENDLESS
      .into_iter()
      .filter(|(name, _)| GUESTS.contains(name))
    {
      let times = measure(body, interruptions);
      let [median, late] = [ROUNDS / 2, ROUNDS * 99 / 100].map(|index| times[index].as_micros());
      let name = format!("{interruptions:?}, {name}");
      println!("{name:30} {median:8} {late:8}");
    }
  }
}
