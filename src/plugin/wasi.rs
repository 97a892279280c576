//! WASI preview 1: Wasmtime's implementation, with what Extism's guests need on top.
//!
//! Wasmtime's own `add_to_linker` uses the memory that is exported as `memory`, cannot interrupt a sleep,
//! writes only the first of several buffers, and does not limit open descriptors. So each function is
//! defined here and forwards its arguments.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Caller, Extern, Linker};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as preview1, WasiSnapshotPreview1};
use wasmtime_wasi::runtime::in_tokio;
use wiggle::GuestMemory;

use crate::host::{Guest, Stop};

// WASI's error numbers.
const SUCCESS: i32 = 0;
const BAD_DESCRIPTOR: i32 = 8;
const FAULT: i32 = 21;
const INVALID: i32 = 28;
const TOO_MANY_FILES: i32 = 33;

/// Sizes of a subscription and an event of `poll_oneoff`, the tag of clock subscriptions and events, and
/// the flag for an absolute time.
const SUBSCRIPTION: usize = 48;
const EVENT: usize = 32;
const CLOCK: u8 = 0;
const ABSOLUTE: u8 = 1;

/// The highest descriptor of the standard streams.
const LAST_STREAM: u32 = 2;

/// The maximum number of buffers in one write.
const MAX_BUFFERS: u32 = 1024;

/// The maximum number of files and directories that a guest may have open at once, besides its preopened
/// ones.
const MAX_OPEN: u32 = 128;

/// The maximum number that it may keep open between calls.
pub const MAX_KEPT_OPEN: u32 = 8;

/// Defines WASI's functions in `namespace`, for the memory that is exported as `memory`.
pub fn add_to_linker(
  linker: &mut Linker<Guest>,
  namespace: &str,
  memory: &str,
) -> wasmtime::Result<()> {
  let memory: Arc<str> = Arc::from(memory);

  // These functions never block.
  macro_rules! pass_on {
    ($($name:ident($($arg:ident: $ty:ty),*) $(reads $what:ident)?,)*) => {$({
      let memory = Arc::clone(&memory);
      linker.func_wrap(
        namespace,
        stringify!($name),
        move |mut caller: Caller<'_, Guest>, $($arg: $ty),*| -> wasmtime::Result<i32> {
          $(caller.data_mut().has_read.$what = true;)?
          let (mut bytes, context) = split(&mut caller, &memory)?;
          preview1::$name(context, &mut bytes, $($arg),*)
        },
      )?;
    })*};
  }
  // These functions may block on the file system.
  macro_rules! pass_on_and_wait {
    ($($name:ident($($arg:ident: $ty:ty),*),)*) => {$({
      let memory = Arc::clone(&memory);
      linker.func_wrap(
        namespace,
        stringify!($name),
        move |mut caller: Caller<'_, Guest>, $($arg: $ty),*| -> wasmtime::Result<i32> {
          let (mut bytes, context) = split(&mut caller, &memory)?;
          in_tokio(preview1::$name(context, &mut bytes, $($arg),*))
        },
      )?;
    })*};
  }
  pass_on! {
    args_get(a: i32, b: i32),
    args_sizes_get(a: i32, b: i32),
    clock_res_get(a: i32, b: i32),
    clock_time_get(a: i32, b: i64, c: i32) reads clock,
    environ_get(a: i32, b: i32),
    environ_sizes_get(a: i32, b: i32),
    fd_allocate(a: i32, b: i64, c: i64),
    fd_fdstat_set_flags(a: i32, b: i32),
    fd_fdstat_set_rights(a: i32, b: i64, c: i64),
    fd_prestat_dir_name(a: i32, b: i32, c: i32),
    fd_prestat_get(a: i32, b: i32),
    fd_tell(a: i32, b: i32),
    proc_raise(a: i32),
    random_get(a: i32, b: i32) reads random,
    sched_yield(),
    sock_accept(a: i32, b: i32, c: i32),
    sock_recv(a: i32, b: i32, c: i32, d: i32, e: i32, f: i32),
    sock_send(a: i32, b: i32, c: i32, d: i32, e: i32),
    sock_shutdown(a: i32, b: i32),
  }
  pass_on_and_wait! {
    fd_advise(a: i32, b: i64, c: i64, d: i32),
    fd_datasync(a: i32),
    fd_fdstat_get(a: i32, b: i32),
    fd_filestat_get(a: i32, b: i32),
    fd_filestat_set_size(a: i32, b: i64),
    fd_filestat_set_times(a: i32, b: i64, c: i64, d: i32),
    fd_pread(a: i32, b: i32, c: i32, d: i64, e: i32),
    fd_pwrite(a: i32, b: i32, c: i32, d: i64, e: i32),
    fd_read(a: i32, b: i32, c: i32, d: i32),
    fd_readdir(a: i32, b: i32, c: i32, d: i64, e: i32),
    fd_seek(a: i32, b: i64, c: i32, d: i32),
    fd_sync(a: i32),
    path_create_directory(a: i32, b: i32, c: i32),
    path_filestat_get(a: i32, b: i32, c: i32, d: i32, e: i32),
    path_filestat_set_times(a: i32, b: i32, c: i32, d: i32, e: i64, f: i64, g: i32),
    path_link(a: i32, b: i32, c: i32, d: i32, e: i32, f: i32, g: i32),
    path_readlink(a: i32, b: i32, c: i32, d: i32, e: i32, f: i32),
    path_remove_directory(a: i32, b: i32, c: i32),
    path_rename(a: i32, b: i32, c: i32, d: i32, e: i32, f: i32),
    path_symlink(a: i32, b: i32, c: i32, d: i32, e: i32),
    path_unlink_file(a: i32, b: i32, c: i32),
  }

  let name = Arc::clone(&memory);
  linker.func_wrap(
    namespace,
    "fd_write",
    move |mut caller: Caller<'_, Guest>,
          descriptor: i32,
          buffers: i32,
          count: i32,
          written: i32| {
      if matches!(descriptor, 1 | 2) {
        return write_stream(&mut caller, &name, descriptor, [buffers, count, written]);
      }
      let (mut bytes, context) = split(&mut caller, &name)?;
      in_tokio(preview1::fd_write(
        context, &mut bytes, descriptor, buffers, count, written,
      ))
    },
  )?;
  let name = Arc::clone(&memory);
  linker.func_wrap(
    namespace,
    "fd_close",
    move |mut caller: Caller<'_, Guest>, descriptor: i32| -> wasmtime::Result<i32> {
      // If a guest could close a stream, a file that is opened later could be mistaken for that stream.
      if descriptor as u32 <= LAST_STREAM {
        return Ok(BAD_DESCRIPTOR);
      }
      let (mut bytes, context) = split(&mut caller, &name)?;
      let closed = in_tokio(preview1::fd_close(context, &mut bytes, descriptor))?;
      Ok(count_closed(&mut caller, closed))
    },
  )?;
  let name = Arc::clone(&memory);
  linker.func_wrap(
    namespace,
    "fd_renumber",
    move |mut caller: Caller<'_, Guest>, from: i32, to: i32| -> wasmtime::Result<i32> {
      if from as u32 <= LAST_STREAM || to as u32 <= LAST_STREAM {
        return Ok(BAD_DESCRIPTOR);
      }
      let (mut bytes, context) = split(&mut caller, &name)?;
      let moved = in_tokio(preview1::fd_renumber(context, &mut bytes, from, to))?;
      // The file at `to` has been closed.
      Ok(if from == to {
        moved
      } else {
        count_closed(&mut caller, moved)
      })
    },
  )?;
  let name = Arc::clone(&memory);
  linker.func_wrap(
    namespace,
    "path_open",
    #[allow(clippy::too_many_arguments, reason = "they are WASI's")]
    move |mut caller: Caller<'_, Guest>,
          a: i32,
          b: i32,
          c: i32,
          d: i32,
          e: i32,
          f: i64,
          g: i64,
          h: i32,
          i: i32|
          -> wasmtime::Result<i32> {
      if caller.data().open_descriptors >= MAX_OPEN {
        return Ok(TOO_MANY_FILES);
      }
      let (mut bytes, context) = split(&mut caller, &name)?;
      let opened = in_tokio(preview1::path_open(
        context, &mut bytes, a, b, c, d, e, f, g, h, i,
      ))?;
      if opened == SUCCESS {
        caller.data_mut().open_descriptors += 1;
      }
      Ok(opened)
    },
  )?;
  let name = Arc::clone(&memory);
  linker.func_wrap(
    namespace,
    "poll_oneoff",
    move |mut caller: Caller<'_, Guest>, a: i32, b: i32, c: i32, d: i32| -> wasmtime::Result<i32> {
      let interruption = Arc::clone(&caller.data().interruption);
      if c == 1
        && let Some((time, event)) = requested_sleep(&mut caller, &name, a)?
      {
        if !interruption.sleep(time) {
          return Err(wasmtime::Error::new(Stop::Interrupted));
        }
        return write_sleep_event(&mut caller, &name, event, [b, d]);
      }
      let (mut bytes, context) = split(&mut caller, &name)?;
      let poll = preview1::poll_oneoff(context, &mut bytes, a, b, c, d);
      in_tokio(interruption.wait_for(poll))
        .unwrap_or_else(|| Err(wasmtime::Error::new(Stop::Interrupted)))
    },
  )?;
  linker.func_wrap(
    namespace,
    "proc_exit",
    move |mut caller: Caller<'_, Guest>, code: i32| -> wasmtime::Result<()> {
      let (mut bytes, context) = split(&mut caller, &memory)?;
      preview1::proc_exit(context, &mut bytes, code)
    },
  )?;
  Ok(())
}

/// The guest's memory and its WASI context.
fn split<'a>(
  caller: &'a mut Caller<'_, Guest>,
  memory: &str,
) -> wasmtime::Result<(GuestMemory<'a>, &'a mut WasiP1Ctx)> {
  let Some(Extern::Memory(memory)) = caller.get_export(memory) else {
    wasmtime::bail!("WASI needs a memory that the module exports as `memory`");
  };
  let (bytes, guest) = memory.data_and_store_mut(caller);
  let Some(context) = &mut guest.wasi else {
    wasmtime::bail!("the instance has no WASI");
  };
  context.set_hostcall_fuel(HOSTCALL_FUEL);
  Ok((GuestMemory::Unshared(bytes), context))
}

/// How many bytes one WASI call may copy out of the guest: Wasmtime's default.
const HOSTCALL_FUEL: usize = 128 << 20;

/// The duration of a requested sleep and the event that ends it; `None` if the subscription is for
/// something else. Wasmtime's `poll_oneoff` would block the thread during a sleep, and no interruption
/// could wake it.
fn requested_sleep(
  caller: &mut Caller<'_, Guest>,
  memory: &str,
  subscription: i32,
) -> wasmtime::Result<Option<(Duration, [u8; EVENT])>> {
  let (GuestMemory::Unshared(bytes), _) = split(caller, memory)? else {
    return Ok(None);
  };
  let subscription = bytes.get(subscription as u32 as usize..);
  let Some(subscription) = subscription.and_then(<[u8]>::first_chunk::<SUBSCRIPTION>) else {
    return Ok(None);
  };
  let [userdata, tag, _, timeout, _, flags] = *subscription.as_chunks::<8>().0 else {
    return Ok(None);
  };
  if tag[0] != CLOCK || flags[0] & ABSOLUTE != 0 {
    return Ok(None);
  }
  let mut event = [0; EVENT];
  event[..8].copy_from_slice(&userdata);
  event[10] = CLOCK;
  Ok(Some((
    Duration::from_nanos(u64::from_le_bytes(timeout)),
    event,
  )))
}

/// Writes the event that ends a sleep to the guest's memory.
fn write_sleep_event(
  caller: &mut Caller<'_, Guest>,
  memory: &str,
  event: [u8; EVENT],
  [events, count]: [i32; 2],
) -> wasmtime::Result<i32> {
  let (GuestMemory::Unshared(bytes), _) = split(caller, memory)? else {
    return Ok(INVALID);
  };
  let mut write = |at: i32, what: &[u8]| {
    let target = bytes.get_mut(at as u32 as usize..)?;
    target.get_mut(..what.len())?.copy_from_slice(what);
    Some(())
  };
  let written = write(events, &event).and_then(|()| write(count, &1_u32.to_le_bytes()));
  Ok(written.map_or(FAULT, |()| SUCCESS))
}

fn count_closed(caller: &mut Caller<'_, Guest>, errno: i32) -> i32 {
  if errno == SUCCESS {
    let open = &mut caller.data_mut().open_descriptors;
    *open = open.saturating_sub(1);
  }
  errno
}

/// Writes all buffers to standard output or error. (Wasmtime writes only the first and reports its length,
/// which many guests treat as a complete write.)
fn write_stream(
  caller: &mut Caller<'_, Guest>,
  memory: &str,
  descriptor: i32,
  [buffers, count, written]: [i32; 3],
) -> wasmtime::Result<i32> {
  let Some(Extern::Memory(memory)) = caller.get_export(memory) else {
    wasmtime::bail!("WASI needs a memory that the module exports as `memory`");
  };
  let (bytes, guest) = memory.data_and_store_mut(caller);
  let (buffers, count) = (buffers as u32 as usize, count as u32);
  if count > MAX_BUFFERS {
    return Ok(INVALID);
  }
  let out_of_bounds = || wasmtime::Error::new(wasmtime::Trap::MemoryOutOfBounds);
  let number = |at: usize| {
    let four = bytes.get(at..).and_then(<[u8]>::first_chunk);
    four.map(|four| u32::from_le_bytes(*four) as usize)
  };
  let mut total = 0_usize;
  for index in 0..count as usize {
    let entry = buffers + index * 8;
    let (start, length) = number(entry)
      .zip(number(entry + 4))
      .ok_or_else(out_of_bounds)?;
    total += length;
    if total > i32::MAX as usize {
      return Ok(INVALID);
    }
    let buffer = bytes.get(start..start + length).ok_or_else(out_of_bounds)?;
    guest.streams.write(descriptor, buffer);
  }
  let target = bytes
    .get_mut(written as u32 as usize..)
    .and_then(<[u8]>::first_chunk_mut)
    .ok_or_else(out_of_bounds)?;
  *target = (total as u32).to_le_bytes();
  Ok(SUCCESS)
}
