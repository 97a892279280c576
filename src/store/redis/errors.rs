//! Maps errors of Redis and of its connections to this crate's errors.

use std::error::Error as _;
use std::fmt::Display;
use std::io;

use redis::{ErrorKind, RedisError, ServerError};

use crate::{Code, Error};

/// The reason if a server exceeds the time limit.
pub const TIMED_OUT: &str = "it did not answer in time";

/// Maps an error reply. Its details are static text, or name a command, a key or an address. But a syntax
/// error repeats what was sent, which may be secret, so only known details are quoted.
pub fn from_server(error: &ServerError, server: &impl Display) -> Error {
  let details = error.details().unwrap_or_default();
  from_reply(error.code(), details, server)
}

/// Maps an error of the client library.
pub fn from_client(error: &RedisError, server: &impl Display) -> Error {
  match error.kind() {
    ErrorKind::AuthenticationFailed => from_reply("WRONGPASS", "", server),
    ErrorKind::Server(_) | ErrorKind::Extension => {
      let details = error.detail().unwrap_or_default();
      from_reply(error.code().unwrap_or("ERR"), details, server)
    }
    _ => unreachable(server, &reason(error)),
  }
}

/// The error for a server that does not answer.
pub fn unreachable(server: &impl Display, reason: &str) -> Error {
  Error::new(
    Code::StoreUnavailable,
    format!("the Redis server {server} cannot be reached: {reason}"),
  )
}

fn from_reply(code: &str, details: &str, server: &impl Display) -> Error {
  let has = |text: &str| details.contains(text);
  let (code, what) = match code {
    "WRONGPASS" | "NOAUTH" => (
      Code::AccessDenied,
      "rejected the credentials: the user name or password is missing or wrong".to_owned(),
    ),
    "NOPERM" => (Code::AccessDenied, format!("denied permission: {details}")),
    "OOM" => (
      Code::StoreFull,
      "is out of memory; raise its maxmemory, or remove keys".to_owned(),
    ),
    "WRONGTYPE" => (
      Code::InvalidArgument,
      "has a value under the key that is not a string; use another key".to_owned(),
    ),
    // Redis 6 wraps the errors of a script's commands.
    "ERR" if has("WRONGTYPE") => return from_reply("WRONGTYPE", "", server),
    "ERR" if has("OOM command not allowed") => return from_reply("OOM", "", server),
    "ERR" if has("not an integer") || has("would overflow") => (
      Code::InvalidArgument,
      "cannot increment the key: the value and the sum must be 64-bit integers in \
       decimal digits"
        .to_owned(),
    ),
    "ERR" if has("exceeds maximum allowed size") => (
      Code::ValueTooLarge,
      "refused the value as too large; raise its proto-max-bulk-len".to_owned(),
    ),
    "ERR" if has("invalid expire time") => (
      Code::InvalidArgument,
      "refused the lifetime as too long".to_owned(),
    ),
    "ERR" if has("DB index is out of range") => (
      Code::InvalidArgument,
      "has no database with that number; check the path of the URL".to_owned(),
    ),
    "ERR" if has("SELECT is not allowed in cluster mode") => (
      Code::InvalidArgument,
      "is part of a cluster, which only has database 0; leave the database out of the URL"
        .to_owned(),
    ),
    "ERR" if has("cluster support disabled") => (
      Code::InvalidArgument,
      "is not a cluster; open it with redis:// or rediss://".to_owned(),
    ),
    "MOVED" | "ASK" => (
      Code::StoreUnavailable,
      "is part of a cluster and does not hold the key; open it with redis+cluster://".to_owned(),
    ),
    // READONLY, LOADING, CLUSTERDOWN, MASTERDOWN, TRYAGAIN, MISCONF, NOREPLICAS, BUSY, and unknown codes.
    code => (
      Code::StoreUnavailable,
      format!("cannot serve the request now: it replied {code}"),
    ),
  };
  Error::new(code, format!("the Redis server {server} {what}"))
}

/// Why a connection failed, without quoting what the server sent.
fn reason(error: &RedisError) -> String {
  let inner = error
    .source()
    .and_then(|source| source.downcast_ref::<io::Error>());
  match inner {
    Some(inner) => describe_io(inner),
    None if error.is_io_error() => "the connection was lost".to_owned(),
    None => "it does not speak the Redis protocol".to_owned(),
  }
}

/// Describes an I/O error, without quoting it.
pub fn describe_io(error: &io::Error) -> String {
  let tls = error
    .get_ref()
    .and_then(|inner| inner.downcast_ref::<rustls::Error>());
  let what = match (tls, error.kind()) {
    (Some(rustls::Error::InvalidCertificate(why)), _) => {
      return format!(
        "its certificate is not valid ({why}); pass the certificate of the authority that issued it as ca"
      );
    }
    (Some(_), _) => "the TLS handshake failed; check that it speaks TLS",
    (None, io::ErrorKind::ConnectionRefused) => "the connection was refused",
    (
      None,
      io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof,
    ) => "the connection was lost",
    (None, io::ErrorKind::TimedOut) => TIMED_OUT,
    (None, io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
      "there is no network route to the host"
    }
    (None, _) => return format!("{}", error.kind()),
  };
  what.to_owned()
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn each_redis_error_maps_to_the_code_that_all_stores_use_for_it() {
    for (code, details, expected) in [
      ("NOAUTH", "Authentication required.", Code::AccessDenied),
      (
        "NOPERM",
        "this user has no permissions to run the 'set' command",
        Code::AccessDenied,
      ),
      (
        "OOM",
        "command not allowed when used memory > 'maxmemory'.",
        Code::StoreFull,
      ),
      (
        "WRONGTYPE",
        "Operation against a key holding the wrong kind of value",
        Code::InvalidArgument,
      ),
      (
        "ERR",
        "value is not an integer or out of range",
        Code::InvalidArgument,
      ),
      (
        "ERR",
        "increment or decrement would overflow",
        Code::InvalidArgument,
      ),
      (
        "ERR",
        "string exceeds maximum allowed size (proto-max-bulk-len)",
        Code::ValueTooLarge,
      ),
      (
        "ERR",
        "Error running script (call to f_0): @user_script:1: OOM command not allowed",
        Code::StoreFull,
      ),
      (
        "READONLY",
        "You can't write against a read only replica.",
        Code::StoreUnavailable,
      ),
      (
        "LOADING",
        "Redis is loading the dataset in memory",
        Code::StoreUnavailable,
      ),
      (
        "CLUSTERDOWN",
        "Hash slot not served",
        Code::StoreUnavailable,
      ),
      (
        "MASTERDOWN",
        "Link with MASTER is down",
        Code::StoreUnavailable,
      ),
      (
        "ERR",
        "unknown command 'AUTH', with args beginning with: 'secret'",
        Code::StoreUnavailable,
      ),
    ] {
      let error = from_reply(code, details, &"host:6379");
      assert_eq!(error.code, expected, "{code} {details}");
      assert!(error.message.contains("host:6379"), "{error}");
      assert!(!error.message.contains("secret"), "{error}");
    }
  }
}
