//! A kept connection that speaks as much of HTTP/1.1 as the bench needs, with as little work as possible: client and broker share the cores.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kata_cc_kbs_protocol::http::MAX_BODY;
use kata_cc_kbs_protocol::{HttpRequest, HttpResponse};

/// A broker that says nothing for so long is stuck.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to the broker.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and reads the response.
    pub(crate) fn send(&mut self, request: &HttpRequest) -> Result<HttpResponse> {
        let mut bytes = format!("{} {} HTTP/1.1\r\nhost: broker\r\n", request.method.as_str(), request.path).into_bytes();
        for (name, value) in &request.headers {
            write!(bytes, "{name}: {value}\r\n")?;
        }
        write!(bytes, "content-length: {}\r\n\r\n", request.body.len())?;
        bytes.extend(&request.body);
        self.stream.get_mut().write_all(&bytes).context("cannot send")?;
        self.receive()
    }

    fn receive(&mut self) -> Result<HttpResponse> {
        let status = self.line()?;
        let status =
            status.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("not a status line: {status:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").with_context(|| format!("not a header: {line:?}"))?;
            headers.push((name.to_owned(), value.to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.context("an answer without content-length")?.1.parse()?;
        if length > MAX_BODY {
            bail!("an answer of {length} bytes, at most {MAX_BODY} are read");
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).context("the answer was cut")?;
        Ok(HttpResponse { status, headers, body })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("no answer")? == 0 {
            bail!("the broker closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }
}
