//! What is asked of a platform beyond genuine signatures, and the claims that come of a report.

mod world;

use kata_cc_evidence::snp::{CertKind, Cpuid, Evidence, Generation, KeyInfo, Report, TcbVersion};
use kata_cc_verifier::snp::{SnpError, SnpRules};
use world::{World, extension, leaf_extensions, refusal};

use der::Encode as _;

fn with_rules(rules: SnpRules) -> impl FnOnce(&mut World) {
    move |world| world.rules = rules
}

/// The made-up platform's own TCB.
const TCB: TcbVersion = TcbVersion { fmc: None, bootloader: 4, tee: 0, snp: 24, microcode: 219 };

#[test]
fn ac_53_refuses_a_denied_generation() {
    let deny = |generations: &[Generation]| SnpRules { deny_generations: generations.into(), ..SnpRules::default() };
    let refused = refusal(with_rules(deny(&[Generation::Genoa, Generation::Milan])));
    assert_eq!(refused, SnpError::GenerationDenied { generation: Generation::Milan });
    assert!(refused.to_string().contains("Milan"));
    assert!(World::bent(with_rules(deny(&[Generation::Genoa, Generation::Turin]))).check().is_ok());
}

#[test]
fn refuses_firmware_below_the_minimum_of_its_generation_part_by_part() {
    let minimum = |generation, tcb| SnpRules { minimum_tcb: vec![(generation, tcb)], ..SnpRules::default() };
    assert!(World::bent(with_rules(minimum(Generation::Milan, TCB))).check().is_ok());
    for floor in [
        TcbVersion { bootloader: 5, ..TCB },
        TcbVersion { tee: 1, ..TCB },
        TcbVersion { snp: 25, ..TCB },
        TcbVersion { microcode: 220, ..TCB },
        TcbVersion { fmc: Some(0), ..TCB },
    ] {
        let refused = refusal(with_rules(minimum(Generation::Milan, floor)));
        let expected = SnpError::TcbBelowMinimum { which: "REPORTED_TCB", generation: Generation::Milan, found: TCB, floor };
        assert_eq!(refused, expected);
        // The floor of another generation is none of this one's.
        assert!(World::bent(with_rules(minimum(Generation::Genoa, floor))).check().is_ok());
    }
}

#[test]
fn refuses_a_guest_launched_below_the_minimum() {
    let old = TcbVersion { snp: 23, ..TCB };
    let launched_earlier = |w: &mut World| {
        w.report.launch_tcb = old;
        w.rules = SnpRules { minimum_tcb: vec![(Generation::Milan, TCB)], ..SnpRules::default() };
    };
    let refused = refusal(launched_earlier);
    assert_eq!(refused, SnpError::TcbBelowMinimum { which: "LAUNCH_TCB", generation: Generation::Milan, found: old, floor: TCB });
}

#[test]
fn rules_for_generations_are_not_skipped_where_the_generation_is_unknown() {
    let unknown = |rules: SnpRules| {
        World::bent(|w| {
            (w.report.version, w.report.cpuid) = (2, None);
            w.leaf.extensions = leaf_extensions(TCB, &w.report.chip_id).split_off(1);
            w.rules = rules;
        })
        .check()
    };
    assert!(unknown(SnpRules::default()).is_ok());
    for rules in [
        SnpRules { deny_generations: vec![Generation::Turin], ..SnpRules::default() },
        SnpRules { minimum_tcb: vec![(Generation::Turin, TCB)], ..SnpRules::default() },
    ] {
        assert_eq!(unknown(rules).map(|_| ()), Err(SnpError::UnknownGeneration));
    }
}

/// A world whose report a provider's key signed.
fn vlek(world: &mut World) {
    world.report.key_info = KeyInfo(1 << 2);
    world.kind = CertKind::Vlek;
    world.ask.subject = "SIM-VLEK-ASVK";
    world.leaf.subject = "SIM-VLEK";
    world.leaf.issuer = "SIM-VLEK-ASVK";
    // A VLEK is for no chip.
    world.leaf.extensions.pop();
}

#[test]
fn takes_a_vlek_unless_the_rules_take_none() {
    let verified = World::bent(vlek).check().expect("verifies");
    assert_eq!(verified.claims()["signing_key"], "vlek");
    let strict = SnpRules { allow_vlek: false, ..SnpRules::default() };
    let refused = refusal(|w| {
        vlek(w);
        w.rules = strict.clone();
    });
    assert_eq!(refused, SnpError::VlekDenied);
    assert!(World::bent(with_rules(strict)).check().is_ok());
}

#[test]
fn ac_53_a_vcek_does_not_pass_for_a_vlek_whatever_the_rules() {
    let refused = refusal(|w| {
        w.report.key_info = KeyInfo(1 << 2);
        w.kind = CertKind::Vlek;
        w.rules.allow_vlek = false;
    });
    assert!(matches!(refused, SnpError::LeafKind { expected: "VLEK", .. }));
}

/// A world of another processor.
fn turin(world: &mut World) {
    let tcb = TcbVersion { fmc: Some(1), bootloader: 1, tee: 1, snp: 2, microcode: 75 };
    let report = &mut world.report;
    report.cpuid = Some(Cpuid { family: 0x1a, model: 2, stepping: 1 });
    report.chip_id = std::array::from_fn(|i| if i < 8 { 0x61 } else { 0 });
    (report.reported_tcb, report.current_tcb, report.committed_tcb, report.launch_tcb) = (tcb, tcb, tcb, tcb);
    world.leaf.extensions = leaf_extensions(tcb, &[0x61; 8]);
    let product = der::asn1::Ia5String::new("Turin-B1").expect("text").to_der().expect("encodes");
    world.leaf.extensions[0] = extension("1.3.6.1.4.1.3704.1.2", product);
    world.leaf.extensions.push(extension("1.3.6.1.4.1.3704.1.3.9", 1_u8.to_der().expect("encodes")));
}

#[test]
fn ac_53_takes_report_versions_2_3_and_5_of_each_generation_and_no_other_length_or_version() {
    let bends: [fn(&mut World); 4] = [
        |w| (w.report.version, w.report.cpuid) = (2, None),
        |_| (),
        |w| {
            w.report.version = 5;
            (w.report.launch_mit_vector, w.report.current_mit_vector) = (Some(1), Some(3));
        },
        turin,
    ];
    for bend in bends {
        let world = World::bent(bend);
        let verified = world.check().expect("verifies");
        let raw = world.evidence().report_bytes();
        assert_eq!(verified.claims()["version"], u32::from(raw[0]));
        for length in [0, 1, Report::SIGNED_LEN, Report::LEN - 1] {
            assert!(Evidence::from_raw(&raw[..length], &[]).is_err());
        }
        assert!(Evidence::from_raw(&[&raw[..], &[0]].concat(), &[]).is_err());
        for version in [0, 1, 4, 6, 255] {
            let mut other = raw;
            other[0] = version;
            assert!(Evidence::from_raw(&other, &[]).is_err(), "version {version}");
        }
    }
    assert_eq!(World::bent(turin).check().expect("verifies").claims()["reported_tcb_fmc"], 1);
}

#[test]
fn ac_53_refuses_a_turin_certificate_of_another_firmware_or_chip() {
    let of = |bend: fn(&mut World)| {
        refusal(|w| {
            turin(w);
            bend(w);
        })
    };
    assert!(matches!(of(|w| w.report.reported_tcb.fmc = Some(2)), SnpError::Tcb { .. }));
    assert!(matches!(of(|w| drop(w.leaf.extensions.pop())), SnpError::Tcb { .. }));
    assert!(matches!(of(|w| w.report.chip_id[7] = 0), SnpError::ChipId { .. }));
    // The certificate names eight bytes: the rest of the report's field must be zero.
    assert!(matches!(of(|w| w.report.chip_id[8] = 0x61), SnpError::ChipId { .. }));
}

#[test]
fn every_field_of_the_report_is_a_claim_by_amds_name() {
    let bend = |w: &mut World| {
        turin(w);
        w.report.version = 5;
        (w.report.launch_mit_vector, w.report.current_mit_vector) = (Some(1), Some(3));
        (w.report.guest_svn, w.report.policy.0) = (7, 0x3_011f);
    };
    let claims = World::bent(bend).check().expect("verifies").claims();
    let fields = [
        "version",
        "guest_svn",
        "policy",
        "family_id",
        "image_id",
        "vmpl",
        "signature_algo",
        "platform_info",
        "signing_key",
        "mask_chip_key",
        "author_key_en",
        "report_data",
        "measurement",
        "host_data",
        "id_key_digest",
        "author_key_digest",
        "report_id",
        "report_id_ma",
        "cpuid_fam_id",
        "cpuid_mod_id",
        "cpuid_step",
        "chip_id",
        "current_major",
        "current_minor",
        "current_build",
        "committed_major",
        "committed_minor",
        "committed_build",
        "launch_mit_vector",
        "current_mit_vector",
    ];
    for field in fields {
        assert!(claims.get(field).is_some_and(|value| !value.is_null()), "{field}");
    }
    for tcb in ["reported_tcb", "current_tcb", "committed_tcb", "launch_tcb"] {
        for part in ["fmc", "bootloader", "tee", "snp", "microcode"] {
            assert!(claims[format!("{tcb}_{part}")].is_u64(), "{tcb}_{part}");
        }
    }
    assert_eq!((&claims["policy"], &claims["policy_abi_major"], &claims["policy_abi_minor"]), (&0x3_011f.into(), &1.into(), &0x1f.into()));
    assert_eq!(
        (&claims["cpuid_fam_id"], &claims["current_mit_vector"], &claims["host_data"]),
        (&0x1a.into(), &3.into(), &claims["init_data"])
    );
}

#[test]
fn every_claim_is_in_the_documentation() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/claims.md")).expect("docs/claims.md");
    let section = text.split("\n## ").find_map(|section| section.strip_prefix("SNP\n")).expect("a section");
    let listed: Vec<&str> = section.split('`').skip(1).step_by(2).collect();
    let claims = World::bent(turin).check().expect("verifies").claims();
    for claim in claims.as_object().expect("an object").keys() {
        assert!(listed.contains(&claim.as_str()), "docs/claims.md says nothing of {claim}");
    }
}
