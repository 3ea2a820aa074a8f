//! Writes a strict policy for a list of expected containers.
//!
//! The rules (`template.rego`) are the same for every pod; what one pod may do is data at their end. Exact on what matters (image by
//! digest, arguments, user, capabilities, environment, devices, mount destinations, commands, streams); tolerant where container
//! runtimes vary (order of mounts, annotations, default devices, the primary group among the additional ones).
//!
//! Not here yet: contents of copied files (a ConfigMap's content is the host's word), volumes other than copied files and emptyDirs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use thiserror::Error;

use crate::evaluate::{Budget, LoadError, Rules};

const RULES: &str = include_str!("template.rego");

/// What CRI implementations give to every container that is not privileged.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// `PATH` of containers whose image sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why no policy can be written.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateError {
    /// Nothing to allow.
    #[error("no container is given; a policy without containers would run nothing")]
    NoContainers,
    /// Not a name.
    #[error(
        "container or volume name {found:?}: expected a name as Kubernetes takes it (lower-case letters, digits, `-`, `.`; at most 63)"
    )]
    Name {
        /// The name.
        found: String,
    },
    /// Twice the same name.
    #[error("container name {found:?} is given twice")]
    Twice {
        /// The name.
        found: String,
    },
    /// Image without digest.
    #[error(
        "container {container:?}: image {found:?} is not pinned; expected a reference that ends with @sha256: and 64 hexadecimal digits"
    )]
    Image {
        /// Which container.
        container: String,
        /// Its image.
        found: String,
    },
    /// Nothing to run.
    #[error(
        "container {container:?}: no arguments; give the command that runs, since the host's word for it would not be checked otherwise"
    )]
    Args {
        /// Which container.
        container: String,
    },
    /// A wrong environment rule.
    #[error("container {container:?}, environment variable {name:?}: {problem}")]
    Env {
        /// Which container.
        container: String,
        /// Which variable.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A wrong mount.
    #[error(
        "container {container:?}: mount destination {found:?} is not a plain absolute path, is given twice, or lies under /proc, /sys or /dev"
    )]
    Mount {
        /// Which container.
        container: String,
        /// The destination.
        found: String,
    },
    /// One volume of two media.
    #[error("volume {found:?} is of `memory` in one container and not in another; one emptyDir has one medium in all of them")]
    Medium {
        /// The volume.
        found: String,
    },
    /// A capability that is no name of one.
    #[error("container {container:?}: {found:?} is not the name of a capability (CAP_…)")]
    Capability {
        /// Which container.
        container: String,
        /// The name.
        found: String,
    },
    /// A signal that there is not.
    #[error("container {container:?}: there is no signal {found}; expected a number from 1 to 31")]
    Signal {
        /// Which container.
        container: String,
        /// The number.
        found: u8,
    },
    /// A resource that cannot be one of a broker's.
    #[error("{found:?} is not a resource of a key broker; expected repository/type/tag (letters, digits, `.`, `_`, `-` in each part)")]
    Resource {
        /// What was given.
        found: String,
    },
    /// `after` names a container that is not there.
    #[error("container {container:?} is to start after {found:?}, which is not another container of the pod")]
    After {
        /// Which container.
        container: String,
        /// The name.
        found: String,
    },
    /// The policy does not load.
    #[error("the policy that was written cannot be used")]
    Load(#[from] LoadError),
}

/// What is expected of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PodTemplate {
    /// Its containers, init containers included.
    pub containers: Vec<ContainerTemplate>,
    /// Its host name; any if absent.
    pub hostname: Option<String>,
    /// Resources (`repository/type/tag`) that every container may ask the agent for.
    pub resources: Vec<String>,
    /// Keys at the broker (`repository/type/tag`) that sealed secrets may be signed with.
    pub sealing_keys: Vec<String>,
    /// Whether the workload may have the pod's attestation token.
    pub token: bool,
    /// Whether the workload may have evidence made.
    pub evidence: bool,
    /// Whether the workload may record events of its own in the runtime event log.
    pub runtime_events: bool,
    /// What the host may ask with `GetDiagnosticData`, for example `timeline`.
    pub diagnostics: Vec<String>,
    /// Whether the host may hand in policies of a higher version, signed by the same keys.
    pub policy_updates: bool,
}

/// What is expected of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerTemplate {
    /// Its name in the pod.
    pub name: String,
    /// Its image, by digest.
    pub image: String,
    /// All arguments, the program first.
    pub args: Vec<String>,
    /// Rules for the environment.
    #[serde(default)]
    pub env: Vec<EnvRule>,
    /// Whether the variables that Kubernetes adds for its own service are allowed (`KUBERNETES_…`), and `HOSTNAME`.
    #[serde(default = "yes")]
    pub kubernetes_env: bool,
    /// The working directory.
    #[serde(default = "root_dir")]
    pub cwd: String,
    /// The user.
    #[serde(default)]
    pub user: UserTemplate,
    /// Capabilities it may have at most.
    #[serde(default = "default_capabilities")]
    pub capabilities: Vec<String>,
    /// Capabilities it may have at most in the ambient and inheritable sets.
    #[serde(default)]
    pub ambient_capabilities: Vec<String>,
    /// Whether `no_new_privileges` must be set. Setting it is always allowed.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// Whether the root file system is read-only.
    #[serde(default)]
    pub readonly_root: bool,
    /// Whether it has a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Whether the host may write to its standard input.
    #[serde(default)]
    pub stdin: bool,
    /// Whether the host may read its standard output and error.
    #[serde(default)]
    pub logs: bool,
    /// Further mounts, of files copied into the guest. All of them must be there.
    #[serde(default)]
    pub mounts: Vec<MountTemplate>,
    /// emptyDir volumes, which are memory of the guest's. All of them must be there.
    #[serde(default)]
    pub empty_dirs: Vec<EmptyDirTemplate>,
    /// Resources (`repository/type/tag`) that this container may ask the agent for, beside those of the pod.
    #[serde(default)]
    pub resources: Vec<String>,
    /// What its sealed secrets may point to (`repository/type/tag`): the secret itself, or the key of an envelope. The text of those in the
    /// environment needs a rule in `env` besides.
    #[serde(default)]
    pub sealed_secrets: Vec<String>,
    /// Whether the service account's token may be mounted.
    #[serde(default = "yes")]
    pub service_account: bool,
    /// Commands that may be run in it, each with all its arguments. Their output goes to the host.
    #[serde(default)]
    pub exec: Vec<Vec<String>>,
    /// Whether those commands may have a terminal.
    #[serde(default)]
    pub exec_tty: bool,
    /// Whether the host may write to those commands' standard input.
    #[serde(default)]
    pub exec_stdin: bool,
    /// Signals, by number, that the host may send its processes besides those that end them (2, 9, 15) and 28; for example the stop
    /// signal of an image that has one of its own.
    #[serde(default)]
    pub signals: Vec<u8>,
    /// Containers that must have been started before (init containers, side-cars).
    #[serde(default)]
    pub after: Vec<String>,
    /// Whether it may be started only once in the life of the pod.
    #[serde(default)]
    pub once: bool,
}

/// Who runs in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UserTemplate {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Additional groups it may have at most.
    pub additional_gids: Vec<u32>,
}

/// A rule for environment variables. One that is allowed by no rule is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum EnvRule {
    /// Must be there with exactly this value.
    Exact {
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
    /// May be there with a value that matches from beginning to end.
    Pattern {
        /// Name.
        name: String,
        /// Regular expression; need not be anchored.
        pattern: String,
    },
    /// May be there; name and value each match from beginning to end.
    NamePattern {
        /// Regular expression.
        name_pattern: String,
        /// Regular expression.
        pattern: String,
    },
}

/// A mount of files copied into the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountTemplate {
    /// Where in the container.
    pub destination: String,
    /// Whether it must be read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// An emptyDir volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmptyDirTemplate {
    /// Its name in the pod.
    pub name: String,
    /// Where in the container.
    pub destination: String,
    /// Whether its medium is memory (`medium: Memory` in the pod), the same in all containers. The guest has both kinds in its own
    /// memory, at different places: what is one volume must be at one.
    #[serde(default)]
    pub memory: bool,
    /// Whether it must be read-only here.
    #[serde(default)]
    pub read_only: bool,
}

fn yes() -> bool {
    true
}

fn root_dir() -> String {
    "/".to_owned()
}

fn default_capabilities() -> Vec<String> {
    DEFAULT_CAPABILITIES.map(str::to_owned).to_vec()
}

impl ContainerTemplate {
    /// A container with the defaults of an unprivileged pod: root without extra capabilities, no logs, no exec.
    #[must_use]
    pub fn new(name: impl Into<String>, image: impl Into<String>, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            kubernetes_env: true,
            cwd: root_dir(),
            user: UserTemplate::default(),
            capabilities: default_capabilities(),
            ambient_capabilities: Vec::new(),
            no_new_privileges: false,
            readonly_root: false,
            tty: false,
            stdin: false,
            logs: false,
            mounts: Vec::new(),
            empty_dirs: Vec::new(),
            resources: Vec::new(),
            sealed_secrets: Vec::new(),
            service_account: true,
            exec: Vec::new(),
            exec_tty: false,
            exec_stdin: false,
            signals: Vec::new(),
            after: Vec::new(),
            once: false,
        }
    }
}

impl PodTemplate {
    /// The policy's text.
    ///
    /// # Errors
    /// When something in the template is missing, not pinned, or malformed.
    pub fn render(&self) -> Result<String, TemplateError> {
        if self.containers.is_empty() {
            return Err(TemplateError::NoContainers);
        }
        let mut names = BTreeSet::new();
        for container in &self.containers {
            if !names.insert(container.name.as_str()) {
                return Err(TemplateError::Twice { found: container.name.clone() });
            }
        }
        let of_containers = self.containers.iter().flat_map(|container| container.resources.iter().chain(&container.sealed_secrets));
        if let Some(found) = self.resources.iter().chain(&self.sealing_keys).chain(of_containers).find(|path| !is_resource(path)) {
            return Err(TemplateError::Resource { found: found.clone() });
        }
        let mut media = BTreeMap::new();
        for volume in self.containers.iter().flat_map(|container| &container.empty_dirs) {
            if *media.entry(volume.name.as_str()).or_insert(volume.memory) != volume.memory {
                return Err(TemplateError::Medium { found: volume.name.clone() });
            }
        }
        let mut containers = Vec::with_capacity(self.containers.len());
        for container in &self.containers {
            if let Some(found) = container.after.iter().find(|name| **name == container.name || !names.contains(name.as_str())) {
                return Err(TemplateError::After { container: container.name.clone(), found: found.clone() });
            }
            containers.push(container.data()?);
        }
        let data = json!({
            "containers": containers,
            "hostname": self.hostname,
            "resources": self.resources,
            "sealing_keys": self.sealing_keys,
            "token": self.token,
            "evidence": self.evidence,
            "runtime_events": self.runtime_events,
            "diagnostics": self.diagnostics,
            "policy_updates": self.policy_updates,
        });
        let policy = format!("{RULES}policy_data := {data:#}\n");
        // What is handed out has been compiled as the guest will.
        Rules::load(&policy, &Map::new(), Budget::default())?;
        Ok(policy)
    }
}

impl ContainerTemplate {
    fn data(&self) -> Result<serde_json::Value, TemplateError> {
        let container = || self.name.clone();
        if let Some(found) = self.empty_dirs.iter().map(|volume| &volume.name).chain([&self.name]).find(|name| !is_label(name)) {
            return Err(TemplateError::Name { found: found.clone() });
        }
        if !is_pinned(&self.image) {
            return Err(TemplateError::Image { container: container(), found: self.image.clone() });
        }
        if self.args.is_empty() {
            return Err(TemplateError::Args { container: container() });
        }
        if let Some(found) = self.capabilities.iter().chain(&self.ambient_capabilities).find(|name| !is_capability(name)) {
            return Err(TemplateError::Capability { container: container(), found: found.clone() });
        }
        if let Some(found) = self.signals.iter().copied().find(|number| !(1..=31).contains(number)) {
            return Err(TemplateError::Signal { container: container(), found });
        }
        let mut destinations = BTreeSet::new();
        let all = self.mounts.iter().map(|mount| &mount.destination).chain(self.empty_dirs.iter().map(|volume| &volume.destination));
        for destination in all {
            if !is_destination(destination) || !destinations.insert(destination) {
                return Err(TemplateError::Mount { container: container(), found: destination.clone() });
            }
        }
        Ok(json!({
            "name": self.name,
            "image": self.image,
            "args": self.args,
            "env": self.env_data()?,
            "cwd": self.cwd,
            "user": self.user,
            "capabilities": self.capabilities,
            "ambient_capabilities": self.ambient_capabilities,
            "no_new_privileges": self.no_new_privileges,
            "readonly_root": self.readonly_root,
            "tty": self.tty,
            "stdin": self.stdin,
            "logs": self.logs,
            "mounts": self.mounts,
            "empty_dirs": self.empty_dirs,
            "resources": self.resources,
            "sealed_secrets": self.sealed_secrets,
            "service_account": self.service_account,
            "exec": self.exec,
            "exec_tty": self.exec_tty,
            "exec_stdin": self.exec_stdin,
            "signals": self.signals,
            "after": self.after,
            "once": self.once,
        }))
    }

    fn env_data(&self) -> Result<serde_json::Value, TemplateError> {
        let (mut required, mut exact_names, mut patterns) = (Vec::new(), BTreeSet::new(), Vec::new());
        let wrong = |name: &str, problem| TemplateError::Env { container: self.name.clone(), name: name.to_owned(), problem };
        let mut pattern = |shown: &str, name: &str, value: &str| {
            for text in [name, value] {
                if !is_regex(text) {
                    return Err(wrong(shown, "expected a regular expression (no look-around, no back-references)"));
                }
            }
            patterns.push(json!({ "name": anchored(name), "value": anchored(value) }));
            Ok(())
        };
        for rule in &self.env {
            match rule {
                EnvRule::Exact { name, value } => {
                    if !is_env_name(name) || !exact_names.insert(name.clone()) {
                        return Err(wrong(name, "expected a name without `=`, given once"));
                    }
                    required.push(format!("{name}={value}"));
                }
                EnvRule::Pattern { name, pattern: value } => {
                    if !is_env_name(name) {
                        return Err(wrong(name, "expected a name without `=`"));
                    }
                    pattern(name, &escaped(name), value)?;
                }
                EnvRule::NamePattern { name_pattern, pattern: value } => pattern(name_pattern, name_pattern, value)?,
            }
        }
        if !self.env.iter().any(|rule| matches!(rule, EnvRule::Exact { name, .. } | EnvRule::Pattern { name, .. } if name == "PATH")) {
            pattern("PATH", "PATH", &escaped(DEFAULT_PATH))?;
        }
        if self.tty || self.exec_tty {
            pattern("TERM", "TERM", "xterm")?;
        }
        if self.kubernetes_env {
            pattern("HOSTNAME", "HOSTNAME", "[A-Za-z0-9.-]{1,253}")?;
            pattern("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_HOST", "[0-9A-Fa-f.:]{2,45}")?;
            pattern("KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT(_HTTPS)?", "[0-9]{1,5}")?;
            pattern("KUBERNETES_PORT", "KUBERNETES_PORT(_[0-9]{1,5}_TCP)?", r"tcp://[0-9A-Fa-f.:\[\]]{2,47}:[0-9]{1,5}")?;
            pattern("KUBERNETES_PORT", "KUBERNETES_PORT_[0-9]{1,5}_TCP_(PROTO|PORT|ADDR)", "tcp|[0-9]{1,5}|[0-9A-Fa-f.:]{2,45}")?;
        }
        Ok(json!({ "required": required, "exact_names": exact_names, "patterns": patterns }))
    }
}

/// The expression for all of a text and nothing but it.
fn anchored(pattern: &str) -> String {
    format!("^(?:{pattern})$")
}

/// A text as an expression that matches just it.
fn escaped(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | ':' | ' ' | '=' | ',');
    text.chars().flat_map(|c| (!plain(c) && c.is_ascii()).then_some('\\').into_iter().chain([c])).collect()
}

/// Whether the engine takes it, alone and anchored: `a)|(b` would leave the brackets that anchor it.
fn is_regex(pattern: &str) -> bool {
    let valid = |pattern: &str| {
        let query = format!("regex.is_valid({})", json!(pattern));
        regorus::Engine::new().eval_query(query, false).is_ok_and(|results| {
            results.result.first().and_then(|r| r.expressions.first()).is_some_and(|e| e.value == regorus::Value::Bool(true))
        })
    };
    valid(pattern) && valid(&anchored(pattern))
}

/// Names of containers and volumes: no separators of paths or of the policy's state.
fn is_label(name: &str) -> bool {
    let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    (1..=63).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(label)
}

fn is_resource(path: &str) -> bool {
    format!("kbs:///{path}").parse::<crate::guest_config::ResourceUri>().is_ok()
}

fn is_pinned(image: &str) -> bool {
    let hex = |digest: &str| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'/');
    image.len() <= 512
        && image.split_once("@sha256:").is_some_and(|(name, digest)| !name.is_empty() && name.bytes().all(plain) && hex(digest))
}

fn is_capability(name: &str) -> bool {
    name.strip_prefix("CAP_").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
}

fn is_env_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn is_destination(path: &str) -> bool {
    let reserved = |top: &str| path == top || path.starts_with(&format!("{top}/"));
    path.len() <= 4096
        && path.len() > 1
        && path.starts_with('/')
        && path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
        && !["/proc", "/sys", "/dev"].iter().any(|top| reserved(top))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
