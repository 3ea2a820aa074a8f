//! `/dev/uv`: answers of the ultravisor to a broker's request, in guests of IBM Secure Execution (Linux `arch/s390/include/uapi/asm/uvdevice.h`).
//!
//! One request of that header and no more. The ultravisor has no field for what the host hands over after launch, so the digest of the initdata goes
//! into the user data, behind the report data: the word of this agent, which is in the measured image.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use kata_cc_evidence::ReportData;
use kata_cc_evidence::se::{Additional, Challenge, Evidence, FormError, MAX_USER_DATA, MEASUREMENT_SIZE};
use nix::errno::Errno;

/// Where the kernel says whether it is such a guest.
pub(crate) const PROT_VIRT_GUEST: &str = "/sys/firmware/uv/prot_virt_guest";

/// Why there is no evidence of Secure Execution.
#[derive(Debug, thiserror::Error)]
pub enum UvError {
    /// Nobody has asked.
    #[error(
        "Secure Execution makes evidence of a broker's request alone, which is encrypted to this machine; there is none without a broker that asks"
    )]
    NotAsked,
    /// The broker asked for something else.
    #[error("the broker's nonce is not a request for Secure Execution; it must know this kind ([se] in its configuration)")]
    Challenge(#[source] serde_json::Error),
    /// The agent has not said what it was given.
    #[error("no evidence is made before the initdata is known: it would say that there is none")]
    NoInitdata,
    /// It has, and something else before.
    #[error("the digest of the initdata was told twice, and differently")]
    OtherInitdata,
    /// Digest and report data are more than the ultravisor measures.
    #[error("initdata digest of {found} bytes: expected 32 (sha256), 48 (sha384) or 64 (sha512)")]
    DigestLength {
        /// Its length.
        found: usize,
    },
    /// The device cannot be opened.
    #[error("ultravisor device cannot be opened")]
    Open(#[source] io::Error),
    /// The request failed before the ultravisor had it.
    #[error("ultravisor device refused the request")]
    Request(#[source] Errno),
    /// The ultravisor refused it.
    #[error("the ultravisor refused the request (code {rc:#06x}, reason {rrc:#06x}){}", hint(*rc))]
    Refused {
        /// Response code.
        rc: u16,
        /// Reason.
        rrc: u16,
    },
    /// What it added is not what was asked for.
    #[error("the ultravisor's additional data")]
    Additional(#[from] FormError),
}

/// What an operator can do about a response code.
fn hint(rc: u16) -> &'static str {
    match rc {
        0x0002 => ": this machine or its firmware has no attestation",
        0x010c => ": it was made for other machines; the broker needs this one's host-key document",
        _ => "",
    }
}

const SUCCESS: u16 = 0x0001;

/// `struct uvio_ioctl_cb`.
#[repr(C)]
struct ControlBlock {
    flags: u32,
    uv_rc: u16,
    uv_rrc: u16,
    argument_addr: u64,
    argument_len: u32,
    reserved: [u8; 44],
}

/// `struct uvio_attest`.
#[repr(C)]
struct Attest {
    arcb_addr: u64,
    meas_addr: u64,
    add_data_addr: u64,
    user_data: [u8; MAX_USER_DATA],
    config_uid: [u8; 16],
    arcb_len: u32,
    meas_len: u32,
    add_data_len: u32,
    user_data_len: u16,
    reserved: u16,
}

const _: () = {
    assert!(size_of::<ControlBlock>() == 0x40);
    assert!(size_of::<Attest>() == 0x138);
};
const ATTEST_LEN: u32 = 0x138;

mod ioctl {
    nix::ioctl_readwrite!(uvio_att, b'u', 0x1, super::ControlBlock);
}

/// What the ultravisor gave.
struct Answer {
    measurement: [u8; MEASUREMENT_SIZE],
    additional: Vec<u8>,
    cuid: [u8; 16],
}

/// The kernel's word about whether this is a guest of Secure Execution.
pub(crate) fn is_guest(prot_virt_guest: &Path) -> bool {
    std::fs::read_to_string(prot_virt_guest).is_ok_and(|text| text.trim() == "1")
}

/// A guest of Secure Execution.
#[derive(Debug)]
pub(crate) struct SeGuest {
    device: PathBuf,
    initdata: OnceLock<Vec<u8>>,
}

impl SeGuest {
    pub(crate) fn new(device: &Path) -> Self {
        Self { device: device.into(), initdata: OnceLock::new() }
    }

    /// From now on evidence says that this guest was given initdata of this digest.
    pub(crate) fn given(&self, digest: &[u8]) -> Result<(), UvError> {
        if !matches!(digest.len(), 32 | 48 | 64) {
            return Err(UvError::DigestLength { found: digest.len() });
        }
        if self.initdata.get_or_init(|| digest.to_vec()) == digest { Ok(()) } else { Err(UvError::OtherInitdata) }
    }

    /// Evidence over `report_data` and the initdata's digest: the answer to what the broker asks.
    pub(crate) fn evidence(&self, report_data: &ReportData, nonce: Option<&str>) -> Result<Evidence, UvError> {
        let digest = self.initdata.get().ok_or(UvError::NoInitdata)?;
        let challenge: Challenge = serde_json::from_str(nonce.ok_or(UvError::NotAsked)?).map_err(UvError::Challenge)?;
        let user_data = [report_data.as_bytes().as_slice(), digest].concat();
        let answer = answer(&self.device, &challenge.request.to_bytes()?, &user_data)?;
        evidence(challenge, user_data, &answer)
    }
}

fn evidence(challenge: Challenge, user_data: Vec<u8>, answer: &Answer) -> Result<Evidence, UvError> {
    let Challenge { sealed_key, sealed_nonce, image_tags, .. } = challenge;
    let additional = Additional::parse(&answer.additional)?;
    let Answer { measurement, cuid, .. } = *answer;
    Ok(Evidence { measurement, additional, user_data, cuid, sealed_key, sealed_nonce, image_tags })
}

fn answer(device: &Path, request: &[u8], user_data: &[u8]) -> Result<Answer, UvError> {
    let too_large = |what, found, limit| UvError::Additional(FormError::TooLarge { what, found, limit });
    let file = File::open(device).map_err(UvError::Open)?;
    let mut measurement = [0; MEASUREMENT_SIZE];
    let mut additional = vec![0; Additional::LEN];
    let mut padded = [0; MAX_USER_DATA];
    let room = padded.get_mut(..user_data.len()).ok_or_else(|| too_large("user data", user_data.len(), MAX_USER_DATA))?;
    room.copy_from_slice(user_data);
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| too_large("request", bytes.len(), 0x0010_0000));
    let mut attest = Attest {
        arcb_addr: request.as_ptr() as u64,
        meas_addr: measurement.as_mut_ptr() as u64,
        add_data_addr: additional.as_mut_ptr() as u64,
        user_data: padded,
        config_uid: [0; 16],
        arcb_len: length(request)?,
        meas_len: length(&measurement)?,
        add_data_len: length(&additional)?,
        user_data_len: u16::try_from(user_data.len()).map_err(|_| too_large("user data", user_data.len(), MAX_USER_DATA))?,
        reserved: 0,
    };
    let mut block = ControlBlock {
        flags: 0,
        uv_rc: 0,
        uv_rrc: 0,
        argument_addr: (&raw mut attest) as u64,
        argument_len: ATTEST_LEN,
        reserved: [0; 44],
    };
    // SAFETY: the file is open for the duration of the call. `block` and the `attest` it points to have the kernel's layout (sizes asserted above);
    // they, and the three buffers with the lengths that `attest` says of them, live and are borrowed by nobody else until the call returns. The
    // kernel reads the request, and writes no more than those lengths to the other two and than the size of each structure to it.
    #[expect(unsafe_code, reason = "ioctl(2) on the ultravisor device")]
    unsafe { ioctl::uvio_att(file.as_raw_fd(), &raw mut block) }.map_err(UvError::Request)?;
    outcome(&block)?;
    additional.truncate(usize::try_from(attest.add_data_len).unwrap_or(usize::MAX));
    Ok(Answer { measurement, additional, cuid: attest.config_uid })
}

/// The call succeeds whatever the ultravisor says.
fn outcome(block: &ControlBlock) -> Result<(), UvError> {
    if block.uv_rc == SUCCESS { Ok(()) } else { Err(UvError::Refused { rc: block.uv_rc, rrc: block.uv_rrc }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_evidence::se::{AuthenticatedHead, Flags, ImageTags, KeySlot, Request};

    fn challenge() -> Challenge {
        let slots = vec![KeySlot { phkh: [1; 32], wrapped_key: [2; 32], tag: [3; 16] }];
        let head = AuthenticatedHead { iv: [4; 12], flags: Flags::REQUESTED, public_key: [5; 160], slots };
        Challenge {
            request: Request { head, encrypted: [6; Request::ENCRYPTED], tag: [7; 16] },
            sealed_key: vec![8; 100],
            sealed_nonce: Vec::new(),
            image_tags: ImageTags { pld: [1; 64], ald: [2; 64], tld: [3; 64], tag: [4; 16] },
        }
    }

    #[test]
    fn evidence_is_the_answer_with_what_the_broker_wants_back() {
        let answer = Answer { measurement: [9; 64], additional: [[0xa; 32], [0xb; 32]].concat(), cuid: [0xc; 16] };
        let made = evidence(challenge(), vec![0xd; 96], &answer).expect("well formed");
        assert_eq!((made.measurement, made.cuid, made.user_data.as_slice()), ([9; 64], [0xc; 16], [0xd; 96].as_slice()));
        assert_eq!((made.additional.image_phkh, made.additional.attestation_phkh), ([0xa; 32], [0xb; 32]));
        assert_eq!((made.sealed_key, made.image_tags), (challenge().sealed_key, challenge().image_tags));
        let short = Answer { additional: vec![0xa; 32], ..answer };
        assert!(matches!(evidence(challenge(), Vec::new(), &short), Err(UvError::Additional(_))));
    }

    #[test]
    fn nothing_is_said_before_initdata_is_known_nor_without_a_request() {
        let guest = SeGuest::new(Path::new("/nowhere/uv"));
        let asked = serde_json::to_string(&challenge()).expect("a challenge");
        assert!(matches!(guest.evidence(&ReportData::ZERO, Some(&asked)), Err(UvError::NoInitdata)));
        assert!(matches!(guest.given(&[1; 20]), Err(UvError::DigestLength { found: 20 })));
        assert!(guest.given(&[1; 32]).is_ok() && guest.given(&[1; 32]).is_ok());
        assert!(matches!(guest.given(&[2; 32]), Err(UvError::OtherInitdata)));
        assert!(matches!(guest.evidence(&ReportData::ZERO, None), Err(UvError::NotAsked)));
        assert!(matches!(guest.evidence(&ReportData::ZERO, Some("a nonce of another kind")), Err(UvError::Challenge(_))));
        assert!(matches!(guest.evidence(&ReportData::ZERO, Some(&asked)), Err(UvError::Open(_))));
    }

    #[test]
    fn a_refusal_of_the_ultravisor_counts_though_the_call_succeeds() {
        let block = |uv_rc| ControlBlock { flags: 0, uv_rc, uv_rrc: 2, argument_addr: 0, argument_len: 0, reserved: [0; 44] };
        assert!(outcome(&block(SUCCESS)).is_ok());
        // Zero is what it was before the call.
        assert!(matches!(outcome(&block(0)), Err(UvError::Refused { rc: 0, rrc: 2 })));
        let text = outcome(&block(0x010c)).expect_err("refused").to_string();
        assert!(text.contains("0x010c") && text.contains("host-key document"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_device_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        assert!(matches!(answer(file.path(), &[0; 64], &[0; 96]), Err(UvError::Request(Errno::ENOTTY))));
        assert!(matches!(answer(file.path(), &[0; 64], &[0; 257]), Err(UvError::Additional(_))));
    }

    #[test]
    fn only_the_kernels_yes_makes_a_guest() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        for (text, expected) in [("1\n", true), ("1", true), ("0\n", false), ("", false), ("11", false)] {
            std::fs::write(file.path(), text).expect("written");
            assert_eq!(is_guest(file.path()), expected, "{text:?}");
        }
        assert!(!is_guest(Path::new("/nowhere")));
    }
}
