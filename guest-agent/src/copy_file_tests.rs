//! AC-24: what a hostile host could try with copied files.

use super::*;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink as make_symlink};

struct Place {
    outer: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("shared")).unwrap();
        Self { outer }
    }

    fn shared(&self) -> PathBuf {
        self.outer.path().join("shared")
    }

    fn copy(&self, request: &CopyFileRequest) -> Result<(), CopyError> {
        copy_beneath(&self.shared(), request)
    }
}

fn request(name: &str, mode: u32, data: &[u8]) -> CopyFileRequest {
    CopyFileRequest {
        path: format!("{SHARED_DIR}/{name}"),
        file_size: i64::try_from(data.len()).unwrap(),
        file_mode: mode,
        dir_mode: 0o755,
        uid: fs::metadata("/proc/self").unwrap().uid().cast_signed(),
        gid: fs::metadata("/proc/self").unwrap().gid().cast_signed(),
        data: data.to_vec(),
        ..Default::default()
    }
}

#[test]
fn a_file_in_pieces_appears_when_it_is_complete() {
    let place = Place::new();
    let mut first = request("dir/hosts", REGULAR | 0o4644, b"hello ");
    first.file_size = 11;
    place.copy(&first).unwrap();
    assert!(!place.shared().join("dir/hosts").exists());
    let mut second = request("dir/hosts", REGULAR | 0o4644, b"world");
    (second.file_size, second.offset) = (11, 6);
    place.copy(&second).unwrap();
    let file = place.shared().join("dir/hosts");
    assert_eq!(fs::read(&file).unwrap(), b"hello world");
    // Set-user-ID is taken off.
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o644);
    assert!(!place.shared().join("dir/hosts.tmp").exists());
}

#[test]
fn an_empty_file_and_a_directory_are_made() {
    let place = Place::new();
    place.copy(&request("empty", REGULAR | 0o600, b"")).unwrap();
    assert_eq!(fs::read(place.shared().join("empty")).unwrap(), b"");
    place.copy(&request("a/b", DIRECTORY | 0o700, b"")).unwrap();
    place.copy(&request("a/b", DIRECTORY | 0o711, b"")).unwrap();
    assert_eq!(fs::metadata(place.shared().join("a/b")).unwrap().mode() & 0o777, 0o711);
}

#[test]
fn refuses_paths_that_are_not_plain_or_not_beneath() {
    let place = Place::new();
    for path in [
        "/etc/passwd",
        "/run/kata-containers/shared/containers",
        "/run/kata-containers/shared/containers/",
        "/run/kata-containers/shared/containersX/f",
        "/run/kata-containers/shared/containers/../f",
        "/run/kata-containers/shared/containers/a/../../f",
        "/run/kata-containers/shared/containers//f",
        "/run/kata-containers/shared/containers/./f",
        "/run/kata-containers/shared/containers/f/",
        "/run/kata-containers/shared/containers/f\0g",
        "run/kata-containers/shared/containers/f",
        "",
    ] {
        let mut request = request("x", REGULAR | 0o644, b"x");
        request.path = path.to_owned();
        assert!(matches!(place.copy(&request), Err(CopyError::Path(_))), "{path:?}");
    }
    assert_eq!(fs::read_dir(place.shared()).unwrap().count(), 0);
}

#[test]
fn never_writes_through_a_link() {
    let place = Place::new();
    let outside = place.outer.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "old").unwrap();
    let shared = place.shared();
    make_symlink(&outside, shared.join("dir")).unwrap();
    make_symlink(outside.join("f"), shared.join("file")).unwrap();
    make_symlink(outside.join("f"), shared.join("part.tmp")).unwrap();
    fs::create_dir(shared.join("inner")).unwrap();
    make_symlink("../inner", shared.join("inner/loop")).unwrap();

    // Through a directory that is a link, even one that stays inside.
    for name in ["dir/f", "dir/new", "inner/loop/f"] {
        for mode in [REGULAR | 0o644, DIRECTORY | 0o755] {
            assert!(matches!(place.copy(&request(name, mode, b"")), Err(CopyError::Resolve { .. })), "{name}");
        }
    }
    // A final link is replaced, not followed.
    place.copy(&request("file", REGULAR | 0o644, b"new")).unwrap();
    assert!(fs::symlink_metadata(shared.join("file")).unwrap().is_file());
    // So is one in the place of the incomplete file; a later piece does not follow it either.
    let mut later = request("part", REGULAR | 0o644, b"new");
    (later.offset, later.file_size) = (3, 6);
    assert!(place.copy(&later).is_err());
    place.copy(&request("part", REGULAR | 0o644, b"new")).unwrap();
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"old");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn refuses_links_that_lead_out_of_their_tree() {
    let place = Place::new();
    for (name, target) in
        [("top", "x"), ("a/l", "/etc"), ("a/l", "../b"), ("a/b/l", "../../c"), ("a/l", "x/../../../c"), ("a/l", ""), ("a/l", "x\0y")]
    {
        let error = place.copy(&request(name, SYMLINK | 0o777, target.as_bytes()));
        assert!(matches!(error, Err(CopyError::Link(_))), "{name} -> {target}");
    }
}

#[test]
fn links_within_a_volume_are_made_and_replaced() {
    let place = Place::new();
    for target in ["..2024_01", "..2024_02"] {
        place.copy(&request("vol/..data", SYMLINK | 0o777, target.as_bytes())).unwrap();
        assert_eq!(fs::read_link(place.shared().join("vol/..data")).unwrap(), Path::new(target));
    }
    place.copy(&request("vol/sub/key", SYMLINK | 0o777, b"../..data/key")).unwrap();
}

#[test]
fn refuses_other_kinds_of_file_and_numbers_that_do_not_fit() {
    let place = Place::new();
    for format in [0o010_000, 0o020_000, 0o060_000, 0o140_000, 0] {
        let error = place.copy(&request("f", format | 0o644, b"x"));
        assert!(matches!(error, Err(CopyError::Type { .. })), "{format:o}");
    }
    let extents = [(-1, 0), (0, 0), (1, 1), (10, -1), (10, 10), (i64::MAX, 0), (5, i64::MAX)];
    for (size, offset) in extents {
        let mut request = request("f", REGULAR | 0o644, b"x");
        (request.file_size, request.offset) = (size, offset);
        assert!(matches!(place.copy(&request), Err(CopyError::Extent { .. })), "{size} {offset}");
    }
    let mut request = request("f", REGULAR | 0o644, b"x");
    request.uid = -1;
    assert!(matches!(place.copy(&request), Err(CopyError::Owner(_))));
}

#[test]
fn policies_see_everything_but_the_contents() {
    let value = CopyFile(request("f", REGULAR | 0o644, b"canary")).policy_input();
    assert_eq!(value["file_type"], "Regular");
    assert_eq!(value["file_mode"], REGULAR | 0o644);
    assert!(!value.to_string().contains("canary"));
    let value = CopyFile(request("a/l", SYMLINK, b"target")).policy_input();
    assert_eq!((value["file_type"].as_str(), value["symlink_target"].as_str()), (Some("Symlink"), Some("target")));
}
