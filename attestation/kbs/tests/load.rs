//! The broker's program under many guests, and under many that only pretend to ask. Bounded in number; nothing here says how fast.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;
mod process;

use broker::{SECRET, body};
use http::try_call;
use kata_cc_kbs::session::MAX_WAITING;
use kata_cc_kbs_protocol::ResourcePath;
use process::Home;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

/// Guests at the same time.
const GUESTS: usize = 1000;
/// Threads that play them.
const THREADS: usize = 16;
const REQUEST: &str = r#"{"version":"0.4.0","tee":"snp","extra-params":""}"#;

/// Does something with all of them, by some threads, and keeps their order.
fn each<T: Send, R: Send>(all: Vec<T>, work: impl Fn(usize, T) -> R + Sync) -> Vec<R> {
    let count = all.len();
    let (queue, done) = (Mutex::new(all.into_iter().enumerate()), Mutex::new(Vec::with_capacity(count)));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let Some((n, item)) = queue.lock().unwrap().next() else { break };
                    let result = work(n, item);
                    done.lock().unwrap().push((n, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    assert_eq!(done.len(), count);
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, result)| result).collect()
}

fn secret(n: usize) -> Vec<u8> {
    format!("CANARY-{n}-of-this-guest-alone").into_bytes()
}

#[test]
fn a_thousand_guests_at_once_each_get_their_own_secret() {
    let home = Home::new("");
    let broker = home.start();
    home.make_ready(&broker);
    let admin = home.admin();
    each((0..GUESTS).collect(), |_, n| {
        let stored = broker.as_admin(&admin, "POST", &format!("/kbs/v0/resource/default/guest/{n}"), &secret(n)).unwrap();
        assert_eq!(stored.status, 200, "{n}");
    });
    let before = broker.peak_kib();

    // All have their challenge before the first one answers.
    let challenged = each(vec![(); GUESTS], |_, ()| broker.open().unwrap());
    assert_eq!(broker.sessions(), GUESTS);
    let attested = each(challenged, |_, state| broker.attest(state).unwrap());
    assert_eq!(broker.sessions(), GUESTS);
    let sealed = each((0..GUESTS).collect(), |_, n| {
        let path: ResourcePath = format!("default/guest/{n}").parse().unwrap();
        broker.send(&attested[n].get_resource(&path)).unwrap()
    });
    each(sealed, |n, response| {
        assert_eq!(attested[n].open_resource(&response).unwrap().expose(), secret(n), "{n}");
        assert!(attested[(n + 1) % GUESTS].open_resource(&response).is_err(), "{n}: another guest's key opens it");
    });
    let grown = broker.peak_kib() - before;
    // A session with its token has some 8 KiB; what is under way at a time is bounded by the broker, not by the number of guests.
    assert!(grown < 64 * 1024, "{GUESTS} guests took {grown} KiB");
    let metrics = body(&broker.get("/metrics").unwrap());
    for line in [
        format!("kbs_attestations_total{{tee=\"snp\",outcome=\"affirming\"}} {GUESTS}\n"),
        format!("kbs_resource_reads_total{{outcome=\"released\"}} {GUESTS}\n"),
    ] {
        assert!(metrics.contains(&line), "{metrics}");
    }
}

/// Opens sessions until it is told there are enough; how many, and what it was told then.
fn fill(address: SocketAddr, most: usize) -> (usize, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = format!("POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{REQUEST}", REQUEST.len());
    let mut buffer = vec![0; 8192];
    for opened in 0..most {
        stream.write_all(request.as_bytes()).unwrap();
        let length = stream.read(&mut buffer).unwrap();
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if !answer.starts_with("HTTP/1.1 200 ") {
            return (opened, answer);
        }
    }
    (most, String::new())
}

#[test]
fn a_table_full_of_sessions_refuses_newcomers_and_serves_who_is_in() {
    let home = Home::new("");
    let broker = home.start();
    home.make_ready(&broker);
    let mut inside: Vec<_> = (0..3).map(|_| broker.open().unwrap()).collect();
    let known = broker.attest(inside.pop().unwrap()).unwrap();
    let before = broker.peak_kib();
    let filled = each(vec![(); THREADS], |_, ()| fill(broker.address, MAX_WAITING));
    assert_eq!(filled.iter().map(|(opened, _)| opened).sum::<usize>() + inside.len(), MAX_WAITING);
    for (_, refusal) in &filled {
        assert!(refusal.starts_with("HTTP/1.1 429 ") && refusal.contains("too many sessions"), "{refusal}");
    }
    let grown = broker.peak_kib() - before;
    assert!(grown < 24 * 1024, "{MAX_WAITING} sessions took {grown} KiB");
    assert_eq!(broker.read(&known, "default/key/1").unwrap(), SECRET);
    let attested = broker.attest(inside.pop().unwrap()).unwrap();
    assert_eq!(broker.read(&attested, "default/key/1").unwrap(), SECRET);
    // It made room for one.
    assert_eq!(fill(broker.address, 2).0, 1);
}

/// Whether nothing has come and nobody has hung up.
fn is_waiting(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let waiting = matches!(stream.read(&mut [0; 16]), Err(e) if e.kind() == ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    waiting
}

#[test]
fn requests_that_are_half_sent_keep_nobody_from_being_served() {
    // Nobody is cut off while this test runs: they are all there together.
    let home = Home::new("client_timeout_seconds = 600\nmax_connections = 1024");
    let broker = home.start();
    home.make_ready(&broker);
    let whole = format!("POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{REQUEST}", REQUEST.len());
    let attest = "POST /kbs/v0/attest HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n{\"runtime-data\":";
    let head = whole.find("\r\n\r\n").unwrap();
    let mut slow: Vec<(TcpStream, &str)> = Vec::new();
    for n in 0..600 {
        let mut stream = TcpStream::connect(broker.address).unwrap();
        // Nothing, half a head, a head without its end, half a body, and half of something large.
        let (sent, rest) = match n % 5 {
            0 => ("", whole.as_str()),
            1 => whole.split_at(20),
            2 => whole.split_at(head + 2),
            3 => whole.split_at(head + 14),
            _ => (attest, ""),
        };
        stream.write_all(sent.as_bytes()).unwrap();
        slow.push((stream, rest));
    }
    each(vec![(); 40], |_, ()| {
        let attested = broker.attest(broker.open().unwrap()).unwrap();
        assert_eq!(broker.read(&attested, "default/key/1").unwrap(), SECRET);
    });
    for (n, (stream, rest)) in slow.iter_mut().enumerate() {
        assert!(is_waiting(stream), "{n}: it is not half-sent any more");
        if !rest.is_empty() && n % 50 < 5 {
            stream.write_all(rest.as_bytes()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{n}: {answer}");
        }
    }
    drop(slow);
    assert_eq!(try_call(broker.address, "GET", "/healthz", &[], &[]).unwrap().status, 200);
}
