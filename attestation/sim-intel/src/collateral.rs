//! What Intel says of its platforms: TCB info, QE identity, and where it would serve those and the revocation lists (PCS API v4).

use serde_json::{Value, json};

use super::key::Key;

/// Path of the QE identity.
pub const QE_IDENTITY_PATH: &str = "tdx/certification/v4/qe/identity";
/// Path of the root's revocation list.
pub const ROOT_CRL_PATH: &str = "sgx/certification/v4/rootcacrl";

/// Path of the TCB info of a model.
#[must_use]
pub fn tcb_info_path(fmspc: &[u8; 6]) -> String {
    format!("tdx/certification/v4/tcb?fmspc={}", hex::encode(fmspc))
}

/// Path of the revocation list of the PCK Platform CA.
#[must_use]
pub fn pck_crl_path() -> String {
    "sgx/certification/v4/pckcrl?ca=platform&encoding=der".into()
}

/// A piece of collateral, as a service would answer.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Where it would be asked for.
    pub path: String,
    /// What is answered.
    pub body: Vec<u8>,
    /// The certificates that signed it, PEM; empty for revocation lists.
    pub issuer_chain: Vec<u8>,
}

impl Piece {
    /// Name of its file in a broker's collateral directory (`kata-cc-collateral`, module `directory`).
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("intel-pcs_{}", self.path.replace(['/', '?', '&'], "_"))
    }
}

fn components(first: &[u8]) -> Value {
    (0..16).map(|index| json!({"svn": first.get(index).copied().unwrap_or_default()})).collect()
}

/// A level of TCB info: reached from these on, judged so.
#[must_use]
pub fn level(sgx: &[u8], pce_svn: u8, tdx: &[u8], status: &str, advisories: &[&str]) -> Value {
    json!({
        "tcb": {"sgxtcbcomponents": components(sgx), "pcesvn": pce_svn, "tdxtcbcomponents": components(tdx)},
        "tcbDate": "2026-08-01T00:00:00Z", "tcbStatus": status, "advisoryIDs": advisories,
    })
}

/// TCB info of a model, valid so long. Levels of the platform and of the TDX module of major version 1 are in the forms of [`level`] and of
/// QE identities.
#[must_use]
pub fn tcb_info(fmspc: &[u8; 6], issued: &str, next_update: &str, levels: &Value, module_levels: &Value) -> Value {
    let zeros = |count: usize| "00".repeat(count);
    let module =
        |levels: &Value| json!({"mrsigner": zeros(48), "attributes": zeros(8), "attributesMask": "FF".repeat(8), "tcbLevels": levels});
    let mut identity = module(module_levels);
    identity["id"] = "TDX_01".into();
    json!({
        "id": "TDX", "version": 3, "issueDate": issued, "nextUpdate": next_update,
        "fmspc": hex::encode(fmspc), "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 20,
        "tdxModule": module(&json!([])), "tdxModuleIdentities": [identity],
        "tcbLevels": levels,
    })
}

/// Identity of the quoting enclave, valid so long.
#[must_use]
pub fn qe_identity(mr_signer: &[u8; 32], issued: &str, next_update: &str, levels: &Value) -> Value {
    json!({
        "id": "TD_QE", "version": 2, "issueDate": issued, "nextUpdate": next_update, "tcbEvaluationDataNumber": 20,
        "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000", "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(mr_signer), "isvprodid": 2,
        "tcbLevels": levels,
    })
}

/// A signed document: `{"NAME":BODY,"signature":"…"}`.
#[must_use]
pub fn signed_json(name: &str, body: &Value, signer: &Key) -> Vec<u8> {
    let body = body.to_string();
    let signature = hex::encode(signer.fixed(body.as_bytes()));
    format!("{{\"{name}\":{body},\"signature\":\"{signature}\"}}").into_bytes()
}
