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
use super::settings::{Address, Settings};
use crate::{Code, Error, Result};

/// What a server pushes without a request.
pub enum PushEvent {
  /// These keys have changed.
  KeysChanged(Vec<String>),
  /// Any key may have changed.
  AllChanged,
  /// The connection is lost.
  Disconnected,
}

/// A connection over which many requests are under way at a time. It ends when it is dropped everywhere and
/// has no request under way.
#[derive(Clone)]
pub struct Connection {
  pub server: Address,
  /// Whether the server can push events over it.
  pub has_push: bool,
  inner: MultiplexedConnection,
  driver: AbortHandle,
}

impl Connection {
  /// Connects. `on_push` is called in the order in which things arrive, replies included, and must be quick.
  pub async fn open(
    settings: &Settings,
    server: &Address,
    on_push: impl Fn(PushEvent) + Send + Sync + 'static,
  ) -> Result<Self> {
    let on_push = Arc::new(on_push);
    let opening = async {
      match Self::of_protocol(settings, server, ProtocolVersion::RESP3, &on_push).await? {
        Ok(connection) => Ok(connection),
        // Before Redis 6 there was no HELLO.
        Err(error) if has_no_hello(&error) => {
          let opened =
            Self::of_protocol(settings, server, ProtocolVersion::RESP2, &on_push).await?;
          opened.map_err(|error| errors::of_client(&error, server))
        }
        Err(error) => Err(errors::of_client(&error, server)),
      }
    };
    timeout(settings.timeout, opening)
      .await
      .unwrap_or_else(|_| {
        Err(errors::unreachable_for(
          server,
          "it has not answered in time",
        ))
      })
  }

  async fn of_protocol(
    settings: &Settings,
    server: &Address,
    protocol: ProtocolVersion,
    on_push: &Arc<impl Fn(PushEvent) + Send + Sync + 'static>,
  ) -> Result<std::result::Result<Self, RedisError>> {
    let stream = stream(settings, server).await?;
    let login = settings.login.clone().set_protocol(protocol);
    let has_push = protocol == ProtocolVersion::RESP3;
    // Who asks has a time limit of his own.
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

  /// Sends a command. A refusal is an answer too: [`Value::ServerError`].
  pub async fn send(&self, command: &Cmd) -> Result<Value> {
    let sent = self.inner.clone().send_packed_command(command).await;
    sent.map_err(|error| errors::of_client(&error, &self.server))
  }

  /// Sends commands one after the other, without waiting in between. As [`send`](Self::send) otherwise.
  pub async fn send_all(&self, commands: &Pipeline) -> Result<Vec<Value>> {
    let mut inner = self.inner.clone();
    let count = commands.len();
    let sent = inner.send_packed_commands(commands, 0, count).await;
    let answers = sent.map_err(|error| errors::of_client(&error, &self.server))?;
    match answers.len() == count {
      true => Ok(answers),
      false => Err(self.unexpected_reply()),
    }
  }

  /// Sends a command; a refusal is an error.
  pub async fn send_checked(&self, command: &Cmd) -> Result<Value> {
    match self.send(command).await? {
      Value::ServerError(error) => Err(errors::of_server(&error, &self.server)),
      answer => Ok(answer),
    }
  }

  /// The error for a reply of the wrong type.
  pub fn unexpected_reply(&self) -> Error {
    let server = &self.server;
    Error::new(
      Code::StoreUnavailable,
      format!("the Redis server {server} has given an answer of the wrong type"),
    )
  }

  /// Ends it now; requests under way fail.
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

/// What is no UTF-8 is the key of somebody else.
pub fn text(value: Value) -> Option<String> {
  match value {
    Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
    Value::SimpleString(text) => Some(text),
    _ => None,
  }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn stream(settings: &Settings, server: &Address) -> Result<Box<dyn Stream>> {
  let failed = |reason: &str| errors::unreachable_for(server, reason);
  let found = lookup_host((server.host.as_str(), server.port)).await;
  let found = found.map_err(|_| failed("the host was not found"))?;
  let mut result = Err(failed("the host was not found"));
  for address in found {
    match TcpStream::connect(address).await {
      Ok(stream) => {
        result = Ok(stream);
        break;
      }
      Err(error) => result = Err(failed(&errors::of_io(&error))),
    }
  }
  let stream = result?;
  let set = stream.set_nodelay(true);
  set.map_err(|error| failed(&errors::of_io(&error)))?;
  let Some(tls) = &settings.tls else {
    return Ok(Box::new(stream));
  };
  let name = ServerName::try_from(server.host.clone());
  let name = name.map_err(|_| failed("its name can be in no certificate"))?;
  let connected = TlsConnector::from(Arc::clone(tls))
    .connect(name, stream)
    .await;
  match connected {
    Ok(stream) => Ok(Box::new(stream)),
    Err(error) => Err(failed(&errors::of_io(&error))),
  }
}
