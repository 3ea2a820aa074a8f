//! The simulated TDX machine: its keys, its certificates and the collateral for them, and the directory they live in.
//!
//! ```text
//! root.pem          for the broker: [[tdx.simulated_roots]]
//! collateral/       for the broker: [collateral] directory
//! pck-chain.pem, pck.key, attestation.key            what `serve` signs with
//! root.key, pck-ca.key, tcb-signing.key              for whoever wants other collateral
//! platform.json     written last, so a directory that has it is complete
//! ```
//! Collateral is valid as long as the certificates: nothing is ever found out about a simulation. A broker has one collateral directory, and
//! QE identity and root CRL have the same name under every root, so one with this directory can verify evidence of no other TDX machine.

use std::path::Path;

use der::DateTime;
use kata_cc_evidence::tdx::EnclaveReport;
use kata_cc_sim_intel::{
    Draft, Key, List, Piece, Platform, QE_IDENTITY_PATH, ROOT_CRL_PATH, Signer, level, pck_crl_path, pem, qe_identity, signed_json,
    tcb_info, tcb_info_path,
};
use rand_core::{OsRng, RngCore as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use x509_cert::Certificate;

use crate::identity::{BACKDATE_SECONDS, IdentityError, InitOutcome, LIFETIME_SECONDS, read, write};

/// The file with the root.
pub const ROOT_FILE: &str = "root.pem";
/// The directory with the collateral.
pub const COLLATERAL_DIR: &str = "collateral";
const PLATFORM_FILE: &str = "platform.json";
const CHAIN_FILE: &str = "pck-chain.pem";
const PCK_KEY: &str = "pck.key";
const ATTESTATION_KEY: &str = "attestation.key";

/// The simulated model. Intel's begin with other bytes.
const PLATFORM: Platform = Platform { components: [0; 16], pce_svn: 1, fmspc: [0xff, 0x51, 0x3d, 0, 0, 0] };
/// TEE_TCB_SVN of its TDX module: minor version 0 of major version 1.
pub(crate) const TEE_TCB_SVN: [u8; 16] = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Says that the directory is complete, and which machine it is of.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    /// Model of the platform.
    #[serde(with = "hex::serde")]
    fmspc: [u8; 6],
}

/// What signs quotes.
#[derive(Debug)]
pub struct Identity {
    pck_key: Key,
    attestation_key: Key,
    enclave: EnclaveReport,
    /// The certificates of the PCK key, PEM.
    chain: Vec<u8>,
}

impl Identity {
    fn new(pck_key: Key, attestation_key: Key, chain: Vec<u8>) -> Self {
        let mut attributes = [0; 16];
        // INITTED, MODE64BIT and PROVISION_KEY, as Intel's enclave has.
        attributes[0] = 0x15;
        let mr_signer = enclave_signer();
        let enclave = EnclaveReport { mr_signer, isv_prod_id: 2, isv_svn: 1, attributes, ..EnclaveReport::default() };
        Self { pck_key, attestation_key, enclave, chain }
    }

    /// For [`kata_cc_sim_intel::quote()`].
    pub(crate) fn signer(&self) -> Signer<'_> {
        Signer { enclave: &self.enclave, attestation_key: &self.attestation_key, pck_key: &self.pck_key, chain: &self.chain }
    }
}

/// MRSIGNER of the quoting enclave: nobody's key.
fn enclave_signer() -> [u8; 32] {
    Sha256::digest(b"kata-cc simulated quoting enclave").into()
}

/// A freshly made machine, with everything that verifying its evidence needs.
#[derive(Debug)]
pub struct Machine {
    /// What signs.
    pub identity: Identity,
    /// The root, PEM: what the broker is told to trust by name.
    pub root: Vec<u8>,
    /// The collateral.
    pub pieces: Vec<Piece>,
    authorities: [(&'static str, Key); 3],
}

impl Machine {
    /// Makes keys, certificates and collateral. `now` is Unix time.
    #[must_use]
    pub fn generate(now: u64) -> Self {
        let (from, until) = (now.saturating_sub(BACKDATE_SECONDS), now.saturating_add(LIFETIME_SECONDS));
        // Keeps apart the roots of several simulations that one broker trusts.
        let mut word = [0; 4];
        OsRng.fill_bytes(&mut word);
        let named = |role: &str| format!("SIM-TDX {} {role}", hex::encode(word));
        let (root_name, ca_name, pck_name, signer_name) =
            (named("Root CA"), named("PCK Platform CA"), named("PCK Certificate"), named("TCB Signing"));
        let (root_key, ca_key, pck_key, signer_key) = (Key::new(), Key::new(), Key::new(), Key::new());
        let draft = |subject, issuer, serial, ca| Draft::new(subject, issuer, serial, ca, from, until);

        let root = draft(&root_name, &root_name, 1, true).signed(&root_key, &root_key);
        let ca = draft(&ca_name, &root_name, 2, true).signed(&ca_key, &root_key);
        let mut pck = draft(&pck_name, &ca_name, 3, false);
        pck.extensions.push(PLATFORM.extension(|_| 1));
        let pck = pck.signed(&pck_key, &ca_key);
        let signer = draft(&signer_name, &root_name, 4, false).signed(&signer_key, &root_key);

        let list = |issuer, key: &Key| List { issuer, revoked: Vec::new(), this_update: from, next_update: Some(until) }.signed(key);
        let mut pieces = signed_pieces(from, until, &signer_key, &pem(&[&signer, &root]));
        pieces.push(Piece { path: pck_crl_path(), body: list(&ca_name, &ca_key), issuer_chain: Vec::new() });
        pieces.push(Piece { path: ROOT_CRL_PATH.into(), body: list(&root_name, &root_key), issuer_chain: Vec::new() });

        let chain: [&Certificate; 3] = [&pck, &ca, &root];
        Self {
            identity: Identity::new(pck_key, Key::new(), pem(&chain)),
            root: pem(&[&root]),
            pieces,
            authorities: [("root.key", root_key), ("pck-ca.key", ca_key), ("tcb-signing.key", signer_key)],
        }
    }

    /// Writes it all into `dir`, which is made if need be.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let collateral = dir.join(COLLATERAL_DIR);
        std::fs::create_dir_all(&collateral).map_err(|source| IdentityError::Io {
            action: "cannot create",
            path: collateral.clone(),
            source,
        })?;
        let Identity { pck_key, attestation_key, chain, .. } = &self.identity;
        let keys = self.authorities.iter().map(|(name, key)| (*name, key));
        for (name, key) in keys.chain([(PCK_KEY, pck_key), (ATTESTATION_KEY, attestation_key)]) {
            write(&dir.join(name), key.to_pem().as_bytes(), 0o600)?;
        }
        write(&dir.join(CHAIN_FILE), chain, 0o644)?;
        write(&dir.join(ROOT_FILE), &self.root, 0o644)?;
        for piece in &self.pieces {
            let path = collateral.join(piece.file_name());
            if !piece.issuer_chain.is_empty() {
                let mut name = path.clone().into_os_string();
                name.push(".issuer-chain.pem");
                write(Path::new(&name), &piece.issuer_chain, 0o644)?;
            }
            write(&path, &piece.body, 0o644)?;
        }
        let description = Description { fmspc: PLATFORM.fmspc };
        let mut json = serde_json::to_vec_pretty(&description).expect("a struct of text always serialises");
        json.push(b'\n');
        write(&dir.join(PLATFORM_FILE), &json, 0o644)
    }
}

/// TCB info and QE identity.
fn signed_pieces(from: u64, until: u64, signer: &Key, issuer_chain: &[u8]) -> Vec<Piece> {
    let text = |seconds| {
        let at = DateTime::from_unix_duration(std::time::Duration::from_secs(seconds)).expect("before the year 10000");
        at.to_string()
    };
    let (issued, next_update) = (text(from), text(until));
    // One level, which the machine is on: a simulation has no security that could be out of date.
    let up_to_date = |isvsvn: u16| json!([{"tcb": {"isvsvn": isvsvn}, "tcbDate": issued, "tcbStatus": "UpToDate"}]);
    let levels = json!([level(&PLATFORM.components, PLATFORM.pce_svn, &[], "UpToDate", &[])]);
    let info = tcb_info(&PLATFORM.fmspc, &issued, &next_update, &levels, &up_to_date(0));
    let identity = qe_identity(&enclave_signer(), &issued, &next_update, &up_to_date(1));
    let piece = |path: String, name, body| Piece { path, body: signed_json(name, body, signer), issuer_chain: issuer_chain.to_vec() };
    vec![piece(tcb_info_path(&PLATFORM.fmspc), "tcbInfo", &info), piece(QE_IDENTITY_PATH.into(), "enclaveIdentity", &identity)]
}

/// Makes a simulated machine in `dir` unless there is one already. The caller keeps others out of the directory.
///
/// # Errors
/// When files cannot be read or written, or are not such a machine's.
pub(crate) fn init_locked(dir: &Path, now: u64) -> Result<InitOutcome, IdentityError> {
    match load(dir) {
        Ok(_) => Ok(InitOutcome::AlreadyThere),
        Err(IdentityError::Absent(_)) => {
            Machine::generate(now).save(dir)?;
            Ok(InitOutcome::Made)
        }
        Err(error) => Err(error),
    }
}

/// Reads what [`crate::identity::init`] left in `dir`.
///
/// # Errors
/// When it is not there, or not complete.
pub fn load(dir: &Path) -> Result<Identity, IdentityError> {
    let path = dir.join(PLATFORM_FILE);
    let json = match read(&path) {
        Err(IdentityError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(IdentityError::Absent(dir.into()));
        }
        other => other?,
    };
    let malformed = |path: &Path, expected| IdentityError::Malformed { path: path.into(), expected };
    let description: Description = serde_json::from_slice(&json).map_err(|_| malformed(&path, "a description of a TDX platform"))?;
    if description.fmspc != PLATFORM.fmspc {
        return Err(malformed(&path, "the platform that this version simulates"));
    }
    let key = |name: &str| {
        let path = dir.join(name);
        Key::from_pem(&read(&path)?).ok_or_else(|| malformed(&path, "a P-256 private key in PKCS#8 PEM"))
    };
    Ok(Identity::new(key(PCK_KEY)?, key(ATTESTATION_KEY)?, read(&dir.join(CHAIN_FILE))?))
}
