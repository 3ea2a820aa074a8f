//! Verified report to claims: CoCo's names first, then every field by AMD's name for it, in lower case (AMD 56860, table ATTESTATION_REPORT).
//!
//! `docs/claims.md` lists all of them; a test holds the list to be complete.

use kata_cc_evidence::snp::{Report, SigningKey, TcbVersion};
use serde_json::{Map, Value, json};

use super::VerifiedSnp;

pub(super) fn claims(verified: &VerifiedSnp) -> Value {
    let report = verified.report();
    let mut claims = Map::new();
    for part in [cocos_claims(report), more_claims(verified), more_policy_claims(report)] {
        if let Value::Object(part) = part {
            claims.extend(part);
        }
    }
    for (prefix, tcb) in [
        ("reported_tcb", report.reported_tcb),
        ("current_tcb", report.current_tcb),
        ("committed_tcb", report.committed_tcb),
        ("launch_tcb", report.launch_tcb),
    ] {
        add_tcb(&mut claims, prefix, tcb);
    }
    for (prefix, version) in [("current", report.current), ("committed", report.committed)] {
        for (part, value) in [("major", version.major), ("minor", version.minor), ("build", version.build)] {
            claims.insert(format!("{prefix}_{part}"), value.into());
        }
    }
    Value::Object(claims)
}

/// What CoCo's attestation policies know, apart from `reported_tcb_*`.
fn cocos_claims(report: &Report) -> Value {
    let (policy, platform) = (report.policy, report.platform_info);
    json!({
        "policy_abi_major": policy.abi_major(),
        "policy_abi_minor": policy.abi_minor(),
        "policy_smt_allowed": policy.smt_allowed(),
        "policy_migrate_ma": policy.migrate_ma_allowed(),
        "policy_debug_allowed": policy.debug_allowed(),
        "policy_single_socket": policy.single_socket_required(),
        "platform_tsme_enabled": platform.tsme_enabled(),
        "platform_smt_enabled": platform.smt_enabled(),
        "measurement": report.measurement,
        "report_data": report.report_data,
        "init_data": report.host_data,
        "chip_id": hex::encode(report.chip_id),
    })
}

fn more_claims(verified: &VerifiedSnp) -> Value {
    let report = verified.report();
    json!({
        "simulated": verified.simulated_root().is_some(),
        "root": verified.root_name(),
        "generation": verified.generation().map(|generation| generation.name()),
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": report.policy.0,
        "family_id": hex::encode(report.family_id),
        "image_id": hex::encode(report.image_id),
        "vmpl": report.vmpl,
        "signature_algo": report.signature_algo,
        "platform_info": report.platform_info.0,
        "signing_key": if report.key_info.signing_key() == SigningKey::Vlek { "vlek" } else { "vcek" },
        "mask_chip_key": report.key_info.mask_chip_key(),
        "author_key_en": report.key_info.author_key_enabled(),
        "host_data": report.host_data,
        "id_key_digest": hex::encode(report.id_key_digest),
        "author_key_digest": hex::encode(report.author_key_digest),
        "report_id": hex::encode(report.report_id),
        "report_id_ma": hex::encode(report.report_id_ma),
        "cpuid_fam_id": report.cpuid.map(|cpuid| cpuid.family),
        "cpuid_mod_id": report.cpuid.map(|cpuid| cpuid.model),
        "cpuid_step": report.cpuid.map(|cpuid| cpuid.stepping),
        "launch_mit_vector": report.launch_mit_vector,
        "current_mit_vector": report.current_mit_vector,
    })
}

fn more_policy_claims(report: &Report) -> Value {
    let (policy, platform) = (report.policy, report.platform_info);
    json!({
        "policy_cxl_allowed": policy.cxl_allowed(),
        "policy_mem_aes_256_xts": policy.mem_aes_256_xts(),
        "policy_rapl_disabled": policy.rapl_disabled(),
        "policy_ciphertext_hiding": policy.ciphertext_hiding(),
        "policy_page_swap_disabled": policy.page_swap_disabled(),
        "platform_ecc_enabled": platform.ecc_enabled(),
        "platform_rapl_disabled": platform.rapl_disabled(),
        "platform_ciphertext_hiding_enabled": platform.ciphertext_hiding_enabled(),
        "platform_alias_check_complete": platform.alias_check_complete(),
        "platform_tio_enabled": platform.tio_enabled(),
    })
}

fn add_tcb(map: &mut Map<String, Value>, prefix: &str, tcb: TcbVersion) {
    for (part, value) in [("bootloader", tcb.bootloader), ("tee", tcb.tee), ("snp", tcb.snp), ("microcode", tcb.microcode)] {
        map.insert(format!("{prefix}_{part}"), value.into());
    }
    if let Some(fmc) = tcb.fmc {
        map.insert(format!("{prefix}_fmc"), fmc.into());
    }
}
