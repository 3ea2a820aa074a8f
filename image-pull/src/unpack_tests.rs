//! Tests of archive reader and unpacker together: what lands where, and what is refused. Attack case AC-42 and those about whiteouts, AC-75 and AC-79.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use crate::limits::Limits;
use crate::testing::{Tar, chain_of, entries, is_root, needs_root};
use crate::unpack::{Options, Ownership, UnpackError, Unpacked, unpack};

fn unpack_with(archive: &[u8], root: &Path, limits: &Limits) -> Result<Unpacked, UnpackError> {
    let ownership = if is_root() { Ownership::FromImage } else { Ownership::Caller };
    unpack(archive, root, &Options { limits, ownership, entries: &AtomicU64::new(0) })
}

/// Unpacks into `root/in`, so that an escape would show beside it.
fn try_unpack(archive: &[u8]) -> (tempfile::TempDir, Result<Unpacked, UnpackError>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let outcome = unpack_with(archive, &dir.path().join("in"), &Limits::default());
    assert_eq!(entries(dir.path()), 1, "something was made outside");
    (dir, outcome)
}

#[track_caller]
fn good(archive: &[u8]) -> tempfile::TempDir {
    let (dir, outcome) = try_unpack(archive);
    outcome.unwrap();
    dir
}

#[track_caller]
fn refused(archive: &[u8], expected: &str) {
    let (_dir, outcome) = try_unpack(archive);
    let text = chain_of(&outcome.expect_err(expected));
    assert!(text.contains(expected), "expected {expected:?}: {text}");
}

fn read(dir: &tempfile::TempDir, path: &str) -> Vec<u8> {
    std::fs::read(dir.path().join("in").join(path)).unwrap()
}

fn meta(dir: &tempfile::TempDir, path: &str) -> std::fs::Metadata {
    std::fs::symlink_metadata(dir.path().join("in").join(path)).unwrap()
}

#[test]
fn writes_files_links_modes_and_times() {
    let archive = Tar::default()
        .dir("./", 0o750)
        .dir("d/", 0o2755)
        .raw(Tar::header(b"./d/suid", b'0', 3, b"", 0o4755), b"abc")
        .hard("d/hard", "./d/suid")
        .link("d/soft", "/etc/passwd")
        .dir("locked", 0o500)
        .file("locked/f", b"x")
        .end();
    let dir = good(&archive);
    assert_eq!(meta(&dir, "").mode() & 0o7777, 0o750);
    assert_eq!(meta(&dir, "d").mode() & 0o7777, 0o2755);
    assert_eq!(meta(&dir, "d/suid").mode() & 0o7777, 0o4755);
    assert_eq!(meta(&dir, "d/hard").ino(), meta(&dir, "d/suid").ino());
    assert_eq!(std::fs::read_link(dir.path().join("in/d/soft")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(read(&dir, "locked/f"), b"x");
    for path in ["", "d", "d/suid", "d/soft", "locked"] {
        assert_eq!(meta(&dir, path).mtime(), 1_700_000_000, "{path}");
    }
}

#[test]
fn reads_pax_and_gnu_long_names() {
    let long = "l/".to_owned() + &"n".repeat(200);
    let target = "t".repeat(300);
    let archive = Tar::default()
        .pax(&[("path", long.as_bytes()), ("mtime", b"1600000000.25"), ("comment", b"x")])
        .file("short", b"1")
        .raw(Tar::header(b"././@LongLink", b'L', 151, b"", 0), &[&[b'g'; 150][..], &[0]].concat())
        .file("ggg", b"2")
        .raw(Tar::header(b"././@LongLink", b'K', 301, b"", 0), format!("{target}\0").as_bytes())
        .link("soft", "ttt")
        .end();
    let dir = good(&archive);
    assert_eq!(read(&dir, &long), b"1");
    assert_eq!((meta(&dir, &long).mtime(), meta(&dir, &long).mtime_nsec()), (1_600_000_000, 250_000_000));
    assert_eq!(read(&dir, &"g".repeat(150)), b"2");
    assert_eq!(std::fs::read_link(dir.path().join("in/soft")).unwrap(), Path::new(&target));
}

#[test]
fn reads_ustar_prefixes_and_base_256_numbers() {
    let mut header = Tar::header(b"name", b'0', 0, b"", 0o644);
    header[345..351].copy_from_slice(b"prefix");
    header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    header[136..148].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]);
    Tar::seal(&mut header);
    let dir = good(&Tar::default().raw(header, b"ab").end());
    assert_eq!(read(&dir, "prefix/name"), b"ab");
    assert_eq!(meta(&dir, "prefix/name").mtime(), -2);
}

#[test]
fn ac42_refuses_names_that_lead_out() {
    for name in ["../x", "a/../../x", "a/..", "..", "./../x"] {
        refused(&Tar::default().file(name, b"1").end(), "leads out of its directory");
    }
    refused(&Tar::default().file("/../x", b"1").end(), "leads out of its directory");
    refused(&Tar::default().pax(&[("path", b"../x")]).file("ok", b"1").end(), "leads out of its directory");
    refused(&Tar::default().pax(&[("path", b"a\0b")]).file("ok", b"1").end(), "malformed pax record");
    refused(&Tar::default().file("", b"1").end(), "an empty name");
    refused(&Tar::default().hard("a", "../x").end(), "leads out of its directory");
    refused(&Tar::default().hard("a", "/etc/passwd").end(), "not in this layer");
}

#[test]
fn takes_absolute_names_beneath_the_root() {
    let dir = good(&Tar::default().dir("/", 0o755).file("/ko-app/x", b"1").end());
    assert_eq!(read(&dir, "ko-app/x"), b"1");
}

#[test]
fn ac42_refuses_to_go_through_links_planted_before() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    for link in [target, "..", "/", "d"] {
        let through = Tar::default().dir("d", 0o755).link("l", link);
        refused(&through.clone().file("l/x", b"1").end(), "a link or a file in this layer");
        refused(&through.clone().dir("l/y", 0o777).end(), "a link or a file in this layer");
        refused(&through.clone().file("l/.wh.x", b"").end(), "a link or a file in this layer");
        refused(&through.hard("h", "l/passwd").end(), "not in this layer");
    }
    assert_eq!(entries(outside.path()), 0);
}

#[test]
fn ac42_ac79_an_entry_replaces_a_link_and_never_changes_what_it_points_to() {
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("f");
    std::fs::write(&file, "outside").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let before = std::fs::metadata(&file).unwrap();
    let directory_before = std::fs::metadata(outside.path()).unwrap().mode();
    let target = file.to_str().unwrap();
    let dir = good(&Tar::default().link("l", target).file("l", b"inside").end());
    assert_eq!(read(&dir, "l"), b"inside");
    let replaced = Tar::default().link("l", outside.path().to_str().unwrap()).dir("l", 0o777).end();
    if needs_root("ac79: a directory in place of a link") {
        assert!(meta(&good(&replaced), "l").is_dir());
    } else {
        refused(&replaced, "trusted.overlay.opaque");
    }
    good(&Tar::default().raw(Tar::header(b"l", b'2', 0, target.as_bytes(), 0o4777), b"").end());
    let after = std::fs::metadata(&file).unwrap();
    assert_eq!((after.mode(), after.mtime(), after.size()), (before.mode(), before.mtime(), before.size()));
    assert_eq!(std::fs::metadata(outside.path()).unwrap().mode(), directory_before);
}

#[test]
fn a_hard_link_to_a_link_links_the_link() {
    let dir = good(&Tar::default().link("l", "/etc/passwd").hard("h", "l").end());
    assert_eq!(std::fs::read_link(dir.path().join("in/h")).unwrap(), Path::new("/etc/passwd"));
}

#[test]
fn ac42_refuses_sizes_that_contradict() {
    refused(&Tar::default().pax(&[("size", b"3")]).file("f", b"").end(), "pax says a size of 3 bytes, the header says 0");
    refused(&Tar::default().pax(&[("size", b"0")]).file("f", &[0; 512]).end(), "pax says a size");
    refused(&Tar::default().pax(&[("size", b"-1")]).file("f", b"").end(), "the size is no number");
    refused(&Tar::default().raw(Tar::header(b"d", b'5', 512, b"", 0o755), &[0; 512]).end(), "no file but has 512 bytes");
    refused(&Tar::default().raw(Tar::header(b"l", b'2', 512, b"x", 0o755), &[0; 512]).end(), "no file but has 512 bytes");
    let mut header = Tar::header(b"f", b'0', 0, b"", 0o644);
    header[124..136].fill(0xff);
    Tar::seal(&mut header);
    refused(&Tar::default().raw(header, b"").end(), "a negative size");
    header[124] = 0x80;
    Tar::seal(&mut header);
    refused(&Tar::default().raw(header, b"").end(), "the size is no number");
    refused(&Tar::default().raw(Tar::header(b"f", b'0', 1 << 30, b"", 0o644), b"x").end(), "ends inside an entry");
}

/// A header with these bytes at this place, its checksum made to fit.
fn with(at: usize, bytes: &[u8]) -> [u8; 512] {
    let mut header = Tar::header(b"f", b'0', 0, b"", 0o644);
    header[at..at + bytes.len()].copy_from_slice(bytes);
    Tar::seal(&mut header);
    header
}

#[test]
fn ac42_refuses_numbers_that_two_readers_take_differently() {
    // Digits after the end, or after a leading zero byte, which Go skips: the size there says 512, here it would say 0.
    for bytes in [b"\x000000001000\0".as_slice(), b"0\x00000001000\0", b"0000000\x0010 \0", b"          \x001"] {
        refused(&Tar::default().raw(with(124, bytes), b"").end(), "the size goes on after its end");
    }
    for (at, what) in [(100, "the mode"), (108, "the owner"), (116, "the group")] {
        refused(&Tar::default().raw(with(at, b"\x000644\0"), b"").end(), &format!("{what} goes on after its end"));
    }
    refused(&Tar::default().raw(with(136, b"0\x000000001\0"), b"").end(), "the modification time goes on after its end");
    let mut header = Tar::header(b"f", b'0', 0, b"", 0o644);
    header[155] = b'1';
    refused(&Tar::default().raw(header, b"").end(), "the checksum goes on after its end");
    // Other white space is none to Go.
    refused(&Tar::default().raw(with(124, b"\t0000000000\0"), b"").end(), "the size is no number");
    refused(&Tar::default().raw(with(124, b"0000 0000000"), b"").end(), "the size is no number");
    // What writers do: spaces before and after, no end, nothing at all.
    for bytes in [b"          0 ".as_slice(), b"000000000000", b"0 \0\0 \0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\0\0\0\0\0", b"            "] {
        good(&Tar::default().raw(with(124, bytes), b"").end());
    }
}

#[test]
fn ac42_refuses_gnu_headers_with_what_others_take_for_a_prefix_of_the_name() {
    let gnu = |at: usize, bytes: &[u8]| {
        let mut header = Tar::header(b"f", b'0', 0, b"", 0o644);
        header[257..265].copy_from_slice(b"ustar  \0");
        header[at..at + bytes.len()].copy_from_slice(bytes);
        Tar::seal(&mut header);
        Tar::default().raw(header, b"").end()
    };
    refused(&gnu(345, b"etc"), "the time of access is no number: other readers take it for a part of the name");
    refused(&gnu(345, b"777\x007"), "the time of access goes on after its end");
    refused(&gnu(357, b"x"), "the time of change is no number");
    for (at, bytes) in
        [(345, b"14524770400\x0014524770400\0".as_slice()), (357, b"14524770400\0"), (345, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])]
    {
        assert!(meta(&good(&gnu(at, bytes)), "f").is_file());
    }
}

#[test]
fn ac42_refuses_extension_headers_that_two_readers_take_differently() {
    let pax = |records: &[(&str, &[u8])]| Tar::default().pax(records);
    refused(&pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("c", b"").end(), "a second pax header");
    refused(&pax(&[("path", b"a"), ("path", b"b")]).file("c", b"").end(), "twice");
    refused(
        &pax(&[("path", b"a")]).raw(Tar::header(b"x", b'L', 2, b"", 0), b"b\0").file("c", b"").end(),
        "both by pax and by a GNU long name",
    );
    refused(&pax(&[("path", b"a")]).end(), "ends after an extension header");
    refused(&pax(&[("GNU.sparse.major", b"1")]).file("f", b"").end(), "a sparse file");
    refused(&Tar::default().raw(Tar::header(b"f", b'S', 0, b"", 0o644), b"").end(), "a sparse file");
    refused(&Tar::default().raw(Tar::header(b"g", b'g', 10, b"", 0), b"10 path=a\n").end(), "a global pax header sets");
    refused(&Tar::default().raw(Tar::header(b"x", b'x', 12, b"", 0), b"99 path=abc\n").end(), "a malformed pax record");
    refused(&Tar::default().raw(Tar::header(b"x", b'x', 1 << 30, b"", 0), b"").end(), "an extension header of");
    refused(&Tar::default().raw(Tar::header(b"v", b'V', 0, b"", 0), b"").end(), "unknown type 'V'");
}

#[test]
fn ac42_refuses_headers_with_a_wrong_checksum_and_data_between_end_blocks() {
    let mut header = Tar::header(b"f", b'0', 0, b"", 0o644);
    header[0] = b'g';
    refused(&Tar::default().raw(header, b"").end(), "the checksum is wrong");
    let mut single = vec![0u8; 512];
    single.extend(Tar::default().file("f", b"").end());
    refused(&single, "a header after a single block of zeros");
}

#[test]
fn an_archive_may_end_without_end_blocks_or_be_empty() {
    let dir = good(&Tar::default().file("f", b"1").0);
    assert_eq!(read(&dir, "f"), b"1");
    let unpadded = Tar::default().file("f", b"123").0;
    let dir = good(&unpadded[..515]);
    assert_eq!(read(&dir, "f"), b"123");
    refused(&unpadded[..514], "ends inside an entry");
    refused(&unpadded[..516], "ends inside an entry");
    refused(&unpadded[..511], "ends inside an entry");
    good(&[]);
    good(&[0; 512]);
}

#[test]
fn later_entries_of_a_name_replace_earlier_ones_and_directories_merge() {
    let dir = good(
        &Tar::default()
            .file("a", b"1")
            .file("a", b"2")
            .dir("d", 0o700)
            .file("d/x", b"x")
            .dir("d", 0o755)
            .file("d/y", b"y")
            .dir("gone", 0o755)
            .dir("gone/deep/er", 0o755)
            .file("gone/deep/er/f", b"")
            .file("gone", b"file now")
            .end(),
    );
    assert_eq!(read(&dir, "a"), b"2");
    assert_eq!((read(&dir, "d/x"), read(&dir, "d/y"), meta(&dir, "d").mode() & 0o777), (b"x".to_vec(), b"y".to_vec(), 0o755));
    assert_eq!(read(&dir, "gone"), b"file now");
}

#[test]
fn refuses_attributes_that_are_overlayfs_own_or_unknown() {
    for key in
        ["trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.x", "user.overlay.opaque", "system.posix_acl_access", "security.x"]
    {
        let archive = Tar::default().pax(&[(&format!("SCHILY.xattr.{key}"), b"y")]).file("f", b"").end();
        refused(&archive, "only user.* and security.capability are allowed");
    }
    good(&Tar::default().pax(&[("SCHILY.xattr.security.selinux", b"label"), ("SCHILY.acl.access", b"u::rw")]).file("f", b"").end());
    refused(&Tar::default().pax(&[("SCHILY.xattr.user.x", b"y")]).link("l", "t").end(), "extended attributes on a link");
}

#[test]
fn refuses_devices_that_are_whiteouts_in_disguise() {
    refused(&Tar::default().device("x", b'3', 0, 0).end(), "which is overlayfs's whiteout");
    // Numbers of which only zeros would be left in a device number.
    for (major, minor, expected) in [
        (1 << 12, 0, "the device's major number 4096, expected one below 4096"),
        (0, 1 << 20, "the device's minor number 1048576, expected one below 1048576"),
        (1 << 20, 1 << 20, "the device's major number"),
    ] {
        for kind in [b'3', b'4'] {
            refused(&Tar::default().device("x", kind, major, minor).end(), expected);
        }
    }
    let mut header = Tar::header(b"x", b'3', 0, b"", 0o600);
    header[329..337].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]);
    Tar::seal(&mut header);
    refused(&Tar::default().raw(header, b"").end(), "the device's major number 4294967296");
}

#[test]
fn ac42_refuses_devices_in_headers_that_have_no_device_numbers() {
    let mut header = Tar::header(b"null", b'3', 0, b"", 0o666);
    header[329..336].copy_from_slice(b"0000001");
    header[337..344].copy_from_slice(b"0000003");
    for magic in [[0; 8], *b"ustar \x000"] {
        header[257..265].copy_from_slice(&magic);
        Tar::seal(&mut header);
        refused(&Tar::default().raw(header, b"").end(), "a device in a header of the format before POSIX");
    }
}

#[test]
fn ac48_another_spelling_of_a_name_is_the_same_file() {
    let spelled = ["etc/passwd", "./etc/passwd", "/etc/passwd", "etc//./passwd"];
    for first in spelled {
        for second in spelled {
            let dir = good(&Tar::default().file(first, b"root:x:0:0").file(second, b"last").end());
            assert_eq!(read(&dir, "etc/passwd"), b"last", "{first} {second}");
            assert_eq!(entries(&dir.path().join("in/etc")), 1);
        }
    }
}

#[test]
fn ac35_refuses_devices_other_than_the_harmless_ones() {
    // Memory, the kernel's log, a misc device as the one that asks the TEE for evidence is, a disk, and numbers beside those that are allowed.
    for (major, minor) in [(1, 1), (1, 4), (1, 11), (10, 124), (10, 229), (5, 3), (4, 0), (0, 1)] {
        refused(&Tar::default().device("x", b'3', major, minor).end(), &format!("the character device {major}:{minor}, expected one of"));
    }
    for (major, minor) in [(7, 0), (8, 0), (253, 0), (1, 3), (0, 0)] {
        refused(&Tar::default().device("x", b'4', major, minor).end(), &format!("the block device {major}:{minor}"));
    }
    if needs_root("ac35: devices that are allowed") {
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
            assert_eq!(meta(&good(&Tar::default().device("x", b'3', major, minor).end()), "x").rdev(), rustix::fs::makedev(major, minor));
        }
    }
}

#[test]
fn refuses_owners_that_mean_nobody() {
    refused(&Tar::default().pax(&[("uid", b"4294967295")]).file("f", b"").end(), "out of range");
    refused(&Tar::default().pax(&[("gid", b"4294967296")]).file("f", b"").end(), "out of range");
}

#[test]
fn refuses_more_than_the_limits() {
    let long = "a/".repeat(2100) + "b";
    refused(&Tar::default().pax(&[("path", long.as_bytes())]).file("f", b"").end(), "a name of 4201 bytes");
    let deep =
        |parts: usize| Tar::default().pax(&[("path", ["d/".repeat(parts - 1), "f".to_owned()].concat().as_bytes())]).file("f", b"").end();
    refused(&deep(256), "a name of more than 255 parts");
    let dir = good(&deep(255));
    assert!(meta(&dir, &("d/".repeat(254) + "f")).is_file());
    refused(
        &Tar::default().pax(&[("linkpath", "d/".repeat(256).as_bytes())]).hard("h", "x").end(),
        "a hard link to a name of more than 255 parts",
    );
    refused(&Tar::default().pax(&[("path", &[b'a'; 256])]).file("f", b"").end(), "longer than 255 bytes");
    let keys: Vec<String> = (0..65).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"v"[..])).collect();
    refused(&Tar::default().pax(&records).file("f", b"").end(), "65 extended attributes");
}

#[test]
fn root_makes_devices_owners_and_capabilities() {
    if !needs_root("root_makes_devices_owners_and_capabilities") {
        return;
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let dir = good(
        &Tar::default()
            .device("null", b'3', 1, 3)
            .raw(Tar::header(b"fifo", b'6', 0, b"", 0o622), b"")
            .pax(&[("uid", b"1000"), ("gid", b"70000"), ("SCHILY.xattr.security.capability", &capability)])
            .raw(Tar::header(b"f", b'0', 0, b"", 0o6755), b"")
            .pax(&[("uid", b"7")])
            .link("l", "nowhere")
            .end(),
    );
    assert!(meta(&dir, "null").file_type().is_char_device());
    assert_eq!((rustix::fs::major(meta(&dir, "null").rdev()), rustix::fs::minor(meta(&dir, "null").rdev())), (1, 3));
    assert!(meta(&dir, "fifo").file_type().is_fifo());
    assert_eq!(meta(&dir, "fifo").mode() & 0o7777, 0o622);
    assert_eq!((meta(&dir, "f").uid(), meta(&dir, "f").gid(), meta(&dir, "f").mode() & 0o7777), (1000, 70000, 0o6755));
    assert_eq!(meta(&dir, "l").uid(), 7);
    let mut value = [0u8; 64];
    let length = rustix::fs::getxattr(dir.path().join("in/f"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..length], capability);
}

fn opaque(dir: &tempfile::TempDir, path: &str) -> bool {
    let mut value = [0u8; 2];
    rustix::fs::getxattr(dir.path().join("in").join(path), "trusted.overlay.opaque", &mut value[..]) == Ok(1)
}

fn is_whiteout(dir: &tempfile::TempDir, path: &str) -> bool {
    meta(dir, path).file_type().is_char_device() && meta(dir, path).rdev() == 0
}

#[test]
fn ac75_whiteouts_become_what_overlayfs_reads() {
    if !needs_root("ac75_whiteouts_become_what_overlayfs_reads") {
        return;
    }
    let dir =
        good(&Tar::default().dir("d", 0o755).file("d/.wh.x", b"").dir("o", 0o755).file("o/.wh..wh..opq", b"").file("i/.wh.y", b"").end());
    assert!(is_whiteout(&dir, "d/x") && is_whiteout(&dir, "i/y") && opaque(&dir, "o"));
    let names: Vec<_> = std::fs::read_dir(dir.path().join("in/o")).unwrap().collect();
    assert!(names.is_empty());
}

#[test]
fn a_whiteout_hides_nothing_of_its_own_layer_whichever_comes_first() {
    if !needs_root("a_whiteout_hides_nothing_of_its_own_layer_whichever_comes_first") {
        return;
    }
    for archive in [
        Tar::default().file("f", b"1").file(".wh.f", b"").dir("d", 0o755).file("d/x", b"").file(".wh.d", b""),
        Tar::default().file(".wh.f", b"").file("f", b"1").file(".wh.d", b"").dir("d", 0o755).file("d/x", b""),
        Tar::default().file(".wh.f", b"").file("f", b"1").file(".wh.d", b"").file("d/x", b""),
    ] {
        let dir = good(&archive.end());
        assert_eq!(read(&dir, "f"), b"1");
        assert!(opaque(&dir, "d") && meta(&dir, "d/x").is_file());
    }
}

#[test]
fn ac75_what_a_name_hid_stays_hidden_however_often_it_is_used() {
    if !needs_root("ac75_what_a_name_hid_stays_hidden_however_often_it_is_used") {
        return;
    }
    for archive in [
        Tar::default().file(".wh.d", b"").file("d", b"1").dir("d", 0o755),
        Tar::default().dir("d", 0o755).file("d/.wh..wh..opq", b"").file("d", b"1").dir("d", 0o755),
        Tar::default().file("d", b"1").dir("d", 0o755),
        Tar::default().link("d", "/etc").dir("d", 0o755),
        Tar::default().device("d", b'3', 1, 3).dir("d", 0o755),
    ] {
        let dir = good(&archive.file("d/x", b"").end());
        assert!(opaque(&dir, "d") && meta(&dir, "d/x").is_file());
    }
    // A directory that is named twice hides nothing.
    assert!(!opaque(&good(&Tar::default().dir("d", 0o755).dir("d", 0o700).end()), "d"));
}

#[test]
fn ac42_refuses_whiteouts_of_no_name_and_links_to_whiteouts() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh...", ".wh.x/y"] {
        let (_dir, outcome) = try_unpack(&Tar::default().file(name, b"").end());
        assert!(outcome.is_err(), "{name}");
    }
    // aufs's own bookkeeping is left out.
    let dir = good(&Tar::default().dir(".wh..wh.plnk", 0o700).file(".wh..wh.plnk/1.2", b"").file(".wh..wh.aufs", b"").end());
    assert_eq!(entries(&dir.path().join("in")), 0);
    refused(&Tar::default().hard("h", ".wh.x").end(), "a hard link to a whiteout name");
    if needs_root("hard link to a whiteout") {
        refused(&Tar::default().file(".wh.x", b"").hard("h", "x").end(), "a hard link to a whiteout");
    }
}

#[test]
fn ac75_refuses_an_opaque_whiteout_of_the_root_which_would_hide_nothing() {
    for name in [".wh..wh..opq", "./.wh..wh..opq", "/.wh..wh..opq"] {
        refused(&Tar::default().dir("./", 0o755).file(name, b"").end(), "an opaque whiteout of the root");
    }
}

#[test]
fn refuses_whiteouts_it_cannot_make_rather_than_leaving_them_out() {
    if is_root() {
        return; // root can make them; that they are made is tested above
    }
    refused(&Tar::default().dir("o", 0o755).file("o/.wh..wh..opq", b"").end(), "trusted.overlay.opaque");
}
