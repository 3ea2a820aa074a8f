//! Which container a connection to the pod-local interface comes from.
//!
//! All containers of a pod share its network, so the address says nothing. The kernel remembers for each socket the control group
//! of the process that made it; it is asked for that of the connection's other end ([`diag`]), and the group is one that the agent
//! has made for a container, or beneath one.
//!
//! What holds:
//! - A socket is its maker's, whoever uses it later. A container that hands one of its own to another one, or serves another one's
//!   wishes by it, could as well hand on what it read. None can get at another's without its help: processes and files are apart.
//! - No process numbers are looked at, so none can be used again meanwhile. The kernel does not give the number of a control group twice
//!   in the life of a guest, and the agent does not give the name of a container twice.
//! - The peer is looked for while the connection is there, by both addresses and ports; a second socket cannot have the same ones. After
//!   that the agent's own end is looked at: if the peer had gone and another socket come in its place, it would not be connected any more.
//!   And what is answered goes to the peer that was there at first, or to nobody.
//! - A connection whose peer has ended, is the agent's own, or cannot be found for any other reason, comes from nobody, and is refused.

mod diag;

use serde_json::{Map, Value};
use thiserror::Error;
use tokio::net::TcpStream;

use crate::container::cgroup::Group;
use crate::container::{ContainerId, Containers, Kind};

pub(crate) use diag::DiagError;

/// The container that asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    /// Its name in the guest, by which the policy's state knows it.
    pub(crate) id: ContainerId,
    /// Its name in the pod.
    pub(crate) name: String,
}

impl Asker {
    /// What the policy sees of a request of its: `fields`, and who asks.
    #[must_use]
    pub(crate) fn input(&self, fields: Value) -> Value {
        let mut input = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        input.insert("container_id".to_owned(), self.id.as_str().into());
        input.insert("container_name".to_owned(), self.name.as_str().into());
        Value::Object(input)
    }
}

/// Why nobody knows who asks.
#[derive(Debug, Error)]
pub(crate) enum AskerError {
    /// The kernel does not tell.
    #[error("cannot find out which container asks")]
    Diag(#[from] DiagError),
    /// It is none of the pod's containers.
    #[error("the connection does not come from a container of this pod")]
    NotAContainer,
}

/// Who is at the other end of a connection that was accepted.
///
/// # Errors
/// When it is no container, or nobody knows.
pub(crate) fn of(containers: &Containers, stream: &TcpStream) -> Result<Asker, AskerError> {
    let group = diag::peers_group(stream)?;
    let all = containers.all();
    let workloads = all.iter().filter(|container| matches!(container.kind, Kind::Workload));
    let groups: Vec<_> = workloads.map(|container| (container, Group::of(&container.id))).collect();
    let (container, _) = find(&groups, group).ok_or(AskerError::NotAContainer)?;
    // Known before its first process begins.
    let identity = container.identity.get().ok_or(AskerError::NotAContainer)?;
    Ok(Asker { id: container.id.clone(), name: identity.name.clone() })
}

/// The one of the groups that has this number, or one beneath it that has.
fn find<T>(groups: &[(T, Group)], number: u64) -> Option<&(T, Group)> {
    // Hardly any container makes groups of its own; they are looked at only if it is none of those.
    groups.iter().find(|(_, group)| group.is(number)).or_else(|| groups.iter().find(|(_, group)| group.holds(number)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_group_is_known_by_its_number_and_those_beneath_it_too() {
        let place = tempfile::tempdir().unwrap();
        for path in ["c1/own/deeper", "c2", "other"] {
            std::fs::create_dir_all(place.path().join(path)).unwrap();
        }
        let groups = ["c1", "c2"].map(|name| (name, Group::at(&place.path().join(name))));
        let number = |path: &str| std::fs::metadata(place.path().join(path)).unwrap().ino();
        let found = |number| find(&groups, number).map(|(name, _)| *name);
        assert_eq!(found(number("c1")), Some("c1"));
        assert_eq!(found(number("c1/own/deeper")), Some("c1"));
        assert_eq!(found(number("c2")), Some("c2"));
        assert_eq!((found(number("other")), found(number("")), found(0)), (None, None, None));
    }

    #[tokio::test]
    async fn who_is_in_no_container_is_nobody() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(of(&Containers::default(), &stream).is_err());
    }

    #[test]
    fn the_policy_sees_who_asks_whatever_else_is_in_the_request() {
        let asker = Asker { id: "c1".parse().unwrap(), name: "app".to_owned() };
        let input = asker.input(serde_json::json!({ "path": "a/b/c", "container_id": "other" }));
        assert_eq!(input, serde_json::json!({ "path": "a/b/c", "container_id": "c1", "container_name": "app" }));
    }
}
