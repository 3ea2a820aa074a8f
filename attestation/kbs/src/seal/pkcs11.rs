//! The store's key, wrapped by a key that does not leave an HSM (PKCS#11 v2.40 and later).
//!
//! ```text
//! store.key.wrapped ──> HSM: CKM_AES_GCM ──> the store's key, in this process's memory until it ends
//! ```
//! AES-GCM as an encryption, and not C_UnwrapKey, because the store's key is used outside of the HSM: in HSMs that are run by FIPS 140 what
//! is unwrapped stays there, whereas all that have AES-GCM decrypt.
//!
//! **Invariant:** the HSM is asked once, at a start; the library is then finalized and nobody is logged in. **Invariant:** no PIN is in an
//! error or a log.

use super::{KEY_LEN, SealError, read_key, write_new_private};
use crate::config::{KeySource, Pkcs11 as Settings};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest PIN; CK_TOKEN_INFO of the HSMs known here says less.
const MAX_PIN: u64 = 255;
/// A wrapped key has some 200 bytes.
const MAX_WRAPPED: u64 = 4096;
const IV_LEN: usize = 12;
const TAG_BITS: u64 = 128;
/// Authenticated with the key, so that nothing else which the same key of the HSM encrypts passes for it.
const PURPOSE: &[u8] = b"kata-cc-kbs store key, version 1";

/// Why the HSM's key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("PKCS#11 module {}, token {token:?}, key {key:?}", module.display())]
pub struct HsmError {
    module: PathBuf,
    token: String,
    key: String,
    /// What is wrong.
    #[source]
    pub problem: HsmProblem,
}

/// What is wrong with an HSM or what belongs to it.
#[derive(Debug, thiserror::Error)]
pub enum HsmProblem {
    /// The PIN's file could not be read.
    #[error("cannot read the PIN from {}", .0.display())]
    PinFile(PathBuf, #[source] std::io::Error),
    /// Others than its owner may read the PIN.
    #[error("{} has the PIN and may be read by others than its owner: chmod 600 it", .0.display())]
    PinMode(PathBuf),
    /// There is no PIN in the file.
    #[error("{} is no PIN: expected one line of 1 to {MAX_PIN} bytes", .0.display())]
    PinForm(PathBuf),
    /// Not a PKCS#11 library.
    #[error("the module cannot be loaded: expected the PKCS#11 library of the HSM's maker, such as /usr/lib/softhsm/libsofthsm2.so")]
    Load(#[source] Error),
    /// The library does not start, or does not say what there is.
    #[error("the module does not answer: are its own settings right (SoftHSM: SOFTHSM2_CONF), and may the broker use it?")]
    Module(#[source] Error),
    /// No token of the label.
    #[error("there is no such token; found {found:?}. Name one in `store.pkcs11.token`, or make it (SoftHSM: {make})")]
    NoToken {
        /// Labels of those that are there.
        found: Vec<String>,
        /// How to make it.
        make: String,
    },
    /// Several of the label, and nobody says which.
    #[error("there are {0} tokens of this label: give them labels of their own")]
    Tokens(usize),
    /// Whatever the PIN is, it must not be tried.
    #[error("{0}")]
    Pin(&'static str),
    /// The PIN is wrong.
    #[error("the PIN in {} is not the one of the token's user", .0.display())]
    WrongPin(PathBuf),
    /// Some other reason not to be let in.
    #[error("the token does not let its user in")]
    Login(#[source] Error),
    /// No key of the label.
    #[error("there is no such AES key: make it by {0}")]
    NoKey(String),
    /// Several of the label.
    #[error("there are {0} AES keys of this label: give them labels of their own")]
    Keys(usize),
    /// What the key is could not be read.
    #[error("the HSM does not say what the key is")]
    Attributes(#[source] Error),
    /// A key that the HSM gives away.
    #[error("the key may leave the HSM (CKA_SENSITIVE {sensitive}, CKA_EXTRACTABLE {extractable}): make one with true and false by {make}")]
    Extractable {
        /// Its value is not shown.
        sensitive: bool,
        /// It may be wrapped by another.
        extractable: bool,
        /// How to make one that may not.
        make: String,
    },
    /// A key that is weaker than what it wraps.
    #[error("the key has {0} bytes, expected {KEY_LEN} (AES-256)")]
    Length(usize),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// The HSM did not encrypt.
    #[error("the HSM does not encrypt with the key by CKM_AES_GCM")]
    Wrap(#[source] Error),
    /// What the HSM encrypted does not come back.
    #[error("the HSM does not give back what it has encrypted by CKM_AES_GCM with a nonce of {IV_LEN} bytes: it cannot be used")]
    NotItsOwn,
    /// The file with the wrapped key could not be read or made.
    #[error("cannot use the wrapped key {}", .0.display())]
    File(PathBuf, #[source] std::io::Error),
    /// The file with the wrapped key is something else.
    #[error("{} is no wrapped key: put back the one that belongs to the store", .0.display())]
    Form(PathBuf),
    /// It does not open.
    #[error("the wrapped key {} does not open: it was changed, or another key has wrapped it. Put back the store's own", .0.display())]
    Unwrap(PathBuf, #[source] Error),
}

/// The file. What is in it is as public as the key in the HSM is safe.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapped {
    version: u32,
    mechanism: String,
    iv: String,
    data_key: String,
}

const VERSION: u32 = 1;
const MECHANISM: &str = "CKM_AES_GCM";

/// Ends the library when it is no longer needed. The HSM's sessions must have ended.
struct Library(Pkcs11);

impl Drop for Library {
    fn drop(&mut self) {
        if let Err(error) = self.0.clone().finalize() {
            tracing::warn!(%error, "the PKCS#11 module does not end");
        }
    }
}

/// A key in an HSM, found and looked at.
struct HsmKey {
    // Dropped in this order.
    session: Session,
    key: ObjectHandle,
    _library: Library,
}

impl HsmKey {
    fn open(hsm: &Settings) -> Result<Self, HsmProblem> {
        let pin = AuthPin::from(read_pin(&hsm.pin_file)?.as_str());
        let library = Pkcs11::new(&hsm.module).map_err(HsmProblem::Load)?;
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).map_err(HsmProblem::Module)?;
        let library = Library(library);
        let slot = find_token(&library.0, hsm)?;
        let token = library.0.get_token_info(slot).map_err(HsmProblem::Module)?;
        may_try(token.user_pin_locked(), token.user_pin_final_try())?;
        let session = library.0.open_ro_session(slot).map_err(HsmProblem::Module)?;
        session.login(UserType::User, Some(&pin)).map_err(|error| match error {
            Error::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid, _) => {
                HsmProblem::WrongPin(hsm.pin_file.clone())
            }
            other => HsmProblem::Login(other),
        })?;
        let key = find_key(&session, hsm)?;
        Ok(Self { session, key, _library: library })
    }

    fn wrap(&self, key: &[u8; KEY_LEN]) -> Result<Wrapped, HsmProblem> {
        let mut iv = [0; IV_LEN];
        SystemRandom::new().fill(&mut iv).map_err(|_| HsmProblem::Random)?;
        let params = GcmParams::new(&mut iv, PURPOSE, TAG_BITS.into()).map_err(HsmProblem::Wrap);
        let data_key = params.and_then(|params| {
            let sealed = self.session.encrypt(&Mechanism::AesGcm(params), self.key, key);
            sealed.map_err(HsmProblem::Wrap)
        })?;
        // Some HSMs choose the nonce themselves and put it where ours was; those that put it elsewhere would lose the key.
        if !self.decrypt(&mut iv.clone(), &data_key).is_ok_and(|again| again.as_slice() == key) {
            return Err(HsmProblem::NotItsOwn);
        }
        Ok(Wrapped { version: VERSION, mechanism: MECHANISM.into(), iv: STANDARD.encode(iv), data_key: STANDARD.encode(data_key) })
    }

    fn decrypt(&self, iv: &mut [u8], data_key: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let params = GcmParams::new(iv, PURPOSE, TAG_BITS.into())?;
        self.session.decrypt(&Mechanism::AesGcm(params), self.key, data_key).map(Zeroizing::new)
    }

    fn unwrap(&self, path: &Path, wrapped: &Wrapped) -> Result<Zeroizing<[u8; KEY_LEN]>, HsmProblem> {
        let form = || HsmProblem::Form(path.into());
        if wrapped.version != VERSION || wrapped.mechanism != MECHANISM {
            return Err(form());
        }
        let mut iv = STANDARD.decode(&wrapped.iv).ok().filter(|iv| iv.len() == IV_LEN).ok_or_else(form)?;
        let data_key = STANDARD.decode(&wrapped.data_key).map_err(|_| form())?;
        let key = self.decrypt(&mut iv, &data_key).map_err(|error| HsmProblem::Unwrap(path.into(), error))?;
        Ok(Zeroizing::new(<[u8; KEY_LEN]>::try_from(key.as_slice()).map_err(|_| form())?))
    }
}

/// Whether a PIN may be tried: a broker that is started again and again with a wrong one would lock the token for everybody.
fn may_try(locked: bool, final_try: bool) -> Result<(), HsmProblem> {
    match (locked, final_try) {
        (true, _) => Err(HsmProblem::Pin("the PIN of the token's user is locked: the security officer unlocks it")),
        (_, true) => {
            Err(HsmProblem::Pin("one more wrong PIN would lock the token, so none is tried: log in once by hand (pkcs11-tool --login)"))
        }
        _ => Ok(()),
    }
}

fn find_token(library: &Pkcs11, hsm: &Settings) -> Result<Slot, HsmProblem> {
    let (mut slots, mut found) = (Vec::new(), Vec::new());
    for slot in library.get_slots_with_initialized_token().map_err(HsmProblem::Module)? {
        // A slot whose token says nothing of itself may be none of ours.
        let Ok(token) = library.get_token_info(slot) else { continue };
        if token.label() == hsm.token {
            slots.push(slot);
        }
        found.push(token.label().to_owned());
    }
    match slots.as_slice() {
        [slot] => Ok(*slot),
        [] => Err(HsmProblem::NoToken { found, make: format!("softhsm2-util --init-token --free --label {:?}", hsm.token) }),
        several => Err(HsmProblem::Tokens(several.len())),
    }
}

fn find_key(session: &Session, hsm: &Settings) -> Result<ObjectHandle, HsmProblem> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(true),
        Attribute::Label(hsm.key.clone().into_bytes()),
    ];
    let keys = session.find_objects(&template).map_err(HsmProblem::Attributes)?;
    let key = match keys.as_slice() {
        [key] => *key,
        [] => return Err(HsmProblem::NoKey(make_key(hsm))),
        several => return Err(HsmProblem::Keys(several.len())),
    };
    let attributes = session
        .get_attributes(key, &[AttributeType::Sensitive, AttributeType::Extractable, AttributeType::ValueLen])
        .map_err(HsmProblem::Attributes)?;
    // What the HSM does not say of the key counts as the worse.
    let (mut sensitive, mut extractable, mut length) = (false, true, 0);
    for attribute in attributes {
        match attribute {
            Attribute::Sensitive(is) => sensitive = is,
            Attribute::Extractable(is) => extractable = is,
            Attribute::ValueLen(bytes) => length = usize::try_from(u64::from(bytes)).unwrap_or(0),
            _ => {}
        }
    }
    if !sensitive || extractable {
        return Err(HsmProblem::Extractable { sensitive, extractable, make: make_key(hsm) });
    }
    if length != KEY_LEN {
        return Err(HsmProblem::Length(length));
    }
    Ok(key)
}

/// How to make the key.
fn make_key(hsm: &Settings) -> String {
    let Settings { module, token, key, .. } = hsm;
    format!(
        "pkcs11-tool --module {} --token-label {token:?} --login --keygen --key-type AES:{KEY_LEN} --label {key:?} --sensitive",
        module.display()
    )
}

fn read_pin(path: &Path) -> Result<Zeroizing<String>, HsmProblem> {
    let fail = |source| HsmProblem::PinFile(path.into(), source);
    let file = std::fs::File::open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.permissions().mode() & 0o077 != 0 {
        return Err(HsmProblem::PinMode(path.into()));
    }
    // As large as may be, so that no piece of it stays behind where the text grew.
    let mut text = Zeroizing::new(String::with_capacity(MAX_PIN as usize + 3));
    file.take(MAX_PIN + 3).read_to_string(&mut text).map_err(fail)?;
    let pin = text.strip_suffix('\n').unwrap_or(&text);
    let pin = pin.strip_suffix('\r').unwrap_or(pin);
    if pin.is_empty() || pin.len() as u64 > MAX_PIN || pin.contains(char::is_control) {
        return Err(HsmProblem::PinForm(path.into()));
    }
    Ok(Zeroizing::new(pin.to_owned()))
}

/// The key in the file, or a new one that is wrapped and put there.
pub(super) fn load(hsm: &Settings, path: &Path) -> Result<Zeroizing<[u8; KEY_LEN]>, SealError> {
    named(hsm, || {
        let wrapped = read(path)?;
        let hsm_key = HsmKey::open(hsm)?;
        if let Some(wrapped) = wrapped {
            return hsm_key.unwrap(path, &wrapped);
        }
        let mut key = Zeroizing::new([0; KEY_LEN]);
        SystemRandom::new().fill(key.as_mut_slice()).map_err(|_| HsmProblem::Random)?;
        put(&hsm_key.wrap(&key)?, path)?;
        Ok(key)
    })
}

/// Looks for the HSM's key, and opens the wrapped one if there is one. Changes nothing.
pub(super) fn check(hsm: &Settings, path: &Path) -> Result<(), SealError> {
    named(hsm, || {
        let wrapped = read(path)?;
        let hsm_key = HsmKey::open(hsm)?;
        wrapped.map(|wrapped| hsm_key.unwrap(path, &wrapped)).transpose()?;
        Ok(())
    })
}

/// Wraps the key of a key file, for a store that had its key in one.
///
/// # Errors
/// When no HSM is configured, there is no key in the file, or there is a wrapped key already.
pub fn wrap_key_file(source: &KeySource, key_file: &Path) -> Result<PathBuf, SealError> {
    let KeySource::Pkcs11 { hsm, wrapped } = source else { return Err(SealError::NoHsm) };
    let key = read_key(key_file)?.ok_or_else(|| SealError::NoKeyFile(key_file.into()))?;
    named(hsm, || put(&HsmKey::open(hsm)?.wrap(&key)?, wrapped))?;
    Ok(wrapped.clone())
}

/// Says with an error where it was.
fn named<T>(hsm: &Settings, work: impl FnOnce() -> Result<T, HsmProblem>) -> Result<T, SealError> {
    work().map_err(|problem| {
        let Settings { module, token, key, .. } = hsm.clone();
        SealError::Hsm(Box::new(HsmError { module, token, key, problem }))
    })
}

fn read(path: &Path) -> Result<Option<Wrapped>, HsmProblem> {
    let fail = |source| HsmProblem::File(path.into(), source);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_WRAPPED).read_to_end(&mut bytes).map_err(fail)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|_| HsmProblem::Form(path.into()))
}

fn put(wrapped: &Wrapped, path: &Path) -> Result<(), HsmProblem> {
    let fail = |source| HsmProblem::File(path.into(), source);
    let mut text = serde_json::to_vec(wrapped).map_err(|e| fail(e.into()))?;
    text.push(b'\n');
    write_new_private(path, &text).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_a_line_that_only_its_owner_may_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            write_new_private(&path, text.as_bytes()).unwrap();
            path
        };
        for (name, text) in [("a", "1234"), ("b", "1234\n"), ("c", "1234\r\n")] {
            assert_eq!(read_pin(&file(name, text)).unwrap().as_str(), "1234", "{name}");
        }
        assert!(read_pin(&file("longest", &format!("{}\r\n", "1".repeat(255)))).is_ok());
        for (name, text) in [("empty", "\n".into()), ("lines", "1\n2\n".into()), ("long", "1".repeat(256)), ("longer", "1".repeat(600))] {
            assert!(matches!(read_pin(&file(name, &text)), Err(HsmProblem::PinForm(_))), "{name}");
        }
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(dir.path().join("a"), std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read_pin(&dir.path().join("a")), Err(HsmProblem::PinMode(_))), "{mode:o}");
        }
        assert!(matches!(read_pin(&dir.path().join("none")), Err(HsmProblem::PinFile(..))));
    }

    #[test]
    fn a_pin_is_not_tried_where_one_more_would_lock_the_token() {
        assert!(may_try(false, false).is_ok());
        assert!(matches!(may_try(false, true), Err(HsmProblem::Pin(why)) if why.contains("one more wrong PIN")));
        assert!(matches!(may_try(true, true), Err(HsmProblem::Pin(why)) if why.contains("is locked")));
    }
}
