//! Parses a URL and its options.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use redis::{ProtocolVersion, RedisConnectionInfo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::Url;

use super::cache::Budget;
use crate::store::OpenOptions;
use crate::{Code, Error, Result};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const DEFAULT_CACHE_BYTES: usize = 64 << 20;
const DEFAULT_PORT: u16 = 6379;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerAddress {
  /// A name or an IP address, IPv6 without brackets.
  pub host: String,
  pub port: u16,
}

impl fmt::Display for ServerAddress {
  fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match self.host.contains(':') {
      true => write!(f, "[{}]:{}", self.host, self.port),
      false => write!(f, "{}:{}", self.host, self.port),
    }
  }
}

/// How to connect to the servers of a store.
pub struct RedisSettings {
  /// The server, or some servers of the cluster.
  pub servers: Vec<ServerAddress>,
  pub is_cluster: bool,
  pub login: RedisConnectionInfo,
  pub tls: Option<Arc<rustls::ClientConfig>>,
  /// The time limit for connecting, and for each answer.
  pub timeout: Duration,
  /// Whether opening the store fails if a server cannot be reached.
  pub is_required: bool,
  pub budget: Arc<Budget>,
}

impl RedisSettings {
  /// Parses a URL, given as its scheme and everything after the colon. Errors quote nothing of it, as it may
  /// contain a password.
  pub fn new(scheme: &str, rest: &str, options: &OpenOptions) -> Result<Self> {
    let (has_tls, is_cluster) = match scheme {
      "redis" => (false, false),
      "rediss" => (true, false),
      "redis+cluster" => (false, true),
      _ => (true, true),
    };
    let rest = rest.strip_prefix("//").ok_or_else(bad_url)?;
    if rest.contains(['?', '#']) {
      return Err(invalid(
        "the URL of a Redis server cannot have a query or a fragment; pass options to openStore, and write \
         special characters of a password as percent escapes, such as %3F",
      ));
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let servers = match is_cluster {
      true => hosts.split(',').map(address).collect::<Result<_>>()?,
      false => vec![address(hosts)?],
    };
    if is_cluster && !matches!(path, "" | "0") {
      return Err(invalid(
        "a Redis cluster only has database 0; leave the database out of the URL",
      ));
    }
    Ok(Self {
      servers,
      is_cluster,
      login: login(user, path)?,
      tls: tls(has_tls, options.ca.as_deref())?,
      timeout: options.timeout.unwrap_or(DEFAULT_TIMEOUT),
      is_required: options.is_required.unwrap_or(true),
      budget: Arc::new(Budget::new(
        options.cache_bytes.unwrap_or(DEFAULT_CACHE_BYTES),
      )),
    })
  }
}

fn invalid(message: &str) -> Error {
  Error::new(Code::InvalidArgument, message)
}

fn bad_url() -> Error {
  invalid(
    "the Redis URL is invalid; write redis://user:password@host:port/database for a server, where only the \
     host is required, or redis+cluster://user:password@host:port,host:port for a cluster, with special \
     characters of a password as percent escapes, such as %40",
  )
}

fn address(text: &str) -> Result<ServerAddress> {
  if text.contains(',') {
    return Err(bad_url());
  }
  let url = Url::parse(&format!("redis://{text}")).map_err(|_| bad_url())?;
  let host = match url.host().ok_or_else(bad_url)? {
    url::Host::Ipv6(address) => address.to_string(),
    host => host.to_string(),
  };
  Ok(ServerAddress {
    host,
    port: url.port().unwrap_or(DEFAULT_PORT),
  })
}

fn login(user: &str, database: &str) -> Result<RedisConnectionInfo> {
  let decoded = |text| {
    let text = percent_decode_str(text).decode_utf8();
    text.map_err(|_| bad_url())
  };
  let (name, password) = user.split_once(':').unwrap_or((user, ""));
  let mut login = RedisConnectionInfo::default()
    .set_protocol(ProtocolVersion::RESP3)
    .set_lib_name("extism-host", env!("CARGO_PKG_VERSION"));
  if !name.is_empty() {
    login = login.set_username(decoded(name)?);
  }
  if !password.is_empty() {
    login = login.set_password(decoded(password)?);
  }
  if !database.is_empty() {
    let number = database.parse::<u32>().map_err(|_| bad_url())?;
    login = login.set_db(number.into());
  }
  Ok(login)
}

fn tls(has_tls: bool, ca: Option<&[u8]>) -> Result<Option<Arc<rustls::ClientConfig>>> {
  let bad_ca = || {
    invalid("ca must be certificates as PEM text, each beginning with -----BEGIN CERTIFICATE-----")
  };
  let roots = match (has_tls, ca) {
    (false, None) => return Ok(None),
    (false, Some(_)) => {
      return Err(invalid(
        "ca only applies to rediss:// and rediss+cluster://; leave it out",
      ));
    }
    (true, None) => rustls::RootCertStore {
      roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    },
    (true, Some(pem)) => {
      let mut roots = rustls::RootCertStore::empty();
      for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| bad_ca())?;
        roots.add(certificate).map_err(|_| bad_ca())?;
      }
      if roots.is_empty() {
        return Err(bad_ca());
      }
      roots
    }
  };
  let provider = Arc::new(rustls::crypto::ring::default_provider());
  let tls = rustls::ClientConfig::builder_with_provider(provider)
    .with_safe_default_protocol_versions()
    .map_err(|error| Error::new(Code::Internal, format!("TLS cannot be set up: {error}")))?
    .with_root_certificates(roots)
    .with_no_client_auth();
  Ok(Some(Arc::new(tls)))
}

#[cfg(test)]
mod tests {
  use super::*;

  fn settings(url: &str) -> Result<RedisSettings> {
    let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
    RedisSettings::new(scheme, rest, &OpenOptions::default())
  }

  fn addresses(url: &str) -> Vec<String> {
    let settings = settings(url).unwrap();
    settings
      .servers
      .iter()
      .map(ServerAddress::to_string)
      .collect()
  }

  #[test]
  fn a_url_names_the_servers_and_the_login() {
    assert_eq!(addresses("redis://localhost"), ["localhost:6379"]);
    assert_eq!(addresses("rediss://[::1]:7000/"), ["[::1]:7000"]);
    assert_eq!(
      addresses("redis+cluster://u:p@10.0.0.1:7000,b,c:7002/0"),
      ["10.0.0.1:7000", "b:6379", "c:7002"]
    );
    let with = settings("rediss://jane:p%40ss%3A@host:7/3").unwrap();
    assert_eq!(with.login.username(), Some("jane"));
    assert_eq!(with.login.password(), Some("p@ss:"));
    assert_eq!(with.login.db(), 3);
    assert!(with.tls.is_some());
    let without = settings("redis://:secret@host").unwrap();
    assert_eq!(without.login.username(), None);
    assert_eq!(without.login.password(), Some("secret"));
    assert!(without.tls.is_none());
  }

  #[test]
  fn an_invalid_url_is_refused_without_quoting_it() {
    for url in [
      "redis:",
      "redis:host:6379",
      "redis://",
      "redis://u:secret@",
      "redis://u:secret@host:port",
      "redis://u:secret@host/zero",
      "redis://u:secret@host/-1",
      "redis://u:secret@host?db=1",
      "redis://u:secret@a,b:1",
      "redis://u:secret%FF@a",
      "redis+cluster://u:secret@a,,b",
      "redis+cluster://u:secret@a/1",
    ] {
      let error = settings(url).map(drop).unwrap_err();
      assert_eq!(error.code, Code::InvalidArgument, "{url}");
      assert!(!error.message.contains("secret"), "{error}");
    }
  }
}
