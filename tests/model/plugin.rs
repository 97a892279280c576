//! `src/plugin`, with simulated instances and pages.

#[path = "../../src/plugin/compilation.rs"]
pub mod compilation;
pub mod instance;
#[path = "../../src/plugin/interrupt.rs"]
pub mod interrupt;
pub mod page;
pub mod priority;
#[path = "../../src/plugin/spin.rs"]
pub mod spin;
#[path = "../../src/plugin/workers/mod.rs"]
pub mod workers;

pub use extism_host::plugin::stats;

/// One runtime is enough here.
mod reference {
  pub use super::instance::Instance as ReferenceInstance;
}
