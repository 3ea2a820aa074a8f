//! TCB info of a platform model: which security versions Intel judges how (PCS API v4, "Get TDX TCB Info", version 3).
//!
//! ```text
//! level    = first of tcbLevels that the platform's SGX components, PCESVN and TEE_TCB_SVN all reach
//! module   = tdxModule, or the identity TDX_<TEE_TCB_SVN[1]> and its first level that TEE_TCB_SVN[0] reaches
//! ```

use serde::Deserialize;

use super::error::TdxError;
use super::pck::Platform;
use super::signed_json::{Hex, Time};
use super::status::{Judgement, TcbStatus};
use kata_cc_evidence::tdx::Body;

/// The signed body.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TcbInfo {
    pub(super) id: String,
    pub(super) version: u32,
    pub(super) issue_date: Time,
    pub(super) next_update: Time,
    pub(super) fmspc: Hex<6>,
    pce_id: Hex<2>,
    tcb_type: u32,
    pub(super) tcb_evaluation_data_number: u32,
    tdx_module: Module,
    #[serde(default)]
    tdx_module_identities: Vec<ModuleIdentity>,
    tcb_levels: Vec<Level<PlatformTcb>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Module {
    mrsigner: Hex<48>,
    attributes: Hex<8>,
    attributes_mask: Hex<8>,
}

#[derive(Clone, Debug, Deserialize)]
struct ModuleIdentity {
    id: String,
    #[serde(flatten)]
    module: Module,
    #[serde(rename = "tcbLevels")]
    levels: Vec<Level<IsvSvn>>,
}

/// A level: from which versions on, judged how.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Level<T> {
    pub(super) tcb: T,
    tcb_date: Time,
    tcb_status: TcbStatus,
    #[serde(rename = "advisoryIDs", default)]
    advisory_ids: Vec<String>,
}

impl<T> Level<T> {
    pub(super) fn judgement(&self) -> Judgement {
        Judgement { status: self.tcb_status, date: self.tcb_date.text.clone(), advisories: self.advisory_ids.iter().cloned().collect() }
    }
}

#[derive(Clone, Debug, Deserialize)]
struct PlatformTcb {
    sgxtcbcomponents: [Component; 16],
    pcesvn: u16,
    tdxtcbcomponents: [Component; 16],
}

#[derive(Clone, Debug, Deserialize)]
struct Component {
    svn: u8,
}

/// The TCB of an enclave or module.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct IsvSvn {
    pub(super) isvsvn: u16,
}

impl TcbInfo {
    /// That it is TCB info of a form that is known, and for this platform's model.
    pub(super) fn check_is_for(&self, platform: &Platform) -> Result<(), TdxError> {
        if self.id != "TDX" || self.version != 3 || self.tcb_type != 0 {
            let found = format!("id {:?}, version {}, tcbType {}", self.id, self.version, self.tcb_type);
            return Err(TdxError::TcbInfoForm { found });
        }
        if self.fmspc.0 != platform.fmspc || self.pce_id.0 != platform.pce_id {
            let named = |fmspc: [u8; 6], pce_id: [u8; 2]| format!("FMSPC {}, PCE-ID {}", hex::encode(fmspc), hex::encode(pce_id));
            return Err(TdxError::TcbInfoPlatform {
                found: named(self.fmspc.0, self.pce_id.0),
                expected: named(platform.fmspc, platform.pce_id),
            });
        }
        Ok(())
    }

    /// Which module it says the TD must run under, with the levels of that module's major version.
    fn module(&self, svn: &[u8; 16]) -> Result<(Module, &[Level<IsvSvn>]), TdxError> {
        let [_, major, ..] = *svn;
        if major == 0 {
            return Ok((self.tdx_module, &[]));
        }
        let id = format!("TDX_{major:02X}");
        let identity = self.tdx_module_identities.iter().find(|identity| identity.id.eq_ignore_ascii_case(&id));
        identity.map(|identity| (identity.module, identity.levels.as_slice())).ok_or(TdxError::UnknownModule { id })
    }

    /// That the TDX module is the one it says: its signer and attributes.
    pub(super) fn check_module(&self, body: &Body) -> Result<(), TdxError> {
        let (module, _) = self.module(&body.tee_tcb_svn)?;
        if body.mr_signer_seam.0 != module.mrsigner.0 {
            return Err(TdxError::ModuleSigner { found: body.mr_signer_seam.to_string(), expected: hex::encode(module.mrsigner.0) });
        }
        // Attributes outside the mask have no expected value, and no meaning that is known.
        let wanted = module.attributes.0.iter().zip(&module.attributes_mask.0).map(|(attribute, mask)| attribute & mask);
        if !wanted.eq(body.seam_attributes) {
            return Err(TdxError::ModuleAttributes {
                found: hex::encode(body.seam_attributes),
                expected: hex::encode(module.attributes.0),
            });
        }
        Ok(())
    }

    /// Judges the platform with these TDX security versions, and the TDX module that goes with them.
    pub(super) fn judge(&self, platform: &Platform, svn: &[u8; 16]) -> Result<Judgement, TdxError> {
        let [minor, major, ..] = *svn;
        let level = self.tcb_levels.iter().find(|level| level.tcb.is_reached(platform, svn)).ok_or_else(|| TdxError::NoTcbLevel {
            what: "platform",
            found: format!(
                "SGX components {}, PCESVN {}, TEE_TCB_SVN {}",
                hex::encode(platform.tcb_components),
                platform.pce_svn,
                hex::encode(svn)
            ),
        })?;
        let (_, module_levels) = self.module(svn)?;
        if major == 0 {
            return Ok(level.judgement());
        }
        let module = module_levels
            .iter()
            .find(|level| u16::from(minor) >= level.tcb.isvsvn)
            .ok_or_else(|| TdxError::NoTcbLevel { what: "TDX module", found: format!("version {major}, ISVSVN {minor}") })?;
        Ok(level.judgement().with(module.judgement()))
    }
}

impl PlatformTcb {
    fn is_reached(&self, platform: &Platform, svn: &[u8; 16]) -> bool {
        let reached = |found: &[u8; 16], wanted: &[Component; 16], skip| found.iter().zip(wanted).skip(skip).all(|(f, w)| *f >= w.svn);
        // With a major version, the first two are judged by the module's identity.
        let [_, major, ..] = *svn;
        reached(&platform.tcb_components, &self.sgxtcbcomponents, 0)
            && platform.pce_svn >= self.pcesvn
            && reached(svn, &self.tdxtcbcomponents, if major == 0 { 0 } else { 2 })
    }
}
