//! The collector against a real HTTP server on loopback that counts what it is asked.

#![allow(clippy::unwrap_used)] // tests: to panic is to fail

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::routing::get;
use kata_cc_collateral::{Collector, Directory, Sources, directory};
use kata_cc_verifier::collateral::{Item, Need, Source};

/// Just before the documents below run out.
const NOW: u64 = 1_800_000_000;

fn tcb_info(next_update: u64) -> String {
    let time = humantime::format_rfc3339(std::time::UNIX_EPOCH + Duration::from_secs(next_update));
    format!("{{\"tcbInfo\":{{\"nextUpdate\":\"{time}\"}},\"signature\":\"\"}}")
}

#[derive(Clone, Default)]
struct Asked {
    times: Arc<AtomicUsize>,
    /// Requests being answered, and the most there were at a time.
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Asked {
    fn times(&self) -> usize {
        self.times.load(Ordering::SeqCst)
    }
}

/// Answers by the last word of the path.
async fn answer(State(asked): State<Asked>, Path(path): Path<String>) -> Response<Body> {
    asked.times.fetch_add(1, Ordering::SeqCst);
    let answer = |status: StatusCode, body: Vec<u8>| {
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response
    };
    match path.rsplit('/').next().unwrap() {
        "none" => answer(StatusCode::NOT_FOUND, Vec::new()),
        "busy" => answer(StatusCode::TOO_MANY_REQUESTS, Vec::new()),
        "broken" => answer(StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
        "large" => answer(StatusCode::OK, vec![b' '; 1024 * 1024 + 1]),
        "page" => answer(StatusCode::OK, b"<html>maintenance</html>".to_vec()),
        "moved" => {
            let mut response = answer(StatusCode::FOUND, Vec::new());
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/tcb"));
            response
        }
        "slow" => {
            let inside = asked.inside.fetch_add(1, Ordering::SeqCst) + 1;
            asked.most.fetch_max(inside, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
            asked.inside.fetch_sub(1, Ordering::SeqCst);
            answer(StatusCode::OK, tcb_info(NOW + 1000).into_bytes())
        }
        _ => {
            let mut response = answer(StatusCode::OK, tcb_info(NOW + 1000).into_bytes());
            let mut headers = HeaderMap::new();
            headers.insert("tcb-info-issuer-chain", HeaderValue::from_static("-----BEGIN%20CERTIFICATE-----%0A"));
            response.headers_mut().extend(headers);
            response
        }
    }
}

async fn service() -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let routes = Router::new().route("/{*path}", get(answer)).with_state(asked.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    (address, asked)
}

fn intel(address: SocketAddr) -> Sources {
    Sources { intel_pcs: Some(format!("http://{address}").parse().unwrap()), ..Sources::default() }
}

fn need(path: &str) -> Need {
    Need { source: Source::IntelPcs, path: path.into() }
}

async fn one(collector: &Collector, path: &str, now: u64) -> Option<Item> {
    collector.collect(&[need(path)], now).await.get(&need(path)).cloned()
}

#[tokio::test]
async fn a_piece_is_asked_for_once_in_its_time() {
    let (address, asked) = service().await;
    let collector = Collector::new(intel(address)).unwrap();
    let item = one(&collector, "tcb", NOW).await.unwrap();
    assert_eq!((item.body, item.issuer_chain), (tcb_info(NOW + 1000).into_bytes(), b"-----BEGIN CERTIFICATE-----\n".to_vec()));
    assert!(one(&collector, "tcb", NOW + 999).await.is_some());
    assert_eq!(asked.times(), 1);
    assert!(one(&collector, "tcb", NOW + 1000).await.is_some());
    assert_eq!(asked.times(), 2, "past its time");
}

#[tokio::test]
async fn who_comes_meanwhile_waits_for_the_first() {
    let (address, asked) = service().await;
    let collector = Collector::new(intel(address)).unwrap();
    let many = futures::future::join_all((0..20).map(|_| one(&collector, "slow", NOW))).await;
    assert!(many.iter().all(Option::is_some));
    assert_eq!(asked.times(), 1);
}

#[tokio::test]
async fn different_pieces_are_asked_for_at_once() {
    let (address, asked) = service().await;
    let collector = Collector::new(intel(address)).unwrap();
    let needs: Vec<Need> = (0..8).map(|n| need(&format!("{n}/slow"))).collect();
    let found = collector.collect(&needs, NOW).await;
    assert!(needs.iter().all(|need| found.get(need).is_some()));
    assert!(asked.most.load(Ordering::SeqCst) > 1);
}

#[tokio::test]
async fn what_is_no_answer_is_remembered_for_a_while() {
    let (address, asked) = service().await;
    for (number, path) in ["none", "busy", "broken", "large", "page", "moved"].into_iter().enumerate() {
        let collector = Collector::new(intel(address)).unwrap();
        assert!(one(&collector, path, NOW).await.is_none(), "{path}");
        let why = ["404", "429", "500", "larger", "no certificate", "302"][number];
        assert!(collector.why_not(&need(path)).unwrap().contains(why), "{path}");
        assert!(one(&collector, path, NOW + 59).await.is_none(), "{path}");
        assert_eq!(asked.times(), 2 * number + 1, "{path}");
        assert!(one(&collector, path, NOW + 60).await.is_none(), "{path}");
        assert_eq!(asked.times(), 2 * number + 2, "{path}");
    }
}

#[tokio::test]
async fn made_up_evidence_does_not_decide_how_often_a_service_is_asked() {
    let (address, asked) = service().await;
    let collector = Collector::new(intel(address)).unwrap();
    assert!(one(&collector, "tcb", NOW).await.is_some());
    for number in 0..200 {
        one(&collector, &format!("{number}/none"), NOW).await;
    }
    assert!(asked.times() <= 40, "{}", asked.times());
    // What was answered before is renewed all the same.
    let before = asked.times();
    assert!(one(&collector, "tcb", NOW + 1000).await.is_some());
    assert_eq!(asked.times(), before + 1);
}

#[tokio::test]
async fn no_path_leads_elsewhere() {
    let (address, asked) = service().await;
    let collector = Collector::new(intel(address)).unwrap();
    for path in ["../tcb", "tcb#x", "tcb%2e", "", "a b"] {
        assert!(one(&collector, path, NOW).await.is_none(), "{path:?}");
    }
    let other = Need { source: Source::AmdKds, path: "tcb".into() };
    assert!(collector.collect(std::slice::from_ref(&other), NOW).await.get(&other).is_none(), "no base URL, no network");
    assert_eq!(asked.times(), 0);
}

#[tokio::test]
async fn the_directory_comes_first_and_the_cache_outlives_the_process() {
    let (address, asked) = service().await;
    let (files, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(files.path().join(directory::file_name(&need("here")).unwrap()), b"by hand").unwrap();
    let sources = || Sources { directory: Some(files.path().into()), cache_directory: Some(cache.path().into()), ..intel(address) };
    let collector = Collector::new(sources()).unwrap();
    assert_eq!(one(&collector, "here", NOW).await.unwrap().body, b"by hand");
    assert_eq!(asked.times(), 0);
    assert!(one(&collector, "tcb", NOW).await.is_some());
    let again = Collector::new(sources()).unwrap();
    assert!(one(&again, "tcb", NOW + 1).await.is_some());
    assert_eq!(asked.times(), 1);
    assert_eq!(Directory::new(files.path().into()).collect(&[need("tcb")]).get(&need("tcb")), None, "the cache is not the directory");
}

#[tokio::test]
async fn what_has_expired_is_handed_out_where_there_is_no_newer() {
    let (address, _) = service().await;
    let cache = tempfile::tempdir().unwrap();
    let collector = Collector::new(Sources { cache_directory: Some(cache.path().into()), ..intel(address) }).unwrap();
    assert!(one(&collector, "tcb", NOW).await.is_some());
    // A port where nobody listens.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let collector = Collector::new(Sources { cache_directory: Some(cache.path().into()), ..intel(gone) }).unwrap();
    assert!(one(&collector, "tcb", NOW + 5000).await.is_some(), "the verifier looks at the time itself");
    assert!(one(&collector, "other", NOW).await.is_none());
}

#[test]
fn directories_that_are_not_there_are_named() {
    let error = Collector::new(Sources { directory: Some("/nowhere/at/all".into()), ..Sources::default() }).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    assert!(Collector::nowhere().is_nowhere() && Collector::new(Sources::default()).unwrap().is_nowhere());
}
