//! Quotes of TPMs and HCL reports of Azure: on the vectors of trustee, and on changed bytes.

mod vectors;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_evidence::FormError;
use kata_cc_evidence::azure::{HardwareReport, HclReport, SnpEvidence, TdxEvidence};
use kata_cc_evidence::tpm::{Attest, Evidence, PCRS, Quote, RsaSignature};
use serde_json::{Value, json};
use vectors::{read, vectors};

const TRUSTEE: &str = "confidential-containers/trustee/deps/verifier/test_data";

/// A quote over PCRs 0 and 8.
fn message() -> Vec<u8> {
    let mut message = vec![0xff, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 2, 0xaa, 0xbb, 0, 3, 1, 2, 3];
    message.extend([0; 7]);
    message.extend([9, 0, 0, 0, 2, 0, 0, 0, 3, 1]);
    message.extend([0, 0, 0, 0, 0, 0, 0, 7]);
    message.extend([0, 0, 0, 1, 0, 0x0b, 3, 1, 1, 0, 0, 0x20]);
    message.extend([0x44; 32]);
    message
}

const SELECTION: usize = 40;

fn hcl() -> Vec<u8> {
    let mut bytes = [b"HCLA".as_slice(), &[1, 0, 0, 0], &[0; 24], &[0x33; 1184]].concat();
    for field in [20_u32 + 9, 1, 2, 1, 9] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(b"{\"keys\":}");
    bytes.extend([0; 10]);
    bytes
}

#[test]
fn a_quote_reads_and_no_prefix_of_it_does() {
    let bytes = message();
    let attest = Attest::parse(&bytes).expect("a quote");
    assert_eq!((attest.as_bytes(), attest.extra_data(), attest.firmware_version()), (bytes.as_slice(), [1, 2, 3].as_slice(), 7));
    let clock = attest.clock();
    assert_eq!((clock.clock, clock.reset_count, clock.restart_count, clock.safe), (9, 2, 3, true));
    let selected: Vec<usize> = (0..40).filter(|index| attest.selection().contains(*index)).collect();
    assert_eq!((selected.as_slice(), attest.pcr_digest()), ([0, 8].as_slice(), &[0x44; 32]));
    for len in 0..bytes.len() {
        assert!(matches!(Attest::parse(&bytes[..len]), Err(FormError::Truncated { .. })), "{len} bytes");
    }
    assert!(matches!(Attest::parse(&[bytes.as_slice(), &[0]].concat()), Err(FormError::Excess { found: 1, .. })));
    assert!(matches!(Attest::parse(&[0; 513]), Err(FormError::TooLarge { .. })));
}

#[test]
fn what_is_no_quote_over_one_bank_of_sha_256_is_refused() {
    let refused = |at: usize, byte: u8| {
        let mut bytes = message();
        bytes[at] = byte;
        match Attest::parse(&bytes) {
            Err(FormError::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(0, 0), "magic of the TPM quote");
    // TPM_ST_ATTEST_CERTIFY: a statement about a key.
    assert_eq!(refused(5, 0x17), "type of the TPM quote");
    assert_eq!(refused(SELECTION - 9, 2), "safe of the TPM's clock");
    assert_eq!(refused(SELECTION + 3, 2), "number of PCR banks");
    assert_eq!(refused(SELECTION + 3, 0), "number of PCR banks");
    assert_eq!(refused(SELECTION + 5, 0x0c), "hash of the PCR bank");
    assert_eq!(refused(SELECTION + 6, 5), "size of the PCR selection");
    assert_eq!(refused(SELECTION + 11, 0x30), "size of the PCR digest");
    // No register, or one that is not there.
    let with_selection = |selection: &[u8]| {
        let (mut bytes, rest) = (message()[..SELECTION + 6].to_vec(), message()[SELECTION + 10..].to_vec());
        bytes.push(selection.len() as u8);
        bytes.extend([selection, rest.as_slice()].concat());
        Attest::parse(&bytes).map(|_| ())
    };
    assert_eq!(with_selection(&[1, 1, 0]), Ok(()));
    assert_eq!(with_selection(&[1]), Ok(()));
    for selection in [[].as_slice(), &[0, 0, 0], &[0, 0, 0, 1], &[1, 0, 0, 0x80]] {
        assert!(matches!(with_selection(selection), Err(FormError::Field { field: "PCR selection", .. })), "{selection:?}");
    }
    // Name and extra data that are longer than any hash with its algorithm.
    for at in [6, 10] {
        let mut bytes = message();
        bytes[at + 1] = 67;
        assert!(matches!(Attest::parse(&bytes), Err(FormError::TooLarge { found: 67, limit: 66, .. })));
    }
}

#[test]
fn signatures_read_back_and_other_schemes_are_refused() {
    let bytes = [[0, 0x14, 0, 0x0b, 1, 0].as_slice(), &[5; 256]].concat();
    let signature = RsaSignature::parse(&bytes).expect("a signature");
    assert_eq!((signature.as_bytes(), signature.to_bytes()), ([5; 256].as_slice(), bytes.clone()));
    assert_eq!(RsaSignature::from_bare(&[5; 256]), Ok(signature));
    let field = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        RsaSignature::parse(&bytes)
    };
    // RSAPSS, SHA-384.
    assert!(matches!(field(1, 0x16), Err(FormError::Field { field: "scheme of the TPM signature", .. })));
    assert!(matches!(field(3, 0x0c), Err(FormError::Field { field: "hash of the TPM signature", .. })));
    assert!(matches!(field(4, 2), Err(FormError::Truncated { .. })));
    assert!(matches!(field(4, 3), Err(FormError::TooLarge { .. })));
    assert!(matches!(field(4, 0), Err(FormError::Excess { .. })));
    assert!(matches!(RsaSignature::from_bare(&[0; 513]), Err(FormError::TooLarge { .. })));
}

#[test]
fn an_hcl_report_reads_and_bent_ones_do_not() {
    let bytes = hcl();
    let report = HclReport::parse(&bytes).expect("an HCL report");
    assert_eq!((report.kind(), report.as_bytes()), (HardwareReport::Snp, bytes.as_slice()));
    assert_eq!((report.hardware_report(), report.runtime_data()), ([0x33; 1184].as_slice(), b"{\"keys\":}".as_slice()));
    for len in 0..bytes.len() - 10 {
        assert!(matches!(HclReport::parse(&bytes[..len]), Err(FormError::Truncated { .. })), "{len} bytes");
    }
    let refused = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        match HclReport::parse(&bytes) {
            Err(FormError::Field { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(0, 0), "magic of the HCL report");
    assert_eq!(refused(4, 3), "version of the HCL report");
    assert_eq!(refused(1216, 28), "size of the runtime data");
    assert_eq!(refused(1216, 0), "size of the runtime data");
    assert_eq!(refused(1220, 2), "version of the runtime data");
    assert_eq!(refused(1224, 3), "type of the hardware report");
    assert_eq!(refused(1228, 2), "hash of the runtime data");
    assert_eq!(refused(1232, 10), "size of the runtime data");
    // Lengths that agree with each other and with nothing else.
    let mut long = bytes.clone();
    long[1216..1220].copy_from_slice(&u32::MAX.to_le_bytes());
    long[1232..1236].copy_from_slice(&(u32::MAX - 20).to_le_bytes());
    assert!(matches!(HclReport::parse(&long), Err(FormError::Truncated { .. })));
    assert!(matches!(HclReport::parse(&vec![0; HclReport::MAX + 1]), Err(FormError::TooLarge { .. })));
}

fn tpm_json() -> Value {
    let signature = [[0, 0x14, 0, 0x0b, 1, 0].as_slice(), &[5; 256]].concat();
    let quote =
        json!({"signature": STANDARD.encode(signature), "message": STANDARD.encode(message()), "pcrs": vec!["07".repeat(32); PCRS]});
    json!({"tpm_quote": quote, "ak_public": STANDARD.encode([1, 2])})
}

fn azure_json() -> Value {
    let quote = json!({"signature": "05".repeat(256), "message": hex::encode(message()), "pcrs": vec!["07".repeat(32); PCRS]});
    json!({"version": 1, "tpm_quote": quote, "hcl_report": hcl(), "vcek": [1, 2]})
}

#[test]
fn json_of_other_forms_is_refused() {
    let tpm = |bend: &dyn Fn(&mut Value)| {
        let mut json = tpm_json();
        bend(&mut json);
        serde_json::from_value::<Evidence>(json).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(tpm(&|_| ()), Ok(()));
    for (bend, says) in [
        ((|json| json["ak_public"] = "*".into()) as fn(&mut Value), "ak_public is not standard base64"),
        (|json| json["ak_public"] = STANDARD.encode([0; 1025]).into(), "ak_public has 1025 bytes"),
        (|json| json["tpm_quote"]["message"] = "AA==".into(), "TPM quote is cut off"),
        (|json| json["tpm_quote"]["pcrs"][3] = "zz".into(), "a value of pcrs is not hexadecimal"),
        (|json| json["tpm_quote"]["pcrs"][3] = "00".repeat(48).into(), "a value of pcrs has 48 bytes"),
        (|json| json["tpm_quote"]["pcrs"] = json!([]), "pcrs has 0 values"),
    ] {
        let refused = tpm(&bend).expect_err(says);
        assert!(refused.contains(says), "{refused}");
    }
    let azure = |bend: &dyn Fn(&mut Value)| {
        let mut json = azure_json();
        bend(&mut json);
        serde_json::from_value::<SnpEvidence>(json).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(azure(&|_| ()), Ok(()));
    assert_eq!(azure(&|json| json["vcek"] = Value::Null), Ok(()));
    for (bend, says) in [
        ((|json| json["version"] = 3.into()) as fn(&mut Value), "version is 3"),
        (|json| json["hcl_report"] = "AA*".into(), "hcl_report is not URL-safe base64"),
        (|json| json["hcl_report"] = vec![0; HclReport::MAX + 1].into(), "hcl_report has 16385 bytes"),
        (|json| json["tpm_quote"]["signature"] = "zz".into(), "signature is not hexadecimal"),
        (|json| json["tpm_quote"]["pcrs"] = json!([]), "pcrs has 0 values"),
        (|json| json["vcek"] = vec![0; 65_537].into(), "vcek has 65537 bytes"),
        (|json| json["report"] = json!([]), "duplicate field"),
    ] {
        let refused = azure(&bend).expect_err(says);
        assert!(refused.contains(says), "{refused}");
    }
}

#[test]
fn real_evidence_of_every_form_reads_and_reads_back() {
    let Some(dir) = vectors() else { return };
    let json = |path: &str| serde_json::from_slice::<Value>(&read(&dir, &format!("{TRUSTEE}/{path}"))).expect("JSON");
    let both = [json("az-snp-vtpm/evidence-v0.json"), json("az-snp-vtpm/evidence-v1.json")];
    for json in &both {
        let evidence: SnpEvidence = serde_json::from_value(json.clone()).expect("reads");
        assert_eq!(evidence.hcl.kind(), HardwareReport::Snp);
        assert_eq!(evidence.quote.attest.extra_data(), b"challenge");
        assert_eq!(evidence.quote.pcr_digest(), *evidence.quote.attest.pcr_digest());
        assert_eq!(evidence.snp().expect("a report").report_bytes().as_slice(), evidence.hcl.hardware_report());
        let written = serde_json::to_value(&evidence).expect("writes");
        assert_eq!(serde_json::from_value::<SnpEvidence>(written).expect("reads back"), evidence);
    }
    // The newer form is written as it came, but for the quote, which is as in the form.
    let evidence: SnpEvidence = serde_json::from_value(both[1].clone()).expect("reads");
    assert_eq!(serde_json::to_value(&evidence).expect("writes")["tpm_quote"], both[1]["tpm_quote"]);

    let evidence: TdxEvidence = serde_json::from_value(json("az-tdx-vtpm/evidence-v0.json")).expect("reads");
    assert_eq!(evidence.hcl.kind(), HardwareReport::Tdx);
    assert_eq!(evidence.td_quote.quote().body.report_data.0[..32], evidence.hcl.runtime_digest());
    let written = serde_json::to_value(&evidence).expect("writes");
    assert_eq!(serde_json::from_value::<TdxEvidence>(written).expect("reads back"), evidence);

    let original = json("tpm_evidence.json");
    let evidence: Evidence = serde_json::from_value(original.clone()).expect("reads");
    assert_eq!((evidence.quote.attest.extra_data().len(), evidence.quote.pcr(24)), (64, None));
    assert_eq!(evidence.quote.pcr_digest(), *evidence.quote.attest.pcr_digest());
    assert_eq!(serde_json::to_value(&evidence).expect("writes"), original);
}

#[test]
fn real_quotes_on_their_own_read_and_are_over_the_registers_beside_them() {
    let Some(dir) = vectors() else { return };
    for file in ["az-snp-vtpm/tpm-quote-v1.json", "az-tdx-vtpm/tpm-quote-v1.json"] {
        let json: Value = serde_json::from_slice(&read(&dir, &format!("{TRUSTEE}/{file}"))).expect("JSON");
        let bytes = |value: &Value| hex::decode(value.as_str().expect("text")).expect("hexadecimal");
        let values = json["pcrs"].as_array().expect("a list").iter().map(|pcr| bytes(pcr).try_into().expect("32 bytes"));
        let pcrs: Box<[[u8; 32]; PCRS]> = values.collect::<Vec<_>>().try_into().expect("24 of them");
        let quote = Quote {
            attest: Attest::parse(&bytes(&json["message"])).expect("a quote"),
            signature: RsaSignature::from_bare(&bytes(&json["signature"])).expect("a signature"),
            pcrs,
        };
        assert_eq!(quote.pcr_digest(), *quote.attest.pcr_digest(), "{file}");
        let mut other = quote.clone();
        other.pcrs[0][0] ^= 1;
        assert_ne!(other.pcr_digest(), *quote.attest.pcr_digest(), "{file}");
    }
    let message = read(&dir, &format!("{TRUSTEE}/az-snp-vtpm/tpm-quote.msg"));
    assert_eq!(Attest::parse(&message).expect("a quote").as_bytes(), message);
    let signature = read(&dir, &format!("{TRUSTEE}/az-snp-vtpm/tpm-quote.sig"));
    assert_eq!(RsaSignature::from_bare(&signature).expect("of 2048 bits").as_bytes().len(), 256);
}
