//! A boot image of Secure Execution, started as far as that goes without the machine: from the first PSW to the decrypted components, by
//! what is in the image and the host's private key alone. The loaders are stand-ins: s390 code cannot run here.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

use std::convert::Infallible;
use std::io::{Cursor, Empty};
use std::path::PathBuf;

use aes::Aes256;
use aes::cipher::KeyInit as _;
use kata_cc_evidence::se::ImageTags;
use kata_cc_firmware::measure::se::components::Component;
use kata_cc_firmware::measure::se::header::{Header, HeaderError, PlaintextFlags, Point};
use kata_cc_firmware::measure::se::image::{Image, ImageError, Inputs, build, find_header};
use kata_cc_firmware::measure::se::seal::{SealError, Secrets};
use p521::elliptic_curve::sec1::ToEncodedPoint as _;
use p521::{PublicKey, SecretKey, ecdh};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256, Sha512};
use xts_mode::Xts128;

const PAGE: usize = 4096;
const COMMAND_LINE: &str = "root=/dev/ram0 secret=hunter2";

fn secrets(seed: u8) -> Secrets {
    let mut next = seed;
    let fill = |bytes: &mut [u8]| {
        for byte in bytes {
            *byte = next;
            next = next.wrapping_mul(5).wrapping_add(113);
        }
        Ok::<_, Infallible>(())
    };
    Secrets::draw(fill).unwrap()
}

fn host(byte: u8) -> SecretKey {
    let mut scalar = [byte; 66];
    scalar[0] = 0;
    SecretKey::from_slice(&scalar).unwrap()
}

fn coordinates(key: &PublicKey) -> [u8; 160] {
    let point = key.to_encoded_point(false);
    [&[0; 14], point.x().unwrap().as_slice(), &[0; 14], point.y().unwrap()].concat().try_into().unwrap()
}

fn point(key: &SecretKey) -> Point {
    Point::from_coordinates(coordinates(&key.public_key())).unwrap()
}

/// Something with the marks of an s390 kernel, which takes so long a command line.
fn kernel(command_line: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..0x12345_u32).map(|n| (n % 251) as u8).collect();
    bytes[0x10008..0x1000e].copy_from_slice(b"S390EP");
    bytes[0x10430..0x10438].copy_from_slice(&command_line.to_be_bytes());
    bytes
}

/// Longer than the place up to the usual one of headers, where that is asked for.
fn stage3a(len: usize) -> Vec<u8> {
    vec![0xaa; len]
}

fn initrd() -> Vec<u8> {
    b"initrd".repeat(3000)
}

fn make(seed: u8, stage3a_len: usize, with_initrd: bool, hosts: &[SecretKey]) -> (Image, Vec<u8>) {
    let host_keys: Vec<_> = hosts.iter().map(point).collect();
    let (stage3a, kernel, initrd) = (stage3a(stage3a_len), kernel(4096), initrd());
    let inputs = Inputs {
        stage3a: &stage3a,
        stage3b: &[0xbb; 5000],
        kernel: kernel.as_slice(),
        initrd: with_initrd.then_some(initrd.as_slice()),
        command_line: COMMAND_LINE,
        host_keys: &host_keys,
    };
    let mut out = Cursor::new(Vec::new());
    let image = build(inputs, &secrets(seed), &mut out).unwrap();
    (image, out.into_inner())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn at(bytes: &[u8], offset: usize) -> usize {
    usize::try_from(u64_at(bytes, offset)).unwrap()
}

/// What the ultravisor of this host finds in the encrypted part, if the header is for it and unchanged.
fn unseal(header: &[u8], host: &SecretKey) -> Option<Vec<u8>> {
    open_with(header, host, &agree(header, host)?)
}

/// The key of this host's slot.
fn agree(header: &[u8], host: &SecretKey) -> Option<[u8; 32]> {
    let point = [&[4], &header[64 + 14..144], &header[144 + 14..224]].concat();
    let customer = PublicKey::from_sec1_bytes(&point).ok()?;
    let shared = ecdh::diffie_hellman(host.to_nonzero_scalar(), customer.as_affine());
    Some(Sha256::new().chain_update(shared.raw_secret_bytes()).chain_update([0, 0, 0, 1]).finalize().into())
}

fn open_with(header: &[u8], host: &SecretKey, agreed: &[u8; 32]) -> Option<Vec<u8>> {
    let phkh: [u8; 32] = Sha256::digest(coordinates(&host.public_key())).into();
    let slots = at(header, 32);
    let slot = header[416..416 + 80 * slots].chunks(80).find(|slot| slot[..32] == phkh)?;
    let protection = open(agreed, [0; 12], &[], &slot[32..])?;
    let head = 416 + 80 * slots;
    open(&protection, header[16..28].try_into().unwrap(), &header[..head], &header[head..])
}

fn open(key: &[u8], iv: [u8; 12], authenticated: &[u8], text: &[u8]) -> Option<Vec<u8>> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let mut text = text.to_vec();
    key.open_in_place(Nonce::assume_unique_for_key(iv), Aad::from(authenticated), &mut text).ok().map(|text| text.to_vec())
}

/// Starts it, and returns kernel, initrd and command line as stage3b is told to find them.
fn start(image: &[u8], host: &SecretKey) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    // The first PSW: a short one, 64-bit addresses, to the second page of stage3a.
    assert_eq!(u64_at(image, 0), 0x0008_0001_8001_1000);
    assert_eq!(&image[0xc000..0xc008], b"SeImgLnx");
    let (header_at, block_at) = (at(image, 0xc008), usize::try_from(u64_at(image, 0xc014)).unwrap());
    assert_eq!(u32_at(image, 0xc010), 1);

    // stage3a's parameters say the same, seen from where they are: behind its code.
    let parameters = 0x10000 + image[0x10000..].iter().position(|byte| *byte != 0xaa).unwrap();
    assert_eq!(parameters + at(image, parameters), header_at);
    assert_eq!(parameters + at(image, parameters + 16), block_at);
    let header = &image[header_at..][..at(image, parameters + 8)];
    assert_eq!(u32_at(header, 12) as usize, header.len());

    // It gives the block to the ultravisor, which opens the header.
    let block = &image[block_at..];
    assert_eq!((u32_at(block, 0) as usize, block[7], block[12], block[8 + 4 + 4 + 8 + 84 + 3]), (block.len(), 1, 5, 1));
    assert_eq!(u32_at(block, 8), u32_at(block, 0) - 8);
    assert_eq!((at(block, 120), at(block, 128)), (header_at, header.len()));
    let confidential = unseal(header, host).unwrap();
    assert_eq!(confidential.len(), 128);
    let cipher = Xts128::new(Aes256::new(confidential[32..64].into()), Aes256::new(confidential[64..96].into()));

    // It decrypts the components where they are.
    let mut memory = image.to_vec();
    let (mut pld, mut ald, mut tld, mut pages) = (Sha512::new(), Sha512::new(), Sha512::new(), 0);
    let components = &block[136..];
    assert_eq!(components.len(), 24 * u32_at(block, 116) as usize);
    for component in components.chunks(24) {
        let (address, len) = (at(component, 8), at(component, 16));
        for offset in (0..len).step_by(PAGE) {
            let page = &mut memory[address + offset..][..PAGE];
            let tweak = (u128::from(u64_at(component, 0)) << 64 | offset as u128).to_be_bytes();
            pld.update(&*page);
            ald.update(((address + offset) as u64).to_be_bytes());
            tld.update(tweak);
            cipher.decrypt_sector(page, tweak);
            pages += 1;
        }
    }
    let tags = ImageTags::from_header(header).unwrap();
    assert_eq!((tags.pld, tags.ald, tags.tld), (pld.finalize().into(), ald.finalize().into(), tld.finalize().into()));
    assert_eq!(u64_at(header, 48), pages);

    // It starts the guest at stage3b, whose parameters are behind its code.
    assert_eq!(u64_at(&confidential, 96), 0x1_8000_0000);
    let entry = at(&confidential, 104);
    assert!(memory[entry..entry + 5000 - 64].iter().all(|byte| *byte == 0xbb));
    let parameters = &memory[entry + 5000 - 64..][..64];
    assert_eq!((u64_at(parameters, 48), u64_at(parameters, 56)), (0x1_8000_0000, 0x10000));
    // No secret control flags, no optional items.
    assert_eq!(confidential[112..], [0; 16]);
    let part = |n: usize| memory[at(parameters, n)..][..at(parameters, n + 8)].to_vec();
    (part(0), part(32), part(16))
}

#[test]
fn an_image_starts_with_what_it_was_made_of() {
    let (image, bytes) = make(1, 0x3000, true, &[host(0x22)]);
    let (started_kernel, started_initrd, command_line) = start(&bytes, &host(0x22));
    assert_eq!(started_kernel, kernel(4096));
    assert_eq!(started_initrd, initrd());
    assert_eq!(command_line, [COMMAND_LINE.as_bytes(), &[0]].concat());
    assert_eq!((image.header_at, image.size), (0x14000, bytes.len() as u64));
    let kinds: Vec<_> = image.components.iter().map(|placed| placed.component).collect();
    assert_eq!(kinds, [Component::Kernel, Component::Initrd, Component::CommandLine, Component::Stage3b]);
    assert!(image.header.head().flags() == PlaintextFlags::WRAPPED_KEYS);
}

#[test]
fn a_long_loader_moves_the_header_and_no_initrd_leaves_its_place_empty() {
    let (image, bytes) = make(1, 0x5001, false, &[host(0x22)]);
    assert_eq!(image.header_at, 0x16000);
    let (started_kernel, started_initrd, _) = start(&bytes, &host(0x22));
    assert_eq!((started_kernel, started_initrd), (kernel(4096), Vec::new()));
}

#[test]
fn nothing_secret_is_legible() {
    let (_, bytes) = make(1, 0x3000, true, &[host(0x22)]);
    for text in [b"hunter2".as_slice(), b"initrdinitrd", b"S390EP"] {
        assert!(!bytes.windows(text.len()).any(|window| window == text));
    }
}

#[test]
fn each_of_its_hosts_opens_an_image_and_no_other() {
    let (image, _) = make(1, 0x3000, true, &[host(0x22), host(0x33)]);
    let header = image.header.to_bytes().unwrap();
    let opened = unseal(&header, &host(0x22)).unwrap();
    assert_eq!(unseal(&header, &host(0x33)), Some(opened));
    assert_eq!(unseal(&header, &host(0x44)), None);
}

/// The tag covers all of the header: no byte can be another without the ultravisor's refusing.
#[test]
fn a_changed_header_opens_for_nobody() {
    let (image, _) = make(1, 0x3000, true, &[host(0x22), host(0x33)]);
    let (header, host) = (image.header.to_bytes().unwrap(), host(0x22));
    let agreed = agree(&header, &host).unwrap();
    assert!(open_with(&header, &host, &agreed).is_some());
    // The lengths in 32 to 48 decide what is looked at; the parser holds them against the size of all.
    for at in (0..header.len()).filter(|at| !(32..48).contains(at)) {
        let mut changed = header.clone();
        changed[at] ^= 1;
        // The second slot is not the first host's way in; the tag covers it all the same, and the customer key even if the same were
        // agreed.
        assert_eq!(open_with(&changed, &host, &agreed), None, "byte {at}");
    }
}

#[test]
fn the_header_is_found_in_an_image_and_in_a_file_of_its_own() {
    let (image, mut bytes) = make(1, 0x5001, true, &[host(0x22)]);
    let find = |bytes: &[u8]| find_header(&mut Cursor::new(bytes));
    assert_eq!(find(&bytes).unwrap(), image.header);
    let header = &bytes[0x16000..0x18000];
    assert_eq!(find(header).unwrap(), image.header);

    bytes[0xc013] = 2;
    assert!(matches!(find(&bytes), Err(ImageError::Metadata { found: 2 })));
    bytes[0xc013] = 1;
    // Metadata that say something else are not passed over.
    bytes[0xc00e] ^= 0x10;
    assert!(matches!(find(&bytes), Err(ImageError::NoHeader)));
    // An image without metadata is older than they are.
    bytes[0xc000] = 0;
    assert_eq!(find(&bytes).unwrap(), image.header);
    bytes[0x1600b] = 7;
    assert!(matches!(find(&bytes), Err(ImageError::Header { at: 0x16000, .. })));
    bytes[0x16000] = 0;
    assert!(matches!(find(&bytes), Err(ImageError::NoHeader)));
    assert!(matches!(find(&[]), Err(ImageError::NoHeader)));
}

#[test]
fn inputs_that_cannot_start_are_refused() {
    let keys = [point(&host(0x22))];
    let good = || (stage3a(0x3000), vec![0xbb; 5000], kernel(4096), COMMAND_LINE.to_owned());
    let try_build = |(stage3a, stage3b, kernel, command_line): (Vec<u8>, Vec<u8>, Vec<u8>, String), host_keys: &[Point]| {
        let inputs = Inputs {
            stage3a: &stage3a,
            stage3b: &stage3b,
            kernel: kernel.as_slice(),
            initrd: None::<Empty>,
            command_line: &command_line,
            host_keys,
        };
        build(inputs, &secrets(1), &mut Cursor::new(Vec::new()))
    };
    assert!(try_build(good(), &keys).is_ok());

    let kernel_is = |bytes: Vec<u8>, expected: &str| {
        let error = try_build((good().0, good().1, bytes, String::new()), &keys).unwrap_err();
        assert!(matches!(error, ImageError::Kernel { found } if found.contains(expected)), "{error}");
    };
    let mut elf = kernel(4096);
    elf[..4].copy_from_slice(b"\x7fELF");
    kernel_is(elf, "ELF");
    let mut other = kernel(4096);
    other[0x10008] = b'X';
    kernel_is(other, "S390EP");
    kernel_is(kernel(4096)[..0x10437].to_vec(), "cut off");
    kernel_is(Vec::new(), "S390EP");

    let command_line = |text: String, kernel: Vec<u8>| try_build((good().0, good().1, kernel, text), &keys);
    assert!(command_line("x".repeat(4095), kernel(4096)).is_ok());
    assert!(matches!(command_line("x".repeat(4096), kernel(4096)), Err(ImageError::CommandLine { found: 4096, limit: 4096, .. })));
    assert!(command_line("x".repeat(895), kernel(0)).is_ok());
    assert!(matches!(command_line("x".repeat(896), kernel(0)), Err(ImageError::CommandLine { limit: 896, .. })));
    assert!(matches!(command_line("a\0b".into(), kernel(4096)), Err(ImageError::CommandLine { nul: "among them", .. })));

    let loader = |stage3a: Vec<u8>, stage3b: Vec<u8>| try_build((stage3a, stage3b, kernel(4096), String::new()), &keys);
    assert!(matches!(loader(stage3a(0x1017), vec![0; 5000]), Err(ImageError::Loader { loader: "stage3a", found: 0x1017, .. })));
    assert!(matches!(loader(stage3a((1 << 20) + 1), vec![0; 5000]), Err(ImageError::Loader { loader: "stage3a", .. })));
    assert!(matches!(loader(stage3a(0x3000), vec![0; 127]), Err(ImageError::Loader { loader: "stage3b", found: 127, .. })));

    let sealed = |host_keys: &[Point]| match try_build(good(), host_keys).unwrap_err() {
        ImageError::Seal(error) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(sealed(&[]), SealError::Header(HeaderError::NoHostKey));
    assert!(matches!(sealed(&[keys[0]; 96]), SealError::Header(HeaderError::TooLarge { slots: 96, .. })));
    assert!(matches!(sealed(&[keys[0]; 2]), SealError::SameHostKey { .. }));
    let error = try_build((stage3a(0x3000), vec![0xbb; 5000], kernel(4096), String::new()), &[]).unwrap_err();
    assert!(matches!(error, ImageError::Seal(_)));
}

/// IBM's header: what its own tools read from it is in the manifest.
#[test]
fn ibms_own_header_is_read_as_ibm_reads_it() {
    let folder = std::env::var_os("KATA_CC_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"), PathBuf::from);
    let path = folder.join("ibm-s390-linux/s390-tools/rust/pv/tests/assets/exp/secure_guest.hdr");
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("SKIPPED: no vectors at {}; set KATA_CC_VECTORS", folder.display());
        return;
    };
    let header = Header::parse(&bytes).unwrap();
    let tags = header.tags();
    assert_eq!(tags, ImageTags::from_header(&bytes).unwrap());
    assert_eq!(hex::encode(tags.tag), "92309d4589b9a85b427f8753171d1520");
    let ends = |digest: [u8; 64]| (hex::encode(&digest[..4]), hex::encode(&digest[62..]));
    assert_eq!(ends(tags.pld), ("be94b5ea".into(), "0161".into()));
    assert_eq!(ends(tags.ald), ("2858c336".into(), "9328".into()));
    assert_eq!(ends(tags.tld), ("4860ebcf".into(), "7af5".into()));
    assert_eq!((header.head().pages(), header.head().slots().len()), (0xfc25, 1));
    assert_eq!(header.to_bytes().unwrap(), bytes);

    // It is looked for from 0x10000 on; at another place there is none.
    let mut image = vec![0; 0x14000];
    image.extend(&bytes);
    assert_eq!(find_header(&mut Cursor::new(&image)).unwrap().tags(), tags);
    image.remove(0);
    assert!(matches!(find_header(&mut Cursor::new(&image)), Err(ImageError::NoHeader)));
    assert!(Header::parse(&bytes[1..]).is_err());
    assert!(Header::parse(&bytes[..bytes.len() - 1]).is_err());
}
