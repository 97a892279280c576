//! `http_request`, `http_status_code` and `http_headers`: HTTP requests that plugins make.
//!
//! A guest's thread waits for the response; it stops waiting when its call is interrupted. What a guest
//! asks for is read in `request`, whether it may is decided in `allowed_hosts`, for the first URL and
//! for each redirect, and `client` does it.

mod allowed_hosts;
mod client;
mod request;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Bytes, HostFunction, HostFunctionError, Invocation};
use crate::abi::KERNEL;
use crate::abi::ValueType::{I32, I64};
use allowed_hosts::AllowedHosts;
use client::Client;

/// Bytes that the body of a response may have when nothing else is said: 50 MiB.
pub const DEFAULT_MAX_RESPONSE: u64 = 50 << 20;

/// What a plugin may do with HTTP.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
  /// The hosts that it may reach: names, addresses, or patterns with `*`, `?` and `[..]`. None without
  /// any.
  pub allowed_hosts: Vec<String>,
  /// How many bytes the body of a response may have; [`DEFAULT_MAX_RESPONSE`] without it.
  pub max_response: Option<u64>,
  /// Whether it may read the headers of responses.
  pub allows_response_headers: bool,
  /// A file with certificates in PEM that are trusted beside Mozilla's.
  pub extra_certificates: Option<PathBuf>,
}

/// What `http_status_code` and `http_headers` tell. An instance has its own, which is forgotten when its
/// next call begins.
#[derive(Debug, Default)]
pub struct LastResponse {
  /// 0 where there was none.
  status: u16,
  /// A JSON object; `None` where there was no response.
  headers: Option<Bytes>,
}

/// The three functions of the PDK. `timeout` is the plugin's for a call. Fails where an entry of the
/// allowed hosts cannot match any host.
pub fn functions(
  options: &HttpOptions,
  timeout: Option<Duration>,
) -> crate::Result<Vec<HostFunction>> {
  let client = Arc::new(Client::new(
    AllowedHosts::new(&options.allowed_hosts)?,
    options,
    timeout,
  ));
  let allows_headers = options.allows_response_headers;
  let no_headers: Bytes = Arc::from(*b"{}");
  Ok(vec![
    HostFunction::new(KERNEL, "http_request", [I64, I64], Some(I64), move |call| {
      http_request(&client, call)
    }),
    HostFunction::new(KERNEL, "http_status_code", [], Some(I32), |call| {
      Ok(Answer::I32(call.last_response().status.into()))
    }),
    HostFunction::new(KERNEL, "http_headers", [], Some(I64), move |call| {
      let headers = call.last_response().headers.clone();
      Ok(match allows_headers {
        true => Answer::Bytes(headers.unwrap_or_else(|| Arc::clone(&no_headers))),
        false => Answer::ZERO,
      })
    }),
  ])
}

fn http_request(client: &Client, call: &mut Invocation<'_>) -> Result<Answer, HostFunctionError> {
  // A request that fails leaves nothing of the one before.
  std::mem::take(call.last_response());
  let invalid = |what: String| HostFunctionError::new(format!("http_request: {what}"));
  let json = call
    .bytes(0)
    .ok_or_else(|| invalid("the request is no block".to_owned()))?;
  let mut request = request::parse(json).map_err(invalid)?;
  if request::may_have_body(request.method()) {
    let body = call
      .bytes(1)
      .ok_or_else(|| invalid("the body is no block".to_owned()))?;
    request::set_body(&mut request, body);
  }
  let response = client.exchange(request, &call.interruption())?;
  *call.last_response() = LastResponse {
    status: response.status,
    headers: Some(response.headers.to_string().into_bytes().into()),
  };
  Ok(Answer::Bytes(response.body.into()))
}
