//! IBM Secure Execution (s390x): the kernel is a sealed image that holds initrd and command line, so neither is passed.

use std::ffi::OsString;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::strings;
use crate::plan::LaunchPlan;

/// Parameters of Secure Execution. The launch itself has none; the initdata digest is checked by the agent against user data of the attestation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Se {
    /// What the sealed image's kernel sets aside of the guest's memory for I/O with the host, in MiB.
    pub swiotlb_mib: Swiotlb,
}

/// The guest kernel's I/O buffer (`swiotlb`), in MiB: all DMA of a protected guest goes through it, and nothing else can use it.
///
/// Its size is in the command line that is sealed in the image, which the host does not see, so the class repeats it. A power of two: Linux
/// rounds others up (kernel/dma/swiotlb.c). At most 1024: the buffer lies below 2 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Swiotlb(u32);

impl Swiotlb {
    /// A slot is 2 KiB (`IO_TLB_SHIFT` of include/linux/swiotlb.h).
    const SLOTS_PER_MIB: u32 = 512;
    /// What Linux sets aside unless told otherwise (`IO_TLB_DEFAULT_SIZE` of the same).
    const LINUX_DEFAULT: Self = Self(64);
    const MAX_MIB: u32 = 1024;

    /// MiB.
    #[must_use]
    pub const fn mib(self) -> u32 {
        self.0
    }

    /// What a kernel with this command line sets aside: `swiotlb=SLOTS`, or Linux's default.
    ///
    /// # Errors
    ///
    /// Any other form of the parameter (`noforce` would leave the guest without I/O), a size that would be rounded, or the parameter twice.
    pub fn of_command_line(line: &str) -> Result<Self, SwiotlbError> {
        // What follows `--` is for init.
        let words = line.split_ascii_whitespace().take_while(|word| *word != "--");
        let mut given = words.filter(|word| *word == "swiotlb" || word.contains("swiotlb="));
        let Some(word) = given.next() else { return Ok(Self::LINUX_DEFAULT) };
        if given.next().is_some() {
            return Err(SwiotlbError::Twice);
        }
        let slots =
            word.strip_prefix("swiotlb=").filter(|slots| slots.bytes().all(|byte| byte.is_ascii_digit()) && !slots.starts_with('0'));
        let mib = slots.and_then(|slots| slots.parse::<u32>().ok()).filter(|slots| slots.is_multiple_of(Self::SLOTS_PER_MIB));
        mib.and_then(|slots| Self::try_from(slots / Self::SLOTS_PER_MIB).ok())
            .ok_or_else(|| SwiotlbError::Parameter(word.chars().take(64).collect()))
    }
}

impl Default for Swiotlb {
    /// 512 MiB, `swiotlb=262144`: what Kata's images of Secure Execution have too.
    fn default() -> Self {
        Self(512)
    }
}

impl fmt::Display for Swiotlb {
    /// As the kernel's parameter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "swiotlb={}", self.0 * Self::SLOTS_PER_MIB)
    }
}

impl TryFrom<u32> for Swiotlb {
    type Error = SwiotlbError;

    fn try_from(mib: u32) -> Result<Self, SwiotlbError> {
        if mib.is_power_of_two() && mib <= Self::MAX_MIB { Ok(Self(mib)) } else { Err(SwiotlbError::Size(mib)) }
    }
}

impl From<Swiotlb> for u32 {
    fn from(swiotlb: Swiotlb) -> Self {
        swiotlb.0
    }
}

/// Why a size of the I/O buffer is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwiotlbError {
    /// Not a size that the kernel would keep to.
    #[error("swiotlb_mib: expected a power of two of at most {max} MiB, found {0}", max = Swiotlb::MAX_MIB)]
    Size(u32),
    /// Not a parameter that says a size.
    #[error("expected swiotlb=SLOTS, in slots of 2 KiB and for a power of two of at most {max} MiB, such as {default}; found {0:?}",
        max = Swiotlb::MAX_MIB, default = Swiotlb::default())]
    Parameter(String),
    /// Two sizes.
    #[error("expected swiotlb= once on the command line, found it twice")]
    Twice,
}

impl Se {
    pub(crate) fn arguments(&self, plan: &LaunchPlan) -> Vec<OsString> {
        strings([
            "-machine".into(),
            "s390-ccw-virtio,accel=kvm,memory-backend=mem,confidential-guest-support=pv0".into(),
            "-cpu".into(),
            plan.cpu_model.to_string(),
            "-m".into(),
            format!("{}M", plan.memory_mib),
            "-object".into(),
            format!("memory-backend-ram,id=mem,size={}M", plan.memory_mib),
            "-object".into(),
            "s390-pv-guest,id=pv0".into(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_says_a_size_that_the_kernel_keeps_to() {
        assert_eq!(toml::from_str::<Se>("").unwrap().swiotlb_mib.to_string(), "swiotlb=262144");
        assert_eq!(toml::from_str::<Se>("swiotlb_mib = 64").unwrap().swiotlb_mib.mib(), 64);
        for text in ["0", "96", "2048", "-1", "\"512\"", "4294967295"] {
            assert!(toml::from_str::<Se>(&format!("swiotlb_mib = {text}")).is_err(), "{text}");
        }
        assert!(toml::from_str::<Se>("swiotlb = 512").is_err());
    }

    #[test]
    fn command_lines_say_what_the_class_must_say() {
        for (line, mib) in [
            ("", 64),
            ("quiet", 64),
            ("quiet swiotlb=262144 panic=-1", 512),
            ("swiotlb=512", 1),
            ("swiotlb=524288", 1024),
            ("quiet -- swiotlb=noforce", 64),
        ] {
            assert_eq!(Swiotlb::of_command_line(line).map(Swiotlb::mib), Ok(mib), "{line}");
        }
        for line in [
            "swiotlb",
            "swiotlb=",
            "swiotlb=0",
            "swiotlb=noforce",
            "swiotlb=force",
            "swiotlb=262144,4",
            "swiotlb=262144,force",
            "swiotlb=0x40000",
            "swiotlb=0262144",
            "swiotlb=262145",
            "swiotlb=393216",
            "swiotlb=1048576",
            "swiotlb=99999999999",
            "swiotlb=262144M",
            "a=\"swiotlb=262144",
        ] {
            let error = Swiotlb::of_command_line(line).unwrap_err();
            assert!(
                matches!(error, SwiotlbError::Parameter(_)) && error.to_string().contains("such as swiotlb=262144;"),
                "{line}: {error}"
            );
        }
        assert_eq!(Swiotlb::of_command_line("swiotlb=262144 swiotlb=131072"), Err(SwiotlbError::Twice));
    }
}
