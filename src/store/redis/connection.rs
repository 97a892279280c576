//! A connection to one server.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{
  AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, PushInfo, PushKind, RedisError, Value,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::errors;
use super::settings::{RedisSettings, ServerAddress};
use crate::{Code, Error, Result};

/// A push message from a server.
pub enum PushEvent {
  /// These keys changed.
  KeysChanged(Vec<String>),
  /// Any key may have changed.
  AllChanged,
  /// The connection was lost.
  Disconnected,
}

/// A multiplexed connection. It closes once all clones are dropped and no request is in flight.
#[derive(Clone)]
pub struct Connection {
  pub server: ServerAddress,
  /// Whether the server can push messages over it.
  pub has_push: bool,
  inner: MultiplexedConnection,
  driver: AbortHandle,
}

impl Connection {
  /// Connects. `on_push` is called in the order in which messages arrive, also in relation to replies, and
  /// must be quick.
  pub async fn open(
    settings: &RedisSettings,
    server: &ServerAddress,
    on_push: impl Fn(PushEvent) + Send + Sync + 'static,
  ) -> Result<Self> {
    let on_push = Arc::new(on_push);
    let opening = async {
      match Self::open_with_protocol(settings, server, ProtocolVersion::RESP3, &on_push).await? {
        Ok(connection) => Ok(connection),
        // Redis before version 6 has no HELLO.
        Err(error) if has_no_hello(&error) => {
          let opened =
            Self::open_with_protocol(settings, server, ProtocolVersion::RESP2, &on_push).await?;
          opened.map_err(|error| errors::from_client(&error, server))
        }
        Err(error) => Err(errors::from_client(&error, server)),
      }
    };
    timeout(settings.timeout, opening)
      .await
      .unwrap_or_else(|_| Err(errors::unreachable(server, errors::TIMED_OUT)))
  }

  async fn open_with_protocol(
    settings: &RedisSettings,
    server: &ServerAddress,
    protocol: ProtocolVersion,
    on_push: &Arc<impl Fn(PushEvent) + Send + Sync + 'static>,
  ) -> Result<std::result::Result<Self, RedisError>> {
    let stream = stream(settings, server).await?;
    let login = settings.login.clone().set_protocol(protocol);
    let has_push = protocol == ProtocolVersion::RESP3;
    // Callers have their own time limits.
    let mut config = AsyncConnectionConfig::new().set_response_timeout(None);
    if has_push {
      let on_push = Arc::clone(on_push);
      config = config.set_push_sender(move |info: PushInfo| -> std::result::Result<(), ()> {
        if let Some(event) = push_event(info) {
          on_push(event);
        }
        Ok(())
      });
    }
    let opened = MultiplexedConnection::new_with_config(&login, stream, config).await;
    let on_push = Arc::clone(on_push);
    Ok(opened.map(|(inner, driver)| {
      let driver = tokio::spawn(async move {
        driver.await;
        on_push(PushEvent::Disconnected);
      });
      Self {
        server: server.clone(),
        has_push,
        inner,
        driver: driver.abort_handle(),
      }
    }))
  }

  /// Sends a command. An error reply is returned as [`Value::ServerError`].
  pub async fn send(&self, command: &Cmd) -> Result<Value> {
    let sent = self.inner.clone().send_packed_command(command).await;
    sent.map_err(|error| errors::from_client(&error, &self.server))
  }

  /// Sends commands in a pipeline. Error replies are returned as in [`send`](Self::send).
  pub async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>> {
    let mut inner = self.inner.clone();
    let count = commands.len();
    let sent = inner.send_packed_commands(commands, 0, count).await;
    let replies = sent.map_err(|error| errors::from_client(&error, &self.server))?;
    match replies.len() == count {
      true => Ok(replies),
      false => Err(self.unexpected_reply()),
    }
  }

  /// Sends a command. An error reply is an error.
  pub async fn send_checked(&self, command: &Cmd) -> Result<Value> {
    match self.send(command).await? {
      Value::ServerError(error) => Err(errors::from_server(&error, &self.server)),
      reply => Ok(reply),
    }
  }

  /// The error for a reply of the wrong type.
  pub fn unexpected_reply(&self) -> Error {
    let server = &self.server;
    Error::new(
      Code::StoreUnavailable,
      format!("the Redis server {server} sent a reply of the wrong type"),
    )
  }

  /// Closes the connection now; requests in flight fail.
  pub fn abort(&self) {
    self.driver.abort();
  }
}

fn has_no_hello(error: &RedisError) -> bool {
  let details = error.detail().unwrap_or_default();
  error.kind() == redis::ErrorKind::RESP3NotSupported
    || error.code() == Some("NOPERM")
    || details.starts_with("unknown command")
}

fn push_event(info: PushInfo) -> Option<PushEvent> {
  match info.kind {
    PushKind::Disconnection => Some(PushEvent::Disconnected),
    PushKind::Invalidate => Some(match info.data.into_iter().next() {
      Some(Value::Array(keys)) => {
        PushEvent::KeysChanged(keys.into_iter().filter_map(text).collect())
      }
      _ => PushEvent::AllChanged,
    }),
    _ => None,
  }
}

/// The text of a reply. `None` if it is not UTF-8: such a key belongs to another program.
pub fn text(value: Value) -> Option<String> {
  match value {
    Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
    Value::SimpleString(text) => Some(text),
    _ => None,
  }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn stream(settings: &RedisSettings, server: &ServerAddress) -> Result<Box<dyn Stream>> {
  let failed = |reason: &str| errors::unreachable(server, reason);
  let found = lookup_host((server.host.as_str(), server.port)).await;
  let found = found.map_err(|_| failed("the host was not found"))?;
  let mut result = Err(failed("the host was not found"));
  for address in found {
    match TcpStream::connect(address).await {
      Ok(stream) => {
        result = Ok(stream);
        break;
      }
      Err(error) => result = Err(failed(&errors::describe_io(&error))),
    }
  }
  let stream = result?;
  let set = stream.set_nodelay(true);
  set.map_err(|error| failed(&errors::describe_io(&error)))?;
  let Some(tls) = &settings.tls else {
    return Ok(Box::new(stream));
  };
  let name = ServerName::try_from(server.host.clone());
  let name = name.map_err(|_| failed("the host is not a valid name for a TLS certificate"))?;
  let connected = TlsConnector::from(Arc::clone(tls))
    .connect(name, stream)
    .await;
  match connected {
    Ok(stream) => Ok(Box::new(stream)),
    Err(error) => Err(failed(&errors::describe_io(&error))),
  }
}
