//! The arguments of `serve`.

use std::ffi::OsString;
use std::path::PathBuf;

use estiba_runtime::ContainerId;

use crate::error::{Error, Result};

/// What a shim is told when it is started: `serve --id ID [--exit-file PATH] [--cgroup-root PATH] [--socket PATH]
/// [--events ADDRESS --namespace NAME] [-- COMMAND…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// The container.
    pub(crate) id: ContainerId,
    /// Where the exit record is written.
    pub(crate) exit_file: Option<PathBuf>,
    /// Where the cgroup hierarchies are, if not where the system says.
    pub(crate) cgroup_root: Option<PathBuf>,
    /// Where its socket is, if not in its folder.
    pub(crate) socket: Option<PathBuf>,
    /// Where containerd takes events. With it the shim lives until it is told to end.
    pub(crate) events: Option<PathBuf>,
    /// containerd's namespace.
    pub(crate) namespace: Option<String>,
    /// What the shim becomes once its container is gone and nobody is connected.
    pub(crate) exit_command: Vec<OsString>,
}

impl Arguments {
    /// Reads the arguments that follow the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let refuse =
            |reason, argument: OsString| Error::Argument { reason, argument: argument.to_string_lossy().into_owned() };
        let mut arguments = arguments.into_iter();
        match arguments.next() {
            Some(verb) if verb == "serve" => {}
            verb => return Err(refuse("expected `serve`", verb.unwrap_or_default())),
        }
        let (mut id, mut exit_file, mut cgroup_root) = (None, None, None);
        let (mut socket, mut events, mut namespace) = (None, None, None);
        while let Some(name) = arguments.next() {
            if name == "--" {
                break;
            }
            let mut value = || arguments.next().ok_or_else(|| refuse("its value is missing", name.clone()));
            match name.to_str() {
                Some("--id") => {
                    let text = value()?;
                    let parsed = text.to_str().and_then(|text| text.parse().ok());
                    id = Some(parsed.ok_or_else(|| refuse("not a container's id", text))?);
                }
                Some("--exit-file") => exit_file = Some(PathBuf::from(value()?)),
                Some("--cgroup-root") => cgroup_root = Some(PathBuf::from(value()?)),
                Some("--socket") => socket = Some(PathBuf::from(value()?)),
                Some("--events") => events = Some(PathBuf::from(value()?)),
                Some("--namespace") => {
                    namespace = Some(value()?.into_string().map_err(|text| refuse("not a namespace", text))?);
                }
                _ => return Err(refuse("unknown", name)),
            }
        }
        let id = id.ok_or_else(|| refuse("missing", "--id".into()))?;
        Ok(Self { id, exit_file, cgroup_root, socket, events, namespace, exit_command: arguments.collect() })
    }

    /// The arguments as [`parse`](Self::parse) reads them.
    pub(crate) fn to_vec(&self) -> Vec<OsString> {
        let mut list: Vec<OsString> = vec!["serve".into(), "--id".into(), self.id.as_str().into()];
        for (name, value) in [
            ("--exit-file", &self.exit_file),
            ("--cgroup-root", &self.cgroup_root),
            ("--socket", &self.socket),
            ("--events", &self.events),
        ] {
            if let Some(value) = value {
                list.extend([name.into(), value.into()]);
            }
        }
        if let Some(namespace) = &self.namespace {
            list.extend(["--namespace".into(), namespace.into()]);
        }
        if !self.exit_command.is_empty() {
            list.push("--".into());
            list.extend_from_slice(&self.exit_command);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments> {
        Arguments::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn what_is_written_is_read() {
        let full = Arguments {
            id: "c1".parse().expect("id"),
            exit_file: Some("/x/exit.json".into()),
            cgroup_root: Some("/cg".into()),
            socket: Some("/s/1".into()),
            events: Some("/e.sock".into()),
            namespace: Some("default".into()),
            exit_command: vec!["/bin/estiba".into(), "--".into(), "cleanup".into()],
        };
        let bare = Arguments {
            exit_file: None,
            cgroup_root: None,
            socket: None,
            events: None,
            namespace: None,
            exit_command: Vec::new(),
            ..full.clone()
        };
        for arguments in [full, bare] {
            assert_eq!(Arguments::parse(arguments.to_vec()).expect("parses"), arguments);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cases: [(&[&str], &str); 7] = [
            (&[], "expected `serve`"),
            (&["run"], "\"run\""),
            (&["serve"], "missing: \"--id\""),
            (&["serve", "--id"], "value is missing: \"--id\""),
            (&["serve", "--id", "a/b"], "\"a/b\""),
            (&["serve", "--id", "a", "--exit-fil", "x"], "unknown: \"--exit-fil\""),
            (&["serve", "--", "--id", "a"], "missing: \"--id\""),
        ];
        for (words, expected) in cases {
            let error = parse(words).expect_err("refused").to_string();
            assert!(error.contains(expected), "{words:?}: {error}");
        }
    }
}
