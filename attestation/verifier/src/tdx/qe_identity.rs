//! Identity of Intel's quoting enclave for TDs (PCS API v4, "Get TD QE Identity", version 2).

use serde::Deserialize;

use super::error::TdxError;
use super::signed_json::{Hex, Time};
use super::status::Judgement;
use super::tcb_info::{IsvSvn, Level};
use kata_cc_evidence::tdx::EnclaveReport;

/// The signed body.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QeIdentity {
    id: String,
    version: u32,
    pub(super) issue_date: Time,
    pub(super) next_update: Time,
    pub(super) tcb_evaluation_data_number: u32,
    miscselect: Hex<4>,
    miscselect_mask: Hex<4>,
    attributes: Hex<16>,
    attributes_mask: Hex<16>,
    mrsigner: Hex<32>,
    isvprodid: u16,
    tcb_levels: Vec<Level<IsvSvn>>,
}

impl QeIdentity {
    /// That it is one of a form that is known.
    pub(super) fn check_form(&self) -> Result<(), TdxError> {
        if self.id != "TD_QE" || self.version != 2 {
            return Err(TdxError::QeIdentityForm { found: format!("id {:?}, version {}", self.id, self.version) });
        }
        Ok(())
    }

    /// That the report is of this enclave: every field that names it.
    pub(super) fn check(&self, report: &EnclaveReport) -> Result<(), TdxError> {
        let differs = |field, found: String, expected: String| Err(TdxError::QeIdentity { field, found, expected });
        if report.mr_signer != self.mrsigner.0 {
            return differs("MRSIGNER", hex::encode(report.mr_signer), hex::encode(self.mrsigner.0));
        }
        if report.isv_prod_id != self.isvprodid {
            return differs("ISVPRODID", report.isv_prod_id.to_string(), self.isvprodid.to_string());
        }
        // The text of MISCSELECT has its bytes in the order of the report.
        let misc_select = report.misc_select.to_le_bytes();
        if masked(&misc_select, &self.miscselect_mask.0) != masked(&self.miscselect.0, &self.miscselect_mask.0) {
            return differs("MISCSELECT", hex::encode(misc_select), hex::encode(self.miscselect.0));
        }
        if masked(&report.attributes, &self.attributes_mask.0) != masked(&self.attributes.0, &self.attributes_mask.0) {
            return differs("ATTRIBUTES", hex::encode(report.attributes), hex::encode(self.attributes.0));
        }
        Ok(())
    }

    /// Judges the enclave's security version.
    pub(super) fn judge(&self, report: &EnclaveReport) -> Result<Judgement, TdxError> {
        let level = self.tcb_levels.iter().find(|level| report.isv_svn >= level.tcb.isvsvn);
        level
            .map(Level::judgement)
            .ok_or_else(|| TdxError::NoTcbLevel { what: "quoting enclave", found: format!("ISVSVN {}", report.isv_svn) })
    }
}

fn masked(value: &[u8], mask: &[u8]) -> Vec<u8> {
    value.iter().zip(mask).map(|(value, mask)| value & mask).collect()
}
