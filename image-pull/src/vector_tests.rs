//! Files of other projects that this crate must read, or must refuse, found by `KATA_CC_VECTORS` or beside the workspace. Skips loudly when they are absent.

use std::path::PathBuf;

use crate::cosign::{PublicKey, SignatureError};
use crate::ocicrypt::{KeyPacket, OcicryptError};

fn guest_components(file: &str) -> Option<Vec<u8>> {
    let root = std::env::var_os("KATA_CC_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"), PathBuf::from);
    let path = root.join("confidential-containers/guest-components").join(file);
    let bytes = std::fs::read(&path).ok();
    if bytes.is_none() {
        eprintln!("SKIPPED: {} is absent", path.display());
    }
    bytes
}

#[test]
fn reads_the_key_provider_packet_of_ocicrypt_rs() {
    let Some(packet) = guest_components("ocicrypt-rs/data/sample_kbc_annotation.json") else { return };
    assert_eq!(KeyPacket::parse(&packet).unwrap().kid().to_string(), "kbs:///default/key/1");
}

#[test]
fn refuses_the_packet_whose_key_id_is_a_uri_within_a_uri() {
    let Some(packet) = guest_components("confidential-data-hub/hub/src/image/test/v1.json") else { return };
    assert!(matches!(KeyPacket::parse(&packet), Err(OcicryptError::KeyId(_))));
}

#[test]
fn reads_cosign_public_keys_and_refuses_rsa() {
    for key in ["cosign1.pub", "cosign2.pub", "cosign3.pub", "nv.pub"] {
        let Some(pem) = guest_components(&format!("image-rs/test_data/signature/cosign/{key}")) else { return };
        PublicKey::from_pem(&pem).unwrap();
    }
    let Some(pem) = guest_components("ocicrypt-rs/data/public_key.pem") else { return };
    assert!(matches!(PublicKey::from_pem(&pem), Err(SignatureError::Key(_))));
}
