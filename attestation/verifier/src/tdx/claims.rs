//! Verified quote to claims: CoCo's names first, then every field under its own.

use kata_cc_evidence::tdx::{Body, Header, Quote, TdAttributes};
use serde_json::{Map, Value, json};

use super::VerifiedTdx;

pub(super) fn claims(verified: &VerifiedTdx) -> Value {
    let quote = &verified.quote;
    let mut claims = Map::new();
    for part in [cocos_claims(verified), fields(&quote.body), more_claims(verified), extension_claims(&quote.body)] {
        if let Value::Object(part) = part {
            claims.extend(part);
        }
    }
    if let Some(Value::Object(part)) = &verified.event_log_claims {
        for (name, value) in part {
            // A log never speaks over the quote.
            claims.entry(name).or_insert_with(|| value.clone());
        }
    }
    Value::Object(claims)
}

fn cocos_claims(verified: &VerifiedTdx) -> Value {
    let (quote, tcb) = (&verified.quote, &verified.tcb);
    json!({
        "quote": quote_claims(quote),
        "td_attributes": attributes(quote.body.td_attributes),
        "report_data": quote.body.report_data,
        "init_data": quote.body.mr_config_id,
        "tcb_status": tcb.status.as_str(),
        "tcb_date": tcb.date,
        "advisory_ids": tcb.advisories,
        // Expired collateral does not get here.
        "collateral_expiration_status": "0",
        // In CoCo's order of bytes, which is the reverse of the certificate's.
        "platform_instance_id": verified.platform.platform_instance_id.map(|id| hex::encode(u128::from_le_bytes(id).to_be_bytes())),
    })
}

fn quote_claims(quote: &Quote) -> Value {
    let mut claims = json!({ "header": header(&quote.header), "body": cocos_body(&quote.body) });
    if quote.header.version == 5
        && let Value::Object(claims) = &mut claims
    {
        claims.insert("type".into(), hex::encode(quote.body_type().code().to_le_bytes()).into());
        claims.insert("size".into(), u32::try_from(quote.body_type().size()).map(|size| hex::encode(size.to_le_bytes())).ok().into());
    }
    claims
}

/// Raw fields, as in the quote.
fn header(header: &Header) -> Value {
    json!({
        "version": hex::encode(header.version.to_le_bytes()),
        "att_key_type": hex::encode(header.att_key_type().to_le_bytes()),
        "tee_type": hex::encode(header.tee_type().to_le_bytes()),
        "reserved": hex::encode(header.reserved),
        "vendor_id": hex::encode(header.qe_vendor_id),
        "user_data": hex::encode(header.user_data),
    })
}

fn cocos_body(body: &Body) -> Value {
    let [rtmr_0, rtmr_1, rtmr_2, rtmr_3] = body.rtmr;
    let mut claims = json!({
        "tcb_svn": hex::encode(body.tee_tcb_svn),
        "mr_seam": body.mr_seam,
        "mrsigner_seam": body.mr_signer_seam,
        "seam_attributes": hex::encode(body.seam_attributes),
        "td_attributes": hex::encode(body.td_attributes.to_bytes()),
        "xfam": hex::encode(body.xfam.to_le_bytes()),
        "mr_td": body.mr_td,
        "mr_config_id": body.mr_config_id,
        "mr_owner": body.mr_owner,
        "mr_owner_config": body.mr_owner_config,
        "rtmr_0": rtmr_0,
        "rtmr_1": rtmr_1,
        "rtmr_2": rtmr_2,
        "rtmr_3": rtmr_3,
        "report_data": body.report_data,
    });
    if let (Some(extension), Value::Object(claims)) = (body.extension, &mut claims) {
        claims.insert("tee_tcb_svn2".into(), hex::encode(extension.tee_tcb_svn2).into());
        claims.insert("mr_servicetd".into(), extension.mr_service_td.to_string().into());
    }
    claims
}

/// CoCo's five first.
fn attributes(attributes: TdAttributes) -> Value {
    json!({
        "debug": attributes.debug(),
        "key_locker": attributes.key_locker(),
        "perfmon": attributes.perfmon(),
        "protection_keys": attributes.pks(),
        "septve_disable": attributes.sept_ve_disable(),
        "hgs_plus_prof": attributes.hgs_plus_prof(),
        "perf_prof": attributes.perf_prof(),
        "pmt_prof": attributes.pmt_prof(),
        "icssd": attributes.icssd(),
        "servtd_ext": attributes.servtd_ext(),
        "lass": attributes.lass(),
        "migratable": attributes.migratable(),
        "tpa": attributes.tpa(),
    })
}

/// Every field of the body at the top, under Intel's name; `td_attributes` is taken by CoCo's object.
fn fields(body: &Body) -> Value {
    let [rtmr_0, rtmr_1, rtmr_2, rtmr_3] = body.rtmr;
    json!({
        "tee_tcb_svn": hex::encode(body.tee_tcb_svn),
        "mr_seam": body.mr_seam,
        "mr_signer_seam": body.mr_signer_seam,
        "seam_attributes": hex::encode(body.seam_attributes),
        "td_attributes_raw": hex::encode(body.td_attributes.to_bytes()),
        "xfam": hex::encode(body.xfam.to_le_bytes()),
        "mr_td": body.mr_td,
        "mr_config_id": body.mr_config_id,
        "mr_owner": body.mr_owner,
        "mr_owner_config": body.mr_owner_config,
        "rtmr_0": rtmr_0,
        "rtmr_1": rtmr_1,
        "rtmr_2": rtmr_2,
        "rtmr_3": rtmr_3,
    })
}

fn more_claims(verified: &VerifiedTdx) -> Value {
    let platform = &verified.platform;
    json!({
        "simulated": verified.simulated,
        "root": verified.root_name,
        "quote_version": verified.quote.header.version,
        "fmspc": hex::encode(platform.fmspc),
        "pce_id": hex::encode(platform.pce_id),
        "pce_svn": platform.pce_svn,
        "cpu_svn": hex::encode(platform.cpu_svn),
        "dynamic_platform": platform.dynamic_platform,
        "cached_keys": platform.cached_keys,
        "smt_enabled": platform.smt_enabled,
        "qe_isv_svn": verified.quote.signature_data.qe.report.isv_svn,
        "tcb_evaluation_data_number": verified.tcb_evaluation_data_number,
        "collateral_valid_until": verified.collateral_valid_until,
    })
}

/// Fields of TDX 1.5; null in a quote that does not have them.
fn extension_claims(body: &Body) -> Value {
    let extension = body.extension;
    let more = extension.and_then(|extension| extension.more);
    json!({
        "tee_tcb_svn2": extension.map(|e| hex::encode(e.tee_tcb_svn2)),
        "mr_service_td": extension.map(|e| e.mr_service_td),
        "vm_id": more.map(|m| m.vm_id),
        "td_id": more.map(|m| hex::encode(m.td_id)),
        "dev_info": more.map(|m| m.dev_info),
        "init_service_td_hash": more.map(|m| m.init_service_td_hash),
        "init_service_td_attributes": more.map(|m| hex::encode(m.init_service_td_attributes)),
        "init_cpu_svn": more.map(|m| hex::encode(m.init_cpu_svn)),
        "init_tee_tcb_svn": more.map(|m| hex::encode(m.init_tee_tcb_svn)),
        "init_tee_fmspc": more.map(|m| hex::encode(m.init_tee_fmspc)),
        "cur_service_td_hash": more.map(|m| m.cur_service_td_hash),
        "cur_service_td_attributes": more.map(|m| hex::encode(m.cur_service_td_attributes)),
    })
}
