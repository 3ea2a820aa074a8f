//! Revocation lists of a root (RFC 5280, section 5; AMD 57230, section 4): which certificates it has withdrawn, and for how long that is the last word.
//!
//! AMD's roots list intermediates only: endorsement keys all carry the serial number 0, and fall with their TCB (see the rules).

use std::fmt;

use kata_cc_evidence::snp::{CertKind, Evidence};

use super::cert::{Cert, utc};
use super::error::{ChainPart, SnpError};
use super::roots::Root;
use super::{kds, rules::SnpRules};
use crate::checks::Checks;
use crate::collateral::Collateral;

/// A list whose signature by a trusted root was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RevocationList {
    /// thisUpdate, seconds since the epoch.
    pub(super) this_update: u64,
    /// nextUpdate; a list without one is never current.
    pub(super) next_update: Option<u64>,
    /// Serial numbers as in the certificates, big-endian.
    pub(super) serials: Vec<Vec<u8>>,
}

/// Why there is no last word on what a root has withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevocationGap {
    /// Nobody gave a list.
    Missing,
    /// What was given is no list of this root.
    NotGenuine,
    /// Every list is past its time, or not in it yet.
    NotCurrent {
        /// thisUpdate of the newest.
        this_update: u64,
        /// nextUpdate of the newest.
        next_update: Option<u64>,
        /// Now.
        now: u64,
    },
}

impl fmt::Display for RevocationGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no revocation list"),
            Self::NotGenuine => f.write_str("only a revocation list that is malformed or not signed by this root"),
            Self::NotCurrent { this_update, next_update, now } => {
                let until = next_update.map_or_else(|| "no end given".to_owned(), utc);
                write!(f, "a revocation list of {} to {until}, it is {}", utc(*this_update), utc(*now))
            }
        }
    }
}

/// Neither root nor intermediate is on any genuine list, however old: what was withdrawn once stays so. Whether a current list must be there is
/// the rules' word.
pub(super) fn check(
    root: &Root,
    intermediate: &Cert,
    evidence: &Evidence,
    collateral: &Collateral,
    rules: &SnpRules,
    now: u64,
    checks: &mut Checks,
) -> Result<(), SnpError> {
    // The root's signature is what makes a list one; the host may bring it like anybody else.
    let brought = evidence.certs().and_then(|table| table.get(CertKind::Crl));
    let fetched =
        kds::lists(evidence, root.generation).into_iter().filter_map(|need| collateral.get(&need).map(|item| item.body.as_slice()));
    let mut offered = 0_usize;
    let mut lists = root.lists.clone();
    for bytes in brought.into_iter().chain(fetched) {
        offered = offered.saturating_add(1);
        lists.extend(root.ark.revocation_list(bytes));
    }

    let found = format!("{} under {}", hex::encode(intermediate.serial()), hex::encode(root.ark.serial()));
    for (part, cert) in [(ChainPart::Root, &root.ark), (ChainPart::Intermediate, intermediate)] {
        if lists.iter().any(|list| list.serials.iter().any(|serial| serial == cert.serial())) {
            return checks.record("revocation", found, "not on the root's list", Err(SnpError::Revoked { part }));
        }
    }
    let is_current = |list: &&RevocationList| list.this_update <= now && list.next_update.is_some_and(|end| now <= end);
    if let Some(list) = lists.iter().filter(is_current).max_by_key(|list| list.this_update) {
        return checks.record("revocation", found, format_args!("not on the root's list of {}", utc(list.this_update)), Ok(()));
    }
    let gap = match lists.iter().max_by_key(|list| list.this_update) {
        Some(list) => RevocationGap::NotCurrent { this_update: list.this_update, next_update: list.next_update, now },
        None if offered > 0 => RevocationGap::NotGenuine,
        None => RevocationGap::Missing,
    };
    if rules.require_crl {
        let refused = SnpError::RevocationList { root: root.name.clone(), gap: gap.clone() };
        return checks.record("revocation", gap, "a current list of the root", Err(refused));
    }
    checks.not_compared("revocation", gap);
    Ok(())
}
