//! Shared by the fuzzers: they try seed after seed, each in a child process that a seed may crash.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many seeds are tried even after the time is up, so that a busy machine tries some too.
const LEAST: u64 = 50;

/// Much longer than any seed takes, even on a busy machine.
const HANG: Duration = Duration::from_secs(100);

/// SplitMix64: small, and good enough for choosing.
pub struct Random(pub u64);

impl Random {
  pub fn next(&mut self) -> u64 {
    self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = self.0;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
  }

  pub fn below(&mut self, limit: u64) -> u64 {
    self.next() % limit
  }

  /// One of the items, which must not be empty.
  pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
    &items[self.below(items.len() as u64) as usize]
  }

  pub fn bytes(&mut self, length: u64) -> Vec<u8> {
    (0..length).map(|_| self.next() as u8).collect()
  }
}

/// A fuzzer: a test that tries seeds.
///
/// Three environment variables control it. If their prefix is `FUZZ`, `FUZZ_SECONDS` is its duration, and
/// `FUZZ_SEED` the first seed; without it, the time determines it, except in the default run. `FUZZ_CHILD`
/// marks the child process.
pub struct Fuzzer {
  /// The name of the test.
  pub test: &'static str,
  /// The prefix of its environment variables.
  pub prefix: &'static str,
  /// Seeds that are tried first, one per line.
  pub corpus: &'static str,
}

impl Fuzzer {
  /// In the test's process, starts a child and checks that it succeeds. In the child, calls `prepare`, then
  /// the function that this returns with each seed, and `finish` with the number of occurrences of each
  /// ending.
  pub fn run<F: FnMut(u64) -> &'static str>(
    &self,
    prepare: impl FnOnce() -> F,
    finish: impl FnOnce(&BTreeMap<&'static str, u64>),
  ) {
    match std::env::var_os(self.variable("CHILD")) {
      Some(_) => finish(&self.try_seeds(prepare())),
      None => self.start_child(),
    }
  }

  fn variable(&self, name: &str) -> String {
    format!("{}_{name}", self.prefix)
  }

  fn number(&self, name: &str) -> Option<u64> {
    std::env::var(self.variable(name)).ok()?.parse().ok()
  }

  /// The duration of the run.
  pub fn time(&self) -> Duration {
    Duration::from_secs(self.number("SECONDS").unwrap_or(5))
  }

  fn trace_file(&self, process: u32) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("{}-{process}", self.prefix))
  }

  fn try_seeds(&self, mut run: impl FnMut(u64) -> &'static str) -> BTreeMap<&'static str, u64> {
    // Nothing else stops an endless seed.
    let current = Arc::new(AtomicU64::new(0));
    let watched = Arc::clone(&current);
    std::thread::spawn(move || {
      let mut seen = (0, Instant::now());
      loop {
        std::thread::sleep(Duration::from_secs(1));
        let seed = watched.load(Ordering::Relaxed);
        if seed != seen.0 {
          seen = (seed, Instant::now());
        } else if seen.1.elapsed() > HANG {
          eprintln!("seed {seed} hangs");
          std::process::abort();
        }
      }
    });

    let corpus = self
      .corpus
      .lines()
      .filter_map(|line| line.split('#').next()?.trim().parse::<u64>().ok());
    let first = self.number("SEED").unwrap_or(1);
    let started = Instant::now();
    let mut endings = BTreeMap::new();
    for (is_old, seed) in corpus
      .map(|seed| (true, seed))
      .chain((first..).map(|seed| (false, seed)))
    {
      if !is_old && seed - first >= LEAST && started.elapsed() > self.time() {
        break;
      }
      current.store(seed, Ordering::Relaxed);
      // The process may crash in the next line, and then this is the only information.
      let trace = self.trace_file(std::process::id());
      std::fs::write(trace, seed.to_string()).expect("a file can be written");
      *endings.entry(run(seed)).or_default() += 1;
    }
    let _ = std::fs::remove_file(self.trace_file(std::process::id()));
    eprintln!(
      "{}: {} seeds: {endings:?}",
      self.test,
      endings.values().sum::<u64>()
    );
    endings
  }

  fn start_child(&self) {
    let mut command = Command::new(std::env::current_exe().expect("the test has a file"));
    command
      .args(["--exact", self.test, "--nocapture"])
      .env(self.variable("CHILD"), "1")
      .stdout(Stdio::null());
    if self.number("SECONDS").is_some() && self.number("SEED").is_none() {
      let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("it is after 1970");
      command.env(self.variable("SEED"), now.as_secs().to_string() + "000000");
    }
    let mut child = command.spawn().expect("the test starts");
    let status = child.wait().expect("the test ends");
    let trace = self.trace_file(child.id());
    let seed = std::fs::read_to_string(&trace).unwrap_or_default();
    let _ = std::fs::remove_file(trace);
    assert!(status.success(), "{status}; the last seed was {seed}");
  }
}
