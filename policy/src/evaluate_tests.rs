//! Evaluation: what counts as a yes, what never does, and that it ends (AC-39).

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::{Budget, Evaluation, LoadError, Rules};
use crate::request::Cause;

fn load(body: &str) -> Rules {
    try_load(body).unwrap()
}

fn try_load(body: &str) -> Result<Rules, LoadError> {
    Rules::load(&format!("package agent_policy\n{body}"), &Map::new(), Budget::default())
}

#[track_caller]
fn check(body: &str, input: Value, expected: Option<Cause>) {
    let cause = match load(body).evaluate("R", &input) {
        Evaluation::Allowed => None,
        Evaluation::Denied { cause, .. } => Some(cause),
    };
    assert_eq!(cause, expected, "{body}");
}

#[test]
fn only_true_allows() {
    check("R := true", json!({}), None);
    check("R if input.a == 1", json!({"a": 1}), None);
    check("R := {\"allowed\": true}", json!({}), None);
    check("R := {\"allowed\": true, \"ops\": []}", json!({}), None);

    check("R := false", json!({}), Some(Cause::False));
    check("R := {\"allowed\": false}", json!({}), Some(Cause::False));
    check("R if input.a == 1", json!({}), Some(Cause::Undefined));
    check("default R := false\nR if input.a == 1", json!({}), Some(Cause::False));
    check("S := true", json!({}), Some(Cause::NoRule));
}

#[test]
fn other_types_are_denied() {
    for value in ["1", "\"true\"", "null", "[]", "[true]", "{}", "{1}", "{\"allowed\": \"true\"}", "{\"allowed\": 1}", "{\"ops\": []}"] {
        check(&format!("R := {value}"), json!({}), Some(Cause::NotADecision));
    }
    let strange = ["{\"allowed\": true, \"ops\": {}}", "{\"allowed\": true, \"ops\": [1]}", "{\"allowed\": true, \"also\": 1}"];
    for value in strange {
        check(&format!("R := {value}"), json!({}), Some(Cause::NotADecision));
    }
    check("R contains true", json!({}), Some(Cause::NotADecision));
}

#[test]
fn conflicts_and_errors_are_denied() {
    check("R := true if input.a\nR := false if input.a", json!({"a": true}), Some(Cause::Failed));
    check("R if to_number(input.a) == 1", json!({"a": "x"}), Some(Cause::Failed));
    check("R if regex.match(input.a, \"x\")", json!({"a": "("}), Some(Cause::Failed));
}

#[test]
fn rule_names_cannot_reach_elsewhere() {
    let mut rules = load("R := true\na := {\"b\": true}\nf(x) := true");
    for name in ["", "R.x", "R\"]", "R; true", "a.b", "f", "../R", "R ", "agent_policy.R"] {
        assert!(matches!(rules.evaluate(name, &json!({})), Evaluation::Denied { .. }), "{name:?}");
    }
    assert_eq!(rules.evaluate("R", &json!({})), Evaluation::Allowed);
}

#[test]
fn input_must_be_an_object_of_bounded_size() {
    for input in [json!(null), json!([]), json!("x"), json!(1), json!(true)] {
        check("R := true", input, Some(Cause::Input("the request's input is not a JSON object")));
    }
    let large = Cause::Input("the request is too large for the policy");
    check("R := true", json!({"a": "x".repeat((1 << 20) - 1)}), None);
    check("R := true", json!({"a": "x".repeat(1 << 20)}), Some(large.clone()));
    check("R := true", json!({"a": vec![0; 1 << 16]}), Some(large.clone()));
    let mut deep = json!({});
    for _ in 0..40 {
        deep = json!({"a": deep});
    }
    check("R := true", deep, Some(large));
}

#[test]
fn exponential_rule_ends_within_the_budget() {
    let body = "n := numbers.range(1, 300)\nR if { some a in n; some b in n; some c in n; some d in n; a + b + c + d == 0 }";
    let budget = Budget { time: Duration::from_millis(100), ..Budget::default() };
    let mut rules = Rules::load(&format!("package agent_policy\n{body}\nS := true"), &Map::new(), budget).unwrap();
    let begin = Instant::now();
    assert_eq!(rules.evaluate("R", &json!({})), Evaluation::Denied { cause: Cause::Budget, details: Vec::new() });
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(rules.evaluate("S", &json!({})), Evaluation::Allowed, "the engine is still in order");
}

#[test]
fn recursion_is_refused_at_load() {
    let deep: String = (0..40).map(|n| format!("f{n}(x) := f{}(x)\n", n + 1)).chain(["f40(x) := x\n".to_owned()]).collect();
    for body in [
        "f(x) := y if { y := f(x + 1) }\nR if f(1)",
        "f(x) := g(x)\ng(x) := data.agent_policy.f(x)\nR if f(1)",
        "f(x) := [y | some i in [1]; y := h(i)]\ng(x) := f(x)\nh(x) if { every i in [1] { g(i) } }\nR if f(1)",
        "f(x) := data.agent_policy[\"f\"](x)\nR if f(1)",
        "f(x) := x\ng(x) := f(x)\nR if f(1) with f as g",
        "f(x) := count(x)\nR if f([1]) with count as f",
        "f(x) := count(x)\nR if f([1]) with count as data.agent_policy.f",
        deep.as_str(),
    ] {
        assert!(matches!(try_load(body), Err(LoadError::Rego(_))), "{body}");
    }
    let import = "package agent_policy\nimport data.agent_policy.f as g\nf(x) := g(x)";
    assert!(matches!(Rules::load(import, &Map::new(), Budget::default()), Err(LoadError::Rego(_))));
    let fine = "# f(x) calls f(x)\nf(1) := 2\nf(2) := 3 # f(3)\ng(x) := f(f(x))\nR if { print(\"f(x)\"); g(1) == 3; input.x == 1 with input as {\"x\": 1} }";
    assert_eq!(load(fine).evaluate("R", &json!({})), Evaluation::Allowed);
}

#[test]
fn rules_that_need_themselves_are_denied() {
    for body in ["R if R", "R if S\nS if R", "f(x) := y if { R; y := x }\nR if f(1)", "R if not R"] {
        if let Ok(mut rules) = try_load(body) {
            let outcome = rules.evaluate("R", &json!({}));
            assert!(matches!(outcome, Evaluation::Denied { .. }), "{body}: {outcome:?}");
        }
    }
}

#[test]
fn state_changes_take_effect_only_with_a_yes() {
    let body = r#"
        R := {"allowed": input.yes, "ops": [{"op": "add", "path": "/pstate/seen", "value": input.v}]} if not data.pstate.seen
        Bad := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/x", "value": 1}, {"op": "remove", "path": "/pstate/y"}]}
        Out := {"allowed": true, "ops": [{"op": "add", "path": "/agent_policy/Z", "value": true}]}
        Big := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/big", "value": input.v}]}
        HasX if data.pstate.x
        Z if data.agent_policy.none
    "#;
    let mut rules = load(body);
    assert!(matches!(rules.evaluate("R", &json!({"yes": false, "v": 1})), Evaluation::Denied { cause: Cause::False, .. }));
    assert_eq!(rules.evaluate("R", &json!({"yes": true, "v": 1})), Evaluation::Allowed);
    assert!(matches!(rules.evaluate("R", &json!({"yes": true, "v": 1})), Evaluation::Denied { cause: Cause::Undefined, .. }));
    for rule in ["Bad", "Out"] {
        assert!(matches!(rules.evaluate(rule, &json!({})), Evaluation::Denied { cause: Cause::Ops(_), .. }), "{rule}");
    }
    assert!(matches!(rules.evaluate("HasX", &json!({})), Evaluation::Denied { .. }), "half a patch took effect");
    let big = json!({"v": "x".repeat(1 << 19)});
    assert!(matches!(rules.evaluate("Big", &big), Evaluation::Denied { cause: Cause::Ops(_), .. }));
}

#[test]
fn reasons_are_literals_of_the_policy() {
    let body = r#"
        R if input.a == 1
        reasons contains "a must be 1" if input.a != 1
        reasons contains sprintf("a is %v", [input.a]) if input.a != 1
        reasons contains input.a if input.a != 1
    "#;
    let outcome = load(body).evaluate("R", &json!({"a": "hunter2"}));
    assert_eq!(outcome, Evaluation::Denied { cause: Cause::Undefined, details: vec!["a must be 1".to_owned()] });

    let by_rule = "default R := false\nreasons := {\"R\": {\"for R\"}, \"S\": {\"for S\"}}";
    assert_eq!(load(by_rule).evaluate("R", &json!({})), Evaluation::Denied { cause: Cause::False, details: vec!["for R".to_owned()] });
}

#[test]
fn print_goes_nowhere() {
    let mut rules = load("R if { print(\"secret\", input.a); input.a == 1 }");
    assert!(matches!(rules.evaluate("R", &json!({"a": "hunter2"})), Evaluation::Denied { .. }));
    assert!(rules.engine.take_prints().unwrap().is_empty());
    assert!(!format!("{rules:?}").contains("hunter2"));
}

#[test]
fn rejects_fail_open_switch() {
    for body in
        ["AllowRequestsFailingPolicy := true", "default AllowRequestsFailingPolicy := true", "AllowRequestsFailingPolicy if input.x"]
    {
        assert_eq!(try_load(body).unwrap_err(), LoadError::FailOpen, "{body}");
    }
    for body in ["default AllowRequestsFailingPolicy := false", "# AllowRequestsFailingPolicy := true"] {
        assert!(try_load(body).is_ok(), "{body}");
    }
}

#[test]
fn rejects_policies_that_cannot_be_used() {
    assert!(matches!(try_load("R if {"), Err(LoadError::Rego(_))));
    assert!(matches!(try_load("R if no_such_thing"), Err(LoadError::Rego(_))));
    let load = |rego: &str, data: Value| Rules::load(rego, data.as_object().unwrap(), Budget::default()).err();
    assert_eq!(load("package other\nR := true", json!({})), Some(LoadError::Package { found: "other".to_owned() }));
    assert_eq!(load("package agent_policy.sub\nR := true", json!({})), Some(LoadError::Package { found: "agent_policy.sub".to_owned() }));
    assert_eq!(load("package agent_policy", json!({"pstate": {}})), Some(LoadError::ReservedData("pstate")));
    assert_eq!(load("package agent_policy", json!({"agent_policy": {"R": true}})), Some(LoadError::ReservedData("agent_policy")));
    assert!(matches!(load(&" ".repeat((1 << 20) + 1), json!({})), Some(LoadError::TooLarge { what: "text", .. })));
}

#[test]
fn data_of_the_policy_is_under_data() {
    let data = json!({"limits": {"max": 3}});
    let mut rules =
        Rules::load("package agent_policy\nR if input.n <= data.limits.max", data.as_object().unwrap(), Budget::default()).unwrap();
    assert_eq!(rules.evaluate("R", &json!({"n": 3})), Evaluation::Allowed);
    assert!(matches!(rules.evaluate("R", &json!({"n": 4})), Evaluation::Denied { .. }));
}

/// Policies written for Kata's agent: `future.keywords`, `ops` on `/pstate`, prints.
#[test]
fn takes_policies_in_kata_form() {
    let rego = r#"
        package agent_policy
        import future.keywords.in
        import future.keywords.if
        import future.keywords.every
        default AllowRequestsFailingPolicy := false
        default CreateContainerRequest := false
        default ReadStreamRequest := false
        CreateContainerRequest := {"ops": ops, "allowed": true} if {
            print("CreateContainerRequest: input =", input)
            some c in policy_data.containers
            every a in input.OCI.Process.Args { a in c.args }
            ops := [{"op": "add", "path": concat("/", ["/pstate", input.container_id]), "value": 0}]
        }
        policy_data := {"containers": [{"args": ["a", "b"]}]}
    "#;
    let mut rules = Rules::load(rego, &Map::new(), Budget::default()).unwrap();
    assert_eq!(
        rules.evaluate("CreateContainerRequest", &json!({"container_id": "x", "OCI": {"Process": {"Args": ["a"]}}})),
        Evaluation::Allowed
    );
    assert!(matches!(
        rules.evaluate("CreateContainerRequest", &json!({"container_id": "y", "OCI": {"Process": {"Args": ["c"]}}})),
        Evaluation::Denied { cause: Cause::False, .. }
    ));
}
