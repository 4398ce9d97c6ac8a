//! The stream to a server, and the look at how it asks for a login.
//!
//! The driver answers whatever a server asks for, and tells no caller before. So its stream shows it no
//! request that `database.require_auth` does not allow. To see the requests of connections without TLS,
//! too, these pose as TLS that begins without negotiation (`sslnegotiation=direct`).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::require_auth::{Method, Rule, Verdict};

/// Makes the streams of one database.
#[derive(Clone)]
pub(super) struct Connector {
    /// `None`: without TLS.
    pub rustls: Option<MakeRustlsConnect>,
    pub rule: Arc<Rule>,
    /// The tolerated method was reported.
    pub warned: Arc<AtomicBool>,
}

type RustlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
type RustlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Judged;
    type TlsConnect = Connecting;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Connecting, Self::Error> {
        let connect = |rustls| MakeTlsConnect::<Socket>::make_tls_connect(rustls, host);
        let rustls = self.rustls.as_mut().map(connect).transpose()?;
        Ok(Connecting { rustls, rule: self.rule.clone(), warned: self.warned.clone() })
    }
}

/// Makes one stream.
pub(super) struct Connecting {
    rustls: Option<RustlsConnect>,
    rule: Arc<Rule>,
    warned: Arc<AtomicBool>,
}

impl TlsConnect<Socket> for Connecting {
    type Stream = Judged;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Judged>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let channel = match self.rustls {
                Some(rustls) => Channel::Tls(Box::new(rustls.connect(socket).await?)),
                None => Channel::Plain(socket),
            };
            let Self { rule, warned, .. } = self;
            Ok(Judged { channel, rule, warned, head: Vec::new(), state: State::Waits })
        })
    }
}

enum Channel {
    Plain(Socket),
    Tls(Box<RustlsStream>),
}

trait Stream: AsyncRead + AsyncWrite {}

impl<T: AsyncRead + AsyncWrite> Stream for T {}

impl Channel {
    fn stream(&mut self) -> Pin<&mut dyn Stream> {
        match self {
            Self::Plain(socket) => Pin::<&mut Socket>::new(socket),
            Self::Tls(stream) => Pin::<&mut RustlsStream>::new(stream),
        }
    }
}

/// A stream that passes the server's first message on only if its rule allows it. All that follows
/// belongs to the method of that message: the driver takes no second request.
pub(super) struct Judged {
    channel: Channel,
    rule: Arc<Rule>,
    warned: Arc<AtomicBool>,
    /// Read, and not passed on yet.
    head: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// For the first message.
    Waits,
    Passes,
}

/// An authentication request: `R`, the length of the rest, the code of the method.
const REQUEST_TAG: u8 = b'R';
const REQUEST_BYTES: usize = 9;

/// The code of the request that begins here. Other messages, such as an error, are none.
fn request(head: &[u8]) -> Option<u32> {
    let (tag, rest) = head.split_first()?;
    let code = rest.get(4..8)?.try_into().ok()?;
    (*tag == REQUEST_TAG).then(|| u32::from_be_bytes(code))
}

impl Judged {
    /// Reads until the first message can be judged.
    fn poll_judge(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.head.len() < REQUEST_BYTES
            && self.head.first().is_none_or(|it| *it == REQUEST_TAG)
        {
            let mut space = [0; REQUEST_BYTES];
            let mut part = ReadBuf::new(&mut space[self.head.len()..]);
            ready!(self.channel.stream().poll_read(context, &mut part))?;
            if part.filled().is_empty() {
                break;
            }
            self.head.extend_from_slice(part.filled());
        }
        let asked = request(&self.head).map(Method::of_request);
        // The driver speaks no method of another code, and says so.
        if let Some(asked) = asked.flatten() {
            match self.rule.judge(asked) {
                Verdict::Answered => {}
                Verdict::Tolerated => self.warn_once(),
                Verdict::Refused => {
                    return Poll::Ready(Err(io::Error::other(self.rule.refusal(asked))));
                }
            }
        }
        self.state = State::Passes;
        Poll::Ready(Ok(()))
    }

    fn warn_once(&self) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the database asks for an MD5 hash of the password, which the next release refuses: \
                 set the role's password again with password_encryption = 'scram-sha-256' and let \
                 pg_hba.conf ask for scram-sha-256, or write require_auth = \"scram-sha-256,md5\" in \
                 section [database]"
            );
        }
    }
}

impl AsyncRead for Judged {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state == State::Waits {
            ready!(this.poll_judge(context))?;
        }
        if this.head.is_empty() {
            return this.channel.stream().poll_read(context, buffer);
        }
        let passed = this.head.len().min(buffer.remaining());
        buffer.put_slice(&this.head[..passed]);
        this.head.drain(..passed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Judged {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().channel.stream().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().channel.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().channel.stream().poll_shutdown(context)
    }
}

impl TlsStream for Judged {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.channel {
            Channel::Plain(_) => ChannelBinding::none(),
            Channel::Tls(stream) => stream.channel_binding(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_read_only_from_a_whole_authentication_message() {
        assert_eq!(request(b"R\0\0\0\x08\0\0\0\x03"), Some(3));
        assert_eq!(request(b"R\0\0\0\x08\0\0\0"), None);
        assert_eq!(request(b"E\0\0\0\x08\0\0\0\x03"), None);
        assert_eq!(request(b""), None);
    }
}
