//! Bodies larger than any the broker takes, on every route: refused, and never taken for another request.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use broker::{TestBroker, bearer};
use kata_cc_kbs::server::body::{MAX_AUTH_BODY, MAX_BODY};
use kata_cc_kbs::server::routes::routes;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// What an attacker would like to be read as a request of its own, by a broker behind a proxy that reads it as a body.
const SMUGGLED: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: smuggled\r\n\r\n";

/// Requests that a body of more than `limit` bytes comes with: of a length that is told, and in chunks that tell none.
fn oversized(limit: usize) -> [(&'static str, String, Vec<u8>); 2] {
    let content: Vec<u8> = SMUGGLED.iter().copied().cycle().take(limit + 1).collect();
    let chunks: Vec<u8> = content
        .chunks(64 * 1024)
        .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())
        .chain(*b"0\r\n\r\n")
        .collect();
    [
        ("of a length", format!("content-length: {}\r\n", content.len()), content),
        ("in chunks", "transfer-encoding: chunked\r\n".to_owned(), chunks),
    ]
}

/// Everything that comes back on a connection on which these bytes are sent, as text.
fn answers(broker: &TestBroker, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(broker.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    });
    // The broker may answer and hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    reading.join().unwrap()
}

fn statuses(answer: &str) -> Vec<u16> {
    answer.split("HTTP/1.1 ").skip(1).map(|rest| rest[..3].parse().unwrap()).collect()
}

#[test]
fn a_body_that_is_too_large_is_refused_on_every_route_and_never_read_as_a_request() {
    let broker = TestBroker::start().ready();
    for route in routes() {
        let path = ["{repository}", "{type}", "{tag}", "{id}", "{name}"].iter().fold(route.path.to_owned(), |p, name| p.replace(name, "x"));
        let limit = if route.path == "/kbs/v0/auth" { MAX_AUTH_BODY } else { MAX_BODY };
        for (how, header, content) in oversized(limit) {
            let what = format!("{} {path} {how}", route.method);
            for authorization in [String::new(), format!("authorization: {}\r\n", bearer(&broker.admin, "admin", broker.now()))] {
                let head = format!("{} {path} HTTP/1.1\r\nhost: test\r\n{authorization}{header}\r\n", route.method);
                let last = b"GET /openapi.json HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
                let answer = answers(&broker, &[head.as_bytes(), &content, last].concat());
                let found = statuses(&answer);
                match route.method.as_str() {
                    "POST" => assert_eq!(found.first(), Some(&413), "{what}: {answer}"),
                    // What takes no body does not look at one. `/readyz` and the like answer, others want an administrator or have no such thing.
                    _ => assert!(found.first().is_some_and(|status| [200, 400, 401, 404].contains(status)), "{what}: {answer}"),
                }
                // Either hung up on, or read to its end and then the next request answered: nothing in between.
                match found.len() {
                    1 => {}
                    2 => assert!(answer.contains("\"openapi\""), "{what}: {answer}"),
                    _ => panic!("{what}: {} answers to two requests", found.len()),
                }
            }
        }
    }
    // It is none the worse for it.
    let attested = broker.attest();
    let read = broker.send(&attested.get_resource(&"default/key/1".parse().unwrap()));
    assert_eq!(attested.open_resource(&read).unwrap().expose(), broker::SECRET);
}

#[test]
fn a_body_announced_as_too_large_is_refused_before_it_is_sent() {
    let broker = TestBroker::start().ready();
    for length in [(MAX_BODY + 1).to_string(), "99999999999999".to_owned(), u64::MAX.to_string()] {
        let mut stream = TcpStream::connect(broker.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("POST /kbs/v0/attest HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n\r\n{{").as_bytes()).unwrap();
        // Nothing more is sent, and the answer comes all the same.
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        // 431 is the HTTP library's answer to a length that no file has.
        assert!([&b"HTTP/1.1 413"[..], b"HTTP/1.1 431"].contains(&&answer[..]), "{length}: {}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn a_body_of_two_lengths_is_no_request() {
    let broker = TestBroker::start();
    for headers in [
        "content-length: 2\r\ncontent-length: 3\r\n",
        "content-length: 2\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        "content-length: -1\r\n",
        "content-length: 0x10\r\n",
        "content-length: 2, 3\r\n",
    ] {
        let head = format!("POST /kbs/v0/auth HTTP/1.1\r\nhost: test\r\n{headers}\r\n{{}}");
        let answer = answers(&broker, &[head.as_bytes(), SMUGGLED].concat());
        assert!(statuses(&answer).iter().all(|status| *status == 400), "{headers:?}: {answer}");
        assert!(!answer.contains("HTTP/1.1 200"), "{headers:?}: {answer}");
    }
}
