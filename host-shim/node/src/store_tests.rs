//! What containerd relies on, played against a store in a temporary directory.

use super::*;
use std::time::Duration;
use tempfile::TempDir;

const BASE: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const TOP: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn target(chain: &str) -> Vec<(String, String)> {
    vec![(TARGET_LABEL.to_owned(), chain.to_owned())]
}

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    (dir, store)
}

/// Closes and opens again, as a restart does.
fn again(dir: &TempDir, store: Store) -> Store {
    drop(store);
    Store::open(&dir.path().join("state")).unwrap()
}

fn pull(store: &mut Store) {
    for (n, parent, chain) in [(1, "", BASE), (2, BASE, TOP)] {
        let answer = store.prepare(&format!("k8s.io/{n}/extract-1-x {chain}"), parent, target(chain), NOW);
        assert!(matches!(answer, Err(SnapshotError::AlreadyExists(t)) if t == chain));
    }
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, SnapshotError>) -> tonic::Code {
    tonic::Status::from(result.unwrap_err()).code()
}

#[test]
fn a_layer_with_a_target_is_recorded_without_any_content() {
    let (dir, mut store) = store();
    pull(&mut store);
    let filter = Filter::parse(&[format!("labels.\"containerd.io/snapshot.ref\"=={TOP},parent=={BASE:?}")]).unwrap();
    let found = store.list(&filter);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].kind, found[0].name.as_str(), found[0].parent.as_str()), (Kind::Committed, TOP, BASE));
    assert_eq!(fs::read_dir(dir.path().join("state/scratch")).unwrap().count(), 0);
}

#[test]
fn pulling_twice_records_once() {
    let (_dir, mut store) = store();
    pull(&mut store);
    pull(&mut store);
    assert_eq!(store.len(), 2);
}

#[test]
fn the_same_chain_over_another_parent_name_gets_its_own_record() {
    let (_dir, mut store) = store();
    pull(&mut store);
    store.prepare(&format!("k8s.io/7/extract-1-y {BASE}"), "", [], NOW).unwrap();
    store.commit(&format!("k8s.io/8/{BASE}"), &format!("k8s.io/7/extract-1-y {BASE}"), [], NOW).unwrap();
    let parent = format!("k8s.io/8/{BASE}");
    assert_eq!(code(store.prepare("k8s.io/9/extract-1-z", &parent, target(TOP), NOW)), tonic::Code::AlreadyExists);
    let filter = Filter::parse(&[format!("labels.\"containerd.io/snapshot.ref\"=={TOP},parent=={parent:?}")]).unwrap();
    assert_eq!(store.list(&filter).len(), 1);
    assert_eq!(store.len(), 4);
}

#[test]
fn a_container_gets_the_empty_directory_read_only() {
    let (dir, mut store) = store();
    pull(&mut store);
    let bind = store.prepare("k8s.io/3/container", TOP, [], NOW).unwrap();
    assert_eq!(bind, Bind { source: dir.path().join("state/empty"), writable: false });
    assert_eq!(store.mounts("k8s.io/3/container").unwrap(), bind);
    assert_eq!(store.view("k8s.io/4/view", TOP, [], NOW).unwrap(), bind);
    assert_eq!(fs::metadata(&bind.source).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn errors_carry_the_code_containerd_acts_on() {
    let (_dir, mut store) = store();
    pull(&mut store);
    store.prepare("active", TOP, [], NOW).unwrap();
    assert_eq!(code(store.stat("absent").cloned()), tonic::Code::NotFound);
    assert_eq!(code(store.mounts("absent")), tonic::Code::NotFound);
    assert_eq!(code(store.prepare("x", "absent", [], NOW)), tonic::Code::NotFound);
    assert_eq!(code(store.prepare("x", "absent", target(TOP), NOW)), tonic::Code::NotFound);
    assert_eq!(code(store.commit("n", "absent", [], NOW)), tonic::Code::NotFound);
    assert_eq!(code(store.remove("absent")), tonic::Code::NotFound);
    assert_eq!(code(store.update("absent", [], &[], NOW)), tonic::Code::NotFound);
    assert_eq!(code(store.prepare("active", TOP, [], NOW)), tonic::Code::AlreadyExists);
    assert_eq!(code(store.view("active", TOP, [], NOW)), tonic::Code::AlreadyExists);
    assert_eq!(code(store.commit(TOP, "active", [], NOW)), tonic::Code::AlreadyExists);
    assert_eq!(code(store.mounts(TOP)), tonic::Code::FailedPrecondition);
    assert_eq!(code(store.remove(TOP)), tonic::Code::FailedPrecondition);
    assert_eq!(code(store.prepare("x", "active", [], NOW)), tonic::Code::InvalidArgument);
    assert_eq!(code(store.prepare("", TOP, [], NOW)), tonic::Code::InvalidArgument);
    assert_eq!(code(store.update(TOP, [], &["parent".to_owned()], NOW)), tonic::Code::InvalidArgument);
    store.view("view", TOP, [], NOW).unwrap();
    assert_eq!(code(store.commit("n", "view", [], NOW)), tonic::Code::FailedPrecondition);
}

#[test]
fn refuses_a_target_that_is_no_chain_id() {
    let (_dir, mut store) = store();
    for bad in
        ["x", "sha256:", "sha256:zz", "sha1:aa", &BASE[..70], "sha256:../../../../../../../../../../../../../../../../../../../../../a"]
    {
        assert_eq!(code(store.prepare("k", "", target(bad), NOW)), tonic::Code::InvalidArgument, "{bad}");
    }
    assert_eq!(store.len(), 0);
}

#[test]
fn refuses_names_and_labels_beyond_their_bounds() {
    let (_dir, mut store) = store();
    assert_eq!(code(store.prepare(&"k".repeat(1025), "", [], NOW)), tonic::Code::InvalidArgument);
    assert_eq!(code(store.prepare("a\nb", "", [], NOW)), tonic::Code::InvalidArgument);
    assert_eq!(code(store.prepare("k", "", [("l".to_owned(), "v".repeat(4096))], NOW)), tonic::Code::InvalidArgument);
    let many: Vec<_> = (0..129).map(|n| (format!("l{n}"), "v".to_owned())).collect();
    assert_eq!(code(store.prepare("k", "", many, NOW)), tonic::Code::InvalidArgument);
    assert_eq!(store.len(), 0);
}

#[test]
fn a_layer_containerd_unpacks_itself_is_thrown_away_at_commit() {
    let (dir, mut store) = store();
    let key = format!("default/1/extract-5-q {BASE}");
    let bind = store.prepare(&key, "", [], NOW).unwrap();
    assert!(bind.writable);
    fs::write(bind.source.join("file"), "content").unwrap();
    let mut store = again(&dir, store);
    assert!(bind.source.join("file").exists(), "an unpacking in progress survives a restart");
    store.commit(&format!("default/2/{BASE}"), &key, [], NOW).unwrap();
    assert!(!bind.source.exists());
    assert_eq!(code(store.stat(&key).cloned()), tonic::Code::NotFound);
    assert_eq!(store.stat(&format!("default/2/{BASE}")).unwrap().kind, Kind::Committed);
}

#[test]
fn state_survives_a_restart() {
    let (dir, mut store) = store();
    pull(&mut store);
    store.prepare("active", TOP, [("a".to_owned(), "b".to_owned())], NOW).unwrap();
    let before = store.list(&Filter::default());
    let mut store = again(&dir, store);
    assert_eq!(store.list(&Filter::default()), before);
    store.remove("active").unwrap();
    store.remove(TOP).unwrap();
    store.remove(BASE).unwrap();
    let store = again(&dir, store);
    assert_eq!(store.len(), 0);
}

#[test]
fn a_torn_record_is_set_aside_and_a_half_written_one_removed() {
    let (dir, mut store) = store();
    pull(&mut store);
    drop(store);
    let records = dir.path().join("state/snapshots");
    fs::write(records.join("1.json"), "").unwrap();
    fs::write(records.join("9.tmp"), "{").unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    assert_eq!(store.len(), 1);
    assert!(records.join("1.json.bad").exists());
    assert!(!records.join("9.tmp").exists());
}

#[test]
fn labels_are_changed_whole_or_one_by_one() {
    let (_dir, mut store) = store();
    let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    store.prepare("k", "", [pair("a", "1"), pair("b", "2")], NOW).unwrap();
    let later = NOW + Duration::from_secs(9);
    let record = store.update("k", [pair("b", "3"), pair("c", "4")], &["labels.b".to_owned(), "labels.a".to_owned()], later).unwrap();
    assert_eq!(record.labels, [pair("b", "3")].into());
    assert_eq!((record.created_at, record.updated_at), (NOW, later));
    let record = store.update("k", [pair("z", "0")], &[], later).unwrap();
    assert_eq!(record.labels, [pair("z", "0")].into());
}

#[test]
fn refuses_a_state_directory_in_use_or_with_content_where_none_may_be() {
    let (dir, store) = store();
    let path = dir.path().join("state");
    assert_eq!(code(Store::open(&path).map(|s| s.len())), tonic::Code::FailedPrecondition);
    drop(store);
    fs::write(path.join("empty/passwd"), "root").unwrap();
    assert_eq!(code(Store::open(&path).map(|s| s.len())), tonic::Code::FailedPrecondition);
}
