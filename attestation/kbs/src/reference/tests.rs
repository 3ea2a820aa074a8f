//! Which manifests are taken, and which of those count.

use super::*;
use kata_cc_policy::reference::{Entry, Manifest, ValuesEntry};
use kata_cc_policy::{SigningKey, keys::KeyKind};
use serde_json::json;
use std::collections::BTreeMap;

fn manifest(name: &str, kind: Kind, values: Value) -> Manifest {
    let values = serde_json::from_value(values).unwrap();
    let entries = vec![Entry::Values(ValuesEntry { values })];
    Manifest { name: name.into(), release: "1".into(), serial: 1, kind, not_before: 100, expires: 200, entries }
}

fn signed(manifest: &Manifest, key: &SigningKey) -> Vec<u8> {
    SignedManifest::sign(manifest, &[key]).unwrap()
}

fn references(key: &SigningKey) -> References {
    References { signers: Some(TrustedKeys::new([key.public_key()], 0).unwrap()), ..References::default() }
}

fn kept(references: &References, manifest: &Manifest, key: &SigningKey) -> KeptManifest {
    KeptManifest::new(&references.admit(&signed(manifest, key), 150).unwrap(), 150, "me".into())
}

#[test]
fn takes_what_a_configured_key_signed_for_production_and_did_not_expire() {
    let [key, other] = [KeyKind::Ed25519; 2].map(|kind| SigningKey::generate(kind).unwrap());
    let good = manifest("a", Kind::Production, json!({"x": [1]}));
    let references = references(&key);
    assert_eq!(references.admit(&signed(&good, &key), 150).unwrap().manifest(), &good);
    assert!(references.admit(&signed(&good, &key), 50).is_ok(), "it will count");
    assert_eq!(references.admit(&signed(&good, &key), 200), Err(NotAdmitted::Expired(200)));
    assert!(matches!(references.admit(&signed(&good, &other), 150), Err(NotAdmitted::Manifest(_))));
    assert!(matches!(references.admit(b"{}", 150), Err(NotAdmitted::Manifest(_))));
    assert_eq!(References::unsigned().admit(&signed(&good, &key), 150), Err(NotAdmitted::NoSigners));
    for kind in [Kind::Simulation, Kind::Debug] {
        let bad = signed(&manifest("a", kind, json!({"x": [1]})), &key);
        assert_eq!(references.admit(&bad, 150), Err(NotAdmitted::Kind(kind)));
        let development = References { development: vec![Kind::Simulation], ..references.clone() };
        assert_eq!(development.admit(&bad, 150).is_ok(), kind == Kind::Simulation, "what is named and no more");
    }
}

#[test]
fn what_was_taken_counts_only_while_it_would_be_taken() {
    let [key, other] = [KeyKind::P256; 2].map(|kind| SigningKey::generate(kind).unwrap());
    let development = References { development: vec![Kind::Simulation], ..references(&key) };
    let production = kept(&development, &manifest("a", Kind::Production, json!({"x": [1]})), &key);
    let simulation = kept(&development, &manifest("b", Kind::Simulation, json!({"x": [2]})), &key);
    for (rules, now, of_production, of_simulation) in [
        (&development, 100, Standing::InForce, Standing::InForce),
        (&development, 199, Standing::InForce, Standing::InForce),
        (&development, 99, Standing::NotYet, Standing::NotYet),
        (&development, 200, Standing::Expired, Standing::Expired),
        (&references(&key), 150, Standing::InForce, Standing::Kind),
        (&references(&other), 150, Standing::Signer, Standing::Signer),
        (&References::unsigned(), 150, Standing::Signer, Standing::Signer),
    ] {
        assert_eq!((rules.standing(&production, now), rules.standing(&simulation, now)), (of_production, of_simulation), "{rules:?} {now}");
        let all = rules.in_force(ReferenceValues::new(), &[production.clone(), simulation.clone()], now);
        let expected: Vec<i64> =
            [(of_production, 1), (of_simulation, 2)].into_iter().filter(|(s, _)| *s == Standing::InForce).map(|(_, x)| x).collect();
        assert_eq!(all.values.get("x").cloned().unwrap_or(json!([])), json!(expected));
        assert_eq!(all.manifests.len(), expected.len());
    }
}

#[test]
fn values_of_several_places_come_together_each_once() {
    let key = SigningKey::generate(KeyKind::P256).unwrap();
    let rules = References { allow_unsigned: true, ..references(&key) };
    let kept = kept(&rules, &manifest("a", Kind::Production, json!({"list": ["b", "c"], "scalar": [2], "own": [1]})), &key);
    let unsigned = ReferenceValues::from([
        ("list".to_owned(), json!(["a", "b"])),
        ("scalar".to_owned(), json!(1)),
        ("untouched".to_owned(), json!(true)),
    ]);
    let all = rules.in_force(unsigned.clone(), std::slice::from_ref(&kept), 150).values;
    assert_eq!(serde_json::to_value(&all).unwrap(), json!({"list": ["a", "b", "c"], "scalar": [1, 2], "own": [1], "untouched": true}));
    let strict = references(&key).in_force(unsigned, &[kept], 150).values;
    assert_eq!(
        serde_json::to_value(&strict).unwrap(),
        json!({"list": ["b", "c"], "scalar": [2], "own": [1]}),
        "unsigned ones do not count"
    );
    assert_eq!(References::default().in_force(BTreeMap::from([("x".to_owned(), json!([1]))]), &[], 150), InForce::default());
}

#[test]
fn signers_are_public_keys_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::generate(KeyKind::P256).unwrap();
    let (good, bad) = (dir.path().join("good.pub"), dir.path().join("bad.pub"));
    std::fs::write(&good, key.public_key().to_pem()).unwrap();
    std::fs::write(&bad, "no key").unwrap();
    let with = |signers: &[&PathBuf]| {
        let signers = signers.iter().map(|path| (*path).clone()).collect();
        References::configured(&config::References { signers, ..config::References::default() })
    };
    assert!(with(&[]).unwrap().signers.is_none());
    assert!(with(&[&good]).unwrap().admit(&signed(&manifest("a", Kind::Production, json!({"x": [1]})), &key), 150).is_ok());
    assert!(matches!(with(&[&good, &bad]), Err(ReferencesError::Key { .. })));
    assert!(matches!(with(&[&dir.path().join("absent")]), Err(ReferencesError::Read(_))));
    assert!(matches!(with(&[&good, &good]), Err(ReferencesError::Signers(KeyError::Twice(_)))));
}
