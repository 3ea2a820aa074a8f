//! Attacks on a pull, by the number they have in the project's list of attack cases. In each a good image is altered in one place, and must be refused with nothing
//! of it left in the store.

use serde_json::{Value, json};

use crate::digest::Digest;
use crate::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::ocicrypt;
use crate::testing::{Bench, KEK, KID, Layer, Tar, config_of, gzip, reference};

type Alter = fn(&mut Value);

fn archive(content: u8) -> Vec<u8> {
    // Not compressible, so that every part of the blob matters, and larger than the buffers between threads.
    let mut state = u32::from(content) + 1;
    let body: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(280_000)
    .collect();
    Tar::default().dir("d", 0o755).file("d/secret", &body).file("d/end", b"end").end()
}

/// Pulls the manifest `alter` makes of a good one; the registry agrees with the altered manifest's digest, so only deeper checks can refuse it.
async fn altered_manifest(layers: &[Layer], alter: impl FnOnce(&Bench, &mut Value)) -> String {
    let bench = Bench::new();
    let mut manifest = bench.registry.manifest_value(layers, &config_of(layers));
    alter(&bench, &mut manifest);
    let digest = bench.registry.put_manifest(&manifest, OCI_MANIFEST);
    bench.refused(bench.pull(&reference(&digest)).await)
}

/// Pulls an image one of whose blobs the registry serves altered.
async fn altered_blob(layer: Layer, alter: impl FnOnce(&mut Vec<u8>)) -> String {
    let bench = Bench::new();
    let image = bench.registry.image(std::slice::from_ref(&layer));
    let mut blob = layer.blob.clone();
    alter(&mut blob);
    bench.registry.blobs.lock().unwrap().insert(Digest::of(&layer.blob), blob);
    bench.refused(bench.pull(&image).await)
}

#[tokio::test]
async fn ac41_refuses_altered_truncated_and_lengthened_blobs() {
    for layer in [Layer::gzip(&archive(1)), Layer::plain(&archive(1)), Layer::gzip(&archive(1)).encrypted(&KEK)] {
        for at in [0, 20, 200_000, layer.blob.len() - 1] {
            let text = altered_blob(layer.clone(), |blob| blob[at] ^= 1).await;
            assert!(text.contains("the layer blob has the digest"), "byte {at}: {text}");
        }
        let text = altered_blob(layer.clone(), |blob| blob.truncate(blob.len() - 1)).await;
        assert!(text.contains("bytes where the manifest says"), "{text}");
        let text = altered_blob(layer.clone(), |blob| blob.clear()).await;
        assert!(text.contains("0 bytes where"), "{text}");
        let text = altered_blob(layer, |blob| blob.push(0)).await;
        assert!(text.contains("or more where the manifest says"), "{text}");
    }
}

#[tokio::test]
async fn ac41_refuses_a_layer_whose_diff_id_is_another() {
    let mut layer = Layer::gzip(&archive(1));
    layer.diff_id = Digest::of(b"other");
    let text = altered_manifest(&[layer], |_, _| {}).await;
    assert!(text.contains("(diffID)"), "{text}");
}

#[tokio::test]
async fn ac41_refuses_a_manifest_of_another_digest() {
    let bench = Bench::new();
    let image = bench.registry.image(&[Layer::gzip(&archive(1))]);
    let other = bench.registry.image(&[Layer::gzip(&archive(2))]);
    let swapped = bench.registry.manifests.lock().unwrap()[&other.digest().unwrap().to_string()].clone();
    bench.registry.manifests.lock().unwrap().insert(image.digest().unwrap().to_string(), swapped);
    let text = bench.refused(bench.pull(&image).await);
    assert!(text.contains("the manifest of"), "{text}");
}

#[tokio::test]
async fn ac41_refuses_a_configuration_of_another_digest() {
    let bench = Bench::new();
    let layers = [Layer::gzip(&archive(1))];
    let image = bench.registry.image(&layers);
    let config = config_of(&layers).to_string();
    let altered = config.replace("/bin/x", "/bin/y");
    bench.registry.blobs.lock().unwrap().insert(Digest::of(config.as_bytes()), altered.into_bytes());
    let text = bench.refused(bench.pull(&image).await);
    assert!(text.contains("the configuration of"), "{text}");
}

#[tokio::test]
async fn ac41_refuses_ambiguous_and_foreign_manifests() {
    let layers = [Layer::gzip(&archive(1))];
    let cases: [(&str, Alter, &str); 14] = [
        ("both kinds", |m| m["manifests"] = json!([]), "means two things"),
        ("index type", |m| m["mediaType"] = json!(OCI_INDEX), "its mediaType is"),
        ("schema", |m| m["schemaVersion"] = json!(1), "schema version 1"),
        ("neither", |m| drop(m.as_object_mut().unwrap().remove("layers")), "neither an image"),
        ("artifact", |m| m["artifactType"] = json!("application/x"), "an artifact"),
        ("config type", |m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json"), "not an image"),
        ("no layers", |m| m["layers"] = json!([]), "no layers"),
        ("urls", |m| m["layers"][0]["urls"] = json!(["https://evil/x"]), "from another place"),
        (
            "foreign",
            |m| m["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            "no layer of a file system",
        ),
        (
            "nondistributable",
            |m| m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            "no layer of",
        ),
        ("wrong compression", |m| m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar"), "header"),
        ("size lie", |m| m["layers"][0]["size"] = json!(7), "or more where the manifest says 7"),
        ("huge size", |m| m["layers"][0]["size"] = json!(u64::MAX), "bytes together"),
        ("digest algorithm", |m| m["layers"][0]["digest"] = json!("sha512:00"), "not of the expected form"),
    ];
    for (name, alter, expected) in cases {
        let text = altered_manifest(&layers, |_, manifest| alter(manifest)).await;
        assert!(text.contains(expected), "{name}: {text}");
    }
    let many = vec![Layer::plain(&Tar::default().end()); 129];
    assert!(altered_manifest(&many, |_, _| {}).await.contains("129 layers"));
}

#[tokio::test]
async fn ac41_refuses_a_content_type_that_contradicts_and_a_repeated_key() {
    let bench = Bench::new();
    let layers = [Layer::gzip(&archive(1))];
    let manifest = bench.registry.manifest_value(&layers, &config_of(&layers));
    let digest = bench.registry.put_manifest(&manifest, OCI_INDEX);
    let text = bench.refused(bench.pull(&reference(&digest)).await);
    assert!(text.contains("Content-Type"), "{text}");
    let twice = manifest.to_string().replacen('{', r#"{"layers":[],"#, 1).into_bytes();
    let digest = Digest::of(&twice);
    bench.registry.manifests.lock().unwrap().insert(digest.to_string(), (twice, None));
    let text = bench.refused(bench.pull(&reference(&digest)).await);
    assert!(text.contains("duplicate field"), "{text}");
}

#[tokio::test]
async fn ac41_refuses_known_keys_in_other_letters_and_annotations_given_twice() {
    let bench = Bench::new();
    let layers = [Layer::gzip(&archive(1))];
    let good = bench.registry.manifest_value(&layers, &config_of(&layers)).to_string();
    let pull = |text: String| {
        let digest = Digest::of(text.as_bytes());
        bench.registry.manifests.lock().unwrap().insert(digest.to_string(), (text.into_bytes(), None));
        reference(&digest)
    };
    for (key, known) in [
        ("Layers", "layers"),
        ("LAYERS", "layers"),
        ("layer\u{17f}", "layers"),
        ("Manifests", "manifests"),
        ("mediatype", "mediaType"),
        ("schemaversion", "schemaVersion"),
        ("Config", "config"),
    ] {
        let text = bench.refused(bench.pull(&pull(good.replacen('{', &format!("{{\"{key}\":[],"), 1))).await);
        assert!(text.contains(&format!("the key {key:?}, which some readers take for {known:?}")), "{text}");
    }
    // Deeper: in a descriptor, and in what nobody asks for.
    let deeper = good.replacen("\"annotations\":", "\"Digest\":\"x\",\"annotations\":", 1);
    let text = bench.refused(bench.pull(&pull(deeper)).await);
    assert!(text.contains("take for \"digest\""), "{text}");
    let unknown = good.replacen('{', "{\"x\":[{\"y\":1,\"y\":2}],", 1);
    let text = bench.refused(bench.pull(&pull(unknown)).await);
    assert!(text.contains("the key \"y\" twice"), "{text}");
    let twice = good.replacen("\"annotations\":{", "\"annotations\":{\"a\":\"1\",\"a\":\"2\"", 1);
    let text = bench.refused(bench.pull(&pull(twice)).await);
    assert!(text.contains("the key \"a\" twice"), "{text}");
    // Annotations are the author's own, and may be called like anything.
    let own = good.replacen("\"annotations\":{", "\"annotations\":{\"Layers\":\"1\",\"layers\":\"2\",\"digest\":\"\"", 1);
    bench.pull(&pull(own)).await.unwrap();
}

#[tokio::test]
async fn ac41_refuses_a_configuration_that_does_not_fit() {
    let layers = [Layer::gzip(&archive(1))];
    let cases: [(Alter, &str); 4] = [
        (|c| c["architecture"] = json!("arm64"), "the image is for linux/arm64"),
        (|c| c["os"] = json!("windows"), "the image is for windows"),
        (|c| c["rootfs"]["diff_ids"] = json!([]), "0 diffIDs for 1 layers"),
        (|c| c["rootfs"]["diff_ids"][0] = json!("sha256:xyz"), "a diffID"),
    ];
    for (alter, expected) in cases {
        let bench = Bench::new();
        let mut config = config_of(&layers);
        alter(&mut config);
        let manifest = bench.registry.manifest_value(&layers, &config);
        let digest = bench.registry.put_manifest(&manifest, OCI_MANIFEST);
        let text = bench.refused(bench.pull(&reference(&digest)).await);
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn ac43_refuses_bombs_by_ratio_size_and_entries() {
    let zeros = Tar::default().file("zeros", &vec![0; 2_000_000]).end();
    let mut bench = Bench::new();
    bench.config.limits.ratio_floor = 1 << 20;
    bench.config.limits.ratio = 50;
    let image = bench.registry.image(&[Layer::gzip(&zeros)]);
    let text = bench.refused(bench.pull(&image).await);
    assert!(text.contains("more than 50 times"), "{text}");

    let mut bench = Bench::new();
    bench.config.limits.unpacked_bytes = 400_000;
    let image = bench.registry.image(&[Layer::gzip(&archive(1)), Layer::gzip(&archive(2))]);
    let text = crate::testing::chain_of(&bench.pull(&image).await.unwrap_err());
    assert!(text.contains("decompress to more than 400000 bytes"), "{text}");

    let mut bench = Bench::new();
    bench.config.limits.entries = 100;
    let many = (0..101).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), b"")).end();
    let image = bench.registry.image(&[Layer::gzip(&many)]);
    let text = bench.refused(bench.pull(&image).await);
    assert!(text.contains("more than 100 entries"), "{text}");
}

fn deep(parts: usize) -> Vec<u8> {
    Tar::default().pax(&[("path", ["d/".repeat(parts - 1), "f".to_owned()].concat().as_bytes())]).file("f", b"").end()
}

#[tokio::test]
async fn ac43_counts_the_directories_that_an_entry_implies() {
    let mut bench = Bench::new();
    bench.config.limits.entries = 100;
    let image = bench.registry.image(&[Layer::gzip(&deep(101))]);
    let text = bench.refused(bench.pull(&image).await);
    assert!(text.contains("more than 100 entries"), "{text}");
    let image = bench.registry.image(&[Layer::gzip(&deep(100))]);
    bench.pull(&image).await.unwrap();
}

#[tokio::test]
async fn ac77_a_deep_layer_that_fails_leaves_nothing() {
    let text = altered_manifest(&[Layer { diff_id: Digest::of(b"other"), ..Layer::gzip(&deep(255)) }], |_, _| {}).await;
    assert!(text.contains("(diffID)"), "{text}");
    let text = altered_manifest(&[Layer::gzip(&deep(2040))], |_, _| {}).await;
    assert!(text.contains("more than 255 parts"), "{text}");
    // Also if a caller allows what would be more than a process may have files open.
    let mut bench = Bench::new();
    bench.config.limits.path_parts = 1200;
    let image = bench.registry.image(&[Layer { diff_id: Digest::of(b"other"), ..Layer::gzip(&deep(1200)) }]);
    let text = bench.refused(bench.pull(&image).await);
    assert!(text.contains("(diffID)"), "{text}");
}

#[tokio::test]
async fn ac43_refuses_an_index_within_an_index() {
    let bench = Bench::new();
    let inner = bench.registry.index(&[]);
    let entry =
        json!({"mediaType": OCI_MANIFEST, "digest": inner.digest(), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}});
    let text = bench.refused(bench.pull(&bench.registry.index(&[entry])).await);
    assert!(text.contains("an index within an index"), "{text}");
}

fn annotation(layer: &Layer, key: &str) -> Value {
    use base64::Engine;
    let text = &layer.annotations[key];
    serde_json::from_slice(&base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap()
}

fn set(layer: &mut Layer, key: &str, value: &Value) {
    use base64::Engine;
    layer.annotations.insert(key.to_owned(), base64::engine::general_purpose::STANDARD.encode(value.to_string()));
}

fn keys() -> String {
    format!("{}{}", ocicrypt::PROVIDER_PREFIX, ocicrypt::PROVIDER)
}

/// An encrypted image altered by one who also writes the manifest, so that every digest in it is right again.
async fn altered_encrypted(alter: impl FnOnce(&mut Layer)) -> String {
    let mut layer = Layer::gzip(&archive(1)).encrypted(&KEK);
    alter(&mut layer);
    altered_manifest(&[layer], |_, _| {}).await
}

#[tokio::test]
async fn ac44_refuses_a_flipped_bit_anywhere_even_when_digests_are_made_to_fit() {
    let length = Layer::gzip(&archive(1)).blob.len();
    for at in [0, 1, 10, 511, 4096, 262_144, length / 2, length - 9, length - 1] {
        let text = altered_encrypted(|layer| layer.blob[at] ^= 0x10).await;
        assert!(text.contains("the authentication code is not that of the ciphertext"), "byte {at}: {text}");
    }
}

#[tokio::test]
async fn ac44_refuses_truncation_and_lengthening_even_when_digests_are_made_to_fit() {
    let mac = "the authentication code is not that of the ciphertext";
    for cut in [1, 16, 200_000] {
        let text = altered_encrypted(|layer| layer.blob.truncate(layer.blob.len() - cut)).await;
        assert!(text.contains(mac), "{text}");
    }
    let text = altered_encrypted(|layer| layer.blob.push(0)).await;
    assert!(text.contains(mac), "{text}");
    let text = altered_encrypted(|layer| layer.blob.clear()).await;
    assert!(text.contains(mac), "{text}");
}

#[tokio::test]
async fn ac44_refuses_a_swapped_mac_and_prints_none() {
    let good = Layer::gzip(&archive(1)).encrypted(&KEK);
    let other = Layer::gzip(&archive(2)).encrypted(&KEK);
    let mac = annotation(&good, ocicrypt::PUBLIC_OPTIONS)["hmac"].as_str().unwrap().to_owned();
    let mut layer = good;
    let stolen = other.annotations[ocicrypt::PUBLIC_OPTIONS].clone();
    layer.annotations.insert(ocicrypt::PUBLIC_OPTIONS.to_owned(), stolen);
    let text = altered_manifest(&[layer], |_, _| {}).await;
    assert!(text.contains("the authentication code") && !text.contains(&mac[..8]), "{text}");
}

#[tokio::test]
async fn ac44_refuses_layers_swapped_between_images() {
    let one = Layer::gzip(&archive(1)).encrypted(&KEK);
    let two = Layer::gzip(&archive(2)).encrypted(&KEK);
    // Blob of the one, key of the other.
    let mixed = Layer { annotations: two.annotations.clone(), ..one.clone() };
    let text = altered_manifest(&[mixed], |_, _| {}).await;
    assert!(text.contains("the authentication code"), "{text}");
    // Blob and key of the other under this image's diffID.
    let swapped = Layer { diff_id: one.diff_id, ..two };
    let text = altered_manifest(&[swapped], |_, _| {}).await;
    assert!(text.contains("(diffID)"), "{text}");
}

#[tokio::test]
async fn ac44_refuses_plaintext_in_place_of_an_encrypted_layer() {
    let plain = Layer::gzip(&archive(1));
    let encrypted = plain.clone().encrypted(&KEK);
    let text = altered_manifest(&[Layer { blob: plain.blob.clone(), ..encrypted.clone() }], |_, _| {}).await;
    assert!(text.contains("the authentication code"), "{text}");
    let text = altered_manifest(&[Layer { annotations: encrypted.annotations.clone(), ..plain.clone() }], |_, _| {}).await;
    assert!(text.contains("annotations of an encrypted layer but is not"), "{text}");
    let bench = Bench::new();
    let image = bench.pull(&bench.registry.image(&[plain])).await.unwrap();
    assert!(!image.layers[0].encrypted, "a plain layer is told apart for the caller's policy");
}

#[tokio::test]
async fn ac44_takes_the_nonce_from_the_authenticated_options_only() {
    let bench = Bench::new();
    let mut layer = Layer::gzip(&archive(1)).encrypted(&KEK);
    let mut public = annotation(&layer, ocicrypt::PUBLIC_OPTIONS);
    public["cipheroptions"] = json!({"nonce": "AAAAAAAAAAAAAAAAAAAAAA=="});
    set(&mut layer, ocicrypt::PUBLIC_OPTIONS, &public);
    let image = bench.registry.image(&[layer]);
    bench.pull(&image).await.expect("a public nonce decides nothing");
}

#[tokio::test]
async fn ac45_refuses_key_ids_that_are_no_resources_and_keys_that_do_not_fit() {
    for kid in ["kbs:///../admin/key", "kbs:///a/b", "kbs://evil.host/a/b/c", "file:///etc/shadow", "", "default/image-key/1"] {
        let text = altered_encrypted(|layer| {
            let mut packet = annotation(layer, &keys());
            packet["kid"] = json!(kid);
            set(layer, &keys(), &packet);
        })
        .await;
        assert!(text.contains("expected a resource of the form kbs:///"), "{kid}: {text}");
    }
    let text = altered_encrypted(|layer| {
        let mut packet = annotation(layer, &keys());
        packet["kid"] = json!("kbs:///default/image-key/other");
        set(layer, &keys(), &packet);
    })
    .await;
    assert!(text.contains("the broker refuses"), "{text}");
    // Wrapped by another key-encryption key.
    let text = altered_manifest(&[Layer::gzip(&archive(1)).encrypted(&[9; 32])], |_, _| {}).await;
    assert!(text.contains("does not open this layer's wrapped key"), "{text}");
}

#[tokio::test]
async fn refuses_malformed_encryption_annotations() {
    type AlterLayer = fn(&mut Layer);
    let cases: [(AlterLayer, &str); 8] = [
        (|l| drop(l.annotations.remove(ocicrypt::PUBLIC_OPTIONS)), "without the annotation"),
        (|l| drop(l.annotations.remove(&keys())), "without a key wrapped by a key provider"),
        (
            |l| {
                let packet = l.annotations.remove(&keys()).unwrap();
                l.annotations.insert("org.opencontainers.image.enc.keys.jwe".to_owned(), packet);
            },
            "[\"jwe\"]",
        ),
        (|l| drop(l.annotations.insert(keys(), "!!".to_owned())), "expected base64"),
        (
            |l| {
                let mut p = annotation(l, &keys());
                p["wrap_type"] = json!("A256CTR");
                set(l, &keys(), &p);
            },
            "\"A256CTR\" is not supported",
        ),
        (
            |l| {
                let mut p = annotation(l, &keys());
                p["iv"] = json!("AAAA");
                set(l, &keys(), &p);
            },
            "expected 12 bytes",
        ),
        (
            |l| {
                let mut p = annotation(l, ocicrypt::PUBLIC_OPTIONS);
                p["cipher"] = json!("NONE");
                set(l, ocicrypt::PUBLIC_OPTIONS, &p);
            },
            "cipher \"NONE\" is not supported",
        ),
        (
            |l| {
                let mut p = annotation(l, ocicrypt::PUBLIC_OPTIONS);
                p["hmac"] = json!("AAAA");
                set(l, ocicrypt::PUBLIC_OPTIONS, &p);
            },
            "an hmac of 32 bytes",
        ),
    ];
    for (alter, expected) in cases {
        let text = altered_encrypted(alter).await;
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[tokio::test]
async fn takes_packets_of_version_2_integer_arrays_and_other_recipients() {
    use base64::Engine;
    let bench = Bench::new();
    let mut layer = Layer::gzip(&archive(1)).encrypted(&KEK);
    let mut packet = annotation(&layer, &keys());
    let raw = base64::engine::general_purpose::STANDARD.decode(packet["wrapped_data"].as_str().unwrap()).unwrap();
    packet["wrapped_data"] = json!(raw);
    for (key, value) in
        [("version", json!("0.1.0")), ("provider", json!("kbs")), ("provider_settings", json!({})), ("annotations", json!(""))]
    {
        packet[key] = value;
    }
    let mut public = annotation(&layer, ocicrypt::PUBLIC_OPTIONS);
    public["hmac"] = json!(base64::engine::general_purpose::STANDARD.decode(public["hmac"].as_str().unwrap()).unwrap());
    set(&mut layer, ocicrypt::PUBLIC_OPTIONS, &public);
    layer.annotations.remove(&keys());
    let other = base64::engine::general_purpose::STANDARD.encode("{\"somebody\":\"else\"}");
    let ours = base64::engine::general_purpose::STANDARD.encode(packet.to_string());
    layer.annotations.insert(format!("{}any-name", ocicrypt::PROVIDER_PREFIX), format!("{other},{ours}"));
    bench.pull(&bench.registry.image(&[layer])).await.unwrap();
    assert_eq!(*bench.secrets.asked.lock().unwrap(), [KID]);
}

#[tokio::test]
async fn ac74_refuses_entries_after_the_end_of_the_archive() {
    let mut hidden = Tar::default().file("seen", b"1").end();
    hidden.extend(Tar::default().file("hidden", b"2").end());
    let text = altered_manifest(&[Layer::gzip(&hidden)], |_, _| {}).await;
    assert!(text.contains("goes on after its end"), "{text}");
    // Zeros after the end are what tar writers pad with; they belong to the diffID.
    let bench = Bench::new();
    let mut padded = Tar::default().file("seen", b"1").end();
    padded.resize(padded.len().next_multiple_of(10_240), 0);
    bench.pull(&bench.registry.image(&[Layer::gzip(&padded)])).await.unwrap();
}

#[tokio::test]
async fn ac76_reads_gzip_members_and_refuses_garbage_behind_the_last() {
    let bench = Bench::new();
    let tar = archive(3);
    let (a, b) = tar.split_at(1000);
    let mut layer = Layer::gzip(&tar);
    layer.blob = [gzip(a), gzip(b)].concat();
    bench.pull(&bench.registry.image(&[layer.clone()])).await.unwrap();
    layer.blob.extend_from_slice(b"garbage");
    let text = altered_manifest(&[layer], |_, _| {}).await;
    assert!(text.contains("decompressing the layer"), "{text}");
}

#[tokio::test]
async fn ac77_a_failed_layer_leaves_only_whole_verified_ones() {
    let bench = Bench::new();
    let good = Layer::gzip(&archive(1));
    let mut bad = Layer::gzip(&archive(2));
    bad.diff_id = Digest::of(b"other");
    let outcome = bench.pull(&bench.registry.image(&[good.clone(), bad])).await;
    assert!(outcome.is_err());
    assert_eq!(crate::testing::entries(&bench.dir.path().join("tmp")), 0);
    for left in std::fs::read_dir(bench.dir.path().join("layers")).unwrap() {
        assert_eq!(left.unwrap().file_name().to_str().unwrap(), good.diff_id.hex());
    }
    // And a retry finds a clean store.
    bench.pull(&bench.registry.image(&[good])).await.unwrap();
}
