//! One signature over a policy and the documents that go with it: each way in which they can come apart is refused.

use serde_json::Map;

use super::{BindError, BoundPolicy, Difference, DocumentDigest, DocumentDigests};
use crate::envelope::{PolicyPayload, SignedPolicy};
use crate::guest_config::{AA_TOML, CDH_TOML, KATA_CC_TOML, POLICY_DSSE};
use crate::initdata::{Algorithm, Initdata, InitdataBuilder};
use crate::keys::{KeyKind, SigningKey, TrustedKeys};

const OWN_CDH: &str = "[image]\nauthenticated_registry_credentials_uri = 'kbs:///default/credentials/app'\n";

struct Owner {
    key: SigningKey,
    trusted: TrustedKeys,
}

impl Owner {
    fn new() -> Self {
        let key = SigningKey::generate(KeyKind::Ed25519).unwrap();
        let trusted = TrustedKeys::new([key.public_key()], 1).unwrap();
        Self { key, trusted }
    }

    /// The owner's initdata, with the policy signed for it in its place.
    fn initdata(&self, version: u64) -> Initdata {
        let draft = InitdataBuilder::new()
            .document(AA_TOML, "[token_configs.kbs]\nurl = 'https://broker.example'\n")
            .document(CDH_TOML, OWN_CDH)
            .document(KATA_CC_TOML, "[policy]\ntrusted_keys = ['owner']\nmin_version = 7\n")
            .document("workload.txt", "of the workload");
        let documents = DocumentDigests::of(&draft.clone().build().unwrap());
        let payload = PolicyPayload { version, rego: "package agent_policy".to_owned(), data: Map::new(), documents };
        let envelope = SignedPolicy::sign(&payload, &[&self.key]).unwrap();
        draft.document(POLICY_DSSE, String::from_utf8(envelope).unwrap()).build().unwrap()
    }

    fn accept(&self, initdata: &Initdata) -> Result<BoundPolicy, BindError> {
        SignedPolicy::verify(initdata.get(POLICY_DSSE).unwrap().as_bytes(), &self.trusted).unwrap().bind(initdata)
    }
}

#[test]
fn binds_a_policy_to_the_documents_it_was_signed_with() {
    let owner = Owner::new();
    let initdata = owner.initdata(3);
    let bound = owner.accept(&initdata).unwrap();
    assert_eq!(bound.policy().version(), 3);
    let names: Vec<&str> = bound.policy().documents().iter().map(|(name, _)| name).collect();
    assert_eq!(names, [AA_TOML, CDH_TOML, KATA_CC_TOML, "workload.txt"]);
}

/// The frame is not signed, and need not be: it says nothing that the guest acts on.
#[test]
fn the_frame_may_be_written_otherwise() {
    let owner = Owner::new();
    let other = InitdataBuilder::from(&owner.initdata(1)).algorithm(Algorithm::Sha384).build().unwrap();
    owner.accept(&other).unwrap();
}

/// The attacks: the owner's key and signed policy beside a document of the host's making.
#[test]
fn refuses_each_document_that_was_changed_and_names_it_with_both_digests() {
    let owner = Owner::new();
    let good = owner.initdata(1);
    for (name, text) in [
        (AA_TOML, "[token_configs.kbs]\nurl = 'https://broker.host.example'\n".to_owned()),
        (CDH_TOML, format!("{OWN_CDH}insecure_registries = ['registry.host.example']\n")),
        (KATA_CC_TOML, good.get(KATA_CC_TOML).unwrap().replace("min_version = 7", "min_version = 1")),
        ("workload.txt", "of the host".to_owned()),
        // Not even what means the same.
        (CDH_TOML, format!("{OWN_CDH}\n")),
    ] {
        let changed = InitdataBuilder::from(&good).document(name, text.clone()).build().unwrap();
        let error = owner.accept(&changed).unwrap_err();
        let (expected, found) = (DocumentDigest::of(good.get(name).unwrap()), DocumentDigest::of(&text));
        assert_eq!(error.differences(), [Difference::Changed { document: name.to_owned(), expected, found }]);
        for word in [name.to_owned(), expected.to_string(), found.to_string()] {
            assert!(error.to_string().contains(&word), "{error}");
        }
    }
}

#[test]
fn refuses_a_document_that_was_added() {
    let owner = Owner::new();
    let more = InitdataBuilder::from(&owner.initdata(1)).document("other.txt", "x").build().unwrap();
    let error = owner.accept(&more).unwrap_err();
    let found = DocumentDigest::of("x");
    assert_eq!(error.differences(), [Difference::Added { document: "other.txt".to_owned(), found }]);
    assert!(error.to_string().contains(&format!("`other.txt` was added (expected no such document, found sha256 {found})")), "{error}");
}

#[test]
fn refuses_a_document_that_was_taken_out() {
    let owner = Owner::new();
    for name in [AA_TOML, CDH_TOML, KATA_CC_TOML, "workload.txt"] {
        let good = owner.initdata(1);
        let error = owner.accept(&InitdataBuilder::from(&good).without(name).build().unwrap()).unwrap_err();
        let expected = DocumentDigest::of(good.get(name).unwrap());
        assert_eq!(error.differences(), [Difference::Removed { document: name.to_owned(), expected }]);
        assert!(error.to_string().contains(&format!("`{name}` is missing (expected sha256 {expected}, found none)")), "{error}");
    }
}

/// Another pod's policy by the same key fits no other initdata.
#[test]
fn refuses_the_policy_of_another_pod() {
    let owner = Owner::new();
    let draft = InitdataBuilder::from(&owner.initdata(1)).document(CDH_TOML, "[image]\n").build().unwrap();
    let payload =
        PolicyPayload { version: 1, rego: "package agent_policy".to_owned(), data: Map::new(), documents: DocumentDigests::of(&draft) };
    let theirs = String::from_utf8(SignedPolicy::sign(&payload, &[&owner.key]).unwrap()).unwrap();
    let mixed = InitdataBuilder::from(&owner.initdata(1)).document(POLICY_DSSE, theirs).build().unwrap();
    assert!(matches!(owner.accept(&mixed).unwrap_err().differences(), [Difference::Changed { document, .. }] if document == CDH_TOML));
}

#[test]
fn an_error_names_every_difference_up_to_a_bound() {
    let owner = Owner::new();
    let good = owner.initdata(1);
    let two = InitdataBuilder::from(&good).without(AA_TOML).document(CDH_TOML, "x").build().unwrap();
    let text = owner.accept(&two).unwrap_err().to_string();
    assert!(text.contains("`aa.toml` is missing") && text.contains("`cdh.toml` was changed"), "{text}");
    let many = (0..20).fold(InitdataBuilder::from(&good), |b, i| b.document(format!("n{i:02}"), "")).build().unwrap();
    let text = owner.accept(&many).unwrap_err().to_string();
    assert!(text.contains("`n07`") && !text.contains("`n08`") && text.contains(", and 12 more"), "{text}");
}

#[test]
fn refuses_lists_of_documents_that_are_none() {
    let digest = DocumentDigest::of("");
    let parse = |text: String| serde_json::from_str::<DocumentDigests>(&text);
    parse(format!("{{\"aa.toml\":\"{digest}\"}}")).unwrap();
    for bad in [
        "{}".to_owned(),
        "[]".to_owned(),
        "{\"aa.toml\":\"00\"}".to_owned(),
        "{\"aa.toml\":1}".to_owned(),
        format!("{{\"../x\":\"{digest}\"}}"),
        format!("{{\"{POLICY_DSSE}\":\"{digest}\"}}"),
        format!("{{{}}}", (0..65).map(|i| format!("\"n{i}\":\"{digest}\"")).collect::<Vec<_>>().join(",")),
    ] {
        assert!(parse(bad.clone()).is_err(), "{bad}");
    }
}
