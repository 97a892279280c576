//! The memory for interrupt pages. A page that has been freed is reused at once.

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::PoisonError;

use crate::sync::{Condvar, Mutex, MutexGuard, process_static};
use crate::violation;

#[derive(Clone, Copy, Default)]
struct Page {
  is_owned: bool,
  is_closed: bool,
}

process_static! { static PAGES: Mutex<Vec<Page>> = Mutex::default(); }
process_static! { static CLOSED: Condvar = Condvar::new(); }

fn pages() -> MutexGuard<'static, Vec<Page>> {
  PAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As in `src/plugin/page.rs`.
pub struct PageAddress(NonNull<u8>);

// SAFETY: the address is never dereferenced. It is the number of a page.
unsafe impl Send for PageAddress {}

impl PageAddress {
  pub fn new(address: NonNull<u8>) -> Self {
    Self(address)
  }
}

/// As in `src/plugin/page.rs`.
pub fn protect(address: &PageAddress, is_open: bool) -> bool {
  let mut pages = pages();
  let page = &mut pages[address.0.addr().get() - 1];
  if !page.is_owned {
    violation("a free page was closed or opened");
  }
  page.is_closed = !is_open;
  drop(pages);
  CLOSED.notify_all();
  true
}

/// The page of one instance, until it is dropped.
pub struct InstancePage(usize);

impl InstancePage {
  pub fn new() -> Self {
    let mut pages = pages();
    let free = pages.iter().position(|page| !page.is_owned);
    let index = free.unwrap_or(pages.len());
    if free.is_none() {
      pages.push(Page::default());
    }
    let page = &mut pages[index];
    if page.is_closed {
      violation("an instance got a closed page");
    }
    page.is_owned = true;
    Self(index)
  }

  pub fn address(&self) -> NonNull<u8> {
    NonNull::without_provenance(NonZeroUsize::MIN.saturating_add(self.0))
  }

  pub fn is_closed(&self) -> bool {
    pages()[self.0].is_closed
  }

  pub fn wait_until_closed(&self) {
    let closed = CLOSED.wait_while(pages(), |pages| !pages[self.0].is_closed);
    drop(closed);
  }
}

impl Drop for InstancePage {
  fn drop(&mut self) {
    let mut pages = pages();
    if pages[self.0].is_closed {
      violation("a closed page was freed");
    }
    pages[self.0].is_owned = false;
  }
}

/// How many instances exist.
pub fn owned() -> usize {
  pages().iter().filter(|page| page.is_owned).count()
}
