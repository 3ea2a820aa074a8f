//! RTMR0: the machine. OVMF extends it with what QEMU tells of memory, with the variable store, with the variables of secure boot,
//! with the ACPI tables that QEMU made, and with the boot options.
//!
//! What of this cannot be predicted without the machine is an input here: the digests of the ACPI tables. They differ with QEMU's
//! version, the number of vCPUs and each device, and are to be taken from the log of a guest that is trusted for other reasons.

use super::boot::{Edk2, Event};
use super::memory::GuestMemory;
use super::metadata::TdxFirmware;
use super::register::{Digest, sha384};
use super::td_hob::TdHobError;

/// EFI_GLOBAL_VARIABLE, in its form in memory.
const GLOBAL: [u8; 16] = [0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
/// EFI_IMAGE_SECURITY_DATABASE_GUID, likewise.
const SECURITY_DATABASE: [u8; 16] = [0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];
/// The variables of secure boot, in the order of measurement.
const SECURE_BOOT: [(&str, [u8; 16]); 5] =
    [("SecureBoot", GLOBAL), ("PK", GLOBAL), ("KEK", GLOBAL), ("db", SECURITY_DATABASE), ("dbx", SECURITY_DATABASE)];

/// OVMF's volume of drivers and the application UiApp in it, as nodes of a device path.
const UI_APP: [u8; 44] = [
    4, 7, 20, 0, 0xc9, 0xbd, 0xb8, 0x7c, 0xeb, 0xf8, 0x34, 0x4f, 0xaa, 0xea, 0x3e, 0xe4, 0xaf, 0x65, 0x16, 0xa1, //
    4, 6, 20, 0, 0x21, 0xaa, 0x2c, 0x46, 0x14, 0x76, 0x03, 0x45, 0x83, 0x6e, 0x8a, 0xb6, 0xf4, 0x66, 0x23, 0x31, //
    0x7f, 0xff, 4, 0,
];
/// Active, hidden, an application.
const UI_APP_ATTRIBUTES: u32 = 0x109;

/// Digests of what QEMU makes of the machine: the files `etc/table-loader`, `etc/acpi/rsdp` and `etc/acpi/tables`, in the order
/// in which the log has them. **Not predicted.**
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiTables(pub [Digest; 3]);

/// What RTMR0 has of firmware and memory, and can be predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineDigests {
    /// The TD HOB.
    pub td_hob: Digest,
    /// The configuration firmware volume.
    pub configuration: Digest,
}

/// Why RTMR0, or a part of it, cannot be predicted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// The firmware cannot run with this much memory.
    #[error(transparent)]
    TdHob(#[from] TdHobError),
    /// The firmware measures a variable store that is not in the image.
    #[error("the firmware image has no configuration firmware volume")]
    NoConfiguration,
    /// The events depend on more than is known here.
    #[error("from edk2-stable{edk2} on, RTMR0 has boot options and tables that differ with the machine; take it from the log of a guest")]
    Edk2 {
        /// Which one.
        edk2: Edk2,
    },
}

impl TdxFirmware<'_> {
    /// What RTMR0 has of this firmware in a guest with this much memory.
    ///
    /// # Errors
    /// When the firmware does not fit the memory, or has no variable store.
    pub fn machine_digests(&self, memory: GuestMemory) -> Result<MachineDigests, MachineError> {
        let configuration = sha384(&[self.configuration().ok_or(MachineError::NoConfiguration)?]);
        Ok(MachineDigests { td_hob: sha384(&[&self.td_hob_content(memory)?]), configuration })
    }
}

impl MachineDigests {
    /// What RTMR0 is extended with, in a guest without keys of secure boot that is booted directly.
    ///
    /// # Errors
    /// When the firmware has events that are not known here.
    pub fn rtmr_0(&self, acpi: &AcpiTables, edk2: Edk2) -> Result<Vec<Event>, MachineError> {
        if edk2 >= Edk2::From202505 {
            return Err(MachineError::Edk2 { edk2 });
        }
        let mut events = vec![
            Event { what: "TD HOB", digest: self.td_hob },
            Event { what: "configuration firmware volume", digest: self.configuration },
        ];
        events.extend(SECURE_BOOT.map(|(name, vendor)| Event::of(name, &unset(name, vendor))));
        events.push(Event::separator());
        let [loader, rsdp, tables] = acpi.0;
        events.push(Event { what: "ACPI table loader", digest: loader });
        events.push(Event { what: "ACPI RSDP", digest: rsdp });
        events.push(Event { what: "ACPI tables", digest: tables });
        // One boot option, number 0: the firmware's own user interface.
        events.push(Event::of("BootOrder", &[0, 0]));
        events.push(Event::of("Boot0000", &ui_app()));
        if edk2 == Edk2::Before202411 {
            events.push(Event::separator());
        }
        Ok(events)
    }
}

/// `UEFI_VARIABLE_DATA` of a variable that is not set: vendor, length of the name, length of the value, name.
fn unset(name: &str, vendor: [u8; 16]) -> Vec<u8> {
    let utf16: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    [&vendor[..], &(name.len() as u64).to_le_bytes(), &[0; 8], &utf16].concat()
}

/// `EFI_LOAD_OPTION` of UiApp: attributes, length of the device path, description with NUL, device path.
fn ui_app() -> Vec<u8> {
    let description: Vec<u8> = "UiApp\0".encode_utf16().flat_map(u16::to_le_bytes).collect();
    [&UI_APP_ATTRIBUTES.to_le_bytes()[..], &(UI_APP.len() as u16).to_le_bytes(), &description, &UI_APP].concat()
}
