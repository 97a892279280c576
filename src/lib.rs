//! Runs Extism plugins for Node.js on the addon's own threads.
//!
//! The modules, in the order in which a call passes through them:
//!
//! * `binding`: the only module that uses Node-API. It converts JavaScript values to Rust ones, and
//!   hands completed calls back to the event loop in batches.
//! * [`plugin`]: loads a plugin ([`plugin::Manifest`]), links its modules into one, and runs instances
//!   on worker threads behind one bounded queue ([`plugin::Plugin`]).
//! * [`host`]: the host functions that guests can call, one file or folder each.
//! * [`kernel`]: the memory blocks that guest and host share.
//! * [`store`]: the key-value stores behind the store host functions.
//!
//! [`trace`] records what a traced call does.
//!
//! [`abi`] defines what guests and host agree on: function types, namespaces and names.
//!
//! Each module calls only those below it, and returns a [`Result`] whose [`Error`] carries a [`Code`].
//! The codes are part of the public API.

// A library inside another process must not panic or print. These lints are here and not in Cargo.toml
// because there they would also apply to the tests, which do both.
#![deny(clippy::print_stdout, clippy::print_stderr)]
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![warn(clippy::clone_on_ref_ptr)]

// Only Node calls its functions, so tests compile without it.
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
pub mod trace;
mod trim;
mod watchdog;

pub use error::{Code, Error, Result};
