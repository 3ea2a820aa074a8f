//! The agent's interface: messages, asynchronous client and server stubs, and the JSON form that policies see.
//!
//! This is the only crate that host and guest share. It holds no behaviour. Names, numbers and packages on the wire are those
//! of Kata's agent protocol (`grpc.AgentService` and `grpc.Health` over ttRPC on vsock), so that existing clients, policies and
//! mixed deployments keep working.
//!
//! **Invariant:** a value of a type in here is what a peer *sent*; nothing about it has been checked.

mod json;

#[allow(missing_docs, unreachable_pub, unsafe_code, clippy::all, clippy::unwrap_used, reason = "generated code")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

/// Messages and stubs, one module a proto file: `agent`, `agent_ttrpc`, `csi`, `health`, `health_ttrpc`, `oci`, `types`.
pub mod rpc {
    pub use super::generated::*;
    pub use protobuf;
    pub use protobuf::well_known_types::empty::Empty;
    pub use ttrpc;
}

/// The vsock port on which the agent serves.
pub const AGENT_VSOCK_PORT: u32 = 1024;

/// The vsock port on the host (CID 2) to which the agent connects once, and writes one byte, when it has begun to serve.
///
/// It is only a hint that saves the host from asking again and again: nothing depends on it, and a host that does not listen
/// there is not an error.
pub const READY_VSOCK_PORT: u32 = 1023;

/// The vsock port on the host (CID 2) on which the node's blob cache is, where there is one.
///
/// Below 1024, so that no unprivileged program of the host can take it: not that the guest trusts who listens there, but it tells it which layers it needs.
pub const BLOBS_VSOCK_PORT: u32 = 1022;

/// Where files copied into the guest live; also what mounts of a container may have as their source.
pub const SHARED_DIR: &str = "/run/kata-containers/shared/containers";

/// Where the agent keeps what belongs to containers: `<id>/rootfs` is a container's root file system.
pub const CONTAINER_DIR: &str = "/run/kata-containers";

/// The largest `data` the host may put in one `CopyFile` request. A ttRPC frame holds 4 MiB; this leaves room for many.
pub const COPY_FILE_CHUNK: usize = 1 << 20;

/// `driver` of the storage that makes the agent pull the image itself.
pub const DRIVER_IMAGE_GUEST_PULL: &str = "image_guest_pull";

/// `driver` of a memory-backed volume made in the guest.
pub const DRIVER_EPHEMERAL: &str = "ephemeral";

/// `driver` of a plain directory made in the guest.
pub const DRIVER_LOCAL: &str = "local";

/// The annotation that names a container's image.
pub const ANNOTATION_IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// The annotation that tells the sandbox container from the others.
pub const ANNOTATION_CONTAINER_TYPE: &str = "io.katacontainers.pkg.oci.container_type";

/// The value of [`ANNOTATION_CONTAINER_TYPE`] for the sandbox container.
pub const CONTAINER_TYPE_SANDBOX: &str = "pod_sandbox";

/// The value of [`ANNOTATION_CONTAINER_TYPE`] for a container of a pod.
pub const CONTAINER_TYPE_CONTAINER: &str = "pod_container";

#[cfg(test)]
mod tests {
    use crate::rpc::{agent, health, oci, types};
    use protobuf::{Message, MessageField};
    use serde_json::json;

    fn request() -> agent::CreateContainerRequest {
        let process = oci::Process { Args: vec!["/bin/true".to_owned()], ..Default::default() };
        let spec = oci::Spec {
            Process: MessageField::some(process),
            Mounts: vec![oci::Mount { destination: "/proc".to_owned(), type_: "proc".to_owned(), ..Default::default() }],
            ..Default::default()
        };
        agent::CreateContainerRequest { container_id: "abc".to_owned(), OCI: MessageField::some(spec), ..Default::default() }
    }

    #[test]
    fn json_form_has_the_names_policies_use() {
        let value = serde_json::to_value(request()).unwrap();
        assert_eq!(value["container_id"], "abc");
        assert_eq!(value["OCI"]["Process"]["Args"], json!(["/bin/true"]));
        assert_eq!(value["OCI"]["Mounts"][0]["type_"], "proc");
        assert_eq!(value["OCI"]["Linux"], json!(null));
        assert!(value.get("special_fields").is_none());
        let back: agent::CreateContainerRequest = serde_json::from_value(value).unwrap();
        assert_eq!(back, request());
    }

    #[test]
    fn enumerations_are_numbers_even_unknown_ones() {
        let address = types::IPAddress { family: protobuf::EnumOrUnknown::from_i32(7), ..Default::default() };
        let value = serde_json::to_value(&address).unwrap();
        assert_eq!(value["family"], 7);
        let back: types::IPAddress = serde_json::from_value(value).unwrap();
        assert_eq!(back, address);
    }

    #[test]
    fn numbers_on_the_wire_are_those_of_the_protocol() {
        // OCI is field 6 of CreateContainerRequest, data field 2 of ReseedRandomDevRequest, group_id field 2 of FSGroup.
        assert_eq!(request().write_to_bytes().unwrap()[5], 6 << 3 | 2);
        let reseed = agent::ReseedRandomDevRequest { data: vec![1], ..Default::default() };
        assert_eq!(reseed.write_to_bytes().unwrap(), [2 << 3 | 2, 1, 1]);
        let group = agent::FSGroup { group_id: 5, ..Default::default() };
        assert_eq!(group.write_to_bytes().unwrap(), [2 << 3, 5]);
        let serving =
            health::HealthCheckResponse { status: health::health_check_response::ServingStatus::SERVING.into(), ..Default::default() };
        assert_eq!(serving.write_to_bytes().unwrap(), [1 << 3, 1]);
    }
}
