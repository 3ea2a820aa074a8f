//! Sealed secrets as an owner makes them, by the program itself.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use kata_cc_kbs_protocol::SecretBytes;
use kata_cc_kbs_protocol::sealed::{UnverifiedSecret, VerifyingKey};

struct Owner(tempfile::TempDir);

impl Owner {
    fn new() -> Self {
        let owner = Self(tempfile::tempdir().unwrap());
        owner.done(&["secret", "keygen", "sealing.jwk"], "");
        let public = owner.done(&["secret", "public-key", "--key", "sealing.jwk"], "");
        fs::write(owner.0.path().join("sealing.pub"), public).unwrap();
        owner
    }

    fn run(&self, args: &[&str], input: &str) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    }

    #[track_caller]
    fn done(&self, args: &[&str], input: &str) -> String {
        let (code, out, err) = self.run(args, input);
        assert_eq!(code, 0, "{out}{err}");
        out
    }

    fn open(&self, sealed: &str, resource: &[u8]) -> Vec<u8> {
        let key = VerifyingKey::from_jwk(&fs::read(self.0.path().join("sealing.pub")).unwrap()).unwrap();
        let sealed = UnverifiedSecret::parse(sealed.trim_end()).unwrap().verify(&key).unwrap();
        sealed.open(SecretBytes::new(resource.to_vec())).unwrap().expose().to_vec()
    }
}

const KID: [&str; 4] = ["--key", "sealing.jwk", "--kid", "kbs:///default/sealing/1"];

#[test]
fn what_an_owner_seals_the_guest_opens() {
    let owner = Owner::new();
    let vault = [&["secret", "seal", "vault", "--resource", "kbs:///default/db/password"][..], &KID].concat();
    let sealed = owner.done(&vault, "");
    assert_eq!(owner.open(&sealed, b"at the broker"), b"at the broker");
    let said = owner.done(&["secret", "verify", "--public-key", "sealing.pub"], &sealed);
    for word in ["vault", "kbs:///default/db/password", "kbs:///default/sealing/1"] {
        assert!(said.contains(word), "{said}");
    }

    owner.done(&["image", "keygen", "kek"], "");
    let kek = fs::read(owner.0.path().join("kek")).unwrap();
    let envelope = [&["secret", "seal", "envelope", "--resource", "kbs:///default/kek/1", "--key-file", "kek"][..], &KID].concat();
    let sealed = owner.done(&envelope, "p\u{e4}ssword\n");
    assert!(sealed.starts_with("sealed.") && !sealed.contains("ssword"));
    assert_eq!(owner.open(&sealed, &kek), "p\u{e4}ssword\n".as_bytes());
}

#[test]
fn what_is_not_signed_by_the_key_is_told_by_the_exit_code() {
    let (owner, other) = (Owner::new(), Owner::new());
    let sealed = other.done(&[&["secret", "seal", "vault", "--resource", "kbs:///a/b/c"][..], &KID].concat(), "");
    let verify = ["secret", "verify", "--public-key", "sealing.pub"];
    for text in [sealed.as_str(), "sealed.fakejwsheader.e30.fakesignature", ""] {
        let (code, out, _) = owner.run(&verify, text);
        assert_eq!(code, 3, "{out}");
        let (code, out, _) = owner.run(&[&["--json"], &verify[..]].concat(), text);
        assert!(code == 3 && out.contains("\"verified\": false"), "{out}");
    }
}

#[test]
fn refuses_keys_and_names_that_are_none() {
    let owner = Owner::new();
    fs::write(owner.0.path().join("short"), [0; 31]).unwrap();
    for (args, words) in [
        (["vault", "--resource", "kbs:///a/b", "--key", "sealing.jwk", "--kid", "kbs:///a/b/c"].as_slice(), "repository/type/tag"),
        (&["vault", "--resource", "kbs:///a/b/c", "--key", "sealing.jwk", "--kid", "sealing"], "kbs:///"),
        (&["vault", "--resource", "kbs:///a/b/c", "--key", "sealing.pub", "--kid", "kbs:///a/b/c"], "signing key"),
        (
            &["envelope", "--resource", "kbs:///a/b/c", "--key-file", "short", "--key", "sealing.jwk", "--kid", "kbs:///a/b/c"],
            "31 bytes, expected 32",
        ),
    ] {
        let (code, out, err) = owner.run(&[&["secret", "seal"], args].concat(), "");
        assert!(code != 0 && out.is_empty() && err.contains(words), "{words}: {err}");
    }
    // An existing key is never replaced, and a private one is no public one.
    assert_ne!(owner.run(&["secret", "keygen", "sealing.jwk"], "").0, 0);
    assert!(owner.run(&["secret", "verify", "--public-key", "sealing.jwk"], "sealed.").2.contains("private half"));
}
