//! Which manifests are taken, and which of those count.

use super::*;
use kata_cc_policy::reference::{Entry, Manifest, ValuesEntry};
use kata_cc_policy::{SigningKey, keys::KeyKind};
use serde_json::json;

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
        let registered = Registered { manifests: vec![production.clone(), simulation.clone()], ..Registered::default() };
        let all = rules.in_force(&registered, now);
        let expected: Vec<i64> =
            [(of_production, 1), (of_simulation, 2)].into_iter().filter(|(s, _)| *s == Standing::InForce).map(|(_, x)| x).collect();
        assert_eq!(all.values.values().get("x").cloned().unwrap_or(json!([])), json!(expected));
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
    let registered = Registered { unsigned, manifests: vec![kept] };
    let all = rules.in_force(&registered, 150).values;
    assert_eq!(
        serde_json::to_value(all.values()).unwrap(),
        json!({"list": ["a", "b", "c"], "scalar": [1, 2], "own": [1], "untouched": true})
    );
    let strict = references(&key).in_force(&registered, 150).values;
    assert_eq!(
        serde_json::to_value(strict.values()).unwrap(),
        json!({"list": ["b", "c"], "scalar": [2], "own": [1]}),
        "unsigned ones do not count"
    );
    let nothing = References::default().in_force(&registered, 150);
    assert!(nothing.values.values().is_empty() && nothing.manifests.is_empty());
}

#[test]
fn what_counts_is_remembered_until_something_was_registered_or_a_manifest_begins_or_ends_to_count() {
    let key = SigningKey::generate(KeyKind::P256).unwrap();
    let rules = references(&key);
    let with = |value: i64| {
        let kept = kept(&rules, &manifest("a", Kind::Production, json!({"x": [value]})), &key);
        Arc::new(Registered { manifests: vec![kept], ..Registered::default() })
    };
    let (registered, remembered) = (with(1), Remembered::default());
    let at = |registered, now| remembered.in_force(&rules, registered, now);
    let x = |in_force: &InForce| in_force.values.values().get("x").cloned();
    let first = at(&registered, 100);
    assert!(Arc::ptr_eq(&first, &at(&registered, 199)));
    assert_eq!((x(&first), x(&at(&registered, 200)), x(&at(&registered, 99))), (Some(json!([1])), None, None));
    assert_eq!(x(&at(&registered, 100)), Some(json!([1])), "a clock that was set back");
    assert_eq!((x(&at(&with(2), 150)), x(&at(&registered, 150))), (Some(json!([2])), Some(json!([1]))));
    assert_eq!((unchanged(&registered, 50), unchanged(&registered, 150), unchanged(&registered, 200)), (0..100, 100..200, 200..u64::MAX));
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
