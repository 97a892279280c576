//! What the server's errors mean to who uses the store.

use std::error::Error as _;
use std::fmt::Display;
use std::io;

use redis::{ErrorKind, RedisError, ServerError};

use crate::{Code, Error};

/// What Redis says of its errors is static text, or names a command, a key, or an address. But an error of
/// syntax repeats what was sent, so it is quoted only where it is known what it says.
pub fn of_server(error: &ServerError, server: &impl Display) -> Error {
  let details = error.details().unwrap_or_default();
  of_reply(error.code(), details, server)
}

/// The error of a connection, or of a request.
pub fn of_client(error: &RedisError, server: &impl Display) -> Error {
  match error.kind() {
    ErrorKind::AuthenticationFailed => of_reply("WRONGPASS", "", server),
    ErrorKind::Server(_) | ErrorKind::Extension => {
      let details = error.detail().unwrap_or_default();
      of_reply(error.code().unwrap_or("ERR"), details, server)
    }
    _ => unreachable_for(server, &reason(error)),
  }
}

/// The server does not answer, for that reason.
pub fn unreachable_for(server: &impl Display, reason: &str) -> Error {
  Error::new(
    Code::StoreUnavailable,
    format!("the Redis server {server} cannot be reached: {reason}"),
  )
}

fn of_reply(code: &str, details: &str, server: &impl Display) -> Error {
  let has = |text: &str| details.contains(text);
  let (code, what) = match code {
    "WRONGPASS" | "NOAUTH" => (
      Code::AccessDenied,
      "does not let in: the user name or the password is missing or wrong".to_owned(),
    ),
    "NOPERM" => (
      Code::AccessDenied,
      format!("does not permit this: {details}"),
    ),
    "OOM" => (
      Code::StoreFull,
      "has no memory left (maxmemory)".to_owned(),
    ),
    "WRONGTYPE" => (
      Code::InvalidArgument,
      "has something under the key that is no string".to_owned(),
    ),
    // Redis 6 puts the errors of a script's commands into an error of the script's.
    "ERR" if has("WRONGTYPE") => return of_reply("WRONGTYPE", "", server),
    "ERR" if has("OOM command not allowed") => return of_reply("OOM", "", server),
    "ERR" if has("not an integer") || has("would overflow") => (
      Code::InvalidArgument,
      "has something under the key to which this cannot be added: the value and the sum must be whole \
       numbers of 64 bits in decimal digits"
        .to_owned(),
    ),
    "ERR" if has("exceeds maximum allowed size") => (
      Code::ValueTooLarge,
      "does not take a value as large as that (proto-max-bulk-len)".to_owned(),
    ),
    "ERR" if has("invalid expire time") => (
      Code::InvalidArgument,
      "does not take a lifetime as long as that".to_owned(),
    ),
    "ERR" if has("DB index is out of range") => (
      Code::InvalidArgument,
      "has no database of that number".to_owned(),
    ),
    "ERR" if has("SELECT is not allowed in cluster mode") => (
      Code::InvalidArgument,
      "is part of a cluster, which has database 0 only".to_owned(),
    ),
    "ERR" if has("cluster support disabled") => (
      Code::InvalidArgument,
      "is no cluster; open it with redis:// or rediss://".to_owned(),
    ),
    "MOVED" | "ASK" => (
      Code::StoreUnavailable,
      "is part of a cluster and does not have the key; open it with redis+cluster://".to_owned(),
    ),
    // READONLY, LOADING, CLUSTERDOWN, MASTERDOWN, TRYAGAIN, MISCONF, NOREPLICAS, BUSY, and what is not known.
    code => (
      Code::StoreUnavailable,
      format!("cannot do this now, and says {code}"),
    ),
  };
  Error::new(code, format!("the Redis server {server} {what}"))
}

/// Why there is no connection, in our own words.
fn reason(error: &RedisError) -> String {
  let inner = error
    .source()
    .and_then(|source| source.downcast_ref::<io::Error>());
  match inner {
    Some(inner) => of_io(inner),
    None if error.is_io_error() => "the connection was lost".to_owned(),
    None => "what it sends is no Redis protocol".to_owned(),
  }
}

/// What an I/O error means.
pub fn of_io(error: &io::Error) -> String {
  let tls = error
    .get_ref()
    .and_then(|inner| inner.downcast_ref::<rustls::Error>());
  let what = match (tls, error.kind()) {
    (Some(rustls::Error::InvalidCertificate(why)), _) => {
      return format!(
        "its certificate is not valid ({why}); pass the authority that has issued it as ca"
      );
    }
    (Some(_), _) => "no encrypted connection could be made; does it speak TLS?",
    (None, io::ErrorKind::ConnectionRefused) => "the connection was refused",
    (
      None,
      io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof,
    ) => "the connection was lost",
    (None, io::ErrorKind::TimedOut) => "it has not answered in time",
    (None, io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
      "there is no way to the host"
    }
    (None, _) => return format!("{}", error.kind()),
  };
  what.to_owned()
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn an_error_has_the_code_that_its_reason_has_in_all_stores() {
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
      let error = of_reply(code, details, &"host:6379");
      assert_eq!(error.code, expected, "{code} {details}");
      assert!(error.message.contains("host:6379"), "{error}");
      assert!(!error.message.contains("secret"), "{error}");
    }
  }
}
