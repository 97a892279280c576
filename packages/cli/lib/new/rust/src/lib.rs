//! A plugin for Extism. Each function with `plugin_fn` can be called by its name.

use extism_pdk::*;

/// Reads its input and returns its output. An error fails the call.
#[plugin_fn]
pub fn greet(name: String) -> FnResult<String> {
    if name.is_empty() {
        return Err(WithReturnCode::new(Error::msg("whom shall I greet?"), 1));
    }
    info!("greeting {name}");
    Ok(format!("Hello, {name}!"))
}
