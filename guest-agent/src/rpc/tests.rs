//! The service without a guest, and the table of methods against the protocol.

use super::*;
use kata_cc_agent_protocol::rpc::health_ttrpc::Health;

fn context() -> TtrpcContext {
    TtrpcContext {
        mh: ttrpc::MessageHeader::default(),
        metadata: std::collections::HashMap::default(),
        timeout_nano: 0,
        connection_data: Arc::default(),
    }
}

fn refused() -> Service {
    Service::Refused { reason: "no initdata".to_owned(), told: Notify::new() }
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("expected a status, found {other:?}"),
    }
}

#[tokio::test]
async fn a_guest_that_refuses_says_so_to_every_request() {
    let service = refused();
    let (found, text) = code(service.create_container(&context(), Default::default()).await);
    assert_eq!(found, Code::FAILED_PRECONDITION);
    assert!(text.contains("no initdata"));
    assert_eq!(code(service.read_stdout(&context(), Default::default()).await).0, Code::FAILED_PRECONDITION);
    assert_eq!(code(service.check(&context(), Default::default()).await).0, Code::FAILED_PRECONDITION);
    let Service::Refused { told, .. } = &service else {
        unreachable!();
    };
    told.notified().await;
}

#[test]
fn every_method_of_the_protocol_is_in_the_table() {
    // A method left out would answer with the generated default, past the gate.
    let protocol = include_str!("../../protocol/protos/agent.proto");
    let table = include_str!("mod.rs");
    let methods: Vec<&str> =
        protocol.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('(').map(|(name, _)| name)).collect();
    assert!(methods.len() > 40);
    for method in methods {
        let flat = |name: &str| name.to_lowercase().replace('_', "");
        let found = table.lines().any(|line| {
            let line = line.trim();
            let name = line.strip_prefix("async fn ").unwrap_or(line).split(['(', ':']).next().unwrap_or("");
            flat(name) == flat(method)
        });
        assert!(found, "{method} is not in the table");
    }
}

#[test]
fn policies_do_not_see_what_is_written_to_a_process() {
    let request = agent::WriteStreamRequest { container_id: "c".to_owned(), data: b"canary".to_vec(), ..Default::default() };
    let input = WriteStream(request).policy_input();
    assert_eq!(input["size"], 6);
    assert!(!input.to_string().contains("canary"));
}
