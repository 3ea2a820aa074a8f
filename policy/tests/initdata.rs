//! What holds for all initdata: documents come back as they were given, by both carriers, and no changed byte has the same digest.

use kata_cc_policy::Initdata;
use kata_cc_policy::initdata::{Algorithm, InitdataBuilder};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop_oneof![Just(Algorithm::Sha256), Just(Algorithm::Sha384), Just(Algorithm::Sha512)]
}

fn initdata() -> impl Strategy<Value = (Algorithm, std::collections::BTreeMap<String, String>)> {
    // Whatever an editor may leave in a document, and what TOML has signs for.
    let text = prop_oneof![".{0,60}", "[ -~\\n\\r\\t'\"\\\\]{0,60}", "(\"\"\"|'''|\\r\\n|\\n|\\\\|#|\\[|=| ){0,12}"];
    (algorithm(), btree_map("[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}", text, 0..6))
}

fn build(algorithm: Algorithm, documents: &std::collections::BTreeMap<String, String>) -> Initdata {
    let builder = InitdataBuilder::new().algorithm(algorithm);
    documents.iter().fold(builder, |builder, (name, text)| builder.document(name, text)).build().expect("names are plain")
}

proptest! {
    #[test]
    fn documents_come_back_by_both_carriers((algorithm, documents) in initdata()) {
        let built = build(algorithm, &documents);
        for read in [
            Initdata::parse(built.raw()),
            Initdata::from_annotation(&built.to_annotation()),
            Initdata::from_disk_image(&built.to_disk_image()),
        ] {
            let read = read.expect("ours");
            let found: Vec<(&str, &str)> = read.documents().collect();
            let given: Vec<(&str, &str)> = documents.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
            prop_assert_eq!(found, given);
            prop_assert_eq!((read.raw(), read.algorithm()), (built.raw(), algorithm));
            prop_assert_eq!((read.digest() == built.digest(), read.host_data()), (true, built.host_data()));
        }
    }

    #[test]
    fn changed_initdata_are_refused_or_have_another_digest(
        (algorithm, documents) in initdata(),
        changes in vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let built = build(algorithm, &documents);
        let change = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            for (at, to) in &changes {
                let at = at % bytes.len();
                bytes[at] = *to;
            }
            bytes
        };
        let text = change(built.raw());
        if let Ok(read) = Initdata::parse(&text) {
            prop_assert_eq!(text == built.raw(), read.host_data() == built.host_data());
        }
        // Of a carrier, what does not matter may change: what is carried may not.
        if let Ok(read) = Initdata::from_disk_image(&change(&built.to_disk_image())) {
            prop_assert_eq!(read.raw(), built.raw());
        }
        let annotation = change(built.to_annotation().as_bytes());
        if let Ok(read) = String::from_utf8(annotation).map_err(drop).and_then(|value| Initdata::from_annotation(&value).map_err(drop)) {
            prop_assert_eq!(read.raw(), built.raw());
        }
    }
}

#[test]
fn cocos_initdata_with_a_generated_policy_are_taken() {
    let beside = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let dir = std::env::var_os("KATA_CC_VECTORS").map_or(beside, std::path::PathBuf::from);
    let path = dir.join("confidential-containers/trustee/integration-tests/tests/init-data-with-policy.toml");
    let Ok(text) = std::fs::read(&path) else {
        eprintln!("SKIPPED: no initdata at {}; set KATA_CC_VECTORS", path.display());
        return;
    };
    let initdata = Initdata::parse(&text).expect("version 0.1.0, sha256");
    assert_eq!((initdata.algorithm(), initdata.raw()), (Algorithm::Sha256, text.as_slice()));
    assert!(initdata.get("policy.rego").is_some_and(|policy| policy.contains("package agent_policy")));
    assert_eq!(Initdata::from_annotation(&initdata.to_annotation()).expect("ours").raw(), text);
}
