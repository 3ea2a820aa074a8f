//! A made-up TPM: an attestation key, registers and a quote over them, each of which tests may bend.

#![allow(dead_code, reason = "each test program uses its part")]

use kata_cc_evidence::ReportData;
use kata_cc_evidence::tpm::{Attest, PCRS, Pcrs, Quote, RsaSignature};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};

pub(crate) const REPORT_DATA: ReportData = ReportData([0x51; 64]);
pub(crate) const INITDATA_DIGEST: [u8; 32] = [0x52; 32];

pub(crate) struct Tpm {
    /// Key that signs, by its file's name.
    pub(crate) key: &'static str,
    pub(crate) pcrs: Box<Pcrs>,
    /// The registers beside the quote, where they are to be others.
    pub(crate) shown: Option<Box<Pcrs>>,
    /// Bit `i` is PCR `i`.
    pub(crate) mask: u32,
    pub(crate) extra_data: Vec<u8>,
}

pub(crate) fn pair(name: &str) -> RsaKeyPair {
    let path = format!("{}/tests/keys/{name}.pk8", env!("CARGO_MANIFEST_DIR"));
    RsaKeyPair::from_pkcs8(&std::fs::read(path).expect("key file")).expect("a key")
}

/// Modulus and exponent.
pub(crate) fn numbers(name: &str) -> (Vec<u8>, Vec<u8>) {
    let numbers: PublicKeyComponents<Vec<u8>> = pair(name).public().into();
    (numbers.n, numbers.e)
}

pub(crate) fn extend(register: [u8; 32], value: &[u8; 32]) -> [u8; 32] {
    digest(&SHA256, &[register, *value].concat()).as_ref().try_into().expect("32 bytes")
}

impl Tpm {
    pub(crate) fn new() -> Self {
        let mut pcrs: Box<Pcrs> = Box::new(std::array::from_fn(|index| [u8::try_from(index).expect("24"); 32]));
        pcrs[8] = extend([0; 32], &INITDATA_DIGEST);
        Self { key: "root", pcrs, shown: None, mask: 0x00ff_ffff, extra_data: REPORT_DATA.as_bytes().to_vec() }
    }

    pub(crate) fn message(&self) -> Vec<u8> {
        let selected: Vec<u8> = (0..PCRS).filter(|index| self.mask >> index & 1 == 1).flat_map(|index| self.pcrs[index]).collect();
        let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).expect("short").to_be_bytes(), bytes].concat();
        let mut message = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18];
        message.extend(sized(&[[0, 0x0b].as_slice(), &[7; 32]].concat()));
        message.extend(sized(&self.extra_data));
        message.extend(1_000_u64.to_be_bytes());
        message.extend(2_u32.to_be_bytes());
        message.extend(3_u32.to_be_bytes());
        message.push(1);
        message.extend(0x0102_0304_u64.to_be_bytes());
        message.extend([0, 0, 0, 1, 0, 0x0b, 3]);
        message.extend(&self.mask.to_le_bytes()[..3]);
        message.extend(sized(digest(&SHA256, &selected).as_ref()));
        message
    }

    pub(crate) fn quote(&self) -> Quote {
        let (message, key) = (self.message(), pair(self.key));
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &message, &mut signature).expect("signs");
        Quote {
            attest: Attest::parse(&message).expect("a quote"),
            signature: RsaSignature::from_bare(&signature).expect("fits"),
            pcrs: self.shown.clone().unwrap_or_else(|| self.pcrs.clone()),
        }
    }
}
