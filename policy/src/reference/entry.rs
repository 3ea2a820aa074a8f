//! Entries of a reference manifest, one type for each kind of TEE: the digests, and everything they were computed from.
//!
//! What an image is made of is here so that somebody else can compute the same digests from the same files. Brokers use the digests alone.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{MAX_TEXT, ManifestError, is_name, is_text};

/// Longest command line. Linux takes at most 4096 on some architectures and 2048 on x86.
const MAX_CMDLINE: usize = 4096;
/// Longest text that is a value, such as a public key.
const MAX_VALUE: usize = 4096;

/// A digest or another measured value of `N` bytes: hexadecimal digits in JSON.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest<const N: usize>([u8; N]);

impl<const N: usize> Digest<N> {
    /// From bytes.
    #[must_use]
    pub const fn new(bytes: [u8; N]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> fmt::Display for Digest<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Digest<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl<const N: usize> FromStr for Digest<N> {
    type Err = String;

    /// Lower case only: policies compare text.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; N];
        let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        let read = hex::decode_to_slice(text, &mut bytes).ok().filter(|()| lower);
        read.map(|()| Self(bytes)).ok_or_else(|| format!("expected {} lower-case hexadecimal digits", 2 * N))
    }
}

impl<const N: usize> Serialize for Digest<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Digest<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// SEV_FEATURES of the VMSA, as `0x1` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(pub u64);

impl Serialize for Features {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        value.map(Self).ok_or_else(|| serde::de::Error::custom("expected a number such as \"0x1\""))
    }
}

/// What a VMM starts directly, by SHA-256 of the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelInputs {
    /// The kernel image.
    pub kernel: Digest<32>,
    /// The initrd, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub initrd: Option<Digest<32>>,
    /// The command line itself, without a trailing NUL.
    pub cmdline: String,
}

/// What SNP launch digests were computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpInputs {
    /// SHA-256 of the firmware image.
    pub firmware: Digest<32>,
    /// What is started directly; absent where the firmware finds its own next stage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boot: Option<KernelInputs>,
    /// Who launches the guest: QEMU, ec2 or gce.
    pub vmm: String,
    /// SEV_FEATURES.
    pub guest_features: Features,
}

/// Launch digests of one virtual CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpDigests {
    /// Names of the CPU models with this signature; empty where the VMM does not let the model into the measurement.
    pub cpu_models: Vec<String>,
    /// CPUID Fn0000_0001_EAX of those; absent likewise.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_signature: Option<u32>,
    /// For 1, 2, 3, … vCPUs, in that order.
    pub launch_digests: Vec<Digest<48>>,
}

/// SEV-SNP: launch digests for a range of vCPU counts and CPU models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpEntry {
    /// What they were computed from.
    pub inputs: SnpInputs,
    /// One for each CPU signature.
    pub cpus: Vec<SnpDigests>,
}

/// What TDX measurements were computed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxInputs {
    /// SHA-256 of the firmware image (TDVF).
    pub firmware: Digest<32>,
    /// What is started directly.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boot: Option<KernelInputs>,
    /// Who launches the guest, with its version where MRTD depends on it.
    pub vmm: String,
}

/// TDX: MRTD and RTMRs. A policy compares each register by itself, so images that must not be mixed belong into brokers of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxEntry {
    /// What they were computed from.
    pub inputs: TdxInputs,
    /// MRTD: the firmware.
    pub mr_td: Vec<Digest<48>>,
    /// RTMR0: the virtual machine as the host describes it; one for each size.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rtmr_0: Vec<Digest<48>>,
    /// RTMR1: the kernel.
    pub rtmr_1: Vec<Digest<48>>,
    /// RTMR2: command line and initrd.
    pub rtmr_2: Vec<Digest<48>>,
}

/// IBM Secure Execution: the tags of the image's header. Each image is encrypted to host keys, so there is one for each build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeEntry {
    /// What is in the image.
    pub inputs: KernelInputs,
    /// SHA-256 of the public host keys that it is encrypted to.
    pub image_phkh: Vec<Digest<32>>,
    /// Header tags.
    pub tags: Vec<Digest<16>>,
}

/// What is not computed from an image: patch levels of platforms, keys that sign initdata, values for policies of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValuesEntry {
    /// Ids to texts, numbers or booleans. Ids that other entries make are not allowed.
    #[serde(deserialize_with = "each_once")]
    pub values: BTreeMap<String, Vec<Value>>,
}

/// A key given twice means different things to different readers.
fn each_once<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Vec<Value>>, D::Error> {
    struct Once;
    impl<'de> serde::de::Visitor<'de> for Once {
        type Value = BTreeMap<String, Vec<Value>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of ids to lists")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((id, values)) = map.next_entry::<String, _>()? {
                if all.insert(id, values).is_some() {
                    return Err(serde::de::Error::custom("an id is given twice"));
                }
            }
            Ok(all)
        }
    }
    deserializer.deserialize_map(Once)
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Entry {
    /// AMD SEV-SNP.
    Snp(SnpEntry),
    /// Intel TDX.
    Tdx(TdxEntry),
    /// IBM Secure Execution.
    Se(SeEntry),
    /// Other values.
    Values(ValuesEntry),
}

/// Ids of what is measured. They come with their inputs or not at all.
const MEASURED: [&str; 7] = ["snp_launch_measurement", "mr_td", "rtmr_0", "rtmr_1", "rtmr_2", "se_tag", "se_image_phkh"];

fn texts<const N: usize>(digests: &[Digest<N>]) -> Vec<Value> {
    digests.iter().map(|digest| Value::String(digest.to_string())).collect()
}

impl Entry {
    pub(super) fn values(&self) -> Vec<(String, Vec<Value>)> {
        let measured: Vec<(&str, Vec<Value>)> = match self {
            Self::Snp(snp) => vec![("snp_launch_measurement", snp.cpus.iter().flat_map(|cpu| texts(&cpu.launch_digests)).collect())],
            Self::Tdx(tdx) => vec![
                ("mr_td", texts(&tdx.mr_td)),
                ("rtmr_0", texts(&tdx.rtmr_0)),
                ("rtmr_1", texts(&tdx.rtmr_1)),
                ("rtmr_2", texts(&tdx.rtmr_2)),
            ],
            Self::Se(se) => vec![("se_tag", texts(&se.tags)), ("se_image_phkh", texts(&se.image_phkh))],
            Self::Values(entry) => return entry.values.clone().into_iter().collect(),
        };
        measured.into_iter().filter(|(_, values)| !values.is_empty()).map(|(id, values)| (id.to_owned(), values)).collect()
    }

    pub(super) fn check(&self) -> Result<(), ManifestError> {
        match self {
            Self::Snp(snp) => {
                boot(snp.inputs.boot.as_ref())?;
                vmm(&snp.inputs.vmm)?;
                some("snp.cpus", &snp.cpus)?;
                for cpu in &snp.cpus {
                    some("launch_digests", &cpu.launch_digests)?;
                    if cpu.cpu_models.is_empty() != cpu.cpu_signature.is_none() || !cpu.cpu_models.iter().all(|model| is_text(model)) {
                        let found = format!("{:?} with {:?}", cpu.cpu_models, cpu.cpu_signature);
                        return Err(ManifestError::field("cpu_models", "names and their cpu_signature, or neither", found));
                    }
                }
                Ok(())
            }
            Self::Tdx(tdx) => {
                boot(tdx.inputs.boot.as_ref())?;
                vmm(&tdx.inputs.vmm)?;
                some("mr_td", &tdx.mr_td)?;
                some("rtmr_1", &tdx.rtmr_1)?;
                some("rtmr_2", &tdx.rtmr_2)
            }
            Self::Se(se) => {
                boot(Some(&se.inputs))?;
                some("image_phkh", &se.image_phkh)?;
                some("tags", &se.tags)
            }
            Self::Values(entry) => {
                for (id, values) in &entry.values {
                    if !is_name(id) {
                        return Err(ManifestError::field("values", format!("ids of 1 to {MAX_TEXT} letters, digits, '-', '_', '.'"), id));
                    }
                    if MEASURED.contains(&id.as_str()) {
                        return Err(ManifestError::field("values", "what is measured in an entry of its TEE, with its inputs", id));
                    }
                    some("values", values)?;
                    if let Some(value) = values.iter().find(|value| !is_value(value)) {
                        let expected = format!("texts of at most {MAX_VALUE} characters, numbers or booleans");
                        return Err(ManifestError::field("values", expected, value));
                    }
                }
                if entry.values.is_empty() { Err(ManifestError::field("values", "at least one", 0)) } else { Ok(()) }
            }
        }
    }
}

fn boot(inputs: Option<&KernelInputs>) -> Result<(), ManifestError> {
    match inputs {
        Some(inputs) if inputs.cmdline.len() > MAX_CMDLINE || inputs.cmdline.contains('\0') => {
            Err(ManifestError::field("cmdline", format!("at most {MAX_CMDLINE} bytes without NUL"), inputs.cmdline.len()))
        }
        _ => Ok(()),
    }
}

fn vmm(name: &str) -> Result<(), ManifestError> {
    if is_text(name) { Ok(()) } else { Err(ManifestError::field("vmm", "a name", name.escape_debug())) }
}

/// An empty list would accept nothing, and look as if it accepted something.
fn some<T>(field: &'static str, list: &[T]) -> Result<(), ManifestError> {
    if list.is_empty() { Err(ManifestError::field(field, "at least one", 0)) } else { Ok(()) }
}

fn is_value(value: &Value) -> bool {
    match value {
        Value::String(text) => text.chars().count() <= MAX_VALUE,
        other => other.is_number() || other.is_boolean(),
    }
}
