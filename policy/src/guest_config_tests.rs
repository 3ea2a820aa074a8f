//! The documents in initdata: what the owner writes comes out, and nothing unknown passes.

use super::{AA_TOML, CDH_TOML, ConfigError, Documents, Draft, GuestConfig, KATA_CC_TOML, POLICY_DSSE};
use crate::envelope::{PolicyPayload, SignedPolicy};
use crate::initdata::{Algorithm, Initdata, InitdataBuilder};
use crate::keys::{KeyKind, SigningKey};

// A syntactically right certificate block; this crate does not look inside.
const CERT: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

fn documents(key: &SigningKey) -> Documents {
    Documents {
        broker_url: Some("https://broker.example:8080/".to_owned()),
        broker_cert: Some(CERT.to_owned()),
        image_security_policy_uri: Some("kbs:///default/security-policy/test".to_owned()),
        insecure_registries: vec!["10.0.0.1:5000".to_owned()],
        policy_keys: vec![key.public_key().to_pem()],
        min_version: 2,
        ..Documents::default()
    }
}

fn key() -> SigningKey {
    SigningKey::generate(KeyKind::P256).unwrap()
}

fn signed(key: &SigningKey, draft: &Draft) -> Initdata {
    let (rego, documents) = ("package agent_policy".to_owned(), draft.documents());
    let payload = PolicyPayload { version: 2, rego, data: serde_json::Map::new(), documents };
    draft.complete(std::str::from_utf8(&SignedPolicy::sign(&payload, &[key]).unwrap()).unwrap()).unwrap()
}

fn good() -> Initdata {
    let key = key();
    signed(&key, &documents(&key).draft(Algorithm::Sha256).unwrap())
}

/// The good initdata with one document replaced or taken out.
fn with(name: &str, text: Option<&str>) -> Result<GuestConfig, ConfigError> {
    let base = good();
    let mut builder = InitdataBuilder::new();
    for other in base.names().filter(|other| *other != name) {
        builder = builder.document(other, base.get(other).unwrap());
    }
    if let Some(text) = text {
        builder = builder.document(name, text);
    }
    GuestConfig::from_initdata(&builder.build().unwrap())
}

#[test]
fn what_the_owner_wrote_comes_out() {
    let initdata = good();
    let config = GuestConfig::from_initdata(&initdata).unwrap();
    let broker = config.broker.unwrap();
    assert_eq!((broker.url.as_str(), broker.cert.as_deref()), ("https://broker.example:8080", Some(CERT)));
    assert_eq!(config.image.image_security_policy_uri.unwrap().path(), "default/security-policy/test");
    assert_eq!(config.image.insecure_registries, ["10.0.0.1:5000"]);
    let policy = SignedPolicy::verify(&config.policy.envelope, &config.policy.trusted).unwrap();
    assert_eq!(policy.bind(&initdata).unwrap().policy().version(), 2);
    assert!(config.ignored.is_empty());
}

#[test]
fn a_draft_is_initdata_without_its_policy_and_otherwise_the_same() {
    let whole = good();
    let draft = Draft::of(&whole).unwrap();
    assert!(matches!(GuestConfig::from_initdata(draft.initdata()), Err(ConfigError::Missing { document: POLICY_DSSE, .. })));
    assert_eq!(draft.trusted().min_version(), 2);
    assert_eq!(draft.complete(whole.get(POLICY_DSSE).unwrap()).unwrap(), whole);
    let broken = InitdataBuilder::from(&whole).document(CDH_TOML, "[image]\nno_such_key = 1").build().unwrap();
    assert!(matches!(Draft::of(&broken), Err(ConfigError::Document { document: CDH_TOML, .. })));
}

#[test]
fn rejects_initdata_without_policy_or_keys() {
    assert!(matches!(with(POLICY_DSSE, None), Err(ConfigError::Missing { document: POLICY_DSSE, .. })));
    assert!(matches!(with(KATA_CC_TOML, None), Err(ConfigError::Missing { document: KATA_CC_TOML, .. })));
    assert!(matches!(with(KATA_CC_TOML, Some("[policy]\ntrusted_keys = []")), Err(ConfigError::Key(_))));
    assert!(matches!(with(KATA_CC_TOML, Some("[policy]\ntrusted_keys = ['x']")), Err(ConfigError::Key(_))));
}

#[test]
fn rejects_unknown_documents_and_keys() {
    for name in ["policy.rego", "kata-cc.json", "policy.dsse"] {
        assert!(matches!(with(name, Some("")), Err(ConfigError::Unknown { .. })), "{name}");
    }
    assert!(with("workload.txt", Some("anything")).is_ok());
    for (document, text) in [
        (KATA_CC_TOML, "[policy]\ntrusted_keys = []\nmin_versoin = 3"),
        (KATA_CC_TOML, "debug = true"),
        (AA_TOML, "[token_configs.coco_as]\nurl = 'https://x'"),
        (CDH_TOML, "[image]\nsigstore_config_uri = 'kbs:///a/b/c'"),
        (CDH_TOML, "[[credentials]]\npath = '/x'"),
        (CDH_TOML, "[image]\nmax_concurrent_layer_downloads_per_image = 'x'"),
    ] {
        let error = with(document, Some(text)).unwrap_err();
        assert!(error.to_string().contains(document), "{error}");
        assert!(matches!(error, ConfigError::Document { .. }), "{error:?}");
    }
}

#[test]
fn keys_for_cocos_own_processes_are_skipped_and_listed() {
    let config = with(CDH_TOML, Some("socket = 'unix:///x'\n[log]\nlevel = 'debug'\n[image]\nwork_dir = '/x'\n")).unwrap();
    assert_eq!(config.ignored, ["cdh.toml: log", "cdh.toml: socket", "cdh.toml: image.work_dir"]);
}

#[track_caller]
fn rejects_value(document: &'static str, text: &str, expected_key: &str) {
    match with(document, Some(text)) {
        Err(ConfigError::Value { document: found, key, .. } | ConfigError::Missing { document: found, key, .. }) => {
            assert_eq!((found, key), (document, expected_key));
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn rejects_wrong_brokers() {
    let aa = |rest: &str| format!("[token_configs.kbs]\n{rest}\ncert = '''{CERT}'''");
    for url in ["ftp://x", "https://", "https://user@x", "https://a b", "broker:8080", "https://x?y=1", "http://x"] {
        rejects_value(AA_TOML, &aa(&format!("url = '{url}'")), "token_configs.kbs.url");
    }
    rejects_value(AA_TOML, "[token_configs.kbs]\nurl = 'https://x'", "cert");
    rejects_value(AA_TOML, "[token_configs.kbs]\nurl = 'https://x'\ncert = 'x'", "cert");
    rejects_value(AA_TOML, &aa("url = 'https://x'\ntee_key_algorithm = 'RSA-OAEP-256'"), "token_configs.kbs.tee_key_algorithm");
    rejects_value(CDH_TOML, "[kbc]\nname = 'offline_fs_kbc'\nurl = 'https://broker.example:8080'", "kbc.name");
    rejects_value(CDH_TOML, "[kbc]\nname = 'cc_kbc'\nurl = 'https://other.example'", "kbc.url");
    let same = "[kbc]\nname = 'cc_kbc'\nurl = 'https://broker.example:8080'\nkbs_cert = 'other'";
    rejects_value(CDH_TOML, same, "kbc.kbs_cert");
    assert!(with(CDH_TOML, Some("[kbc]\nname = 'cc_kbc'\nurl = 'https://broker.example:8080'")).is_ok());
}

#[test]
fn plain_http_is_only_taken_when_the_owner_wrote_so() {
    let key = key();
    let http = Documents { broker_url: Some("http://10.0.0.1:8080".to_owned()), broker_cert: None, ..documents(&key) };
    assert!(http.draft(Algorithm::Sha256).is_err());
    let allowed = Documents { insecure_http: true, ..http }.draft(Algorithm::Sha256).unwrap();
    assert!(GuestConfig::from_initdata(&signed(&key, &allowed)).unwrap().broker.unwrap().insecure_http);
}

#[test]
fn rejects_wrong_image_rules() {
    for uri in ["file:///x", "kbs://host/a/b/c", "kbs:///a/b", "kbs:///a/b/c/d", "kbs:///a/../c", "kbs:///a/b/c?d", "kbs:///a//c"] {
        rejects_value(CDH_TOML, &format!("[image]\nimage_security_policy_uri = '{uri}'"), "image.image_security_policy_uri");
    }
    let both = "[image]\nimage_security_policy_uri = 'kbs:///a/b/c'\nimage_security_policy = '{}'";
    rejects_value(CDH_TOML, both, "image.image_security_policy");
    for host in ["", "http://x", "x/y", "a b"] {
        rejects_value(CDH_TOML, &format!("[image]\ninsecure_registries = ['{host}']"), "image.insecure_registries");
    }
    rejects_value(CDH_TOML, "[image]\nextra_root_certificates = ['x']", "image.extra_root_certificates");
    let zero = "[image]\nmax_concurrent_layer_downloads_per_image = 0";
    rejects_value(CDH_TOML, zero, "image.max_concurrent_layer_downloads_per_image");
}
