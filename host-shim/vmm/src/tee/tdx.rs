//! Intel TDX (QEMU 10.1 or newer; QEMU's `tdx-guest` object).

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::strings;
use crate::plan::LaunchPlan;

/// Parameters of a TDX launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tdx {
    /// Where the quote generation service listens.
    pub quote_generation_socket: QuoteService,
    /// MROWNER, which identifies the owner of the TD. Zero if absent.
    pub mrowner: Option<OwnerField>,
    /// MROWNERCONFIG, what the owner configured. Zero if absent.
    pub mrownerconfig: Option<OwnerField>,
}

impl Default for Tdx {
    fn default() -> Self {
        Self { quote_generation_socket: QuoteService::Unix("/var/run/tdx-qgs/qgs.socket".into()), mrowner: None, mrownerconfig: None }
    }
}

/// Where the quote generation service listens: `/path` of a Unix socket, or `vsock:CID:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuoteService {
    /// A Unix socket.
    Unix(String),
    /// A vsock address; the host itself is 2.
    Vsock {
        /// Context identifier.
        cid: u32,
        /// Port.
        port: u32,
    },
}

impl FromStr for QuoteService {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let address = text.strip_prefix("vsock:").and_then(|rest| rest.split_once(':'));
        address
            .and_then(|(cid, port)| Some(Self::Vsock { cid: cid.parse().ok()?, port: port.parse().ok()? }))
            .ok_or_else(|| format!("expected an absolute path or vsock:CID:PORT, found {text:?}"))
    }
}

impl fmt::Display for QuoteService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => f.write_str(path),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl Serialize for QuoteService {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for QuoteService {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl QuoteService {
    /// As QEMU's `SocketAddress`.
    fn address(&self) -> Value {
        match self {
            Self::Unix(path) => json!({"type": "unix", "path": path}),
            Self::Vsock { cid, port } => json!({"type": "vsock", "cid": cid.to_string(), "port": port.to_string()}),
        }
    }
}

/// A 48-byte field of the TD that its owner gives and every quote has; 96 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerField([u8; 48]);

impl Serialize for OwnerField {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for OwnerField {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 48];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| {
            serde::de::Error::custom(format!("expected 96 hexadecimal digits (48 bytes), found {} characters", text.chars().count()))
        })?;
        Ok(Self(bytes))
    }
}

impl Tdx {
    pub(crate) fn arguments(&self, plan: &LaunchPlan) -> Vec<OsString> {
        // JSON, because the socket address is a nested object.
        let mut object = json!({
            "qom-type": "tdx-guest",
            "id": "tdx",
            // The host must not be able to take pages away and have the guest's exception handler run in its stead.
            "sept-ve-disable": true,
            "mrconfigid": STANDARD.encode(plan.initdata_digest.padded::<48>()),
            "quote-generation-socket": self.quote_generation_socket.address(),
        });
        for (property, field) in [("mrowner", self.mrowner), ("mrownerconfig", self.mrownerconfig)] {
            if let Some(OwnerField(bytes)) = field {
                object[property] = STANDARD.encode(bytes).into();
            }
        }
        strings([
            "-machine".into(),
            "q35,accel=kvm,kernel_irqchip=split,memory-backend=mem,confidential-guest-support=tdx,smm=off,usb=off,vmport=off".into(),
            "-cpu".into(),
            // No performance counters: they would be the host's to set up.
            format!("{},pmu=off", plan.cpu_model),
            "-m".into(),
            format!("{}M", plan.memory_mib),
            "-object".into(),
            format!("memory-backend-ram,id=mem,size={}M", plan.memory_mib),
            "-object".into(),
            object.to_string(),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quote_services_are_paths_or_vsock_addresses() {
        for text in ["/var/run/tdx-qgs/qgs.socket", "vsock:2:4050"] {
            assert_eq!(text.parse::<QuoteService>().unwrap().to_string(), text);
        }
        for text in ["", "qgs.socket", "vsock:2", "vsock:2:", "vsock::4050", "vsock:2:4050:1", "vsock:-1:1", "unix:/x"] {
            assert!(text.parse::<QuoteService>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ac_08_no_class_can_ask_for_a_td_that_may_be_debugged() {
        let with = |more: &str| toml::from_str::<Tdx>(&format!("quote_generation_socket = \"/q\"\n{more}"));
        assert!(with("").is_ok());
        for text in ["debug = true", "attributes = 1", "sept_ve_disable = false", "mrconfigid = \"00\"", "mrowner = \"00\""] {
            assert!(with(text).is_err(), "{text}");
        }
    }
}
