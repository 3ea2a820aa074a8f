//! The broker's handle against a broker made of the protocol's server side, over loopback.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use kata_cc_kbs_protocol::ear::{EAT_PROFILE, VerifierId};
use kata_cc_kbs_protocol::message::{Attestation, Request};
use kata_cc_kbs_protocol::{Appraisal, AttestedSession, AwaitAttest, Ear, SessionId, TokenSigner, TrustVector};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Longer than any test.
const LONG: u64 = 300;

/// A broker that takes stated evidence and has every resource: its name.
pub(crate) struct TestBroker {
    signer: TokenSigner,
    waiting: Mutex<HashMap<String, AwaitAttest>>,
    open: Mutex<HashMap<String, AttestedSession>>,
    resources: Mutex<HashMap<String, Vec<u8>>>,
    attestations: AtomicUsize,
    /// Lifetime of the next tokens, in seconds.
    lifetime: Mutex<u64>,
    /// How many seconds its clock is ahead of the guest's; negative: behind.
    ahead: Mutex<i64>,
    /// Refuses evidence with this status.
    refuse: Mutex<Option<u16>>,
    /// How long it thinks about evidence.
    slow: Mutex<Duration>,
}

impl TestBroker {
    /// Serves, and the handle to it.
    pub(crate) async fn start() -> (Arc<Self>, Arc<Broker>) {
        let broker = Arc::new(Self {
            signer: TokenSigner::generate().unwrap(),
            waiting: Mutex::default(),
            open: Mutex::default(),
            resources: Mutex::default(),
            attestations: AtomicUsize::new(0),
            lifetime: Mutex::new(LONG),
            ahead: Mutex::new(0),
            refuse: Mutex::new(None),
            slow: Mutex::new(Duration::from_millis(20)),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = Arc::clone(&broker);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&serving).connection(stream));
            }
        });
        (broker, client(url))
    }

    pub(crate) fn attestations(&self) -> usize {
        self.attestations.load(Ordering::SeqCst)
    }

    /// Has something else than its name at a path.
    pub(crate) fn put(&self, path: &str, value: &[u8]) {
        self.resources.lock().unwrap().insert(path.to_owned(), value.to_vec());
    }

    /// As after a restart without a store.
    fn forget_sessions(&self) {
        self.open.lock().unwrap().clear();
    }

    async fn connection(self: Arc<Self>, mut stream: TcpStream) {
        let mut received = Vec::new();
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut headers);
            if let Ok(httparse::Status::Complete(head)) = request.parse(&received) {
                let header = |name: &str| {
                    let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
                    found.map(|header| String::from_utf8(header.value.to_vec()).unwrap())
                };
                let length = header("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
                if received.len() >= head + length {
                    let (path, cookie) = (request.path.unwrap().to_owned(), header("cookie"));
                    let body = received[head..head + length].to_vec();
                    received.drain(..head + length);
                    let (status, headers, body) = self.answer(&path, cookie, &body).await;
                    let head = format!("HTTP/1.1 {status} x\r\n{headers}content-length: {}\r\n\r\n", body.len());
                    if stream.write_all(&[head.as_bytes(), &body].concat()).await.is_err() {
                        return;
                    }
                    continue;
                }
            }
            let mut chunk = [0; 4096];
            match stream.read(&mut chunk).await {
                Ok(length) if length > 0 => received.extend_from_slice(&chunk[..length]),
                _ => return,
            }
        }
    }

    async fn answer(&self, path: &str, cookie: Option<String>, body: &[u8]) -> (u16, String, Vec<u8>) {
        let session = cookie.and_then(|cookie| SessionId::from_cookie_header(&cookie)).map(|id| id.as_str().to_owned());
        match path {
            "/kbs/v0/auth" => {
                let (session, challenge) = AwaitAttest::open(&Request::from_json(body).unwrap(), now(), 60).unwrap();
                let cookie = format!("set-cookie: {}\r\n", session.set_cookie(false));
                self.waiting.lock().unwrap().insert(session.id().as_str().to_owned(), session);
                (200, cookie, serde_json::to_vec(&challenge).unwrap())
            }
            "/kbs/v0/attest" => {
                self.attestations.fetch_add(1, Ordering::SeqCst);
                let slow = *self.slow.lock().unwrap();
                tokio::time::sleep(slow).await;
                if let Some(status) = *self.refuse.lock().unwrap() {
                    return (status, String::new(), Vec::new());
                }
                let waiting = self.waiting.lock().unwrap().remove(&session.unwrap()).unwrap();
                let verified = waiting.attest(Attestation::from_json(body).unwrap(), now()).unwrap();
                assert_eq!(verified.evidence()["report_data"], json!(verified.expected_report_data()));
                let issued = now().saturating_add_signed(*self.ahead.lock().unwrap());
                let expires = issued + *self.lifetime.lock().unwrap();
                let annotated = json!({ "runtime_data_claims": verified.runtime_data(), "snp": {} });
                let ear = Ear {
                    eat_profile: EAT_PROFILE.into(),
                    iat: issued,
                    exp: expires,
                    iss: "test".into(),
                    verifier_id: VerifierId { developer: "test".into(), build: "test".into() },
                    submods: [("cpu0".to_owned(), Appraisal::new(TrustVector::default(), "default", annotated))].into(),
                };
                let token = self.signer.sign(&ear).unwrap();
                let open = verified.accept(token.clone(), expires);
                self.open.lock().unwrap().insert(open.id().as_str().to_owned(), open);
                (200, String::new(), json!({ "token": token }).to_string().into_bytes())
            }
            _ => {
                let path = path.strip_prefix("/kbs/v0/resource/").unwrap();
                let open = self.open.lock().unwrap();
                // Trustee says 401 for a no, too.
                let Some(session) = session.and_then(|id| open.get(&id)).filter(|_| !path.starts_with("denied/")) else {
                    return (401, String::new(), Vec::new());
                };
                let resource = self.resources.lock().unwrap().get(path).cloned().unwrap_or(path.as_bytes().to_vec());
                (200, String::new(), serde_json::to_vec(&session.seal(&resource).unwrap()).unwrap())
            }
        }
    }
}

fn client(url: String) -> Arc<Broker> {
    // As `main` does; a second time it is there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = BrokerConfig { url, cert: None, insecure_http: true };
    let timeline = Arc::new(Timeline::starting(Instant::now()));
    Arc::new(Broker::proving_by(Prover::Stated, config, "initdata".into(), Duration::from_secs(20), timeline))
}

/// Reads `n` resources at once. Each must be what it is; the errors that there were.
async fn read(broker: &Arc<Broker>, n: usize) -> Vec<BrokerError> {
    let reads = (0..n).map(|index| async move {
        let path: ResourcePath = format!("default/key/{index}").parse().unwrap();
        broker.resource(&path).await.map(|secret| assert_eq!(secret.expose(), path.to_string().as_bytes()))
    });
    futures::future::join_all(reads).await.into_iter().filter_map(Result::err).collect()
}

#[tokio::test]
async fn a_pod_attests_once_for_all_it_reads() {
    let (server, broker) = TestBroker::start().await;
    assert!(read(&broker, 31).await.is_empty());
    let token = broker.token().await.unwrap();
    assert!(read(&broker, 31).await.is_empty());
    assert_eq!((broker.token().await.unwrap(), server.attestations()), (token, 1));
}

/// By the doors that are there: the puller's, the one of sealed secrets, and the one of programs in the pod.
#[tokio::test]
async fn a_pod_attests_once_for_layers_sealed_secrets_and_what_its_programs_read() {
    use crate::asker::Asker;
    use crate::sealed::{Sealed, Unsealer};
    use kata_cc_agent_protocol::rpc::{oci, protobuf::MessageField};
    use kata_cc_image_pull::{ResourceUri, Secrets};
    use kata_cc_kbs_protocol::sealed::{SigningKey, seal_vault};

    let (server, broker) = TestBroker::start().await;
    let rego = "package agent_policy\nUnsealSecretRequest := true\nGetResourceRequest := true\nGetTokenRequest := true";
    let gate = Arc::new(crate::guest::Guest::gate_for_tests(rego));
    let key = SigningKey::generate().unwrap();
    server.put("default/sealing/1", key.public_jwk().as_bytes());
    let kid = "default/sealing/1".parse().unwrap();
    let sealed = |index| format!("S{index}={}", seal_vault(&format!("default/sealed/{index}").parse().unwrap(), &kid, &key).unwrap());
    let process = oci::Process { Env: (0..3).map(sealed).collect(), ..Default::default() };
    let (found, _) = Sealed::find(&oci::Spec { Process: MessageField::some(process), ..Default::default() }).unwrap();

    let puller = crate::image::FromBroker(Some(Arc::clone(&broker)));
    let keys = (0..8).map(async |index| {
        let uri: ResourceUri = format!("kbs:///default/layer/{index}").parse().unwrap();
        puller.resource(&uri).await.unwrap()
    });
    let id = "c1".parse().unwrap();
    let open = found.open(Unsealer { gate: &gate, broker: Some(&broker), container: &id, name: "app" });
    let rest = crate::rest::Rest { gate: Arc::clone(&gate), containers: Arc::default(), broker: Some(Arc::clone(&broker)), attester: None };
    let reads = (0..20).map(|index| {
        let asker = Ok(Asker { id: "c1".parse().unwrap(), name: "app".to_owned() });
        let request = format!("GET /cdh/resource/default/read/{index} HTTP/1.1\r\n\r\n");
        let rest = &rest;
        async move { crate::rest::tests::ask_of(rest, asker, &request).await }
    });
    let (keys, opened, reads) = tokio::join!(futures::future::join_all(keys), open, futures::future::join_all(reads));
    assert_eq!(keys.len(), 8);
    assert_eq!(format!("{:?}", opened.unwrap()), "Opened(3 variables, 0 volumes, redacted)");
    for (index, answer) in reads.iter().enumerate() {
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("\r\n\r\ndefault/read/{index}")), "{answer}");
    }
    assert_eq!(server.attestations(), 1);
}

#[tokio::test]
async fn a_token_near_its_end_is_renewed_once_and_before_it_expires() {
    let (server, broker) = TestBroker::start().await;
    *server.lifetime.lock().unwrap() = MARGIN_SECONDS - 1;
    let token = broker.token().await.unwrap();
    *server.lifetime.lock().unwrap() = LONG;
    // It is good still, for seconds; the broker would have taken it.
    assert!(read(&broker, 20).await.is_empty());
    assert_eq!(server.attestations(), 2);
    assert_ne!(broker.token().await.unwrap(), token);
    assert_eq!(server.attestations(), 2);
}

#[test]
fn a_token_for_a_program_is_good_for_a_while_but_not_made_anew_each_time() {
    assert_eq!(left(GIVEN_SECONDS, LONG), GIVEN_SECONDS);
    assert_eq!(left(GIVEN_SECONDS, GIVEN_SECONDS), GIVEN_SECONDS / 2);
    assert_eq!(left(GIVEN_SECONDS, MARGIN_SECONDS), MARGIN_SECONDS);
    assert_eq!(left(MARGIN_SECONDS, LONG), MARGIN_SECONDS);
}

#[tokio::test]
async fn a_broker_that_forgot_is_attested_to_once_more_for_all_that_wait() {
    let (server, broker) = TestBroker::start().await;
    for attestations in 1..4 {
        assert!(read(&broker, 20).await.is_empty());
        assert_eq!(server.attestations(), attestations);
        server.forget_sessions();
    }
}

#[tokio::test]
async fn a_broker_that_only_ever_says_401_is_not_attested_to_each_time() {
    let (server, broker) = TestBroker::start().await;
    assert!(read(&broker, 1).await.is_empty());
    for _ in 0..5 {
        let error = broker.resource(&"denied/key/1".parse().unwrap()).await.unwrap_err();
        assert_eq!(error.status(), Some(401));
    }
    assert_eq!(server.attestations(), 2);
    assert!(read(&broker, 5).await.is_empty());
    assert_eq!(server.attestations(), 2);
}

#[tokio::test]
async fn a_failed_handshake_fails_those_that_waited_and_not_the_next_need() {
    let (server, broker) = TestBroker::start().await;
    *server.refuse.lock().unwrap() = Some(403);
    let errors = read(&broker, 20).await;
    assert_eq!(errors.len(), 20);
    assert!(errors.iter().all(|error| error.status() == Some(403)));
    assert_eq!(server.attestations(), 1);
    *server.refuse.lock().unwrap() = None;
    assert!(read(&broker, 20).await.is_empty());
    assert_eq!(server.attestations(), 2);
}

/// A host that turns the guest's clock gets it no secret, and who asked is told both times.
#[tokio::test]
async fn ac_72_a_guest_whose_clock_is_not_the_brokers_gets_nothing_until_it_is() {
    use kata_cc_kbs_protocol::client::MAX_CLOCK_SKEW;
    let (server, broker) = TestBroker::start().await;
    let far = i64::try_from(MAX_CLOCK_SKEW).unwrap() + 60;
    for ahead in [far, -far, 10 * 365 * 86_400, i64::MIN] {
        *server.ahead.lock().unwrap() = ahead;
        let errors = read(&broker, 3).await;
        assert_eq!(errors.len(), 3, "{ahead}");
        for error in errors {
            let text = crate::errors::with_causes(&error);
            assert!(text.contains("the guest's clock says") && text.contains("set the host's clock"), "{text}");
        }
        assert!(broker.token().await.is_err(), "no program is given it either");
    }
    *server.ahead.lock().unwrap() = 60;
    assert!(read(&broker, 3).await.is_empty());
}

#[tokio::test]
async fn a_need_that_gives_up_does_not_end_the_handshake_for_others() {
    let (server, broker) = TestBroker::start().await;
    *server.slow.lock().unwrap() = Duration::from_millis(300);
    let first = tokio::time::timeout(Duration::from_millis(50), broker.token());
    let (first, others) = tokio::join!(first, read(&broker, 5));
    assert!(first.is_err() && others.is_empty());
    assert_eq!(server.attestations(), 1);
}

#[tokio::test]
async fn a_broker_that_is_not_there_fails_in_its_time_and_is_asked_anew() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let broker = client(format!("http://{gone}"));
    for _ in 0..2 {
        let errors = read(&broker, 3).await;
        assert_eq!(errors.len(), 3);
        assert!(errors.iter().all(|error| matches!(error, BrokerError::Handshake(cause) if matches!(**cause, BrokerError::Http(_)))));
    }
}
