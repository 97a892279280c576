//! Checks URLs against a plugin's `allowedHosts`.

use std::net::Ipv6Addr;

use glob::{MatchOptions, Pattern};
use url::{Host, Url};

use crate::host::HostFunctionError;
use crate::{Code, Error, Result};

/// The longest DNS name. A longer host matches nothing.
const MAX_HOST: usize = 255;

/// The longest URL that HTTP clients accept. It also bounds messages that quote a URL.
const MAX_URL: usize = 65_534;

/// URLs have lowercase hosts, and patterns are lowercased too. `*` also matches dots.
const MATCH_OPTIONS: MatchOptions = MatchOptions {
  case_sensitive: true,
  require_literal_separator: false,
  require_literal_leading_dot: false,
};

/// The hosts that a plugin may reach.
#[derive(Debug)]
pub struct AllowedHosts(Vec<AllowedHost>);

#[derive(Debug)]
enum AllowedHost {
  /// A name or an IPv4 address, normalized as in URLs.
  Name(String),
  Ipv6(Ipv6Addr),
  Pattern(Pattern),
}

impl AllowedHosts {
  /// Parses `allowedHosts`. Fails if an entry cannot match any host, and suggests what to write instead.
  pub fn new(entries: &[String]) -> Result<Self> {
    entries
      .iter()
      .map(|entry| {
        parse(entry).map_err(|what| {
          let message = format!("allowedHosts has the entry {entry:?}, which {what}");
          Error::new(Code::InvalidArgument, message)
        })
      })
      .collect::<Result<_>>()
      .map(Self)
  }

  /// Fails with the reason if the plugin may not send a request to `url`.
  pub fn check(&self, url: &Url) -> std::result::Result<(), HostFunctionError> {
    if url.as_str().len() > MAX_URL {
      let message = format!(
        "Call error: HTTP request is not allowed (the URL has more than {MAX_URL} characters)"
      );
      return Err(HostFunctionError::new(message));
    }
    let refused = |url: &str, why: String| {
      let message = format!("Call error: HTTP request to \"{url}\" is not allowed ({why})");
      Err(HostFunctionError::new(message))
    };
    if !matches!(url.scheme(), "http" | "https") {
      let why = format!("the scheme must be http or https, not {}", url.scheme());
      return refused(&without_query(url), why);
    }
    if !url.username().is_empty() || url.password().is_some() {
      let why = "the URL has a user name or a password; send an Authorization header instead";
      return refused(&without_query(url), why.to_owned());
    }
    if self.matches(url) {
      return Ok(());
    }
    let host = url.host_str().unwrap_or_default();
    refused(
      &without_query(url),
      format!("no allowedHosts match \"{host}\""),
    )
  }

  fn matches(&self, url: &Url) -> bool {
    let (Some(host), Some(bracketed)) = (url.host(), url.host_str()) else {
      return false;
    };
    if bracketed.len() > MAX_HOST {
      return false;
    }
    let bare = bracketed.trim_start_matches('[').trim_end_matches(']');
    self.0.iter().any(|entry| match entry {
      AllowedHost::Name(name) => name == bracketed,
      AllowedHost::Ipv6(address) => matches!(host, Host::Ipv6(it) if it == *address),
      AllowedHost::Pattern(pattern) => {
        pattern.matches_with(bracketed, MATCH_OPTIONS) || pattern.matches_with(bare, MATCH_OPTIONS)
      }
    })
  }
}

/// The URL without credentials, query and fragment, which may be secret, for messages.
pub fn without_query(url: &Url) -> String {
  let mut url = url.clone();
  url.set_query(None);
  url.set_fragment(None);
  // These fail for URLs that cannot have credentials.
  let _ = url.set_username("");
  let _ = url.set_password(None);
  url.into()
}

fn parse(entry: &str) -> std::result::Result<AllowedHost, String> {
  if entry.is_empty() {
    return Err("is empty: write a host name, such as \"api.example.com\"".to_owned());
  }
  let bare = entry
    .strip_prefix('[')
    .and_then(|rest| rest.strip_suffix(']'))
    .unwrap_or(entry);
  if let Ok(address) = bare.parse() {
    return Ok(AllowedHost::Ipv6(address));
  }
  if entry.contains("://") {
    return Err("has a scheme: write the host name alone, such as \"api.example.com\"".to_owned());
  }
  if entry.contains('/') {
    return Err("has a path: write the host name alone, such as \"api.example.com\"".to_owned());
  }
  if entry.contains(':') {
    return Err(
      "has a colon: write the host name without a port, and IPv6 addresses in full, without \
       patterns"
        .to_owned(),
    );
  }
  if !entry.contains(['*', '?', '[', ']']) {
    return match Host::parse(entry) {
      Ok(host) => Ok(AllowedHost::Name(host.to_string())),
      Err(error) => Err(format!("is not a host name: {error}")),
    };
  }
  let is_invalid =
    |character: &char| !character.is_ascii_alphanumeric() && !"-._~*?[]!".contains(*character);
  if let Some(character) = entry.chars().find(is_invalid) {
    return Err(format!(
      "has the character {character:?}, which host names cannot have: patterns may use *, ? and [..], \
       and non-ASCII names must be written as in DNS (xn--...)"
    ));
  }
  let mut pattern = entry.to_ascii_lowercase();
  // The library only accepts two stars between slashes.
  while pattern.contains("**") {
    pattern = pattern.replace("**", "*");
  }
  Pattern::new(&pattern)
    .map(AllowedHost::Pattern)
    .map_err(|error| {
      format!(
        "is not a valid pattern: {} (at character {})",
        error.msg,
        error.pos + 1
      )
    })
}

#[cfg(test)]
mod tests {
  use super::*;

  fn allows(entry: &str, url: &str) -> bool {
    let hosts = AllowedHosts::new(&[entry.to_owned()]).unwrap();
    hosts.check(&Url::parse(url).unwrap()).is_ok()
  }

  #[test]
  fn names_and_addresses_are_compared_as_normalized_in_urls() {
    assert!(allows(
      "api.example.com",
      "http://API.Example.com:8080/path"
    ));
    assert!(allows("API.example.com", "http://api.example.com"));
    assert!(allows("bücher.example", "http://xn--bcher-kva.example"));
    assert!(allows("127.0.0.1", "http://0x7f000001/"));
    assert!(!allows("example.com", "http://api.example.com"));
    assert!(!allows("example.com", "http://example.com.evil.test"));
    assert!(!allows("127.0.0.1", "http://[::ffff:127.0.0.1]/"));
  }

  #[test]
  fn stars_match_dots_and_classes_match_one_character() {
    assert!(allows("*.example.com", "http://a.b.example.com"));
    assert!(!allows("*.example.com", "http://example.com"));
    assert!(!allows("*.example.com", "http://a.example.com.evil.test"));
    assert!(!allows("*.example.com", "http://evil.test/a.example.com"));
    assert!(!allows("*.example.com", "http://evil.test?.example.com"));
    assert!(allows("**.Example.com", "http://a.example.com"));
    assert!(allows("api-?.example.com", "http://api-1.example.com"));
    assert!(allows("api-[1-3].example.com", "http://api-3.example.com"));
    assert!(!allows(
      "api-[!1-3].example.com",
      "http://api-3.example.com"
    ));
    assert!(allows("*", "http://[::1]/"));
  }

  #[test]
  fn an_ipv6_address_is_the_same_in_brackets_and_in_any_spelling() {
    for entry in ["::1", "[::1]", "0:0:0:0:0:0:0:1"] {
      assert!(allows(entry, "http://[::1]:8080/"));
      assert!(!allows(entry, "http://[::2]/"));
    }
  }

  #[test]
  fn a_long_host_name_matches_nothing() {
    assert!(!allows("*", &format!("http://{}", "a".repeat(256))));
  }

  #[test]
  fn an_entry_that_cannot_match_is_refused_with_a_suggestion() {
    for (entry, hint) in [
      ("", "is empty"),
      ("https://example.com", "has a scheme"),
      ("example.com/path", "has a path"),
      ("example.com:8080", "without a port"),
      ("[::1]:8080", "without a port"),
      ("fd00:*", "IPv6 addresses in full"),
      ("exam ple.com", "is not a host name"),
      ("user@example.com", "is not a host name"),
      ("256.0.0.1", "is not a host name"),
      ("{a,b}.*.com", "'{'"),
      ("*.bücher.example", "xn--"),
      ("[a.example.com", "is not a valid pattern"),
    ] {
      let error = AllowedHosts::new(&[entry.to_owned()]).unwrap_err();
      assert_eq!(error.code, Code::InvalidArgument);
      assert!(error.message.contains(hint), "{}", error.message);
    }
  }
}
