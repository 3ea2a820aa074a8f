//! A guest of Secure Execution before the broker: asked, answered by its machine's host key, and given a secret.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use broker::{NOW, SECRET, TestBroker, refused};
use kata_cc_evidence::TeeType;
use kata_cc_evidence::se::{Challenge, ImageTags};
use kata_cc_kbs::appraise::Appraiser;
use kata_cc_kbs::config::Se;
use kata_cc_kbs::secure_execution::{Files, FilesError, SecureExecution};
use kata_cc_kbs_protocol::message::InitData;
use kata_cc_kbs_protocol::{Attested, AwaitEvidence, ClientSession, HashAlgorithm, HttpResponse, ResourcePath};
use kata_cc_sim_uv::{Machine, Vendor};
use kata_cc_verifier::Trust;
use kata_cc_verifier::se::SealingKey;
use serde_json::{Value, json};
use std::sync::LazyLock;

const INITDATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = 'x = 1'\n";
const MAX_AGE: u64 = 300;

static VENDOR: LazyLock<Vendor> = LazyLock::new(|| Vendor::new(NOW));
static MACHINE: LazyLock<Machine> = LazyLock::new(Machine::new);

/// A header as `pvextract-hdr` takes it out: one key slot, an encrypted part, padding to a page.
fn header(image: &ImageTags) -> Vec<u8> {
    let (slot, encrypted) = ([7; 80], [8; 128]);
    let mut bytes = Vec::new();
    bytes.extend_from_slice(b"IBMSecEx");
    bytes.extend_from_slice(&0x100_u32.to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&1_u64.to_be_bytes());
    bytes.extend_from_slice(&(encrypted.len() as u64).to_be_bytes());
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&[9; 160]);
    for digest in [&image.pld, &image.ald, &image.tld] {
        bytes.extend_from_slice(digest);
    }
    bytes.extend_from_slice(&slot);
    bytes.extend_from_slice(&encrypted);
    bytes.extend_from_slice(&image.tag);
    let size = u32::try_from(bytes.len()).unwrap();
    bytes[12..16].copy_from_slice(&size.to_be_bytes());
    bytes.resize(4096, 0);
    bytes
}

const IMAGE: ImageTags = ImageTags { pld: [1; 64], ald: [2; 64], tld: [3; 64], tag: [4; 16] };

/// Files as an operator would lay them out.
struct Setup {
    dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let setup = Self { dir: tempfile::tempdir().unwrap() };
        for folder in ["host-keys", "lists"] {
            std::fs::create_dir(setup.dir.path().join(folder)).unwrap();
        }
        setup.put("root.crt", VENDOR.root().as_bytes());
        setup.put("signing.crt", VENDOR.signing_service().as_bytes());
        setup.put("lists/all.crl", VENDOR.lists(&[]).as_bytes());
        setup.put("host-keys/one.crt", VENDOR.document(&MACHINE, 10).as_bytes());
        setup.put("host-keys/.hidden", b"not looked at");
        setup.put("guest.hdr", &header(&IMAGE));
        setup
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    fn config(&self) -> Se {
        let paths = |name: &str| vec![self.dir.path().join(name)];
        Se {
            roots: paths("root.crt"),
            certificates: paths("signing.crt"),
            revocation_lists: paths("lists"),
            host_keys: paths("host-keys"),
            images: paths("guest.hdr"),
        }
    }

    fn load(&self) -> SecureExecution {
        SecureExecution::load(self.config(), SealingKey::new([7; 32]), MAX_AGE, NOW).unwrap()
    }

    fn broker(&self) -> (TestBroker, SecureExecution) {
        let se = self.load();
        let trust = Trust { se: Some(se.current()), ..Trust::hardware() };
        let broker = TestBroker::with(|parts| parts.appraiser = Appraiser::new(trust));
        assert_eq!(broker.admin("POST", "/kbs/v0/resource/default/key/1", SECRET).status, 200);
        register(&broker, "se_tag", &hex::encode(IMAGE.tag));
        register(&broker, "init_data", &hex::encode(digest()));
        (broker, se)
    }
}

fn digest() -> Vec<u8> {
    HashAlgorithm::Sha256.digest(INITDATA.as_bytes())
}

fn register(broker: &TestBroker, id: &str, value: &str) {
    let values = json!({"id": id, "values": [value]});
    assert_eq!(broker.admin("POST", "/kbs/v0/reference-value", values.to_string().as_bytes()).status, 200);
}

fn open(broker: &TestBroker) -> Result<AwaitEvidence, HttpResponse> {
    let (state, request) = ClientSession::start(TeeType::Se);
    let opened = broker.send(&request);
    if opened.status == 200 { Ok(state.handle(&opened).unwrap()) } else { Err(opened) }
}

/// What the agent of such a guest sends: its machine's answer, over the exchange's report data and the digest of its initdata.
fn answer(state: &AwaitEvidence, machine: &Machine, image: &ImageTags, init_data: &[u8]) -> Value {
    let asked: Challenge = serde_json::from_str(state.nonce()).unwrap();
    let user_data = [state.report_data().0.as_slice(), init_data].concat();
    serde_json::to_value(machine.answer(&asked, image, &user_data).unwrap()).unwrap()
}

fn submit(broker: &TestBroker, state: AwaitEvidence, evidence: Value) -> Result<Attested, HttpResponse> {
    let (state, request) = state.submit(evidence, Some(InitData { format: "toml".into(), body: INITDATA.into() })).unwrap();
    let response = broker.send(&request);
    if response.status == 200 { Ok(state.handle(&response, broker.now()).unwrap()) } else { Err(response) }
}

fn attest(broker: &TestBroker, machine: &Machine, image: &ImageTags, init_data: &[u8]) -> Result<Attested, HttpResponse> {
    let state = open(broker)?;
    let evidence = answer(&state, machine, image, init_data);
    submit(broker, state, evidence)
}

fn read(broker: &TestBroker, attested: &Attested) -> HttpResponse {
    let path: ResourcePath = "default/key/1".parse().unwrap();
    broker.send(&attested.get_resource(&path))
}

/// By the default policies: this kind has no simulation, so what is configured is what is trusted.
#[test]
fn a_guest_that_answers_gets_the_secret() {
    let (broker, _) = Setup::new().broker();
    let attested = attest(&broker, &MACHINE, &IMAGE, &digest()).unwrap();
    let response = read(&broker, &attested);
    assert_eq!(attested.open_resource(&response).unwrap().expose(), SECRET);
    let decision = &broker.audit("action=attest")[0];
    assert_eq!((&decision["outcome"], &decision["claims"]["tag"]), (&json!("affirming"), &json!(hex::encode(IMAGE.tag))));
}

#[test]
fn a_guest_of_another_image_or_initdata_gets_nothing() {
    let setup = Setup::new();
    let (broker, se) = setup.broker();
    let stranger = ImageTags { tag: [5; 16], ..IMAGE };
    refused(&attest(&broker, &MACHINE, &stranger, &digest()).unwrap_err(), 401, "measurement");
    refused(&attest(&broker, &MACHINE, &IMAGE, b"").unwrap_err(), 401, "init-data");
    // Known to the verifier, but nobody has registered that it may have secrets.
    setup.put("guest.hdr", &header(&stranger));
    se.reload(NOW).unwrap();
    let attested = attest(&broker, &MACHINE, &stranger, &digest()).unwrap();
    refused(&read(&broker, &attested), 403, "executables");
    // Nor that machines of this host key may.
    setup.put("guest.hdr", &header(&IMAGE));
    se.reload(NOW).unwrap();
    register(&broker, "se_image_phkh", &"0".repeat(64));
    let attested = attest(&broker, &MACHINE, &IMAGE, &digest()).unwrap();
    refused(&read(&broker, &attested), 403, "hardware");
}

#[test]
fn an_answer_is_good_in_its_own_session_alone_and_once() {
    let (broker, _) = Setup::new().broker();
    let (first, second) = (open(&broker).unwrap(), open(&broker).unwrap());
    let evidence = answer(&first, &MACHINE, &IMAGE, &digest());
    refused(&submit(&broker, second, evidence.clone()).unwrap_err(), 401, "report-data");
    assert!(submit(&broker, first, evidence).is_ok());
    // The request's own age counts, not the session's alone.
    let late = open(&broker).unwrap();
    let evidence = answer(&late, &MACHINE, &IMAGE, &digest());
    broker.clock.store(NOW + MAX_AGE + 1, std::sync::atomic::Ordering::SeqCst);
    refused(&submit(&broker, late, evidence).unwrap_err(), 401, "session");
}

#[test]
fn requests_are_made_for_the_keys_that_are_trusted_now() {
    let setup = Setup::new();
    let (broker, se) = setup.broker();
    // Of two machines one is withdrawn: no request has a slot for it.
    let other = Machine::new();
    setup.put("host-keys/two.crt", VENDOR.document(&other, 11).as_bytes());
    se.reload(NOW).unwrap();
    assert!(attest(&broker, &other, &IMAGE, &digest()).is_ok());
    setup.put("lists/all.crl", VENDOR.lists(&[11]).as_bytes());
    se.reload(NOW).unwrap();
    let state = open(&broker).unwrap();
    let asked: Challenge = serde_json::from_str(state.nonce()).unwrap();
    assert!(other.answer(&asked, &IMAGE, &[]).is_err());
    assert!(attest(&broker, &MACHINE, &IMAGE, &digest()).is_ok());
    // With none left the broker says that it cannot ask, and not to a guest why.
    setup.put("lists/all.crl", VENDOR.lists(&[10, 11]).as_bytes());
    se.reload(NOW).unwrap();
    refused(&open(&broker).err().unwrap(), 503, "NoChallenge");
}

#[test]
fn a_kind_that_is_not_configured_is_refused_before_evidence_is_made() {
    let broker = TestBroker::start();
    refused(&open(&broker).err().unwrap(), 400, "cannot be verified here");
}

#[track_caller]
fn unusable(change: impl FnOnce(&Setup), names: &str) {
    let setup = Setup::new();
    change(&setup);
    let error = Files::read(&setup.config()).unwrap_err().to_string();
    assert!(error.contains(names), "{error}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let remove = |setup: &Setup, name: &str| std::fs::remove_file(setup.dir.path().join(name)).unwrap();
    unusable(|setup| setup.put("guest.hdr", &header(&IMAGE)[..100]), "guest.hdr");
    unusable(|setup| setup.put("guest.hdr", &[0; 8193]), "larger than 8192 bytes");
    unusable(|setup| remove(setup, "host-keys/one.crt"), "se.host_keys names 0 files, expected 1 to 255");
    unusable(|setup| remove(setup, "root.crt"), "root.crt");
    unusable(|setup| setup.put("root.crt", VENDOR.lists(&[]).as_bytes()), "root.crt holds 0 certificates");
    unusable(|setup| setup.put("signing.crt", VENDOR.root().as_bytes()), "key signing service");
    unusable(|setup| setup.put("host-keys/one.crt", b"-----BEGIN CERTIFICATE-----\n"), "one.crt");
    unusable(|setup| setup.put("lists/all.crl", &vec![b' '; 4 * 1024 * 1024 + 1]), "larger than");
}

#[test]
fn files_that_cannot_be_used_replace_nothing() {
    let setup = Setup::new();
    let (broker, se) = setup.broker();
    setup.put("guest.hdr", b"no header");
    assert!(matches!(se.reload(NOW), Err(FilesError::Image { .. })));
    assert!(attest(&broker, &MACHINE, &IMAGE, &digest()).is_ok());
}

/// What `--check-config` says of them.
#[test]
fn without_a_host_key_that_is_trusted_now_the_files_are_not_good() {
    let setup = Setup::new();
    let files = Files::read(&setup.config()).unwrap();
    files.tell(NOW).unwrap();
    assert!(matches!(files.tell(NOW + 400 * 24 * 3600), Err(FilesError::NoHostKey)));
    setup.put("lists/all.crl", VENDOR.lists(&[10]).as_bytes());
    assert!(matches!(Files::read(&setup.config()).unwrap().tell(NOW), Err(FilesError::NoHostKey)));
    std::fs::remove_file(setup.dir.path().join("lists/all.crl")).unwrap();
    assert!(matches!(Files::read(&setup.config()).unwrap().tell(NOW), Err(FilesError::NoHostKey)));
}
