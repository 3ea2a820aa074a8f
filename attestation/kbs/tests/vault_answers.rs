//! Answers that no Vault gives on purpose, from a server of a few lines; and files that cannot be used. What a Vault does give: `vault.rs`.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod http;

use kata_cc_kbs::config;
use kata_cc_kbs::resources::{Vault, VaultError, VaultSetupError};
use kata_cc_kbs::seal::write_new_private;
use kata_cc_kbs_protocol::ResourcePath;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;

struct Fixture {
    dir: tempfile::TempDir,
    vault: Vault,
    heads: mpsc::Receiver<String>,
}

fn config(address: &str, dir: &tempfile::TempDir) -> config::Vault {
    config::Vault {
        address: address.parse().unwrap(),
        mount: "secret".into(),
        prefix: String::new(),
        token_file: dir.path().join("token"),
        ca: None,
        namespace: None,
    }
}

/// A server that gives these answers, one a connection. `after` is told which connection it was, before the answer.
fn answering(answers: Vec<Vec<u8>>, after: impl Fn(usize, &std::path::Path) + Send + 'static) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    write_new_private(&dir.path().join("token"), b"first").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let vault = Vault::configured(&config(&format!("http://{}", listener.local_addr().unwrap()), &dir)).unwrap();
    let (sender, heads) = mpsc::channel();
    let token = dir.path().join("token");
    std::thread::spawn(move || {
        for (n, answer) in answers.into_iter().enumerate() {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).unwrap();
            let _ = sender.send(String::from_utf8_lossy(&head[..length]).into_owned());
            after(n, &token);
            let _ = stream.write_all(&answer);
        }
    });
    Fixture { dir, vault, heads }
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn path() -> ResourcePath {
    "a/b/c".parse().unwrap()
}

async fn get(answer: Vec<u8>) -> Result<Option<Vec<u8>>, VaultError> {
    let fixture = answering(vec![answer], |_, _| ());
    Ok(fixture.vault.get(&path()).await?.map(|secret| secret.to_vec()))
}

#[tokio::test]
async fn answers_are_bounded_and_only_the_engines_404_is_a_missing_resource() {
    let value = |data: &str| format!(r#"{{"data":{{"data":{data},"metadata":{{}}}}}}"#);
    assert_eq!(get(answer("200 OK", &value(r#"{"data":"eA=="}"#))).await.unwrap().unwrap(), b"x");
    assert_eq!(get(answer("404 Not Found", r#"{"errors":[]}"#)).await.unwrap(), None);
    assert_eq!(get(answer("404 Not Found", &value("null"))).await.unwrap(), None);
    assert_eq!(get(answer("200 OK", &value("null"))).await.unwrap(), None);
    for (status, body) in [("404 Not Found", "<html>not here</html>"), ("404 Not Found", r#"{"errors":["no handler"]}"#)] {
        assert!(matches!(get(answer(status, body)).await, Err(VaultError::NoMount(_))), "{body}");
    }
    let large = value(&format!(r#"{{"data":"{}"}}"#, "A".repeat(5 * 1024 * 1024)));
    assert!(matches!(get(answer("200 OK", &large)).await, Err(VaultError::Unavailable("an answer that is too large"))));
    let unbounded = [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec(), large.into_bytes()].concat();
    assert!(matches!(get(unbounded).await, Err(VaultError::Unavailable("an answer that is too large"))));
    for body in ["", "{}", "[]", r#"{"data":null}"#, r#"{"data":{"data":[]}}"#, "CANARY"] {
        let error = get(answer("200 OK", body)).await.unwrap_err();
        assert!(matches!(error, VaultError::Form { .. }) && !error.to_string().contains("CANARY"), "{body}: {error}");
    }
    for status in ["429 Too Many Requests", "472 Standby", "473 Standby", "500 Error", "502 Gateway", "503 Sealed", "504 Timeout"] {
        assert!(matches!(get(answer(status, "{}")).await, Err(VaultError::Unavailable(_))), "{status}");
    }
    for status in ["201 Created", "204 No Content", "302 Found\r\nlocation: http://127.0.0.1:1/", "400 Bad Request", "401 Unauthorized"] {
        assert!(matches!(get(answer(status, "")).await, Err(VaultError::Status { .. })), "{status}");
    }
    assert!(matches!(get(b"nonsense\r\n\r\n".to_vec()).await, Err(VaultError::Unavailable(_))));
}

#[tokio::test]
async fn a_token_that_is_renewed_meanwhile_is_tried_once_more() {
    let denied = || answer("403 Forbidden", r#"{"errors":["permission denied"]}"#);
    let found = answer("200 OK", r#"{"data":{"data":{"data":"eA=="}}}"#);
    let renew = |n, token: &std::path::Path| {
        if n == 0 {
            std::fs::write(token, "second\n").unwrap();
        }
    };
    let fixture = answering(vec![denied(), found], renew);
    assert_eq!(fixture.vault.get(&path()).await.unwrap().unwrap().as_slice(), b"x");
    let heads: Vec<String> = fixture.heads.iter().collect();
    assert!(heads[0].contains("x-vault-token: first\r\n") && heads[1].contains("x-vault-token: second\r\n"), "{heads:?}");
    assert!(heads[0].starts_with("GET /v1/secret/data/a/b/c HTTP/1.1\r\n"), "{heads:?}");
    // The same one is not.
    let fixture = answering(vec![denied()], |_, _| ());
    assert!(matches!(fixture.vault.get(&path()).await, Err(VaultError::Denied { what: "read", .. })));
    assert_eq!(fixture.heads.iter().count(), 1);
    // And a new one that is denied too is the end.
    let fixture = answering(vec![denied(), denied()], renew);
    assert!(matches!(fixture.vault.get(&path()).await, Err(VaultError::Denied { .. })));
}

#[tokio::test]
async fn whoever_asks_whether_the_broker_is_ready_does_not_each_ask_the_vault() {
    for (status, body, is_ready) in [
        ("200 OK", r#"{"data":{"type":"kv","options":{"version":"2"}}}"#, true),
        ("200 OK", r#"{"data":{"type":"kv","options":{"version":"1"}}}"#, false),
        ("200 OK", r#"{"data":{"type":"pki","options":{"version":"2"}}}"#, false),
        ("200 OK", r#"{"data":{"type":"kv","options":null}}"#, false),
        ("503 Sealed", r#"{"errors":["Vault is sealed"]}"#, false),
    ] {
        let fixture = answering(vec![answer(status, body); 50], |_, _| ());
        for _ in 0..50 {
            assert_eq!(fixture.vault.ready().await.is_ok(), is_ready, "{body}");
        }
        assert!(fixture.heads.try_iter().count() < 50);
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_by_name() {
    let fixture = answering(Vec::new(), |_, _| ());
    let token = fixture.dir.path().join("token");
    let good = config("https://127.0.0.1:1", &fixture.dir);
    assert!(Vault::configured(&good).is_ok());
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Vault::configured(&good), Err(VaultSetupError::Token(VaultError::TokenMode(_)))));
    assert!(matches!(fixture.vault.get(&path()).await, Err(VaultError::TokenMode(_))), "nor later");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o640)).unwrap();
    for bad in [String::new(), "\n".into(), "two words".into(), "two\nlines".into(), "x".repeat(9000), "\u{e9}".into()] {
        std::fs::write(&token, &bad).unwrap();
        assert!(matches!(Vault::configured(&good), Err(VaultSetupError::Token(VaultError::TokenForm(_)))), "{bad:.20}");
    }
    std::fs::remove_file(&token).unwrap();
    assert!(matches!(Vault::configured(&good), Err(VaultSetupError::Token(VaultError::TokenFile(..)))));
    std::fs::write(&token, "good").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    let with = |ca: std::path::PathBuf| Vault::configured(&config::Vault { ca: Some(ca), ..good.clone() });
    assert!(matches!(with("/nowhere/ca.pem".into()), Err(VaultSetupError::Read(_))));
    assert!(matches!(with(token), Err(VaultSetupError::Authority(_))));
}

#[test]
fn a_broker_starts_without_its_vault_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    write_new_private(&token, b"CANARY-token").unwrap();
    // A port that was free a moment ago: nobody answers there.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "listen = \"127.0.0.1:0\"\ninsecure_http = true\ndata_dir = {:?}\n[vault]\naddress = \"http://{nobody}\"\ntoken_file = {token:?}\n",
        dir.path().join("data")
    );
    let config = dir.path().join("kbs.toml");
    std::fs::write(&config, text).unwrap();
    let broker = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc-kbs"));
        command.arg("--config").arg(&config).env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    assert!(broker().arg("--check-config").output().unwrap().status.success(), "a check asks nobody");

    let mut process = broker().spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready = line.trim().strip_prefix("http://").map(|address| http::call(address.parse().unwrap(), "GET", "/readyz", &[], &[]));
    process.kill().unwrap();
    let said = String::from_utf8(process.wait_with_output().unwrap().stderr).unwrap();
    let ready = ready.unwrap_or_else(|| panic!("it did not start: {said}"));
    assert!(ready.status == 503 && String::from_utf8_lossy(&ready.body).contains("VaultUnavailable"), "{said}");
    assert!(said.contains("the Vault cannot be used now") && !said.contains("CANARY"), "{said}");

    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = broker().arg("--check-config").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("[vault]") && said.contains("chmod o="), "{said}");
}
