//! The broker's program killed in the middle of everything, and started again over the same directory.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;
mod process;

use broker::{SECRET, body};
use kata_cc_kbs_protocol::{Attested, ClientSession, HttpRequest};
use process::{Home, Process, submit};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 4;
/// Resources that one writer of one round stores at most.
const WRITES: usize = 40;
/// For what must happen before the broker is killed; only a broker that does nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// What happened up to the kill, as the clients know it.
#[derive(Default)]
struct Told {
    /// Paths with what was to be there; true where the broker said that it is.
    written: Mutex<BTreeMap<String, (Vec<u8>, bool)>>,
    /// Secrets that guests got, opened.
    released: AtomicUsize,
    /// Exchanges that the kill cut off.
    cut_off: AtomicUsize,
    over: AtomicBool,
}

/// Stores until it is cut off.
fn write(home: &Home, broker: &Process, told: &Told, round: usize, writer: usize) {
    let admin = home.admin();
    for n in 0..WRITES {
        let path = format!("round{round}/writer{writer}/{n}");
        // Longer than a page, so that half of it would be seen.
        let content = format!("CANARY {path} ").repeat(500).into_bytes();
        told.written.lock().unwrap().insert(path.clone(), (content.clone(), false));
        match broker.as_admin(&admin, "POST", &format!("/kbs/v0/resource/{path}"), &content) {
            Ok(answer) => {
                assert_eq!(answer.status, 200, "{}", body(&answer));
                told.written.lock().unwrap().get_mut(&path).unwrap().1 = true;
            }
            Err(_) => return,
        }
    }
}

/// Attests and reads until it is cut off. Whatever is answered is a whole answer, and the right one.
fn ask(broker: &Process, told: &Told) {
    let exchange = || {
        let attested = broker.attest(broker.open()?)?;
        broker.read(&attested, "default/key/1")
    };
    while !told.over.load(Ordering::SeqCst) {
        match exchange() {
            Ok(secret) => {
                assert_eq!(secret, SECRET);
                told.released.fetch_add(1, Ordering::SeqCst);
            }
            Err(_) => {
                told.cut_off.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    }
}

fn without(mut request: HttpRequest, header: &str) -> HttpRequest {
    request.headers.retain(|(name, _)| *name != header);
    request
}

/// A request with one bit of its token's signature changed.
fn forged(mut request: HttpRequest) -> HttpRequest {
    for (name, value) in &mut request.headers {
        if *name == "authorization" {
            let at = value.rfind('.').unwrap() + 3;
            let other = if &value[at..=at] == "A" { "B" } else { "A" };
            value.replace_range(at..=at, other);
        }
    }
    request
}

#[track_caller]
fn refuses(broker: &Process, request: &HttpRequest, what: &str) {
    let answer = broker.send(request).unwrap();
    assert!([401, 409].contains(&answer.status), "{what}: {} {}", answer.status, body(&answer));
    assert!(!body(&answer).contains("ciphertext") && !body(&answer).contains("token\":"), "{what}: {}", body(&answer));
}

fn read_request(attested: &Attested) -> HttpRequest {
    attested.get_resource(&"default/key/1".parse().unwrap())
}

#[test]
fn a_broker_killed_in_the_middle_loses_nothing_it_acknowledged_and_releases_nothing_it_should_not() {
    let home = Home::new("");
    let mut broker = home.start();
    home.make_ready(&broker);
    let admin = home.admin();
    let told = Told::default();
    for round in 0..ROUNDS {
        // One guest at each point of the exchange.
        let challenged = broker.open().unwrap();
        let (_, never_answered) = submit(challenged);
        let (state, answered) = submit(broker.open().unwrap());
        let attested = state.handle(&broker.send(&answered).unwrap(), process::now()).unwrap();

        let (released, cut_off) = (told.released.load(Ordering::SeqCst), told.cut_off.load(Ordering::SeqCst));
        told.over.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let (home, broker, told) = (&home, &broker, &told);
                scope.spawn(move || write(home, broker, told, round, writer));
            }
            for _ in 0..6 {
                scope.spawn(|| ask(&broker, &told));
            }
            let start = Instant::now();
            // Each round a little later than the one before.
            let enough = || {
                let written = told.written.lock().unwrap();
                let acknowledged = written.iter().filter(|(path, (_, stored))| *stored && path.starts_with(&format!("round{round}/")));
                acknowledged.count() > 3 * round && told.released.load(Ordering::SeqCst) > released + round
            };
            while !enough() && start.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
            broker.kill();
            told.over.store(true, Ordering::SeqCst);
            assert!(start.elapsed() < PATIENCE, "nothing was written or released");
        });
        assert!(told.cut_off.load(Ordering::SeqCst) > cut_off, "nobody was in the middle of anything");
        assert!(!broker.is_running());
        assert!(broker.open().is_err());
        broker = home.start();

        // Sessions went with the process; what was begun is not finished, what was answered is not answered again.
        refuses(&broker, &never_answered, "the session of a challenge before the kill");
        refuses(&broker, &answered, "evidence that was answered before the kill");
        refuses(&broker, &without(read_request(&attested), "authorization"), "the cookie of a session before the kill");
        refuses(&broker, &without(without(read_request(&attested), "authorization"), "cookie"), "no credentials");
        refuses(&broker, &forged(without(read_request(&attested), "cookie")), "a token that nobody signed");
        // The key that signs tokens is kept: a token is good until it expires, for the key in it.
        assert_eq!(broker.read(&attested, "default/key/1").unwrap(), SECRET);
        // And everybody can attest again.
        let again = broker.attest(broker.open().unwrap()).unwrap();
        assert_eq!(broker.read(&again, "default/key/1").unwrap(), SECRET);

        let listed = broker.as_admin(&admin, "GET", "/kbs/v0/resource", &[]).unwrap();
        let listed: Value = serde_json::from_slice(&listed.body).unwrap();
        let listed: Vec<&str> = listed["resources"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let written = told.written.lock().unwrap();
        for (path, (_, acknowledged)) in written.iter() {
            assert!(!acknowledged || listed.contains(&path.as_str()), "{path} was stored and is gone");
        }
        for path in listed {
            let content = if path == "default/key/1" { SECRET } else { &written[path].0 };
            // What was under way is there as a whole or not at all.
            assert!(broker.read(&again, path).unwrap() == content, "{path} is not what was written");
        }
    }
    // Each release was written down before it was made.
    let logged = broker.as_admin(&admin, "GET", "/kbs/v0/audit?action=read-resource&allowed=true&limit=1000", &[]).unwrap();
    let logged: Vec<Value> = serde_json::from_slice(&logged.body).unwrap();
    let of_key = logged.iter().filter(|entry| entry["subject"] == "default/key/1").count();
    assert!(of_key >= told.released.load(Ordering::SeqCst).min(1000 - ROUNDS * WRITES * 2), "{of_key} of {:?}", told.released);
}

/// Kept apart: a client that is cut off between its evidence and the token starts anew, and need not wait for anything.
#[test]
fn a_guest_whose_broker_went_away_between_evidence_and_token_attests_anew() {
    let home = Home::new("");
    let broker = home.start();
    home.make_ready(&broker);
    let (_, request) = submit(broker.open().unwrap());
    broker.kill();
    assert!(broker.send(&request).is_err(), "an error of the connection, not an answer");
    let broker = home.start();
    let answer = broker.send(&request).unwrap();
    let (state, _) = submit(broker.open().unwrap());
    let error = state.handle(&answer, process::now()).unwrap_err();
    assert!(error.wants_new_session(), "{error}");
    let (start, request) = ClientSession::start(kata_cc_evidence::TeeType::Snp);
    let attested = broker.attest(start.handle(&broker.send(&request).unwrap()).unwrap()).unwrap();
    assert_eq!(broker.read(&attested, "default/key/1").unwrap(), SECRET);
}
