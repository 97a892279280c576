//! Which hosts a plugin may reach.

use std::net::Ipv6Addr;

use glob::{MatchOptions, Pattern};
use url::{Host, Url};

use crate::host::HostFunctionError;
use crate::{Code, Error, Result};

/// DNS has no longer names. What is longer is not even compared with patterns.
const MAX_HOST: usize = 255;

/// What HTTP clients take at most; it also bounds the messages that quote a URL.
const MAX_URL: usize = 65_534;

/// As the host names of URLs are in lower case, so are the patterns. `*` matches dots.
const MATCHING: MatchOptions = MatchOptions {
  case_sensitive: true,
  require_literal_separator: false,
  require_literal_leading_dot: false,
};

/// The hosts that a plugin may reach.
#[derive(Debug)]
pub struct AllowedHosts(Vec<Entry>);

#[derive(Debug)]
enum Entry {
  /// A name or an IPv4 address, as URLs spell it.
  Name(String),
  Ipv6(Ipv6Addr),
  Pattern(Pattern),
}

impl AllowedHosts {
  /// Fails, with what to write instead, where an entry cannot match any host.
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

  /// Whether a plugin may send a request to this URL; an error that says why not.
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
      Entry::Name(name) => name == bracketed,
      Entry::Ipv6(address) => matches!(host, Host::Ipv6(it) if it == *address),
      Entry::Pattern(pattern) => {
        pattern.matches_with(bracketed, MATCHING) || pattern.matches_with(bare, MATCHING)
      }
    })
  }
}

/// The URL as messages quote it: what may be secret is left out.
pub fn without_query(url: &Url) -> String {
  let mut url = url.clone();
  url.set_query(None);
  url.set_fragment(None);
  // These fail where a URL cannot have them.
  let _ = url.set_username("");
  let _ = url.set_password(None);
  url.into()
}

fn parse(entry: &str) -> std::result::Result<Entry, String> {
  if entry.is_empty() {
    return Err("is empty: write a host name, such as \"api.example.com\"".to_owned());
  }
  let bare = entry
    .strip_prefix('[')
    .and_then(|rest| rest.strip_suffix(']'))
    .unwrap_or(entry);
  if let Ok(address) = bare.parse() {
    return Ok(Entry::Ipv6(address));
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
      Ok(host) => Ok(Entry::Name(host.to_string())),
      Err(error) => Err(format!("is no host name: {error}")),
    };
  }
  let strange =
    |character: &char| !character.is_ascii_alphanumeric() && !"-._~*?[]!".contains(*character);
  if let Some(character) = entry.chars().find(strange) {
    return Err(format!(
      "has the character {character:?}, which no host name has: patterns are made of *, ? and [..], \
       and names beyond ASCII are written as in DNS (xn--...)"
    ));
  }
  let mut pattern = entry.to_ascii_lowercase();
  // To the library, two stars are something that belongs between slashes.
  while pattern.contains("**") {
    pattern = pattern.replace("**", "*");
  }
  Pattern::new(&pattern).map(Entry::Pattern).map_err(|error| {
    format!(
      "is no pattern: {} (at character {})",
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
  fn names_and_addresses_are_compared_as_urls_spell_them() {
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
  fn stars_match_dots_and_classes_one_character() {
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
  fn an_entry_that_cannot_match_is_refused_with_what_to_write() {
    for (entry, hint) in [
      ("", "is empty"),
      ("https://example.com", "has a scheme"),
      ("example.com/path", "has a path"),
      ("example.com:8080", "without a port"),
      ("[::1]:8080", "without a port"),
      ("fd00:*", "IPv6 addresses in full"),
      ("exam ple.com", "is no host name"),
      ("user@example.com", "is no host name"),
      ("256.0.0.1", "is no host name"),
      ("{a,b}.*.com", "'{'"),
      ("*.bücher.example", "xn--"),
      ("[a.example.com", "is no pattern"),
    ] {
      let error = AllowedHosts::new(&[entry.to_owned()]).unwrap_err();
      assert_eq!(error.code, Code::InvalidArgument);
      assert!(error.message.contains(hint), "{}", error.message);
    }
  }
}
