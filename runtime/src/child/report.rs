//! What the child tells its parent.

/// A failed system call and the part of the step that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) part: Part,
    pub(crate) errno: i32,
}

impl From<i32> for Failure {
    fn from(errno: i32) -> Self {
        Self { part: Part::Whole, errno }
    }
}

/// The part of a step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    OpenFilesystem,
    Parameter,
    Make,
    Target,
    Attach,
    Attributes,
    Propagation,
    InsideProc,
    OverDev,
    Existing,
    Copy,
    Detach,
    Null,
    Outside,
    Find,
    Interpreter,
    Execute,
    CopyUp,
    Ordinary,
    Source,
    FolderOntoFile,
    FileOntoFolder,
}

const PARTS: [(Part, &str); 23] = [
    (Part::Whole, ""),
    (Part::OpenFilesystem, "open the filesystem"),
    (Part::Parameter, "set an option"),
    (Part::Make, "make the filesystem"),
    (Part::Target, "open or make the target"),
    (Part::Attach, "attach the mount"),
    (Part::Attributes, "set the attributes"),
    (Part::Propagation, "set the propagation"),
    (Part::InsideProc, "the target lies in a proc filesystem"),
    (Part::OverDev, "the target is a link to /dev"),
    (Part::Existing, "something else is there"),
    (Part::Copy, "copy the mount"),
    (Part::Detach, "detach the old root"),
    (Part::Null, "/dev/null is not the null device"),
    (Part::Outside, "the folder lies outside the root"),
    (Part::Find, ""),
    (Part::Interpreter, "cannot rule out that the interpreter is a link into /proc"),
    (Part::Execute, ""),
    (Part::CopyUp, "copy what it hides"),
    (Part::Ordinary, "must be mounted on ordinary directory, which this is not"),
    (Part::Source, "open the source"),
    (Part::FolderOntoFile, "the source is a folder, and the target is a file"),
    (Part::FileOntoFolder, "the source is a file, and the target is a folder"),
];

impl Part {
    /// The part in words.
    pub(crate) fn text(self) -> &'static str {
        PARTS.get(self as usize).map_or("", |(_, text)| text)
    }

    /// Marks a failure as of this part.
    pub(crate) fn of(self) -> impl FnOnce(i32) -> Failure {
        move |errno| Failure { part: self, errno }
    }
}

/// A message of the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// A step failed; nothing follows.
    Failed { step: u32, part: Part, errno: i32 },
    /// Another process, a child of the same parent, goes on.
    Forked { pid: i32 },
    /// The controlling side of the terminal comes with this message.
    Console,
    /// The hooks are to be run.
    Hooks,
    /// The clocks of its time namespace are to be set.
    Clocks,
    /// A socket to the container's network comes with this message, into which devices are to be moved.
    Network,
    /// The descriptor that the filter's loading will give.
    Listener { number: i32 },
    /// All is prepared.
    Ready,
}

/// The length of a message.
pub(crate) const LENGTH: usize = 12;

/// The greatest length of the name that may follow a message: that of an interpreter in a script's first line.
pub(crate) const NAME: usize = 256;

impl Message {
    /// The message as bytes.
    pub(crate) fn encode(self) -> [u8; LENGTH] {
        let (kind, part, number, value) = match self {
            Self::Failed { step, part, errno } => (0, part as u8, step, errno),
            Self::Forked { pid } => (1, 0, 0, pid),
            Self::Console => (2, 0, 0, 0),
            Self::Hooks => (3, 0, 0, 0),
            Self::Ready => (4, 0, 0, 0),
            Self::Clocks => (5, 0, 0, 0),
            Self::Network => (6, 0, 0, 0),
            Self::Listener { number } => (7, 0, 0, number),
        };
        let [n0, n1, n2, n3] = number.to_ne_bytes();
        let [v0, v1, v2, v3] = value.to_ne_bytes();
        [kind, part, 0, 0, n0, n1, n2, n3, v0, v1, v2, v3]
    }

    /// The message from bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let &[kind, part, _, _, n0, n1, n2, n3, v0, v1, v2, v3] = bytes else { return None };
        let number = u32::from_ne_bytes([n0, n1, n2, n3]);
        let value = i32::from_ne_bytes([v0, v1, v2, v3]);
        Some(match kind {
            0 => Self::Failed { step: number, part: PARTS.get(usize::from(part))?.0, errno: value },
            1 => Self::Forked { pid: value },
            2 => Self::Console,
            3 => Self::Hooks,
            4 => Self::Ready,
            5 => Self::Clocks,
            6 => Self::Network,
            7 => Self::Listener { number: value },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        for (part, _) in PARTS {
            let message = Message::Failed { step: 70_000, part, errno: 13 };
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        for message in [
            Message::Forked { pid: 42 },
            Message::Console,
            Message::Hooks,
            Message::Ready,
            Message::Clocks,
            Message::Network,
            Message::Listener { number: 9 },
        ] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
        assert_eq!(Message::decode(&[]), None);
        assert_eq!(Message::decode(&[9; LENGTH]), None);
    }

    /// The table's order is the order of the variants.
    #[test]
    fn parts_find_their_text() {
        for (at, (part, _)) in PARTS.into_iter().enumerate() {
            assert_eq!(part as usize, at);
        }
    }
}
