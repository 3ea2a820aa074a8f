//! Device paths of loaded images, in words as CoCo's claims have them (UEFI 2.10, §10.3).

use super::payload::{guid_text, utf16_text};

/// Most nodes of a path.
const MAX_NODES: usize = 32;

/// The nodes of a path in words. `None` if it is malformed or does not end.
pub(super) fn nodes(mut bytes: &[u8]) -> Option<Vec<String>> {
    let mut nodes = Vec::new();
    while nodes.len() <= MAX_NODES {
        let (&[kind, sub, low, high], _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_le_bytes([low, high]));
        let (node, rest) = bytes.split_at_checked(length)?;
        let data = node.get(4..)?;
        if (kind, sub) == (0x7f, 0xff) {
            return rest.is_empty().then_some(nodes);
        }
        nodes.push(text(kind, sub, data).unwrap_or_else(|| format!("Path({kind},{sub},{})", hex::encode(data))));
        bytes = rest;
    }
    None
}

fn text(kind: u8, sub: u8, data: &[u8]) -> Option<String> {
    match (kind, sub) {
        (1, 1) => {
            let [function, device] = *data.first_chunk::<2>()?;
            Some(format!("Pci({function},{device})"))
        }
        (2, 1) => {
            let (hid, uid) = data.split_first_chunk::<4>()?;
            let (hid, uid) = (u32::from_le_bytes(*hid), u32::from_le_bytes(*uid.first_chunk::<4>()?));
            // The number of PNP devices; other vendors are left in hexadecimal digits.
            (hid & 0xffff == 0x41d0).then(|| format!("ACPI(PNP{:04X},{uid})", hid >> 16))
        }
        (4, 1) => {
            let (number, rest) = data.split_first_chunk::<4>()?;
            let (start, rest) = rest.split_first_chunk::<8>()?;
            let (size, rest) = rest.split_first_chunk::<8>()?;
            let (signature, rest) = rest.split_first_chunk::<16>()?;
            // A GPT partition known by its GUID.
            (rest == [2, 2]).then(|| {
                let (number, start, size) = (u32::from_le_bytes(*number), u64::from_le_bytes(*start), u64::from_le_bytes(*size));
                format!("HD({number},GPT,{},{start:#x},{size:#x})", guid_text(signature).to_uppercase())
            })
        }
        (4, 3) => {
            let (vendor, rest) = data.split_first_chunk::<16>()?;
            Some(format!("VenMedia({},{})", guid_text(vendor).to_uppercase(), hex::encode(rest)))
        }
        (4, 4) => Some(format!("File({})", utf16_text(data)?)),
        _ => None,
    }
}
