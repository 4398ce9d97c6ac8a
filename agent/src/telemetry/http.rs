//! `/metrics`, `/healthz` and `/readyz` over HTTP/1.1: one request per connection, two methods, three
//! paths. That is less code than a web server would bring.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::metrics::{Scraped, render};
use crate::accept;
use crate::handles::Watcher;

/// The answers of the paths.
pub trait Pages: Clone + Send + Sync + 'static {
    /// The answer to a request with this first line.
    fn answer(&self, request: &str) -> impl Future<Output = Response> + Send;
}

#[derive(Clone)]
struct AgentPages {
    watcher: Watcher,
    per_peer: bool,
}

impl Pages for AgentPages {
    async fn answer(&self, request: &str) -> Response {
        let (method, path) = target(request);
        let scraped = if path == "/metrics" && method == "GET" {
            Scraped::read(&self.watcher, self.per_peer).await
        } else {
            Scraped::default()
        };
        respond(request, &self.watcher, &scraped, Instant::now())
    }
}

/// A bound metrics listener.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    per_peer: bool,
}

/// Connections served at once.
const CONNECTIONS: usize = 32;

/// The most bytes of a request's first line and headers together.
const HEAD_BYTES: u64 = 8 * 1024;

/// For a request and its response together.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

impl MetricsServer {
    /// Listens on `address`. `per_peer`: each peer has series of its own.
    ///
    /// # Errors
    /// Those of `bind(2)`.
    pub async fn bind(address: SocketAddr, per_peer: bool) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, per_peer })
    }

    /// Serves an agent until it is dropped.
    pub async fn serve(self, watcher: Watcher) {
        let per_peer = self.per_peer;
        self.serve_pages(AgentPages { watcher, per_peer }).await;
    }

    /// Serves these pages until it is dropped.
    pub async fn serve_pages(self, pages: impl Pages) {
        let answer = |stream, _| {
            let exchange = exchange(stream, pages.clone());
            async { tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await? }
        };
        accept::serve(&self.listener, CONNECTIONS, "HTTP client", answer).await;
    }
}

/// Status line and body of an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: &'static str,
    pub body: String,
}

/// Of `/healthz` and `/readyz`: whether it is well, and what it says.
#[must_use]
pub fn health(is_well: bool, text: &str) -> Response {
    let status = if is_well { "200 OK" } else { "503 Service Unavailable" };
    Response { status, body: format!("{text}\n") }
}

async fn exchange(stream: TcpStream, pages: impl Pages) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let request = read_head(&mut stream).await?;
    let response = pages.answer(&request).await;
    let body = if request.starts_with("HEAD ") { "" } else { &response.body };
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        response.status,
        response.body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Reads up to the empty line, and returns the first line. The headers are not used, but closing a
/// connection with unread bytes would reset it before the client has read the response.
async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut head = stream.take(HEAD_BYTES);
    let mut request = String::new();
    head.read_line(&mut request).await?;
    let mut line = String::new();
    while head.read_line(&mut line).await? > 0 && !line.trim_end().is_empty() {
        line.clear();
    }
    Ok(request)
}

/// Method and path of a request's first line.
#[must_use]
pub fn target(request: &str) -> (&str, &str) {
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    (method, target.split('?').next().unwrap_or_default())
}

fn respond(request: &str, watcher: &Watcher, scraped: &Scraped, now: Instant) -> Response {
    let (method, path) = target(request);
    let response = |status, body: String| Response { status, body };
    if !matches!(method, "GET" | "HEAD") {
        return response("405 Method Not Allowed", "GET or HEAD\n".to_owned());
    }
    match path {
        "/metrics" => response("200 OK", render(watcher, scraped, now)),
        "/healthz" if watcher.pulse.is_alive(now) => response("200 OK", "alive\n".to_owned()),
        "/healthz" => {
            let age = watcher.pulse.age(now).as_secs();
            response("503 Service Unavailable", format!("the loop has been stuck for {age} s\n"))
        }
        "/readyz" => {
            let state = watcher.status.borrow().state.clone();
            let status = if state.is_ready() { "200 OK" } else { "503 Service Unavailable" };
            response(status, format!("{state}\n"))
        }
        _ => response("404 Not Found", "/metrics, /healthz or /readyz\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handles::channels;
    use crate::pulse::STUCK_AFTER;
    use gatepost::reconcile::status::{State, Status};

    fn status_of(request: &str, watcher: &Watcher, now: Instant) -> String {
        let response = respond(request, watcher, &Scraped::default(), now);
        format!("{} {}", response.status, response.body.trim_end())
    }

    #[test]
    fn readyz_follows_the_state_and_healthz_the_pulse() {
        let start = Instant::now();
        let (watcher, end, _stop) = channels(Status::default(), start);
        let ready = "GET /readyz HTTP/1.1\r\n";
        assert_eq!(status_of(ready, &watcher, start), "503 Service Unavailable starting");
        end.status.send_modify(|status| {
            status.state = State::Degraded { why: "the database is unreachable".into() };
        });
        assert_eq!(
            status_of(ready, &watcher, start),
            "200 OK degraded: the database is unreachable"
        );

        let health = "GET /healthz HTTP/1.1\r\n";
        assert_eq!(status_of(health, &watcher, start), "200 OK alive");
        assert_eq!(
            status_of(health, &watcher, start + STUCK_AFTER * 2),
            "503 Service Unavailable the loop has been stuck for 60 s"
        );
    }

    #[test]
    fn other_methods_and_paths_are_refused() {
        let now = Instant::now();
        let (watcher, _end, _stop) = channels(Status::default(), now);
        assert!(status_of("POST /metrics HTTP/1.1\r\n", &watcher, now).starts_with("405 "));
        assert!(status_of("GET / HTTP/1.1\r\n", &watcher, now).starts_with("404 "));
        assert!(status_of("", &watcher, now).starts_with("405 "));
    }

    #[tokio::test]
    async fn silent_connections_do_not_delay_healthz() {
        let now = Instant::now();
        let (watcher, _end, _stop) = channels(Status::default(), now);
        let server =
            MetricsServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), false).await.unwrap();
        let address = server.listener.local_addr().unwrap();
        tokio::spawn(server.serve(watcher));
        let mut silent = Vec::new();
        for _ in 0..64 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let probe = async {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
            let mut reply = String::new();
            client.read_to_string(&mut reply).await.unwrap();
            assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        };
        tokio::time::timeout(Duration::from_secs(1), probe).await.unwrap();
    }

    #[tokio::test]
    async fn client_gets_the_metrics() {
        let now = Instant::now();
        let (watcher, _end, _stop) = channels(Status::default(), now);
        let server =
            MetricsServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), false).await.unwrap();
        let address = server.listener.local_addr().unwrap();
        tokio::spawn(server.serve(watcher));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        assert!(body.contains("\ngatepost_ready 0\n"), "{body}");
    }
}
