//! What workers see of `src/host`.

pub use extism_host::host::{Guest, HostFunctionError, Stop};

#[path = "../../src/host/interruption.rs"]
mod interruption;

pub use interruption::Interruption;
