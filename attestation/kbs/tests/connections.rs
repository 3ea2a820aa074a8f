//! Peers that are slow, many or greedy; a certificate that changes; a broker that is told to stop.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use broker::{TestBroker, refused};
use http::call;
use kata_cc_kbs::config::Tls;
use kata_cc_kbs::limit::Rate;
use kata_cc_kbs::listen::{self, Limits};
use kata_cc_kbs::tls::ServerCertificate;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REQUEST: &str = r#"{"version":"0.4.0","tee":"snp","extra-params":""}"#;

#[test]
fn an_address_that_opens_too_many_sessions_is_told_to_wait() {
    let broker = TestBroker::changed(|_| (), |broker| broker.with_auth_rate(Rate { per_second: 1, burst: 5 }));
    let auth = || call(broker.address, "POST", "/kbs/v0/auth", &[], REQUEST.as_bytes());
    for _ in 0..5 {
        assert_eq!(auth().status, 200);
    }
    let answer = auth();
    refused(&answer, 429, "too many sessions");
    let wait: u64 = answer.headers.iter().find(|(name, _)| name == "retry-after").unwrap().1.parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    assert_eq!(broker.get("/healthz").status, 200, "nothing else is limited");
    assert!(broker::body(&broker.get("/metrics")).contains("kbs_rate_limited_total 1\n"));
}

/// A router of a broker of its own, served with these limits until the sender is dropped or used.
fn serve(
    limits: Limits,
    certificate: Option<&ServerCertificate>,
) -> (SocketAddr, tokio::sync::oneshot::Sender<()>, std::thread::JoinHandle<()>) {
    let acceptor = certificate.map(|c| c.acceptor().unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let router = axum_routes();
            listen::serve_within(limits, listener, acceptor, router, async {
                let _ = stopped.await;
            })
            .await;
        });
    });
    (address, stop, thread)
}

/// `/slow` takes half a second; `/big` sends more than any socket buffers.
fn axum_routes() -> axum::Router {
    use axum::routing::get;
    let slow = async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        "done"
    };
    axum::Router::new().route("/slow", get(slow)).route("/big", get(async || vec![b'x'; 64 * 1024 * 1024]))
}

fn quick() -> Limits {
    Limits { connections: 4, client_timeout: Duration::from_secs(1), drain_timeout: Duration::from_secs(5) }
}

#[test]
fn clients_that_send_their_head_drop_by_drop_are_cut_off_and_make_room() {
    let (address, _stop, _) = serve(quick(), None);
    let mut slow: Vec<_> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    for stream in &mut slow {
        stream.write_all(b"GET /slow HTTP/1.1\r\nx-").unwrap();
    }
    let start = Instant::now();
    // All four connections are taken: this one waits until they are cut off.
    assert_eq!(call(address, "GET", "/slow", &[], &[]).status, 200);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_client_that_takes_in_nothing_is_cut_off() {
    let (address, _stop, _) = serve(Limits { connections: 1, ..quick() }, None);
    let mut greedy = TcpStream::connect(address).unwrap();
    greedy.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    assert_eq!(call(address, "GET", "/slow", &[], &[]).status, 200);
    let mut got = Vec::new();
    greedy.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = greedy.read_to_end(&mut got);
    assert!(got.len() < 64 * 1024 * 1024, "the rest was never sent");
}

#[test]
fn a_request_under_way_is_finished_when_the_broker_stops() {
    let (address, stop, thread) = serve(quick(), None);
    let idle = TcpStream::connect(address).unwrap();
    let under_way = std::thread::spawn(move || call(address, "GET", "/slow", &[], &[]));
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    stop.send(()).unwrap();
    assert_eq!(under_way.join().unwrap().body, b"done");
    thread.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "an idle connection holds nothing up: {:?}", start.elapsed());
    assert!(TcpStream::connect(address).is_err());
    drop(idle);
}

#[test]
fn a_request_that_takes_too_long_does_not_keep_the_broker_from_stopping() {
    let (address, stop, thread) = serve(Limits { drain_timeout: Duration::from_millis(50), ..quick() }, None);
    let under_way = std::thread::spawn(move || listen_to(address));
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    stop.send(()).unwrap();
    thread.join().unwrap();
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    under_way.join().unwrap();
}

fn listen_to(address: SocketAddr) {
    http::raw(address, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n");
}

fn certify(dir: &Path) -> Tls {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let files = Tls { certificate: dir.join("tls.pem"), private_key: dir.join("tls.key") };
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.private_key, made.signing_key.serialize_pem()).unwrap();
    files
}

/// A client that trusts these certificates and no others.
fn connect(address: SocketAddr, trusted: &Path) -> Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>, String> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|e| e.to_string())?;
    }
    Ok(rustls::StreamOwned::new(connection, stream))
}

fn ask(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

#[test]
fn a_new_certificate_serves_new_connections_and_disturbs_no_old_one() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = certify(dir.path());
    let trusted_before = old.path().join("before.pem");
    std::fs::copy(&files.certificate, &trusted_before).unwrap();
    let certificate = ServerCertificate::load(&files).unwrap();
    let (address, _stop, _) = serve(Limits { client_timeout: Duration::from_secs(20), ..quick() }, Some(&certificate));
    let mut before = connect(address, &trusted_before).unwrap();
    assert!(ask(&mut before).starts_with("HTTP/1.1 200"));

    // The certificate is new and its key is not there yet: both stay as they were.
    let key = std::fs::read(&files.private_key).unwrap();
    certify(dir.path());
    let new_key = std::fs::read(&files.private_key).unwrap();
    std::fs::write(&files.private_key, key).unwrap();
    assert!(certificate.reload().is_err());
    assert!(connect(address, &trusted_before).is_ok());

    std::fs::write(&files.private_key, new_key).unwrap();
    certificate.reload().unwrap();
    assert!(connect(address, &files.certificate).is_ok());
    assert!(connect(address, &trusted_before).is_err());
    assert!(ask(&mut before).starts_with("HTTP/1.1 200"), "the old connection goes on");
}
