//! The agent's own configuration: options on the kernel command line, which the launch measurement covers.
//!
//! Read once, by `main`. An option of ours that is not known is refused rather than ignored: a misspelt option must not silently
//! mean its default, and options that would open the guest (a debug console, a log port) do not exist. Nothing here is secret.

use std::time::Duration;

use thiserror::Error;

/// Prefixes of options that are ours. Everything else on the command line belongs to the kernel.
const OURS: [&str; 2] = ["agent.", "kata_cc."];

/// What the agent is told at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// How much the agent writes to the console.
    pub(crate) log: tracing::Level,
    /// Longest time one image may take to pull, from the first request to the mounted root file system.
    pub(crate) image_pull_timeout: Duration,
    /// Longest time one exchange with the key broker may take, retries included.
    pub(crate) kbs_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { log: tracing::Level::INFO, image_pull_timeout: Duration::from_secs(1200), kbs_timeout: Duration::from_secs(50) }
    }
}

/// Why the command line was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ConfigError {
    /// An option with our prefix that does not exist.
    #[error("kernel command line: unknown option {0:?}; known are {known}", known = known())]
    Unknown(String),
    /// An option whose value cannot be read.
    #[error("kernel command line: {name}={value:?}: expected {expected}")]
    Value {
        /// The option.
        name: &'static str,
        /// What stood there.
        value: String,
        /// What should have.
        expected: &'static str,
    },
    /// An option given twice; the second might contradict the first.
    #[error("kernel command line: option {0} is given more than once")]
    Twice(&'static str),
}

type Set = fn(&mut Config, &str) -> bool;

/// Name, what its value looks like, and how it is taken over.
const OPTIONS: [(&str, &str, Set); 3] = [
    ("agent.log", "error, warn, info, debug or trace", set_log),
    ("agent.image_pull_timeout", "seconds, 1 to 86400", set_image_pull_timeout),
    ("kata_cc.kbs_timeout", "seconds, 1 to 86400", set_kbs_timeout),
];

fn known() -> String {
    OPTIONS.map(|(name, ..)| name).join(", ")
}

fn set_log(config: &mut Config, value: &str) -> bool {
    value.parse().map(|level| config.log = level).is_ok()
}

fn set_image_pull_timeout(config: &mut Config, value: &str) -> bool {
    seconds(value).map(|time| config.image_pull_timeout = time).is_some()
}

fn set_kbs_timeout(config: &mut Config, value: &str) -> bool {
    seconds(value).map(|time| config.kbs_timeout = time).is_some()
}

fn seconds(value: &str) -> Option<Duration> {
    value.parse::<u64>().ok().filter(|seconds| (1..=86_400).contains(seconds)).map(Duration::from_secs)
}

impl Config {
    /// Reads a kernel command line.
    ///
    /// # Errors
    /// When an option of ours is unknown, malformed or given twice.
    pub(crate) fn from_command_line(line: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut seen = Vec::new();
        for word in line.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            if !OURS.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            let &(name, expected, set) =
                OPTIONS.iter().find(|(known, ..)| *known == name).ok_or_else(|| ConfigError::Unknown(name.to_owned()))?;
            if seen.contains(&name) {
                return Err(ConfigError::Twice(name));
            }
            seen.push(name);
            if !set(&mut config, value) {
                return Err(ConfigError::Value { name, value: value.to_owned(), expected });
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_kernel_are_left_alone() {
        let config = Config::from_command_line("console=ttyS0 reboot=k panic=-1 quiet\n").unwrap();
        assert_eq!(config, Config::default());
    }

    #[test]
    fn known_options_are_read() {
        let config = Config::from_command_line("agent.log=warn agent.image_pull_timeout=60 kata_cc.kbs_timeout=5").unwrap();
        assert_eq!(config.log, tracing::Level::WARN);
        assert_eq!(config.image_pull_timeout, Duration::from_secs(60));
        assert_eq!(config.kbs_timeout, Duration::from_secs(5));
    }

    #[test]
    fn refuses_unknown_options_of_ours() {
        // AC-06, AC-16: the debug console and the like do not exist.
        for line in ["agent.debug_console", "agent.log_vport=1025", "kata_cc.x=1", "agent."] {
            assert!(matches!(Config::from_command_line(line), Err(ConfigError::Unknown(_))), "{line}");
        }
    }

    #[test]
    fn refuses_values_that_mean_nothing_and_options_given_twice() {
        for line in ["agent.log=loud", "agent.image_pull_timeout=0", "kata_cc.kbs_timeout=-1"] {
            assert!(matches!(Config::from_command_line(line), Err(ConfigError::Value { .. })), "{line}");
        }
        assert_eq!(Config::from_command_line("agent.log=info agent.log=trace"), Err(ConfigError::Twice("agent.log")));
    }
}
