//! The report interface and the TDX device through the real kernel's FUSE, as the agent will use them. Needs root and /dev/fuse; skips loudly without.

#![allow(clippy::unwrap_used, unsafe_code)] // helpers of tests: to panic is to fail; ioctl(2) on the device

use kata_cc_tee_sim::guest::device::TdReports;
use kata_cc_tee_sim::guest::tsm::{Hardware, Provider, Refusal};
use kata_cc_tee_sim::guest::{serve_device, serve_from};
use kata_cc_tee_sim::wire::Blobs;
use nix::mount::{MntFlags, umount2};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc;

/// Answers with its input, and with a certificate table larger than a page.
struct Echo;

impl Hardware for Echo {
    fn report(&mut self, report_data: &[u8; 64], vmpl: u8) -> Result<Blobs, Refusal> {
        let outblob = [report_data.as_slice(), &[vmpl; 1120]].concat();
        Ok(Blobs { outblob, auxblob: (0..20_000u32).map(|i| (i % 241) as u8).collect() })
    }
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// A TD's report of itself with its report data in every field.
impl TdReports for Echo {
    fn td_report(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, Refusal> {
        Ok(report_data.repeat(16))
    }
}

mod ioctl {
    nix::ioctl_readwrite!(get_report0, b'T', 1, [u8; 1088]);
    nix::ioctl_readwrite!(other, b'T', 2, [u8; 1088]);
}

#[test]
fn the_device_answers_its_ioctl() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: needs root and /dev/fuse");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("tdx_guest");
    fs::write(&at, b"").unwrap();
    if let Err(e) = serve_device(&at, Echo) {
        eprintln!("SKIPPED: cannot mount FUSE here: {e:?}");
        return;
    }
    let _mounted = Mounted(&at);
    let device = fs::File::open(&at).unwrap();
    let mut request = [0u8; 1088];
    request[..64].fill(7);
    // SAFETY: the file is open, and `request` has the 1088 bytes that the number says are read and written.
    assert_eq!(unsafe { ioctl::get_report0(device.as_raw_fd(), &raw mut request) }, Ok(0));
    assert_eq!(request, [7; 1088]);
    // SAFETY: as above.
    assert_eq!(unsafe { ioctl::other(device.as_raw_fd(), &raw mut request) }, Err(nix::errno::Errno::ENOTTY));
}

#[test]
fn the_mount_behaves_as_the_kernels_report_interface() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: needs root and /dev/fuse");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_path_buf();
    let (ready, is_ready) = mpsc::channel();
    let server = std::thread::spawn({
        let at = at.clone();
        move || serve_from(&at, Echo, Provider::SevGuest, || ready.send(()).map_err(std::io::Error::other))
    });
    if is_ready.recv().is_err() {
        let e = server.join().unwrap().unwrap_err();
        eprintln!("SKIPPED: cannot mount FUSE here: {e:?}");
        return;
    }
    let mounted = Mounted(&at);

    let entry = at.join("kata-cc-0");
    fs::create_dir(&entry).unwrap();
    assert_eq!(errno(fs::create_dir(&entry)), nix::libc::EEXIST);
    let mut names: Vec<String> = fs::read_dir(&entry).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["auxblob", "generation", "inblob", "outblob", "privlevel", "privlevel_floor", "provider"]);
    assert_eq!(fs::read_to_string(entry.join("provider")).unwrap(), "sev_guest\n");
    assert_eq!(fs::read_to_string(entry.join("generation")).unwrap(), "0\n");
    assert_eq!(errno(fs::read(entry.join("outblob"))), nix::libc::EINVAL);

    fs::write(entry.join("inblob"), [7u8; 64]).unwrap();
    assert_eq!(fs::read_to_string(entry.join("generation")).unwrap(), "1\n");
    let outblob = fs::read(entry.join("outblob")).unwrap();
    assert_eq!((outblob.len(), &outblob[..64]), (1184, [7u8; 64].as_slice()));
    assert_eq!(fs::read(entry.join("auxblob")).unwrap().len(), 20_000);

    // A reader with a small buffer sees one consistent blob.
    let mut file = fs::File::open(entry.join("auxblob")).unwrap();
    let mut whole = Vec::new();
    let mut piece = [0u8; 777];
    loop {
        match file.read(&mut piece).unwrap() {
            0 => break,
            n => whole.extend_from_slice(&piece[..n]),
        }
    }
    // An open file would keep the file system alive beyond the unmounting.
    drop(file);
    assert!(whole.len() == 20_000 && whole.iter().enumerate().all(|(i, b)| *b == (i % 241) as u8));

    fs::write(entry.join("privlevel"), "1").unwrap();
    assert_eq!(fs::read_to_string(entry.join("generation")).unwrap(), "2\n");
    assert_eq!(fs::read(entry.join("outblob")).unwrap()[64], 1);

    let mut too_long = fs::OpenOptions::new().write(true).open(entry.join("inblob")).unwrap();
    assert_eq!(errno(too_long.write_all(&[0; 65])), nix::libc::EFBIG);
    drop(too_long);
    assert_eq!(errno(fs::write(entry.join("other"), "x")), nix::libc::EACCES);
    assert_eq!(errno(fs::remove_file(entry.join("inblob"))), nix::libc::EPERM);
    fs::remove_dir(&entry).unwrap();
    assert_eq!(errno(fs::metadata(&entry)), nix::libc::ENOENT);

    drop(mounted);
    server.join().unwrap().unwrap();
}
