//! `kata-cc verify token` by the program itself: what it says and how it ends.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::path::Path;
use std::process::{Command, Output};

use kata_cc_kbs_protocol::ear::{EAT_PROFILE, VerifierId};
use kata_cc_kbs_protocol::{Appraisal, Ear, TokenSigner, TrustVector};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

fn token(signer: &TokenSigner) -> String {
    let vector = TrustVector { executables: 2, ..TrustVector::default() };
    let ear = Ear {
        eat_profile: EAT_PROFILE.into(),
        iat: NOW,
        exp: NOW + 300,
        iss: "a broker".into(),
        verifier_id: VerifierId { developer: "test".into(), build: "test".into() },
        submods: [("cpu0".to_owned(), Appraisal::new(vector, "default", Value::Null))].into(),
    };
    signer.sign(&ear).unwrap()
}

fn verify(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kata-cc"))
        .current_dir(dir)
        .args(["verify", "token", "--token", "token.jwt"])
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn the_exit_code_says_whether_every_check_passed() {
    let dir = tempfile::tempdir().unwrap();
    let (signer, other) = (TokenSigner::generate().unwrap(), TokenSigner::generate().unwrap());
    let put = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    put("token.jwt", token(&signer) + "\n");
    put("jwks.json", json!({"keys": [signer.public_jwk()]}).to_string());
    put("other.json", json!({"keys": [other.public_jwk()]}).to_string());
    let at = |now: &str, keys: &str| verify(dir.path(), &["--jwks", keys, "--now", now, "--affirming"]);

    let good = at("2027-01-15T08:01:00Z", "jwks.json");
    let text = String::from_utf8(good.stdout).unwrap();
    assert_eq!(good.status.code(), Some(0), "{text}");
    assert!(
        text.ends_with("verified\n") && text.contains("pass  expires           2027-01-15T08:05:00Z (expected after 2027-01-15T08:01:00Z)"),
        "{text}"
    );

    for (now, keys, word) in
        [("2027-01-15T08:01:00Z", "other.json", "FAIL  signature"), ("2027-01-15T09:00:00Z", "jwks.json", "FAIL  expires")]
    {
        let bad = at(now, keys);
        let text = String::from_utf8(bad.stdout).unwrap();
        assert_eq!(bad.status.code(), Some(3), "{text}");
        assert!(text.contains(word) && text.contains("not verified") && !text.contains("a broker\""), "{text}");
    }

    let json = verify(dir.path(), &["--jwks", "jwks.json", "--now", "2027-01-15T08:01:00Z", "--json"]);
    let told: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&told["schema"], &told["verified"]), (&json!("kata-cc/verify.token/v1"), &json!(true)));
    assert_eq!(told["checks"].as_array().unwrap().last().unwrap()["status"], "not-compared");
}

#[test]
fn nobody_is_trusted_by_default_and_one_source_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&[][..], &["--roots", "a.pem", "--jwks", "b.json"]] {
        assert_eq!(verify(dir.path(), args).status.code(), Some(2), "{args:?}");
    }
    std::fs::write(dir.path().join("token.jwt"), token(&TokenSigner::generate().unwrap())).unwrap();
    std::fs::write(dir.path().join("empty.pem"), "").unwrap();
    let refused = verify(dir.path(), &["--roots", "empty.pem"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("empty.pem"));
}
