//! Initdata: both carriers, exact bytes, and everything a host could do to them.

use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256, Sha512};

use super::{Algorithm, Initdata, InitdataBuilder, InitdataError, MAX_TOML};

const TEXT: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"aa.toml\" = '''\nx = 1\n'''\n# comment\n";

fn good() -> Initdata {
    Initdata::parse(TEXT.as_bytes()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn disk(gzip: &[u8]) -> Vec<u8> {
    let mut disk = [b"initdata".as_slice(), &(gzip.len() as u64).to_le_bytes(), gzip].concat();
    disk.resize(disk.len().next_multiple_of(512), 0);
    disk
}

#[test]
fn digest_is_over_the_exact_bytes() {
    let initdata = good();
    assert_eq!(initdata.get("aa.toml"), Some("x = 1\n"));
    assert_eq!(initdata.get("cdh.toml"), None);
    assert_eq!(initdata.raw(), TEXT.as_bytes());
    assert_eq!(initdata.host_data(), <[u8; 32]>::from(Sha256::digest(TEXT)));
    let other = Initdata::parse(TEXT.replace("# comment", "# Comment").as_bytes()).unwrap();
    assert_ne!(other.host_data(), initdata.host_data());
}

#[test]
fn digest_is_cut_or_padded_to_the_field() {
    assert_eq!(good().digest().field::<48>()[32..], [0; 16]);
    let long = TEXT.replace("sha256", "sha512");
    let initdata = Initdata::parse(long.as_bytes()).unwrap();
    assert_eq!(initdata.host_data()[..], Sha512::digest(&long)[..32]);
    assert_eq!(initdata.digest().as_bytes().len(), 64);
    assert_eq!(Initdata::parse(TEXT.replace("sha256", "sha384").as_bytes()).unwrap().digest().algorithm(), Algorithm::Sha384);
}

#[test]
fn carriers_keep_every_byte() {
    let initdata = good();
    assert_eq!(Initdata::from_annotation(&initdata.to_annotation()).unwrap(), initdata);
    let disk = initdata.to_disk_image();
    assert_eq!(disk.len() % 512, 0);
    assert_eq!(Initdata::from_disk_image(&disk).unwrap(), initdata);
}

#[test]
fn builder_writes_what_the_parser_reads() {
    let text = "a = \"b\"\n'''\"\"\" \\ \u{1F980}\n";
    let initdata = InitdataBuilder::new().algorithm(Algorithm::Sha384).document("cdh.toml", text).build().unwrap();
    assert_eq!(initdata.get("cdh.toml"), Some(text));
    assert_eq!(initdata.algorithm(), Algorithm::Sha384);
    assert!(InitdataBuilder::new().document("../x", "").build().is_err());
}

#[test]
fn rejects_what_is_not_the_format() {
    let check = |from: &str, to: &str| Initdata::parse(TEXT.replace(from, to).as_bytes()).unwrap_err();
    assert!(matches!(check("0.1.0", "0.2.0"), InitdataError::Version { .. }));
    assert!(matches!(check("sha256", "sm3"), InitdataError::Algorithm { .. }));
    assert!(matches!(check("sha256", "sha-256"), InitdataError::Algorithm { .. }));
    assert!(matches!(check("version", "versio"), InitdataError::Syntax(_)));
    assert!(matches!(check("[data]", "extra = 1\n[data]"), InitdataError::Syntax(_)));
    assert!(matches!(check("[data]", "[Data]"), InitdataError::Syntax(_)));
    assert!(matches!(check("# comment", "n = 1"), InitdataError::Syntax(_)));
    assert!(matches!(check("# comment", "\"aa.toml\" = ''"), InitdataError::Syntax(_)));
    assert!(matches!(check("aa.toml", "../aa.toml"), InitdataError::Name { .. }));
    assert!(matches!(check("aa.toml", ""), InitdataError::Name { .. }));
    assert!(matches!(Initdata::parse(b"\xff").unwrap_err(), InitdataError::NotText(0)));
    assert!(matches!(Initdata::parse(&vec![b'#'; MAX_TOML + 1]).unwrap_err(), InitdataError::TooLarge));
    let many: String = (0..65).map(|n| format!("k{n} = ''\n")).collect();
    assert!(matches!(check("# comment", &many), InitdataError::Entries { found: 66 }));
}

#[test]
fn errors_do_not_quote_documents() {
    let text = TEXT.replace("# comment", "\"cdh.toml\" = 'hunter2' x");
    let error = Initdata::parse(text.as_bytes()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    assert!(!format!("{:?}", good()).contains("x = 1"));
}

#[test]
fn rejects_every_truncation() {
    let disk = good().to_disk_image();
    let data = 16 + gzip(TEXT.as_bytes()).len();
    for length in 0..data {
        assert!(Initdata::from_disk_image(&disk[..length]).is_err(), "{length}");
    }
    let compressed = gzip(TEXT.as_bytes());
    for length in 0..compressed.len() {
        assert_eq!(Initdata::from_annotation(&STANDARD.encode(&compressed[..length])), Err(InitdataError::Gzip), "{length}");
    }
}

/// A flipped bit is either noticed or without effect (the header's time and name of the system are not part of the text).
#[test]
fn no_flipped_bit_changes_the_text() {
    let disk = good().to_disk_image();
    for byte in 0..disk.len() {
        for bit in 0..8 {
            let mut changed = disk.clone();
            changed[byte] ^= 1 << bit;
            if let Ok(initdata) = Initdata::from_disk_image(&changed) {
                assert_eq!(initdata.raw(), TEXT.as_bytes(), "byte {byte} bit {bit}");
            }
        }
    }
}

#[test]
fn rejects_bombs_without_inflating_them() {
    let bomb = gzip(&vec![b'#'; 4 << 20]);
    assert!(bomb.len() < 16_000);
    assert_eq!(Initdata::from_annotation(&STANDARD.encode(&bomb)), Err(InitdataError::TooLarge));
    assert_eq!(Initdata::from_disk_image(&disk(&bomb)), Err(InitdataError::TooLarge));
    assert_eq!(Initdata::from_annotation(&"A".repeat(4 << 20)), Err(InitdataError::TooLarge));
}

#[test]
fn rejects_anything_after_the_data() {
    let compressed = gzip(TEXT.as_bytes());
    for tail in [b"\0".as_slice(), b"x", &gzip(b""), &gzip(b"# more")] {
        let both = [compressed.as_slice(), tail].concat();
        assert_eq!(Initdata::from_annotation(&STANDARD.encode(&both)), Err(InitdataError::Gzip));
        assert_eq!(Initdata::from_disk_image(&disk(&both)), Err(InitdataError::Gzip));
    }
    let mut padded = disk(&compressed);
    *padded.last_mut().unwrap() = 1;
    assert_eq!(Initdata::from_disk_image(&padded), Err(InitdataError::Trailing));
}

#[test]
fn rejects_wrong_lengths_and_magic() {
    let good = good().to_disk_image();
    for claimed in [0, 1, 15, u64::MAX, 1 << 40, good.len() as u64, good.len() as u64 - 15] {
        let mut changed = good.clone();
        changed[8..16].copy_from_slice(&claimed.to_le_bytes());
        assert!(Initdata::from_disk_image(&changed).is_err(), "{claimed}");
    }
    let mut changed = good.clone();
    changed[0] = b'I';
    assert_eq!(Initdata::from_disk_image(&changed), Err(InitdataError::Magic));
    assert_eq!(Initdata::from_disk_image(&[]), Err(InitdataError::Magic));
    assert_eq!(Initdata::from_annotation("not base64!"), Err(InitdataError::Base64));
}
