//! Evidence of GPUs as it travels to the broker, in CoCo's JSON form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::report::Report;
use crate::cursor::FormError;

/// Why evidence is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Bytes in it are.
    #[error(transparent)]
    Form(#[from] FormError),
    /// Text in another encoding.
    #[error("{what} is not {expected}")]
    Encoding {
        /// Which field.
        what: &'static str,
        /// The encoding.
        expected: &'static str,
    },
    /// No device, or too many.
    #[error("device_evidence_list has {found} devices, expected 1 to {limit}", limit = Evidence::MAX_DEVICES)]
    Devices {
        /// How many.
        found: usize,
    },
    /// A device whose reports are not known here.
    #[error("a device of architecture {found:?}, expected Hopper")]
    Architecture {
        /// Its name, cut to 32 characters.
        found: String,
    },
}

/// One device. Parsed, **not verified**.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The report.
    pub report: Report,
    /// Certificates, PEM, the device's first.
    pub certificates: Vec<u8>,
}

/// Reports of all GPUs of a guest. Parsed, **not verified**.
///
/// Serialises to and from CoCo's `{"device_evidence_list":[{"arch":"HOPPER","uuid":"","evidence":"<base64>","certificate":"<base64 of
/// PEM>"}]}`. The
/// `uuid` is not looked at, since nobody has signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The devices.
    pub devices: Vec<Device>,
}

impl Evidence {
    /// Most devices of one guest.
    pub const MAX_DEVICES: usize = 32;
    /// Largest chain of certificates, in bytes.
    pub const MAX_CERTIFICATES: usize = 64 * 1024;
}

/// Unknown fields are ignored: they are the client's words about itself, and no check rests on them.
#[derive(Serialize, Deserialize)]
struct Wire {
    device_evidence_list: Vec<WireDevice>,
}

#[derive(Serialize, Deserialize)]
struct WireDevice {
    arch: String,
    #[serde(default)]
    uuid: String,
    evidence: String,
    certificate: String,
}

impl TryFrom<&WireDevice> for Device {
    type Error = EvidenceError;

    fn try_from(wire: &WireDevice) -> Result<Self, EvidenceError> {
        if !wire.arch.eq_ignore_ascii_case("hopper") {
            return Err(EvidenceError::Architecture { found: wire.arch.chars().take(32).collect() });
        }
        // Attesters have sent hexadecimal text before. A report in base64 is never taken for it: it has letters beyond f.
        let report = hex::decode(&wire.evidence).or_else(|_| STANDARD.decode(&wire.evidence));
        let report = report.map_err(|_| EvidenceError::Encoding { what: "evidence", expected: "standard base64 or hexadecimal" })?;
        let certificates = STANDARD.decode(&wire.certificate);
        let certificates = certificates.map_err(|_| EvidenceError::Encoding { what: "certificate", expected: "standard base64" })?;
        let (found, limit) = (certificates.len(), Evidence::MAX_CERTIFICATES);
        if found > limit {
            return Err(FormError::TooLarge { what: "certificate", found, limit }.into());
        }
        Ok(Self { report: Report::parse(&report)?, certificates })
    }
}

impl TryFrom<&Wire> for Evidence {
    type Error = EvidenceError;

    fn try_from(wire: &Wire) -> Result<Self, EvidenceError> {
        let found = wire.device_evidence_list.len();
        if found == 0 || found > Self::MAX_DEVICES {
            return Err(EvidenceError::Devices { found });
        }
        Ok(Self { devices: wire.device_evidence_list.iter().map(Device::try_from).collect::<Result<_, _>>()? })
    }
}

impl Serialize for Evidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let device = |device: &Device| WireDevice {
            arch: "HOPPER".into(),
            uuid: String::new(),
            evidence: STANDARD.encode(device.report.as_bytes()),
            certificate: STANDARD.encode(&device.certificates),
        };
        Wire { device_evidence_list: self.devices.iter().map(device).collect() }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Evidence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(&Wire::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
