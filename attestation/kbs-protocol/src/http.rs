//! The little of HTTP the protocol needs, as plain values that a driver turns into real requests.

use std::fmt;

/// Largest body either side accepts: a resource of 2 MiB in base64 with room for the envelope.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// HTTP method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// POST.
    Post,
}

impl Method {
    /// The method's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// A request to send to the broker. `path` is appended to the broker's base URL.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// Method.
    pub method: Method,
    /// Absolute path, needing no escaping.
    pub path: String,
    /// Names in lower case, and values.
    pub headers: Vec<(&'static str, String)>,
    /// Body, empty for GET.
    pub body: Vec<u8>,
}

impl fmt::Debug for HttpRequest {
    /// Headers carry the session and bodies carry evidence: neither belongs into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpRequest({} {}, {} headers, {} bytes)", self.method.as_str(), self.path, self.headers.len(), self.body.len())
    }
}

/// A response received from the broker.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// Names in any case, and values.
    pub headers: Vec<(String, String)>,
    /// Body. A driver must stop reading at [`MAX_BODY`]; a longer body is refused.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// Values of a header, in order.
    pub(crate) fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for HttpResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpResponse({}, {} headers, {} bytes)", self.status, self.headers.len(), self.body.len())
    }
}
