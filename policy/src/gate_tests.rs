//! The gate: closed at first (AC-21), opened once, replaced only upwards under the same keys and for the same pod (AC-22, AC-40).

use serde_json::{Map, Value, json};

use super::{Gate, GateError};
use crate::binding::{BoundPolicy, DocumentDigests};
use crate::envelope::{PolicyPayload, SignedPolicy, VerifiedPolicy};
use crate::initdata::{Initdata, InitdataBuilder};
use crate::keys::{KeyKind, SigningKey, TrustedKeys};
use crate::request::{Cause, PolicyRequest};

#[derive(Debug)]
struct Start(&'static str);

impl PolicyRequest for Start {
    const RULE: &'static str = "StartContainerRequest";

    fn policy_input(&self) -> Value {
        json!({"container_id": self.0})
    }
}

/// The initdata of a pod; which one does not matter to most tests.
fn pod(name: &str) -> Initdata {
    InitdataBuilder::new().document("workload.txt", name).build().unwrap()
}

fn signed_for(pod: &Initdata, key: &SigningKey, trusted: &TrustedKeys, version: u64, body: &str) -> VerifiedPolicy {
    let documents = DocumentDigests::of(pod);
    let payload = PolicyPayload { version, rego: format!("package agent_policy\n{body}"), data: Map::new(), documents };
    SignedPolicy::verify(&SignedPolicy::sign(&payload, &[key]).unwrap(), trusted).unwrap()
}

fn signed(key: &SigningKey, trusted: &TrustedKeys, version: u64, body: &str) -> VerifiedPolicy {
    signed_for(&pod("this"), key, trusted, version, body)
}

fn bound(key: &SigningKey, trusted: &TrustedKeys, version: u64, body: &str) -> BoundPolicy {
    signed(key, trusted, version, body).bind(&pod("this")).unwrap()
}

fn owner() -> (SigningKey, TrustedKeys) {
    let key = SigningKey::generate(KeyKind::Ed25519).unwrap();
    let trusted = TrustedKeys::new([key.public_key()], 1).unwrap();
    (key, trusted)
}

const ONCE: &str = r#"
    StartContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/started", "value": true}]} if not data.pstate.started
"#;

/// AC-21.
#[test]
fn denies_everything_before_a_policy_is_in_place() {
    let denied = Gate::new().check(Start("a")).unwrap_err();
    assert_eq!(denied.reason, Cause::NoPolicy);
    assert!(denied.to_string().starts_with("StartContainerRequest denied: no policy is in place"), "{denied}");
}

/// AC-22.
#[test]
fn installs_once() {
    let (key, trusted) = owner();
    let gate = Gate::new();
    gate.install(bound(&key, &trusted, 1, ONCE)).unwrap();
    assert!(matches!(gate.install(bound(&key, &trusted, 2, "")), Err(GateError::AlreadyInstalled { version: 1 })));
    assert_eq!(gate.version(), Some(1));
    assert_eq!(gate.check(Start("a")).unwrap().into_inner().0, "a");
    assert_eq!(gate.check(Start("a")).unwrap_err().reason, Cause::Undefined);
}

#[test]
fn a_policy_that_does_not_load_leaves_the_gate_as_it_was() {
    let (key, trusted) = owner();
    let gate = Gate::new();
    assert!(matches!(gate.install(bound(&key, &trusted, 1, "R if {")), Err(GateError::Load(_))));
    assert_eq!(gate.check(Start("a")).unwrap_err().reason, Cause::NoPolicy);
    gate.install(bound(&key, &trusted, 1, ONCE)).unwrap();
    assert!(matches!(gate.replace(signed(&key, &trusted, 2, "R if {")), Err(GateError::Load(_))));
    assert_eq!(gate.version(), Some(1));
    assert!(gate.check(Start("a")).is_ok());
}

/// AC-22, AC-40.
#[test]
fn replaces_only_upwards_and_under_the_same_keys() {
    let (key, trusted) = owner();
    let gate = Gate::new();
    assert!(matches!(gate.replace(signed(&key, &trusted, 9, ONCE)), Err(GateError::NothingToReplace)));
    gate.install(bound(&key, &trusted, 5, ONCE)).unwrap();
    for offered in [1, 4, 5] {
        let widened = signed(&key, &trusted, offered, "StartContainerRequest := true");
        assert!(matches!(gate.replace(widened), Err(GateError::Rollback { current: 5, .. })));
    }
    let (other, theirs) = owner();
    assert!(matches!(gate.replace(signed(&other, &theirs, 6, ONCE)), Err(GateError::OtherTrust)));
    let more = TrustedKeys::new([key.public_key(), other.public_key()], 1).unwrap();
    assert!(matches!(gate.replace(signed(&key, &more, 6, ONCE)), Err(GateError::OtherTrust)));
    gate.replace(signed(&key, &trusted, 6, ONCE)).unwrap();
    assert_eq!(gate.version(), Some(6));
}

/// AC-22: the owner's other pods have policies too, by the same key and of whatever version.
#[test]
fn replaces_only_for_the_documents_of_this_pod() {
    let (key, trusted) = owner();
    let gate = Gate::new();
    gate.install(bound(&key, &trusted, 1, ONCE)).unwrap();
    let theirs = signed_for(&pod("another"), &key, &trusted, 9, "StartContainerRequest := true");
    let error = gate.replace(theirs).unwrap_err();
    let GateError::OtherDocuments(cause) = &error else { panic!("{error:?}") };
    assert!(cause.to_string().contains("`workload.txt` was changed"), "{cause}");
    assert_eq!(gate.version(), Some(1));
    gate.replace(signed(&key, &trusted, 9, ONCE)).unwrap();
}

#[test]
fn state_outlives_a_replacement() {
    let (key, trusted) = owner();
    let gate = Gate::new();
    gate.install(bound(&key, &trusted, 1, ONCE)).unwrap();
    assert!(gate.check(Start("a")).is_ok());
    gate.replace(signed(&key, &trusted, 2, ONCE)).unwrap();
    assert_eq!(gate.check(Start("a")).unwrap_err().reason, Cause::Undefined);
}

#[test]
fn denial_and_debug_carry_nothing_of_the_request() {
    let (key, trusted) = owner();
    let gate = Gate::new();
    gate.install(bound(&key, &trusted, 3, "StartContainerRequest if { print(input.container_id); false }")).unwrap();
    let denied = gate.check(Start("hunter2")).unwrap_err();
    assert!(!format!("{denied} {denied:?} {gate:?}").contains("hunter2"));
    assert!(denied.to_string().contains("version 3"), "{denied}");
    let allowing = Gate::new();
    allowing.install(bound(&key, &trusted, 3, "StartContainerRequest := true")).unwrap();
    assert!(!format!("{:?}", allowing.check(Start("hunter2")).unwrap()).contains("hunter2"));
}

/// Two requests at the same time for what may happen once: one of them gets it (AC-27).
#[test]
fn decisions_see_each_others_state() {
    let (key, trusted) = owner();
    let gate = Gate::new();
    gate.install(bound(&key, &trusted, 1, ONCE)).unwrap();
    let allowed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| gate.check(Start("a")).is_ok())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count()
    });
    assert_eq!(allowed, 1);
}

const COUNT: &str = r#"
    StartContainerRequest := {
        "allowed": true,
        "before": [{"op": "add", "path": concat("/", ["/pstate", concat("", ["tried-", input.container_id])]), "value": true}],
        "ops": [{"op": "add", "path": "/pstate/count", "value": count_now + 1}],
    } if count_now < 2
    default count_now := 0
    count_now := data.pstate.count
    IsCount if input.n == count_now
    Tried if data.pstate[concat("", ["tried-", input.id])]
"#;

fn counts(gate: &Gate, n: u64) -> bool {
    gate.check(Count(n)).is_ok()
}

#[derive(Debug)]
struct Count(u64);

impl PolicyRequest for Count {
    const RULE: &'static str = "IsCount";

    fn policy_input(&self) -> Value {
        json!({"n": self.0})
    }
}

#[derive(Debug)]
struct Tried(&'static str);

impl PolicyRequest for Tried {
    const RULE: &'static str = "Tried";

    fn policy_input(&self) -> Value {
        json!({"id": self.0})
    }
}

fn counting() -> (Gate, SigningKey, TrustedKeys) {
    let (key, trusted) = owner();
    let gate = Gate::new();
    gate.install(bound(&key, &trusted, 1, COUNT)).unwrap();
    (gate, key, trusted)
}

#[test]
fn what_is_decided_changes_nothing_until_it_is_committed() {
    let (gate, ..) = counting();
    let (request, pending) = gate.decide(Start("a")).unwrap().into_parts();
    assert_eq!(request.0, "a");
    assert!(counts(&gate, 0));
    pending.commit().unwrap();
    assert!(counts(&gate, 1));
    drop(gate.decide(Start("b")).unwrap());
    assert!(counts(&gate, 1), "what was dropped took effect");
    // But that it was tried is on record.
    assert!(gate.check(Tried("b")).is_ok());
    assert!(gate.check(Tried("c")).is_err());
}

/// Two requests in flight: the later commit is judged by what the earlier one made of the state.
#[test]
fn commits_lose_no_change_of_each_other_and_hold_to_the_policy() {
    let (gate, ..) = counting();
    let decided: Vec<_> = ["a", "b", "c"].map(|id| gate.decide(Start(id)).unwrap().into_parts().1).into_iter().collect();
    let outcomes: Vec<_> = decided.into_iter().map(|pending| pending.commit().is_ok()).collect();
    assert_eq!(outcomes, [true, true, false]);
    assert!(counts(&gate, 2));
}

#[test]
fn a_decision_is_renewed_by_the_state_and_the_policy_of_the_moment() {
    let (gate, key, trusted) = counting();
    let (_, mut pending) = gate.decide(Start("a")).unwrap().into_parts();
    pending.renew().unwrap();
    gate.replace(signed(&key, &trusted, 2, "StartContainerRequest := false")).unwrap();
    assert_eq!(pending.renew().unwrap_err().policy_version, Some(2));
    assert_eq!(pending.commit().unwrap_err().reason, Cause::False);
}

#[test]
fn what_was_committed_can_be_taken_back_unless_others_built_on_it() {
    let (gate, ..) = counting();
    let undo = gate.decide(Start("a")).unwrap().into_parts().1.commit().unwrap();
    assert!(undo.undo());
    assert!(counts(&gate, 0));
    let undo = gate.decide(Start("a")).unwrap().into_parts().1.commit().unwrap();
    assert!(gate.check(Start("b")).is_ok());
    assert!(!undo.undo());
    assert!(counts(&gate, 2));
    // What was checked and not decided is in effect for good.
    assert!(!gate.check(Tried("b")).unwrap().into_parts().1.commit().unwrap().undo());
}

#[test]
fn pending_changes_show_nothing_of_the_request() {
    let (gate, ..) = counting();
    let (_, pending) = gate.decide(Start("hunter2")).unwrap().into_parts();
    assert_eq!(format!("{pending:?}"), "Pending(Some(\"StartContainerRequest\"))");
    assert!(!format!("{:?}", pending.commit().unwrap()).contains("hunter2"));
}

/// Any protobuf message is a request under its own name.
#[test]
fn messages_are_requests_by_their_name() {
    use protobuf::well_known_types::empty::Empty;
    fn rule<R: PolicyRequest>() -> &'static str {
        R::RULE
    }
    #[derive(Clone, Default, PartialEq, Debug, serde::Serialize)]
    struct PingRequest {
        n: u32,
        #[serde(skip)]
        inner: Empty,
    }
    impl protobuf::Message for PingRequest {
        const NAME: &'static str = "PingRequest";
        fn is_initialized(&self) -> bool {
            true
        }
        fn merge_from(&mut self, is: &mut protobuf::CodedInputStream<'_>) -> protobuf::Result<()> {
            self.inner.merge_from(is)
        }
        fn write_to_with_cached_sizes(&self, os: &mut protobuf::CodedOutputStream<'_>) -> protobuf::Result<()> {
            self.inner.write_to_with_cached_sizes(os)
        }
        fn compute_size(&self) -> u64 {
            self.inner.compute_size()
        }
        fn special_fields(&self) -> &protobuf::SpecialFields {
            self.inner.special_fields()
        }
        fn mut_special_fields(&mut self) -> &mut protobuf::SpecialFields {
            self.inner.mut_special_fields()
        }
        fn new() -> Self {
            Self::default()
        }
        fn default_instance() -> &'static Self {
            static INSTANCE: std::sync::LazyLock<PingRequest> = std::sync::LazyLock::new(PingRequest::default);
            &INSTANCE
        }
    }
    assert_eq!(rule::<PingRequest>(), "PingRequest");
    assert_eq!(PingRequest { n: 7, ..Default::default() }.policy_input(), json!({"n": 7}));
}
