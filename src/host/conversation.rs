//! Host functions that need more of the guest's memory than their arguments before they answer.
//!
//! The host allocates nothing itself: only the guard does, and its part is WebAssembly. So such a
//! function answers in steps. After each, the gate does what it asks for and comes back with the
//! block, until it has the answer (see `gate` in `plugin/driver.rs`).

use extism::CurrentPlugin;
use extism::convert::MemoryHandle;

use super::{Answer, Bytes, HostFunctionError};

/// What a host function wants next.
#[derive(Clone, Debug)]
pub enum Step {
  /// To return this. It is the last step.
  Answer(Answer),
  /// A block with these bytes.
  Store(Bytes),
  /// A block of this many bytes, all zero.
  Allocate(u64),
  /// To look at the block that starts at this offset.
  Look(u64),
  /// That the call fails with this message when the guest has returned; with none, that it does not.
  SetError(Bytes),
}

/// One call of a host function that answers in steps. It stays on the thread of the instance.
pub trait Conversation {
  /// The next step. `block` is what came of the one before; there is none at first. Dropped before its
  /// answer, it has been interrupted, or the guest's memory was used up.
  fn next(&mut self, block: Option<Block<'_>>) -> Result<Step, HostFunctionError>;
}

/// A block of the guest's, as the gate has named it: live, or of length 0 where there is none.
pub struct Block<'a> {
  plugin: &'a mut CurrentPlugin,
  offset: u64,
  length: u64,
}

impl<'a> Block<'a> {
  /// Offset and length must come from the gate, which has them from the guard. Where that had no room
  /// for a block of this length, the offset is 0, and there is none.
  pub(crate) fn from_gate(plugin: &'a mut CurrentPlugin, offset: u64, length: u64) -> Self {
    Self {
      plugin,
      offset,
      length: if offset == 0 { 0 } else { length },
    }
  }

  /// Where it starts; 0 where there is no memory for a block, or it would be empty.
  pub fn offset(&self) -> u64 {
    self.offset
  }

  /// How many bytes it has; 0 where no live block starts at the offset.
  pub fn length(&self) -> u64 {
    self.length
  }

  /// What is in it; `None` where there is none.
  pub fn into_bytes(self) -> Option<&'a [u8]> {
    if self.length == 0 {
      return None;
    }
    // SAFETY: the gate got this length from the guard for this offset, so the two describe a block
    // inside the kernel's memory. The guest does not run while a host function does, and the host
    // never allocates, so memory neither moves nor changes while the slice is borrowed.
    let handle = unsafe { MemoryHandle::new(self.offset, self.length) };
    self.plugin.memory_bytes(handle).ok()
  }
}
