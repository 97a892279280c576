//! Random programs against the guard: one guest, compiled once, that carries out the calls which
//! its input lists.
//!
//! The programs are made from seeds, so a seed is all that is needed to see one again. They are
//! biased towards sense (a program that begins with nonsense is over at its first step), and
//! nonsense comes in between. Every run is in a child process; what must not happen is that it dies
//! or hangs, that a function of the host finds what it cannot find, or that a trap comes from
//! anywhere but the guard.
//!
//!     GUARD_FUZZ_SECONDS=600 cargo test --test guard_fuzz
//!
//! runs for ten minutes instead of a few seconds. `GUARD_FUZZ_SEED` is the first seed; without it,
//! the time chooses, except in the default run. A failing seed is printed; add it to
//! `guard_fuzz_corpus.txt`, which every run begins with. `GUARD_FUZZ_COLLECT=1` prints the seeds
//! that did what none before did.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{KERNEL, Loaded, World, wat};
use extism_host::plugin::instance::Ending;
use extism_host::plugin::prepare::Limits;

const CORPUS: &str = include_str!("guard_fuzz_corpus.txt");

/// Longer than any program takes, by far.
const HANG: Duration = Duration::from_secs(20);

/// What an operation takes and gives. The operands are a first and a second value, and a byte.
struct Operation {
  /// In WAT, with `$a`, `$b` (i64). What is left on the stack, if anything, is an i64.
  body: &'static str,
  result: bool,
  /// How often it is chosen.
  weight: u32,
  /// What makes sense as the operands.
  first: Sense,
  second: Sense,
}

#[derive(Clone, Copy, PartialEq)]
enum Sense {
  Nothing,
  /// A block whose bytes do not matter.
  Block,
  /// A block with text.
  Key,
  /// A place in a block.
  Inside,
  /// A place in a block that is eight bytes from its end, or more.
  Word,
  Size,
  Any,
}

const fn operation(
  body: &'static str,
  result: bool,
  weight: u32,
  first: Sense,
  second: Sense,
) -> Operation {
  Operation {
    body,
    result,
    weight,
    first,
    second,
  }
}

use Sense::{Any, Block, Inside, Key, Nothing, Size, Word};

/// All functions that a guest can import, and two loops that write whole ranges.
const OPERATIONS: &[Operation] = &[
  operation("(call $alloc (local.get $a))", true, 30, Size, Nothing),
  operation("(call $free (local.get $a))", false, 12, Block, Nothing),
  operation("(call $length (local.get $a))", true, 4, Block, Nothing),
  operation(
    "(call $length_unsafe (local.get $a))",
    true,
    4,
    Block,
    Nothing,
  ),
  operation(
    "(i64.extend_i32_u (call $load_u8 (local.get $a)))",
    true,
    4,
    Inside,
    Nothing,
  ),
  operation("(call $load_u64 (local.get $a))", true, 2, Word, Nothing),
  operation(
    "(call $store_u8 (local.get $a) (i32.wrap_i64 (local.get $b)))",
    false,
    8,
    Inside,
    Any,
  ),
  operation(
    "(call $store_u64 (local.get $a) (local.get $b))",
    false,
    4,
    Word,
    Any,
  ),
  operation("(call $input_length)", true, 1, Nothing, Nothing),
  operation("(call $input_offset)", true, 2, Nothing, Nothing),
  operation(
    "(i64.extend_i32_u (call $input_load_u8 (local.get $a)))",
    true,
    1,
    Any,
    Nothing,
  ),
  operation(
    "(call $input_load_u64 (local.get $a))",
    true,
    1,
    Any,
    Nothing,
  ),
  operation(
    "(call $input_set (local.get $a) (local.get $b))",
    false,
    1,
    Any,
    Any,
  ),
  operation(
    "(call $output_set (local.get $a) (local.get $b))",
    false,
    4,
    Block,
    Size,
  ),
  operation(
    "(call $output_set (local.get $a) (call $length (local.get $a)))",
    false,
    4,
    Block,
    Nothing,
  ),
  operation("(call $output_offset)", true, 1, Nothing, Nothing),
  operation("(call $output_length)", true, 1, Nothing, Nothing),
  operation("(call $error_set (local.get $a))", false, 3, Block, Nothing),
  operation("(call $error_get)", true, 1, Nothing, Nothing),
  operation("(call $reset)", false, 1, Nothing, Nothing),
  operation("(call $memory_bytes)", true, 1, Nothing, Nothing),
  operation("(call $config_get (local.get $a))", true, 3, Key, Nothing),
  operation("(call $var_get (local.get $a))", true, 3, Key, Nothing),
  operation(
    "(call $var_set (local.get $a) (local.get $b))",
    false,
    3,
    Key,
    Block,
  ),
  operation(
    "(call $http_request (local.get $a) (local.get $b))",
    true,
    1,
    Block,
    Block,
  ),
  operation(
    "(i64.extend_i32_u (call $http_status_code))",
    true,
    1,
    Nothing,
    Nothing,
  ),
  operation("(call $http_headers)", true, 1, Nothing, Nothing),
  operation("(call $log_trace (local.get $a))", false, 1, Block, Nothing),
  operation("(call $log_debug (local.get $a))", false, 1, Block, Nothing),
  operation("(call $log_info (local.get $a))", false, 2, Block, Nothing),
  operation("(call $log_warn (local.get $a))", false, 1, Block, Nothing),
  operation("(call $log_error (local.get $a))", false, 2, Block, Nothing),
  operation(
    "(i64.extend_i32_s (call $get_log_level))",
    true,
    1,
    Nothing,
    Nothing,
  ),
  operation(
    "(call $host_memory_get (local.get $a))",
    true,
    8,
    Key,
    Nothing,
  ),
  operation("(call $store_get (local.get $a))", true, 4, Key, Nothing),
  operation(
    "(call $store_set (local.get $a) (local.get $b) (i64.const 0))",
    true,
    4,
    Key,
    Block,
  ),
  operation("(call $store_delete (local.get $a))", true, 1, Key, Nothing),
  operation(
    "(call $store_keys (local.get $a) (local.get $b) (i64.const 3))",
    true,
    2,
    Key,
    Block,
  ),
  operation(
    "(call $store_increment (local.get $a) (local.get $b))",
    true,
    2,
    Key,
    Any,
  ),
  operation(
    "(call $store_swap (local.get $a) (local.get $b) (local.get $b) (i64.const 0))",
    true,
    2,
    Key,
    Block,
  ),
  operation(
    "(call $store_get_many (local.get $a))",
    true,
    2,
    Block,
    Nothing,
  ),
  // The words "hello", "large", "color", "k" in a block: keys that have values.
  operation("(call $key (local.get $a))", true, 8, Any, Nothing),
  // All of a block, with a byte that is a status of the kernel's headers or a size.
  operation(
    "(call $fill (local.get $a) (local.get $b))",
    false,
    12,
    Block,
    Any,
  ),
  // A good deal of whatever lies around a place.
  operation(
    "(call $smear (local.get $a) (local.get $b))",
    false,
    1,
    Inside,
    Any,
  ),
  // No room at the end of the memory: from here on, freed blocks are used again, whole or split.
  operation("(call $exhaust)", false, 2, Nothing, Nothing),
];

/// The guest. A step of a program is 24 bytes: operation, the slot for the result, a byte of
/// nothing, then how to make the two operands (a slot, and what to do with it) and two numbers.
fn interpreter() -> Vec<u8> {
  let mut labels = String::new();
  let mut cases = String::new();
  for (number, operation) in OPERATIONS.iter().enumerate() {
    let _ = write!(labels, " $case{number}");
    let result = if operation.result {
      format!(
        "(local.set $result {}) (local.set $has_result (i32.const 1))",
        operation.body
      )
    } else {
      operation.body.to_owned()
    };
    let _ = writeln!(cases, ") {result} (br $end)");
  }
  let open = (0..OPERATIONS.len())
    .rev()
    .map(|number| format!("(block $case{number} "))
    .collect::<String>();
  let last = OPERATIONS.len() - 1;
  wat(&format!(
    r#"(module {KERNEL}
          (memory 16)
          (data (i32.const 256) "hello\00\00\00large\00\00\00color\00\00\00k")
          ;; The slots are at 0. The program is copied to 4096, or it could write on itself.
          (func $operand (param $how i32) (param $number i64) (result i64) (local $slot i64)
            (local.set $slot (i64.load (i32.shl (i32.and (local.get $how) (i32.const 15)) (i32.const 3))))
            (local.set $how (i32.shr_u (local.get $how) (i32.const 4)))
            (if (i32.eq (local.get $how) (i32.const 0)) (then (return (local.get $slot))))
            (if (i32.eq (local.get $how) (i32.const 1)) (then (return (local.get $number))))
            (if (i32.eq (local.get $how) (i32.const 2))
              (then (return (i64.add (local.get $slot) (local.get $number)))))
            (if (i32.eq (local.get $how) (i32.const 3))
              (then (return (i64.sub (i64.add (local.get $slot) (call $length (local.get $slot))) (local.get $number)))))
            ;; Inside the block, somewhere.
            (if (i64.eqz (call $length (local.get $slot))) (then (return (local.get $slot))))
            (i64.add (local.get $slot)
              (i64.rem_u (local.get $number) (call $length (local.get $slot)))))
          (func $exhaust (local $position i64) (local $left i64)
            (local.set $position (i64.sub (call $alloc (i64.const 8)) (i64.const 57)))
            (local.set $left (i64.sub (i64.sub (call $memory_bytes) (local.get $position)) (i64.const 64)))
            (if (i64.gt_s (local.get $left) (i64.const 20))
              (then (drop (call $alloc (i64.sub (local.get $left) (i64.const 14)))))))
          (func $key (param $which i64) (result i64)
            (local $from i32) (local $length i32) (local $offset i64) (local $index i32)
            (local.set $from (i32.add (i32.const 256)
              (i32.shl (i32.and (i32.wrap_i64 (local.get $which)) (i32.const 3)) (i32.const 3))))
            (local.set $length (select (i32.const 1) (i32.const 5)
              (i32.eq (local.get $from) (i32.const 280))))
            (local.set $offset (call $alloc (i64.extend_i32_u (local.get $length))))
            (loop $next
              (call $store_u8
                (i64.add (local.get $offset) (i64.extend_i32_u (local.get $index)))
                (i32.load8_u (i32.add (local.get $from) (local.get $index))))
              (local.set $index (i32.add (local.get $index) (i32.const 1)))
              (br_if $next (i32.lt_u (local.get $index) (local.get $length))))
            (local.get $offset))
          (func $fill (param $offset i64) (param $byte i64) (local $end i64)
            (local.set $end (i64.add (local.get $offset) (call $length (local.get $offset))))
            (if (i64.gt_u (call $length (local.get $offset)) (i64.const 20000)) (then (return)))
            (block $done (loop $next
              (br_if $done (i64.ge_u (local.get $offset) (local.get $end)))
              (call $store_u8 (local.get $offset) (i32.wrap_i64 (local.get $byte)))
              (local.set $offset (i64.add (local.get $offset) (i64.const 1)))
              (br $next))))
          (func $smear (param $offset i64) (param $byte i64) (local $end i64)
            (local.set $end (i64.add (local.get $offset) (i64.const 400)))
            (loop $next
              (call $store_u8 (local.get $offset) (i32.wrap_i64 (local.get $byte)))
              (local.set $offset (i64.add (local.get $offset) (i64.const 1)))
              (br_if $next (i64.lt_u (local.get $offset) (local.get $end)))))
          (func (export "program") (result i32)
            (local $at i32) (local $end i32) (local $word i64)
            (local $a i64) (local $b i64) (local $result i64) (local $has_result i32)
            (local.set $end (i32.add (i32.const 4096) (i32.wrap_i64 (call $input_length))))
            (local.set $at (i32.const 4096))
            (block $copied (loop $copy
              (br_if $copied (i32.ge_u (local.get $at) (local.get $end)))
              (i64.store (local.get $at)
                (call $input_load_u64 (i64.extend_i32_u (i32.sub (local.get $at) (i32.const 4096)))))
              (local.set $at (i32.add (local.get $at) (i32.const 8)))
              (br $copy)))
            (local.set $at (i32.const 4096))
            (block $over (loop $step
              (br_if $over (i32.ge_u (local.get $at) (local.get $end)))
              (local.set $has_result (i32.const 0))
              (call $count (i32.load8_u (local.get $at)))
              (local.set $a (call $operand (i32.load8_u offset=3 (local.get $at)) (i64.load offset=8 (local.get $at))))
              (local.set $b (call $operand (i32.load8_u offset=4 (local.get $at)) (i64.load offset=16 (local.get $at))))
              (block $end
                {open}
                (br_table {labels} $case{last} (i32.load8_u (local.get $at)))
                {cases}
              )
              (if (local.get $has_result) (then
                (i64.store (i32.shl (i32.and (i32.load8_u offset=1 (local.get $at)) (i32.const 15)) (i32.const 3))
                  (local.get $result))))
              (local.set $at (i32.add (local.get $at) (i32.const 24)))
              (br $step)))
            (i32.const 0)))"#
  ))
}

/// Numbers that have broken something somewhere.
const NASTY: [u64; 34] = [
  0,
  1,
  2,
  7,
  8,
  11,
  12,
  13,
  63,
  64,
  65,
  76,
  77,
  127,
  128,
  129,
  65459,
  65460,
  65472,
  65535,
  65536,
  1 << 20,
  (1 << 20) - 12,
  0x7fff_ffff,
  0x8000_0000,
  0xffff_ffff,
  1 << 32,
  (1 << 32) + 8,
  1 << 48,
  u64::MAX / 2,
  1 << 63,
  u64::MAX,
  u64::MAX - 7,
  u64::MAX - 11,
];

/// SplitMix64: small, and good enough for choosing.
struct Random(u64);

impl Random {
  fn next(&mut self) -> u64 {
    self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = self.0;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
  }

  fn below(&mut self, limit: u64) -> u64 {
    self.next() % limit
  }

  fn nasty(&mut self) -> u64 {
    let value = NASTY[self.below(NASTY.len() as u64) as usize];
    match self.below(4) {
      0 => value.wrapping_add(self.below(32)).wrapping_sub(16),
      1 => self.next(),
      _ => value,
    }
  }
}

/// The program of a seed, as inputs for one instance.
fn program(seed: u64) -> Vec<Vec<u8>> {
  let random = &mut Random(seed);
  // How many operands in a hundred make no sense.
  let nonsense = [0, 0, 1, 3, 10, 40][random.below(6) as usize];
  let total = OPERATIONS
    .iter()
    .map(|operation| operation.weight)
    .sum::<u32>();
  (0..1 + random.below(3))
    .map(|_| {
      let mut bytes = Vec::new();
      let mut step = |number: usize, slot: u8, first: (u8, u64), second: (u8, u64)| {
        bytes.extend([number as u8, slot, 0, first.0, second.0, 0, 0, 0]);
        bytes.extend(first.1.to_le_bytes());
        bytes.extend(second.1.to_le_bytes());
      };
      // Slots from 12 on hold keys, and those in this list hold blocks, as far as one can
      // tell.
      let mut blocks: Vec<u8> = Vec::new();
      if random.below(20) > 0 {
        for slot in 12..16 {
          step(KEY, slot, (1 << 4, random.next()), (0, 0));
        }
        for slot in 0..3 {
          step(ALLOC, slot, (1 << 4, 8 + random.below(300)), (0, 0));
          blocks.push(slot);
        }
        if random.below(2) == 0 {
          step(EXHAUST, 0, (0, 0), (0, 0));
        }
      }
      for _ in 0..random.below(200) {
        let mut ticket = random.below(u64::from(total)) as u32;
        let mut number = 0;
        for (place, operation) in OPERATIONS.iter().enumerate() {
          if ticket < operation.weight {
            number = place;
            break;
          }
          ticket -= operation.weight;
        }
        let operation = &OPERATIONS[number];
        // These end the program, so they are rarer still.
        if matches!(number, REQUEST | SMEAR) && random.below(10) > 0 {
          continue;
        }
        let operand = |random: &mut Random, sense: Sense| -> (u8, u64) {
          let block = match blocks.len() as u64 {
            0 => return (1 << 4, 0),
            count => blocks[random.below(count) as usize],
          };
          if random.below(100) < nonsense {
            let slot = random.below(16) as u8;
            return ((random.below(5) as u8) << 4 | slot, random.nasty());
          }
          match sense {
            Sense::Key => (12 + random.below(4) as u8, 0),
            Sense::Block => (block, 0),
            Sense::Word if random.below(2) == 0 => (3 << 4 | block, 8),
            Sense::Word => (block, 0),
            Sense::Inside if random.below(3) == 0 => (3 << 4 | block, 1),
            Sense::Inside => (4 << 4 | block, random.next()),
            Sense::Size => {
              let size = match random.below(8) {
                0 => 8 + random.below(70_000),
                1 => 65_536 * (1 + random.below(3)) - random.below(160),
                2 => 128 + random.below(600),
                _ => 8 + random.below(64),
              };
              (1 << 4, size)
            }
            Sense::Any | Sense::Nothing => (1 << 4, random.below(256)),
          }
        };
        let needs_block = !matches!(operation.first, Any | Nothing | Size);
        if blocks.is_empty() && needs_block && random.below(100) >= nonsense {
          continue;
        }
        // Most of the time the size of an output is that of a block, and small.
        let first = operand(random, operation.first);
        let second = match number {
          OUTPUT_SET if random.below(100) >= nonsense => (1 << 4, random.below(2)),
          _ => operand(random, operation.second),
        };
        let slot = match number {
          KEY => 12 + random.below(4) as u8,
          _ => random.below(12) as u8,
        };
        if operation.result && slot < 12 {
          blocks.retain(|block| *block != slot);
          if number == ALLOC {
            blocks.push(slot);
          }
        }
        if number == FREE && random.below(100) >= nonsense {
          blocks.retain(|block| *block != first.0);
        }
        step(number, slot, first, second);
      }
      bytes
    })
    .collect()
}

/// The places of some operations.
const ALLOC: usize = 0;
const FREE: usize = 1;
const OUTPUT_SET: usize = 13;
const REQUEST: usize = 24;
const KEY: usize = 34;
const SMEAR: usize = 36;
const EXHAUST: usize = 37;

/// Runs the program of a seed. Returns what it did last and how that ended.
fn run(world: &World, plugin: &Loaded, seed: u64) -> (i32, String) {
  let inputs = program(seed);
  let calls = inputs
    .iter()
    .map(|input| ("program", input.as_slice()))
    .collect::<Vec<_>>();
  world.counts.lock().unwrap().clear();
  for key in ["hello", "large", "color", "k"] {
    world.vars.remove(key).unwrap();
  }
  let report = plugin.run(&calls);
  world.lines.0.lock().unwrap().clear();
  let last = world.counts().last().copied().unwrap_or(-1);
  let ending = match report.ending {
    Ending::Stopped => {
      assert_eq!(report.results.len(), calls.len(), "seed {seed}");
      format!("stopped {}", world.counts().len() / 50)
    }
    Ending::OutOfMemory => "out of memory".to_owned(),
    Ending::HostFunction(_) => "host function".to_owned(),
    // Anything else is a trap in the kernel, to which the guard let something through.
    Ending::Trapped(message) if message == "wasm trap: wasm `unreachable` instruction executed" => {
      "trap".to_owned()
    }
    other => panic!("seed {seed}: {other:?}"),
  };
  (last, ending)
}

fn child() {
  let seconds = number("GUARD_FUZZ_SECONDS").unwrap_or(5);
  let first = number("GUARD_FUZZ_SEED").unwrap_or(1);
  let collect = number("GUARD_FUZZ_COLLECT").is_some();

  let world = World::with_vars(1 << 20);
  let limits = Limits {
    // Small enough to be reached.
    memory_pages: 128,
    growth_pages: Some(96),
    ..Limits::default()
  };
  let plugin = world.load_with(&[(None, &interpreter())], limits);

  // A hang is not ended by anything here: it would be a loop in the kernel. So there is a thread
  // that looks.
  let current = Arc::new(AtomicU64::new(0));
  let since = Arc::new(Mutex::new(Instant::now()));
  let (watched, watched_since) = (current.clone(), since.clone());
  std::thread::spawn(move || {
    loop {
      std::thread::sleep(Duration::from_secs(1));
      if watched_since.lock().unwrap().elapsed() > HANG {
        eprintln!("seed {} hangs", watched.load(Ordering::Relaxed));
        std::process::abort();
      }
    }
  });

  let corpus = CORPUS
    .lines()
    .filter_map(|line| line.split('#').next()?.trim().parse::<u64>().ok());
  let started = Instant::now();
  let mut seen = BTreeSet::new();
  let mut endings = BTreeMap::<String, u64>::new();
  let mut programs = 0_u64;
  let mut standard_error = std::io::stderr();
  for (place, seed) in corpus
    .map(|seed| (true, seed))
    .chain((first..).map(|seed| (false, seed)))
  {
    if !place && started.elapsed() > Duration::from_secs(seconds) {
      break;
    }
    current.store(seed, Ordering::Relaxed);
    *since.lock().unwrap() = Instant::now();
    // The process may die at the next line, and then this is all that is known.
    std::fs::write(trace_file(std::process::id()), seed.to_string()).unwrap();
    let (last, ending) = run(&world, &plugin, seed);
    programs += 1;
    *endings.entry(ending.clone()).or_default() += 1;
    if seen.insert((last, ending.clone())) && collect && !place {
      let _ = writeln!(standard_error, "{seed} # {ending}, operation {last}");
    }
  }
  eprintln!("{programs} programs: {endings:?}");
  let _ = std::fs::remove_file(trace_file(std::process::id()));
}

fn trace_file(process: u32) -> std::path::PathBuf {
  std::env::temp_dir().join(format!("guard-fuzz-{process}"))
}

fn number(variable: &str) -> Option<u64> {
  std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn random_programs() {
  const MARK: &str = "GUARD_FUZZ_CHILD";
  if std::env::var_os(MARK).is_some() {
    child();
    return;
  }
  let mut command = Command::new(std::env::current_exe().unwrap());
  command
    .args(["--exact", "random_programs", "--nocapture"])
    .env(MARK, "1")
    .stdout(Stdio::null());
  if number("GUARD_FUZZ_SECONDS").is_some() && number("GUARD_FUZZ_SEED").is_none() {
    let now = std::time::SystemTime::now()
      .duration_since(std::time::UNIX_EPOCH)
      .unwrap();
    command.env("GUARD_FUZZ_SEED", now.as_secs().to_string() + "000000");
  }
  let mut child = command.spawn().unwrap();
  let status = child.wait().unwrap();
  let trace = trace_file(child.id());
  let seed = std::fs::read_to_string(&trace).unwrap_or_default();
  let _ = std::fs::remove_file(trace);
  assert!(status.success(), "{status}; the last seed was {seed}");
}
