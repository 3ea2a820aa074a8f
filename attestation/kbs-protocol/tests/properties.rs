//! What holds whatever happens on the way: codecs that come back, and the RCAR machines under loss, repetition, disorder and interference.

use std::collections::{BTreeMap, BTreeSet};

use kata_cc_evidence::{ReportData, TeeType};
use kata_cc_kbs_protocol::ear::{EAT_PROFILE, VerifierId};
use kata_cc_kbs_protocol::jwe::Jwe;
use kata_cc_kbs_protocol::message::{Attestation, Request};
use kata_cc_kbs_protocol::sealed::{SigningKey, UnverifiedSecret, VerifyingKey, seal_envelope, seal_vault};
use kata_cc_kbs_protocol::token::{Times, unverified_times};
use kata_cc_kbs_protocol::{
    Appraisal, AwaitAttest, AwaitChallenge, AwaitEvidence, ClientSession, Ear, HttpResponse, ResourcePath, SecretBytes, ServerError,
    SessionId, TeeKey, TeePublicKey, TokenSigner, TokenVerifier, TrustVector,
};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

const START: u64 = 1_800_000_000;
const LIFETIME: u64 = 300;

/// One thing that happens. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    /// A client sends its request; the broker answers.
    Ask,
    /// A challenge reaches a client: its own, or a stranger's.
    Challenge { client: usize, answer: usize },
    /// A client that has a challenge sends evidence; it arrives as often as [`Step::Attest`] says, or never.
    Submit { client: usize },
    /// An attestation reaches the broker.
    Attest { message: usize },
    /// An attestation reaches the broker with another's key in it.
    StealKey { message: usize, other: usize },
    /// An attestation reaches the broker on another's session.
    StealSession { message: usize, other: usize },
    /// Time passes.
    Wait { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Ask),
        4 => (any::<usize>(), any::<usize>()).prop_map(|(client, answer)| Step::Challenge { client, answer }),
        4 => any::<usize>().prop_map(|client| Step::Submit { client }),
        6 => any::<usize>().prop_map(|message| Step::Attest { message }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(message, other)| Step::StealKey { message, other }),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(message, other)| Step::StealSession { message, other }),
        1 => (0..LIFETIME).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// What is under way.
#[derive(Default)]
struct World {
    now: u64,
    waiting: BTreeMap<String, AwaitAttest>,
    starting: Vec<AwaitChallenge>,
    challenges: Vec<HttpResponse>,
    ready: Vec<AwaitEvidence>,
    /// Session, message, and what the evidence in it is bound to.
    sent: Vec<(SessionId, Attestation, ReportData)>,
    /// Nonces the broker has taken evidence for.
    answered: BTreeSet<String>,
}

fn nth<T>(all: &[T], at: usize) -> Option<usize> {
    at.checked_rem(all.len())
}

impl World {
    fn ask(&mut self) {
        let (client, request) = ClientSession::start(TeeType::Snp);
        let request = Request::from_json(&request.body).expect("ours");
        let (session, challenge) = AwaitAttest::open(&request, self.now, LIFETIME).expect("opens");
        let headers = vec![("set-cookie".into(), session.set_cookie(true))];
        self.challenges.push(HttpResponse { status: 200, headers, body: serde_json::to_vec(&challenge).expect("serialises") });
        self.waiting.insert(session.id().as_str().into(), session);
        self.starting.push(client);
    }

    fn submit(&mut self, client: usize) {
        let Some(at) = nth(&self.ready, client) else { return };
        let client = self.ready.remove(at);
        let bound = *client.report_data();
        let (_, request) = client.submit(json!({ "report_data": bound }), None).expect("submits");
        let cookie = request.headers.iter().find(|(name, _)| *name == "cookie").map(|(_, value)| value.clone()).expect("a cookie");
        let session = SessionId::from_cookie_header(&cookie).expect("of ours");
        self.sent.push((session, Attestation::from_json(&request.body).expect("ours"), bound));
    }

    /// Whether the broker finds what the hardware signed. As the broker does it: the session is gone whatever comes of it.
    fn attest(&mut self, session: &SessionId, message: Attestation, bound: &ReportData) -> bool {
        let Some(waiting) = self.waiting.remove(session.as_str()) else { return false };
        let (nonce, expires_at) = (message.runtime_data.nonce.clone(), waiting.expires_at());
        match waiting.attest(message, self.now) {
            Ok(to_verify) => {
                assert!(self.now < expires_at, "a session answered after its end");
                let right = to_verify.expected_report_data() == bound;
                if right {
                    assert!(self.answered.insert(nonce), "a nonce answered twice");
                }
                right
            }
            Err(ServerError::Expired) => {
                assert!(self.now >= expires_at);
                false
            }
            Err(_) => false,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Ask => self.ask(),
            Step::Challenge { client, answer } => {
                if let (Some(client), Some(answer)) = (nth(&self.starting, client), nth(&self.challenges, answer)) {
                    let ready = self.starting.remove(client).handle(&self.challenges[answer]).expect("a challenge of ours");
                    self.ready.push(ready);
                }
            }
            Step::Submit { client } => self.submit(client),
            Step::Attest { message } => {
                if let Some(at) = nth(&self.sent, message) {
                    let (session, message, bound) = self.sent[at].clone();
                    let live = self.waiting.get(session.as_str()).is_some_and(|waiting| self.now < waiting.expires_at());
                    // What was not tampered with is taken if and only if nobody was there before and it is in time.
                    assert_eq!(self.attest(&session, message, &bound), live);
                }
            }
            Step::StealKey { message, other } => {
                if let (Some(at), Some(other)) = (nth(&self.sent, message), nth(&self.sent, other)) {
                    let (session, mut message, bound) = self.sent[at].clone();
                    let key = self.sent[other].1.runtime_data.tee_pubkey.clone();
                    let same = message.runtime_data.tee_pubkey == key;
                    message.runtime_data.tee_pubkey = key;
                    assert!(!self.attest(&session, message, &bound) || same, "evidence taken for another key");
                }
            }
            Step::StealSession { message, other } => {
                if let (Some(at), Some(other)) = (nth(&self.sent, message), nth(&self.sent, other)) {
                    let (own, message, bound) = self.sent[at].clone();
                    let session = self.sent[other].0.clone();
                    assert!(!self.attest(&session, message, &bound) || own == session, "evidence taken on another session");
                }
            }
            Step::Wait { seconds } => self.now += seconds,
        }
    }
}

fn issuers() -> (TokenSigner, TokenVerifier) {
    let signer = TokenSigner::from_bytes(&[7; 32]).expect("a key");
    let verifier = TokenVerifier::new([&signer.public_jwk()]).expect("a key");
    (signer, verifier)
}

fn ear(claims: &[i8], iss: String, iat: u64, exp: u64) -> Ear {
    let claim = |at: usize| claims.get(at).copied().unwrap_or_default();
    let vector = TrustVector {
        instance_identity: claim(0),
        configuration: claim(1),
        executables: claim(2),
        file_system: claim(3),
        hardware: claim(4),
        runtime_opaque: claim(5),
        storage_opaque: claim(6),
        sourced_data: claim(7),
    };
    Ear {
        eat_profile: EAT_PROFILE.into(),
        iat,
        exp,
        iss,
        verifier_id: VerifierId { developer: "test".into(), build: "test".into() },
        submods: [("cpu0".to_owned(), Appraisal::new(vector, "default", json!({"claims": claims})))].into(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn each_challenge_is_answered_at_most_once_in_time_and_by_its_own_evidence(steps in vec(step(), 0..60)) {
        let mut world = World { now: START, ..World::default() };
        steps.into_iter().for_each(|step| world.step(step));
    }

    #[test]
    fn secrets_come_back_and_nothing_changed_opens_to_another(
        secret in vec(any::<u8>(), 0..600),
        changes in vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let key = TeeKey::generate().expect("random");
        let sealed = Jwe::seal(&secret, &TeePublicKey::try_from(&key.to_jwk()).expect("a key")).expect("seals");
        let opened = sealed.open(&key).expect("opens");
        prop_assert_eq!(opened.expose(), secret.as_slice());
        let mut text = serde_json::to_vec(&sealed).expect("serialises");
        for (at, to) in changes {
            let at = at % text.len();
            text[at] = to;
        }
        if let Ok(opened) = serde_json::from_slice::<Jwe>(&text).map_err(drop).and_then(|jwe| jwe.open(&key).map_err(drop)) {
            prop_assert_eq!(opened.expose(), secret.as_slice());
        }
    }

    #[test]
    fn tokens_come_back_and_nothing_changed_is_taken(
        claims in vec(-128_i8..=127, 8),
        issuer in ".{0,40}",
        times in (0..START, 1..LIFETIME),
        changes in vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let (signer, verifier) = issuers();
        let (at, lifetime) = times;
        let ear = ear(&claims, issuer, at, at + lifetime);
        let token = signer.sign(&ear).expect("signs");
        let verified = verifier.verify(&token, at).expect("ours");
        prop_assert_eq!(verified.ear(), &ear);
        prop_assert_eq!(unverified_times(&token), Ok(Times { issued_at: at, expires_at: at + lifetime }));
        prop_assert!(verifier.verify(&token, at + lifetime).is_err());
        let mut text = token.clone().into_bytes();
        for (at, to) in changes {
            let at = at % text.len();
            text[at] = to;
        }
        if let Ok(text) = std::str::from_utf8(&text) && text != token {
            let taken = verifier.verify(text, at);
            prop_assert!(taken.is_err(), "{} is taken for {}", text, token);
        }
    }

    #[test]
    fn no_text_is_a_token(text in "[a-zA-Z0-9_.-]{0,200}|\\PC{0,60}") {
        prop_assert!(issuers().1.verify(&text, START).is_err());
        prop_assert!(unverified_times(&text).is_err());
    }

    #[test]
    fn sealed_secrets_come_back_and_nothing_changed_is_opened(
        secret in vec(any::<u8>(), 0..300),
        wrapping in prop::array::uniform32(any::<u8>()),
        changes in vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        let key = SigningKey::generate().expect("random");
        let public = VerifyingKey::from_jwk(key.public_jwk().as_bytes()).expect("ours");
        let [name, kid] = ["default/kek/1", "default/sealing/1"].map(|path| path.parse::<ResourcePath>().expect("a path"));
        let open = |text: &str, resource: &[u8]| {
            UnverifiedSecret::parse(text).and_then(|sealed| sealed.verify(&public)?.open(SecretBytes::new(resource.to_vec())))
        };
        let envelope = seal_envelope(&secret, &wrapping, &name, &kid, &key).expect("seals");
        let opened = open(&envelope, &wrapping).expect("opens");
        prop_assert_eq!(opened.expose(), secret.as_slice());
        let vault = seal_vault(&name, &kid, &key).expect("seals");
        let opened = open(&vault, &secret).expect("opens");
        prop_assert_eq!(opened.expose(), secret.as_slice());
        let mut other = wrapping;
        other[0] ^= 1;
        prop_assert!(open(&envelope, &other).is_err());
        for sealed in [envelope, vault] {
            let mut text = sealed.clone().into_bytes();
            for (at, to) in &changes {
                let at = at % text.len();
                text[at] = *to;
            }
            if let Ok(text) = std::str::from_utf8(&text) && text != sealed {
                prop_assert!(open(text, &wrapping).is_err(), "{} opens", text);
            }
        }
    }

    #[test]
    fn runtime_logs_come_back_and_are_bound(log in vec(any::<u8>(), 0..400), other in "\\PC{0,60}") {
        let (client, request) = ClientSession::start(TeeType::Snp);
        let request = Request::from_json(&request.body).expect("ours");
        let [one, two] = [(), ()].map(|()| AwaitAttest::open(&request, START, LIFETIME).expect("opens"));
        let headers = vec![("set-cookie".into(), one.0.set_cookie(true))];
        let answer = HttpResponse { status: 200, headers, body: serde_json::to_vec(&one.1).expect("serialises") };
        let client = client.handle(&answer).expect("ours").with_runtime_log(&log).expect("serialises");
        let bound = *client.report_data();
        let (_, sent) = client.submit(json!({}), None).expect("submits");
        let mut attestation = Attestation::from_json(&sent.body).expect("ours");
        let received = one.0.attest(attestation.clone(), START).expect("ours");
        prop_assert_eq!((received.runtime_log(), received.expected_report_data()), (Some(&log[..]), &bound));
        // Other text in its place: refused, or not what the hardware has signed.
        attestation.runtime_data.nonce = two.1.nonce;
        attestation.tee_evidence.additional_evidence = other;
        if let Ok(received) = two.0.attest(attestation, START) {
            prop_assert_ne!(received.expected_report_data(), &bound);
        }
    }

    #[test]
    fn resource_paths_come_back(segments in prop::array::uniform3("[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,40}")) {
        let [repository, kind, tag] = &segments;
        let path = ResourcePath::new(repository, kind, tag).expect("of the alphabet");
        prop_assert_eq!(&path.to_string().parse::<ResourcePath>().expect("parses"), &path);
        prop_assert_eq!(&ResourcePath::from_uri(&path.to_uri()).expect("parses"), &path);
    }

    #[test]
    fn no_text_becomes_a_path_that_leads_elsewhere(text in "[a-z./%\\\\: -]{0,40}") {
        if let Ok(path) = text.parse::<ResourcePath>() {
            prop_assert_eq!(path.to_string(), text.clone());
            prop_assert_eq!(text.split('/').count(), 3);
            prop_assert!(text.split('/').all(|segment| !segment.is_empty() && !segment.starts_with('.')));
        }
    }
}
