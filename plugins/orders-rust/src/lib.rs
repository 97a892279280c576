//! Sells a product: what a plugin does with a database and a broker, in Rust.

use extism_pdk::*;

#[link(wasm_import_module = "extism:host/user")]
unsafe extern "C" {
  safe fn hostQuery(request: u64) -> u64;
  safe fn hostExecute(request: u64) -> u64;
  safe fn hostPublish(request: u64) -> u64;
  safe fn hostRequest(request: u64) -> u64;
}

/// Gives a request to a function of the host, and returns the reply. A reply that begins with `{"error"` is a failure.
fn call(function: extern "C" fn(u64) -> u64, request: &str) -> FnResult<String> {
  let block = Memory::new(&request)?;
  let reply = Memory::find(function(block.offset())).ok_or_else(|| Error::msg("no reply"))?;
  let text = reply.to_string()?;
  block.free();
  reply.free();
  Ok(text)
}

#[plugin_fn]
pub fn order(input: String) -> FnResult<String> {
  let id: u32 = input.parse()?;
  let found = call(hostQuery, &format!(r#"{{"connection":"db","statement":"productById","params":[{id}]}}"#))?;
  // A message, and its answer, are what follows the first line.
  let stock = call(hostRequest, &format!("{{\"connection\":\"events\",\"subject\":\"stock.{id}\"}}\nhow many?"))?;
  let stock = stock.split_once('\n').map_or("", |(_, answer)| answer);
  let sold = call(hostExecute, &format!(r#"{{"connection":"db","statement":"sell","params":[{id}]}}"#))?;
  let published = call(hostPublish, &format!("{{\"connection\":\"events\",\"subject\":\"orders.new\"}}\n{found}"))?;
  let refused = call(hostPublish, &format!("{{\"connection\":\"events\",\"subject\":\"invoices.new\"}}\n{found}"))?;
  Ok(format!("{found}\n{stock}\n{sold}\n{published}\n{refused}"))
}
