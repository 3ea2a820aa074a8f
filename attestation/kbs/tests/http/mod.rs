//! A client of a few lines: one request a connection, no library whose cleverness could hide what is on the wire.

use kata_cc_kbs_protocol::HttpResponse;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Sends a request and reads the whole response.
#[allow(clippy::unwrap_used)]
pub(crate) fn call(address: SocketAddr, method: &str, path: &str, headers: &[(&str, String)], body: &[u8]) -> HttpResponse {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let bytes = raw(address, &[request.as_bytes(), body].concat());
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a response has a head");
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    HttpResponse { status, headers, body: bytes[end + 4..].to_vec() }
}

/// Sends bytes and reads what comes until the end.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may answer and close before it has read everything: that is its right.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}
