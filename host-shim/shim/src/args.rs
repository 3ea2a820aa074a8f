//! The arguments containerd gives, in the form of Go's `flag` package: `-name value`, `-name=value`, one or two dashes, then an action.

use std::ffi::OsString;

/// What containerd asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// Log more.
    pub(crate) debug: bool,
    /// Print the version.
    pub(crate) version: bool,
    /// Describe the runtime.
    pub(crate) info: bool,
    /// Print a help text.
    pub(crate) help: bool,
    /// The container's namespace.
    pub(crate) namespace: String,
    /// The container.
    pub(crate) id: String,
    /// The socket to serve on.
    pub(crate) socket: String,
    /// The bundle, when it is not the working directory.
    pub(crate) bundle: String,
    /// containerd's binary. It was for publishing events; ours go over a socket.
    pub(crate) publish_binary: String,
    /// containerd's own socket.
    pub(crate) address: String,
    /// `start`, `delete`, or nothing for the server.
    pub(crate) action: String,
}

/// Why the arguments make no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    /// Not a flag of a shim.
    #[error("unknown flag {0:?}; see -help")]
    Unknown(String),
    /// A flag at the end that wants a value.
    #[error("flag -{0} needs a value")]
    NoValue(String),
    /// Not text.
    #[error("arguments must be UTF-8")]
    NotUtf8,
}

impl Flags {
    /// Reads the arguments (without the program's name).
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut flags = Self::default();
        let mut arguments = arguments.into_iter().map(|argument| argument.into_string().map_err(|_| ArgsError::NotUtf8));
        while let Some(argument) = arguments.next().transpose()? {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')).filter(|flag| !flag.is_empty()) else {
                flags.action = argument;
                break;
            };
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
            if let Some(switch) = flags.switch(name) {
                *switch = value.is_none_or(|value| matches!(value.as_str(), "1" | "t" | "true"));
                continue;
            }
            let value = match value {
                Some(value) => Some(value),
                None => arguments.next().transpose()?,
            };
            let Some(place) = flags.text(name) else { return Err(ArgsError::Unknown(argument)) };
            *place = value.ok_or_else(|| ArgsError::NoValue(name.to_owned()))?;
        }
        Ok(flags)
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "debug" => Some(&mut self.debug),
            "v" | "version" => Some(&mut self.version),
            "info" => Some(&mut self.info),
            "h" | "help" => Some(&mut self.help),
            _ => None,
        }
    }

    fn text(&mut self, name: &str) -> Option<&mut String> {
        match name {
            "namespace" => Some(&mut self.namespace),
            "id" => Some(&mut self.id),
            "socket" => Some(&mut self.socket),
            "bundle" => Some(&mut self.bundle),
            "address" => Some(&mut self.address),
            "publish-binary" => Some(&mut self.publish_binary),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, ArgsError> {
        Flags::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn reads_what_containerd_gives() {
        let flags =
            parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc -debug -bundle=/b start").unwrap();
        let expected = Flags {
            debug: true,
            namespace: "k8s.io".into(),
            id: "abc".into(),
            bundle: "/b".into(),
            address: "/run/c.sock".into(),
            publish_binary: "/usr/bin/containerd".into(),
            action: "start".into(),
            ..Default::default()
        };
        assert_eq!(flags, expected);
        assert!(parse("--version").unwrap().version && parse("-v").unwrap().version && parse("-info").unwrap().info);
        assert!(!parse("-debug=false").unwrap().debug);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert_eq!(parse("-nonsense x"), Err(ArgsError::Unknown("-nonsense".into())));
        assert_eq!(parse("-id"), Err(ArgsError::NoValue("id".into())));
    }
}
