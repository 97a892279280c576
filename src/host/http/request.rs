//! Parses a guest's request, and computes the request that follows a redirect.

use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Request, StatusCode};
use serde_json::{Map, Value};
use url::Url;

/// The longest description of a request, without its body: 1 MiB. Parsing it cannot be interrupted.
const MAX_DESCRIPTION: usize = 1 << 20;

/// Headers of the connection, which guests must not control. They are ignored.
const CONNECTION_HEADERS: [&str; 12] = [
  "connection",
  "content-length",
  "expect",
  "host",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
];

/// Whether requests with this method have a body; for others the body is ignored.
pub fn may_have_body(method: &Method) -> bool {
  !matches!(*method, Method::GET | Method::HEAD)
}

/// Parses the JSON that PDKs send: `{url, method?, headers?}`, where `headers` may also be called `header`.
pub fn parse(json: &[u8]) -> Result<Request, String> {
  if json.len() > MAX_DESCRIPTION {
    return Err(format!(
      "the request has {} bytes without its body, more than the {MAX_DESCRIPTION} allowed",
      json.len()
    ));
  }
  let description: Map<String, Value> = serde_json::from_slice(json).map_err(|error| {
    format!("the request is not a JSON object {{url, method?, headers?}}: {error}")
  })?;
  let given = |key: &str| description.get(key).filter(|value| !value.is_null());

  let url = match given("url") {
    Some(Value::String(url)) => url,
    _ => return Err("the \"url\" of the request must be a string".to_owned()),
  };
  let url =
    Url::parse(url).map_err(|error| format!("the URL {} is not valid: {error}", quoted(url)))?;
  let method = match given("method") {
    None => Method::GET,
    Some(Value::String(name)) => method(name)?,
    Some(_) => return Err("the \"method\" of the request must be a string".to_owned()),
  };
  let mut request = Request::new(method, url);
  match given("headers").or_else(|| given("header")) {
    None => {}
    Some(Value::Object(headers)) => add_headers(request.headers_mut(), headers)?,
    Some(_) => return Err("the \"headers\" of the request must be an object".to_owned()),
  }
  Ok(request)
}

fn method(name: &str) -> Result<Method, String> {
  let upper = name.to_ascii_uppercase();
  // Forbidden as in fetch: CONNECT would turn the connection into a tunnel, and the others echo what was
  // sent.
  if matches!(upper.as_str(), "CONNECT" | "TRACE" | "TRACK") {
    return Err(format!("the method {upper} is not allowed"));
  }
  Method::from_bytes(upper.as_bytes())
    .map_err(|_| format!("the method {} is not valid", quoted(name)))
}

fn add_headers(headers: &mut HeaderMap, given: &Map<String, Value>) -> Result<(), String> {
  for (name, value) in given {
    let text = match value {
      Value::String(text) => text.clone(),
      Value::Number(_) | Value::Bool(_) => value.to_string(),
      _ => {
        return Err(format!(
          "the value of the header {} must be a string",
          quoted(name)
        ));
      }
    };
    let name = HeaderName::from_bytes(name.as_bytes())
      .map_err(|_| format!("the header name {} is not valid", quoted(name)))?;
    let value = header_value(&text).ok_or_else(|| {
      format!("the value of the header \"{name}\" is not valid: it has a line break, another control character, or one beyond U+00FF")
    })?;
    if CONNECTION_HEADERS.contains(&name.as_str()) {
      continue;
    }
    headers
      .try_append(name, value)
      .map_err(|_| "the request has too many headers".to_owned())?;
  }
  Ok(())
}

/// As in fetch, each character becomes one byte.
fn header_value(text: &str) -> Option<HeaderValue> {
  let bytes = text
    .trim_matches([' ', '\t'])
    .chars()
    .map(|character| u8::try_from(character).ok())
    .collect::<Option<Vec<_>>>()?;
  HeaderValue::from_bytes(&bytes).ok()
}

/// Sets the body of a request, which may be empty.
pub fn set_body(request: &mut Request, body: &[u8]) {
  if !body.is_empty() {
    *request.body_mut() = Some(body.to_vec().into());
  } else if matches!(*request.method(), Method::POST | Method::PUT) {
    // As in fetch: some servers require a length.
    let none = HeaderValue::from_static("0");
    request.headers_mut().insert(header::CONTENT_LENGTH, none);
  }
}

/// A guest's text for a message: escaped and truncated.
fn quoted(text: &str) -> String {
  match text.char_indices().nth(200) {
    None => format!("{text:?}"),
    Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
  }
}

/// The request that follows a redirect, as fetch would send it; `None` if the response is not a redirect.
pub fn next_request(
  mut request: Request,
  status: StatusCode,
  location: Option<&HeaderValue>,
) -> Result<Option<Request>, &'static str> {
  let is_redirect = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
  let Some(location) = location.filter(|_| is_redirect) else {
    return Ok(None);
  };
  let target = String::from_utf8_lossy(location.as_bytes());
  let target = request
    .url()
    .join(&target)
    .map_err(|_| "it redirects to an invalid URL")?;

  let becomes_get = match status.as_u16() {
    301 | 302 => request.method() == Method::POST,
    303 => may_have_body(request.method()),
    _ => false,
  };
  if becomes_get {
    *request.method_mut() = Method::GET;
    *request.body_mut() = None;
    let body_headers = [
      header::CONTENT_ENCODING,
      header::CONTENT_LANGUAGE,
      header::CONTENT_LENGTH,
      header::CONTENT_LOCATION,
      header::CONTENT_TYPE,
    ];
    body_headers
      .iter()
      .for_each(|name| remove(&mut request, name));
  }
  if target.origin() != request.url().origin() {
    // Credentials are only for the origin that the guest named.
    let credentials = [header::AUTHORIZATION, header::COOKIE];
    credentials
      .iter()
      .for_each(|name| remove(&mut request, name));
  }
  *request.url_mut() = target;
  Ok(Some(request))
}

fn remove(request: &mut Request, name: &HeaderName) {
  request.headers_mut().remove(name);
}

/// The headers of a response as a JSON object. As in fetch, each byte becomes one character.
pub fn headers_as_json(headers: &HeaderMap) -> Value {
  let text = |value: &HeaderValue| {
    value
      .as_bytes()
      .iter()
      .copied()
      .map(char::from)
      .collect::<String>()
  };
  headers
    .keys()
    .map(|name| {
      let values: Vec<_> = headers.get_all(name).iter().map(text).collect();
      (name.as_str().to_owned(), Value::String(values.join(", ")))
    })
    .collect::<Map<_, _>>()
    .into()
}
