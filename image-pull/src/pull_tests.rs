//! Tests of the whole way of a pull, against a registry in memory: what comes out, what is asked for and when.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde_json::json;

use crate::cosign;
use crate::digest::Digest;
use crate::manifest::OCI_MANIFEST;
use crate::overlay_options;
use crate::policy::SignaturePolicy;
use crate::secret::Secret;
use crate::testing::{Bench, GZIP, KEK, KID, Layer, Tar, config_of, entries, needs_root, reference};

fn two_layers() -> Vec<Layer> {
    let one = Tar::default().dir("etc", 0o755).file("etc/a", b"one").link("bin", "usr/bin").end();
    let two = Tar::default().dir("etc", 0o755).file("etc/b", &vec![7; 700_000]).end();
    vec![Layer::gzip(&one), Layer::plain(&two)]
}

#[tokio::test]
async fn pulls_plain_and_gzip_layers_by_digest() {
    let bench = Bench::new();
    let layers = two_layers();
    let image = bench.pull(&bench.registry.image(&layers)).await.unwrap();
    assert_eq!(image.layers.iter().map(|l| l.diff_id).collect::<Vec<_>>(), layers.iter().map(|l| l.diff_id).collect::<Vec<_>>());
    assert_eq!(std::fs::read(image.layers[0].path.join("etc/a")).unwrap(), b"one");
    assert_eq!(std::fs::read(image.layers[1].path.join("etc/b")).unwrap().len(), 700_000);
    assert_eq!(std::fs::metadata(image.layers[0].path.join("etc/a")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(std::fs::metadata(image.layers[0].path.join("etc")).unwrap().mtime(), 1_700_000_000);
    assert!(image.layers.iter().all(|l| !l.encrypted && !l.reused));
    assert_eq!(entries(&bench.dir.path().join("tmp")), 0);
    assert!(image.timings.unpacked > 700_000 && image.timings.downloaded > 700_000);
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_deref(), Some(&["/bin/x".to_owned()][..]));
}

#[tokio::test]
async fn encrypted_layers_come_out_as_the_plain_ones_with_one_key_request() {
    let bench = Bench::new();
    let layers: Vec<Layer> = two_layers().into_iter().map(|layer| layer.encrypted(&KEK)).collect();
    let image = bench.pull(&bench.registry.image(&layers)).await.unwrap();
    assert!(image.layers.iter().all(|layer| layer.encrypted));
    assert_eq!(std::fs::read(image.layers[0].path.join("etc/a")).unwrap(), b"one");
    assert_eq!(*bench.secrets.asked.lock().unwrap(), [KID]);
}

#[tokio::test]
async fn a_second_image_reuses_verified_layers() {
    let bench = Bench::new();
    let mut layers = two_layers();
    bench.pull(&bench.registry.image(&layers)).await.unwrap();
    layers.push(Layer::gzip(&Tar::default().file("new", b"n").end()));
    let image = bench.pull(&bench.registry.image(&layers)).await.unwrap();
    assert_eq!(image.layers.iter().map(|l| l.reused).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(bench.registry.asked_for(&Digest::of(&layers[0].blob).to_string()), 1);
}

#[tokio::test]
async fn a_layer_that_occurs_twice_is_pulled_once_and_mounted_once() {
    let bench = Bench::new();
    let [a, b] = <[Layer; 2]>::try_from(two_layers()).ok().unwrap();
    let image = bench.pull(&bench.registry.image(&[a.clone(), b, a.clone()])).await.unwrap();
    assert_eq!(image.layers.len(), 3);
    assert_eq!(bench.registry.asked_for(&Digest::of(&a.blob).to_string()), 1);
    let options = overlay_options(&image, "/u:p".as_ref(), "/w".as_ref());
    let lower = options.strip_prefix("lowerdir=").unwrap().split(",upperdir=").next().unwrap();
    assert_eq!(lower.split(':').map(std::path::Path::new).collect::<Vec<_>>(), [&*image.layers[2].link, &*image.layers[1].link]);
    assert!(options.contains(",upperdir=/u\\:p,workdir=/w,"));
}

#[tokio::test]
async fn two_pulls_at_once_download_a_layer_once() {
    let bench = Bench::new();
    let layers = two_layers();
    let image = bench.registry.image(&layers);
    let (one, two) = tokio::join!(bench.pull(&image), bench.pull(&image));
    assert_eq!(one.unwrap().layers[0].path, two.unwrap().layers[0].path);
    assert_eq!(bench.registry.asked_for(&Digest::of(&layers[1].blob).to_string()), 1);
}

#[tokio::test]
async fn takes_the_image_for_this_platform_out_of_an_index() {
    let bench = Bench::new();
    let layers = two_layers();
    let manifest = bench.registry.manifest_value(&layers, &config_of(&layers));
    let digest = bench.registry.put_manifest(&manifest, OCI_MANIFEST);
    let entry = |arch: &str, digest: &Digest| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": arch}});
    let other = Digest::of(b"arm");
    let image = bench.pull(&bench.registry.index(&[entry("arm64", &other), entry("amd64", &digest)])).await.unwrap();
    assert_eq!(image.manifest_digest, digest);
    let text = bench.pull(&bench.registry.index(&[entry("arm64", &other)])).await.unwrap_err();
    assert!(crate::testing::chain_of(&text).contains("no image for linux/amd64; it has [\"linux/arm64\"]"));
}

#[tokio::test]
async fn implied_directories_take_mode_and_time_from_the_layer_below() {
    let bench = Bench::new();
    let low = Tar::default().dir("tmp", 0o1777).dir("opt", 0o700).dir("opt/x", 0o711).end();
    let high = Tar::default().file("tmp/f", b"1").file("opt/x/g", b"2").file("new/h", b"3").end();
    let image = bench.pull(&bench.registry.image(&[Layer::gzip(&low), Layer::gzip(&high)])).await.unwrap();
    let meta = |path: &str| std::fs::metadata(image.layers[1].path.join(path)).unwrap();
    assert_eq!((meta("tmp").mode() & 0o7777, meta("tmp").mtime()), (0o1777, 1_700_000_000));
    assert_eq!((meta("opt").mode() & 0o7777, meta("opt/x").mode() & 0o7777), (0o700, 0o711));
    assert_eq!((meta("new").mode() & 0o7777, meta("new").mtime()), (0o755, 0));
    // On other layers the same archive must look otherwise, and the first image must not change.
    let other = Tar::default().dir("tmp", 0o755).end();
    let second = bench.pull(&bench.registry.image(&[Layer::gzip(&other), Layer::gzip(&high)])).await.unwrap();
    assert_eq!(std::fs::metadata(second.layers[1].path.join("tmp")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(meta("tmp").mode() & 0o7777, 0o1777);
}

#[tokio::test]
async fn an_implied_directory_takes_nothing_from_below_an_opaque_one() {
    if !needs_root("an_implied_directory_takes_nothing_from_below_an_opaque_one") {
        return;
    }
    let bench = Bench::new();
    let low = Tar::default().dir("d", 0o755).dir("d/e", 0o700).end();
    let middle = Tar::default().dir("d", 0o755).file("d/.wh..wh..opq", b"").end();
    let high = Tar::default().file("d/e/f", b"1").end();
    let image = bench.pull(&bench.registry.image(&[&low, &middle, &high].map(|t| Layer::gzip(t)))).await.unwrap();
    assert_eq!(std::fs::metadata(image.layers[2].path.join("d/e")).unwrap().mode() & 0o7777, 0o755);
}

#[tokio::test]
async fn an_implied_directory_takes_nothing_from_what_its_own_layer_hides() {
    if !needs_root("an_implied_directory_takes_nothing_from_what_its_own_layer_hides") {
        return;
    }
    let bench = Bench::new();
    let mut low = Tar::default();
    for directory in ["opaque", "opaque/e", "gone", "gone/e", "kept", "kept/e"] {
        low = low.dir(directory, 0o1777);
    }
    let high = Tar::default()
        .dir("opaque", 0o755)
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/e/f", b"1")
        .file(".wh.gone", b"")
        .file("gone/e/f", b"1")
        .file("kept/e/f", b"1");
    let image = bench.pull(&bench.registry.image(&[low, high].map(|tar| Layer::gzip(&tar.end())))).await.unwrap();
    let meta = |path: &str| std::fs::metadata(image.layers[1].path.join(path)).unwrap();
    for path in ["opaque/e", "gone", "gone/e"] {
        assert_eq!((meta(path).mode() & 0o7777, meta(path).mtime()), (0o755, 0), "{path}");
    }
    for path in ["kept", "kept/e"] {
        assert_eq!((meta(path).mode() & 0o7777, meta(path).mtime()), (0o1777, 1_700_000_000), "{path}");
    }
}

#[tokio::test]
async fn ac48_labels_and_users_of_a_configuration_are_data() {
    let bench = Bench::new();
    let layers = two_layers();
    let plain = bench.pull(&bench.registry.image(&layers)).await.unwrap();
    let mut config = config_of(&layers);
    config["config"]["User"] = json!("4294967296:4294967296");
    config["config"]["Labels"] =
        json!({"io.katacontainers.config.hypervisor.path": "/bin/sh", "org.opencontainers.image.base.name": "../x"});
    let manifest = bench.registry.manifest_value(&layers, &config);
    let image = bench.pull(&reference(&bench.registry.put_manifest(&manifest, OCI_MANIFEST))).await.unwrap();
    // Handed on as it is, to whoever asks the policy; the layers are the same directories, mounted in the same way.
    assert_eq!(image.config.config().as_ref().unwrap().user().as_deref(), Some("4294967296:4294967296"));
    let [upper, work] = ["/upper", "/work"].map(std::path::Path::new);
    assert_eq!(overlay_options(&image, upper, work), overlay_options(&plain, upper, work));
}

/// What is in a layer's directory: path, mode, device, owner, time and content.
fn listing(root: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(path) = left.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let mut opaque = [0; 2];
        let opaque = rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut opaque[..]).is_ok();
        let content = if meta.is_file() { Digest::of(&std::fs::read(&path).unwrap()).to_string() } else { String::new() };
        // Nothing describes the root in these layers, nor a whiteout ever: their time is that of the unpacking.
        let whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
        let time = if path == root || whiteout { 0 } else { meta.mtime() };
        let what = (meta.mode(), meta.rdev(), meta.uid(), time);
        found.push(format!("{:?} {what:?} {opaque} {content}", path.strip_prefix(root).unwrap()));
        if meta.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn ac49_layers_unpacked_side_by_side_are_as_one_after_the_other() {
    if !needs_root("ac49_layers_unpacked_side_by_side_are_as_one_after_the_other") {
        return;
    }
    // The lowest is the largest, so that the whiteouts of the others are unpacked before what they hide.
    let large = vec![7; 3_000_000];
    let tars = [
        Tar::default().dir("d", 0o1777).file("d/large", &large).file("d/gone", b"1").file("e/gone", b"2").end(),
        Tar::default().file("d/.wh.gone", b"").dir("e", 0o700).file("e/.wh..wh..opq", b"").file("e/new", b"3").end(),
        Tar::default().file("d/gone/again", b"4").file(".wh.e", b"").end(),
        Tar::default().file("d/late", b"5").file("e/f", b"6").end(),
    ];
    let layers = tars.map(|tar| Layer::plain(&tar));
    let mut seen = Vec::new();
    for parallel_layers in [1, 2, 4, 4, 4] {
        let mut bench = Bench::new();
        bench.config.parallel_layers = parallel_layers;
        let image = bench.pull(&bench.registry.image(&layers)).await.unwrap();
        seen.push(image.layers.iter().map(|layer| listing(&layer.path)).collect::<Vec<_>>());
    }
    assert!(seen[0].iter().flatten().any(|line| line.starts_with("\"d/gone\"")) && seen[0][1].iter().any(|line| line.contains("true")));
    for other in &seen[1..] {
        assert_eq!(*other, seen[0]);
    }
}

// Signatures: AC-46, AC-73.

/// A fixed test key pair: never used for anything else.
const SIGNING_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgOmp4BM/ALHSwkeUu
cnA7FJcztJ3gxZ2BT7d92ypOCT6hRANCAATGw2wYL0+YBo4rqUb8tnjbM9bEEPPw
VFKoYgXSgOW2StXEbzFd8+tnHujGBRCrVRcZl83f1PAs6j0g21kEnFp1
-----END PRIVATE KEY-----
";
const PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAExsNsGC9PmAaOK6lG/LZ42zPWxBDz
8FRSqGIF0oDltkrVxG8xXfPrZx7oxgUQq1UXGZfN39TwLOo9INtZBJxadQ==
-----END PUBLIC KEY-----
";
const OTHER_PUBLIC_KEY: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE7h6nUSV1ixlkYIbL4Y0s5tM8bcws
EtvMH+HuP7G7UoRM06OHQSGFxb1CiJMjtWyQBDjd8X46sZ4xNCJe5FPBLg==
-----END PUBLIC KEY-----
";

fn signed_by(key: &str, identity: &str) -> SignaturePolicy {
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(key);
    let text = format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{"r.io":[{{"type":"sigstoreSigned","keyData":"{data}"{identity}}}]}}}}}}"#
    );
    SignaturePolicy::parse(text.as_bytes()).unwrap()
}

fn put_signature(bench: &Bench, name: &str, digest: &Digest, at: &Digest) {
    let signed = cosign::sign(&name.parse().unwrap(), digest, &Secret::new(SIGNING_KEY.as_bytes().to_vec()), None).unwrap();
    bench.registry.put_blob(&signed.payload);
    bench.registry.manifests.lock().unwrap().insert(cosign::signature_tag(at), (signed.manifest, Some(OCI_MANIFEST.to_owned())));
}

#[tokio::test]
async fn accepts_an_image_signed_by_the_policys_key() {
    let bench = Bench::new();
    let image = bench.registry.image(&two_layers());
    let digest = *image.digest().unwrap();
    put_signature(&bench, "r.io/team/app", &digest, &digest);
    bench.pull_with(&image, &signed_by(PUBLIC_KEY, "")).await.unwrap();
}

#[tokio::test]
async fn accepts_a_signature_of_the_index_the_image_was_found_through() {
    let bench = Bench::new();
    let layers = two_layers();
    let manifest = bench.registry.manifest_value(&layers, &config_of(&layers));
    let digest = bench.registry.put_manifest(&manifest, OCI_MANIFEST);
    let index = bench
        .registry
        .index(&[json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}})]);
    let top = *index.digest().unwrap();
    put_signature(&bench, "r.io/team/app", &top, &top);
    bench.pull_with(&index, &signed_by(PUBLIC_KEY, "")).await.unwrap();
}

#[tokio::test]
async fn ac46_refuses_unsigned_wrongly_signed_and_rejected_images_before_any_layer_or_key() {
    let bench = Bench::new();
    let layers: Vec<Layer> = two_layers().into_iter().map(|layer| layer.encrypted(&KEK)).collect();
    let image = bench.registry.image(&layers);
    let digest = *image.digest().unwrap();
    let other = Digest::of(b"other image");
    let policy = signed_by(PUBLIC_KEY, "");

    let text = bench.refused(bench.pull_with(&image, &policy).await);
    assert!(text.contains("is not signed"), "{text}");
    put_signature(&bench, "r.io/team/app", &digest, &digest);
    let text = bench.refused(bench.pull_with(&image, &signed_by(OTHER_PUBLIC_KEY, "")).await);
    assert!(text.contains("by none of the policy's keys"), "{text}");
    put_signature(&bench, "r.io/team/app", &other, &digest);
    let text = bench.refused(bench.pull_with(&image, &policy).await);
    assert!(text.contains("a signature for the digest"), "{text}");
    put_signature(&bench, "r.io/team/other", &digest, &digest);
    let text = bench.refused(bench.pull_with(&image, &policy).await);
    assert!(text.contains("a signature for the name r.io/team/other"), "{text}");
    put_signature(&bench, "r.io/team/app", &digest, &digest);
    let exact = r#","signedIdentity":{"type":"exactRepository","dockerRepository":"r.io/team/prod"}"#;
    bench.refused(bench.pull_with(&image, &signed_by(PUBLIC_KEY, exact)).await);

    // A payload altered after signing.
    let tag = cosign::signature_tag(&digest);
    let (bytes, _) = bench.registry.manifests.lock().unwrap()[&tag].clone();
    let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let payload: Digest = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    let altered = String::from_utf8(bench.registry.blobs.lock().unwrap()[&payload].clone()).unwrap().replace("null", "{}");
    bench.registry.blobs.lock().unwrap().insert(payload, altered.clone().into_bytes());
    let text = bench.refused(bench.pull_with(&image, &policy).await);
    assert!(text.contains("expected the digest"), "{text}");
    manifest["layers"][0]["digest"] = bench.registry.put_blob(altered.as_bytes()).to_string().into();
    bench.registry.manifests.lock().unwrap().insert(tag, (manifest.to_string().into_bytes(), None));
    let text = bench.refused(bench.pull_with(&image, &policy).await);
    assert!(text.contains("by none of the policy's keys"), "{text}");

    assert!(bench.secrets.asked.lock().unwrap().is_empty(), "no key may be asked for before the signature counts");
    assert_eq!(bench.registry.asked_for(&Digest::of(&layers[0].blob).to_string()), 0);
}

#[tokio::test]
async fn ac73_the_signature_policy_is_asked_again_for_layers_that_are_there() {
    let bench = Bench::new();
    let image = bench.registry.image(&two_layers());
    bench.pull(&image).await.unwrap();
    let text = crate::testing::chain_of(&bench.pull_with(&image, &signed_by(PUBLIC_KEY, "")).await.unwrap_err());
    assert!(text.contains("is not signed"), "{text}");
}

#[tokio::test]
async fn ac46_a_rejecting_policy_and_a_reference_without_digest_cost_no_request() {
    let bench = Bench::new();
    let image = bench.registry.image(&two_layers());
    let reject = SignaturePolicy::parse(br#"{"default":[{"type":"reject"}]}"#).unwrap();
    bench.refused(bench.pull_with(&image, &reject).await);
    let gpg = SignaturePolicy::parse(br#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}"#).unwrap();
    let text = bench.refused(bench.pull_with(&image, &gpg).await);
    assert!(text.contains("signedBy") && text.contains("not supported yet"), "{text}");
    let text = bench.refused(bench.pull(&"r.io/team/app:1".parse().unwrap()).await);
    assert!(text.contains("names no digest"), "{text}");
    assert!(bench.registry.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn public_keys_may_come_from_the_broker() {
    let mut bench = Bench::new();
    let secrets = std::sync::Arc::get_mut(&mut bench.secrets).unwrap();
    secrets.map.insert("kbs:///default/cosign/key".to_owned(), PUBLIC_KEY.as_bytes().to_vec());
    let image = bench.registry.image(&two_layers());
    let digest = *image.digest().unwrap();
    put_signature(&bench, "r.io/team/app", &digest, &digest);
    let policy =
        |uri: &str| SignaturePolicy::parse(format!(r#"{{"default":[{{"type":"sigstoreSigned","keyPath":"{uri}"}}]}}"#).as_bytes()).unwrap();
    let text = bench.refused(bench.pull_with(&image, &policy("kbs:///default/cosign/absent")).await);
    assert!(text.contains("kbs:///default/cosign/absent") && text.contains("the broker refuses"), "{text}");
    bench.pull_with(&image, &policy("kbs:///default/cosign/key")).await.unwrap();
}

#[tokio::test]
async fn encrypting_a_layout_and_pulling_it_gives_the_same_tree() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    let layers = two_layers();
    let image = bench.registry.image(&layers);
    let plain = crate::layout::Layout::create(dir.path().join("plain")).unwrap();
    let target = crate::layout::Layout::create(dir.path().join("enc")).unwrap();
    crate::publish::fetch_layout(&*bench.registry, &image, &plain, Some("v1")).await.unwrap();
    let kek = Secret::new(KEK.to_vec());
    let made = crate::encrypt::encrypt_layout(&plain, &target, Some("v1"), &kek, &KID.parse().unwrap()).unwrap();
    assert_eq!(made.layers.iter().map(|l| l.plain).collect::<Vec<_>>(), layers.iter().map(|l| Digest::of(&l.blob)).collect::<Vec<_>>());
    for layer in &made.layers {
        let bytes = std::fs::read(target.blob_path(&layer.encrypted)).unwrap();
        assert_eq!(Digest::of(&bytes), layer.encrypted);
        bench.registry.put_blob(&bytes);
    }
    let manifest: serde_json::Value = serde_json::from_slice(&target.small_blob(&made.digest).unwrap()).unwrap();
    assert_eq!(manifest["layers"][0]["mediaType"], format!("{GZIP}+encrypted"));
    assert_eq!(bench.registry.put_manifest(&manifest, OCI_MANIFEST), made.digest);
    let pulled = bench.pull(&reference(&made.digest)).await.unwrap();
    assert!(pulled.layers.iter().all(|layer| layer.encrypted));
    assert_eq!(std::fs::read(pulled.layers[0].path.join("etc/a")).unwrap(), b"one");
    // A second run shares no key stream with the first.
    let again = crate::encrypt::encrypt_layout(&plain, &target, Some("v1"), &kek, &KID.parse().unwrap()).unwrap();
    assert_ne!(again.layers[0].encrypted, made.layers[0].encrypted);
    assert!(crate::encrypt::encrypt_layout(&target, &plain, Some("v1"), &kek, &KID.parse().unwrap()).is_err(), "encrypting twice");
}
