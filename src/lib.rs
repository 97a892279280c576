//! Runs Extism plugins for Node.js on the addon's own threads.
//!
//! The cast, in the order in which a call meets them:
//!
//! * `binding`: the only module that knows Node-API. It turns JavaScript values into Rust's and
//!   hands finished calls back to the event loop, many at a time.
//! * [`plugin`]: what to load ([`plugin::Manifest`]), how its modules become one, and the threads that
//!   run instances behind one bounded queue ([`plugin::Plugin`]).
//! * [`host`]: the host functions that guests can call, one file or folder each.
//! * [`kernel`]: the memory that guest and host share, block by block.
//! * [`store`]: where the host functions look things up.
//!
//! [`abi`] is the vocabulary of guests: types of functions, and names.
//!
//! Calls go one way, down this list; what comes back is a [`Result`] with an [`Error`] whose
//! [`Code`] is part of the public API.

// What runs in somebody's process neither panics nor prints. Said here and not in Cargo.toml, which
// would hold for the tests as well, and those do both.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![warn(clippy::clone_on_ref_ptr)]

// Its functions are called by Node alone; in a test nobody does.
pub mod abi;
#[cfg(not(test))]
mod binding;
mod error;
pub mod host;
mod interruption;
mod io_runtime;
pub mod kernel;
pub mod plugin;
pub mod signals;
pub mod store;
mod sync;
mod trim;
mod watchdog;

pub use error::{Code, Error, Result};
