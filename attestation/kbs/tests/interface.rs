//! The OpenAPI document says what the router does: same paths, same methods, and who may come in.

#![allow(clippy::unwrap_used)] // helpers of tests: to panic is to fail

mod broker;
mod http;

use broker::{TestBroker, body};
use http::call;
use kata_cc_kbs::server::routes::{OPENAPI, routes};
use serde_json::Value;
use std::collections::BTreeSet;

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// Method, path and description of each operation.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &'_ Value)| -> Vec<(String, String)> {
        item.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())).collect()
    };
    let all: Vec<_> = paths.iter().flat_map(of_path).collect();
    all.into_iter()
        .map(|(method, path)| {
            let found = &paths[&path][method.to_lowercase()];
            (method, path, found)
        })
        .collect()
}

#[test]
fn every_route_is_described_and_nothing_else_is() {
    let document = document();
    let described: BTreeSet<_> = operations(&document).into_iter().map(|(method, path, _)| (method, path)).collect();
    let served: BTreeSet<_> = routes().iter().map(|route| (route.method.to_string(), route.path.to_owned())).collect();
    assert_eq!(described, served);
}

#[test]
fn the_document_is_whole() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, inner)| match inner {
                Value::String(target) if name == "$ref" => found.push(target.clone()),
                inner => references(inner, found),
            }),
            Value::Array(list) => list.iter().for_each(|inner| references(inner, found)),
            _ => {}
        }
    }
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let mut found = Vec::new();
    references(&document, &mut found);
    for target in &found {
        assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target} leads nowhere");
    }
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{method} {path}: its id is taken");
        assert!(operation["responses"]["200"].is_object(), "{method} {path}");
        let named: BTreeSet<_> = path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let given: BTreeSet<_> = parameters.iter().filter(|p| p["in"] == "path").map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(named, given, "{method} {path}");
    }
}

#[test]
fn the_broker_lets_in_whom_the_document_says() {
    let broker = TestBroker::start().ready();
    let document = document();
    for (method, path, operation) in operations(&document) {
        let concrete =
            path.replace("{repository}", "a").replace("{type}", "b").replace("{tag}", "c").replace("{id}", "1").replace("{name}", "1");
        let answer = call(broker.address, &method, &concrete, &[], &[]);
        let text = body(&answer);
        let administrators = operation["security"].to_string().contains("administrator");
        let open = operation["security"] == Value::Array(Vec::new());
        assert_ne!(answer.status, 405, "{method} {path}");
        assert_eq!(administrators, answer.status == 401 && text.contains("AdminAuth"), "{method} {path}: {text}");
        assert_eq!(open, answer.status != 401, "{method} {path}: {text}");
        assert!(operation["responses"][answer.status.to_string()].is_object(), "{method} {path} answered {}: {text}", answer.status);
    }
    let served = broker.get("/openapi.json");
    assert_eq!(serde_json::from_slice::<Value>(&served.body).unwrap(), document);
}
