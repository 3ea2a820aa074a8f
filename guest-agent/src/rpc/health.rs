//! Whether the agent serves, and its version. Asked before anything else, and not gated by any policy.

use async_trait::async_trait;
use kata_cc_agent_protocol::rpc::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse, health_check_response::ServingStatus};
use kata_cc_agent_protocol::rpc::health_ttrpc::Health;
use kata_cc_agent_protocol::rpc::ttrpc;
use kata_cc_agent_protocol::rpc::ttrpc::r#async::TtrpcContext;

use super::Service;

/// Version of the interface, as Kata counts it.
const PROTOCOL_VERSION: &str = "0.0.1";

#[async_trait]
impl Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        let guest = self.guest()?;
        let status = if guest.gate.version().is_some() { ServingStatus::SERVING } else { ServingStatus::NOT_SERVING };
        Ok(HealthCheckResponse { status: status.into(), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse {
            grpc_version: PROTOCOL_VERSION.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }
}
