//! Sends requests and waits for responses.

use std::error::Error;
use std::io;
use std::iter;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::header::LOCATION;
use reqwest::{Request, Response, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tokio::runtime::Runtime;
use url::Url;

use super::allowed_hosts::{AllowedHosts, without_query};
use super::request::{headers_as_json, next_request};
use super::{DEFAULT_MAX_RESPONSE, HttpOptions};
use crate::host::{HostFunctionError, Interruption};
use crate::io_runtime::io_runtime;

/// The time limit for the DNS lookup, the connection and the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may be silent, unless calls have a longer time limit.
const MIN_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How many redirects a request follows.
const MAX_REDIRECTS: usize = 10;

/// How many DNS lookups may run at once in the process: each occupies a thread, which cannot be interrupted.
const MAX_LOOKUPS: usize = 64;

/// Sends the requests of one plugin.
pub struct Client {
  allowed: AllowedHosts,
  max_body: u64,
  read_timeout: Duration,
  extra_certificates: Option<PathBuf>,
  /// Created for the first request. Keeps connections open for later ones.
  client: OnceLock<reqwest::Client>,
}

/// A complete response.
pub struct HttpResponse {
  pub status: u16,
  pub headers: Value,
  pub body: Vec<u8>,
}

impl Client {
  /// `timeout` is the time limit of the plugin's calls.
  pub fn new(allowed: AllowedHosts, options: &HttpOptions, timeout: Option<Duration>) -> Self {
    Self {
      allowed,
      max_body: options.max_response.unwrap_or(DEFAULT_MAX_RESPONSE),
      extra_certificates: options.extra_certificates.clone(),
      read_timeout: timeout.map_or(MIN_READ_TIMEOUT, |timeout| timeout.max(MIN_READ_TIMEOUT)),
      client: OnceLock::new(),
    }
  }

  /// Sends a request, follows redirects, and reads the response. Blocks this thread until done or
  /// interrupted; an interruption closes the connection.
  pub fn exchange(
    &self,
    request: Request,
    interruption: &Interruption,
  ) -> Result<HttpResponse, HostFunctionError> {
    self.allowed.check(request.url())?;
    let runtime = runtime()?;
    let client = get_or_try_init(&self.client, || self.build())?;
    let exchange = interruption.block_on(runtime, self.follow_redirects(client, request));
    exchange.unwrap_or_else(|| {
      Err(HostFunctionError::new(
        "http_request: the call was interrupted",
      ))
    })
  }

  fn build(&self) -> Result<reqwest::Client, HostFunctionError> {
    let setup_error = |what: String| {
      HostFunctionError::new(format!(
        "http_request: the HTTP client cannot be set up: {what}"
      ))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore {
      roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(path) = &self.extra_certificates
      && let Ok(certificates) = CertificateDer::pem_file_iter(path)
    {
      // Node warns about an unreadable file at startup and continues; so do we.
      roots.add_parsable_certificates(certificates.flatten());
    }
    let tls = rustls::ClientConfig::builder_with_provider(provider)
      .with_safe_default_protocol_versions()
      .map_err(|error| setup_error(error.to_string()))?
      .with_root_certificates(roots)
      .with_no_client_auth();
    reqwest::Client::builder()
      .tls_backend_preconfigured(tls)
      .no_proxy()
      // We follow redirects ourselves: each target must be allowed, and messages name it.
      .redirect(redirect::Policy::none())
      .connect_timeout(CONNECT_TIMEOUT)
      .read_timeout(self.read_timeout)
      .user_agent("extism-host")
      .build()
      .map_err(|error| setup_error(error.to_string()))
  }

  async fn follow_redirects(
    &self,
    client: &reqwest::Client,
    mut request: Request,
  ) -> Result<HttpResponse, HostFunctionError> {
    let first = request.url().clone();
    for _ in 0..=MAX_REDIRECTS {
      self.allowed.check(request.url())?;
      let url = request.url().clone();
      let retry = request.try_clone();
      let response = client.execute(request).await;
      let response = response.map_err(|error| failed(&url, &reason(&error, self.read_timeout)))?;
      let next = match retry {
        // A redirect's body is not read.
        Some(retry) => next_request(retry, response.status(), response.headers().get(LOCATION)),
        None => Ok(None),
      };
      match next.map_err(|why| failed(&url, why))? {
        Some(next) => request = next,
        None => return self.read(&url, response).await,
      }
    }
    let why = format!("there were more than {MAX_REDIRECTS} redirects");
    Err(failed(&first, &why))
  }

  async fn read(
    &self,
    url: &Url,
    mut response: Response,
  ) -> Result<HttpResponse, HostFunctionError> {
    let too_large =
      || HostFunctionError::new(format!("Response body exceeded {} bytes", self.max_body));
    let fits = |length: usize| u64::try_from(length).is_ok_and(|length| length <= self.max_body);
    if response
      .content_length()
      .is_some_and(|length| length > self.max_body)
    {
      return Err(too_large());
    }
    let mut body = Vec::new();
    loop {
      let chunk = response.chunk().await;
      match chunk.map_err(|error| failed(url, &reason(&error, self.read_timeout)))? {
        None => break,
        Some(chunk) if !fits(body.len().saturating_add(chunk.len())) => return Err(too_large()),
        Some(chunk) => body.extend_from_slice(&chunk),
      }
    }
    Ok(HttpResponse {
      status: response.status().as_u16(),
      headers: headers_as_json(response.headers()),
      body,
    })
  }
}

fn runtime() -> Result<&'static Runtime, HostFunctionError> {
  static RUNTIME: OnceLock<Runtime> = OnceLock::new();
  Ok(io_runtime(
    &RUNTIME,
    "extism-http",
    MAX_LOOKUPS,
    "for HTTP requests",
  )?)
}

/// If two threads initialize it concurrently, the first value stays.
fn get_or_try_init<T>(
  cell: &OnceLock<T>,
  make: impl FnOnce() -> Result<T, HostFunctionError>,
) -> Result<&T, HostFunctionError> {
  if let Some(made) = cell.get() {
    return Ok(made);
  }
  let made = make()?;
  Ok(cell.get_or_init(|| made))
}

fn failed(url: &Url, why: &str) -> HostFunctionError {
  let url = without_query(url);
  HostFunctionError::new(format!("HTTP request to \"{url}\" failed: {why}"))
}

/// Why there was no response, in our own words: the libraries' messages may reveal the network that the host
/// is connected to.
fn reason(error: &reqwest::Error, read_timeout: Duration) -> String {
  if error.is_timeout() {
    return match error.is_connect() {
      true => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
      false => format!(
        "the server sent nothing for {} s",
        read_timeout.as_secs_f64()
      ),
    };
  }
  let causes = || iter::successors(error.source(), |cause| inner(*cause));
  let tls_error = causes().find_map(|cause| cause.downcast_ref::<rustls::Error>());
  let is_of_kind = |kinds: &[io::ErrorKind]| {
    let mut errors = causes().filter_map(|cause| cause.downcast_ref::<io::Error>());
    errors.any(|error| kinds.contains(&error.kind()))
  };
  let what = match tls_error {
    Some(rustls::Error::InvalidCertificate(_)) => "the server's certificate is not valid",
    Some(_) => "the TLS handshake failed",
    None if is_of_kind(&[io::ErrorKind::ConnectionRefused]) => "the connection was refused",
    None if is_of_kind(&[io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof]) => {
      "the server closed the connection"
    }
    // The library identifies DNS errors only by this text.
    None if causes().any(|cause| cause.to_string() == "dns error") => "the host was not found",
    None if error.is_connect() => "the host cannot be reached",
    None if error.is_builder() => "the request cannot be sent",
    None => "the response is incomplete or not valid HTTP",
  };
  what.to_owned()
}

/// The cause of an error. For an I/O error, `source` would skip the first cause.
fn inner<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
  match error
    .downcast_ref::<io::Error>()
    .and_then(io::Error::get_ref)
  {
    Some(inner) => Some(inner),
    None => error.source(),
  }
}

#[cfg(test)]
mod tests {
  use std::net::TcpListener;

  use reqwest::Method;

  use super::*;

  #[test]
  fn a_server_that_is_silent_for_too_long_fails_the_request() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/path?secret", server.local_addr().unwrap());
    let request = Request::new(Method::GET, Url::parse(&url).unwrap());
    let allowed = AllowedHosts::new(&["127.0.0.1".to_owned()]).unwrap();
    let client = Client {
      read_timeout: Duration::from_millis(200),
      ..Client::new(allowed, &HttpOptions::default(), None)
    };
    let error = client.exchange(request, &Interruption::default()).err();
    let message = error.unwrap().to_string();
    assert!(
      message.ends_with("/path\" failed: the server sent nothing for 0.2 s"),
      "{message}"
    );
  }

  #[test]
  fn the_read_timeout_is_that_of_a_call_but_at_least_30_s() {
    let read_timeout = |timeout| {
      let allowed = AllowedHosts::new(&[]).unwrap();
      Client::new(allowed, &HttpOptions::default(), timeout).read_timeout
    };
    assert_eq!(read_timeout(None), MIN_READ_TIMEOUT);
    assert_eq!(
      read_timeout(Some(Duration::from_millis(1))),
      MIN_READ_TIMEOUT
    );
    assert_eq!(
      read_timeout(Some(MIN_READ_TIMEOUT * 4)),
      MIN_READ_TIMEOUT * 4
    );
  }

  #[test]
  fn a_request_that_is_interrupted_before_it_is_sent_fails() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", server.local_addr().unwrap());
    let request = Request::new(Method::GET, Url::parse(&url).unwrap());
    let allowed = AllowedHosts::new(&["127.0.0.1".to_owned()]).unwrap();
    let interruption = Interruption::default();
    interruption.cancel();
    let client = Client::new(allowed, &HttpOptions::default(), None);
    assert!(client.exchange(request, &interruption).is_err());
  }
}
