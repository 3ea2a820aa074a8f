//! ACPI tables of the host's own making, given to the kernel that guests run (AC-11).
//!
//! AML in them is code of the host's that the guest's kernel interprets. Each table first writes a letter to a port, which shows that
//! it runs, and then does what it must not. The guest's memory is a file, so that what AML wrote there can be looked for: with Debian's
//! own kernel it is there.

use std::fs;
use std::path::{Path, PathBuf};

use acpi_tables::aml::{
    Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, OpRegion, OpRegionSpace, Path as Name, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use anyhow::{Context, Result, ensure};

use crate::process;
use crate::world::World;

/// A port that q35 has nothing at.
const PORT: u16 = 0x7a0;
/// In the middle of memory, where no table or firmware lies.
const ADDRESS: u32 = 128 << 20;
const MEMORY_MIB: u64 = 256;
/// What AML writes there.
const MARK: u32 = 0x6c6d_6163;
/// Long enough for a machine that is busy; a boot takes seconds.
const DEADLINE_S: &str = "120";

/// One field at the start of a region, of so many bits.
fn field(region: &str, access: FieldAccessType, name: [u8; 4], bits: usize) -> Field {
    Field::new(region.into(), access, FieldLockRule::NoLock, FieldUpdateRule::Preserve, vec![FieldEntry::Named(name, bits)])
}

/// A secondary table of the host's whose AML is run when it is loaded.
fn table(id: u8, content: &[&dyn Aml]) -> Sdt {
    let mut table = Sdt::new(*b"SSDT", 36, 2, *b"HOSTIS", [b'H', b'O', b'S', b'T', b'A', b'M', b'L', id], 1);
    for part in content {
        part.to_aml_bytes(&mut table);
    }
    table.update_checksum();
    table
}

/// A region of a table: "DataTableRegion" (ACPI 6.5, section 20.2.5.2), which the crate does not have.
struct DataTableRegion(&'static str);

impl Aml for DataTableRegion {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&[0x5b, 0x88]);
        Name::new(self.0).to_aml_bytes(sink);
        // Signature, OEM and name of the table.
        for text in ["SSDT", "HOSTIS", "HOSTAML1"] {
            text.to_aml_bytes(sink);
        }
    }
}

/// Writes a table that says its letter at the port and then goes on.
fn write(dir: &Path, letter: u8, then: &[&dyn Aml]) -> Result<PathBuf> {
    let [region, out] = [b"PRT", b"OUT"].map(|prefix| name(prefix, letter));
    let port = OpRegion::new(region.as_str().into(), OpRegionSpace::SystemIO, &PORT, &1_u8);
    let field = field(&region, FieldAccessType::Byte, [b'O', b'U', b'T', letter], 8);
    let out = Name::new(&out);
    let content: [&dyn Aml; 3] = [&port, &field, &Store::new(&out, &letter)];
    let table = table(letter, &[&content, then].concat());
    let path = dir.join(format!("host-aml-{}.bin", char::from(letter)));
    fs::write(&path, table.as_slice()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn name(prefix: &[u8; 3], letter: u8) -> String {
    prefix.iter().chain([&letter]).map(|byte| char::from(*byte)).collect()
}

/// The kernel interprets the host's AML as far as ports, and refuses it memory and tables.
pub(crate) fn kept_out_of_memory(world: &World) -> Result<()> {
    let dir = world.work();
    let memory = OpRegion::new("MEM1".into(), OpRegionSpace::SystemMemory, &ADDRESS, &4_u8);
    let (value, byte) = (Name::new("VAL1"), Name::new("VAL2"));
    let to_memory: [&dyn Aml; 3] = [&memory, &field("MEM1", FieldAccessType::DWord, *b"VAL1", 32), &Store::new(&value, &MARK)];
    let to_table: [&dyn Aml; 3] = [&DataTableRegion("TAB2"), &field("TAB2", FieldAccessType::Byte, *b"VAL2", 8), &Store::new(&byte, &ZERO)];
    let tables = [write(dir, b'1', &to_memory)?, write(dir, b'2', &to_table)?, write(dir, b'3', &[])?];

    let (port, console, ram) = (dir.join("aml-port"), dir.join("aml-console"), dir.join("aml-memory"));
    let artifacts = world.artifacts();
    let mut qemu = vec![DEADLINE_S.into(), "/usr/bin/qemu-system-x86_64".into()];
    let machine = ["-machine", "q35,accel=tcg,smm=off,memory-backend=ram", "-cpu", "max", "-smp", "1", "-nodefaults", "-no-user-config"];
    qemu.extend(machine.map(String::from));
    qemu.extend(["-display", "none", "-vga", "none", "-no-reboot", "-append", "console=ttyS0 reboot=k panic=-1"].map(String::from));
    qemu.extend(["-m".into(), format!("{MEMORY_MIB}M")]);
    qemu.extend(["-object".into(), format!("memory-backend-file,id=ram,size={MEMORY_MIB}M,share=on,mem-path={}", ram.display())]);
    qemu.extend(["-serial".into(), format!("file:{}", console.display())]);
    qemu.extend(["-chardev".into(), format!("file,id=port,path={}", port.display())]);
    qemu.extend(["-device".into(), format!("isa-debugcon,iobase={PORT:#x},chardev=port")]);
    for table in &tables {
        qemu.extend(["-acpitable".into(), format!("file={}", table.display())]);
    }
    for (option, path) in [("-bios", artifacts.firmware()), ("-kernel", artifacts.kernel()), ("-initrd", artifacts.bare_initrd())] {
        qemu.extend([option.into(), path.display().to_string()]);
    }
    process::run("timeout", &qemu)?;

    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (said, console, memory) = (read(&port)?, String::from_utf8_lossy(&read(&console)?).into_owned(), read(&ram)?);
    fs::remove_file(&ram)?;
    ensure!(said == b"123", "expected the three tables to say 123 at the port, found {:?}; console:\n{console}", said.escape_ascii());
    for refusal in [format!("AML may not reach memory at 0x{ADDRESS:016X}"), "AML may not reach tables at 0x".into()] {
        ensure!(console.contains(&refusal), "the kernel does not say {refusal:?}:\n{console}");
    }
    let there = memory.get(ADDRESS as usize..ADDRESS as usize + 4);
    ensure!(there != Some(&MARK.to_le_bytes()), "AML of the host wrote to the guest's memory");
    Ok(())
}
