//! Real connections of this process to itself, and answers that the kernel would not give.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// The number of this process's control group, where there is a hierarchy of version 2.
fn own_group() -> Option<u64> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let root = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?.split(' ').nth(1)?.to_owned();
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    Some(std::fs::metadata(PathBuf::from(root).join(path)).ok()?.ino())
}

/// Whether the kernel under this test can be asked, and what it should say.
fn expected() -> Option<u64> {
    let group = own_group();
    if group.is_none() {
        eprintln!("SKIPPED: there is no control group hierarchy of version 2 to compare with");
    }
    group
}

#[tokio::test]
async fn a_peer_is_in_the_group_of_the_process_that_made_its_socket() {
    let Some(group) = expected() else { return };
    let (client, server) = connected().await;
    assert_eq!(peers_group(&server).unwrap(), group);
    // From the other side it is the same process here.
    assert_eq!(peers_group(&client).unwrap(), group);
}

#[tokio::test]
async fn a_peer_that_has_said_all_it_wants_is_still_there() {
    let Some(group) = expected() else { return };
    let (mut client, server) = connected().await;
    client.shutdown().await.unwrap();
    assert_eq!(peers_group(&server).unwrap(), group);
}

#[tokio::test]
async fn a_peer_over_a_socket_of_ipv6_is_found_too() {
    let Some(group) = expected() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let Ok(_client) = TcpStream::connect(format!("[::ffff:127.0.0.1]:{port}")).await else {
        eprintln!("SKIPPED: no IPv6 here");
        return;
    };
    assert_eq!(peers_group(&listener.accept().await.unwrap().0).unwrap(), group);
}

#[tokio::test]
async fn a_peer_on_the_loopback_device_is_found_whichever_end_is_bound_to_it() {
    let Some(group) = expected() else { return };
    let listener = crate::rest::tests::listener();
    let client = tokio::net::TcpSocket::new_v4().unwrap();
    client.bind_device(Some(b"lo")).unwrap();
    let _client = client.connect(listener.local_addr().unwrap()).await.unwrap();
    assert_eq!(peers_group(&listener.accept().await.unwrap().0).unwrap(), group);
}

#[tokio::test]
async fn a_peer_that_is_gone_is_nobody() {
    let Some(group) = expected() else { return };
    let (client, server) = connected().await;
    drop(client);
    // Closed in order: for as long as the kernel has something of it left, that is its own.
    assert!(peers_group(&server).is_ok_and(|found| found == group) || peers_group(&server).is_err());
    // Broken off.
    let (client, server) = connected().await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(peers_group(&server).is_err());
}

#[tokio::test]
async fn the_socket_that_listens_is_not_taken_for_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4 was asked for") };
    assert!(ask(address, "127.0.0.1:1".parse().unwrap()).is_err());
}

#[test]
fn refuses_answers_of_another_form_or_about_another_socket() {
    let (local, remote): (SocketAddrV4, SocketAddrV4) = ("127.0.0.1:40000".parse().unwrap(), "127.0.0.1:8006".parse().unwrap());
    let attribute = |kind: u16, value: &[u8]| [&(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes().as_slice(), value].concat();
    let answer = |kind: u16, id: [u8; 36], attributes: &[u8]| {
        let mut body = vec![2, ESTABLISHED, 0, 0];
        body.extend(id);
        body.resize(MESSAGE, 0);
        body.extend(attributes);
        let length = (HEADER + body.len()) as u32;
        [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &[0; 10], &body].concat()
    };
    let id = sockid(local, remote);
    let attributes = [attribute(8, &[0]), vec![0; 3], attribute(CGROUP_ID, &7_u64.to_ne_bytes())].concat();
    let good = answer(BY_FAMILY, id, &attributes);
    assert_eq!(parse(&good, local, remote).unwrap(), Answer { state: ESTABLISHED, group: Some(7) });
    assert_eq!(parse(&answer(BY_FAMILY, id, &[]), local, remote).unwrap(), Answer { state: ESTABLISHED, group: None });
    assert!(parse(&good, remote, local).is_err());
    assert!(parse(&good, local, "127.0.0.1:8007".parse().unwrap()).is_err());
    assert!(parse(&good, "127.0.0.2:40000".parse().unwrap(), remote).is_err());
    assert!(parse(&answer(3, id, &attributes), local, remote).is_err());
    assert!(parse(&answer(BY_FAMILY, id, &attribute(CGROUP_ID, &[7; 4])), local, remote).is_err());
    assert!(parse(&answer(BY_FAMILY, id, &[200, 0, 21, 0]), local, remote).is_err());
    // An attribute without a length must not be read for ever.
    assert!(parse(&answer(BY_FAMILY, id, &[0; 8]), local, remote).is_err());
    for length in 0..good.len() {
        assert!(parse(&good[..length], local, remote).is_err(), "{length}");
    }
    let mut error = answer(ERROR, id, &[]);
    error[HEADER..HEADER + 4].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
    assert!(matches!(parse(&error, local, remote), Err(DiagError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOENT)));
}
