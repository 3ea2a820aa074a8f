//! What a role may do: permissions by name, narrowed or granted by patterns over the path as CoCo's ACLs have them.
//!
//! **Invariant:** a role that no entry names may do nothing; the built-in roles cannot be redefined.

use crate::config::Role as Entry;
use regex::{Regex, RegexBuilder};
use serde::Serialize;

/// Longest pattern, and the most memory one may compile to.
const MAX_PATTERN: usize = 1024;
const MAX_COMPILED: usize = 1 << 20;
const MAX_ENTRIES: usize = 256;

/// One thing an administrator can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// See names of resources.
    ListResources,
    /// Store a resource.
    WriteResource,
    /// Delete a resource.
    DeleteResource,
    /// Read policies.
    ReadPolicy,
    /// Set policies.
    WritePolicy,
    /// Read reference values.
    ReadReference,
    /// Register and delete reference values.
    WriteReference,
    /// Read the audit log.
    ReadAudit,
}

impl Permission {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::ListResources,
        Self::WriteResource,
        Self::DeleteResource,
        Self::ReadPolicy,
        Self::WritePolicy,
        Self::ReadReference,
        Self::WriteReference,
        Self::ReadAudit,
    ];

    /// As the configuration names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ListResources => "resource:list",
            Self::WriteResource => "resource:write",
            Self::DeleteResource => "resource:delete",
            Self::ReadPolicy => "policy:read",
            Self::WritePolicy => "policy:write",
            Self::ReadReference => "reference:read",
            Self::WriteReference => "reference:write",
            Self::ReadAudit => "audit:read",
        }
    }

    fn matching(pattern: &str) -> Vec<Self> {
        let area = pattern.strip_suffix('*');
        let wanted = |p: &Self| match area {
            Some("") => true,
            Some(area) => area.ends_with(':') && p.as_str().starts_with(area),
            None => p.as_str() == pattern,
        };
        Self::ALL.into_iter().filter(wanted).collect()
    }
}

/// Why the roles of a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// A built-in role.
    #[error("role {0:?} is built in and cannot be given another meaning: choose another name")]
    BuiltIn(String),
    /// No name, or too many entries.
    #[error("expected a role of 1 to 128 characters, and at most {MAX_ENTRIES} entries")]
    Name,
    /// Neither permissions nor paths.
    #[error("role {0:?} is allowed nothing: give `allow`, `allowed_endpoints` or both")]
    Nothing(String),
    /// Not a permission.
    #[error("role {role:?}: {found:?} is no permission; expected one of {}", names())]
    Permission {
        /// Which role.
        role: String,
        /// What is there.
        found: String,
    },
    /// Not a regular expression.
    #[error("role {role:?}: `allowed_endpoints` is not a usable regular expression: {why}")]
    Pattern {
        /// Which role.
        role: String,
        /// What is wrong with it.
        why: String,
    },
}

fn names() -> String {
    let all: Vec<_> = Permission::ALL.iter().map(|p| p.as_str()).collect();
    format!("{}, or with `*` behind the colon, or `*` alone", all.join(", "))
}

/// Something that a role may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Granted {
    /// Names of permissions.
    pub permissions: Vec<&'static str>,
    /// The pattern that paths must match whole; none: any path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<String>,
}

#[derive(Debug, Clone)]
struct Grant {
    role: String,
    permissions: Vec<Permission>,
    endpoints: Option<Regex>,
}

/// The roles that are known.
#[derive(Debug, Clone)]
pub struct Roles {
    grants: Vec<Grant>,
}

impl Default for Roles {
    /// The built-in ones: `admin` may do everything; `auditor` reads what is no secret; `provisioner` stores secrets and reference values
    /// but neither sets policies nor reads the audit log.
    fn default() -> Self {
        use Permission::*;
        let grant =
            |role: &str, permissions: &[Permission]| Grant { role: role.into(), permissions: permissions.to_vec(), endpoints: None };
        Self {
            grants: vec![
                grant("admin", &Permission::ALL),
                grant("auditor", &[ListResources, ReadPolicy, ReadReference, ReadAudit]),
                grant("provisioner", &[ListResources, WriteResource, DeleteResource, ReadReference, WriteReference]),
            ],
        }
    }
}

impl Roles {
    /// The built-in roles and those of the configuration.
    pub fn new(entries: &[Entry]) -> Result<Self, RoleError> {
        let mut roles = Self::default();
        let built_in = roles.clone();
        if entries.len() > MAX_ENTRIES {
            return Err(RoleError::Name);
        }
        for entry in entries {
            if entry.role.is_empty() || entry.role.len() > 128 {
                return Err(RoleError::Name);
            }
            if built_in.know(&entry.role) {
                return Err(RoleError::BuiltIn(entry.role.clone()));
            }
            roles.grants.push(Grant::new(entry)?);
        }
        Ok(roles)
    }

    /// Whether there is such a role at all.
    pub fn know(&self, role: &str) -> bool {
        self.grants.iter().any(|grant| grant.role == role)
    }

    /// All that bearers of `role` may do.
    pub fn granted(&self, role: &str) -> Vec<Granted> {
        let of = |grant: &Grant| Granted {
            permissions: grant.permissions.iter().map(|permission| permission.as_str()).collect(),
            paths: grant.endpoints.as_ref().map(|pattern| pattern.as_str().to_owned()),
        };
        self.grants.iter().filter(|grant| grant.role == role).map(of).collect()
    }

    /// Whether bearers of `role` may do this at this path.
    pub fn allow(&self, role: &str, permission: Permission, path: &str) -> bool {
        self.grants.iter().any(|grant| {
            grant.role == role
                && grant.permissions.contains(&permission)
                && grant.endpoints.as_ref().is_none_or(|pattern| pattern.is_match(path))
        })
    }
}

impl Grant {
    fn new(entry: &Entry) -> Result<Self, RoleError> {
        let role = entry.role.clone();
        let permissions = match &entry.allow {
            None if entry.allowed_endpoints.is_none() => return Err(RoleError::Nothing(role)),
            None => Permission::ALL.to_vec(),
            Some(names) if names.is_empty() => return Err(RoleError::Nothing(role)),
            Some(names) => {
                let mut all = Vec::new();
                for name in names {
                    let matching = Permission::matching(name);
                    if matching.is_empty() {
                        return Err(RoleError::Permission { role, found: name.chars().take(64).collect() });
                    }
                    all.extend(matching);
                }
                all
            }
        };
        let endpoints = entry.allowed_endpoints.as_deref().map(|text| pattern(&role, text)).transpose()?;
        Ok(Self { role, permissions, endpoints })
    }
}

/// A pattern of CoCo's form. It must match the whole path, also where its author forgot `^` and `$`.
fn pattern(role: &str, text: &str) -> Result<Regex, RoleError> {
    let fail = |why: String| RoleError::Pattern { role: role.into(), why };
    if text.len() > MAX_PATTERN {
        return Err(fail(format!("longer than {MAX_PATTERN} bytes")));
    }
    // By itself first: `a)|(b` would otherwise close the group that anchors it.
    RegexBuilder::new(text).size_limit(MAX_COMPILED).build().map_err(|e| fail(e.to_string()))?;
    RegexBuilder::new(&format!("^(?:{text})$")).size_limit(MAX_COMPILED).build().map_err(|e| fail(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Permission::*;

    fn entry(role: &str, allow: Option<&[&str]>, endpoints: Option<&str>) -> Entry {
        Entry {
            role: role.into(),
            allow: allow.map(|names| names.iter().map(|n| n.to_string()).collect()),
            allowed_endpoints: endpoints.map(str::to_owned),
        }
    }

    #[test]
    fn built_in_roles_do_what_they_are_for_and_no_more() {
        let roles = Roles::default();
        let may = |role: &str| Permission::ALL.into_iter().filter(|p| roles.allow(role, *p, "/")).collect::<Vec<_>>();
        assert_eq!(may("admin"), Permission::ALL);
        assert_eq!(may("auditor"), [ListResources, ReadPolicy, ReadReference, ReadAudit]);
        assert_eq!(may("provisioner"), [ListResources, WriteResource, DeleteResource, ReadReference, WriteReference]);
        assert!(may("nobody").is_empty() && may("").is_empty() && may("Admin").is_empty());
    }

    #[test]
    fn a_configured_role_is_narrowed_by_permission_and_by_path() {
        let team = entry("team", Some(&["resource:*"]), Some("^/kbs/v0/resource/team/.*$"));
        let roles = Roles::new(&[team, entry("team", Some(&["audit:read"]), None)]).unwrap();
        assert!(roles.allow("team", WriteResource, "/kbs/v0/resource/team/a/b"));
        assert!(!roles.allow("team", WriteResource, "/kbs/v0/resource/other/a/b"));
        assert!(!roles.allow("team", WritePolicy, "/kbs/v0/resource/team/a/b"));
        assert!(roles.allow("team", ReadAudit, "/kbs/v0/audit"));
        let granted = roles.granted("team");
        assert_eq!(granted[0].permissions, ["resource:list", "resource:write", "resource:delete"]);
        assert!(granted[0].paths.as_deref().unwrap().contains("resource/team"), "{granted:?}");
        assert_eq!(granted[1], Granted { permissions: vec!["audit:read"], paths: None });
        assert!(roles.granted("nobody").is_empty());
    }

    #[test]
    fn a_pattern_without_anchors_still_matches_the_whole_path_only() {
        let roles = Roles::new(&[entry("r", None, Some("/kbs/v0/audit|/kbs/v0/resource/a/b/c"))]).unwrap();
        assert!(roles.allow("r", ReadAudit, "/kbs/v0/audit"));
        assert!(roles.allow("r", WriteResource, "/kbs/v0/resource/a/b/c"));
        assert!(!roles.allow("r", WriteResource, "/kbs/v0/resource/a/b/cc"));
        assert!(!roles.allow("r", WriteResource, "/x/kbs/v0/audit"));
    }

    #[test]
    fn refuses_roles_that_would_surprise() {
        let refusal = |e: Entry| Roles::new(&[e]).unwrap_err();
        assert_eq!(refusal(entry("auditor", Some(&["*"]), None)), RoleError::BuiltIn("auditor".into()));
        assert_eq!(refusal(entry("", Some(&["*"]), None)), RoleError::Name);
        assert_eq!(refusal(entry("r", None, None)), RoleError::Nothing("r".into()));
        assert_eq!(refusal(entry("r", Some(&[]), None)), RoleError::Nothing("r".into()));
        for bad in ["resource", "resource:", "resource:read", "resourc*", "", "**"] {
            assert!(matches!(refusal(entry("r", Some(&[bad]), None)), RoleError::Permission { .. }), "{bad}");
        }
        for bad in ["(", "a)|(b", &"a".repeat(MAX_PATTERN + 1)] {
            assert!(matches!(refusal(entry("r", None, Some(bad))), RoleError::Pattern { .. }), "{bad}");
        }
    }
}
