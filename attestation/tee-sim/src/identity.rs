//! The simulated SNP machine's identity: three keys, three certificates and the chip's values, and the directory they live in. A TDX machine
//! ([`crate::intel`]) is in a directory of its own below.
//!
//! Not a place for real keys: whoever can read the directory can make any report under this root, which is the point of a simulation.
//!
//! **Invariant:** `platform.json` is written last, so a directory that has it is complete.

use crate::cert::{self, CertError, ChipClaims};
use crate::intel;
use nix::fcntl::{Flock, FlockArg};
use p384::pkcs8::{DecodePrivateKey, EncodePrivateKey, LineEnding};
use rand_core::{OsRng, RngCore};
use rsa::RsaPrivateKey;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// RSA modulus length of AMD's ARK and ASK.
pub const RSA_BITS: usize = 4096;
/// How long before "now" the certificates begin: clocks of broker and workstation may differ.
pub(crate) const BACKDATE_SECONDS: u64 = 24 * 3600;
/// How long they are valid.
pub(crate) const LIFETIME_SECONDS: u64 = 20 * 365 * 24 * 3600;
/// A key or certificate file larger than this is not ours.
const MAX_FILE: u64 = 64 * 1024;

const PLATFORM_FILE: &str = "platform.json";
/// Where in the directory the simulated TDX machine is.
pub const TDX_DIR: &str = "tdx";

/// Why an identity could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory holds no complete identity.
    #[error("{} has no simulated identity (no {PLATFORM_FILE} in it): run `kata-cc-tee-sim init` first", .0.display())]
    Absent(PathBuf),
    /// A file does not hold what it should.
    #[error("{} is not {expected}: delete the directory and run `init` again", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What it should have held.
        expected: &'static str,
    },
    /// Key generation failed.
    #[error("cannot generate an RSA key of {bits} bits: {reason}")]
    Generate {
        /// Modulus length asked for.
        bits: usize,
        /// The library's words.
        reason: String,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// The values of the simulated chip, as its certificate and its reports state them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// Product and stepping as in the chip key's certificate.
    pub product: String,
    /// Chip id, 64 bytes in hex.
    #[serde(with = "hex::serde")]
    pub chip_id: [u8; 64],
    /// Security patch level of the boot loader.
    pub bootloader: u8,
    /// Security patch level of the PSP operating system.
    pub tee: u8,
    /// Security patch level of the SNP firmware.
    pub snp: u8,
    /// Microcode patch level.
    pub microcode: u8,
}

/// Everything the simulated security processor knows about itself.
pub struct Identity {
    /// Chip values.
    pub platform: Platform,
    /// Chip endorsement key: signs reports.
    pub vcek_key: p384::ecdsa::SigningKey,
    /// DER of the chip key's certificate.
    pub vcek: Vec<u8>,
    /// DER of the intermediate's certificate.
    pub ask: Vec<u8>,
    /// DER of the root's certificate.
    pub ark: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("platform", &self.platform).finish_non_exhaustive()
    }
}

/// A freshly made hierarchy, with the private keys that only [`init`] stores.
pub struct Hierarchy {
    /// What `serve` needs.
    pub identity: Identity,
    ark_key: RsaPrivateKey,
    ask_key: RsaPrivateKey,
}

impl Hierarchy {
    /// Makes keys and certificates. `rsa_bits` is [`RSA_BITS`] outside tests; `now` is Unix time.
    pub fn generate(rsa_bits: usize, now: u64) -> Result<Self, IdentityError> {
        let rsa =
            || RsaPrivateKey::new(&mut OsRng, rsa_bits).map_err(|e| IdentityError::Generate { bits: rsa_bits, reason: e.to_string() });
        // Two independent searches for primes: the slow part, so side by side.
        let (ark_key, ask_key) = std::thread::scope(|s| {
            let other = s.spawn(rsa);
            let ark = rsa();
            let ask = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (ark, ask)
        });
        let (ark_key, ask_key) = (ark_key?, ask_key?);
        let vcek_key = p384::ecdsa::SigningKey::random(&mut OsRng);
        let mut chip_id = [0u8; 64];
        OsRng.fill_bytes(&mut chip_id);
        let platform = Platform { product: "Milan-B1".into(), chip_id, bootloader: 4, tee: 0, snp: 24, microcode: 219 };
        let mut name = [0u8; 4];
        OsRng.fill_bytes(&mut name);
        let common = cert::Hierarchy {
            name: &hex::encode(name),
            not_before: now.saturating_sub(BACKDATE_SECONDS),
            not_after: now.saturating_add(LIFETIME_SECONDS),
        };
        let claims = ChipClaims {
            product: &platform.product,
            bootloader: platform.bootloader,
            tee: platform.tee,
            snp: platform.snp,
            microcode: platform.microcode,
            hwid: &platform.chip_id,
        };
        let ark = cert::root(&ark_key, common)?;
        let ask = cert::intermediate(&ark_key, &ask_key, common)?;
        let vcek = cert::chip(&ask_key, &p384::PublicKey::from(vcek_key.verifying_key()), &claims, common)?;
        Ok(Self { identity: Identity { platform, vcek_key, vcek, ask, ark }, ark_key, ask_key })
    }

    fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let id = &self.identity;
        let bad_key = |name: &str| IdentityError::Malformed { path: dir.join(name), expected: "an encodable key" };
        let ark = self.ark_key.to_pkcs8_pem(LineEnding::LF).map_err(|_| bad_key("ark.key"))?;
        let ask = self.ask_key.to_pkcs8_pem(LineEnding::LF).map_err(|_| bad_key("ask.key"))?;
        let vcek = p384::SecretKey::from(id.vcek_key.clone()).to_pkcs8_pem(LineEnding::LF).map_err(|_| bad_key("vcek.key"))?;
        write(&dir.join("ark.key"), ark.as_bytes(), 0o600)?;
        write(&dir.join("ask.key"), ask.as_bytes(), 0o600)?;
        write(&dir.join("vcek.key"), vcek.as_bytes(), 0o600)?;
        for (name, der) in [("ark", &id.ark), ("ask", &id.ask), ("vcek", &id.vcek)] {
            write(&dir.join(format!("{name}.der")), der, 0o644)?;
            write(&dir.join(format!("{name}.pem")), pem(der)?.as_bytes(), 0o644)?;
        }
        let mut json = serde_json::to_vec_pretty(&id.platform).expect("a struct of strings and numbers always serialises");
        json.push(b'\n');
        write(&dir.join(PLATFORM_FILE), &json, 0o644)
    }
}

/// What [`init`] found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitOutcome {
    /// A new identity was made.
    Made,
    /// The directory already had one; nothing was changed.
    AlreadyThere,
}

/// Makes simulated machines in `dir`, one of each kind, unless they are there already. Safe to run several times and side by side.
pub fn init(dir: &Path, rsa_bits: usize, now: u64) -> Result<InitOutcome, IdentityError> {
    std::fs::create_dir_all(dir).map_err(|source| IdentityError::Io { action: "cannot create", path: dir.into(), source })?;
    let lock_path = dir.join(".lock");
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(|source| IdentityError::Io {
            action: "cannot open",
            path: lock_path.clone(),
            source,
        })?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| IdentityError::Io {
        action: "cannot lock",
        path: lock_path,
        source: errno.into(),
    })?;
    let snp = match load(dir) {
        Ok(_) => InitOutcome::AlreadyThere,
        Err(IdentityError::Absent(_)) => {
            Hierarchy::generate(rsa_bits, now)?.save(dir)?;
            InitOutcome::Made
        }
        Err(e) => return Err(e),
    };
    let tdx = intel::init_locked(&dir.join(TDX_DIR), now)?;
    Ok(if tdx == InitOutcome::Made { tdx } else { snp })
}

/// Reads the identity that [`init`] left in `dir`.
pub fn load(dir: &Path) -> Result<Identity, IdentityError> {
    let platform_path = dir.join(PLATFORM_FILE);
    let json = match read(&platform_path) {
        Err(IdentityError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(IdentityError::Absent(dir.into()));
        }
        other => other?,
    };
    let malformed = |name: &str, expected| IdentityError::Malformed { path: dir.join(name), expected };
    let platform = serde_json::from_slice(&json).map_err(|_| malformed(PLATFORM_FILE, "a platform description"))?;
    let key = String::from_utf8(read(&dir.join("vcek.key"))?).map_err(|_| malformed("vcek.key", "PEM"))?;
    let key = p384::SecretKey::from_pkcs8_pem(&key).map_err(|_| malformed("vcek.key", "a P-384 private key in PKCS#8 PEM"))?;
    Ok(Identity {
        platform,
        vcek_key: key.into(),
        vcek: read(&dir.join("vcek.der"))?,
        ask: read(&dir.join("ask.der"))?,
        ark: read(&dir.join("ark.der"))?,
    })
}

/// DER certificate to PEM.
pub fn pem(der: &[u8]) -> Result<String, IdentityError> {
    der::pem::encode_string("CERTIFICATE", LineEnding::LF, der)
        .map_err(|_| IdentityError::Malformed { path: PathBuf::from("certificate"), expected: "encodable as PEM" })
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    use std::io::Read;
    let fail = |source| IdentityError::Io { action: "cannot read", path: path.into(), source };
    let mut out = Vec::new();
    File::open(path).map_err(fail)?.take(MAX_FILE + 1).read_to_end(&mut out).map_err(fail)?;
    if out.len() as u64 > MAX_FILE {
        return Err(IdentityError::Malformed { path: path.into(), expected: "smaller than 64 KiB" });
    }
    Ok(out)
}

/// Writes through a temporary name, so that nobody reads half a file, with the mode set before the first byte is in it.
pub(crate) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let fail = |source| IdentityError::Io { action: "cannot write", path: path.into(), source };
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let _ = std::fs::remove_file(&staged);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged).map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    std::fs::rename(&staged, path).map_err(fail)
}
