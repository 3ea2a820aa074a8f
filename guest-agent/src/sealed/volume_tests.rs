//! Volumes with sealed files in them: what is copied, and what is refused.

use super::*;
use std::os::unix::fs::MetadataExt;

/// A Secret volume as Kubernetes lays it out.
fn volume(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("volume");
    fs::create_dir_all(root.join("..2026_01_01")).unwrap();
    symlink("..2026_01_01", root.join("..data")).unwrap();
    for (name, content) in files {
        fs::write(root.join("..2026_01_01").join(name), content).unwrap();
        symlink(Path::new("..data").join(name), root.join(name)).unwrap();
    }
    place
}

fn find(place: &tempfile::TempDir) -> Result<Option<Volume>, VolumeError> {
    Volume::at(&place.path().join("volume"), Path::new("/etc/secrets"))
}

fn secrets(all: &[&[u8]]) -> Vec<SecretBytes> {
    all.iter().map(|secret| SecretBytes::new(secret.to_vec())).collect()
}

#[test]
fn a_copy_has_the_secrets_open_and_everything_else_as_it_is() {
    let place = volume(&[("a", b"sealed.one\n"), ("b", b"plain"), ("c", b"sealed.two"), ("d", b"x sealed.")]);
    let inner = place.path().join("volume/..2026_01_01");
    fs::set_permissions(inner.join("a"), Permissions::from_mode(0o440)).unwrap();
    fs::set_permissions(&inner, Permissions::from_mode(0o550)).unwrap();
    let found = find(&place).unwrap().unwrap();
    let targets: Vec<(Target, String)> = found.found().map(|found| (found.target, found.text.to_string())).collect();
    let file = |name: &str| Target::File(format!("/etc/secrets/..2026_01_01/{name}"));
    assert_eq!(targets, [(file("a"), "sealed.one".to_owned()), (file("c"), "sealed.two".to_owned())]);
    let copy = place.path().join("secrets/c1/0");
    found.with(secrets(&[b"first", &[0xff, 0, 1]])).write(&copy).unwrap();
    let read = |name: &str| fs::read(copy.join(name)).unwrap();
    assert_eq!(
        (read("a"), read("b"), read("c"), read("d")),
        (b"first".to_vec(), b"plain".to_vec(), vec![0xff, 0, 1], b"x sealed.".to_vec())
    );
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&copy.join("a")), mode(&copy.join("..2026_01_01"))), (0o440, 0o550));
    // Nobody but the agent reaches it otherwise than by the container's mount.
    assert_eq!(mode(&place.path().join("secrets/c1")), 0o700);
    // What the host has copied stays sealed.
    assert_eq!(fs::read(inner.join("a")).unwrap(), b"sealed.one\n");
    fs::set_permissions(&inner, Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(copy.join("..2026_01_01"), Permissions::from_mode(0o750)).unwrap();
}

#[test]
fn a_single_file_is_a_volume_too() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("volume"), "sealed.one").unwrap();
    let found = find(&place).unwrap().unwrap();
    assert_eq!(found.found().next().unwrap().target, Target::File("/etc/secrets".to_owned()));
    let copy = place.path().join("secrets/c1/0");
    found.with(secrets(&[b"first"])).write(&copy).unwrap();
    assert_eq!(fs::read(copy).unwrap(), b"first");
}

#[test]
fn a_volume_without_sealed_secrets_stays_where_it_is() {
    let place = volume(&[("a", b"plain"), ("b", b"sealed"), ("c", b"")]);
    rustix::fs::mknodat(CWD, place.path().join("volume/pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert!(find(&place).unwrap().is_none());
}

#[test]
fn links_lead_nowhere_while_a_volume_is_read() {
    // AC-30: what a container may have put into a volume that it can write to.
    let place = volume(&[("a", b"sealed.one")]);
    fs::write(place.path().join("outside"), "sealed.outside").unwrap();
    symlink(place.path().join("outside"), place.path().join("volume/link")).unwrap();
    symlink(place.path(), place.path().join("volume/directory")).unwrap();
    let found = find(&place).unwrap().unwrap();
    assert_eq!(found.sealed(), 1);
    let copy = place.path().join("secrets/c1/0");
    found.with(secrets(&[b"first"])).write(&copy).unwrap();
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), place.path().join("outside"));
    assert!(fs::symlink_metadata(copy.join("directory")).unwrap().is_symlink());
}

#[test]
fn refuses_volumes_with_secrets_that_are_too_large_or_hold_something_else() {
    let place = volume(&[("a", b"sealed.one")]);
    rustix::fs::mknodat(CWD, place.path().join("volume/pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert!(matches!(find(&place), Err(VolumeError::Kind(_))));

    let place = volume(&[("a", b"sealed.one"), ("b", &vec![0; MAX_BYTES])]);
    assert!(matches!(find(&place), Err(VolumeError::TooLarge(_))));

    let place = volume(&[("a", &[b"sealed.".as_slice(), &vec![b'x'; MAX_SEALED]].concat())]);
    assert!(matches!(find(&place), Err(VolumeError::TooLarge(_))));

    let place = volume(&[("a", b"sealed.one")]);
    for index in 0..MAX_ENTRIES {
        fs::write(place.path().join(format!("volume/{index}")), "").unwrap();
    }
    assert!(matches!(find(&place), Err(VolumeError::TooLarge(_))));

    let place = volume(&[]);
    let deep: PathBuf = std::iter::once("volume").chain(std::iter::repeat_n("d", MAX_DEPTH)).collect();
    fs::create_dir_all(place.path().join(deep)).unwrap();
    assert!(matches!(find(&place), Err(VolumeError::TooLarge(_))));
}

#[test]
fn a_secret_that_was_not_opened_is_no_file() {
    let place = volume(&[("a", b"sealed.one")]);
    let open = find(&place).unwrap().unwrap().with(Vec::new());
    assert!(matches!(open.write(&place.path().join("secrets/c1/0")), Err(VolumeError::Io { .. })));
}

#[test]
fn what_is_not_there_is_removed_without_complaint() {
    remove(&"never-there".parse().unwrap()).unwrap();
}
