//! TCB status: how Intel judges what a platform runs, and how the judgements of its parts become one.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;

/// Intel's judgement (PCS API v4, "tcbStatus"). A word that is not here is refused, not guessed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum TcbStatus {
    /// Nothing is known against it.
    UpToDate,
    /// Software in the TD needs mitigations of its own.
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    /// The platform's configuration is not as it should be.
    ConfigurationNeeded,
    /// Both.
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    /// There are updates against known flaws.
    OutOfDate,
    /// That, and the configuration.
    OutOfDateConfigurationNeeded,
    /// Not to be trusted any more, by anybody.
    Revoked,
}

impl TcbStatus {
    /// Intel's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::Revoked => "Revoked",
        }
    }

    const fn needs_configuration(self) -> bool {
        matches!(self, Self::ConfigurationNeeded | Self::ConfigurationAndSwHardeningNeeded | Self::OutOfDateConfigurationNeeded)
    }

    const fn needs_hardening(self) -> bool {
        matches!(self, Self::SwHardeningNeeded | Self::ConfigurationAndSwHardeningNeeded)
    }

    const fn is_out_of_date(self) -> bool {
        matches!(self, Self::OutOfDate | Self::OutOfDateConfigurationNeeded)
    }

    /// The status of two parts together: everything that is said against either. Revoked stays revoked; where one is out of date, the
    /// need for hardening is not named any more, since Intel has no word for all three.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        if matches!(self, Self::Revoked) || matches!(other, Self::Revoked) {
            return Self::Revoked;
        }
        let out_of_date = self.is_out_of_date() || other.is_out_of_date();
        let configuration = self.needs_configuration() || other.needs_configuration();
        let hardening = self.needs_hardening() || other.needs_hardening();
        match (out_of_date, configuration, hardening) {
            (true, true, _) => Self::OutOfDateConfigurationNeeded,
            (true, false, _) => Self::OutOfDate,
            (false, true, true) => Self::ConfigurationAndSwHardeningNeeded,
            (false, true, false) => Self::ConfigurationNeeded,
            (false, false, true) => Self::SwHardeningNeeded,
            (false, false, false) => Self::UpToDate,
        }
    }
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A judgement with what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The status.
    pub status: TcbStatus,
    /// TCB date: flaws made known before it are dealt with, as far as the status says so. RFC 3339, UTC.
    pub date: String,
    /// Intel's advisories that bear on it.
    pub advisories: BTreeSet<String>,
}

impl Judgement {
    /// Of two parts together, dated by the older.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.status = self.status.with(other.status);
        // All dates have the same form and zone, in which the order of text is that of time.
        self.date = self.date.min(other.date);
        self.advisories.extend(other.advisories);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_judged_together_as_intel_does() {
        use TcbStatus::{
            ConfigurationAndSwHardeningNeeded, ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded, Revoked, SwHardeningNeeded,
            UpToDate,
        };
        for (platform, part, expected) in [
            (UpToDate, UpToDate, UpToDate),
            (UpToDate, OutOfDate, OutOfDate),
            (SwHardeningNeeded, OutOfDate, OutOfDate),
            (ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (ConfigurationAndSwHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (OutOfDate, UpToDate, OutOfDate),
            (OutOfDateConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (ConfigurationNeeded, SwHardeningNeeded, ConfigurationAndSwHardeningNeeded),
            (UpToDate, Revoked, Revoked),
            (Revoked, OutOfDate, Revoked),
        ] {
            assert_eq!((platform.with(part), part.with(platform)), (expected, expected), "{platform} with {part}");
        }
    }
}
