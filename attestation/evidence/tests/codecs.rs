//! What holds for every message of Secure Execution, TPMs, Azure, Hygon and Arm: what is written is read as it was meant, and what is read of
//! bytes that somebody changed is either refused or holds exactly those bytes.

use kata_cc_evidence::azure::{HardwareReport, HclReport};
use kata_cc_evidence::cca;
use kata_cc_evidence::csv::{self, CaCertificate, Certificate, Version};
use kata_cc_evidence::se::{Additional, AuthenticatedHead, Challenge, Evidence, Flags, ImageTags, KeySlot, Request};
use kata_cc_evidence::tpm::{Attest, RsaSignature};
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(length: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), length)
}

fn array<const N: usize>() -> impl Strategy<Value = [u8; N]> {
    bytes(N).prop_map(|bytes| bytes.try_into().expect("as many"))
}

fn changed(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, to) in changes {
        let length = bytes.len();
        if let Some(byte) = bytes.get_mut(at % length.max(1)) {
            *byte = *to;
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    vec((any::<usize>(), any::<u8>()), 0..8)
}

fn tags() -> impl Strategy<Value = ImageTags> {
    (array(), array(), array(), array()).prop_map(|(pld, ald, tld, tag)| ImageTags { pld, ald, tld, tag })
}

fn request() -> impl Strategy<Value = Request> {
    let slot = (array(), array(), array()).prop_map(|(phkh, wrapped_key, tag)| KeySlot { phkh, wrapped_key, tag });
    let flags = (any::<bool>(), any::<bool>()).prop_map(|(image, attestation)| {
        Flags(Flags::NONCE.0 | if image { Flags::IMAGE_PHKH.0 } else { 0 } | if attestation { Flags::ATTESTATION_PHKH.0 } else { 0 })
    });
    let head = (array(), flags, array(), vec(slot, 1..6));
    (head, array(), array()).prop_map(|((iv, flags, public_key, slots), encrypted, tag)| Request {
        head: AuthenticatedHead { iv, flags, public_key, slots },
        encrypted,
        tag,
    })
}

fn se_evidence() -> impl Strategy<Value = Evidence> {
    let phkh = (array(), array()).prop_map(|(image_phkh, attestation_phkh)| Additional { image_phkh, attestation_phkh });
    (array(), phkh, bytes(0..=256), array(), bytes(0..64), bytes(0..64), tags()).prop_map(
        |(measurement, additional, user_data, cuid, sealed_key, sealed_nonce, image_tags)| Evidence {
            measurement,
            additional,
            user_data,
            cuid,
            sealed_key,
            sealed_nonce,
            image_tags,
        },
    )
}

/// What a quote says, in the order of TPMS_ATTEST (TPM 2.0 library specification, part 2, section 10.12.8).
#[derive(Clone, Debug)]
struct Quoted {
    signer: Vec<u8>,
    extra_data: Vec<u8>,
    clock: (u64, u32, u32, bool),
    firmware: u64,
    pcrs: u32,
    digest: [u8; 32],
}

fn quoted() -> impl Strategy<Value = Quoted> {
    let clock = (any::<u64>(), any::<u32>(), any::<u32>(), any::<bool>());
    (bytes(0..=66), bytes(0..=66), clock, any::<u64>(), 1_u32..1 << 24, array())
        .prop_map(|(signer, extra_data, clock, firmware, pcrs, digest)| Quoted { signer, extra_data, clock, firmware, pcrs, digest })
}

fn sized(field: &[u8]) -> Vec<u8> {
    [&u16::try_from(field.len()).expect("short").to_be_bytes()[..], field].concat()
}

impl Quoted {
    fn write(&self) -> Vec<u8> {
        let (clock, resets, restarts, safe) = self.clock;
        [
            &0xff54_4347_u32.to_be_bytes()[..],
            &0x8018_u16.to_be_bytes(),
            &sized(&self.signer),
            &sized(&self.extra_data),
            &clock.to_be_bytes(),
            &resets.to_be_bytes(),
            &restarts.to_be_bytes(),
            &[safe.into()],
            &self.firmware.to_be_bytes(),
            &1_u32.to_be_bytes(),
            &0x000b_u16.to_be_bytes(),
            &[3],
            &self.pcrs.to_le_bytes()[..3],
            &sized(&self.digest),
        ]
        .concat()
    }
}

/// A report of Azure's, with padding behind it.
fn hcl(kind: u32, report: &[u8; 1184], runtime: &[u8], padding: usize) -> Vec<u8> {
    let length = u32::try_from(runtime.len()).expect("short");
    let words = [length + 20, 1, kind, 1, length].map(u32::to_le_bytes).concat();
    [b"HCLA\x02\0\0\0", &[0; 24][..], report, &words, runtime, &vec![0; padding]].concat()
}

/// A number of SM2 in the field it has in Hygon's formats: little-endian, with zeros behind it.
fn field(number: [u8; 32]) -> Vec<u8> {
    let mut field: Vec<u8> = number.into_iter().rev().collect();
    field.resize(72, 0);
    field
}

/// The authority's certificate: 832 bytes.
fn authority(usage: u32, point: ([u8; 32], [u8; 32]), name: &str, signature: ([u8; 32], [u8; 32])) -> Vec<u8> {
    let mut user = sized_le(name);
    user.resize(256, 0);
    [
        &1_u32.to_le_bytes()[..],
        &[0x11; 16],
        &[0x22; 16],
        &usage.to_le_bytes(),
        &[0; 24],
        &3_u32.to_le_bytes(),
        &field(point.0),
        &field(point.1),
        &user,
        &[0; 108],
        &field(signature.0),
        &field(signature.1),
        &[0; 112],
    ]
    .concat()
}

fn sized_le(name: &str) -> Vec<u8> {
    [&u16::try_from(name.len()).expect("short").to_le_bytes()[..], name.as_bytes()].concat()
}

proptest! {
    #[test]
    fn requests_of_secure_execution_come_back(request in request(), changes in changes()) {
        let written = request.to_bytes().expect("slots and a nonce");
        prop_assert_eq!(Request::parse(&written).expect("ours"), request);
        let other = changed(written, &changes);
        if let Ok(parsed) = Request::parse(&other) {
            prop_assert_eq!(parsed.to_bytes(), Ok(other));
        }
    }

    #[test]
    fn evidence_and_challenges_of_secure_execution_come_back(evidence in se_evidence(), tags in tags(), mut request in request()) {
        prop_assert_eq!(ImageTags::parse(&tags.to_bytes()).expect("ours"), tags);
        prop_assert_eq!(&Additional::parse(&evidence.additional.to_bytes()).expect("ours"), &evidence.additional);
        let json = serde_json::to_string(&evidence).expect("serialises");
        prop_assert_eq!(&serde_json::from_str::<Evidence>(&json).expect("ours"), &evidence);
        request.head.flags = Flags::REQUESTED;
        let Evidence { sealed_key, sealed_nonce, image_tags, .. } = evidence;
        let challenge = Challenge { request, sealed_key, sealed_nonce, image_tags };
        let json = serde_json::to_string(&challenge).expect("serialises");
        prop_assert_eq!(serde_json::from_str::<Challenge>(&json).expect("ours"), challenge);
    }

    #[test]
    fn quotes_of_tpms_are_read_as_they_were_meant(quoted in quoted(), changes in changes(), cut in any::<usize>()) {
        let written = quoted.write();
        let attest = Attest::parse(&written).expect("a quote");
        let clock = attest.clock();
        prop_assert_eq!((clock.clock, clock.reset_count, clock.restart_count, clock.safe), quoted.clock);
        prop_assert_eq!((attest.as_bytes(), attest.extra_data()), (&written[..], &quoted.extra_data[..]));
        prop_assert_eq!((attest.firmware_version(), attest.pcr_digest()), (quoted.firmware, &quoted.digest));
        let selected = (0..32).filter(|pcr| attest.selection().contains(*pcr)).fold(0_u32, |mask, pcr| mask | 1 << pcr);
        prop_assert_eq!(selected, quoted.pcrs);
        prop_assert!(Attest::parse(&written[..cut % written.len()]).is_err());
        let other = changed(written, &changes);
        if let Ok(attest) = Attest::parse(&other) {
            prop_assert_eq!(attest.as_bytes(), &other[..]);
        }
    }

    #[test]
    fn signatures_of_tpms_come_back(signature in bytes(0..=512), changes in changes()) {
        let made = RsaSignature::from_bare(&signature).expect("short");
        let written = made.to_bytes();
        let parsed = RsaSignature::parse(&written).expect("ours");
        prop_assert_eq!(parsed.as_bytes(), &signature[..]);
        let other = changed(written, &changes);
        if let Ok(parsed) = RsaSignature::parse(&other) {
            prop_assert_eq!(parsed.to_bytes(), other);
        }
    }

    #[test]
    fn reports_of_azure_are_read_as_they_were_meant(
        snp in any::<bool>(),
        report in array::<1184>(),
        runtime in bytes(0..200),
        padding in 0_usize..100,
        changes in changes(),
    ) {
        let written = hcl(if snp { 2 } else { 4 }, &report, &runtime, padding);
        let parsed = HclReport::parse(&written).expect("a report");
        let expected = if snp { HardwareReport::Snp } else { HardwareReport::Tdx };
        prop_assert_eq!((parsed.kind() == expected, parsed.runtime_data()), (true, &runtime[..]));
        prop_assert!(report.starts_with(parsed.hardware_report()));
        let other = changed(written, &changes);
        if let Ok(parsed) = HclReport::parse(&other) {
            // What is hashed is what is read, and none of it is outside of what came.
            prop_assert_eq!(parsed.as_bytes(), &other[..]);
            prop_assert_eq!(&other[1236..][..parsed.runtime_data().len()], parsed.runtime_data());
        }
    }

    #[test]
    fn authorities_of_hygon_are_read_as_they_were_meant(
        usage in any::<u32>(),
        point in (array(), array()),
        name in "[a-zA-Z0-9-]{0,254}",
        signature in (array(), array()),
        changes in changes(),
    ) {
        let written = authority(usage, point, &name, signature);
        let parsed = CaCertificate::parse(&written).expect("a certificate");
        prop_assert_eq!((parsed.usage.0, &parsed.key.user_id), (usage, &name));
        prop_assert_eq!(&parsed.key.point[1..], [point.0, point.1].concat());
        prop_assert_eq!(&parsed.signature.0[..], [signature.0, signature.1].concat());
        let other = changed(written, &changes);
        if let Ok(parsed) = CaCertificate::parse(&other) {
            prop_assert_eq!((parsed.as_bytes(), parsed.signed_bytes()), (&other[..], &other[..576]));
        }
    }

    #[test]
    fn certificates_of_hygons_chips_hold_the_bytes_they_came_in(start in bytes(0..64), changes in changes()) {
        // Version 1, a usage, SM2 on its curve: what is behind is whatever it is.
        let head = [1_u32, 0, 0x1004, 4, 3].map(u32::to_le_bytes).concat();
        let mut written = [&head[..], &start].concat();
        written.resize(Certificate::LEN, 0);
        let other = changed(written, &changes);
        if let Ok(parsed) = Certificate::parse(&other) {
            prop_assert_eq!((parsed.as_bytes(), parsed.signed_bytes()), (&other[..], &other[..1044]));
        }
    }

    #[test]
    fn reports_of_hygon_shift_by_their_nonce_and_in_no_other_way(
        start in bytes(0xbc),
        nonce in array::<4>(),
        signature in (array(), array()),
    ) {
        let write = |nonce: [u8; 4]| {
            let start: Vec<u8> = start.iter().zip(nonce.iter().cycle()).map(|(byte, nonce)| byte ^ nonce).collect();
            let mut report = [&start[..], &nonce, &field(signature.0), &field(signature.1)].concat();
            report.resize(csv::Report::LEN, 0);
            report
        };
        let [shifted, plain] = [nonce, [0; 4]].map(|nonce| csv::Report::parse(&write(nonce), Version::V1).expect("a report"));
        prop_assert_eq!((shifted.anonce, shifted.signature), (Some(u32::from_le_bytes(nonce)), plain.signature));
        prop_assert_eq!((shifted.measure, shifted.report_data, shifted.policy), (plain.measure, plain.report_data, plain.policy));
        prop_assert_eq!(&plain.measure[..], &start[144..176]);
    }

    #[test]
    fn tokens_of_arm_come_back_and_are_bounded(token in bytes(0..300), length in 0..2 * cca::Evidence::MAX) {
        let evidence = cca::Evidence::new(token.clone()).expect("short");
        prop_assert_eq!(evidence.token(), &token[..]);
        let json = serde_json::to_string(&evidence).expect("serialises");
        prop_assert_eq!(serde_json::from_str::<cca::Evidence>(&json).expect("ours"), evidence);
        prop_assert_eq!(cca::Evidence::new(vec![0; length]).is_ok(), length <= cca::Evidence::MAX);
    }
}
