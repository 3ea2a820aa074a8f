//! Encryption at rest: AES-256-GCM (NIST SP 800-38D) under a key of a file, of the environment, or wrapped by one in an HSM ([`pkcs11`]).
//!
//! Protects a copy of the database without the key. Not a defence against whoever can read the whole data directory.
//!
//! **Invariant:** the place a value is stored at is authenticated with it, so rows cannot be exchanged.

pub mod pkcs11;

use crate::config::{KeySource, Pkcs11};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk};
use ring::rand::{SecureRandom, SystemRandom};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const KEY_LEN: usize = 32;
/// Name of a derived key, bytes: random ones never meet.
const NAME_LEN: usize = 32;

/// Why sealing or opening failed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file could not be read or made.
    #[error("cannot use key file {}", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The key file is not one.
    #[error("{} is not a key file of {KEY_LEN} bytes; without the right one the stored secrets cannot be read", .0.display())]
    KeyLength(PathBuf),
    /// Others than its owner may read the key file.
    #[error("{} may be read by others than its owner: chmod 600 it", .0.display())]
    KeyMode(PathBuf),
    /// A change of the key was cut off.
    #[error("{} is there: a change of the store's key was cut off; finish it by --rotate-store-key", .0.display())]
    Interrupted(PathBuf),
    /// A key in an HSM cannot be used.
    #[error(transparent)]
    Hsm(#[from] Box<pkcs11::HsmError>),
    /// Nothing to wrap a key with.
    #[error("`[store.pkcs11]` is not configured: there is no key to wrap another with")]
    NoHsm,
    /// Nothing to wrap.
    #[error("there is no key file {}", .0.display())]
    NoKeyFile(PathBuf),
    /// The environment variable is not there.
    #[error("the environment variable {0}, which `store.key_env` names, is not set")]
    NoVariable(String),
    /// The environment variable is not a key.
    #[error("the environment variable {0} is not a key: expected the base64 of {KEY_LEN} bytes")]
    Variable(String),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// Authentication failed: other key, other place, or changed bytes.
    #[error("a stored value does not open: it was changed, moved, or sealed with another key")]
    Open,
}

/// The key that seals stored values.
pub struct Sealer {
    key: LessSafeKey,
    /// Makes keys for one value each.
    prk: Prk,
    random: SystemRandom,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

/// Where the next key is while the one in `path` is changed.
pub fn new_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Looks at what [`Sealer::load`] would need that is not the broker's own. Changes nothing.
///
/// # Errors
/// When the HSM's key cannot be used.
pub fn check(source: &KeySource) -> Result<(), SealError> {
    match source {
        KeySource::Pkcs11 { hsm, wrapped } => pkcs11::check(hsm, wrapped),
        KeySource::File(_) | KeySource::Environment(_) => Ok(()),
    }
}

/// Whether there is a key. A file is made where there is none.
pub fn is_there(source: &KeySource) -> bool {
    match source {
        KeySource::File(path) | KeySource::Pkcs11 { wrapped: path, .. } => path.exists(),
        KeySource::Environment(name) => std::env::var_os(name).is_some(),
    }
}

impl Sealer {
    /// Reads the key from where it is.
    pub fn load(source: &KeySource) -> Result<Self, SealError> {
        match source {
            KeySource::File(path) | KeySource::Pkcs11 { wrapped: path, .. } if new_file(path).exists() => {
                Err(SealError::Interrupted(new_file(path)))
            }
            KeySource::File(path) => Self::from_file(path),
            KeySource::Pkcs11 { hsm, wrapped } => Self::from_wrapped(hsm, wrapped),
            KeySource::Environment(name) => {
                let text = std::env::var_os(name).ok_or_else(|| SealError::NoVariable(name.clone()))?;
                Self::from_base64(&Zeroizing::new(text.into_encoded_bytes())).ok_or_else(|| SealError::Variable(name.clone()))
            }
        }
    }

    fn from_base64(text: &[u8]) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).ok()?);
        Self::new(&Zeroizing::new(<[u8; KEY_LEN]>::try_from(bytes.as_slice()).ok()?)).ok()
    }

    /// Reads the key file, or makes it if it does not exist.
    pub fn from_file(path: &Path) -> Result<Self, SealError> {
        if let Some(key) = read_key(path)? {
            return Self::new(&key);
        }
        let mut key = Zeroizing::new([0u8; KEY_LEN]);
        SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| SealError::Random)?;
        write_new_private(path, key.as_slice()).map_err(|source| SealError::KeyFile { path: path.into(), source })?;
        Self::new(&key)
    }

    /// Has the HSM unwrap the key in the file, or wrap a new one for it if it does not exist.
    pub fn from_wrapped(hsm: &Pkcs11, path: &Path) -> Result<Self, SealError> {
        Self::new(&*pkcs11::load(hsm, path)?)
    }

    fn new(key: &[u8; KEY_LEN]) -> Result<Self, SealError> {
        let prk = Prk::new_less_safe(HKDF_SHA256, key);
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Random)?;
        Ok(Self { key: LessSafeKey::new(key), prk, random: SystemRandom::new() })
    }

    /// Encrypts `value` for `place`: nonce and ciphertext.
    pub fn seal(&self, place: &str, value: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0u8; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError::Random)?;
        let mut body = value.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place.as_bytes()), &mut body)
            .map_err(|_| SealError::Random)?;
        Ok([nonce.as_slice(), &body].concat())
    }

    /// As [`Sealer::seal`], for values that come by the thousand a second: a random nonce is good for 2^32 of them under one key (SP 800-38D §8.3),
    /// which some weeks of sessions would use up. Each gets a key of its own (HKDF, RFC 5869, with a random name).
    pub fn seal_transient(&self, place: &str, value: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut name = [0u8; NAME_LEN];
        self.random.fill(&mut name).map_err(|_| SealError::Random)?;
        Ok([name.as_slice(), &self.derived(&name)?.seal(place, value)?].concat())
    }

    /// Decrypts what [`Sealer::seal_transient`] made for the same place.
    pub fn open_transient(&self, place: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (name, sealed) = sealed.split_first_chunk::<NAME_LEN>().ok_or(SealError::Open)?;
        self.derived(name)?.open(place, sealed)
    }

    fn derived(&self, name: &[u8; NAME_LEN]) -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0u8; KEY_LEN]);
        let info = [b"kata-cc-kbs transient".as_slice(), name];
        let expanded = self.prk.expand(&info, HKDF_SHA256).and_then(|okm| okm.fill(key.as_mut_slice()));
        expanded.map_err(|_| SealError::Random)?;
        Self::new(&key)
    }

    /// Decrypts what [`Sealer::seal`] made for the same place.
    pub fn open(&self, place: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Open)?;
        let mut body = Zeroizing::new(body.to_vec());
        let len = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(place.as_bytes()), &mut body)
            .map_err(|_| SealError::Open)?
            .len();
        body.truncate(len);
        Ok(body)
    }
}

/// The key in a key file; `None` where there is no file.
fn read_key(path: &Path) -> Result<Option<Zeroizing<[u8; KEY_LEN]>>, SealError> {
    let fail = |source| SealError::KeyFile { path: path.into(), source };
    let mut file = match OpenOptions::new().read(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    if file.metadata().map_err(fail)?.permissions().mode() & 0o077 != 0 {
        return Err(SealError::KeyMode(path.into()));
    }
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    let mut rest = [0u8; 1];
    file.read_exact(key.as_mut_slice()).map_err(|_| SealError::KeyLength(path.into()))?;
    if file.read(&mut rest).map_err(fail)? != 0 {
        return Err(SealError::KeyLength(path.into()));
    }
    Ok(Some(key))
}

/// Creates a file that only its owner may read. Fails if it exists.
pub fn write_new_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_what_was_sealed_for_the_place() {
        let sealer = Sealer::new(&[1; 32]).unwrap();
        let sealed = sealer.seal("resource:a/b/c", b"secret").unwrap();
        assert_eq!(sealer.open("resource:a/b/c", &sealed).unwrap().as_slice(), b"secret");
        assert!(matches!(sealer.open("resource:a/b/d", &sealed), Err(SealError::Open)));
        assert!(matches!(Sealer::new(&[2; 32]).unwrap().open("resource:a/b/c", &sealed), Err(SealError::Open)));
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(sealer.open("resource:a/b/c", &changed).is_err(), "byte {i}");
        }
        assert!(sealer.open("resource:a/b/c", &sealed[..5]).is_err());
    }

    #[test]
    fn transient_values_open_at_their_place_alone_and_are_no_others() {
        let sealer = Sealer::new(&[1; 32]).unwrap();
        let sealed = sealer.seal_transient("waiting:a", b"session").unwrap();
        assert_eq!(sealer.open_transient("waiting:a", &sealed).unwrap().as_slice(), b"session");
        assert!(sealer.open("waiting:a", &sealed).is_err() && sealer.open("waiting:a", &sealed[NAME_LEN..]).is_err());
        assert!(matches!(sealer.open_transient("waiting:b", &sealed), Err(SealError::Open)));
        assert!(matches!(Sealer::new(&[2; 32]).unwrap().open_transient("waiting:a", &sealed), Err(SealError::Open)));
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(sealer.open_transient("waiting:a", &changed).is_err(), "byte {i}");
        }
    }

    #[test]
    fn same_value_never_seals_the_same_twice() {
        let sealer = Sealer::new(&[1; 32]).unwrap();
        assert_ne!(sealer.seal("p", b"secret").unwrap(), sealer.seal("p", b"secret").unwrap());
    }

    #[test]
    fn key_file_is_private_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let sealed = Sealer::from_file(&path).unwrap().seal("p", b"v").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Sealer::from_file(&path).unwrap().open("p", &sealed).unwrap().as_slice(), b"v");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Sealer::from_file(&path), Err(SealError::KeyMode(_))));
    }

    #[test]
    fn keys_of_the_environment_are_32_bytes() {
        let sealed = Sealer::new(&[1; 32]).unwrap().seal("p", b"v").unwrap();
        let key = STANDARD.encode([1; 32]);
        assert_eq!(Sealer::from_base64(format!("{key}\n").as_bytes()).unwrap().open("p", &sealed).unwrap().as_slice(), b"v");
        for bad in [String::new(), STANDARD.encode([1; 31]), STANDARD.encode([1; 33]), "1".repeat(64)] {
            assert!(Sealer::from_base64(bad.as_bytes()).is_none(), "{bad}");
        }
        let missing = KeySource::Environment("KATA_CC_NO_SUCH_VARIABLE".into());
        assert!(matches!(Sealer::load(&missing), Err(SealError::NoVariable(_))));
    }

    #[test]
    fn refuses_a_key_file_of_another_length() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 31, 33] {
            let path = dir.path().join(format!("key{len}"));
            write_new_private(&path, &vec![0; len]).unwrap();
            assert!(matches!(Sealer::from_file(&path), Err(SealError::KeyLength(_))), "{len}");
        }
    }
}
