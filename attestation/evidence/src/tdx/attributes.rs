//! ATTRIBUTES of a TD: what it was made with (Intel TDX Module ABI Specification, table "TD Attributes").

use std::fmt;

/// The 64 bits of ATTRIBUTES.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TdAttributes(pub u64);

macro_rules! bits {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub const fn $name(self) -> bool {
            self.0 & (1 << $bit) != 0
        })*
    };
}

impl TdAttributes {
    /// Group TUD, bits 0 to 7: any of them makes a TD one that is not to be trusted, those not defined yet too.
    pub const TUD: u64 = 0xff;
    /// Bits without a meaning so far, which verifiers must find to be zero.
    pub const RESERVED: u64 = 0x3fff_ffff_0780_ff8e;

    bits! {
        /// DEBUG: the host may read and change the TD's memory and registers.
        debug = 0;
        /// HGS_PLUS_PROF: the host may profile the TD with HGS+.
        hgs_plus_prof = 4;
        /// PERF_PROF: the host may profile the TD with performance counters.
        perf_prof = 5;
        /// PMT_PROF: the host may profile the TD with core telemetry.
        pmt_prof = 6;
        /// ICSSD: the TD is defended against single-stepping by counting instructions.
        icssd = 16;
        /// SERVTD_EXT: the TD report covers more of the service TDs bound to the TD.
        servtd_ext = 17;
        /// LASS: the TD may use linear address space separation.
        lass = 27;
        /// SEPT_VE_DISABLE: a page the host takes away stops the TD, rather than raising an exception in it that the host so can inject.
        sept_ve_disable = 28;
        /// MIGRATABLE: the TD can be moved, by a migration TD.
        migratable = 29;
        /// PKS: the TD may use supervisor protection keys.
        pks = 30;
        /// KL: the TD may use Key Locker.
        key_locker = 31;
        /// TPA: the TD is a TD provisioning agent.
        tpa = 62;
        /// PERFMON: the TD may use performance monitoring.
        perfmon = 63;
    }

    /// True when no bit of the group TUD is set.
    #[must_use]
    pub const fn is_trusted(self) -> bool {
        self.0 & Self::TUD == 0
    }

    /// The reserved bits that are set: of a newer module, with a meaning that nobody here knows.
    #[must_use]
    pub const fn reserved(self) -> u64 {
        self.0 & Self::RESERVED
    }

    /// As in the quote.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }
}

impl fmt::Display for TdAttributes {
    /// As in the quote, hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_intel_has_them() {
        let real = TdAttributes(u64::from_le_bytes([0x01, 0, 0, 0x10, 0, 0, 0, 0]));
        assert!(real.debug() && real.sept_ve_disable() && !real.is_trusted());
        assert!(!(real.key_locker() || real.perfmon() || real.pks() || real.migratable()));
        assert_eq!(real.to_string(), "0100001000000000");
        assert!(TdAttributes(1 << 30).pks() && TdAttributes(1 << 31).key_locker() && TdAttributes(1 << 63).perfmon());
        for bit in 0..64 {
            assert_eq!(TdAttributes(1 << bit).is_trusted(), bit > 7, "bit {bit}");
            let reserved = matches!(bit, 1..=3 | 7..=15 | 23..=26 | 32..=61);
            assert_eq!(TdAttributes(1 << bit).reserved() != 0, reserved, "bit {bit}");
        }
    }
}
