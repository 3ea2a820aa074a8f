//! What a GPU's report claims, in CoCo's names, which are those of NVIDIA's `nvtrust`.

use kata_cc_evidence::nvidia::Report;
use serde_json::{Map, Value, json};

/// How a type of opaque data is shown.
enum Shown {
    Text,
    Hex,
    VbiosVersion,
    Counts,
    Switch,
}

/// Types of opaque data that have a name. Others are not claims.
const KNOWN: [(u16, &str, Shown); 19] = [
    (3, "driver_version", Shown::Text),
    (4, "gpu_info", Shown::Hex),
    (5, "id_sku", Shown::Hex),
    (6, "vbios_version", Shown::VbiosVersion),
    (7, "manufacturer_id", Shown::Hex),
    (8, "tamper_detection", Shown::Hex),
    (9, "smc", Shown::Hex),
    (10, "vpr", Shown::Hex),
    (11, "nvdec0_status", Shown::Switch),
    (12, "measurement_count", Shown::Counts),
    (13, "cpr_info", Shown::Hex),
    (14, "board_id", Shown::Hex),
    (15, "chip_sku", Shown::Text),
    (16, "chip_sku_mod", Shown::Text),
    (17, "project", Shown::Text),
    (18, "project_sku", Shown::Text),
    (19, "project_sku_mod", Shown::Hex),
    (Report::FWID, "fwid", Shown::Hex),
    (21, "protected_pcie_status", Shown::Hex),
];

/// Claims of one device.
pub(super) fn claims(report: &Report, root: &str) -> Value {
    let measurements = report.measurements.iter().map(|(index, value)| (index.to_string(), json!(hex::encode(value))));
    let config = KNOWN.iter().filter_map(|(kind, name, shown)| Some(((*name).to_owned(), shown.of(report.opaque(*kind)?))));
    json!({
        "arch": "Hopper",
        "measurements": measurements.collect::<Map<_, _>>(),
        "config": config.collect::<Map<_, _>>(),
        "nonce": hex::encode(report.nonce),
        "root": root,
    })
}

impl Shown {
    fn of(&self, data: &[u8]) -> Value {
        match self {
            Self::Text => json!(String::from_utf8_lossy(data).trim_end_matches('\0')),
            Self::Hex => json!(hex::encode(data)),
            Self::VbiosVersion => vbios_version(data).map_or_else(|| json!(hex::encode(data)), Value::from),
            Self::Counts => {
                let counts = data.chunks_exact(4).filter_map(|chunk| Some(u32::from_le_bytes(chunk.try_into().ok()?)));
                json!((1_u32..).zip(counts).map(|(index, count)| (index.to_string(), json!(count))).collect::<Map<_, _>>())
            }
            Self::Switch => match data {
                [0xaa] => json!("enabled"),
                [0x55] => json!("disabled"),
                _ => json!(hex::encode(data)),
            },
        }
    }
}

/// The first half backwards, then the first byte of the second: `96.00.9f.00.01`.
fn vbios_version(data: &[u8]) -> Option<String> {
    let (major, minor) = data.split_at_checked(data.len().checked_div(2)?)?;
    let bytes = major.iter().rev().chain(minor.first());
    minor.first()?;
    Some(bytes.map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join("."))
}
