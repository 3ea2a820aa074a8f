//! `data.pstate`, the state of a policy between requests, and the JSON patch (RFC 6902) by which rules change it.
//!
//! Paths are counted from the data document and must be below `/pstate`, as in the policies of Kata. A patch is made on a copy:
//! either all of it or nothing takes effect. `move` and `copy` are left out; no known policy uses them.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Most operations of one decision.
const MAX_OPS: usize = 64;

/// One operation.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Op {
    /// Sets a member or inserts an element.
    Add { path: String, value: Value },
    /// Sets what must be there.
    Replace { path: String, value: Value },
    /// Takes out what must be there.
    Remove { path: String },
    /// Fails unless equal.
    Test { path: String, value: Value },
}

/// The state.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PolicyState(Map<String, Value>);

impl PolicyState {
    pub(crate) fn as_value(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// Size as JSON.
    pub(crate) fn size(&self) -> usize {
        self.as_value().to_string().len()
    }

    /// The state after the operations, or what is wrong with them.
    pub(crate) fn apply(&self, ops: &[Op]) -> Result<Self, &'static str> {
        if ops.len() > MAX_OPS {
            return Err("the rule asked for too many state changes");
        }
        let mut root = self.as_value();
        for op in ops {
            apply_one(&mut root, op)?;
        }
        match root {
            Value::Object(map) => Ok(Self(map)),
            _ => Err("a state change would replace /pstate itself"),
        }
    }
}

/// What one change of the state did: for each member of `pstate` itself, what it was and what it became.
///
/// As coarse as that on purpose: a change to a list cannot be taken back by its index once somebody else has changed the list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference(Vec<(String, Option<Value>, Option<Value>)>);

impl PolicyState {
    /// What makes the state `after` different from this one.
    pub(crate) fn difference(&self, after: &Self) -> Difference {
        let keys: BTreeSet<&String> = self.0.keys().chain(after.0.keys()).collect();
        let changed = keys.into_iter().filter(|key| self.0.get(*key) != after.0.get(*key));
        Difference(changed.map(|key| (key.clone(), self.0.get(key).cloned(), after.0.get(key).cloned())).collect())
    }

    /// The state without that change, or nothing if any of it has been changed again since.
    pub(crate) fn without(&self, difference: &Difference) -> Option<Self> {
        let mut state = self.0.clone();
        for (key, before, after) in &difference.0 {
            if self.0.get(key) != after.as_ref() {
                return None;
            }
            match before {
                Some(value) => drop(state.insert(key.clone(), value.clone())),
                None => drop(state.remove(key)),
            }
        }
        Some(Self(state))
    }
}

const MISSING: &str = "a state change names a path that is not there";

fn apply_one(root: &mut Value, op: &Op) -> Result<(), &'static str> {
    let (Op::Add { path, .. } | Op::Replace { path, .. } | Op::Remove { path } | Op::Test { path, .. }) = op;
    let tokens = parse_path(path)?;
    let (last, parents) = tokens.split_last().ok_or("a state change would replace /pstate itself")?;
    let mut parent = root;
    for token in parents {
        parent = match parent {
            Value::Object(map) => map.get_mut(token),
            Value::Array(items) => index(token).and_then(|i| items.get_mut(i)),
            _ => None,
        }
        .ok_or(MISSING)?;
    }
    match (parent, op) {
        (Value::Object(map), Op::Add { value, .. }) => {
            map.insert(last.clone(), value.clone());
            Ok(())
        }
        (Value::Array(items), Op::Add { value, .. }) => {
            let at = if last == "-" { Some(items.len()) } else { index(last).filter(|i| *i <= items.len()) };
            items.insert(at.ok_or(MISSING)?, value.clone());
            Ok(())
        }
        (Value::Object(map), Op::Remove { .. }) => map.remove(last).map(drop).ok_or(MISSING),
        (Value::Array(items), Op::Remove { .. }) => {
            items.remove(index(last).filter(|i| *i < items.len()).ok_or(MISSING)?);
            Ok(())
        }
        (parent, Op::Replace { value, .. }) => {
            *child(parent, last).ok_or(MISSING)? = value.clone();
            Ok(())
        }
        (parent, Op::Test { value, .. }) => {
            if child(parent, last).ok_or(MISSING)? == value {
                Ok(())
            } else {
                Err("a test among the state changes failed")
            }
        }
        _ => Err(MISSING),
    }
}

fn child<'a>(parent: &'a mut Value, token: &str) -> Option<&'a mut Value> {
    match parent {
        Value::Object(map) => map.get_mut(token),
        Value::Array(items) => index(token).and_then(|i| items.get_mut(i)),
        _ => None,
    }
}

/// JSON pointer (RFC 6901) below `/pstate`.
fn parse_path(path: &str) -> Result<Vec<String>, &'static str> {
    let below = path.strip_prefix("/pstate/").ok_or("a state change names a path that is not below /pstate/")?;
    below
        .split('/')
        .map(|token| {
            let mut rest = token.chars();
            let mut name = String::with_capacity(token.len());
            while let Some(c) = rest.next() {
                name.push(match (c, c == '~') {
                    (_, true) => match rest.next() {
                        Some('0') => '~',
                        Some('1') => '/',
                        _ => return Err("a state change names a path with a wrong escape"),
                    },
                    (c, false) => c,
                });
            }
            Ok(name)
        })
        .collect()
}

/// Array index without sign or leading zeros.
fn index(token: &str) -> Option<usize> {
    let canonical = token == "0" || (!token.starts_with('0') && token.bytes().all(|b| b.is_ascii_digit()));
    if canonical { token.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::{Op, PolicyState};
    use serde_json::{Value, json};

    fn state(value: Value) -> PolicyState {
        match value {
            Value::Object(map) => PolicyState(map),
            _ => unreachable!("tests give objects"),
        }
    }

    #[track_caller]
    fn check(before: Value, ops: Value, after: Option<Value>) {
        let ops: Vec<Op> = serde_json::from_value(ops).unwrap();
        assert_eq!(state(before).apply(&ops).ok().map(|s| s.as_value()), after);
    }

    #[test]
    fn patches_apply_or_change_nothing() {
        check(json!({}), json!([{"op":"add","path":"/pstate/a","value":1}]), Some(json!({"a":1})));
        check(json!({"a":1}), json!([{"op":"replace","path":"/pstate/a","value":2}]), Some(json!({"a":2})));
        check(json!({}), json!([{"op":"replace","path":"/pstate/a","value":2}]), None);
        check(json!({"a":1}), json!([{"op":"remove","path":"/pstate/a"}]), Some(json!({})));
        check(json!({}), json!([{"op":"remove","path":"/pstate/a"}]), None);
        check(json!({"a":[1,3]}), json!([{"op":"add","path":"/pstate/a/1","value":2}]), Some(json!({"a":[1,2,3]})));
        check(json!({"a":[1]}), json!([{"op":"add","path":"/pstate/a/-","value":2}]), Some(json!({"a":[1,2]})));
        check(json!({"a":[1]}), json!([{"op":"add","path":"/pstate/a/2","value":2}]), None);
        check(json!({"a":[1]}), json!([{"op":"remove","path":"/pstate/a/01"}]), None);
        check(json!({}), json!([{"op":"add","path":"/pstate/a/b","value":2}]), None);
        check(json!({"a/b":1}), json!([{"op":"remove","path":"/pstate/a~1b"}]), Some(json!({})));
        check(json!({"a":1}), json!([{"op":"test","path":"/pstate/a","value":2}, {"op":"remove","path":"/pstate/a"}]), None);
    }

    #[test]
    fn a_change_is_taken_back_whole_or_not_at_all() {
        let (before, after) = (state(json!({"a": 1, "b": [1], "c": 1})), state(json!({"a": 1, "b": [1, 2], "d": 1})));
        let difference = before.difference(&after);
        assert_eq!(after.without(&difference), Some(before));
        // What others did beside it stays.
        let beside = state(json!({"a": 2, "b": [1, 2], "d": 1}));
        assert_eq!(beside.without(&difference), Some(state(json!({"a": 2, "b": [1], "c": 1}))));
        for over in
            [json!({"b": [1, 2, 3], "d": 1}), json!({"b": [1, 2], "d": 2}), json!({"b": [1, 2]}), json!({"b": [1, 2], "c": 1, "d": 1})]
        {
            assert_eq!(state(over).without(&difference), None);
        }
    }

    #[test]
    fn rejects_paths_outside_the_state() {
        for path in ["", "/", "/pstate", "/agent_policy/CreateContainerRequest", "/pstat/a", "pstate/a", "/pstate/a~2"] {
            check(json!({"a":1}), json!([{"op":"add","path":path,"value":true}]), None);
        }
    }

    #[test]
    fn rejects_operations_it_does_not_know() {
        for op in [json!({"op":"copy","from":"/pstate/a","path":"/pstate/b"}), json!({"op":"add","path":"/pstate/a"})] {
            assert!(serde_json::from_value::<Op>(op).is_err());
        }
    }
}
