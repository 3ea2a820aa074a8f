//! A client of a few lines: one request a connection, no library whose cleverness could hide what is on the wire.

#![allow(dead_code)] // each test file uses a part

use kata_cc_kbs_protocol::HttpResponse;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Sends a request and reads the whole response.
#[track_caller]
pub(crate) fn call(address: SocketAddr, method: &str, path: &str, headers: &[(&str, String)], body: &[u8]) -> HttpResponse {
    try_call(address, method, path, headers, body).expect("a whole response")
}

/// The same, of a server that may be gone before it has answered: half a response is none.
pub(crate) fn try_call(address: SocketAddr, method: &str, path: &str, headers: &[(&str, String)], body: &[u8]) -> io::Result<HttpResponse> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    response(&try_raw(address, &[request.as_bytes(), body].concat())?)
}

/// The response that these bytes are.
pub(crate) fn response(bytes: &[u8]) -> io::Result<HttpResponse> {
    let short = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("half a response: {:?}", String::from_utf8_lossy(bytes)));
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(short)?;
    let head = std::str::from_utf8(&bytes[..end]).expect("a head is text");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line").parse().expect("a status");
    let headers: Vec<(String, String)> =
        lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let body = bytes[end + 4..].to_vec();
    let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if length.is_some_and(|(_, length)| length.parse() != Ok(body.len())) {
        return Err(short());
    }
    Ok(HttpResponse { status, headers, body })
}

/// Sends bytes and reads what comes until the end.
#[track_caller]
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    try_raw(address, bytes).expect("somebody listens")
}

fn try_raw(address: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // The server may answer and close before it has read everything: that is its right.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    Ok(answer)
}
