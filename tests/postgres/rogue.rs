//! A server that is not PostgreSQL, and asks for what it should not get.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use gatepost::store::{ConnectOptions, Method, StoreError, Tls, Unavailable};

use crate::login::hello;

const PASSWORD: &str = "correct horse battery";

/// Answers connections until one gets past the start, and returns all that it was sent.
fn serve(answers: &'static [&'static [u8]]) -> (u16, std::thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut sent = Vec::new();
        for answer in answers {
            sent.extend(message(&mut stream));
            stream.write_all(answer).unwrap();
        }
        // Until the client hangs up.
        let _ = stream.read_to_end(&mut sent);
        sent
    });
    (port, server)
}

/// The start-up packet, or the request for TLS.
fn message(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
    stream.read_exact(&mut rest).unwrap();
    rest
}

fn options(port: u16, tls: Tls) -> ConnectOptions {
    let url = format!("postgres://agent@127.0.0.1:{port}/vpn");
    ConnectOptions { tls, password: Some(PASSWORD.to_owned().into()), ..ConnectOptions::new(url) }
}

#[tokio::test]
async fn no_password_reaches_a_server_that_asks_for_it_in_clear_or_as_md5() {
    const CLEAR: &[u8] = b"R\0\0\0\x08\0\0\0\x03";
    const MD5: &[u8] = b"R\0\0\0\x0c\0\0\0\x05salt";
    const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    let cases: [(&'static [&'static [u8]], Method); 3] =
        [(&[CLEAR], Method::Password), (&[MD5], Method::Md5), (&[OK], Method::None)];
    for (answers, asked) in cases {
        let (port, server) = serve(answers);
        let error = hello(&options(port, Tls::Disable)).await.unwrap_err();
        let StoreError::Method { refused, .. } = &error else { panic!("{error}") };
        assert_eq!(refused.asked, asked);
        assert_eq!(error.unavailable(), Unavailable::Refuses);
        let sent = server.join().unwrap();
        assert!(sent.windows(5).any(|it| it == b"agent"), "it was asked to log in");
        let text = String::from_utf8_lossy(&sent).into_owned();
        let start = text.find("gatepost").unwrap() + "gatepost".len();
        assert!(text[start..].chars().all(|it| it == '\0'), "sent after the start: {text:?}");
    }
}

#[tokio::test]
async fn server_without_tls_is_refused_in_words() {
    let (port, server) = serve(&[b"N"]);
    let error = hello(&options(port, Tls::Auto)).await.unwrap_err();
    assert!(matches!(error, StoreError::Tls { .. }), "{error}");
    let words = error.to_string();
    assert!(words.contains("the server offers no TLS: set ssl = on"), "{words}");
    assert_eq!(server.join().unwrap().len(), 4, "only the request for TLS was sent");

    let (port, server) = serve(&[b"S 220 mail.example.org\r\n"]);
    let words = hello(&options(port, Tls::Auto)).await.unwrap_err().to_string();
    assert!(words.contains("what answers does not speak TLS"), "{words}");
    drop(server);
}
