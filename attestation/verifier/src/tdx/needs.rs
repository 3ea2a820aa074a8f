//! Which collateral a quote's verification needs, where Intel serves it, and which of it is not at hand.
//!
//! Intel, "SGX and TDX Provisioning Certification Service", API v4. The root's revocation list is not part of that API but of Intel's caching
//! service (PCCS); Intel itself serves it at an address of its own.

use std::fmt;

use super::pck::Platform;
use crate::collateral::{Collateral, Item, Need, Source};

/// Which of the two intermediates issued a PCK certificate: for platforms with several processors, or with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PckCa {
    Platform,
    Processor,
}

impl PckCa {
    pub(super) fn by_name(common_name: &str) -> Option<Self> {
        match common_name {
            name if name.ends_with("PCK Platform CA") => Some(Self::Platform),
            name if name.ends_with("PCK Processor CA") => Some(Self::Processor),
            _ => None,
        }
    }
}

/// The four pieces a quote needs.
#[derive(Clone, Debug)]
pub(super) struct Needs {
    pub(super) tcb_info: Need,
    pub(super) qe_identity: Need,
    pub(super) pck_crl: Need,
    pub(super) root_crl: Need,
}

/// The same, at hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces<'a> {
    pub(super) tcb_info: &'a Item,
    pub(super) qe_identity: &'a Item,
    pub(super) pck_crl: &'a Item,
    pub(super) root_crl: &'a Item,
}

impl Needs {
    pub(super) fn of(platform: &Platform, ca: PckCa) -> Self {
        let need = |path: String| Need { source: Source::IntelPcs, path };
        let ca = match ca {
            PckCa::Platform => "platform",
            PckCa::Processor => "processor",
        };
        Self {
            tcb_info: need(format!("tdx/certification/v4/tcb?fmspc={}", hex::encode(platform.fmspc))),
            qe_identity: need("tdx/certification/v4/qe/identity".into()),
            pck_crl: need(format!("sgx/certification/v4/pckcrl?ca={ca}&encoding=der")),
            root_crl: need(ROOT_CRL.into()),
        }
    }

    pub(super) fn all(&self) -> [&Need; 4] {
        [&self.tcb_info, &self.qe_identity, &self.pck_crl, &self.root_crl]
    }

    pub(super) fn find<'a>(&self, collateral: &'a Collateral) -> Result<Pieces<'a>, Missing> {
        let get = |need| collateral.get(need);
        match (get(&self.tcb_info), get(&self.qe_identity), get(&self.pck_crl), get(&self.root_crl)) {
            (Some(tcb_info), Some(qe_identity), Some(pck_crl), Some(root_crl)) => Ok(Pieces { tcb_info, qe_identity, pck_crl, root_crl }),
            _ => Err(Missing(self.all().into_iter().filter(|need| get(need).is_none()).cloned().collect())),
        }
    }
}

const ROOT_CRL: &str = "sgx/certification/v4/rootcacrl";

/// Pieces that are not at hand. Shows each with its address at Intel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing(Vec<Need>);

impl Missing {
    /// The pieces.
    #[must_use]
    pub fn needs(&self) -> &[Need] {
        &self.0
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, need) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("; ")?;
            }
            match need.path.as_str() {
                ROOT_CRL => write!(f, "{need} (curl https://certificates.trustedservices.intel.com/IntelSGXRootCA.der)")?,
                // The issuer's chain comes in a header.
                path => write!(f, "{need} (curl -i \"https://api.trustedservices.intel.com/{path}\")")?,
            }
        }
        Ok(())
    }
}
