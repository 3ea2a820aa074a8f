//! How much memory a guest has and where QEMU's machine q35 puts it: up to 2.75 GiB below 4 GiB, of more memory 2 GiB, the rest above.

/// From this much memory on, ...
const SPLIT_FROM: u64 = 0xb000_0000;
/// ... this much of it is below 4 GiB.
const LOW_WHEN_SPLIT: u64 = 0x8000_0000;
/// Start of what is above.
const FOUR_GIB: u64 = 1 << 32;
/// More no guest has: 16 TiB.
const MAX_MIB: u64 = 16 << 20;

/// Memory of a guest on the machine q35.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestMemory(u64);

/// An amount of memory that no guest has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 16 to {MAX_MIB} MiB of memory, found {found}")]
pub struct MemorySizeError {
    /// What was asked for, in MiB.
    found: u64,
}

impl GuestMemory {
    /// This many MiB, as in QEMU's `-m`.
    ///
    /// # Errors
    /// When no guest has so little or so much.
    pub const fn from_mib(mib: u64) -> Result<Self, MemorySizeError> {
        if mib < 16 || mib > MAX_MIB { Err(MemorySizeError { found: mib }) } else { Ok(Self(mib << 20)) }
    }

    /// Bytes below 4 GiB, from address 0 on.
    #[must_use]
    pub const fn low(self) -> u64 {
        if self.0 < SPLIT_FROM { self.0 } else { LOW_WHEN_SPLIT }
    }

    /// Start and bytes of each range.
    pub(super) fn ranges(self) -> impl Iterator<Item = (u64, u64)> {
        [(0, self.low()), (FOUR_GIB, self.0 - self.low())].into_iter().filter(|(_, size)| *size > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_split_from_2816_mib_on() {
        let of = |mib| GuestMemory::from_mib(mib).unwrap().ranges().collect::<Vec<_>>();
        assert_eq!(of(2048), [(0, 2 << 30)]);
        assert_eq!(of(2815), [(0, 2815 << 20)]);
        assert_eq!(of(2816), [(0, 2 << 30), (4 << 30, 768 << 20)]);
    }

    #[test]
    fn refuses_amounts_that_no_guest_has() {
        for found in [0, 15, MAX_MIB + 1, u64::MAX] {
            assert_eq!(GuestMemory::from_mib(found), Err(MemorySizeError { found }));
        }
    }
}
