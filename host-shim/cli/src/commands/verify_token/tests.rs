//! `verify token`: CoCo's scenarios of endorsed keys, and tokens with chains made here, each bent in one place.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kata_cc_kbs_protocol::ear::{EAT_PROFILE, VerifierId};
use kata_cc_kbs_protocol::{Appraisal, Ear, TokenSigner, TrustVector};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::*;

const NOW: u64 = 1_800_000_000;

/// CoCo's files; `None`, loudly, where the vectors are not.
fn vectors() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let dir = std::env::var_os("KATA_CC_VECTORS").map_or(beside, PathBuf::from).join("confidential-containers/trustee");
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("SKIPPED: no vectors at {}; set KATA_CC_VECTORS", dir.display());
    None
}

fn endorsed(jwk: &Value, roots: &[u8], now: u64) -> Result<(), String> {
    endorse(jwk, &Roots::from_pem(roots).unwrap(), now, &mut Checks::default())
}

#[test]
fn cocos_scenarios_of_endorsed_keys_come_out_as_there() {
    let Some(dir) = vectors() else { return };
    let dir = dir.join("kbs/test_data/jwk");
    // 2026-10-01, within the certificates' time; then before and after it.
    let [now, before, after] = [1_790_812_800, 1_700_000_000, 2_200_000_000];
    let bad = [(2, "is of another key"), (3, "no x5c"), (4, "lead to none of the roots")];
    for n in 1..=7 {
        let jwk: Value = serde_json::from_slice(&std::fs::read(dir.join(format!("scenario0{n}-jwk.json"))).unwrap()).unwrap();
        let trust = std::fs::read(dir.join(format!("scenario0{n}-trust.pem"))).unwrap();
        let outcome = endorsed(&jwk, &trust, now);
        match bad.iter().find(|(bad, _)| *bad == n) {
            None => assert_eq!(outcome, Ok(()), "{n}"),
            Some((_, why)) => assert!(outcome.as_ref().is_err_and(|error| error.contains(why)), "{n}: {outcome:?}"),
        }
        assert!(endorsed(&jwk, &trust, before).is_err() && endorsed(&jwk, &trust, after).is_err(), "{n}");
    }
}

#[test]
fn cocos_key_set_and_its_certificate_are_taken() {
    let Some(dir) = vectors() else { return };
    let dir = dir.join("attestation-service/tests/fixtures/jwk");
    let set = std::fs::read(dir.join("expected-jwks.json")).unwrap();
    assert_eq!(key_set(&set).unwrap().len(), 1);
    let jwk = serde_json::from_slice::<Value>(&set).unwrap()["keys"][0].clone();
    let certificate = std::fs::read(dir.join("cert-chain.pem")).unwrap();
    assert_eq!(endorsed(&jwk, &certificate, NOW), Ok(()));
    assert!(endorsed(&jwk, &certificate, 2_100_000_000).is_err(), "named itself, and over");
}

#[test]
fn cocos_decoded_token_has_the_claims_that_are_read() {
    let Some(dir) = vectors() else { return };
    let mut claims: Value =
        serde_json::from_slice(&std::fs::read(dir.join("attestation-service/docs/example.token.json")).unwrap()).unwrap();
    // The page leaves out what a token must have.
    claims["exp"] = (claims["iat"].as_u64().unwrap() + 300).into();
    let ear = Ear::deserialize(&claims).unwrap();
    assert!(ear.submods["cpu0"].status != Status::Affirming);
}

/// Root, two intermediates, and a signer of tokens certified by the second.
struct World {
    root: CertifiedIssuer<'static, KeyPair>,
    first: CertifiedIssuer<'static, KeyPair>,
    second: CertifiedIssuer<'static, KeyPair>,
    key: KeyPair,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2036, 1, 1));
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl World {
    fn new() -> Self {
        Self::with(|_| ())
    }

    /// With other parameters for the first intermediate.
    fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(authority("root"), key()).unwrap();
        let mut between = authority("first");
        change(&mut between);
        let first = CertifiedIssuer::signed_by(between, key(), &root).unwrap();
        let second = CertifiedIssuer::signed_by(authority("second"), key(), &first).unwrap();
        Self { root, first, second, key: key() }
    }

    fn leaf(&self, params: CertificateParams) -> Vec<u8> {
        params.signed_by(&self.key, &self.second).unwrap().der().to_vec()
    }

    /// The key's own certificate and the intermediates, in no order.
    fn chain(&self) -> Vec<Vec<u8>> {
        vec![self.leaf(params("signer")), self.first.der().to_vec(), self.second.der().to_vec()]
    }

    fn signer(&self) -> TokenSigner {
        // Where PKCS #8 has the scalar of a key on P-256.
        let signer = TokenSigner::from_bytes(&self.key.serialize_der()[36..68]).unwrap();
        assert!(signer.public_point().ends_with(&self.key.public_key_raw()[1..]));
        signer
    }

    fn token(&self, chain: &[Vec<u8>]) -> String {
        self.signer().with_certificates(chain).sign(&ear(2)).unwrap()
    }

    fn told(&self, chain: &[Vec<u8>]) -> Told {
        told(&self.token(chain), Trusted::Roots(&self.root.pem()), "2027-01-15T08:00:00Z")
    }
}

fn ear(executables: i8) -> Ear {
    let vector = TrustVector { executables, ..TrustVector::default() };
    Ear {
        eat_profile: EAT_PROFILE.into(),
        iat: NOW,
        exp: NOW + 300,
        iss: "a broker".into(),
        verifier_id: VerifierId { developer: "test".into(), build: "test".into() },
        submods: [("cpu0".to_owned(), Appraisal::new(vector, "default", Value::Null))].into(),
    }
}

enum Trusted<'a> {
    Roots(&'a str),
    Keys(&'a Value),
}

fn told(token: &str, trusted: Trusted<'_>, now: &str) -> Told {
    verify_with(token, trusted, now, false)
}

fn verify_with(token: &str, trusted: Trusted<'_>, now: &str, affirming: bool) -> Told {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (roots, jwks) = match trusted {
        Trusted::Roots(pem) => (Some(put("roots.pem", pem)), None),
        Trusted::Keys(keys) => (None, Some(put("jwks.json", &keys.to_string()))),
    };
    let now = Some(super::super::verify::parse_time(now).unwrap());
    verify(&Args { token: put("token", token), roots, jwks, affirming, now }).unwrap()
}

fn failed(told: &Told) -> Option<&'static str> {
    let all = told.checks.all();
    let failed = all.iter().position(|check| check.outcome == Ended::Fail);
    assert!(failed.is_none_or(|at| at + 1 == all.len()), "checks after the failed one");
    failed.map(|at| all[at].name)
}

#[test]
fn a_token_with_its_chain_in_any_order_passes_every_check() {
    let world = World::new();
    let chain = world.chain();
    for order in [[0, 1, 2], [0, 2, 1]] {
        let told = world.told(&order.map(|at| chain[at].clone()));
        let names: Vec<_> = told.checks.all().iter().map(|check| check.name).collect();
        let expected = [
            "header key",
            "certificates",
            "certificate key",
            "key usage",
            "certificate chain",
            "key",
            "form",
            "signature",
            "expires",
            "issued",
            "status",
        ];
        assert_eq!((names.as_slice(), &told.error), (&expected[..], &None), "{}", told.text());
        let text = told.text();
        assert!(text.contains("CN=signer < CN=second < CN=first < CN=root") && text.contains("verified as genuine"), "{text}");
        assert_eq!(told.json()["claims"]["iss"], "a broker");
    }
    // The root itself in the chain does no harm, and is no reason to trust it.
    let with_root = [chain.clone(), vec![world.root.der().to_vec()]].concat();
    assert!(world.told(&with_root).error.is_none());
    let other = World::new();
    let refused = told(&world.token(&with_root), Trusted::Roots(&other.root.pem()), "2027-01-15T08:00:00Z");
    assert_eq!(failed(&refused), Some("certificate chain"));
    assert!(refused.verified.is_none() && !refused.text().contains("a broker"), "nothing of it is shown: {}", refused.text());
}

#[test]
fn chains_that_do_not_hold_are_refused_by_name_of_the_check() {
    let world = World::new();
    let chain = world.chain();
    let leaf_with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params("signer");
        change(&mut params);
        [vec![world.leaf(params)], chain[1..].to_vec()].concat()
    };
    let stranger = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let cases: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("an intermediate is missing", vec![chain[0].clone(), chain[2].clone()], "certificate chain"),
        ("the key's own is not first", vec![chain[1].clone(), chain[0].clone(), chain[2].clone()], "certificate key"),
        ("of another key", vec![stranger], "certificate key"),
        ("no certificate", vec![], "certificates"),
        ("too many", vec![chain[0].clone(); 9], "certificates"),
        ("not for signing", leaf_with(&|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]), "key usage"),
        ("over", leaf_with(&|p| p.not_after = rcgen::date_time_ymd(2026, 6, 1)), "certificate chain"),
        ("not yet", leaf_with(&|p| p.not_before = rcgen::date_time_ymd(2030, 1, 1)), "certificate chain"),
    ];
    for (what, chain, check) in cases {
        let told = world.told(&chain);
        assert_eq!(failed(&told), Some(check), "{what}: {}", told.text());
        assert!(told.verified.is_none(), "{what}");
    }
    for (what, change) in [
        ("no authority", (|p: &mut CertificateParams| p.is_ca = IsCa::NoCa) as fn(&mut CertificateParams)),
        ("no authority over authorities", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
        ("an authority that may not issue", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]),
        ("an authority that is over", |p| p.not_after = rcgen::date_time_ymd(2026, 6, 1)),
    ] {
        let world = World::with(change);
        let told = world.told(&world.chain());
        assert_eq!(failed(&told), Some("certificate chain"), "{what}: {}", told.text());
    }
    // A root that is over is none, whatever it once was.
    let told = told(&world.token(&chain), Trusted::Roots(&world.root.pem()), "2040-01-01T00:00:00Z");
    assert_eq!(failed(&told), Some("certificate chain"));
    assert!(told.text().contains("one of 0 roots (1 more are not valid now)"), "{}", told.text());
}

#[test]
fn certificates_that_are_none_are_refused() {
    let world = World::new();
    let jwk = serde_json::to_value(world.signer().public_jwk()).unwrap();
    for x5c in [json!("MAA="), json!([1]), json!(["MAA"]), json!(["MAA="]), json!([URL_SAFE_NO_PAD.encode([0xfb; 3])]), json!({})] {
        let mut jwk = jwk.clone();
        jwk["x5c"] = x5c.clone();
        assert!(endorsed(&jwk, world.root.pem().as_bytes(), NOW).is_err(), "{x5c}");
    }
    for roots in ["", "x", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"] {
        assert!(Roots::from_pem(roots.as_bytes()).is_err(), "{roots:?}");
    }
}

#[test]
fn a_certificate_may_be_named_itself() {
    let world = World::new();
    let leaf = params("alone").self_signed(&world.key).unwrap();
    let trusted = |pem: &str, now| told(&world.token(&[leaf.der().to_vec()]), Trusted::Roots(pem), now);
    assert!(trusted(&leaf.pem(), "2027-01-15T08:00:00Z").error.is_none());
    assert_eq!(failed(&trusted(&World::new().root.pem(), "2027-01-15T08:00:00Z")), Some("certificate chain"));
    // Another certificate of the same name and key is not that one.
    let other = params("alone").self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert_eq!(failed(&trusted(&other.pem(), "2027-01-15T08:00:00Z")), Some("certificate chain"));
    assert_eq!(failed(&trusted(&leaf.pem(), "2040-01-15T08:00:00Z")), Some("certificate chain"));
}

#[test]
fn a_token_is_held_against_a_key_set() {
    let (signer, other) = (TokenSigner::generate().unwrap(), TokenSigner::generate().unwrap());
    let token = signer.sign(&ear(2)).unwrap();
    let rsa = json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"});
    let set = json!({"keys": [rsa, other.public_jwk(), signer.public_jwk()]});
    let at = |token: &str, keys: &Value, now: &str| told(token, Trusted::Keys(keys), now);
    assert!(at(&token, &set, "2027-01-15T08:00:00Z").error.is_none());
    assert!(at(&json!({ "token": token }).to_string(), &json!(signer.public_jwk()), "2027-01-15T08:00:00Z").error.is_none());
    assert_eq!(failed(&at(&token, &json!({"keys": [other.public_jwk()]}), "2027-01-15T08:00:00Z")), Some("signature"));
    assert_eq!(failed(&at(&token, &set, "2027-01-15T08:05:00Z")), Some("expires"));
    assert_eq!(failed(&at(&token, &set, "2027-01-15T07:58:00Z")), Some("issued"));
    // One letter of the claims, of the signature, and what is no token at all.
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let changed = String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap().replace("a broker", "b broker");
    let changed = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(changed));
    assert_eq!(failed(&at(&changed, &set, "2027-01-15T08:00:00Z")), Some("signature"));
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    for bad in [format!("{none}.{claims}.{signature}"), "a.b.c".to_owned(), STANDARD.encode(&token)] {
        assert_eq!(failed(&at(&bad, &set, "2027-01-15T08:00:00Z")), Some("form"), "{bad}");
    }
    assert!(
        key_set(br#"{"keys": []}"#).is_err() && key_set(json!({ "keys": [rsa] }).to_string().as_bytes()).is_err() && key_set(b"x").is_err()
    );
}

#[test]
fn a_key_in_the_header_is_no_reason_to_trust_it() {
    // Signed with the key in its header, without certificates.
    let world = World::new();
    let token = world.signer().sign(&ear(2)).unwrap();
    let refused = told(&token, Trusted::Roots(&world.root.pem()), "2027-01-15T08:00:00Z");
    assert_eq!(failed(&refused), Some("certificates"));
    let no_jwk = format!("{}.e30.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#), URL_SAFE_NO_PAD.encode([0; 64]));
    for bad in [no_jwk.as_str(), "a.b.c", ""] {
        assert_eq!(failed(&told(bad, Trusted::Roots(&world.root.pem()), "2027-01-15T08:00:00Z")), Some("header key"), "{bad}");
    }
    // The certificates of the right key in a header of somebody who has not got it.
    let thief = TokenSigner::generate().unwrap();
    let stolen = thief.with_certificates(&world.chain()).sign(&ear(2)).unwrap();
    assert_eq!(failed(&told(&stolen, Trusted::Roots(&world.root.pem()), "2027-01-15T08:00:00Z")), Some("certificate key"));
    let genuine = world.token(&world.chain());
    let (header, _) = genuine.split_once('.').unwrap();
    let (_, rest) = stolen.split_once('.').unwrap();
    assert_eq!(failed(&told(&format!("{header}.{rest}"), Trusted::Roots(&world.root.pem()), "2027-01-15T08:00:00Z")), Some("signature"));
}

#[test]
fn affirmation_is_demanded_where_it_is_asked_for() {
    let signer = TokenSigner::generate().unwrap();
    let keys = json!(signer.public_jwk());
    let at = |executables, affirming| {
        verify_with(&signer.sign(&ear(executables)).unwrap(), Trusted::Keys(&keys), "2027-01-15T08:00:00Z", affirming)
    };
    assert!(at(2, true).error.is_none());
    assert!(at(33, false).error.is_none(), "genuine");
    let refused = at(33, true);
    assert_eq!(failed(&refused), Some("status"));
    assert!(refused.text().contains("cpu0 warning"), "{}", refused.text());
    // What its issuer calls the parts cannot steer a terminal.
    let mut hostile = ear(33);
    let appraisal = hostile.submods.remove("cpu0").unwrap();
    hostile.submods.insert("\u{1b}[2Jcpu0\u{7}".to_owned(), appraisal);
    let told = verify_with(&signer.sign(&hostile).unwrap(), Trusted::Keys(&keys), "2027-01-15T08:00:00Z", true);
    assert!(told.text().contains("cpu0") && !told.text().contains(['\u{1b}', '\u{7}']), "{:?}", told.text());
    let mut nothing = ear(2);
    nothing.submods.clear();
    let token = signer.sign(&nothing).unwrap();
    assert_eq!(failed(&verify_with(&token, Trusted::Keys(&keys), "2027-01-15T08:00:00Z", true)), Some("status"));
}
