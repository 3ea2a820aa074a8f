//! The whole exchange, client machine against server machine, and what happens when somebody interferes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kata_cc_evidence::{ReportData, TeeType};
use kata_cc_kbs_protocol::client::MAX_CLOCK_SKEW;
use kata_cc_kbs_protocol::ear::{EAT_PROFILE, VerifierId};
use kata_cc_kbs_protocol::message::{Attestation, InitData, Request};
use kata_cc_kbs_protocol::{
    Appraisal, Attested, AttestedSession, AwaitAttest, AwaitEvidence, ClientError, ClientSession, Ear, HttpRequest, HttpResponse, Jwk,
    ServerError, SessionId, ToVerify, TokenSigner, TokenVerifier, TrustVector,
};
use serde_json::json;

const NOW: u64 = 1_800_000_000;

fn ok(body: &impl serde::Serialize, headers: Vec<(String, String)>) -> HttpResponse {
    HttpResponse { status: 200, headers, body: serde_json::to_vec(body).expect("serialises") }
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> &'a str {
    request.headers.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str()).expect("header is there")
}

fn open() -> (AwaitEvidence, AwaitAttest) {
    let (client, request) = ClientSession::start(TeeType::Snp);
    assert_eq!(request.path, "/kbs/v0/auth");
    let (server, challenge) = AwaitAttest::open(&Request::from_json(&request.body).expect("parses"), NOW, 300).expect("opens");
    let response = ok(&challenge, vec![("Set-Cookie".into(), server.set_cookie(true))]);
    (client.handle(&response).expect("takes the challenge"), server)
}

/// Evidence of this test's own kind: it states its report data, as real evidence does by hardware.
fn evidence(report_data: &ReportData) -> serde_json::Value {
    json!({ "report_data": report_data })
}

fn token(signer: &TokenSigner, verified: &ToVerify) -> String {
    let annotated = json!({"runtime_data_claims": verified.runtime_data(), "snp": {}});
    let vector = TrustVector { hardware: 2, ..TrustVector::default() };
    let ear = Ear {
        eat_profile: EAT_PROFILE.into(),
        iat: NOW,
        exp: NOW + 300,
        iss: "test".into(),
        verifier_id: VerifierId { developer: "test".into(), build: "test".into() },
        submods: [("cpu0".to_owned(), Appraisal::new(vector, "default", annotated))].into(),
    };
    signer.sign(&ear).expect("signs")
}

fn attest() -> (Attested, AttestedSession, TokenSigner) {
    let (client, server) = open();
    let id = server.id().clone();
    let stated = evidence(client.report_data());
    let init_data = InitData { format: "toml".into(), body: "version = \"0.1.0\"".into() };
    let (client, request) = client.submit(stated, Some(init_data)).expect("submits");
    assert_eq!(request.path, "/kbs/v0/attest");
    assert_eq!(SessionId::from_cookie_header(header(&request, "cookie")), Some(id));

    let to_verify = server.attest(Attestation::from_json(&request.body).expect("parses"), NOW + 1).expect("attests");
    assert_eq!(to_verify.evidence()["report_data"], json!(to_verify.expected_report_data()));
    assert_eq!(to_verify.init_data().map(|data| data.format.as_str()), Some("toml"));

    let signer = TokenSigner::generate().expect("random");
    let token = token(&signer, &to_verify);
    let session = to_verify.accept(token.clone(), NOW + 300);
    let attested = client.handle(&ok(&json!({ "token": token }), vec![]), NOW + 1).expect("takes the token");
    (attested, session, signer)
}

#[test]
fn a_secret_reaches_the_attested_guest() {
    let (client, session, signer) = attest();
    let path = "default/key/one".parse().expect("valid");
    let request = client.get_resource(&path);
    assert_eq!(request.path, "/kbs/v0/resource/default/key/one");
    let sealed = session.seal(b"the secret").expect("seals");
    assert_eq!(client.open_resource(&ok(&sealed, vec![])).expect("opens").expose(), b"the secret");

    // The same by bearer token, at a broker that never saw the session.
    let bearer = header(&request, "authorization").strip_prefix("Bearer ").expect("a bearer");
    let verified = TokenVerifier::new([&signer.public_jwk()]).expect("a key").verify(bearer, NOW + 2).expect("verifies");
    let sealed = kata_cc_kbs_protocol::jwe::Jwe::seal(b"again", &verified.tee_key().expect("a key")).expect("seals");
    assert_eq!(client.open_resource(&ok(&sealed, vec![])).expect("opens").expose(), b"again");
}

#[test]
fn ac_59_a_secret_for_another_guest_does_not_open() {
    let (_, session, _) = attest();
    let (thief, _, _) = attest();
    let sealed = session.seal(b"the secret").expect("seals");
    assert!(matches!(thief.open_resource(&ok(&sealed, vec![])), Err(ClientError::Resource(_))));
}

#[test]
fn ac_52_evidence_answers_only_its_own_challenge() {
    let (client, _) = open();
    let (_, other_session) = open();
    let stated = evidence(client.report_data());
    let (_, request) = client.submit(stated, None).expect("submits");
    let replayed = Attestation::from_json(&request.body).expect("parses");
    assert!(matches!(other_session.attest(replayed, NOW), Err(ServerError::Nonce)));
}

#[test]
fn ac_52_another_channel_key_changes_the_expected_report_data() {
    let (client, server) = open();
    let bound = *client.report_data();
    let (_, request) = client.submit(evidence(&bound), None).expect("submits");
    let mut attestation = Attestation::from_json(&request.body).expect("parses");
    let (attacker, _) = open();
    let (_, attackers) = attacker.submit(json!({}), None).expect("submits");
    attestation.runtime_data.tee_pubkey = Attestation::from_json(&attackers.body).expect("parses").runtime_data.tee_pubkey;
    let to_verify = server.attest(attestation, NOW).expect("well formed");
    assert_ne!(to_verify.expected_report_data(), &bound);
}

#[test]
fn a_runtime_log_is_bound_by_the_evidence() {
    let (client, server) = open();
    assert!(client.takes_runtime_log());
    let without = *client.report_data();
    let client = client.with_runtime_log(b"a log").expect("serialises");
    let bound = *client.report_data();
    assert_ne!(bound, without);
    let (_, request) = client.submit(evidence(&bound), None).expect("submits");
    let sent = Attestation::from_json(&request.body).expect("parses");
    let to_verify = server.attest(sent.clone(), NOW).expect("well formed");
    assert_eq!((to_verify.expected_report_data(), to_verify.runtime_log()), (&bound, Some(&b"a log"[..])));

    // Another log, none, and the same in other words: not what the hardware signed.
    for other in ["", r#"{"kata-cc-runtime-log":"YSBsb2s="}"#, r#"{"kata-cc-runtime-log": "YSBsb2c="}"#] {
        let (client, server) = open();
        let client = client.with_runtime_log(b"a log").expect("serialises");
        let bound = *client.report_data();
        let (_, request) = client.submit(json!({}), None).expect("submits");
        let mut attestation = Attestation::from_json(&request.body).expect("parses");
        attestation.tee_evidence.additional_evidence = other.into();
        assert_ne!(server.attest(attestation, NOW).expect("well formed").expected_report_data(), &bound, "{other}");
    }
}

#[test]
fn brokers_that_do_not_know_the_log_are_not_sent_one_and_clients_that_do_not_are_not_told_of_it() {
    let (client, _) = ClientSession::start(TeeType::Snp);
    let challenge = json!({"nonce": "n", "extra-params": ""});
    let client = client.handle(&ok(&challenge, vec![("set-cookie".into(), "kbs-session-id=abc".into())])).expect("takes it");
    assert!(!client.takes_runtime_log());
    let cocos = Request { version: "0.4.0".into(), tee: TeeType::Snp, extra_params: json!({"supported-hash-algorithms": ["sha384"]}) };
    assert_eq!(AwaitAttest::open(&cocos, NOW, 300).expect("opens").1.extra_params, "");
}

#[test]
fn server_refuses_late_unknown_and_malformed_messages() {
    let submit = || {
        let (client, server) = open();
        let (_, request) = client.submit(json!({}), None).expect("submits");
        (server, Attestation::from_json(&request.body).expect("parses"))
    };
    let (server, attestation) = submit();
    assert!(matches!(server.attest(attestation, NOW + 300), Err(ServerError::Expired)));

    let (server, mut attestation) = submit();
    attestation.tee_evidence.additional_evidence = "{}".into();
    assert!(matches!(server.attest(attestation, NOW), Err(ServerError::AdditionalEvidence(_))));

    let (server, mut attestation) = submit();
    let Jwk::Ec { x, .. } = &mut attestation.runtime_data.tee_pubkey else { panic!("an EC key") };
    x.clear();
    assert!(matches!(server.attest(attestation, NOW), Err(ServerError::TeeKey(_))));

    let (server, mut attestation) = submit();
    attestation.init_data = Some(InitData { format: "json".into(), body: String::new() });
    assert!(matches!(server.attest(attestation, NOW), Err(ServerError::InitDataFormat { .. })));

    for version in ["0.3.0", "0.4.1", "0.4", "", "1.0.0"] {
        let request = Request { version: version.into(), tee: TeeType::Snp, extra_params: "".into() };
        let refused = AwaitAttest::open(&request, NOW, 300).expect_err("another version");
        assert_eq!(refused.http_status(), 400, "{version}");
    }
    let weak = Request { version: "0.4.0".into(), tee: TeeType::Snp, extra_params: json!({"supported-hash-algorithms": ["sm3"]}) };
    assert!(matches!(AwaitAttest::open(&weak, NOW, 300), Err(ServerError::NoCommonHash)));
}

#[test]
fn nonces_and_sessions_are_never_the_same() {
    let request = Request { version: "0.4.0".into(), tee: TeeType::Snp, extra_params: "".into() };
    let (one, first) = AwaitAttest::open(&request, NOW, 300).expect("opens");
    let (two, second) = AwaitAttest::open(&request, NOW, 300).expect("opens");
    assert_ne!(first.nonce, second.nonce);
    assert_ne!(one.id(), two.id());
    assert_eq!(first.nonce.len(), 44);
    assert_eq!(first.extra_params, "");
}

/// CoCo's form for Secure Execution: the request is the nonce, and the hash is SHA-512.
#[test]
fn a_challenge_that_asks_for_something_reaches_the_guest_and_binds_its_evidence() {
    let (client, request) = ClientSession::start(TeeType::Se);
    let asked = json!({"request_blob": "AAAA", "measurement_size": 64});
    let request = Request::from_json(&request.body).expect("parses");
    let (server, challenge) = AwaitAttest::open_asking(&request, &asked, NOW, 300).expect("opens");
    assert_eq!(challenge.extra_params["selected-hash-algorithm"], "sha512");
    let client = client.handle(&ok(&challenge, vec![("Set-Cookie".into(), server.set_cookie(true))])).expect("takes the challenge");
    assert_eq!(serde_json::from_str::<serde_json::Value>(client.nonce()).expect("JSON"), asked);
    assert_ne!(client.report_data().0[48..], [0; 16], "all 64 bytes are digest");
    assert!(client.takes_runtime_log(), "one parameter does not push out the other");

    let stated = evidence(client.report_data());
    let (_, sent) = client.submit(stated, None).expect("submits");
    let attestation = Attestation::from_json(&sent.body).expect("parses");
    let to_verify = server.attest(attestation, NOW).expect("attests");
    assert_eq!(to_verify.evidence()["report_data"], json!(to_verify.expected_report_data()));

    // Another request is another session's, though the rest be the same.
    let (other, _) = AwaitAttest::open_asking(&request, &json!({"request_blob": "AAAB"}), NOW, 300).expect("opens");
    let attestation = Attestation::from_json(&sent.body).expect("parses");
    assert!(matches!(other.attest(attestation, NOW), Err(ServerError::Nonce)));
    // A client without SHA-512 is told so before it makes evidence that cannot be right.
    let weak = Request { version: "0.4.0".into(), tee: TeeType::Se, extra_params: json!({"supported-hash-algorithms": ["sha384"]}) };
    assert!(matches!(AwaitAttest::open_asking(&weak, &asked, NOW, 300), Err(ServerError::NoCommonHash)));
}

#[test]
fn client_refuses_answers_that_are_not_of_the_protocol() {
    let start = || ClientSession::start(TeeType::Snp).0;
    let cookie = || vec![("set-cookie".to_owned(), "kbs-session-id=abc; Path=/".to_owned())];
    let challenge = json!({"nonce": "n", "extra-params": ""});
    assert!(start().handle(&ok(&challenge, cookie())).is_ok());
    assert!(matches!(start().handle(&ok(&challenge, vec![])), Err(ClientError::NoSession)));
    for bad in ["kbs-session-id=", "kbs-session-id=a b", "other=abc", "kbs-session-id=a\r\nx: y"] {
        let headers = vec![("set-cookie".to_owned(), bad.to_owned())];
        assert!(matches!(start().handle(&ok(&challenge, headers)), Err(ClientError::NoSession)), "{bad:?}");
    }
    assert!(matches!(start().handle(&ok(&json!({"nonce": "", "extra-params": ""}), cookie())), Err(ClientError::Nonce { .. })));
    assert!(matches!(start().handle(&ok(&json!({"nonce": 1}), cookie())), Err(ClientError::Message(_))));
    let selected = json!({"nonce": "n", "extra-params": {"selected-hash-algorithm": "md5"}});
    assert!(matches!(start().handle(&ok(&selected, cookie())), Err(ClientError::Hash(_))));
}

#[test]
fn client_follows_the_selected_hash() {
    let (client, _) = ClientSession::start(TeeType::Snp);
    let challenge = json!({"nonce": "n", "extra-params": {"selected-hash-algorithm": "SHA512"}});
    let client = client.handle(&ok(&challenge, vec![("set-cookie".into(), "kbs-session-id=abc".into())])).expect("takes it");
    assert_ne!(client.report_data().0[48..], [0; 16]);
}

#[test]
fn refusals_carry_the_brokers_words_and_no_more() {
    let (client, _) = ClientSession::start(TeeType::Snp);
    let body = json!({"type": "https://github.com/confidential-containers/kbs/errors/PolicyDeny", "detail": "x".repeat(10_000)});
    let refused =
        client.handle(&HttpResponse { status: 401, headers: vec![], body: body.to_string().into_bytes() }).err().expect("refused");
    assert!(refused.wants_new_session());
    let ClientError::Refused { status, variant, detail, .. } = refused else { panic!("another error") };
    assert_eq!((status, variant.as_str(), detail.len()), (401, "PolicyDeny", 512));

    let (client, _) = ClientSession::start(TeeType::Snp);
    let html = HttpResponse { status: 502, headers: vec![], body: b"<html>".to_vec() };
    assert!(matches!(client.handle(&html), Err(ClientError::Refused { status: 502, .. })));
}

#[test]
fn client_refuses_a_token_that_is_over_or_is_none() {
    let with_token = |token: &str, now| {
        let (client, _) = open();
        let (client, _) = client.submit(json!({}), None).expect("submits");
        client.handle(&ok(&json!({ "token": token }), vec![]), now).map(|_| ())
    };
    let (attested, ..) = attest();
    assert!(with_token(attested.token(), NOW).is_ok());
    assert!(matches!(with_token(attested.token(), NOW + 300), Err(ClientError::TokenExpired { .. })));
    assert!(matches!(with_token("nonsense", NOW), Err(ClientError::Token(_))));
}

/// What a client that has sent evidence makes of a token with these claims. Its signature is not the client's to check.
fn token_of(claims: &serde_json::Value, now: u64) -> Result<(), ClientError> {
    let (client, _) = open();
    let (client, _) = client.submit(json!({}), None).expect("submits");
    let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()));
    client.handle(&ok(&json!({ "token": token }), vec![]), now).map(|_| ())
}

#[test]
fn ac_72_a_clock_that_is_not_the_brokers_is_refused_in_either_direction() {
    let claims = json!({"iat": NOW, "exp": NOW + 3600});
    // Within: late answers, and clocks that nobody keeps to the second.
    for now in [NOW - MAX_CLOCK_SKEW, NOW - 1, NOW, NOW + 60, NOW + MAX_CLOCK_SKEW] {
        assert!(token_of(&claims, now).is_ok(), "{now}");
    }
    // Turned back, to where an expired certificate is good and a revocation list fresh; and ahead.
    for now in [0, NOW - 365 * 86_400, NOW - MAX_CLOCK_SKEW - 1, NOW + MAX_CLOCK_SKEW + 1, u64::MAX] {
        let error = token_of(&claims, now).expect_err("another time");
        assert!(matches!(error, ClientError::ClockSkew { issued_at: NOW, now: found } if found == now), "{now}: {error}");
        for word in [&NOW.to_string(), &now.to_string(), "set the host's clock"] {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

#[test]
fn ac_72_a_token_that_does_not_say_when_it_was_issued_is_refused() {
    // An EAR must have it, and both brokers there are write it: who leaves it out takes the check away.
    for claims in [
        json!({"exp": NOW + 300}),
        json!({"iat": null, "exp": NOW + 300}),
        json!({"iat": NOW.to_string(), "exp": NOW + 300}),
        json!({"iat": -1, "exp": NOW + 300}),
        json!({"iat": NOW}),
        json!([]),
    ] {
        let error = token_of(&claims, NOW).expect_err("no times");
        assert!(matches!(&error, ClientError::Token(source) if source.to_string().contains("iat and exp")), "{claims}: {error:?}");
    }
}

#[test]
fn ac_72_a_token_that_was_never_good_is_refused_as_such() {
    for expires_at in [0, NOW - 1, NOW] {
        let error = token_of(&json!({"iat": NOW, "exp": expires_at}), NOW - 10).expect_err("never good");
        assert!(matches!(error, ClientError::TokenNeverGood { issued_at: NOW, .. }), "{error}");
    }
}

/// Header and claims as CoCo's broker writes them (EAR, times as integers).
#[test]
fn ac_72_a_token_of_cocos_broker_is_taken() {
    let claims = json!({
        "eat_profile": "tag:github.com,2024:confidential-containers/Trustee", "iat": NOW - 2, "exp": NOW + 298, "iss": "CoCo-Attestation-Service",
        "ear.verifier-id": {"developer": "https://confidentialcontainers.org", "build": "attestation-service 0.1.0"},
        "submods": {"cpu0": {"ear.status": "warning"}},
    });
    assert!(token_of(&claims, NOW).is_ok());
}

#[test]
fn ac_59_session_cookies_are_parsed_strictly() {
    let id = "0123456789abcdef0123456789abcdef";
    assert!(SessionId::from_cookie_header(&format!("a=b; kbs-session-id={id}; c=d")).is_some());
    assert!(SessionId::from_cookie_header(&format!("kbs-session-id={id}; kbs-session-id={id}")).is_none());
    assert!(SessionId::from_cookie_header("kbs-session-id=../../etc").is_none());
    assert!(SessionId::from_cookie_header(&format!("xkbs-session-id={id}")).is_none());
    assert!(SessionId::from_cookie_header("").is_none());
}

#[test]
fn ac_61_nothing_secret_is_in_debug_output() {
    let (attested, session, _) = attest();
    let text = format!("{attested:?} {session:?} {:?}", session.id());
    assert!(!text.contains(attested.token()) && !text.contains(session.id().as_str()));
    let request = attested.get_resource(&"a/b/c".parse().expect("valid"));
    assert!(!format!("{request:?}").contains(session.id().as_str()));
}
