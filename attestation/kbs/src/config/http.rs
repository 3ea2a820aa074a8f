//! `[http]`: what one peer may take of the broker, in time and in number.

use super::ConfigError;
use crate::limit::Rate;
use crate::listen::Limits;
use serde::Deserialize;
use std::time::Duration;

/// Limits of the HTTP side.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Sessions that one address may open each second.
    pub auth_per_second: u32,
    /// Sessions that one address may open at once. Behind a proxy all guests are one address: raise both there.
    pub auth_burst: u32,
    /// Connections open at a time.
    pub max_connections: usize,
    /// How long a client may take for the head of a request, and to take in what it is sent.
    pub client_timeout_seconds: u64,
    /// How long requests under way may take when the broker is told to stop.
    pub drain_seconds: u64,
}

impl Default for Http {
    fn default() -> Self {
        let (rate, limits) = (Rate::default(), Limits::default());
        Self {
            auth_per_second: rate.per_second,
            auth_burst: rate.burst,
            max_connections: limits.connections,
            client_timeout_seconds: limits.client_timeout.as_secs(),
            drain_seconds: limits.drain_timeout.as_secs(),
        }
    }
}

impl Http {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (name, value, allowed) in [
            ("auth_per_second", u64::from(self.auth_per_second), 1..=1_000_000),
            ("auth_burst", u64::from(self.auth_burst), 1..=1_000_000),
            ("max_connections", self.max_connections as u64, 1..=65_536),
            ("client_timeout_seconds", self.client_timeout_seconds, 1..=600),
            ("drain_seconds", self.drain_seconds, 0..=600),
        ] {
            if !allowed.contains(&value) {
                let text = format!("`http.{name}` is {value}, expected {} to {}", allowed.start(), allowed.end());
                return Err(ConfigError::Invalid(text));
            }
        }
        Ok(())
    }

    /// For `/auth`.
    pub fn auth_rate(&self) -> Rate {
        Rate { per_second: self.auth_per_second, burst: self.auth_burst }
    }

    /// For connections.
    pub fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections,
            client_timeout: Duration::from_secs(self.client_timeout_seconds),
            drain_timeout: Duration::from_secs(self.drain_seconds),
        }
    }
}
