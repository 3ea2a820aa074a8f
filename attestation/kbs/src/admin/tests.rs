//! Administrators' tokens: one that is good, and for each check one that differs from it in that alone.

use super::*;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

fn admin() -> (Admins, Ed25519KeyPair) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
    (Admins { keys: vec![VerifyingKey::ed25519(pair.public_key().as_ref().try_into().unwrap())], ..Admins::default() }, pair)
}

fn token(pair: &Ed25519KeyPair, header: &Value, claims: &Value) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes())))
}

fn good_claims() -> Value {
    json!({"role": "admin", "iat": NOW - 10, "exp": NOW + 600})
}

#[track_caller]
fn outcome(header: Value, claims: Value) -> Result<(), NotAdmin> {
    let (admins, pair) = admin();
    admins.authenticate(Some(&token(&pair, &header, &claims)), NOW).map(drop)
}

#[test]
fn accepts_a_fresh_token_of_a_known_key() {
    assert_eq!(outcome(json!({"alg": "EdDSA", "typ": "JWT"}), good_claims()), Ok(()));
}

#[test]
fn refuses_other_algorithms_and_critical_headers() {
    for alg in ["none", "HS256", "ES256", "eddsa"] {
        assert_eq!(outcome(json!({ "alg": alg }), good_claims()), Err(NotAdmin::Signature), "{alg}");
    }
    for header in [json!({"alg": "EdDSA", "crit": ["b64"]}), json!({})] {
        assert_eq!(outcome(header, good_claims()), Err(NotAdmin::Malformed));
    }
}

#[test]
fn refuses_other_roles_and_times() {
    let header = || json!({"alg": "EdDSA"});
    let with = |key: &str, value: Value| {
        let mut claims = good_claims();
        claims[key] = value;
        claims
    };
    assert_eq!(outcome(header(), with("role", json!("user"))), Err(NotAdmin::Role));
    assert_eq!(outcome(header(), with("role", Value::Null)), Err(NotAdmin::Role));
    assert_eq!(outcome(header(), with("iat", Value::Null)), Err(NotAdmin::Malformed));
    assert_eq!(outcome(header(), with("exp", Value::Null)), Err(NotAdmin::Malformed));
    assert_eq!(outcome(header(), with("exp", json!(NOW - 5 * 60 - 100))), Err(NotAdmin::Time));
    assert_eq!(outcome(header(), with("iat", json!(NOW + 120))), Err(NotAdmin::Time));
    assert_eq!(outcome(header(), with("nbf", json!(NOW + 120))), Err(NotAdmin::Time));
    assert_eq!(outcome(header(), with("exp", json!(NOW + 8000))), Err(NotAdmin::TooLong));
}

#[test]
fn refuses_a_token_of_another_key_or_changed_after_signing() {
    let (admins, pair) = admin();
    let other = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
    let header = json!({"alg": "EdDSA"});
    assert_eq!(admins.authenticate(Some(&token(&other, &header, &good_claims())), NOW), Err(NotAdmin::Signature));
    let good = token(&pair, &header, &json!({"role": "user", "iat": NOW, "exp": NOW + 60}));
    let (head, rest) = good.split_once('.').unwrap();
    let (_, signature) = rest.split_once('.').unwrap();
    let forged = format!("{head}.{}.{signature}", URL_SAFE_NO_PAD.encode(good_claims().to_string()));
    assert_eq!(admins.authenticate(Some(&forged), NOW), Err(NotAdmin::Signature));
}

#[test]
fn refuses_missing_and_malformed_credentials() {
    let (admins, _) = admin();
    for (credential, expected) in [
        (None, NotAdmin::Missing),
        (Some(""), NotAdmin::Missing),
        (Some("Bearer "), NotAdmin::Missing),
        (Some("Basic YTpi"), NotAdmin::Missing),
        (Some("Bearer a.b"), NotAdmin::Malformed),
        (Some("Bearer ..."), NotAdmin::Malformed),
    ] {
        assert_eq!(admins.authenticate(credential, NOW), Err(expected), "{credential:?}");
    }
    let long = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
    assert_eq!(admins.authenticate(Some(&long), NOW), Err(NotAdmin::Malformed));
}

#[test]
fn no_key_at_all_means_nobody() {
    let (_, pair) = admin();
    let nobody = Admins::default();
    assert!(nobody.is_empty());
    assert_eq!(nobody.authenticate(Some(&token(&pair, &json!({"alg": "EdDSA"}), &good_claims())), NOW), Err(NotAdmin::Signature));
}

#[test]
fn the_first_start_makes_a_private_key_file_and_later_starts_use_it() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (first, origin) = Admins::set_up(&[], dir.path()).unwrap();
    let private = dir.path().join("admin.key");
    assert_eq!(origin, Origin::Made(private.clone()));
    assert_eq!(std::fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
    let pem = std::fs::read_to_string(&private).unwrap();
    let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&STANDARD.decode(body).unwrap()).unwrap();
    assert_eq!(first.authenticate(Some(&token(&pair, &json!({"alg": "EdDSA"}), &good_claims())), NOW).map(drop), Ok(()));
    std::fs::remove_file(private).unwrap();
    let (second, origin) = Admins::set_up(&[], dir.path()).unwrap();
    assert_eq!((second.keys, origin), (first.keys, Origin::Found));
}

#[test]
fn refuses_a_file_that_is_not_an_ed25519_public_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k.pem");
    std::fs::write(&path, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").unwrap();
    assert!(matches!(Admins::set_up(&[path], dir.path()), Err(AdminError::NotEd25519(_))));
}

const ISSUER: &str = "https://id.example";

/// A provider with a P-384 key, beside an administrator's key.
struct World {
    admins: Admins,
    provider: EcdsaKeyPair,
    admin: Ed25519KeyPair,
    _dir: tempfile::TempDir,
}

fn provider(jwk_set: Option<PathBuf>, public_key: Option<PathBuf>) -> config::IdentityProvider {
    config::IdentityProvider { issuer: ISSUER.into(), audience: "kbs".into(), jwk_set, public_key, algorithm: None }
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let point = &pair.public_key().as_ref()[1..];
    let jwk = json!({"kty": "EC", "crv": "P-384", "kid": "one", "x": URL_SAFE_NO_PAD.encode(&point[..48]), "y": URL_SAFE_NO_PAD.encode(&point[48..])});
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, json!({ "keys": [jwk] }).to_string()).unwrap();
    let role = config::Role {
        role: "team".into(),
        allow: Some(vec!["resource:write".into()]),
        allowed_endpoints: Some("^/kbs/v0/resource/team/.*$".into()),
    };
    let config = config::Admin { identity_providers: vec![provider(Some(path), None)], roles: vec![role], ..config::Admin::default() };
    let (mut admins, origin) = Admins::from_config(&config, dir.path()).unwrap();
    assert_eq!(origin, Origin::Found);
    assert!(!dir.path().join("admin.key").exists(), "with a provider, no key is made");
    let (with_key, admin) = self::admin();
    admins.keys = with_key.keys;
    World { admins, provider: pair, admin, _dir: dir }
}

impl World {
    fn token(&self, header: Value, claims: &Value) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.provider.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("Bearer {signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    #[track_caller]
    fn outcome(&self, claims: &Value) -> Result<Administrator, NotAdmin> {
        self.admins.authenticate(Some(&self.token(json!({"alg": "ES384", "kid": "one"}), claims)), NOW)
    }
}

fn of_provider() -> Value {
    json!({"iss": ISSUER, "sub": "alice", "aud": ["other", "kbs"], "role": "team", "exp": NOW + 3600})
}

#[test]
fn an_identity_providers_token_gives_the_role_it_names() {
    let world = world();
    assert_eq!(world.outcome(&of_provider()).unwrap().described(), "https://id.example alice as team");
    let token = world.token(json!({"alg": "ES384"}), &of_provider());
    let may = |permission, path: &str| world.admins.authorize(Some(&token), permission, path, NOW).map(drop);
    assert_eq!(may(Permission::WriteResource, "/kbs/v0/resource/team/a/b"), Ok(()));
    assert_eq!(may(Permission::WriteResource, "/kbs/v0/resource/x/a/b"), Err(NotAdmin::Forbidden(Permission::WriteResource)));
    assert_eq!(may(Permission::DeleteResource, "/kbs/v0/resource/team/a/b"), Err(NotAdmin::Forbidden(Permission::DeleteResource)));
    assert_eq!(may(Permission::ReadAudit, "/kbs/v0/audit"), Err(NotAdmin::Forbidden(Permission::ReadAudit)));
}

#[test]
fn each_claim_of_an_identity_providers_token_is_looked_at() {
    let world = world();
    let with = |name: &str, value: Value| {
        let mut claims = of_provider();
        claims[name] = value;
        world.outcome(&claims).unwrap_err()
    };
    assert_eq!(with("iss", json!("https://other.example")), NotAdmin::Signature);
    assert_eq!(with("iss", Value::Null), NotAdmin::Signature);
    assert_eq!(with("aud", json!("other")), NotAdmin::Audience);
    assert_eq!(with("aud", json!([])), NotAdmin::Audience);
    assert_eq!(with("aud", Value::Null), NotAdmin::Audience);
    assert_eq!(with("exp", json!(NOW - 61)), NotAdmin::Time);
    assert_eq!(with("exp", json!(NOW + MAX_PROVIDER_TOKEN_SECONDS + 1)), NotAdmin::TooLong);
    assert_eq!(with("nbf", json!(NOW + 61)), NotAdmin::Time);
    assert_eq!(with("iat", json!(NOW + 61)), NotAdmin::Time);
    assert_eq!(with("role", Value::Null), NotAdmin::Role);
    assert_eq!(with("role", json!("root")), NotAdmin::Role);
}

#[test]
fn a_provider_and_a_key_cannot_speak_for_each_other() {
    let world = world();
    // An administrator's key under the provider's name, and the other way round.
    let claims = json!({"iss": ISSUER, "aud": "kbs", "role": "admin", "iat": NOW, "exp": NOW + 60});
    let forged = token(&world.admin, &json!({"alg": "EdDSA"}), &claims);
    assert_eq!(world.admins.authenticate(Some(&forged), NOW), Err(NotAdmin::Signature));
    let claims = json!({"role": "admin", "iat": NOW, "exp": NOW + 60});
    assert_eq!(world.outcome(&claims), Err(NotAdmin::Signature));
    assert!(world.admins.authenticate(Some(&token(&world.admin, &json!({"alg": "EdDSA"}), &claims)), NOW).is_ok());
}

#[test]
fn a_token_with_another_algorithm_or_key_name_is_not_verified() {
    let world = world();
    for header in [json!({"alg": "ES256"}), json!({"alg": "none"}), json!({"alg": "HS384"}), json!({"alg": "ES384", "kid": "two"})] {
        let refused = world.admins.authenticate(Some(&world.token(header.clone(), &of_provider())), NOW);
        assert_eq!(refused, Err(NotAdmin::Signature), "{header}");
    }
}

#[test]
fn who_is_unknown_and_who_may_not_are_told_apart() {
    for unknown in [NotAdmin::Missing, NotAdmin::Malformed, NotAdmin::Signature, NotAdmin::Audience, NotAdmin::Time, NotAdmin::TooLong] {
        assert!(!unknown.is_authenticated(), "{unknown}");
    }
    assert!(NotAdmin::Role.is_authenticated() && NotAdmin::Forbidden(Permission::ReadAudit).is_authenticated());
}

#[test]
fn refuses_providers_that_are_not_described_well() {
    let dir = tempfile::tempdir().unwrap();
    let (admins, _) = Admins::set_up(&[], dir.path()).unwrap();
    assert!(!admins.is_empty());
    let public = dir.path().join("admin.pub");
    let read = |providers: Vec<config::IdentityProvider>| {
        Admins::configured(&config::Admin { identity_providers: providers, ..config::Admin::default() })
    };
    let good = provider(None, Some(public.clone()));
    assert!(read(vec![good.clone()]).is_ok());
    assert!(matches!(read(vec![good.clone(), good.clone()]), Err(AdminError::Provider { why: "configured twice", .. })));
    for bad in [provider(None, None), provider(Some(public.clone()), Some(public.clone()))] {
        assert!(matches!(read(vec![bad]), Err(AdminError::Provider { .. })));
    }
    let nameless = config::IdentityProvider { issuer: String::new(), ..good.clone() };
    assert!(matches!(read(vec![nameless]), Err(AdminError::Provider { .. })));
    let for_anybody = config::IdentityProvider { audience: String::new(), ..good.clone() };
    assert!(matches!(read(vec![for_anybody]), Err(AdminError::Provider { .. })));
    let other = config::IdentityProvider { algorithm: Some(Algorithm::Es256), ..good };
    assert!(matches!(read(vec![other]), Err(AdminError::Key { source: KeyError::Mismatch { .. }, .. })));
    assert!(matches!(read(vec![provider(Some(public), None)]), Err(AdminError::Key { source: KeyError::Set, .. })));
}
