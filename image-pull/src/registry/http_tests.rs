//! Tests of the HTTP client against servers on the loopback that answer as the test says. Attack case AC-47.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::digest::Digest;
use crate::reference::Reference;
use crate::registry::auth::Credentials;
use crate::registry::http::{HttpConfig, HttpRegistry};
use crate::registry::{Registry, RegistryError, Version, pinned_manifest, small_blob};
use crate::secret::Secret;

/// What a server saw: request line and headers, lower case.
type Seen = Arc<Mutex<Vec<String>>>;

/// Answers each request with the bytes `answer` gives for it, then closes the connection.
async fn serve(answer: impl Fn(&str, usize) -> Vec<u8> + Send + 'static) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut count = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let mut byte = [0u8; 1];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap().to_lowercase();
            let bytes = answer(&request, count);
            log.lock().unwrap().push(request);
            count += 1;
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, seen)
}

/// A certificate for 127.0.0.1 until the year 2100, signed by its own key: made by `openssl ca -selfsign` for these tests and never used for anything else.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBYDCCAQWgAwIBAgIBATAKBggqhkjOPQQDAjAXMRUwEwYDVQQDDAxrYXRhLWNj
IHRlc3QwIBcNMDAwMTAxMDAwMDAwWhgPMjEwMDAxMDEwMDAwMDBaMBcxFTATBgNV
BAMMDGthdGEtY2MgdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABPtpoSNe
bbS7L68l2KPrWS5i6c+ETHqhO/qJCVsdMUA8zbMycYG6lL0hMLw15ry+oOqh9qZD
NSHMSrFh+ohtrMSjQDA+MA8GA1UdEQQIMAaHBH8AAAEwDAYDVR0TAQH/BAIwADAd
BgNVHQ4EFgQUcVv+rZGRTb31kUvA1lwaJjqAmWcwCgYIKoZIzj0EAwIDSQAwRgIh
ANpqK/AOHxLJg/UViWGwmlmlrgg1j//fjN5pjj2IyEWNAiEAo/8Lqh0l3OLsVCLe
uE4Lr+a+cL7CEpJBhRcJcn8G9/Q=
-----END CERTIFICATE-----
";
const CERTIFICATE_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgEnGjZk/BrZ0Jc3QW
O6qzepL9c9Irfbiw/1nO3sc64eqhRANCAAT7aaEjXm20uy+vJdij61kuYunPhEx6
oTv6iQlbHTFAPM2zMnGBupS9ITC8Nea8vqDqofamQzUhzEqxYfqIbazE
-----END PRIVATE KEY-----
";

/// The same over TLS.
fn serve_tls(answer: impl Fn(&str, usize) -> Vec<u8> + Send + 'static) -> (String, Seen) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(CERTIFICATE_KEY.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for (count, stream) in listener.incoming().enumerate() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            let mut request = Vec::new();
            let mut byte = [0u8; 1];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap().to_lowercase();
            let bytes = answer(&request, count);
            log.lock().unwrap().push(request);
            let _ = stream.write_all(&bytes);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    (address, seen)
}

fn answer(status: &str, headers: &[String], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

fn client(insecure: &[&str], login_for: Option<&str>) -> HttpRegistry {
    let credentials = login_for.map_or_else(Credentials::default, |host| {
        let config = format!(r#"{{"auths":{{"{host}":{{"username":"user","password":"hunter2"}}}}}}"#);
        Credentials::parse(&Secret::new(config.into_bytes())).unwrap()
    });
    let insecure_registries = insecure.iter().map(|&host| host.to_owned()).collect();
    HttpRegistry::new(HttpConfig { insecure_registries, credentials, extra_ca: vec![CERTIFICATE.to_owned()], public_ca: false }).unwrap()
}

fn image(host: &str) -> Reference {
    format!("{host}/team/app").parse().unwrap()
}

fn authorization(request: &str) -> Option<&str> {
    request.lines().find_map(|line| line.strip_prefix("authorization: "))
}

#[tokio::test]
async fn ac47_a_redirect_never_carries_the_credential_to_another_host() {
    let blob = b"layer bytes";
    let (cdn, cdn_seen) = serve(move |_, _| answer("200 OK", &[], blob)).await;
    let to = format!("location: http://{cdn}/bucket?signature=s3cret");
    let (registry, seen) = serve_tls(move |request, _| match authorization(request) {
        None => answer("401 Unauthorized", &["www-authenticate: Basic realm=\"r\"".to_owned()], b""),
        Some(_) => answer("307 Temporary Redirect", std::slice::from_ref(&to), b""),
    });
    let client = client(&[&cdn], Some(&registry));
    let bytes = small_blob(&client, &image(&registry), &Digest::of(blob), 100, "blob").await.unwrap();
    assert_eq!(bytes, blob);
    assert!(authorization(&seen.lock().unwrap()[1]).is_some());
    assert_eq!(cdn_seen.lock().unwrap().len(), 1);
    assert_eq!(authorization(&cdn_seen.lock().unwrap()[0]), None);
}

#[tokio::test]
async fn ac47_a_redirect_to_an_unlisted_plain_or_local_address_is_not_followed_and_shows_no_query() {
    let (other, other_seen) = serve(|_, _| answer("200 OK", &[], b"x")).await;
    for scheme in ["http", "https"] {
        let to = format!("location: {scheme}://{}/latest/meta-data?signature=s3cret", other.replace("127.0.0.1", "127.0.0.2"));
        let (registry, _) = serve(move |_, _| answer("302 Found", std::slice::from_ref(&to), b"")).await;
        let client = client(&[&registry], None);
        let error = client.blob(&image(&registry), &Digest::of(b"x")).await.err().unwrap();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
    assert!(other_seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn answers_a_bearer_challenge_once_and_keeps_the_token() {
    let (tokens, tokens_seen) = serve_tls(|_, _| answer("200 OK", &[], br#"{"token":"t0ken"}"#));
    let challenge = format!("www-authenticate: Bearer realm=\"https://{tokens}/token\",service=\"registry\"");
    let (registry, seen) = serve_tls(move |request, _| match authorization(request) {
        Some("bearer t0ken") => answer("200 OK", &["content-type: application/vnd.oci.image.manifest.v1+json".to_owned()], b"{}"),
        _ => answer("401 Unauthorized", std::slice::from_ref(&challenge), b""),
    });
    let client = client(&[], Some(&registry));
    for _ in 0..2 {
        pinned_manifest(&client, &image(&registry), &Digest::of(b"{}"), 100).await.unwrap();
    }
    assert_eq!((seen.lock().unwrap().len(), tokens_seen.lock().unwrap().len()), (3, 1));
    let asked = tokens_seen.lock().unwrap()[0].clone();
    assert!(
        asked.starts_with("get /token?scope=repository%3ateam%2fapp%3apull&service=registry ") && authorization(&asked).is_some(),
        "{asked}"
    );
}

#[tokio::test]
async fn ac47_a_token_service_on_an_unlisted_plain_host_gets_no_login() {
    let (tokens, tokens_seen) = serve(|_, _| answer("200 OK", &[], br#"{"token":"t"}"#)).await;
    let challenge = format!("www-authenticate: Bearer realm=\"http://{tokens}/token\"");
    let (registry, _) = serve_tls(move |_, _| answer("401 Unauthorized", std::slice::from_ref(&challenge), b""));
    let client = client(&[], Some(&registry));
    let error = client.manifest(&image(&registry), Version::Tag("1"), 100).await.unwrap_err();
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
    assert!(tokens_seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn ac47_no_login_goes_to_a_listed_plain_registry() {
    let (registry, seen) = serve(|_, _| answer("401 Unauthorized", &["www-authenticate: Basic realm=\"r\"".to_owned()], b"")).await;
    let error = client(&[&registry], Some(&registry)).manifest(&image(&registry), Version::Tag("1"), 100).await.unwrap_err();
    assert!(matches!(error, RegistryError::LoginInClear { .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 1 && authorization(&seen[0]).is_none(), "{seen:?}");
}

#[tokio::test]
async fn ac47_no_login_goes_to_a_token_service_that_plain_http_named_or_that_speaks_it() {
    // Whoever sits between writes the challenge, and may have a certificate for a host of his own.
    let (tokens, tokens_seen) = serve_tls(|_, _| answer("200 OK", &[], br#"{"token":"t"}"#));
    let challenge = format!("www-authenticate: Bearer realm=\"https://{tokens}/token\"");
    let (registry, _) = serve(move |_, _| answer("401 Unauthorized", std::slice::from_ref(&challenge), b"")).await;
    let error = client(&[&registry], Some(&registry)).manifest(&image(&registry), Version::Tag("1"), 100).await.unwrap_err();
    assert!(matches!(error, RegistryError::LoginInClear { .. }), "{error}");
    assert!(tokens_seen.lock().unwrap().is_empty());

    let (tokens, tokens_seen) = serve(|_, _| answer("200 OK", &[], br#"{"token":"t"}"#)).await;
    let challenge = format!("www-authenticate: Bearer realm=\"http://{tokens}/token\"");
    let (registry, _) = serve_tls(move |_, _| answer("401 Unauthorized", std::slice::from_ref(&challenge), b""));
    let error = client(&[&tokens], Some(&registry)).manifest(&image(&registry), Version::Tag("1"), 100).await.unwrap_err();
    assert!(matches!(error, RegistryError::LoginInClear { .. }), "{error}");
    assert!(tokens_seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_listed_plain_registry_is_read_with_the_token_anybody_gets() {
    let (tokens, tokens_seen) = serve(|_, _| answer("200 OK", &[], br#"{"token":"t0ken"}"#)).await;
    let challenge = format!("www-authenticate: Bearer realm=\"http://{tokens}/token\"");
    let (registry, _) = serve(move |request, _| match authorization(request) {
        Some("bearer t0ken") => answer("200 OK", &[], b"{}"),
        _ => answer("401 Unauthorized", std::slice::from_ref(&challenge), b""),
    })
    .await;
    let client = client(&[&registry, &tokens], Some("another.example"));
    pinned_manifest(&client, &image(&registry), &Digest::of(b"{}"), 100).await.unwrap();
    assert_eq!(authorization(&tokens_seen.lock().unwrap()[0]), None);
}

#[tokio::test]
async fn a_refused_login_ends_the_matter() {
    let (registry, seen) = serve_tls(|_, _| answer("401 Unauthorized", &["www-authenticate: Basic realm=\"r\"".to_owned()], b""));
    let error = client(&[], Some(&registry)).manifest(&image(&registry), Version::Tag("1"), 100).await.unwrap_err();
    assert!(error.to_string().contains("401: no or wrong credentials"), "{error}");
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let blob: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    for ranges in [true, false] {
        let copy = blob.clone();
        let (registry, seen) = serve(move |request, count| {
            if count == 0 {
                let mut whole = answer("200 OK", &[], &copy);
                whole.truncate(whole.len() - 70_000);
                return whole;
            }
            let from =
                request.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok()).unwrap();
            if ranges { answer("206 Partial Content", &[], &copy[from..]) } else { answer("200 OK", &[], &copy) }
        })
        .await;
        let bytes = small_blob(&client(&[&registry], None), &image(&registry), &Digest::of(&blob), 1 << 20, "blob").await.unwrap();
        assert_eq!(bytes.len(), blob.len());
        assert_eq!(seen.lock().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn ac47_reads_no_more_of_a_manifest_than_allowed_whether_or_not_its_length_is_told() {
    for told in [true, false] {
        let (registry, _) = serve(move |_, _| {
            let bytes = answer("200 OK", &[], &vec![b' '; 50_000]);
            if told { bytes } else { String::from_utf8(bytes).unwrap().replace("content-length: 50000\r\n", "").into_bytes() }
        })
        .await;
        let error = client(&[&registry], None).manifest(&image(&registry), Version::Tag("1"), 10_000).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { limit: 10_000, .. }), "{error}");
    }
}

#[tokio::test]
async fn ac47_tries_again_when_told_to_wait_and_takes_404_for_absent() {
    let (registry, seen) = serve(|_, count| match count {
        0 => answer("429 Too Many Requests", &["retry-after: 0".to_owned()], b""),
        _ => answer("404 Not Found", &[], b""),
    })
    .await;
    assert!(client(&[&registry], None).manifest(&image(&registry), Version::Tag("1"), 100).await.unwrap().is_none());
    assert_eq!(seen.lock().unwrap().len(), 2);
}

/// What the host may be given of an image rests on this.
#[tokio::test]
async fn a_login_is_remembered_for_its_repository_and_a_token_for_anybody_is_none() {
    for login in [true, false] {
        let (tokens, tokens_seen) = serve_tls(|_, _| answer("200 OK", &[], br#"{"token":"t0ken"}"#));
        let challenge = format!("www-authenticate: Bearer realm=\"https://{tokens}/token\"");
        let (registry, _) = serve_tls(move |request, _| match authorization(request) {
            Some("bearer t0ken") => answer("200 OK", &[], b"{}"),
            _ => answer("401 Unauthorized", std::slice::from_ref(&challenge), b""),
        });
        let client = client(&[], Some(if login { &registry } else { "another.example" }));
        assert!(!client.sent_login(&image(&registry)));
        pinned_manifest(&client, &image(&registry), &Digest::of(b"{}"), 100).await.unwrap();
        assert_eq!(authorization(&tokens_seen.lock().unwrap()[0]).is_some(), login);
        assert_eq!(client.sent_login(&image(&registry)), login);
        assert!(!client.sent_login(&format!("{registry}/team/other").parse().unwrap()));
    }
    let (registry, _) = serve_tls(|request, _| match authorization(request) {
        Some(_) => answer("200 OK", &[], b"{}"),
        None => answer("401 Unauthorized", &["www-authenticate: Basic realm=\"r\"".to_owned()], b""),
    });
    let client = client(&[], Some(&registry));
    pinned_manifest(&client, &image(&registry), &Digest::of(b"{}"), 100).await.unwrap();
    assert!(client.sent_login(&image(&registry)));
    // A registry that asks for none is public, whatever logins there are.
    let (open, _) = serve_tls(|_, _| answer("200 OK", &[], b"{}"));
    let client = super::http_tests::client(&[], Some(&open));
    pinned_manifest(&client, &image(&open), &Digest::of(b"{}"), 100).await.unwrap();
    assert!(!client.sent_login(&image(&open)));
}
