//! `http_request`, `http_status_code` and `http_headers`: HTTP requests by plugins.
//!
//! A request blocks the guest's thread until the response arrives or the call is interrupted. `request`
//! parses the guest's request, `allowed_hosts` checks its URL and that of each redirect, and `client` sends
//! it.

mod allowed_hosts;
mod client;
mod request;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Bytes, HostFunction, HostFunctionError, Interruption, Invocation};
use crate::abi::KERNEL;
use crate::abi::ValueType::{I32, I64};
use crate::trace::{self, CallTrace, OperationKind};
use allowed_hosts::{AllowedHosts, without_query};
use client::{Client, HttpResponse};
use reqwest::Request;
use reqwest::header::HeaderValue;

/// The default limit of a response's body in bytes: 50 MiB.
pub const DEFAULT_MAX_RESPONSE: u64 = 50 << 20;

/// A plugin's HTTP permissions and limits.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
  /// The hosts that the plugin may reach: names, addresses, or patterns with `*`, `?` and `[..]`. If empty,
  /// it may reach none.
  pub allowed_hosts: Vec<String>,
  /// The size limit of a response's body in bytes; the default is [`DEFAULT_MAX_RESPONSE`].
  pub max_response: Option<u64>,
  /// Whether the plugin may read the headers of responses.
  pub allows_response_headers: bool,
  /// A file with PEM certificates to trust in addition to Mozilla's.
  pub extra_certificates: Option<PathBuf>,
}

/// The response that `http_status_code` and `http_headers` describe. Each instance has its own, which is
/// reset when its next call begins.
#[derive(Debug, Default)]
pub struct LastResponse {
  /// 0 if there was no response.
  status: u16,
  /// A JSON object; `None` if there was no response.
  headers: Option<Bytes>,
}

/// The PDK's three HTTP functions. `timeout` is the time limit of the plugin's calls. Fails if an entry of
/// the allowed hosts cannot match any host.
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
  // After a failed request, the previous response must not be visible.
  std::mem::take(call.last_response());
  let invalid = |what: String| HostFunctionError::new(format!("http_request: {what}"));
  let json = call
    .bytes(0)
    .ok_or_else(|| invalid("the request is not a block".to_owned()))?;
  let mut request = request::parse(json).map_err(invalid)?;
  if request::may_have_body(request.method()) {
    let body = call
      .bytes(1)
      .ok_or_else(|| invalid("the body is not a block".to_owned()))?;
    request::set_body(&mut request, body);
  }
  let exchanged = match trace::current() {
    Some(trace) => traced_exchange(client, request, &call.interruption(), &trace),
    None => client.exchange(request, &call.interruption()),
  };
  let response = exchanged?;
  *call.last_response() = LastResponse {
    status: response.status,
    headers: Some(response.headers.to_string().into_bytes().into()),
  };
  Ok(Answer::Bytes(response.body.into()))
}

/// Sends a request of a traced call. Its `traceparent` replaces one that the guest has set.
fn traced_exchange(
  client: &Client,
  mut request: Request,
  interruption: &Interruption,
  trace: &Arc<CallTrace>,
) -> Result<HttpResponse, HostFunctionError> {
  let (method, url) = (request.method().to_string(), without_query(request.url()));
  if let Some(Ok(value)) = trace.traceparent().map(HeaderValue::from_str) {
    request.headers_mut().insert("traceparent", value);
  }
  let operation = trace.begin();
  let exchanged = client.exchange(request, interruption);
  let (status, error) = match &exchanged {
    Ok(response) => (Some(response.status), None),
    Err(error) => (None, Some(error.message.clone())),
  };
  let kind = OperationKind::Http {
    method,
    url,
    status,
  };
  operation.end(kind, error);
  exchanged
}
