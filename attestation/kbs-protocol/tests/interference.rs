//! Guests and a broker whose every message may be lost, repeated, late, out of order, or come to somebody else, with a cookie of somebody else's.
//!
//! What holds however that goes: a nonce is answered once; evidence counts for the session and the key it was made for; a secret opens for the
//! key that attested and for nobody else; and a client takes a message only in the state that waits for it, and never panics.

use std::collections::{BTreeMap, BTreeSet};

use kata_cc_evidence::{ReportData, TeeType};
use kata_cc_kbs_protocol::client::MAX_CLOCK_SKEW;
use kata_cc_kbs_protocol::ear::{EAT_PROFILE, VerifierId};
use kata_cc_kbs_protocol::jwe::Jwe;
use kata_cc_kbs_protocol::message::{Attestation, Request};
use kata_cc_kbs_protocol::{
    Appraisal, Attested, AttestedSession, AwaitAttest, AwaitChallenge, AwaitEvidence, AwaitToken, ClientSession, Ear, HttpRequest,
    HttpResponse, ResourcePath, ServerError, SessionId, TokenSigner, TokenVerifier, TrustVector,
};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

const START: u64 = 1_800_000_000;
const LIFETIME: u64 = 300;
const PATH: &str = "default/key/1";

/// A guest, by what it waits for.
enum Client {
    Challenge(AwaitChallenge),
    Evidence(AwaitEvidence),
    Token(AwaitToken),
    Open(Attested),
    /// It took a message that it could not use, and would start anew.
    Over,
}

/// What a guest has sent. Each may reach the broker never, once, or many times.
#[derive(Clone)]
enum Question {
    Auth(Request),
    /// With the report data that the hardware has put into the evidence.
    Attest(Box<Attestation>, ReportData),
    /// With the token it carries.
    Get(String),
}

struct Sent {
    cookie: Option<SessionId>,
    question: Question,
}

/// What the broker has answered.
enum Answer {
    Challenge,
    /// When it was issued.
    Token(u64),
    /// The key it was encrypted to.
    Secret(String),
    No,
}

/// One thing that happens. Numbers choose among what is there.
#[derive(Clone, Debug)]
enum Step {
    /// Another guest begins.
    Begin,
    /// A guest with a challenge makes evidence; one with a token asks for the secret.
    Speak { client: usize },
    /// Something that was sent reaches the broker, as it was sent.
    Arrive { sent: usize },
    /// The same with the cookie that came with something else.
    ArriveAs { sent: usize, other: usize },
    /// The same with the token of another, or the key of another in it.
    ArriveMixed { sent: usize, other: usize },
    /// An answer reaches a guest, whoever it was for.
    Deliver { client: usize, answer: usize },
    /// The answer that was given last reaches a guest.
    DeliverLast { client: usize },
    /// Time passes.
    Wait { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let two = || (any::<usize>(), any::<usize>());
    prop_oneof![
        2 => Just(Step::Begin),
        5 => any::<usize>().prop_map(|client| Step::Speak { client }),
        8 => any::<usize>().prop_map(|sent| Step::Arrive { sent }),
        1 => two().prop_map(|(sent, other)| Step::ArriveAs { sent, other }),
        1 => two().prop_map(|(sent, other)| Step::ArriveMixed { sent, other }),
        3 => two().prop_map(|(client, answer)| Step::Deliver { client, answer }),
        8 => any::<usize>().prop_map(|client| Step::DeliverLast { client }),
        1 => (0..LIFETIME / 2).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

struct World {
    now: u64,
    signer: TokenSigner,
    verifier: TokenVerifier,
    clients: Vec<Client>,
    sent: Vec<Sent>,
    answers: Vec<(Answer, HttpResponse)>,
    waiting: BTreeMap<String, AwaitAttest>,
    /// With the key that attested.
    open: BTreeMap<String, (AttestedSession, String)>,
    answered: BTreeSet<String>,
    /// Secrets that guests have opened.
    opened: usize,
}

fn nth(length: usize, at: usize) -> Option<usize> {
    at.checked_rem(length)
}

fn ok(body: &impl serde::Serialize, headers: Vec<(String, String)>) -> HttpResponse {
    HttpResponse { status: 200, headers, body: serde_json::to_vec(body).expect("serialises") }
}

fn cookie(request: &HttpRequest) -> Option<SessionId> {
    let header = request.headers.iter().find(|(name, _)| *name == "cookie")?;
    SessionId::from_cookie_header(&header.1)
}

/// What only the guest with this key may read.
fn secret_of(key: &str) -> String {
    format!("CANARY for {key}")
}

impl World {
    fn new() -> Self {
        let signer = TokenSigner::generate().expect("random");
        let verifier = TokenVerifier::new([&signer.public_jwk()]).expect("a key");
        Self {
            now: START,
            signer,
            verifier,
            clients: Vec::new(),
            sent: Vec::new(),
            answers: Vec::new(),
            waiting: BTreeMap::new(),
            open: BTreeMap::new(),
            answered: BTreeSet::new(),
            opened: 0,
        }
    }

    fn begin(&mut self) {
        let (client, request) = ClientSession::start(TeeType::Snp);
        self.sent.push(Sent { cookie: cookie(&request), question: Question::Auth(Request::from_json(&request.body).expect("ours")) });
        self.clients.push(Client::Challenge(client));
    }

    fn speak(&mut self, client: usize) {
        let Some(at) = nth(self.clients.len(), client) else { return };
        match std::mem::replace(&mut self.clients[at], Client::Over) {
            Client::Evidence(state) => {
                let bound = *state.report_data();
                let (state, request) = state.submit(json!({ "report_data": bound }), None).expect("submits");
                let attestation = Attestation::from_json(&request.body).expect("ours");
                self.sent.push(Sent { cookie: cookie(&request), question: Question::Attest(Box::new(attestation), bound) });
                self.clients[at] = Client::Token(state);
            }
            Client::Open(attested) => {
                let request = attested.get_resource(&PATH.parse::<ResourcePath>().expect("a path"));
                self.sent.push(Sent { cookie: cookie(&request), question: Question::Get(attested.token().to_owned()) });
                self.clients[at] = Client::Open(attested);
            }
            other => self.clients[at] = other,
        }
    }

    /// What a guest makes of a message: exactly what the state waits for is taken.
    fn deliver(&mut self, client: usize, answer: usize) {
        let (Some(at), Some(answer)) = (nth(self.clients.len(), client), nth(self.answers.len(), answer)) else { return };
        let (what, response) = &self.answers[answer];
        let after = match std::mem::replace(&mut self.clients[at], Client::Over) {
            Client::Challenge(state) => {
                let taken = state.handle(response);
                assert_eq!(taken.is_ok(), matches!(what, Answer::Challenge), "a challenge is what is taken first");
                taken.map_or(Client::Over, Client::Evidence)
            }
            Client::Token(state) => {
                let taken = state.handle(response, self.now);
                let good = matches!(what, Answer::Token(at) if self.now < at + LIFETIME && self.now.abs_diff(*at) <= MAX_CLOCK_SKEW);
                assert_eq!(taken.is_ok(), good, "a token in its time is what is taken after evidence");
                taken.map_or(Client::Over, Client::Open)
            }
            Client::Open(attested) => {
                let own = json!(attested.tee_key().to_jwk()).to_string();
                let opened = attested.open_resource(response);
                assert_eq!(opened.is_ok(), matches!(what, Answer::Secret(key) if *key == own), "a secret opens for its own key");
                if let Ok(secret) = opened {
                    assert_eq!(secret.expose(), secret_of(&own).as_bytes());
                    self.opened += 1;
                }
                Client::Open(attested)
            }
            // There is nothing that a guest could be told here: no function takes a message.
            state @ (Client::Evidence(_) | Client::Over) => state,
        };
        self.clients[at] = after;
    }

    fn token(&self, runtime_data: &impl serde::Serialize) -> String {
        let annotated = json!({ "runtime_data_claims": runtime_data });
        let ear = Ear {
            eat_profile: EAT_PROFILE.into(),
            iat: self.now,
            exp: self.now + LIFETIME,
            iss: "test".into(),
            verifier_id: VerifierId { developer: "test".into(), build: "test".into() },
            submods: [("cpu0".to_owned(), Appraisal::new(TrustVector::default(), "default", annotated))].into(),
        };
        self.signer.sign(&ear).expect("signs")
    }

    /// As the broker does it. `own`: the cookie is the one that the message was sent with.
    fn arrive(&mut self, cookie: Option<&SessionId>, question: Question, own: bool) {
        let answer = match question {
            Question::Auth(request) => {
                let (session, challenge) = AwaitAttest::open(&request, self.now, LIFETIME).expect("opens");
                let response = ok(&challenge, vec![("set-cookie".into(), session.set_cookie(true))]);
                self.waiting.insert(session.id().as_str().into(), session);
                (Answer::Challenge, response)
            }
            Question::Attest(attestation, bound) => self.attest(cookie, *attestation, &bound, own),
            Question::Get(token) => self.get(cookie, &token),
        };
        self.answers.push(answer);
    }

    fn attest(&mut self, cookie: Option<&SessionId>, attestation: Attestation, bound: &ReportData, own: bool) -> (Answer, HttpResponse) {
        // The session is gone whatever comes of it.
        let Some(waiting) = cookie.and_then(|id| self.waiting.remove(id.as_str())) else { return no() };
        let (nonce, key) = (attestation.runtime_data.nonce.clone(), json!(attestation.runtime_data.tee_pubkey).to_string());
        let to_verify = match waiting.attest(attestation, self.now) {
            Ok(to_verify) => to_verify,
            Err(ServerError::Nonce) => {
                assert!(!own, "a session's own evidence has its own nonce");
                return no();
            }
            Err(_) => return no(),
        };
        if to_verify.expected_report_data() != bound {
            return no();
        }
        assert!(self.answered.insert(nonce), "a nonce answered twice");
        let token = self.token(to_verify.runtime_data());
        let session = to_verify.accept(token.clone(), self.now + LIFETIME);
        self.open.insert(session.id().as_str().into(), (session, key));
        (Answer::Token(self.now), ok(&json!({ "token": token }), vec![]))
    }

    /// By the session, or else by the token, as the broker has it.
    fn get(&self, cookie: Option<&SessionId>, token: &str) -> (Answer, HttpResponse) {
        let live = cookie.and_then(|id| self.open.get(id.as_str())).filter(|(session, _)| session.is_live(self.now));
        if let Some((session, key)) = live {
            return (Answer::Secret(key.clone()), ok(&session.seal(secret_of(key).as_bytes()).expect("seals"), vec![]));
        }
        let Ok(verified) = self.verifier.verify(token, self.now) else { return no() };
        let key = verified.tee_key().expect("a key");
        let name = json!(key.to_jwk()).to_string();
        let sealed = Jwe::seal(secret_of(&name).as_bytes(), &key).expect("seals");
        (Answer::Secret(name), ok(&sealed, vec![]))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin => self.begin(),
            Step::Speak { client } => self.speak(client),
            Step::Arrive { sent } => {
                let Some(at) = nth(self.sent.len(), sent) else { return };
                let Sent { cookie, question } = &self.sent[at];
                let (cookie, question) = (cookie.clone(), question.clone());
                self.arrive(cookie.as_ref(), question, true);
            }
            Step::ArriveAs { sent, other } => {
                let (Some(at), Some(other)) = (nth(self.sent.len(), sent), nth(self.sent.len(), other)) else { return };
                let (question, cookie) = (self.sent[at].question.clone(), self.sent[other].cookie.clone());
                let own = self.sent[at].cookie == cookie;
                self.arrive(cookie.as_ref(), question, own);
            }
            Step::ArriveMixed { sent, other } => {
                let (Some(at), Some(other)) = (nth(self.sent.len(), sent), nth(self.sent.len(), other)) else { return };
                let cookie = self.sent[at].cookie.clone();
                let question = match (self.sent[at].question.clone(), &self.sent[other].question) {
                    (Question::Attest(mut attestation, bound), Question::Attest(others, _)) => {
                        attestation.runtime_data.tee_pubkey = others.runtime_data.tee_pubkey.clone();
                        Question::Attest(attestation, bound)
                    }
                    (Question::Get(_), Question::Get(token)) => Question::Get(token.clone()),
                    (question, _) => question,
                };
                self.arrive(cookie.as_ref(), question, true);
            }
            Step::Deliver { client, answer } => self.deliver(client, answer),
            Step::DeliverLast { client } => self.deliver(client, self.answers.len().saturating_sub(1)),
            Step::Wait { seconds } => self.now += seconds,
        }
    }
}

fn no() -> (Answer, HttpResponse) {
    let body: Value = json!({"type": "https://github.com/confidential-containers/kbs/errors/Unauthenticated", "detail": "no"});
    (Answer::No, HttpResponse { status: 401, headers: vec![], body: body.to_string().into_bytes() })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_messages_secrets_open_for_the_key_that_attested_and_nobody_else(steps in vec(step(), 0..120)) {
        let mut world = World::new();
        (0..2).for_each(|_| world.begin());
        steps.into_iter().for_each(|step| world.step(step));
    }
}

/// The property above says nothing if no guest ever gets that far.
#[test]
fn undisturbed_guests_get_through() {
    let mut world = World::new();
    for guest in 0..3 {
        world.begin();
        for _ in 0..3 {
            world.step(Step::Arrive { sent: world.sent.len() - 1 });
            world.step(Step::DeliverLast { client: guest });
            world.step(Step::Speak { client: guest });
        }
        world.step(Step::Arrive { sent: world.sent.len() - 1 });
        world.step(Step::DeliverLast { client: guest });
    }
    assert_eq!((world.opened, world.answered.len()), (6, 3));
}
