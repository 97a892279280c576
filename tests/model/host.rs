//! The part of `src/host` that the workers use.

pub use crate::interruption::Interruption;
pub use extism_host::host::{Guest, HostFunctionError, Stop};
