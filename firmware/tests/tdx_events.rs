//! RTMRs against the event logs of real guests, and against registers that others recorded.
//!
//! Logs are Trustee's (`deps/eventlog/test_data`), in the vectors that `KATA_CC_VECTORS` names or that lie in `shared/vectors` beside the
//! checkout. What guests logged is held against what is predicted from the inputs that the log, or the image named, has.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::path::{Path, PathBuf};

use kata_cc_evidence::eventlog::{EventLog, EventType, HashAlgorithm, Payload, Registers};
use kata_cc_firmware::footer::{Footer, TDX_METADATA};
use kata_cc_firmware::measure::tdx::{
    AcpiTables, BootError, Digest, DirectBoot, Edk2, Event, GuestMemory, Initrd, KernelHeader, MachineDigests, MachineError, Register,
    SectionKind, TdHobError, TdxFirmware,
};
use sha2::Digest as _;

fn vector(path: &str) -> Option<Vec<u8>> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let path = std::env::var_os("KATA_CC_VECTORS").map_or_else(beside, PathBuf::from).join(path);
    let bytes = std::fs::read(&path);
    if bytes.is_err() {
        eprintln!("SKIPPED: no vector {}; set KATA_CC_VECTORS", path.display());
    }
    bytes.ok()
}

fn log(name: &str) -> Option<EventLog> {
    let bytes = vector(&format!("confidential-containers/trustee/deps/eventlog/test_data/{name}"))?;
    Some(EventLog::parse(&bytes).unwrap())
}

fn sha384(bytes: &[u8]) -> Digest {
    sha2::Sha384::digest(bytes).into()
}

fn bytes(hex: &str) -> Digest {
    let mut digest = [0; 48];
    hex::decode_to_slice(hex, &mut digest).unwrap();
    digest
}

/// What the log extends into a register (1 is RTMR0).
fn digests(log: &EventLog, index: u32) -> Vec<Digest> {
    let of = log.events().iter().filter(|event| event.index == index && event.kind != EventType::NO_ACTION);
    of.map(|event| event.digest(HashAlgorithm::SHA384).unwrap().try_into().unwrap()).collect()
}

/// The digest of the first event of a kind.
fn digest(log: &EventLog, kind: EventType) -> Digest {
    let event = log.events().iter().find(|event| event.kind == kind).unwrap();
    event.digest(HashAlgorithm::SHA384).unwrap().try_into().unwrap()
}

#[test]
fn registers_are_the_sum_of_every_logs_events() {
    for name in ["CCEL_data", "CCEL_data_ovmf", "CCEL_data_grub", "CCEL_AAEL_alibabacloud"] {
        let Some(log) = log(name) else { return };
        for (index, value) in log.replay(Registers::Cc, HashAlgorithm::SHA384).unwrap() {
            assert_eq!(Register::extended(&digests(&log, index)).as_bytes(), value.as_slice(), "{name} {index}");
        }
    }
}

/// Sections of every 2 MiB and 4 MiB image of OVMF with TDX, by the vectors' one.
#[test]
fn the_td_hob_is_that_of_guests_with_2_and_10_gib() {
    let Some(image) = vector("virtee/tdx/tests/data/OVMF.inteltdx.fd") else { return };
    let firmware = TdxFirmware::parse(&image).unwrap();
    for (name, mib) in [("CCEL_data_ovmf", 2048), ("CCEL_data_grub", 10240)] {
        let Some(log) = log(name) else { return };
        let measured = digest(&log, EventType::EFI_HANDOFF_TABLES2);
        let of = |mib| firmware.machine_digests(GuestMemory::from_mib(mib).unwrap()).unwrap().td_hob;
        assert_eq!(of(mib), measured, "{name}");
        for other in [mib - 1, mib + 1, 4096] {
            assert_ne!(of(other), measured, "{name}");
        }
    }
}

/// An image of one page that wants this many pages of temporary memory, one every 8 KiB from 1 MiB on.
fn firmware_with_many_sections(count: u32) -> Vec<u8> {
    let mut image = vec![0x90; 4096];
    let mut sections = vec![(4096_u32, 0xffff_f000_u64, 0_u32, 1_u32), (0, 0x1000, 2, 0)];
    sections.extend((0..count).map(|n| (0, 0x10_0000 + 0x2000 * u64::from(n), 3, 0)));
    let number = sections.len() as u32;
    let mut metadata = [*b"TDVF", (16 + 32 * number).to_le_bytes(), 1_u32.to_le_bytes(), number.to_le_bytes()].concat();
    for (length, gpa, kind, attributes) in sections {
        metadata.extend([0, length].map(u32::to_le_bytes).concat());
        metadata.extend([gpa, 4096].map(u64::to_le_bytes).concat());
        metadata.extend([kind, attributes].map(u32::to_le_bytes).concat());
    }
    image[..metadata.len()].copy_from_slice(&metadata);
    let table = Footer::build(&[(TDX_METADATA, &4096_u32.to_le_bytes())]);
    let place = Footer::place(image.len(), &table).unwrap();
    image[place].copy_from_slice(&table);
    image
}

#[test]
fn refuses_memory_that_the_firmware_does_not_fit() {
    let memory = GuestMemory::from_mib(2048).unwrap();
    let image = firmware_with_many_sections(41);
    // Each cuts a range in two: 2 * (41 + 1) + 1 ranges, the handoff and the end: 4,144 bytes.
    let overrun = TdHobError::Overrun { found: 56 + 85 * 48 + 8, expected: 4096 };
    assert_eq!(TdxFirmware::parse(&image).unwrap().td_hob_content(memory), Err(overrun));
    let image = firmware_with_many_sections(40);
    let firmware = TdxFirmware::parse(&image).unwrap();
    assert_eq!(firmware.td_hob_content(memory).unwrap().len(), 56 + 83 * 48);
    assert_eq!(firmware.machine_digests(memory), Err(MachineError::NoConfiguration));
    let mut high = image.clone();
    // The address of the third section: the first one for temporary memory.
    high[16 + 2 * 32 + 8..][..8].copy_from_slice(&0x7fff_f000_u64.to_le_bytes());
    assert!(TdxFirmware::parse(&high).unwrap().td_hob_content(memory).is_ok(), "the last page");
    let less = GuestMemory::from_mib(2047).unwrap();
    let missing = TdHobError::NoMemory { kind: SectionKind::TemporaryMemory, gpa: 0x7fff_f000, size: 4096 };
    assert_eq!(TdxFirmware::parse(&high).unwrap().td_hob_content(less), Err(missing));
}

/// A guest of 2 GiB that QEMU booted directly, with the variable store of Debian's OVMF_VARS_4M.fd.
#[test]
fn rtmr_0_is_that_of_a_guest_whose_acpi_tables_are_given() {
    let Some(image) = vector("virtee/tdx/tests/data/OVMF.inteltdx.fd") else { return };
    let Some(log) = log("CCEL_data_ovmf") else { return };
    let td_hob = TdxFirmware::parse(&image).unwrap().machine_digests(GuestMemory::from_mib(2048).unwrap()).unwrap().td_hob;
    let configuration = bytes("344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790");
    if let Ok(variables) = std::fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd") {
        assert_eq!(sha384(&variables), configuration);
    }
    let acpi: Vec<Digest> = log
        .events()
        .iter()
        .filter(|event| event.kind == EventType::PLATFORM_CONFIG_FLAGS)
        .map(|event| event.digest(HashAlgorithm::SHA384).unwrap().try_into().unwrap())
        .collect();
    let acpi = AcpiTables(acpi.try_into().unwrap());
    let machine = MachineDigests { td_hob, configuration };
    let events = machine.rtmr_0(&acpi, Edk2::Before202411).unwrap();
    assert_eq!(events.iter().map(|event| event.digest).collect::<Vec<_>>(), digests(&log, 1));
    assert_eq!(
        Event::replay(&events).to_string(),
        "8566f998798db09443b244c62de9a3041fb02e2e6936c4396d784bba2e90177329ec5aba3bb484404f2ab9cc90abe193"
    );
    let later = machine.rtmr_0(&acpi, Edk2::From202411).unwrap();
    assert_eq!(later, events[..events.len() - 1], "the second separator went to RTMR1");
    for edk2 in [Edk2::From202505, Edk2::From202508] {
        assert_eq!(machine.rtmr_0(&acpi, edk2), Err(MachineError::Edk2 { edk2 }));
    }
}

#[test]
fn rtmr_1_is_that_of_a_guest_whose_kernel_is_given() {
    let Some(log) = log("CCEL_data_ovmf") else { return };
    let mut events = boot("quiet", Some(b"initrd")).rtmr_1(Edk2::Before202411);
    // The guest's kernel is not among the vectors: its digest is.
    events[0].digest = digest(&log, EventType::EFI_BOOT_SERVICES_APPLICATION);
    assert_eq!(events.iter().map(|event| event.digest).collect::<Vec<_>>(), digests(&log, 2));
    assert_eq!(
        Event::replay(&events).to_string(),
        "775b9f6bfe99f8a31396f0d0218e67ffa796d3b96ccf961cbb0deba48c79c00f082cda1a5567c1c16305f1fc210c13c6"
    );
}

/// The smallest kernel that is both an EFI application and a bzImage.
fn kernel() -> Vec<u8> {
    let mut kernel: Vec<u8> = (0..0x1000).map(|n| (n % 241) as u8).collect();
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x46, &1_u16.to_le_bytes());
    put(0x54, &(112 + 6 * 8_u16).to_le_bytes());
    put(0x58, &0x20b_u16.to_le_bytes());
    put(0x58 + 60, &0x600_u32.to_le_bytes());
    put(0x58 + 108, &6_u32.to_le_bytes());
    put(0x58 + 112 + 32, &[0; 8]);
    put(0x58 + 112 + 48 + 16, &0xa00_u32.to_le_bytes());
    put(0x58 + 112 + 48 + 20, &0x600_u32.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x236, &[3, 0]);
    kernel
}

fn boot(append: &str, initrd: Option<&[u8]>) -> DirectBoot {
    DirectBoot::new(kernel(), initrd.map(Initrd::of), append, KernelHeader::AsInFile).unwrap()
}

/// Recorded on hardware by another project: QEMU 10.2.4, edk2-stable202602, on a Xeon 6731E in September 2026. Its initrd has 80 MB;
/// its digest stands for it.
#[test]
fn rtmr_2_is_the_one_recorded_on_hardware() {
    let mut events = boot("root=LABEL=cloudimg-rootfs ro console=ttyS0", Some(b"initrd")).rtmr_2(Edk2::From202508);
    assert_eq!(
        hex::encode(events[0].digest),
        "b8c85d40a1d555a451571e24d7d7c4c331bc15721d6e4b2a5cb5093214c44174822a0916aa4d622d4309644de99cd59c"
    );
    events[1].digest = bytes("88de90bedcc560064688c74ccd6609a25ed9d48b0a0e13d8b2a558212724d8755b2c8114dcf04b8d51ea4cf7782e3091");
    assert_eq!(
        Event::replay(&events).to_string(),
        "972547466cb6bcb8a23cd479e9258c3affbbc4f0ba2805d732477200d0dff8432447c7a775e70453cdb51f018a306ece"
    );
}

/// By hand, byte for byte.
#[test]
fn the_command_line_is_measured_in_utf_16_with_its_nul() {
    let options = |append, initrd: Option<&[u8]>, edk2| boot(append, initrd).rtmr_2(edk2)[0].digest;
    assert_eq!(options("a b", None, Edk2::Before202411), sha384(b"a\0 \0b\0\0\0"));
    let behind = b"a\0 \0i\0n\0i\0t\0r\0d\0=\0i\0n\0i\0t\0r\0d\0\0\0";
    assert_eq!(options("a", Some(b"i"), Edk2::From202505), sha384(behind));
    let before = b"i\0n\0i\0t\0r\0d\0=\0i\0n\0i\0t\0r\0d\0 \0a\0\0\0";
    assert_eq!(options("a", Some(b"i"), Edk2::From202508), sha384(before));
    assert!(boot("", None).rtmr_2(Edk2::From202508).is_empty(), "nothing is measured of nothing");
    let initrd = boot("a", Some(b"some initrd")).rtmr_2(Edk2::From202508)[1];
    assert_eq!((initrd.what, initrd.digest), ("initrd", sha384(b"some initrd")));
}

/// Where logs have their own inputs: what GRUB and td-shim measured of the command line.
#[test]
fn logged_command_lines_are_what_was_measured() {
    let Some(grub) = log("CCEL_AAEL_alibabacloud") else { return };
    let line = grub.events().iter().find(|event| event.data.starts_with(b"grub_kernel_cmdline ")).unwrap();
    let text = line.data.strip_prefix(b"grub_kernel_cmdline ").unwrap();
    let end = text.iter().position(|byte| *byte == 0).unwrap();
    let measured = line.digest(HashAlgorithm::SHA384).unwrap();
    assert!(measured == sha384(&text[..end]) || measured == sha384(&text[..=end]));
    let Some(shim) = log("CCEL_data") else { return };
    let mut checked = 0;
    for event in shim.events() {
        if let Ok(Payload::TdShim { data, .. }) = event.payload() {
            assert_eq!(event.digest(HashAlgorithm::SHA384).unwrap(), sha384(data));
            checked += usize::from(data.starts_with(b"root=/dev/vda1 console=hvc0 rw\0"));
        }
    }
    assert_eq!(checked, 1, "the command line is among them");
}

#[test]
fn each_input_changes_its_register_and_no_other() {
    let of = |kernel: Vec<u8>, initrd: &[u8], append: &str, edk2| {
        let boot = DirectBoot::new(kernel, Some(Initrd::of(initrd)), append, KernelHeader::AsInFile).unwrap();
        (Event::replay(&boot.rtmr_1(edk2)), Event::replay(&boot.rtmr_2(edk2)))
    };
    let base = of(kernel(), b"initrd", "quiet", Edk2::From202508);
    let mut other = kernel();
    other[0xfff] ^= 1;
    let changed = of(other, b"initrd", "quiet", Edk2::From202508);
    assert!(changed.0 != base.0 && changed.1 == base.1);
    for changed in [of(kernel(), b"initre", "quiet", Edk2::From202508), of(kernel(), b"initrd", "quieu", Edk2::From202508)] {
        assert!(changed.0 == base.0 && changed.1 != base.1);
    }
    let separator = of(kernel(), b"initrd", "quiet", Edk2::Before202411);
    assert!(separator.0 != base.0 && separator.1 != base.1);
    assert_eq!(of(kernel(), b"initrd", "quiet", Edk2::From202411).0, base.0);
}

#[test]
fn a_header_that_qemu_fills_in_depends_on_memory_and_initrd() {
    let of = |mib, initrd: &[u8]| {
        let header = KernelHeader::FilledIn(GuestMemory::from_mib(mib).unwrap());
        DirectBoot::new(kernel(), Some(Initrd::of(initrd)), "quiet", header).unwrap().rtmr_1(Edk2::From202411)[0].digest
    };
    let base = of(2048, b"initrd");
    assert_ne!(base, boot("quiet", Some(b"initrd")).rtmr_1(Edk2::From202411)[0].digest);
    assert_ne!(base, of(2047, b"initrd"));
    assert_ne!(base, of(2048, b"initrds"));
    assert_eq!(base, of(2816, b"other."), "2 GiB below 4 GiB again, and an initrd of the same length");
}

#[test]
fn what_would_be_measured_otherwise_is_refused() {
    let refused = |kernel, initrd: Option<&[u8]>, append| {
        DirectBoot::new(kernel, initrd.map(Initrd::of), append, KernelHeader::AsInFile).unwrap_err()
    };
    for append in ["quiet\0", "kühl", "a\nb", "a\u{7f}"] {
        assert!(matches!(refused(kernel(), None, append), BootError::CommandLine { .. }), "{append:?}");
    }
    assert!(matches!(refused(kernel(), Some(b""), "quiet"), BootError::EmptyInitrd));
    assert!(matches!(refused(b"\x7fELF".to_vec(), None, "quiet"), BootError::Kernel(_)));
}

#[test]
fn files_are_measured_as_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (k, i) = (dir.path().join("k"), dir.path().join("i"));
    std::fs::write(&k, kernel()).unwrap();
    std::fs::write(&i, vec![3; 700_000]).unwrap();
    let of_files = DirectBoot::of_files(&k, Some(&i), "quiet", KernelHeader::AsInFile).unwrap();
    assert_eq!(of_files, boot("quiet", Some(&vec![3; 700_000])));
    let missing = DirectBoot::of_files(&dir.path().join("no-such-kernel"), None, "", KernelHeader::AsInFile).unwrap_err();
    assert!(missing.to_string().contains("no-such-kernel"), "{missing}");
}

#[test]
fn releases_are_known_by_their_names() {
    for edk2 in Edk2::ALL {
        assert_eq!(edk2.to_string().parse(), Ok(edk2));
    }
    assert!("202602".parse::<Edk2>().unwrap_err().contains("202508"));
}
