//! From initdata to a policy for this pod, or to a refusal.
//!
//! 1. Initdata is read from the one disk that begins with its magic. No such disk, or two: refused. Its frame is parsed: gzip, and
//!    the outer TOML with the names of the documents. So these parsers face bytes that nobody has vouched for yet, and both are bounded.
//! 2. The TEE is asked for a report of this very guest. Its HOST_DATA or MRCONFIGID must be the digest of what was read; otherwise the host has
//!    shown us something else than it launched us with (AC-23), and nothing in it may be believed.
//! 3. The documents are parsed, and the policy's signature is verified with the keys in initdata.
//! 4. The documents must be those under the signature, each with its digest, none more and none less. The host chooses what it launches
//!    us with: without this, it could put the owner's key and policy beside documents of its own and pass for the owner.
//!
//! **Invariant:** no document of initdata is parsed before step 2, and nothing that one says is acted on before step 4 has succeeded.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kata_cc_policy::guest_config::ConfigError;
use kata_cc_policy::initdata::{DISK_MAGIC, MAX_DISK};
use kata_cc_policy::{BindError, BoundPolicy, GuestConfig, Initdata, InitdataError, SignedPolicy};
use thiserror::Error;

use crate::attest::{AttestError, Attester};
use crate::timeline::Timeline;

/// Why this guest runs no pod. Everything in here the host may know: it chose it.
#[derive(Debug, Error)]
pub(crate) enum BootError {
    /// Disks cannot be looked at.
    #[error("initdata: cannot read {what}")]
    Io {
        /// What.
        what: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// There is no initdata.
    #[error(
        "no initdata: a confidential guest needs the pod's annotation io.katacontainers.config.hypervisor.cc_init_data, which names its policy and key broker"
    )]
    None,
    /// There are several.
    #[error("initdata: found on {0} disks, expected one")]
    Several(usize),
    /// It is longer than any may be.
    #[error("initdata: {0} is longer than {MAX_DISK} bytes")]
    TooLong(String),
    /// It is not well-formed.
    #[error(transparent)]
    Initdata(#[from] InitdataError),
    /// It is not what the hardware measured.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// Its contents cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The policy's signature.
    #[error("the agent policy in initdata")]
    Envelope(#[from] kata_cc_policy::envelope::EnvelopeError),
    /// The documents beside it.
    #[error("the documents in initdata")]
    Documents(#[from] BindError),
    /// The policy itself.
    #[error("the agent policy in initdata")]
    Gate(#[from] kata_cc_policy::GateError),
}

/// Initdata that the hardware vouches for and that its owner signed as a whole.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The text.
    pub(crate) initdata: Initdata,
    /// What it says.
    pub(crate) config: GuestConfig,
    /// Its policy.
    pub(crate) policy: BoundPolicy,
}

/// Reads initdata, has the hardware vouch for it, and holds it against its owner's signature.
///
/// # Errors
/// When there is none, or it is not exactly what this guest was launched with, or not exactly what its owner signed.
pub(crate) async fn bound_initdata(attester: &Attester, timeline: &Timeline) -> Result<Bound, BootError> {
    let initdata = find(Path::new("/sys/block"), Path::new("/dev"))?;
    timeline.mark("initdata");
    attester.check_bound(&initdata).await?;
    timeline.mark("report");
    signed(initdata)
}

/// Steps 3 and 4.
fn signed(initdata: Initdata) -> Result<Bound, BootError> {
    let config = GuestConfig::from_initdata(&initdata)?;
    let policy = SignedPolicy::verify(&config.policy.envelope, &config.policy.trusted)?.bind(&initdata)?;
    Ok(Bound { initdata, config, policy })
}

/// Finds initdata among the guest's disks.
fn find(blocks: &Path, devices: &Path) -> Result<Initdata, BootError> {
    let at = |what: &Path| {
        let what = what.display().to_string();
        move |source| BootError::Io { what, source }
    };
    let mut names: Vec<PathBuf> = fs::read_dir(blocks)
        .map_err(at(blocks))?
        .map(|entry| entry.map(|entry| PathBuf::from(entry.file_name())))
        .collect::<Result<_, _>>()
        .map_err(at(blocks))?;
    names.retain(|name| {
        let name = name.to_string_lossy();
        name.starts_with("vd") || name.starts_with("sd")
    });
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let device = devices.join(name);
        let file = File::open(&device).map_err(at(&device))?;
        if begins_with_magic(&file).map_err(at(&device))? {
            found.push((device, file));
        }
    }
    match found.as_slice() {
        [] => Err(BootError::None),
        [(device, file)] => {
            let mut image = DISK_MAGIC.to_vec();
            // One byte more than any initdata has, so that a longer one is noticed and not cut.
            file.take(MAX_DISK as u64 + 1).read_to_end(&mut image).map_err(at(device))?;
            if image.len() > MAX_DISK {
                return Err(BootError::TooLong(device.display().to_string()));
            }
            Ok(Initdata::from_disk_image(&image)?)
        }
        several => Err(BootError::Several(several.len())),
    }
}

/// Reads the magic, and leaves the file behind it.
fn begins_with_magic(mut file: &File) -> io::Result<bool> {
    let mut magic = [0; DISK_MAGIC.len()];
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(&magic == DISK_MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::with_causes;
    use kata_cc_policy::envelope::PolicyPayload;
    use kata_cc_policy::guest_config::{CDH_TOML, Documents, POLICY_DSSE};
    use kata_cc_policy::initdata::{Algorithm, InitdataBuilder};
    use kata_cc_policy::keys::{KeyKind, SigningKey};

    struct Disks(tempfile::TempDir);

    impl Disks {
        fn new(disks: &[(&str, &[u8])]) -> Self {
            let place = tempfile::tempdir().unwrap();
            for directory in ["block", "dev"] {
                fs::create_dir(place.path().join(directory)).unwrap();
            }
            for (name, contents) in disks {
                fs::create_dir(place.path().join("block").join(name)).unwrap();
                fs::write(place.path().join("dev").join(name), contents).unwrap();
            }
            Self(place)
        }

        fn find(&self) -> Result<Initdata, BootError> {
            find(&self.0.path().join("block"), &self.0.path().join("dev"))
        }
    }

    fn image() -> Vec<u8> {
        let initdata = InitdataBuilder::new().document("aa.toml", "x = 1").build().unwrap();
        initdata.to_disk_image()
    }

    #[test]
    fn initdata_is_found_among_other_disks() {
        let disks = Disks::new(&[("vda", b"something else"), ("vdb", &image()), ("loop0", b"initdata"), ("vdc", b"")]);
        assert_eq!(disks.find().unwrap().get("aa.toml"), Some("x = 1"));
    }

    #[test]
    fn refuses_no_initdata_two_and_a_broken_one() {
        assert!(matches!(Disks::new(&[]).find(), Err(BootError::None)));
        assert!(matches!(Disks::new(&[("vda", b"initdat")]).find(), Err(BootError::None)));
        let twice = Disks::new(&[("vda", &image()), ("vdb", &image())]);
        assert!(matches!(twice.find(), Err(BootError::Several(2))));
        let mut cut = image();
        cut.truncate(20);
        assert!(matches!(Disks::new(&[("vda", &cut)]).find(), Err(BootError::Initdata(_))));
    }

    #[test]
    fn refuses_initdata_longer_than_any_may_be() {
        let mut long = image();
        long.resize(MAX_DISK + 2 * 512, 0);
        assert!(matches!(Disks::new(&[("vda", &long)]).find(), Err(BootError::TooLong(_))));
    }

    /// What an owner builds: documents, and a policy signed together with them.
    fn owned(registry: &str, key: &SigningKey) -> Initdata {
        let documents = Documents {
            policy_keys: vec![key.public_key().to_pem()],
            insecure_registries: vec![registry.to_owned()],
            ..Documents::default()
        };
        let draft = documents.draft(Algorithm::Sha256).unwrap();
        let (rego, data) = ("package agent_policy".to_owned(), serde_json::Map::new());
        let payload = PolicyPayload { version: 1, rego, data, documents: draft.documents() };
        draft.complete(std::str::from_utf8(&SignedPolicy::sign(&payload, &[key]).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn initdata_that_its_owner_signed_is_taken() {
        let key = SigningKey::generate(KeyKind::P256).unwrap();
        assert_eq!(signed(owned("10.0.0.1:5000", &key)).unwrap().policy.policy().version(), 1);
    }

    /// The owner's key and the owner's signed policy, beside a document of the host's making.
    #[test]
    fn refuses_a_document_that_the_owner_did_not_sign_and_names_it() {
        let key = SigningKey::generate(KeyKind::P256).unwrap();
        let (owners, other) = (owned("10.0.0.1:5000", &key), owned("10.0.0.66:5000", &key));
        let mixed = InitdataBuilder::from(&owners).document(CDH_TOML, other.get(CDH_TOML).unwrap()).build().unwrap();
        let error = signed(mixed).unwrap_err();
        assert!(matches!(error, BootError::Documents(_)), "{error:?}");
        assert!(with_causes(&error).contains("`cdh.toml` was changed (expected sha256 "), "{}", with_causes(&error));
        let swapped = InitdataBuilder::from(&owners).document(POLICY_DSSE, other.get(POLICY_DSSE).unwrap()).build().unwrap();
        assert!(matches!(signed(swapped), Err(BootError::Documents(_))));
    }

    #[test]
    fn refuses_a_policy_that_no_key_of_initdata_signed() {
        let [key, other] = [0, 1].map(|_| SigningKey::generate(KeyKind::P256).unwrap());
        let theirs = owned("10.0.0.1:5000", &other);
        let mixed = InitdataBuilder::from(&owned("10.0.0.1:5000", &key)).document(POLICY_DSSE, theirs.get(POLICY_DSSE).unwrap());
        assert!(matches!(signed(mixed.build().unwrap()), Err(BootError::Envelope(_))));
    }
}
