//! Payloads of events by their kind (PFP 1.06, §10.4 and §10.2; Linux's EFI stub; td-shim; GRUB).
//!
//! A payload is what the log's writer says. Whether it is what was measured: [`super::Event::measured`].

use super::aael::{self, Aael, AaelError};
use super::{Event, EventType, device_path};

/// `UEFI_VARIABLE_DATA`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UefiVariable<'a> {
    /// The vendor's GUID, in the byte order of the log.
    pub guid: [u8; 16],
    /// Its name.
    pub name: String,
    /// Its contents.
    pub data: &'a [u8],
}

/// A partition of `UEFI_GPT_DATA`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GptPartition {
    /// What it is for, as a GUID in text form.
    pub kind: String,
    /// Which it is, as a GUID in text form.
    pub unique: String,
    /// First block.
    pub first: u64,
    /// Last block.
    pub last: u64,
}

/// A payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// `EV_SEPARATOR`: 0 or 0xFFFFFFFF ends the phase before the operating system, 1 tells of an error.
    Separator(u32),
    /// Text up to the first NUL.
    Text(&'a str),
    /// A UEFI variable.
    Variable(UefiVariable<'a>),
    /// `UEFI_IMAGE_LOAD_EVENT`: the nodes of the device path of the image that was loaded.
    Image(Vec<String>),
    /// Partitions of the disk that was booted from.
    Gpt(Vec<GptPartition>),
    /// A runtime event.
    Aael(Aael),
    /// Another tagged event, as Linux's EFI stub makes for command line and initrd.
    Tagged {
        /// Its id.
        id: u32,
        /// Its contents.
        data: &'a [u8],
    },
    /// td-shim's configuration: what it is, and its bytes.
    TdShim {
        /// What it is.
        name: &'a str,
        /// The bytes that were measured.
        data: &'a [u8],
    },
    /// A name with a length byte before it, then places in memory: `UEFI_PLATFORM_FIRMWARE_BLOB2` and `UEFI_HANDOFF_TABLE_POINTERS2`.
    Blob {
        /// Its name.
        name: &'a str,
    },
    /// Bytes that are nothing more here.
    Opaque(&'a [u8]),
}

/// A payload is not of its kind's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("payload of {kind} is malformed: expected {expected}, found {found} bytes that are not")]
pub struct PayloadError {
    /// Kind of the event.
    pub kind: EventType,
    /// What the kind has.
    pub expected: &'static str,
    /// Length of the payload.
    pub found: usize,
}

/// A GUID as text, from the mixed byte order of UEFI.
pub(super) fn guid_text(bytes: &[u8; 16]) -> String {
    let &[a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = bytes;
    let [d0, d1, ref node @ ..] = rest;
    let head = u32::from_le_bytes([a0, a1, a2, a3]);
    let (b, c, d) = (u16::from_le_bytes([b0, b1]), u16::from_le_bytes([c0, c1]), u16::from_be_bytes([d0, d1]));
    format!("{head:08x}-{b:04x}-{c:04x}-{d:04x}-{}", hex::encode(node))
}

/// UTF-16 text up to the first NUL.
pub(super) fn utf16_text(bytes: &[u8]) -> Option<String> {
    let (pairs, []) = bytes.as_chunks::<2>() else { return None };
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).take_while(|unit| *unit != 0).collect();
    String::from_utf16(&units).ok()
}

fn text(bytes: &[u8]) -> Option<&str> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()
}

fn u64_at(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), rest))
}

fn variable(bytes: &[u8]) -> Option<UefiVariable<'_>> {
    let (guid, rest) = bytes.split_first_chunk::<16>()?;
    let (name, rest) = u64_at(rest)?;
    let (data, rest) = u64_at(rest)?;
    let (name, rest) = rest.split_at_checked(usize::try_from(name).ok()?.checked_mul(2)?)?;
    let (pairs, []) = name.as_chunks::<2>() else { return None };
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    let exact = usize::try_from(data).is_ok_and(|length| length == rest.len());
    exact.then_some(UefiVariable { guid: *guid, name: String::from_utf16(&units).ok()?, data: rest })
}

fn image(bytes: &[u8]) -> Option<Vec<String>> {
    // Location, length and link-time address.
    let (length, path) = u64_at(bytes.get(24..)?)?;
    if usize::try_from(length).ok()? != path.len() {
        return None;
    }
    if path.is_empty() { Some(Vec::new()) } else { device_path::nodes(path) }
}

fn gpt(bytes: &[u8]) -> Option<Vec<GptPartition>> {
    let (header, rest) = bytes.split_at_checked(92)?;
    let entry = usize::try_from(u32::from_le_bytes(*header.get(84..)?.first_chunk::<4>()?)).ok()?;
    let (count, entries) = u64_at(rest)?;
    if entry < 128 || entries.len() != usize::try_from(count).ok()?.checked_mul(entry)? {
        return None;
    }
    let partition = |entry: &[u8]| {
        let (kind, rest) = entry.split_first_chunk::<16>()?;
        let (unique, rest) = rest.split_first_chunk::<16>()?;
        let (first, rest) = u64_at(rest)?;
        Some(GptPartition { kind: guid_text(kind), unique: guid_text(unique), first, last: u64_at(rest)?.0 })
    };
    entries.chunks_exact(entry).map(partition).collect()
}

/// Id and contents of `TCG_PCClientTaggedEvent`.
fn tagged(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (id, rest) = bytes.split_first_chunk::<4>()?;
    let (length, data) = rest.split_first_chunk::<4>()?;
    (usize::try_from(u32::from_le_bytes(*length)).ok()? == data.len()).then_some((u32::from_le_bytes(*id), data))
}

/// td-shim's form of `EV_PLATFORM_CONFIG_FLAGS`: a name in 16 bytes, a length, the bytes.
fn td_shim(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (name, rest) = bytes.split_first_chunk::<16>()?;
    let (length, data) = rest.split_first_chunk::<4>()?;
    let exact = usize::try_from(u32::from_le_bytes(*length)).ok()? == data.len();
    let name = text(name).filter(|name| name.starts_with("td_"))?;
    exact.then_some((name, data))
}

fn blob(bytes: &[u8]) -> Option<&str> {
    let (length, rest) = bytes.split_first()?;
    text(rest.get(..usize::from(*length))?)
}

impl Event {
    /// The payload, by the kind of the event.
    ///
    /// # Errors
    /// When it is not of the form that the kind has.
    pub fn payload(&self) -> Result<Payload<'_>, PayloadError> {
        let data = self.data.as_slice();
        let malformed = |expected| PayloadError { kind: self.kind, expected, found: data.len() };
        match self.kind {
            EventType::SEPARATOR => {
                data.try_into().map(u32::from_le_bytes).map(Payload::Separator).map_err(|_| malformed("a number of 4 bytes"))
            }
            EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_BOOT
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_VARIABLE_AUTHORITY => {
                variable(data).map(Payload::Variable).ok_or_else(|| malformed("a UEFI variable of the lengths it says"))
            }
            EventType::EFI_BOOT_SERVICES_APPLICATION | EventType::EFI_BOOT_SERVICES_DRIVER | EventType::EFI_RUNTIME_SERVICES_DRIVER => {
                image(data).map(Payload::Image).ok_or_else(|| malformed("an image with its device path"))
            }
            EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2 => {
                gpt(data).map(Payload::Gpt).ok_or_else(|| malformed("a partition table of the lengths it says"))
            }
            EventType::EVENT_TAG => match tagged(data) {
                Some((aael::TAG, text)) => {
                    Aael::from_text(text).map(Payload::Aael).map_err(|_: AaelError| malformed("\"domain operation content\""))
                }
                Some((id, data)) => Ok(Payload::Tagged { id, data }),
                None => Err(malformed("a tag and contents of the length it says")),
            },
            EventType::EFI_PLATFORM_FIRMWARE_BLOB2 | EventType::EFI_HANDOFF_TABLES2 => {
                blob(data).map(|name| Payload::Blob { name }).ok_or_else(|| malformed("a name of the length it says"))
            }
            EventType::PLATFORM_CONFIG_FLAGS if let Some((name, data)) = td_shim(data) => Ok(Payload::TdShim { name, data }),
            EventType::EFI_ACTION
            | EventType::ACTION
            | EventType::IPL
            | EventType::POST_CODE
            | EventType::POST_CODE2
            | EventType::PLATFORM_CONFIG_FLAGS => Ok(text(data).map_or(Payload::Opaque(data), Payload::Text)),
            _ => Ok(Payload::Opaque(data)),
        }
    }
}
