//! The ID block of an SNP guest: which measurement its owner expects, signed (AMD 56860, section 8.17, SNP_LAUNCH_FINISH; tables of the ID block,
//! of the ID authentication information structure, and of keys and signatures in P-384).
//!
//! The processor's firmware finishes no launch whose measurement or guest policy is another, and puts names and digests of the keys into every
//! report. All that can be known of that before the launch is checked here, so that a class with a wrong file is refused by name and not by a
//! number of the firmware's. Nobody relies on these checks: the firmware makes its own.

mod sign;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA384, digest};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

pub use sign::{IdBlock, IdKey, SignError};

const BLOCK_SIZE: usize = 96;
const AUTH_SIZE: usize = 4096;
/// The block in the version of AMD's that there is.
const VERSION: u32 = 1;
/// ECDSA on P-384 with SHA-384, the one algorithm.
const ECDSA_P384: u32 = 1;
/// P-384 in a public key.
const CURVE_P384: u32 = 2;
/// Numbers of P-384 are 48 bytes in fields of 72, little-endian.
const NUMBER: usize = 48;
const FIELD: usize = 72;
const SIGNATURE_SIZE: usize = 512;
const KEY_SIZE: usize = 1028;
/// Where the parts of the authentication information are.
const ID_SIGNATURE: usize = 0x40;
const ID_KEY: usize = 0x240;
const AUTHOR_SIGNATURE: usize = 0x680;
const AUTHOR_KEY: usize = 0x880;
/// What lies between and behind them, and must be zero.
const RESERVED: [(usize, usize); 3] = [(0x8, ID_SIGNATURE), (ID_KEY + KEY_SIZE, AUTHOR_SIGNATURE), (AUTHOR_KEY + KEY_SIZE, AUTH_SIZE)];

/// Why an ID block cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdBlockError {
    /// Neither the structure nor its base64.
    #[error("{what}: expected {expected} bytes, or base64 of them, found {found} bytes of something else")]
    Size {
        /// Which structure.
        what: &'static str,
        /// Its size.
        expected: usize,
        /// How much was found.
        found: usize,
    },
    /// A field with a value that AMD does not define.
    #[error("{what}: expected {expected}, found {found}")]
    Field {
        /// The field, by AMD's name.
        what: &'static str,
        /// What it can be.
        expected: u32,
        /// What it is.
        found: u32,
    },
    /// Bytes that must be zero.
    #[error("ID authentication information: bytes from {0:#x} on are reserved and must be zero")]
    Reserved(usize),
    /// A signature that is not one.
    #[error("{signature}: not a signature of {key} over {over}")]
    Signature {
        /// Which, by AMD's name.
        signature: &'static str,
        /// By which key.
        key: &'static str,
        /// Over what.
        over: &'static str,
    },
    /// What a plan says of an ID block is not what is in it.
    #[error("the plan describes another ID block than it has")]
    Described,
}

/// Why the files of an ID block cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdBlockFileError {
    /// Not read.
    #[error("cannot read {key} {}", path.display())]
    Read {
        /// The class's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Read, and wrong.
    #[error("[snp] id_block {} and id_auth {} cannot be used", block.display(), auth.display())]
    Content {
        /// The ID block's file.
        block: PathBuf,
        /// The file of the authentication information.
        auth: PathBuf,
        /// What of it.
        #[source]
        source: IdBlockError,
    },
}

/// An ID block with its authentication information: each field one that the firmware knows, each signature right.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Described", into = "Described")]
pub struct SignedIdBlock {
    block: [u8; BLOCK_SIZE],
    auth: Vec<u8>,
}

impl SignedIdBlock {
    /// Checks both, each raw or in base64.
    ///
    /// # Errors
    ///
    /// Another size, version, algorithm or curve; reserved bytes that are not zero; a signature that its key did not make.
    pub fn parse(block: &[u8], auth: &[u8]) -> Result<Self, IdBlockError> {
        let block = raw("ID block", BLOCK_SIZE, block)?;
        let auth = raw("ID authentication information", AUTH_SIZE, auth)?;
        let mut bytes = [0; BLOCK_SIZE];
        bytes.copy_from_slice(&block);
        let signed = Self { block: bytes, auth };
        signed.check()?;
        Ok(signed)
    }

    /// Reads and checks the files that a class names.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or what [`Self::parse`] refuses.
    pub fn read(block: &Path, auth: &Path) -> Result<Self, IdBlockFileError> {
        let content = |key, path: &Path| {
            let mut bytes = Vec::new();
            // Base64 of the larger one, with line ends, is well below twice its size.
            let read = File::open(path).and_then(|file| file.take(2 * AUTH_SIZE as u64).read_to_end(&mut bytes));
            read.map_err(|source| IdBlockFileError::Read { key, path: path.to_owned(), source })?;
            Ok(bytes)
        };
        Self::parse(&content("[snp] id_block", block)?, &content("[snp] id_auth", auth)?).map_err(|source| IdBlockFileError::Content {
            block: block.to_owned(),
            auth: auth.to_owned(),
            source,
        })
    }

    fn check(&self) -> Result<(), IdBlockError> {
        let field = |what, expected, found| if expected == found { Ok(()) } else { Err(IdBlockError::Field { what, expected, found }) };
        field("VERSION of the ID block", VERSION, number(&self.block, 0x50))?;
        field("ID_KEY_ALGO", ECDSA_P384, number(&self.auth, 0))?;
        for (from, to) in RESERVED {
            zero(&self.auth, from, to)?;
        }
        self.check_signature(ID_SIGNATURE, ID_KEY, &self.block, ["ID_BLOCK_SIG", "ID_KEY", "the ID block"])?;
        if self.has_author() {
            field("AUTHOR_KEY_ALGO", ECDSA_P384, number(&self.auth, 4))?;
            self.check_signature(AUTHOR_SIGNATURE, AUTHOR_KEY, part(&self.auth, ID_KEY, KEY_SIZE), ["ID_KEY_SIG", "AUTHOR_KEY", "ID_KEY"])
        } else {
            zero(&self.auth, AUTHOR_SIGNATURE, AUTHOR_KEY + KEY_SIZE)
        }
    }

    fn check_signature(
        &self,
        signature: usize,
        key: usize,
        message: &[u8],
        [signature_name, key_name, over]: [&'static str; 3],
    ) -> Result<(), IdBlockError> {
        let curve = number(&self.auth, key);
        if curve != CURVE_P384 {
            return Err(IdBlockError::Field { what: "CURVE of a key", expected: CURVE_P384, found: curve });
        }
        zero(&self.auth, key + 4 + 2 * FIELD, key + KEY_SIZE)?;
        zero(&self.auth, signature + 2 * FIELD, signature + SIGNATURE_SIZE)?;
        // Uncompressed, as SEC 1 has it.
        let mut point = vec![4];
        let mut pair = Vec::new();
        for (to, from) in [(&mut point, key + 4), (&mut pair, signature)] {
            for field in [from, from + FIELD] {
                zero(&self.auth, field + NUMBER, field + FIELD)?;
                to.extend(part(&self.auth, field, NUMBER).iter().rev());
            }
        }
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, &pair).map_err(|_| IdBlockError::Signature {
            signature: signature_name,
            key: key_name,
            over,
        })
    }

    /// The measurement that the guest must have, LD.
    #[must_use]
    pub fn launch_digest(&self) -> &[u8] {
        part(&self.block, 0, 48)
    }

    /// The guest policy that the launch must have.
    #[must_use]
    pub fn policy(&self) -> u64 {
        u64::from(number(&self.block, 0x58)) | u64::from(number(&self.block, 0x5c)) << 32
    }

    /// Whether the owner's key is signed by an author's key in turn; the report has the digest of that then.
    #[must_use]
    pub fn has_author(&self) -> bool {
        number(&self.auth, 4) != 0
    }

    /// The ID block, 96 bytes.
    #[must_use]
    pub fn block(&self) -> &[u8] {
        &self.block
    }

    /// The ID authentication information, 4096 bytes.
    #[must_use]
    pub fn auth(&self) -> &[u8] {
        &self.auth
    }

    /// What QEMU's object is told.
    pub(crate) fn properties(&self) -> String {
        let author = if self.has_author() { "on" } else { "off" };
        format!("id-block={},id-auth={},author-key-enabled={author}", STANDARD.encode(self.block), STANDARD.encode(&self.auth))
    }
}

impl fmt::Debug for SignedIdBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedIdBlock({})", hex::encode(self.launch_digest()))
    }
}

/// An ID block as a plan shows it. The text fields say what is in the other two, by the names of a report.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Described {
    launch_digest: String,
    family_id: String,
    image_id: String,
    guest_svn: u32,
    policy: String,
    id_key_digest: String,
    author_key_digest: Option<String>,
    id_block: String,
    id_auth: String,
}

impl From<SignedIdBlock> for Described {
    fn from(signed: SignedIdBlock) -> Self {
        let key_digest = |at| hex::encode(digest(&SHA384, part(&signed.auth, at, KEY_SIZE)));
        Self {
            launch_digest: hex::encode(signed.launch_digest()),
            family_id: hex::encode(part(&signed.block, 0x30, 16)),
            image_id: hex::encode(part(&signed.block, 0x40, 16)),
            guest_svn: number(&signed.block, 0x54),
            policy: format!("{:#x}", signed.policy()),
            id_key_digest: key_digest(ID_KEY),
            author_key_digest: signed.has_author().then(|| key_digest(AUTHOR_KEY)),
            id_block: STANDARD.encode(signed.block),
            id_auth: STANDARD.encode(&signed.auth),
        }
    }
}

impl TryFrom<Described> for SignedIdBlock {
    type Error = IdBlockError;

    fn try_from(described: Described) -> Result<Self, IdBlockError> {
        let signed = Self::parse(described.id_block.as_bytes(), described.id_auth.as_bytes())?;
        if Described::from(signed.clone()) == described { Ok(signed) } else { Err(IdBlockError::Described) }
    }
}

/// A structure's bytes, of which base64 is longer.
fn raw(what: &'static str, expected: usize, bytes: &[u8]) -> Result<Vec<u8>, IdBlockError> {
    if bytes.len() == expected {
        return Ok(bytes.to_vec());
    }
    let text: Vec<u8> = bytes.iter().copied().filter(|byte| !matches!(byte, b'\n' | b'\r')).collect();
    let decoded = STANDARD.decode(text).ok().filter(|decoded| decoded.len() == expected);
    decoded.ok_or(IdBlockError::Size { what, expected, found: bytes.len() })
}

/// Part of a structure whose size was checked; the places are constants.
fn part(bytes: &[u8], at: usize, size: usize) -> &[u8] {
    bytes.get(at..at + size).unwrap_or_default()
}

fn number(bytes: &[u8], at: usize) -> u32 {
    part(bytes, at, 4).iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn zero(bytes: &[u8], from: usize, to: usize) -> Result<(), IdBlockError> {
    if part(bytes, from, to - from).iter().all(|&byte| byte == 0) { Ok(()) } else { Err(IdBlockError::Reserved(from)) }
}

#[cfg(test)]
pub(crate) mod tests;
