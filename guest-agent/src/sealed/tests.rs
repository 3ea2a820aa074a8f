//! A container's sealed secrets against a broker, under a policy.

use super::*;
use crate::errors::with_causes;
use crate::guest::Guest;
use crate::kbs::tests::TestBroker;
use kata_cc_agent_protocol::SHARED_DIR;
use kata_cc_agent_protocol::rpc::protobuf::MessageField;
use kata_cc_kbs_protocol::sealed::{SigningKey, seal_envelope, seal_vault};

const KID: &str = "default/sealing/1";

/// What may be opened by whom, as a pod's policy says it.
const REGO: &str = r#"package agent_policy
UnsealSecretRequest if {
	input.container_id == "c1"
	input.container_name == "app"
	input.signed_by == "default/sealing/1"
	[input.type, input.path] in [["vault", "default/db/password"], ["envelope", "default/kek/1"]]
	input.target in {"environment", "file"}
}"#;

struct World {
    server: Arc<TestBroker>,
    broker: Arc<Broker>,
    gate: Gate,
    key: SigningKey,
}

impl World {
    async fn new() -> Self {
        let (server, broker) = TestBroker::start().await;
        let key = SigningKey::generate().unwrap();
        server.put(KID, key.public_jwk().as_bytes());
        server.put("default/db/password", b"canary-4711");
        server.put("default/kek/1", &[7; 32]);
        Self { server, broker, gate: Guest::gate_for_tests(REGO), key }
    }

    fn vault(&self, path: &str) -> String {
        seal_vault(&path.parse().unwrap(), &KID.parse().unwrap(), &self.key).unwrap()
    }

    fn envelope(&self, secret: &[u8]) -> String {
        seal_envelope(secret, &[7; 32], &"default/kek/1".parse().unwrap(), &KID.parse().unwrap(), &self.key).unwrap()
    }

    async fn open(&self, env: &[String]) -> Result<Opened, UnsealError> {
        self.open_for("c1", "app", env).await
    }

    async fn open_for(&self, id: &str, name: &str, env: &[String]) -> Result<Opened, UnsealError> {
        let (sealed, _) = Sealed::find(&spec(env))?;
        let container = id.parse().unwrap();
        sealed.open(Unsealer { gate: &self.gate, broker: Some(&self.broker), container: &container, name }).await
    }
}

fn spec(env: &[String]) -> oci::Spec {
    let process = oci::Process { Env: env.to_vec(), Args: vec!["app".into()], Cwd: "/".into(), ..Default::default() };
    let linux = oci::Linux { Namespaces: vec![oci::LinuxNamespace { Type: "pid".into(), ..Default::default() }], ..Default::default() };
    oci::Spec { Process: MessageField::some(process), Linux: MessageField::some(linux), ..Default::default() }
}

/// The environment of the adapted specification, with the secrets in.
fn env_of(spec: &oci::Spec, mut opened: Opened) -> Vec<String> {
    let (_, without) = Sealed::find(spec).unwrap();
    let place = crate::container::spec::Place { id: "c1", rootfs: std::path::Path::new("/run/kata-containers/c1/rootfs") };
    let mut adapted = crate::container::spec::adapt(&without, place).unwrap();
    opened.put(&"c1".parse().unwrap(), &mut adapted).unwrap();
    adapted.process().as_ref().unwrap().env().clone().unwrap()
}

#[tokio::test]
async fn variables_are_opened_in_their_places() {
    let world = World::new().await;
    let env = [
        "A=1".to_owned(),
        format!("PASSWORD={}", world.vault("default/db/password")),
        "EMPTY=".to_owned(),
        format!("KEY={}", world.envelope("p\u{e4}ss=word\n".as_bytes())),
        "Z=not.sealed.x".to_owned(),
    ];
    let opened = world.open(&env).await.unwrap();
    let found = env_of(&spec(&env), opened);
    assert_eq!(found, ["A=1", "PASSWORD=canary-4711", "EMPTY=", "KEY=p\u{e4}ss=word\n", "Z=not.sealed.x"]);
    assert_eq!(world.server.attestations(), 1);
}

#[tokio::test]
async fn a_container_without_secrets_asks_nobody() {
    let world = World::new().await;
    assert!(world.open(&["A=1".to_owned()]).await.is_ok());
    assert_eq!(world.server.attestations(), 0);
}

#[tokio::test]
async fn a_secret_of_one_container_is_not_opened_in_another() {
    let world = World::new().await;
    let env = [format!("PASSWORD={}", world.vault("default/db/password"))];
    for (id, name) in [("c2", "app"), ("c1", "other")] {
        let error = world.open_for(id, name, &env).await.unwrap_err();
        assert!(matches!(error, UnsealError::Secret { source: Cause::Denied(_), .. }), "{error:?}");
        assert_eq!(error.code(), Code::PERMISSION_DENIED);
    }
    // Nor one that the policy does not name, though its owner has signed it.
    let error = world.open(&[format!("X={}", world.vault("default/db/other"))]).await.unwrap_err();
    assert!(matches!(error, UnsealError::Secret { source: Cause::Denied(_), .. }), "{error:?}");
}

#[tokio::test]
async fn ac_21_nothing_is_opened_without_a_policy() {
    let mut world = World::new().await;
    let env = [format!("PASSWORD={}", world.vault("default/db/password"))];
    for gate in [Gate::new(), Guest::gate_for_tests("package agent_policy")] {
        world.gate = gate;
        assert!(matches!(world.open(&env).await, Err(UnsealError::Secret { source: Cause::Denied(_), .. })));
    }
}

#[tokio::test]
async fn refuses_secrets_that_nobody_or_somebody_else_has_signed() {
    let world = World::new().await;
    let good = world.vault("default/db/password");
    let payload = good.split('.').nth(2).unwrap();
    for fake in [format!("sealed.fakejwsheader.{payload}.fakesignature"), "sealed.".to_owned(), "sealed.a.b.c".to_owned()] {
        let error = world.open(&[format!("X={fake}")]).await.unwrap_err();
        assert!(matches!(error, UnsealError::Secret { source: Cause::Sealed(_), .. }), "{error:?}");
        assert_eq!(error.code(), Code::INVALID_ARGUMENT);
    }
    // Before anybody was asked for anything.
    assert_eq!(world.server.attestations(), 0);
    let stranger = SigningKey::generate().unwrap();
    let theirs = seal_vault(&"default/db/password".parse().unwrap(), &KID.parse().unwrap(), &stranger).unwrap();
    let error = world.open(&[format!("X={theirs}")]).await.unwrap_err();
    assert!(matches!(error, UnsealError::Secret { source: Cause::Sealed(SealedError::Signature), .. }), "{error:?}");
    // Their own key is at the broker too: whether it may sign is for the policy to say.
    world.server.put("default/sealing/2", stranger.public_jwk().as_bytes());
    let theirs = seal_vault(&"default/db/password".parse().unwrap(), &"default/sealing/2".parse().unwrap(), &stranger).unwrap();
    let error = world.open(&[format!("X={theirs}")]).await.unwrap_err();
    assert!(matches!(error, UnsealError::Secret { source: Cause::Denied(_), .. }), "{error:?}");
    // What is at the broker is no key, or everybody's.
    for wrong in [b"canary".to_vec(), world.key.to_jwk().as_bytes().to_vec()] {
        world.server.put(KID, &wrong);
        let error = world.open(&[format!("X={good}")]).await.unwrap_err();
        assert!(
            matches!(error, UnsealError::Secret { source: Cause::Sealed(SealedError::Key | SealedError::PrivateKey), .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn one_that_fails_fails_all_and_says_which_and_why_without_the_value() {
    let world = World::new().await;
    let good = format!("PASSWORD={}", world.vault("default/db/password"));
    let (binary, zero) = (world.envelope(&[0xff]), world.envelope(b"canary\0"));
    world.server.put("default/kek/1", &[8; 32]);
    let other_key = world.open(&[good.clone(), format!("X={binary}")]).await.unwrap_err();
    assert!(with_causes(&other_key).contains("encrypted_key does not open"), "{}", with_causes(&other_key));
    world.server.put("default/kek/1", &[7; 32]);
    for wrong in [binary, zero] {
        let error = world.open(&[good.clone(), format!("X={wrong}")]).await.unwrap_err();
        let text = with_causes(&error);
        assert!(text.starts_with("sealed secret in the environment variable \"X\": what is in it cannot be"), "{text}");
        assert!(!text.contains("canary"));
    }
    let denied = World { gate: Guest::gate_for_tests("package agent_policy\nUnsealSecretRequest := true"), ..world };
    let error = denied.open(&[format!("X={}", denied.vault("denied/key/1"))]).await.unwrap_err();
    assert_eq!(error.code(), Code::PERMISSION_DENIED);
    assert!(with_causes(&error).contains("denied/key/1 from the key broker: broker answered"), "{}", with_causes(&error));
}

#[tokio::test]
async fn without_a_broker_the_container_is_told_so() {
    let world = World::new().await;
    let (sealed, _) = Sealed::find(&spec(&[format!("X={}", world.vault("default/db/password"))])).unwrap();
    let container = "c1".parse().unwrap();
    let error = sealed.open(Unsealer { gate: &world.gate, broker: None, container: &container, name: "app" }).await.unwrap_err();
    assert!(with_causes(&error).contains("no key broker"), "{}", with_causes(&error));
}

#[test]
fn refuses_more_secrets_than_a_container_may_have() {
    let env: Vec<String> = (0..=MAX_SECRETS).map(|index| format!("X{index}=sealed.x")).collect();
    assert!(matches!(Sealed::find(&spec(&env)), Err(UnsealError::TooMany(found)) if found == MAX_SECRETS + 1));
}

#[tokio::test]
async fn a_process_executed_later_gets_the_containers_secrets_and_no_other() {
    let world = World::new().await;
    let (password, key) = (format!("PASSWORD={}", world.vault("default/db/password")), format!("KEY={}", world.envelope(b"k")));
    let opened = world.open(&[password.clone(), key.clone()]).await.unwrap();
    let process = |env: &[&String]| oci::Process { Env: env.iter().map(|entry| (*entry).clone()).collect(), ..Default::default() };
    let plain = "A=1".to_owned();
    assert_eq!(opened.in_process(&process(&[&plain, &key, &password])).unwrap().Env, ["A=1", "KEY=k", "PASSWORD=canary-4711"]);
    // Neither under another name nor one that was not opened at the start.
    for other in [password.replacen("PASSWORD=", "OTHER=", 1), format!("KEY={}", world.envelope(b"k"))] {
        assert!(matches!(opened.in_process(&process(&[&other])), Err(UnsealError::NotTheContainers(_))));
    }
    assert!(Opened::default().in_process(&process(&[&key])).is_err());
    assert!(!format!("{opened:?}").contains("canary"));
}

#[test]
fn only_what_was_copied_in_is_looked_into() {
    let mount = |source: &str, destination: &str| oci::Mount {
        type_: "bind".into(),
        source: source.into(),
        destination: destination.into(),
        ..Default::default()
    };
    // Were these looked into, they would not be found.
    let shared = format!("{SHARED_DIR}/not-there");
    for mount in [mount("/run/kata-containers/sandbox/local/x", "/x"), mount(&shared, "/dev/termination-log"), mount(&shared, "/etc/hosts")]
    {
        let mut spec = spec(&[]);
        spec.Mounts = vec![mount];
        assert!(Sealed::find(&spec).is_ok());
    }
}
