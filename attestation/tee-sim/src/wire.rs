//! The little protocol between the guest's file system and the server on the host. Bytes to values and back, no I/O but a stream.
//!
//! ```text
//! request   u32 LE length (= 68) | version u8 = 1 | vmpl u8 | kind u8 | reserved u8 = 0 | report data [64]
//! response  u32 LE length | status u8 = 0 | outblob length u32 LE | outblob | auxblob
//!           u32 LE length | status u8 = 1 | reason, UTF-8
//! ```
//! Kind 0 asks for the report or quote that goes to others, 1 for a TD's report of itself, 2 for a TD's event log; what is not a report or quote
//! comes back as `outblob` alone. One exchange a connection. Both sides bound what they read before they allocate.

use std::io::{Read, Write};

/// Bytes of a request after its length field.
pub const REQUEST_LEN: usize = 68;
/// Upper bound of a response: report (1184) and certificate table, with room. The kernel's own limits are 32 KiB for each blob.
pub const MAX_RESPONSE: usize = 72 * 1024;
const VERSION: u8 = 1;
const STATUS_OK: u8 = 0;
const STATUS_REFUSED: u8 = 1;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream broke or timed out.
    #[error("the stream to the simulated TEE broke")]
    Io(#[from] std::io::Error),
    /// A length field out of bounds.
    #[error("message of {found} bytes, expected {expected}")]
    Length {
        /// What the length field said.
        found: usize,
        /// What is allowed.
        expected: &'static str,
    },
    /// Unknown version, nonzero reserved bytes, unknown status, truncated body.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// The server refused to make a report.
    #[error("the simulated TEE refused: {0}")]
    Refused(String),
}

/// What a guest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRequest {
    /// Free bytes the report will carry.
    pub report_data: [u8; 64],
    /// Privilege level the report is asked for.
    pub vmpl: u8,
}

/// Anything a guest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The report or quote that goes to others.
    Report(ReportRequest),
    /// A TD's report of itself, over free bytes.
    TdReport([u8; 64]),
    /// The event log of a TD's launch.
    EventLog,
}

/// What comes back: the two files of the kernel's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blobs {
    /// The signed report.
    pub outblob: Vec<u8>,
    /// The certificate table.
    pub auxblob: Vec<u8>,
}

impl ReportRequest {
    /// Sends the request.
    pub fn write_to(&self, stream: &mut impl Write) -> Result<(), WireError> {
        Request::Report(self.clone()).write_to(stream)
    }
}

impl Request {
    /// Sends the request.
    pub fn write_to(&self, stream: &mut impl Write) -> Result<(), WireError> {
        let (kind, vmpl, report_data) = match self {
            Self::Report(request) => (0, request.vmpl, request.report_data),
            Self::TdReport(report_data) => (1, 0, *report_data),
            Self::EventLog => (2, 0, [0; 64]),
        };
        let mut message = Vec::with_capacity(4 + REQUEST_LEN);
        message.extend_from_slice(&(REQUEST_LEN as u32).to_le_bytes());
        message.extend_from_slice(&[VERSION, vmpl, kind, 0]);
        message.extend_from_slice(&report_data);
        stream.write_all(&message)?;
        stream.flush()?;
        Ok(())
    }

    /// Receives a request.
    pub fn read_from(stream: &mut impl Read) -> Result<Self, WireError> {
        let found = read_length(stream)?;
        if found != REQUEST_LEN {
            return Err(WireError::Length { found, expected: "68" });
        }
        let mut head = [0u8; 4];
        stream.read_exact(&mut head)?;
        let mut report_data = [0u8; 64];
        stream.read_exact(&mut report_data)?;
        match head {
            [VERSION, vmpl, 0, 0] => Ok(Self::Report(ReportRequest { report_data, vmpl })),
            [VERSION, 0, 1, 0] => Ok(Self::TdReport(report_data)),
            [VERSION, 0, 2, 0] if report_data == [0; 64] => Ok(Self::EventLog),
            [VERSION, ..] => Err(WireError::Malformed("unknown kind, or bytes that are not used are not zero")),
            _ => Err(WireError::Malformed("unknown version, expected 1")),
        }
    }
}

/// Sends the answer to a request.
pub fn write_response(stream: &mut impl Write, answer: &Result<Blobs, String>) -> Result<(), WireError> {
    let mut body = Vec::new();
    match answer {
        Ok(blobs) => {
            body.push(STATUS_OK);
            let len = u32::try_from(blobs.outblob.len()).map_err(|_| WireError::Malformed("outblob too long"))?;
            body.extend_from_slice(&len.to_le_bytes());
            body.extend_from_slice(&blobs.outblob);
            body.extend_from_slice(&blobs.auxblob);
        }
        Err(reason) => {
            body.push(STATUS_REFUSED);
            body.extend(reason.bytes().take(1024));
        }
    }
    if body.len() > MAX_RESPONSE {
        return Err(WireError::Length { found: body.len(), expected: "at most 72 KiB" });
    }
    let len = u32::try_from(body.len()).map_err(|_| WireError::Malformed("response too long"))?;
    stream.write_all(&len.to_le_bytes())?;
    stream.write_all(&body)?;
    stream.flush()?;
    Ok(())
}

/// Receives the answer to a request.
pub fn read_response(stream: &mut impl Read) -> Result<Blobs, WireError> {
    let found = read_length(stream)?;
    if found == 0 || found > MAX_RESPONSE {
        return Err(WireError::Length { found, expected: "1 to 72 KiB" });
    }
    let mut body = vec![0u8; found];
    stream.read_exact(&mut body)?;
    match body.split_first() {
        Some((&STATUS_OK, rest)) => {
            let (len, rest) = rest.split_first_chunk::<4>().ok_or(WireError::Malformed("truncated response"))?;
            let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| WireError::Malformed("outblob length"))?;
            let (outblob, auxblob) = rest.split_at_checked(len).ok_or(WireError::Malformed("outblob longer than the response"))?;
            Ok(Blobs { outblob: outblob.to_vec(), auxblob: auxblob.to_vec() })
        }
        Some((&STATUS_REFUSED, reason)) => Err(WireError::Refused(String::from_utf8_lossy(reason).into_owned())),
        _ => Err(WireError::Malformed("unknown status")),
    }
}

fn read_length(stream: &mut impl Read) -> Result<usize, WireError> {
    let mut len = [0u8; 4];
    stream.read_exact(&mut len)?;
    usize::try_from(u32::from_le_bytes(len)).map_err(|_| WireError::Malformed("length does not fit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(request: &Request) -> Vec<u8> {
        let mut bytes = Vec::new();
        request.write_to(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn requests_survive_the_wire() {
        let report = ReportRequest { report_data: [7; 64], vmpl: 3 };
        for request in [Request::Report(report.clone()), Request::TdReport([7; 64]), Request::EventLog] {
            assert_eq!(Request::read_from(&mut sent(&request).as_slice()).unwrap(), request);
        }
        let mut bytes = Vec::new();
        report.write_to(&mut bytes).unwrap();
        assert_eq!(bytes, sent(&Request::Report(report)));
    }

    #[test]
    fn refuses_a_request_of_any_other_length_version_or_kind() {
        let good = sent(&Request::Report(ReportRequest { report_data: [7; 64], vmpl: 0 }));
        for (at, value) in [(0, 67), (1, 1), (3, 0xff), (4, 2), (6, 3), (7, 1)] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert!(Request::read_from(&mut bytes.as_slice()).is_err(), "byte {at}");
        }
        assert!(Request::read_from(&mut &good[..40]).is_err());
        // Privilege level and report data where they mean nothing.
        for (request, at) in [(Request::TdReport([7; 64]), 5), (Request::EventLog, 5), (Request::EventLog, 70)] {
            let mut bytes = sent(&request);
            bytes[at] = 1;
            assert!(Request::read_from(&mut bytes.as_slice()).is_err(), "{request:?}");
        }
    }

    #[test]
    fn response_survives_the_wire() {
        let blobs = Blobs { outblob: vec![1; 1184], auxblob: vec![2; 5000] };
        let mut bytes = Vec::new();
        write_response(&mut bytes, &Ok(blobs.clone())).unwrap();
        assert_eq!(read_response(&mut bytes.as_slice()).unwrap(), blobs);
    }

    #[test]
    fn refusal_arrives_with_its_reason() {
        let mut bytes = Vec::new();
        write_response(&mut bytes, &Err("no".into())).unwrap();
        assert!(matches!(read_response(&mut bytes.as_slice()), Err(WireError::Refused(reason)) if reason == "no"));
    }

    #[test]
    fn refuses_lengths_that_lie() {
        assert!(read_response(&mut [0xff, 0xff, 0xff, 0xff, 0].as_slice()).is_err());
        assert!(read_response(&mut [0, 0, 0, 0].as_slice()).is_err());
        assert!(read_response(&mut [6, 0, 0, 0, 0, 2, 0, 0, 0, 9].as_slice()).is_err());
        assert!(read_response(&mut [1, 0, 0, 0, 9].as_slice()).is_err());
    }
}
