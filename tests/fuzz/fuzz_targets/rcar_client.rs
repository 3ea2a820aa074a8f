//! What a broker, or whoever poses as one, may answer to the guest: no panic, and no secret comes of it.
//!
//! Each answer is a line: status, headers (`;` between them), body; the parts are separated by a tab.
#![no_main]

use kata_cc_evidence::TeeType;
use kata_cc_kbs_protocol::{ClientSession, HttpResponse};
use libfuzzer_sys::fuzz_target;

fn answer(line: &[u8]) -> HttpResponse {
    let mut parts = line.splitn(3, |byte| *byte == b'\t');
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (status, headers) = (text(), text());
    let headers = headers.split(';').filter_map(|header| header.split_once(':')).map(|(n, v)| (n.to_owned(), v.trim().to_owned()));
    HttpResponse { status: status.parse().unwrap_or(200), headers: headers.collect(), body: parts.next().unwrap_or_default().to_vec() }
}

fuzz_target!(|bytes: &[u8]| {
    let mut answers = bytes.split(|byte| *byte == b'\n').map(answer);
    let mut next = || answers.next().unwrap_or(HttpResponse { status: 500, headers: Vec::new(), body: Vec::new() });
    let (challenge, _) = ClientSession::start(TeeType::Snp);
    let Ok(evidence) = challenge.handle(&next()) else { return };
    let (token, _) = evidence.submit(serde_json::Value::Null, None).expect("a message");
    let Ok(attested) = token.handle(&next(), 0) else { return };
    assert!(attested.open_resource(&next()).is_err());
});
