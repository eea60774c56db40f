//! What a container shares with the host or with another container.

use clap::Args;
use estiba_engine::{IpcMode, Namespace};

/// Whose namespaces it is in, but for the network's.
#[derive(Debug, Args)]
pub(super) struct Sharing {
    /// Where its cgroups begin: private, or host
    #[arg(long, value_name = "MODE", default_value = "private", value_parser = cgroup)]
    cgroupns: Namespace,
    /// Shared memory and message queues: private, none (private, without /dev/shm), or host
    #[arg(long, value_name = "MODE", default_value = "private", value_parser = ipc)]
    ipc: IpcMode,
    /// Whose processes it sees: its own, host, or container:NAME
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true, value_parser = pid)]
    pid: Namespace,
    /// Whose users it has: host is what all containers have
    #[arg(long, value_name = "MODE", value_parser = users, hide = true)]
    userns: Option<String>,
    /// Whose host name it has: its own, or host
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true, value_parser = uts)]
    uts: Namespace,
}

impl Sharing {
    /// The namespaces of processes, host names and cgroups, and the shared memory.
    pub(super) fn into_parts(self) -> (Namespace, Namespace, Namespace, IpcMode) {
        (self.pid, self.uts, self.cgroupns, self.ipc)
    }
}

fn cgroup(text: &str) -> Result<Namespace, String> {
    match text {
        "" | "private" => Ok(Namespace::Own),
        "host" => Ok(Namespace::Host),
        _ => Err("it must be private or host".to_owned()),
    }
}

fn ipc(text: &str) -> Result<IpcMode, String> {
    match text {
        "" | "private" => Ok(IpcMode::Private),
        "none" => Ok(IpcMode::None),
        "host" => Ok(IpcMode::Host),
        "shareable" => Err("shared memory cannot be shared among containers yet: use private, none or host".to_owned()),
        other if other.starts_with("container:") => {
            Err("shared memory cannot be shared among containers yet: use --ipc host for both".to_owned())
        }
        _ => Err("it must be private, none or host".to_owned()),
    }
}

fn pid(text: &str) -> Result<Namespace, String> {
    match text {
        "" => Ok(Namespace::Own),
        "host" => Ok(Namespace::Host),
        other => match other.strip_prefix("container:") {
            Some(name) if !name.is_empty() => Ok(Namespace::Container(name.to_owned())),
            _ => Err("it must be host or container:NAME".to_owned()),
        },
    }
}

fn users(text: &str) -> Result<String, String> {
    match text {
        "" | "host" => Ok(text.to_owned()),
        _ => Err("containers have the host's users: the one mode is host".to_owned()),
    }
}

fn uts(text: &str) -> Result<Namespace, String> {
    match text {
        "" => Ok(Namespace::Own),
        "host" => Ok(Namespace::Host),
        _ => Err("the one mode is host".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_dockers() {
        assert_eq!(pid("container:web"), Ok(Namespace::Container("web".into())));
        assert_eq!(pid("host"), Ok(Namespace::Host));
        assert_eq!(ipc("none"), Ok(IpcMode::None));
        for refused in [pid("container:").is_err(), pid("private").is_err(), uts("container:web").is_err()] {
            assert!(refused);
        }
        assert!(ipc("container:web").expect_err("refused").contains("--ipc host"));
        assert!(users("remap").is_err() && users("host").is_ok() && cgroup("x").is_err());
    }
}
