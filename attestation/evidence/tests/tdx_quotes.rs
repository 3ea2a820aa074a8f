//! Real TDX quotes of public test suites, and made-up ones of every form: parsed, written again, cut and bent.

mod vectors;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_evidence::tdx::{
    Body, BodyType, CertificationData, CertificationDataType, EnclaveReport, Evidence, Extension15, Extension15Ex, Header,
    INTEL_QE_VENDOR_ID, QeCertification, Quote, QuoteError, SignatureData, TdAttributes, TdReport, TdReportError,
};
use kata_cc_evidence::{MrConfigId, ReportData, TdMeasurement};
use vectors::{read, vectors};

const TRUSTEE: &str = "confidential-containers/trustee/deps/verifier/test_data";

/// Of a real quote: path, MRTD's start, RTMR0's start, report data's start, MRCONFIGID's start, bytes after it.
struct Real {
    path: String,
    mr_td: &'static str,
    rtmr0: &'static str,
    report_data: &'static str,
    mr_config_id: &'static str,
    trailing: usize,
}

fn real() -> [Real; 4] {
    [
        Real {
            path: format!("{TRUSTEE}/tdx_quote_4.dat"),
            mr_td: "705ee938",
            rtmr0: "e940da7c",
            report_data: "7c71fe2c",
            mr_config_id: "00000000",
            trailing: 0,
        },
        Real { path: format!("{TRUSTEE}/tdx_quote_6.dat"), mr_td: "", rtmr0: "", report_data: "", mr_config_id: "889abf47", trailing: 70 },
        Real {
            path: format!("{TRUSTEE}/az-tdx-vtpm/td-quote.bin"),
            mr_td: "",
            rtmr0: "",
            report_data: "9734504f",
            mr_config_id: "",
            trailing: 70,
        },
        Real {
            path: "google/go-tdx-guest/testing/testdata/tdx_prod_quote_SPR_E4.dat".into(),
            mr_td: "6363b804",
            rtmr0: "2927da70",
            report_data: "6c62dec1",
            mr_config_id: "",
            trailing: 39,
        },
    ]
}

#[test]
fn real_quotes_have_the_recorded_fields_and_round_trip() {
    let Some(dir) = vectors() else { return };
    for vector in real() {
        let bytes = read(&dir, &vector.path);
        let evidence = Evidence::from_raw(&bytes, None).unwrap_or_else(|error| panic!("{}: {error}", vector.path));
        let (quote, body) = (evidence.quote(), &evidence.quote().body);
        assert_eq!((quote.header.version, quote.header.qe_vendor_id), (4, INTEL_QE_VENDOR_ID), "{}", vector.path);
        assert_eq!(quote.body_type(), BodyType::Td10);
        assert!(body.mr_td.to_string().starts_with(vector.mr_td), "{}", vector.path);
        assert!(body.rtmr[0].to_string().starts_with(vector.rtmr0), "{}", vector.path);
        assert!(body.report_data.to_string().starts_with(vector.report_data), "{}", vector.path);
        assert!(body.mr_config_id.to_string().starts_with(vector.mr_config_id), "{}", vector.path);
        assert_eq!(quote.signature_data.qe.certification.kind, CertificationDataType::PCK_CERT_CHAIN);
        assert_eq!(quote.signature_data.qe.auth_data, (0..32).collect::<Vec<u8>>());
        assert_eq!(evidence.trailing().len(), vector.trailing, "{}", vector.path);
        assert_eq!(evidence.quote_bytes(), bytes, "{}", vector.path);

        let json = serde_json::to_string(&evidence).expect("serialises");
        assert_eq!(serde_json::from_str::<Evidence>(&json).expect("parses"), evidence);
    }
}

#[test]
fn an_sgx_quote_is_refused_for_what_it_is() {
    let Some(dir) = vectors() else { return };
    let bytes = read(&dir, &format!("{TRUSTEE}/occlum_quote.dat"));
    assert_eq!(Quote::parse(&bytes).map(|_| ()), Err(QuoteError::TeeType { found: 0 }));
}

fn made(version: u16, extension: Option<Extension15>) -> Quote {
    let seq = |start: u8| std::array::from_fn(|i| start.wrapping_add(i as u8));
    let body = Body {
        tee_tcb_svn: std::array::from_fn(|i| i as u8),
        mr_seam: TdMeasurement(seq(10)),
        mr_signer_seam: TdMeasurement(seq(20)),
        seam_attributes: [3; 8],
        td_attributes: TdAttributes(0x1000_0000),
        xfam: 0x0006_02e7,
        mr_td: TdMeasurement(seq(30)),
        mr_config_id: MrConfigId(seq(40)),
        mr_owner: TdMeasurement(seq(50)),
        mr_owner_config: TdMeasurement(seq(60)),
        rtmr: [70, 80, 90, 100].map(|start| TdMeasurement(seq(start))),
        report_data: ReportData(std::array::from_fn(|i| i as u8)),
        extension,
    };
    let report = EnclaveReport { isv_svn: 4, isv_prod_id: 2, misc_select: 9, reserved4: [5; 42], ..EnclaveReport::default() };
    let certification = CertificationData { kind: CertificationDataType::PCK_CERT_CHAIN, data: b"-----BEGIN".to_vec() };
    Quote {
        header: Header { version, reserved: [1, 2, 3, 4], qe_vendor_id: INTEL_QE_VENDOR_ID, user_data: [6; 20] },
        body,
        signature_data: SignatureData {
            signature: [7; 64],
            attestation_key: [8; 64],
            qe: QeCertification { report, report_signature: [9; 64], auth_data: vec![1, 2, 3], certification },
        },
    }
}

fn extension() -> Extension15 {
    Extension15 { tee_tcb_svn2: [11; 16], mr_service_td: TdMeasurement([12; 48]), more: None }
}

fn extended() -> Extension15 {
    let more = Extension15Ex {
        vm_id: 1,
        td_id: [2; 32],
        dev_info: TdMeasurement([3; 48]),
        init_service_td_hash: TdMeasurement([4; 48]),
        init_service_td_attributes: [5; 8],
        init_cpu_svn: [6; 16],
        init_tee_tcb_svn: [7; 16],
        init_tee_fmspc: [8; 12],
        cur_service_td_hash: TdMeasurement([9; 48]),
        cur_service_td_attributes: [10; 8],
    };
    Extension15 { more: Some(more), ..extension() }
}

/// One quote of each form.
fn forms() -> [Quote; 4] {
    [made(4, None), made(5, None), made(5, Some(extension())), made(5, Some(extended()))]
}

#[test]
fn each_form_round_trips_and_keeps_what_follows_apart() {
    for quote in forms() {
        let mut bytes = quote.to_bytes().expect("serialises");
        assert_eq!(
            bytes[..48 + if quote.header.version == 4 { 584 } else { 6 + quote.body_type().size() }],
            quote.signed_bytes().expect("fits")
        );
        assert_eq!(Quote::parse(&bytes), Ok((quote.clone(), &[][..])));
        bytes.extend(b"after");
        assert_eq!(Quote::parse(&bytes), Ok((quote, &b"after"[..])));
    }
}

#[test]
fn a_version_4_quote_has_no_room_for_tdx_1_5() {
    assert_eq!(made(4, Some(extension())).to_bytes(), Err(QuoteError::Extension { found: 4 }));
    assert_eq!(made(6, None).to_bytes(), Err(QuoteError::Version { found: 6 }));
}

#[test]
fn every_truncation_is_refused() {
    for quote in forms() {
        let bytes = quote.to_bytes().expect("serialises");
        for len in 0..bytes.len() {
            assert!(matches!(Quote::parse(&bytes[..len]), Err(QuoteError::Truncated { .. })), "{len} of {}", bytes.len());
        }
    }
    let Some(dir) = vectors() else { return };
    let bytes = read(&dir, &format!("{TRUSTEE}/tdx_quote_4.dat"));
    for len in 0..bytes.len() {
        assert!(matches!(Quote::parse(&bytes[..len]), Err(QuoteError::Truncated { .. })), "{len}");
    }
}

#[test]
fn every_flipped_byte_is_refused_or_kept() {
    for quote in forms() {
        let bytes = quote.to_bytes().expect("serialises");
        for offset in 0..bytes.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut bent = bytes.clone();
                bent[offset] ^= mask;
                // What parses must be written back as it came: nothing is dropped that a signature could be over.
                if let Ok((parsed, trailing)) = Quote::parse(&bent) {
                    assert_ne!(parsed, quote, "byte {offset} does not matter");
                    let mut again = parsed.to_bytes().expect("serialises");
                    again.extend(trailing);
                    assert_eq!(again, bent, "byte {offset}");
                }
            }
        }
    }
}

/// Offsets in a version 4 quote and in a version 5 quote with a TDX 1.5 body.
const V4_SIGNATURE_LENGTH: usize = 632;
const V4_CERTIFICATION_TYPE: usize = 636 + 128;
const V4_AUTH_LENGTH: usize = 636 + 134 + 384 + 64;
const V5_BODY_TYPE: usize = 48;
const V5_BODY_SIZE: usize = 50;

#[track_caller]
fn refused(quote: &Quote, offset: usize, with: &[u8]) -> QuoteError {
    let mut bytes = quote.to_bytes().expect("serialises");
    bytes[offset..offset + with.len()].copy_from_slice(with);
    Quote::parse(&bytes).map(|_| ()).expect_err("refused")
}

#[test]
fn ac_54_lengths_that_lie_are_refused_each_by_its_part() {
    let [v4, _, v5, _] = forms();
    let total = u32::try_from(v4.to_bytes().expect("serialises").len()).expect("small") - 636;
    for lie in [total + 1, u32::MAX, 0x8000_0000] {
        assert!(matches!(refused(&v4, V4_SIGNATURE_LENGTH, &lie.to_le_bytes()), QuoteError::Truncated { what: "quote", .. }), "{lie}");
    }
    for lie in [0_u32, 64, 127, 600, total - 1] {
        let error = refused(&v4, V4_SIGNATURE_LENGTH, &lie.to_le_bytes());
        assert!(matches!(error, QuoteError::Truncated { what: "signature data", .. }), "{lie}: {error}");
    }
    for lie in [u32::MAX, total] {
        let error = refused(&v4, V4_CERTIFICATION_TYPE + 2, &lie.to_le_bytes());
        assert!(matches!(error, QuoteError::Truncated { what: "signature data", .. }), "{error}");
    }
    let error = refused(&v4, V4_CERTIFICATION_TYPE + 2, &10_u32.to_le_bytes());
    assert!(matches!(error, QuoteError::Truncated { what: "QE report certification data", .. }), "{error}");
    for lie in [0xffff_u16, 2, 4] {
        let error = refused(&v4, V4_AUTH_LENGTH, &lie.to_le_bytes());
        assert!(matches!(error, QuoteError::Truncated { .. } | QuoteError::Excess { .. }), "{error}");
    }
    // One byte less in the innermost length leaves one over in the part around it.
    let error = refused(&v4, V4_AUTH_LENGTH + 2 + 3 + 2, &9_u32.to_le_bytes());
    assert_eq!(error, QuoteError::Excess { what: "QE report certification data", found: 1 });

    for lie in [0_u32, 584, 649, u32::MAX] {
        let error = refused(&v5, V5_BODY_SIZE, &lie.to_le_bytes());
        assert_eq!(error, QuoteError::BodySize { kind: BodyType::Td15, expected: 648, found: lie });
    }
}

#[test]
fn forms_that_are_not_known_are_refused_by_name() {
    let [v4, _, v5, _] = forms();
    assert_eq!(refused(&v4, 0, &[3, 0]), QuoteError::Version { found: 3 });
    assert_eq!(refused(&v4, 0, &[6, 0]), QuoteError::Version { found: 6 });
    assert_eq!(refused(&v4, 2, &[3, 0]), QuoteError::AttestationKeyType { found: 3 });
    assert_eq!(refused(&v4, 4, &[0, 0, 0, 0]), QuoteError::TeeType { found: 0 });
    assert_eq!(refused(&v4, V4_CERTIFICATION_TYPE, &[5, 0]), QuoteError::CertificationDataType { found: 5 });
    for found in [0_u16, 1, 5, 0xffff] {
        assert_eq!(refused(&v5, V5_BODY_TYPE, &found.to_le_bytes()), QuoteError::BodyType { found });
    }
    assert!(matches!(Quote::parse(&vec![0; Quote::MAX_LEN + 1]), Err(QuoteError::TooLong { .. })));
}

#[test]
fn json_has_cocos_form() {
    let raw = made(4, None).to_bytes().expect("serialises");
    let evidence = Evidence::from_raw(&raw, Some(b"log")).expect("well formed");
    let json = serde_json::to_value(&evidence).expect("serialises");
    assert_eq!(json, serde_json::json!({"cc_eventlog": "bG9n", "quote": STANDARD.encode(&raw)}));
    assert_eq!(serde_json::from_value::<Evidence>(json).expect("parses").cc_eventlog(), Some(&b"log"[..]));

    let bare = serde_json::json!({"quote": STANDARD.encode(&raw)});
    assert_eq!(serde_json::from_value::<Evidence>(bare).expect("parses").cc_eventlog(), None);
}

#[test]
fn malformed_json_is_refused() {
    let raw = made(4, None).to_bytes().expect("serialises");
    let quote = STANDARD.encode(&raw);
    for bad in [
        serde_json::json!({}),
        serde_json::json!({"quote": null}),
        serde_json::json!({"quote": ""}),
        serde_json::json!({"quote": format!("{quote}!")}),
        serde_json::json!({"quote": quote, "cc_eventlog": "*"}),
        serde_json::json!({"quote": quote, "cc_eventlog": STANDARD.encode(vec![0; Evidence::MAX_EVENT_LOG + 1])}),
    ] {
        assert!(serde_json::from_value::<Evidence>(bad).is_err());
    }
}

#[test]
fn real_td_reports_are_consistent_with_themselves() {
    let Some(dir) = vectors() else { return };
    let bytes = read(&dir, "confidential-containers/guest-components/attestation-agent/attester/test/tdx_report_1.bin");
    assert_ne!(TdReport::parse(&bytes).expect("a report").mr_td, TdMeasurement::ZERO);
    // A sample of the right size and of no type.
    let other = TdReport::parse(&read(&dir, "google/go-tdx-guest/testing/testdata/report.dat"));
    assert_eq!(other, Err(TdReportError::Type { found: 0x0f }));
}
