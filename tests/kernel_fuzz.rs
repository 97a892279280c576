//! Random calls of the kernel, checked against a model: the live blocks with their contents.
//!
//! A guest made of two modules asks the test for each step, executes it and reports the result. So every
//! result is compared at once, and every block at the end of each call. Steps are generated from seeds,
//! so a seed is enough to reproduce a run.
//!
//!     KERNEL_FUZZ_SECONDS=600 cargo test --release --test kernel_fuzz
//!
//! runs for ten minutes instead of a few seconds. `KERNEL_FUZZ_SEED` is the first seed; without it, the
//! time determines it, except in the default run. A failing seed is printed; add it to
//! `kernel_fuzz_corpus.txt`, which every run tries first.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use common::fuzz::{Fuzzer, Random};
use common::{Ending, KERNEL, Loaded, Use, World, beside_an_innocent, guest, wat};
use extism_host::abi::ValueType::{I32, I64};
use extism_host::host::{Answer, HostFunction, Invocation};
use extism_host::plugin::instance::{self, CallError, Outcome, Run};
use extism_host::plugin::interrupt::{Interrupt, Interruptions};

const FUZZER: Fuzzer = Fuzzer {
  test: "random_steps_agree_with_the_model",
  prefix: "KERNEL_FUZZ",
  corpus: include_str!("kernel_fuzz_corpus.txt"),
};

/// The limit of all live blocks together: 1 MiB.
const LIVE_LIMIT: u64 = 1 << 20;

/// The largest block.
const LARGEST: u64 = 0x7fff_ffff;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
  Alloc,
  Free,
  Length,
  LengthUnsafe,
  LoadByte,
  LoadWord,
  StoreByte,
  StoreWord,
  InputOffset,
  InputLength,
  InputByte,
  InputWord,
  InputSet,
  OutputSet,
  OutputOffset,
  OutputLength,
  ErrorSet,
  ErrorGet,
  Reset,
  MemoryBytes,
  HostAlloc,
  HostStore,
  HostAnswer,
  HostRead,
  HostError,
}

use Step::*;

/// Each step, in WAT, with its operands `$a` and `$b` (i64), what it leaves on the stack (an i64, or
/// nothing), and its weight.
const STEPS: [(Step, &str, bool, u64); 25] = [
  (Alloc, "(call $alloc (local.get $a))", true, 30),
  (Free, "(call $free (local.get $a))", false, 15),
  (Length, "(call $length (local.get $a))", true, 5),
  (
    LengthUnsafe,
    "(call $length_unsafe (local.get $a))",
    true,
    2,
  ),
  (
    LoadByte,
    "(i64.extend_i32_u (call $load_u8 (local.get $a)))",
    true,
    15,
  ),
  (LoadWord, "(call $load_u64 (local.get $a))", true, 15),
  (
    StoreByte,
    "(call $store_u8 (local.get $a) (i32.wrap_i64 (local.get $b)))",
    false,
    15,
  ),
  (
    StoreWord,
    "(call $store_u64 (local.get $a) (local.get $b))",
    false,
    15,
  ),
  (InputOffset, "(call $input_offset)", true, 2),
  (InputLength, "(call $input_length)", true, 2),
  (
    InputByte,
    "(i64.extend_i32_u (call $input_load_u8 (local.get $a)))",
    true,
    3,
  ),
  (InputWord, "(call $input_load_u64 (local.get $a))", true, 3),
  (
    InputSet,
    "(call $input_set (local.get $a) (local.get $b))",
    false,
    1,
  ),
  (
    OutputSet,
    "(call $output_set (local.get $a) (local.get $b))",
    false,
    6,
  ),
  (OutputOffset, "(call $output_offset)", true, 2),
  (OutputLength, "(call $output_length)", true, 2),
  (ErrorSet, "(call $error_set (local.get $a))", false, 3),
  (ErrorGet, "(call $error_get)", true, 2),
  (Reset, "(call $reset)", false, 1),
  (MemoryBytes, "(call $memory_bytes)", true, 1),
  (HostAlloc, "(call $host_alloc (local.get $a))", true, 6),
  (HostStore, "(call $host_store (local.get $a))", true, 6),
  (HostAnswer, "(call $host_answer (local.get $a))", true, 6),
  (HostRead, "(call $host_read (local.get $a))", false, 6),
  (HostError, "(call $host_error (local.get $a))", true, 2),
];

/// The index of a step.
const LOAD_BYTE: usize = 4;

/// The step that ends a call.
const END: u64 = 0xff;
/// Added to a step that the other module executes.
const OTHER: u64 = 0x100;

/// A module that executes steps, with these additional definitions.
fn module(definitions: &str) -> Vec<u8> {
  let (mut labels, mut cases) = (String::new(), String::new());
  for (number, (_, body, has_result, _)) in STEPS.iter().enumerate() {
    let _ = write!(labels, " $case{number}");
    let _ = match has_result {
      true => writeln!(cases, ") (return {body})"),
      false => writeln!(cases, ") {body} (return (i64.const 0))"),
    };
  }
  let open = (0..STEPS.len())
    .rev()
    .map(|number| format!("(block $case{number} "))
    .collect::<String>();
  wat(&format!(
    r#"(module {KERNEL}
         (import "fuzz" "alloc" (func $host_alloc (param i64) (result i64)))
         (import "fuzz" "store" (func $host_store (param i64) (result i64)))
         (import "fuzz" "answer" (func $host_answer (param i64) (result i64)))
         (import "fuzz" "read" (func $host_read (param i64)))
         (import "fuzz" "error" (func $host_error (param i64) (result i64)))
         (import "fuzz" "next" (func $next (result i64)))
         (import "fuzz" "operand" (func $operand (param i32) (result i64)))
         (import "fuzz" "result" (func $result (param i64)))
         {definitions}
         (func $do (export "do") (param $step i32) (param $a i64) (param $b i64) (result i64)
           {open} (block $none (br_table {labels} $none (local.get $step))) (unreachable)
           {cases}
           (unreachable)))"#
  ))
}

fn main_module() -> Vec<u8> {
  module(
    r#"(import "other" "do" (func $other (param i32 i64 i64) (result i64)))
       (func (export "run") (result i32) (local $step i64) (local $a i64) (local $b i64)
         (block $end (loop $again
           (local.set $step (call $next))
           (br_if $end (i64.eq (local.get $step) (i64.const 0xff)))
           (local.set $a (call $operand (i32.const 0)))
           (local.set $b (call $operand (i32.const 1)))
           (if (i64.ge_u (local.get $step) (i64.const 0x100))
             (then (call $result (call $other
               (i32.wrap_i64 (i64.sub (local.get $step) (i64.const 0x100)))
               (local.get $a) (local.get $b))))
             (else (call $result (call $do
               (i32.wrap_i64 (local.get $step)) (local.get $a) (local.get $b)))))
           (br $again)))
         (i32.const 0))"#,
  )
}

/// Numbers that are typical edge cases.
const NASTY: [u64; 31] = [
  0,
  1,
  2,
  7,
  8,
  12,
  15,
  16,
  17,
  63,
  64,
  65,
  127,
  128,
  65472,
  65535,
  65536,
  1 << 20,
  0x7fff_ffff,
  0x8000_0000,
  0xffff_fff8,
  0xffff_ffff,
  1 << 32,
  (1 << 32) + 64,
  1 << 48,
  u64::MAX / 2,
  1 << 63,
  (1 << 63) + 64,
  u64::MAX,
  u64::MAX - 7,
  u64::MAX - 63,
];

/// A random number, often an edge case.
fn nasty(random: &mut Random) -> u64 {
  let value = *random.choose(&NASTY);
  match random.below(4) {
    0 => value.wrapping_add(random.below(32)).wrapping_sub(16),
    1 => random.next(),
    _ => value,
  }
}

/// The model of the kernel.
#[derive(Default)]
struct Model {
  live: BTreeMap<u64, Vec<u8>>,
  input: (u64, u64),
  output: (u64, u64),
  error: u64,
}

impl Model {
  fn live_bytes(&self) -> u64 {
    self.live.values().map(|block| block.len() as u64).sum()
  }

  fn has_room_for(&self, length: u64) -> bool {
    self.live_bytes() + length <= LIVE_LIMIT
  }

  /// The bytes there, if they are in one live block.
  fn bytes(&mut self, offset: u64, length: u64) -> Option<&mut [u8]> {
    let (start, block) = self.live.range_mut(..=offset).next_back()?;
    let start = usize::try_from(offset - start).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    block.get_mut(start..end)
  }

  fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
  }

  /// Adds a new block, which must not overlap a live one.
  fn add(&mut self, offset: u64, content: Vec<u8>) {
    let end = offset + content.len() as u64;
    assert!(offset >= 64 && end < 1 << 32, "a block at {offset}");
    if let Some((start, block)) = self.live.range(..end).next_back() {
      let before = start + block.len() as u64;
      assert!(
        before <= offset,
        "a block at {offset} overlaps that at {start}"
      );
    }
    self.live.insert(offset, content);
  }

  /// A block that the host has allocated, or 0.
  fn add_by_host(&mut self, offset: u64, content: Vec<u8>) {
    let length = content.len() as u64;
    if length == 0 || length > LARGEST || !self.has_room_for(length) {
      assert_eq!(offset, 0, "a block of {length} bytes");
    } else {
      self.add(offset, content);
    }
  }

  fn free(&mut self, offset: u64) {
    if let Some(block) = self.live.get(&offset) {
      let end = offset + block.len() as u64;
      let kept = [self.input.0, self.output.0, self.error];
      if !kept
        .iter()
        .any(|kept| *kept != 0 && (offset..end).contains(kept))
      {
        self.live.remove(&offset);
      }
    }
  }
}

/// Why the run must end after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
  Result,
  Trap,
  OutOfMemory,
}

struct Fuzz {
  random: Random,
  /// The percentage of invalid operands.
  nonsense: u64,
  model: Model,
  left: u64,
  step: Step,
  operands: [u64; 2],
  expected: Expected,
  steps: u64,
  /// The start of the block that the guest has accessed last.
  last_used: u64,
  /// The block that it has freed last.
  last_freed: u64,
}

/// Bytes of this length that differ from block to block.
fn pattern(number: u64) -> Vec<u8> {
  let length = number % 300;
  (0..length)
    .map(|index| (number + index) as u8 | 1)
    .collect()
}

impl Fuzz {
  fn begin(seed: u64) -> Self {
    let mut random = Random(seed);
    Self {
      nonsense: [0, 0, 0, 1, 3, 30][random.below(6) as usize],
      random,
      model: Model::default(),
      left: 0,
      step: Reset,
      operands: [0; 2],
      expected: Expected::Result,
      steps: 0,
      last_used: 0,
      last_freed: 0,
    }
  }

  fn block(&mut self) -> u64 {
    let count = self.model.live.len() as u64;
    if count == 0 {
      return 0;
    }
    let place = self.random.below(count) as usize;
    *self.model.live.keys().nth(place).expect("there is one")
  }

  /// An address in a block with at least this many bytes after it; 0 if there is none.
  fn place(&mut self, size: u64) -> u64 {
    for _ in 0..4 {
      let block = self.block();
      let length = self.model.live.get(&block).map_or(0, Vec::len) as u64;
      if length >= size {
        return match self.random.below(4) {
          0 => block,
          1 => block + length - size,
          _ => block + self.random.below(length - size + 1),
        };
      }
    }
    0
  }

  fn is_nonsense(&mut self) -> bool {
    self.random.below(100) < self.nonsense
  }

  fn size(&mut self) -> u64 {
    match self.random.below(60) {
      0 => self.random.below(300_000),
      1..5 => 65_536 * (1 + self.random.below(3)) - self.random.below(160),
      5..15 => 128 + self.random.below(600),
      15 => 0,
      _ => 1 + self.random.below(64),
    }
  }

  /// Chooses a step for the guest.
  fn next(&mut self) -> u64 {
    if self.left == 0 {
      return END;
    }
    self.left -= 1;
    self.steps += 1;
    let total = STEPS.iter().map(|step| step.3).sum();
    let mut ticket = self.random.below(total);
    let mut chosen = 0;
    for (number, (_, _, _, weight)) in STEPS.iter().enumerate() {
      if ticket < *weight {
        chosen = number;
        break;
      }
      ticket -= weight;
    }
    // The kernel remembers the block that was used last, but only while it is live.
    if self.step == Free && self.nonsense > 0 && self.random.below(30) == 0 {
      self.step = LoadByte;
      self.operands = [self.last_freed, 0];
      self.expected = self.expect();
      return LOAD_BYTE as u64;
    }
    self.step = STEPS[chosen].0;
    let mut operands = match self.step {
      Alloc | HostAlloc => [self.size(), 0],
      HostStore | HostAnswer | HostError => [self.random.below(1000), 0],
      Free | Length | LengthUnsafe | HostRead | ErrorSet => [self.block(), 0],
      LoadByte => [self.place(1), 0],
      StoreByte => [self.place(1), self.random.below(256)],
      LoadWord => [self.place(8), 0],
      StoreWord => [self.place(8), self.random.next()],
      OutputSet => {
        let length = [0, 1, 5, 40][self.random.below(4) as usize];
        [self.place(length.max(1)), length]
      }
      _ => [self.random.below(300), self.random.next()],
    };
    if self.step == Free && self.random.below(3) == 0 {
      operands[0] = self.last_used;
    }
    if self.is_nonsense() {
      let nasty = nasty(&mut self.random);
      operands[0] = match self.random.below(6) {
        0 => operands[0].wrapping_add(nasty),
        1 => operands[0]
          .wrapping_add(self.random.below(17))
          .wrapping_sub(8),
        // From inside the block to after its end, or right after it.
        2 | 3 => {
          let block = self.block();
          let length = self.model.live.get(&block).map_or(0, Vec::len) as u64;
          (block + length).wrapping_sub(self.random.below(8))
        }
        4 => self.last_freed,
        _ => nasty,
      };
    }
    if self.step == OutputSet && self.is_nonsense() {
      operands[1] = nasty(&mut self.random);
    }
    self.operands = operands;
    self.expected = self.expect();
    let other = [0, OTHER][self.random.below(2) as usize];
    chosen as u64 + other
  }

  fn expect(&mut self) -> Expected {
    let [a, b] = self.operands;
    let trap_unless = |is_fine| match is_fine {
      true => Expected::Result,
      false => Expected::Trap,
    };
    match self.step {
      Alloc if a <= LARGEST && !self.model.has_room_for(a) => Expected::OutOfMemory,
      // A block for a host function's result counts as the guest's.
      HostAnswer if !self.model.has_room_for(pattern(a).len() as u64) => Expected::OutOfMemory,
      LoadByte | StoreByte => trap_unless(self.model.bytes(a, 1).is_some()),
      LoadWord | StoreWord => trap_unless(self.model.bytes(a, 8).is_some()),
      OutputSet => trap_unless(b == 0 || self.model.bytes(a, b).is_some()),
      ErrorSet => trap_unless(a == 0 || self.model.live.contains_key(&a)),
      _ => Expected::Result,
    }
  }

  /// Compares the result of the step, and applies the step to the model.
  fn check(&mut self, result: u64) {
    assert_eq!(self.expected, Expected::Result, "the guest goes on");
    let ([a, b], model) = (self.operands, &mut self.model);
    let (input, input_length) = model.input;
    match self.step {
      Free => self.last_freed = a,
      LoadByte | LoadWord | StoreByte | StoreWord => {
        let block = model.live.range(..=a).next_back();
        self.last_used = block.map_or(0, |(start, _)| *start);
      }
      _ => {}
    }
    let expected = match self.step {
      Alloc if a == 0 || a > LARGEST => 0,
      Alloc => {
        model.add(result, vec![0; a as usize]);
        result
      }
      Free => {
        model.free(a);
        0
      }
      Length | LengthUnsafe => model.live.get(&a).map_or(0, Vec::len) as u64,
      LoadByte => u64::from(model.bytes(a, 1).expect("it was expected")[0]),
      LoadWord => Model::word(model.bytes(a, 8).expect("it was expected")),
      StoreByte => {
        model.bytes(a, 1).expect("it was expected")[0] = b as u8;
        0
      }
      StoreWord => {
        let word = model.bytes(a, 8).expect("it was expected");
        word.copy_from_slice(&b.to_le_bytes());
        0
      }
      InputOffset => input,
      InputLength => input_length,
      InputByte if a < input_length => {
        u64::from(model.bytes(input + a, 1).expect("it is never freed")[0])
      }
      InputWord if input_length >= 8 && a <= input_length - 8 => {
        Model::word(model.bytes(input + a, 8).expect("it is never freed"))
      }
      InputByte | InputWord | InputSet | Reset => 0,
      OutputSet => {
        model.output = if b == 0 { (0, 0) } else { (a, b) };
        0
      }
      OutputOffset => model.output.0,
      OutputLength => model.output.1,
      ErrorSet => {
        model.error = a;
        0
      }
      ErrorGet => model.error,
      MemoryBytes => {
        let last = model.live.last_key_value();
        let end = last.map_or(0, |(start, block)| start + block.len() as u64);
        assert!(
          result >= end && result.is_multiple_of(65536),
          "{result} bytes"
        );
        result
      }
      HostAlloc => {
        let length = if a > LARGEST { 0 } else { a as usize };
        match model.has_room_for(length as u64) {
          true => model.add_by_host(result, vec![0; length]),
          false => assert_eq!(result, 0),
        }
        result
      }
      HostStore | HostAnswer => {
        model.add_by_host(result, pattern(a));
        result
      }
      HostError => {
        // The function returns the length of the message, or -1 if memory is exhausted.
        let message = pattern(a);
        match model.has_room_for(message.len() as u64) {
          true => message.len() as u64,
          false => u64::MAX,
        }
      }
      HostRead => 0,
    };
    assert_eq!(result, expected);
  }

  /// Compares the guest's blocks with the model's.
  fn check_blocks(&self, call: &Invocation<'_>) {
    for (offset, block) in &self.model.live {
      assert!(
        call.block(*offset) == Some(block.as_slice()),
        "the block at {offset} differs"
      );
    }
  }
}

type Shared = Arc<Mutex<Fuzz>>;

fn lock(fuzz: &Shared) -> MutexGuard<'_, Fuzz> {
  // A failed check panics in a host function, which ends the run and fails the test.
  fuzz
    .lock()
    .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn functions(fuzz: &Shared) -> Vec<HostFunction> {
  let number = |call: &Invocation<'_>| {
    call
      .value(0)
      .and_then(|value| value.i64())
      .expect("a number") as u64
  };
  let shared = || Arc::clone(fuzz);
  let (next, operand, result, read, error) = (shared(), shared(), shared(), shared(), shared());
  vec![
    HostFunction::new("fuzz", "next", [], Some(I64), move |call| {
      let mut fuzz = lock(&next);
      let step = fuzz.next();
      if step == END || fuzz.random.below(20) == 0 {
        fuzz.check_blocks(call);
      }
      Ok(Answer::I64(step as i64))
    }),
    HostFunction::new("fuzz", "operand", [I32], Some(I64), move |call| {
      let which = call
        .value(0)
        .and_then(|value| value.i32())
        .expect("a number");
      Ok(Answer::I64(lock(&operand).operands[which as usize] as i64))
    }),
    HostFunction::new("fuzz", "result", [I64], None, move |call| {
      let result_of_step = number(call);
      lock(&result).check(result_of_step);
      Ok(Answer::Nothing)
    }),
    HostFunction::new("fuzz", "alloc", [I64], Some(I64), move |call| {
      let length = number(call);
      Ok(Answer::I64(call.alloc(length) as i64))
    }),
    HostFunction::new("fuzz", "store", [I64], Some(I64), move |call| {
      let content = pattern(number(call));
      Ok(Answer::I64(call.store(&content) as i64))
    }),
    HostFunction::new("fuzz", "answer", [I64], Some(I64), move |call| {
      Ok(Answer::Bytes(pattern(number(call)).into()))
    }),
    HostFunction::new("fuzz", "read", [I64], None, move |call| {
      let (offset, fuzz) = (number(call), lock(&read));
      let expected = match offset {
        0 => Some(&[][..]),
        _ => fuzz.model.live.get(&offset).map(Vec::as_slice),
      };
      assert!(call.bytes(0) == expected, "the block at {offset} differs");
      Ok(Answer::Nothing)
    }),
    HostFunction::new("fuzz", "error", [I64], Some(I64), move |call| {
      let message = pattern(number(call));
      if !call.set_error(&message) {
        return Ok(Answer::I64(-1));
      }
      // The guest can ask where the block is; so can the model, by its length.
      let mut fuzz = lock(&error);
      fuzz.model.error = 0;
      if !message.is_empty() {
        let offset = (64..1 << 32)
          .step_by(16)
          .find(|offset| !fuzz.model.live.contains_key(offset) && call.block(*offset).is_some());
        let offset = offset.expect("the message is in a block");
        assert!(call.block(offset) == Some(&message), "the message differs");
        fuzz.model.error = offset;
        let length = message.len() as i64;
        fuzz.model.add(offset, message);
        return Ok(Answer::I64(length));
      }
      Ok(Answer::I64(0))
    }),
  ]
}

/// Runs the steps of a seed in a new instance. Returns how the run ended, and the number of steps.
fn run(plugin: &Loaded, fuzz: &Shared, seed: u64) -> (&'static str, u64) {
  *lock(fuzz) = Fuzz::begin(seed);
  let mut instance = plugin.instance();
  instance
    .initialize()
    .expect("there is nothing to initialize");
  let export = plugin.export("run");
  let calls = 1 + lock(fuzz).random.below(4);
  for number in 0..calls {
    let input = {
      let mut fuzz = lock(fuzz);
      let length = [0, 1, 8, 100, 1000][fuzz.random.below(5) as usize];
      let input = (0..length)
        .map(|_| fuzz.random.next() as u8)
        .collect::<Vec<_>>();
      fuzz.model = Model::default();
      fuzz.left = fuzz.random.below(150);
      if length > 0 {
        // The first block of a call.
        fuzz.model.add(64, input.clone());
        fuzz.model.input = (64, length);
      }
      input
    };
    let outcome = instance.call(number, export, input);
    let mut fuzz = lock(fuzz);
    let steps = fuzz.steps;
    let context = format!(
      "seed {seed}, step {steps}: {:?} {:?}",
      fuzz.step, fuzz.operands
    );
    match outcome {
      Outcome::Returned(result) => {
        assert_eq!(fuzz.left, 0, "{context}");
        let (output, length) = fuzz.model.output;
        let error = fuzz.model.error;
        match fuzz.model.live.get(&error) {
          Some(message) => {
            let message = String::from_utf8_lossy(message);
            let Err(CallError::Failed {
              code: 0,
              message: Some(found),
            }) = result
            else {
              panic!("{context}: {result:?}");
            };
            // Long messages are cut.
            let is_cut = message.len() > 64 << 10;
            assert!(is_cut || message == found, "{context}: the message differs");
          }
          None => {
            let expected = fuzz.model.bytes(output, length).map(|bytes| bytes.to_vec());
            let bytes = result.map(|output| output.bytes);
            assert_eq!(bytes, Ok(expected.unwrap_or_default()), "{context}");
          }
        }
        drop(fuzz);
        instance.reset();
      }
      Outcome::Ended(instance::Ending::Trapped { message, .. }) => {
        assert_eq!(fuzz.expected, Expected::Trap, "{context}");
        assert_eq!(
          message, "wasm trap: wasm `unreachable` instruction executed",
          "{context}"
        );
        return ("trap", steps);
      }
      Outcome::Ended(instance::Ending::OutOfMemory) => {
        assert_eq!(fuzz.expected, Expected::OutOfMemory, "{context}");
        return ("out of memory", steps);
      }
      other => panic!("{context}: {other:?}"),
    }
  }
  ("returned", lock(fuzz).steps)
}

#[test]
fn random_steps_agree_with_the_model() {
  let fuzz = &Arc::new(Mutex::new(Fuzz::begin(0)));
  let steps = &AtomicU64::new(0);
  FUZZER.run(
    || {
      let mut world = World::new();
      world.functions.extend(functions(fuzz));
      let limits = Use {
        live_bytes: Some(LIVE_LIMIT),
        ..Use::default()
      };
      let plugin = world.load_with(
        &[(Some("other"), &module("")), (None, &main_module())],
        limits,
      );
      move |seed| {
        let (ending, done) = run(&plugin, fuzz, seed);
        steps.fetch_add(done, Ordering::Relaxed);
        ending
      }
    },
    |endings| {
      eprintln!("{steps:?} steps");
      for ending in ["returned", "trap", "out of memory"] {
        assert!(
          endings.contains_key(ending),
          "no program ended so: {ending}"
        );
      }
    },
  );
}

/// Fills a block round by round and makes it the output; for ever if the input is empty.
const FILLING: &str = r#"
  (func (export "fill") (local $block i64) (local $round i64) (local $index i64)
    (local.set $block (call $alloc (i64.const 64)))
    (loop $next
      (local.set $index (i64.const 0))
      (loop $byte
        (call $store_u8
          (i64.add (local.get $block) (local.get $index))
          (i32.wrap_i64 (local.get $round)))
        (local.set $index (i64.add (local.get $index) (i64.const 1)))
        (br_if $byte (i64.lt_u (local.get $index) (i64.const 64))))
      (local.set $round (i64.add (local.get $round) (i64.const 1)))
      (br_if $next (i64.eqz (call $input_length)))
      (br_if $next (i64.lt_u (local.get $round) (call $input_length))))
    (call $output (local.get $block)))"#;

/// Two threads create instances, call them and drop them. A third interrupts instances, running ones and
/// dropped ones, at random moments.
fn interrupt_at_random(interruptions: Interruptions) {
  let plugin = World::new().load_with(
    &[(None, &guest(FILLING))],
    Use::interrupted_by(interruptions),
  );
  let plugin = &plugin;
  let started = Instant::now();
  let is_time_up = || started.elapsed() > FUZZER.time();
  let handles = [const { Mutex::new(Vec::<Interrupt>::new()) }; 2];
  let handles = &handles;
  let are_over = AtomicBool::new(false);
  let are_over = &are_over;
  let counts = [const { AtomicU64::new(0) }; 2];
  let [returned, interrupted] = &counts;
  std::thread::scope(|scope| {
    scope.spawn(move || {
      let random = &mut Random(7);
      while !are_over.load(Ordering::SeqCst) {
        let handles = handles[random.below(2) as usize].lock().expect("no panic");
        let newest = handles.len().saturating_sub(1) as u64;
        let chosen = match random.below(2) {
          0 => newest,
          _ => random.below(newest + 1),
        };
        let chosen = handles.get(chosen as usize).cloned();
        drop(handles);
        if let Some(interrupt) = chosen {
          interrupt.interrupt();
        }
        std::thread::sleep(Duration::from_micros(random.below(300)));
      }
    });
    let workers = [0, 1].map(|thread| {
      scope.spawn(move || {
        let random = &mut Random(thread as u64);
        while !is_time_up() {
          let mut instance = plugin.instance();
          let interrupt = instance.interrupt().clone();
          let mut handles = handles[thread].lock().expect("no panic");
          handles.push(interrupt.clone());
          if handles.len() > 8 {
            handles.remove(0);
          }
          drop(handles);
          let length = match random.below(4) {
            0 => 0,
            1 => 1,
            _ => 1 + random.below(50_000),
          };
          let report = plugin.run_instance(&mut instance, &[("fill", &vec![9; length as usize])]);
          match report.ending {
            Ending::Stopped => {
              assert_ne!(length, 0, "an endless call has returned");
              let byte = (length - 1) as u8;
              assert_eq!(report.results, [Ok(vec![byte; 64])]);
              returned.fetch_add(1, Ordering::SeqCst);
            }
            Ending::Interrupted => {
              assert!(interrupt.is_interrupted(), "nobody has interrupted it");
              interrupted.fetch_add(1, Ordering::SeqCst);
            }
            other => panic!("{other:?}"),
          }
        }
      })
    });
    let results = workers.map(|worker| worker.join());
    are_over.store(true, Ordering::SeqCst);
    for result in results {
      result.expect("see above");
    }
  });
  let [returned, interrupted] = counts.map(AtomicU64::into_inner);
  eprintln!("{interruptions:?}: {returned} calls returned, {interrupted} were interrupted");
  assert!(returned > 0 && interrupted > 0);
}

#[test]
fn interruptions_at_random_moments_by_the_page() {
  beside_an_innocent(Interruptions::Page, || {
    interrupt_at_random(Interruptions::Page);
  });
}

#[test]
fn interruptions_at_random_moments_by_the_epoch() {
  beside_an_innocent(Interruptions::Epoch, || {
    interrupt_at_random(Interruptions::Epoch);
  });
}
