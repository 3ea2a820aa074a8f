//! Tests of the cache as guests see it, over a unix socket, and of what stays on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::digest::BlobDigest;
use super::listen::{Bounds, Server};
use super::store::BlobStore;

const MIB: usize = 1 << 20;

/// A store with a server on a socket.
struct Node {
    dir: tempfile::TempDir,
    store: BlobStore,
    server: Server,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn blobs_in(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("blobs")
}

impl Node {
    fn start(capacity: usize, largest: usize, bounds: Bounds) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), capacity, largest, bounds)
    }

    fn start_in(dir: tempfile::TempDir, capacity: usize, largest: usize, bounds: Bounds) -> Self {
        let store = BlobStore::open(blobs_in(&dir), capacity as u64, largest as u64).unwrap();
        let server = Server::new(store.clone(), bounds);
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let task = tokio::spawn(server.clone().unix(listener));
        Self { dir, store, server, task }
    }

    fn new() -> Self {
        Self::start(16 * MIB, 8 * MIB, Bounds::DEFAULT)
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("socket")).await.unwrap()
    }

    async fn request(&self, head: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        let request = [head.as_bytes(), b"\r\nhost: node\r\n\r\n", body].concat();
        // An answer may come, and the connection end, before all is sent.
        let _ = stream.write_all(&request).await;
        Answer::read(stream).await
    }

    async fn get(&self, digest: &str) -> Answer {
        self.request(&format!("GET /blobs/{digest} HTTP/1.1"), b"").await
    }

    async fn put(&self, digest: &str, bytes: &[u8]) -> u16 {
        self.request(&put_head(digest, bytes.len()), bytes).await.status
    }

    async fn keep(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        assert_eq!(self.put(&digest, bytes).await, 201);
        digest
    }

    fn files(&self) -> Vec<String> {
        files(&blobs_in(&self.dir))
    }

    /// Waits until nothing is left: what was being written when a connection ended is removed by the thread that wrote it.
    async fn emptied(&self) {
        let emptied = async {
            while self.store.totals() != (0, 0) || !self.files().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), emptied).await.expect("nothing is left");
    }

    /// Begins to give a blob.
    async fn begin(&self, digest: &str, size: usize, bytes: &[u8]) -> UnixStream {
        let before = self.store.totals().1;
        let mut stream = self.connect().await;
        stream.write_all(format!("{}\r\nhost: node\r\n\r\n", put_head(digest, size)).as_bytes()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        // Until the store has what it takes of it: whole pieces.
        while self.store.totals().1 - before < (bytes.len() / PIECE * PIECE) as u64 || !self.files().iter().any(|f| f.ends_with(".tmp")) {
            tokio::task::yield_now().await;
        }
        stream
    }
}

const PIECE: usize = 256 << 10;

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn put_head(digest: &str, size: usize) -> String {
    format!("PUT /blobs/{digest} HTTP/1.1\r\ncontent-length: {size}")
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn noise(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect()
}

struct Answer {
    status: u16,
    length: usize,
    body: Vec<u8>,
}

impl Answer {
    /// Reads until the node ends the connection.
    async fn read(mut stream: UnixStream) -> Self {
        let mut bytes = Vec::new();
        // A node that does not end it would hold the test for ever; a minute is not a measure of anything.
        let _ = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes)).await.expect("the node ends the connection");
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no answer: {bytes:?}"));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        Self { status: head.split(' ').nth(1).unwrap().parse().unwrap(), length, body: bytes[end + 4..].to_vec() }
    }

    #[track_caller]
    fn is(&self, bytes: &[u8]) {
        assert_eq!((self.status, self.length), (200, bytes.len()));
        assert!(self.body == bytes, "other bytes");
    }

    #[track_caller]
    fn broke_off(&self) {
        assert_eq!(self.status, 200);
        assert!(self.body.len() < self.length, "{} of {}", self.body.len(), self.length);
    }
}

#[tokio::test]
async fn gives_what_was_given_and_nothing_else() {
    let node = Node::new();
    let bytes = noise(1, 3 * PIECE + 17);
    assert_eq!(node.get(&sha256(&bytes)).await.status, 404);
    let digest = node.keep(&bytes).await;
    node.get(&digest).await.is(&bytes);
    node.get(&digest).await.is(&bytes);
    assert_eq!(node.get(&sha256(b"another")).await.status, 404);
    assert_eq!(node.files(), [digest.strip_prefix("sha256:").unwrap()]);
}

#[tokio::test]
async fn keeps_nothing_that_has_another_digest_or_length_than_announced() {
    let node = Node::new();
    let bytes = noise(2, PIECE + 5);
    let wrong = sha256(b"what it is not");
    assert_eq!(node.put(&wrong, &bytes).await, 422);
    // Cut by its giver.
    let digest = sha256(&bytes);
    let mut stream = node.connect().await;
    stream.write_all(format!("{}\r\nhost: node\r\n\r\n", put_head(&digest, bytes.len())).as_bytes()).await.unwrap();
    stream.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    for digest in [&wrong, &digest] {
        assert_eq!(node.get(digest).await.status, 404);
    }
    node.emptied().await;
}

#[tokio::test]
async fn refuses_what_is_too_large_has_no_length_or_is_no_request_of_ours() {
    let node = Node::start(4 * MIB, MIB, Bounds::DEFAULT);
    let digest = sha256(b"x");
    assert_eq!(node.put(&digest, &vec![0; MIB + 1]).await, 413);
    assert_eq!(node.request(&format!("PUT /blobs/{digest} HTTP/1.1"), b"").await.status, 411);
    let chunked = format!("PUT /blobs/{digest} HTTP/1.1\r\ntransfer-encoding: chunked");
    assert_eq!(node.request(&chunked, b"1\r\nx\r\n0\r\n\r\n").await.status, 411);
    assert_eq!(node.request(&format!("DELETE /blobs/{digest} HTTP/1.1"), b"").await.status, 405);
    let hex = digest.strip_prefix("sha256:").unwrap();
    for name in ["sha256:", "sha256:00", hex, &format!("sha512:{hex}"), &digest.to_uppercase(), &format!("sha256:{}", hex.to_uppercase())] {
        assert_eq!(node.get(name).await.status, 400, "{name}");
    }
    fs::write(node.dir.path().join("secret"), "s").unwrap();
    for name in ["../secret", "..%2fsecret", "1.tmp", &format!("{digest}/"), &format!("{digest}%00")] {
        assert_eq!(node.get(name).await.status, 400, "{name}");
        assert_eq!(node.put(name, b"x").await, 400, "{name}");
    }
    for path in ["/", "/blobs", "//blobs/x", "/v2/x", &format!("/blobs/{digest}?x")] {
        assert_eq!(node.request(&format!("GET {path} HTTP/1.1"), b"").await.status, 404, "{path}");
    }
    assert_eq!(fs::read(node.dir.path().join("secret")).unwrap(), b"s");
    assert!(node.files().is_empty());
}

#[tokio::test]
async fn a_blob_that_is_arriving_is_given_as_it_arrives() {
    let node = Node::new();
    let bytes = noise(3, 4 * PIECE);
    let digest = sha256(&bytes);
    let mut giver = node.begin(&digest, bytes.len(), &bytes[..2 * PIECE]).await;
    let mut joined = node.connect().await;
    joined.write_all(format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\n\r\n").as_bytes()).await.unwrap();
    // Half of it is there before the other half is given.
    let mut seen = vec![0; 2 * PIECE];
    joined.read_exact(&mut seen).await.unwrap();
    assert!(!blobs_in(&node.dir).join(digest.strip_prefix("sha256:").unwrap()).exists());
    giver.write_all(&bytes[2 * PIECE..]).await.unwrap();
    joined.read_to_end(&mut seen).await.unwrap();
    Answer::parse(&seen).is(&bytes);
    assert_eq!(Answer::read(giver).await.status, 201);
}

#[tokio::test]
async fn who_has_joined_sees_it_when_the_giver_breaks_off_or_gives_another_blob() {
    let node = Node::new();
    let bytes = noise(4, 4 * PIECE);
    for wrong in [false, true] {
        let digest = sha256(if wrong { b"what it is not" } else { &bytes });
        let mut giver = node.begin(&digest, bytes.len(), &bytes[..2 * PIECE]).await;
        let mut joined = node.connect().await;
        joined.write_all(format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\n\r\n").as_bytes()).await.unwrap();
        let mut seen = vec![0; PIECE];
        joined.read_exact(&mut seen).await.unwrap();
        if wrong {
            giver.write_all(&bytes[2 * PIECE..]).await.unwrap();
        }
        let giver = if wrong { Some(giver) } else { None };
        let _ = joined.read_to_end(&mut seen).await;
        Answer::parse(&seen).broke_off();
        if let Some(giver) = giver {
            assert_eq!(Answer::read(giver).await.status, 422);
        }
        node.emptied().await;
    }
}

#[tokio::test]
async fn who_gives_slowly_holds_up_neither_others_that_give_nor_those_that_ask() {
    let node = Node::start(4 * MIB, 4 * MIB, Bounds::DEFAULT);
    let kept = node.keep(&noise(5, 3 * MIB)).await;
    // Announces more than would fit beside it, and gives next to nothing.
    let bytes = noise(6, 3 * MIB);
    let digest = sha256(&bytes);
    let slow = node.begin(&digest, bytes.len(), b"x").await;
    assert_eq!(node.get(&kept).await.status, 200, "removed for what was only announced");
    // Somebody else gives the same blob, and who asks for it gets that one.
    // By the store itself: when this returns, the node has taken a piece of it, and of the slow one none.
    let mut faster = node.store.put(digest.parse().unwrap(), bytes.len() as u64).await.unwrap();
    faster.write(&bytes[..PIECE]).await.unwrap();
    let mut joined = node.connect().await;
    joined.write_all(format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\n\r\n").as_bytes()).await.unwrap();
    let mut seen = vec![0; PIECE];
    joined.read_exact(&mut seen).await.unwrap();
    faster.write(&bytes[PIECE..]).await.unwrap();
    faster.finish().await.unwrap();
    joined.read_to_end(&mut seen).await.unwrap();
    Answer::parse(&seen).is(&bytes);
    node.get(&digest).await.is(&bytes);
    drop(slow);
}

#[tokio::test]
async fn room_is_made_by_removing_what_was_used_the_longest_time_ago_and_is_not_being_read() {
    let node = Node::start(3 * MIB, 3 * MIB, Bounds::DEFAULT);
    let blobs: Vec<Vec<u8>> = (10..13).map(|seed| noise(seed, MIB)).collect();
    let mut digests = Vec::new();
    for bytes in &blobs {
        digests.push(node.keep(bytes).await);
    }
    // The oldest was used last; the second is being read.
    node.get(&digests[0]).await.is(&blobs[0]);
    let reading: BlobDigest = digests[1].parse().unwrap();
    let mut reading = node.store.get(reading).await.unwrap();
    node.get(&digests[2]).await.is(&blobs[2]);
    node.get(&digests[0]).await.is(&blobs[0]);
    // Now 1 is the one longest unused, and held; so 2 goes.
    let fourth = node.keep(&noise(13, MIB)).await;
    let mut there = Vec::new();
    for digest in digests.iter().chain([&fourth]) {
        there.push(node.store.get(digest.parse().unwrap()).await.is_some());
    }
    assert_eq!(there, [true, true, false, true]);
    let mut whole = Vec::new();
    while let Some(piece) = reading.next().await.unwrap() {
        whole.extend_from_slice(&piece);
    }
    assert!(whole == blobs[1]);
    assert_eq!(node.store.totals(), (3, 3 * MIB as u64));
}

#[tokio::test]
async fn says_so_when_there_is_no_room_and_leaves_what_is_there() {
    let node = Node::start(2 * MIB, 2 * MIB, Bounds::DEFAULT);
    let bytes = noise(20, MIB + MIB / 2);
    let digest = node.keep(&bytes).await;
    let mut reading = node.store.get(digest.parse().unwrap()).await.unwrap();
    let more = noise(21, MIB);
    assert_eq!(node.put(&sha256(&more), &more).await, 507);
    assert_eq!(node.store.totals(), (1, bytes.len() as u64));
    while reading.next().await.unwrap().is_some() {}
    drop(reading);
    assert_eq!(node.put(&sha256(&more), &more).await, 201);
}

#[tokio::test]
async fn a_blob_given_anew_replaces_one_that_was_damaged() {
    let node = Node::new();
    let bytes = noise(30, 2 * PIECE);
    let digest = node.keep(&bytes).await;
    let path = blobs_in(&node.dir).join(digest.strip_prefix("sha256:").unwrap());
    let mut damaged = bytes.clone();
    damaged[PIECE] ^= 1;
    fs::write(&path, &damaged).unwrap();
    // It is not this node that notices; a guest does, and gives the right one.
    node.get(&digest).await.is(&damaged);
    node.keep(&bytes).await;
    node.get(&digest).await.is(&bytes);
    assert_eq!(node.store.totals(), (1, bytes.len() as u64));
    // One that was cut is noticed.
    fs::write(&path, &bytes[..PIECE]).unwrap();
    assert_eq!(node.get(&digest).await.status, 404);
    assert_eq!(node.store.totals(), (0, 0));
}

#[tokio::test]
async fn a_restart_keeps_blobs_and_their_order_and_removes_leftovers() {
    let node = Node::start(4 * MIB, 4 * MIB, Bounds::DEFAULT);
    let blobs: Vec<Vec<u8>> = (40..43).map(|seed| noise(seed, MIB)).collect();
    let mut names = Vec::new();
    for (n, bytes) in blobs.iter().enumerate() {
        let digest = node.keep(bytes).await;
        let path = blobs_in(&node.dir).join(digest.strip_prefix("sha256:").unwrap());
        // Used in the reverse order, some years ago.
        let then = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000 - n as u64);
        fs::File::open(&path).unwrap().set_modified(then).unwrap();
        names.push(digest);
    }
    let dir = blobs_in(&node.dir);
    fs::write(dir.join("7.tmp"), vec![0; MIB]).unwrap();
    fs::write(dir.join("README"), "not ours").unwrap();
    let again = BlobStore::open(dir.clone(), 2 * MIB as u64, MIB as u64).unwrap();
    assert_eq!(again.totals(), (2, 2 * MIB as u64));
    let mut there = Vec::new();
    for name in &names {
        there.push(again.get(name.parse().unwrap()).await.is_some());
    }
    assert_eq!(there, [true, true, false]);
    let left = files(&dir);
    assert!(left.contains(&"README".to_owned()) && !left.contains(&"7.tmp".to_owned()) && left.len() == 3, "{left:?}");
}

/// Waits for the node to end a connection on which it was given `sent`, and says what it answered.
async fn ended(node: &Node, sent: &[u8]) -> Vec<u8> {
    let mut stream = node.connect().await;
    stream.write_all(sent).await.unwrap();
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes)).await.expect("the node ends the connection");
    bytes
}

#[tokio::test]
async fn a_silent_client_loses_its_connection_and_leaves_nothing() {
    let short = Bounds { silence: Duration::from_millis(50), head: Duration::from_secs(600), ..Bounds::DEFAULT };
    let node = Node::start(16 * MIB, 8 * MIB, short);
    ended(&node, b"GET /blobs/").await;
    let digest = sha256(b"x");
    let part = [format!("{}\r\nhost: node\r\n\r\n", put_head(&digest, MIB)).as_bytes(), &vec![0; PIECE]].concat();
    ended(&node, &part).await;
    node.emptied().await;
    // One that does not take what it asked for.
    let bytes = noise(50, 4 * MIB);
    let digest = sha256(&bytes);
    let mut fill = node.store.put(digest.parse().unwrap(), bytes.len() as u64).await.unwrap();
    fill.write(&bytes).await.unwrap();
    fill.finish().await.unwrap();
    let (mut client, stream) = tokio::io::duplex(4096);
    client.write_all(format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\n\r\n").as_bytes()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), node.server.connection(stream)).await.expect("the node ends the connection");
}

#[tokio::test]
async fn a_head_that_is_too_slow_or_too_long_ends_the_connection() {
    let short = Bounds { silence: Duration::from_secs(600), head: Duration::from_millis(50), ..Bounds::DEFAULT };
    let node = Node::start(MIB, MIB, short);
    let answer = ended(&node, b"GET /blobs/").await;
    assert!(!answer.starts_with(b"HTTP/1.1 2"), "{answer:?}");
    let node = Node::new();
    let long = format!("GET /blobs/x HTTP/1.1\r\nhost: node\r\nx: {}\r\n\r\n", "y".repeat(16 << 10));
    let answer = ended(&node, long.as_bytes()).await;
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once_and_a_place_is_free_again_later() {
    let node = Node::start(MIB, MIB, Bounds { connections: 1, ..Bounds::DEFAULT });
    let digest = node.keep(b"a blob").await;
    let held = node.connect().await;
    // A whole request, which would be answered if there were a place.
    let mut refused = node.connect().await;
    let _ = refused.write_all(format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\n\r\n").as_bytes()).await;
    let mut bytes = Vec::new();
    let _ = refused.read_to_end(&mut bytes).await;
    assert!(bytes.is_empty(), "{}", String::from_utf8_lossy(&bytes));
    drop(held);
    // The place is given back when the node has seen the end of the other connection.
    for _ in 0..1_000_000 {
        let mut stream = node.connect().await;
        let _ = stream.write_all(format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\n\r\n").as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        if !bytes.is_empty() {
            return Answer::parse(&bytes).is(b"a blob");
        }
    }
    panic!("the place was never given back");
}

#[tokio::test]
async fn a_connection_serves_one_request() {
    let node = Node::new();
    let digest = node.keep(b"a blob").await;
    let request = format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\n\r\n");
    let answer = ended(&node, request.repeat(2).as_bytes()).await;
    assert_eq!(String::from_utf8(answer).unwrap().matches("HTTP/1.1 200").count(), 1);
}

/// HTTP keeps bodies to their announced length; the store does so by itself, since who joins was told that length.
#[tokio::test]
async fn the_store_keeps_nothing_of_another_length_than_announced_even_if_the_digest_is_right() {
    let node = Node::new();
    let digest: BlobDigest = sha256(b"a blob").parse().unwrap();
    for announced in [5, 7] {
        let mut fill = node.store.put(digest, announced).await.unwrap();
        fill.write(b"a blob").await.unwrap();
        assert!(fill.finish().await.is_err(), "{announced}");
        assert!(node.store.get(digest).await.is_none(), "{announced}");
    }
    node.emptied().await;
}
