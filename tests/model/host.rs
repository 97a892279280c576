//! What workers see of `src/host`.

pub use crate::interruption::Interruption;
pub use extism_host::host::{Guest, HostFunctionError, Stop};
