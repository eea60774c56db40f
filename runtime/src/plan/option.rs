//! The options of a mount.

use crate::sys::mount::{Depth, attribute};

/// What the options of a mount mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Attributes of the one mount.
    pub(crate) top: Attributes,
    /// Attributes of the mount and all below it.
    pub(crate) recursive: Attributes,
    /// Set if it is a bind.
    pub(crate) bind: Option<Depth>,
    /// `MS_SHARED` and so on, and how deep it goes.
    pub(crate) propagation: Option<(u64, Depth)>,
    /// Whether the owners of files are shown as others, and how deep that goes.
    pub(crate) idmap: Option<Depth>,
    /// Whether a new filesystem starts with what it hides.
    pub(crate) copy_up: bool,
    /// What is for the filesystem.
    pub(crate) data: Vec<(String, Option<String>)>,
}

/// Attributes to set and to clear, as `mount_setattr(2)` has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl Attributes {
    fn set(&mut self, bits: u64) {
        // The kinds of access time exclude each other.
        let mask = if bits & attribute::ATIME != 0 { attribute::ATIME } else { bits };
        self.set = self.set & !mask | bits;
        self.clear = self.clear & !bits | if mask == attribute::ATIME { mask } else { 0 };
    }

    fn clear(&mut self, bits: u64) {
        self.set &= !bits;
        self.clear |= bits;
    }

    /// Whether there is nothing to do.
    pub(crate) fn none(self) -> bool {
        self == Self::default()
    }

    /// The same as flags of `mount(2)`: to set and to clear.
    pub(crate) fn flags(self) -> (u64, u64) {
        let flags = |bits: u64| {
            [
                (attribute::RDONLY, libc::MS_RDONLY),
                (attribute::NOSUID, libc::MS_NOSUID),
                (attribute::NODEV, libc::MS_NODEV),
                (attribute::NOEXEC, libc::MS_NOEXEC),
                (attribute::NOATIME, libc::MS_NOATIME),
                (attribute::STRICTATIME, libc::MS_STRICTATIME),
                (attribute::NODIRATIME, libc::MS_NODIRATIME),
                (attribute::NOSYMFOLLOW, 256),
            ]
            .into_iter()
            .filter(|(attribute, _)| bits & attribute != 0)
            .fold(0, |flags, (_, flag)| flags | flag)
        };
        (flags(self.set), flags(self.clear))
    }
}

/// What became of an option.
enum Meaning {
    Set(u64),
    Clear(u64),
    Propagation(u64),
    Bind(Depth),
    IdMap(Depth),
    CopyUp,
    Data,
    Nothing,
    Refused,
}

/// Sorts the options, or returns the one that is not supported.
pub(crate) fn parse(options: &[String]) -> Result<Options, &str> {
    use Meaning::{Bind, Clear, CopyUp, Data, IdMap, Nothing, Propagation, Refused, Set};
    let mut parsed = Options::default();
    for option in options {
        let attributes = |name: &str| match name {
            "ro" => Set(attribute::RDONLY),
            "rw" => Clear(attribute::RDONLY),
            "nosuid" => Set(attribute::NOSUID),
            "suid" => Clear(attribute::NOSUID),
            "nodev" => Set(attribute::NODEV),
            "dev" => Clear(attribute::NODEV),
            "noexec" => Set(attribute::NOEXEC),
            "exec" => Clear(attribute::NOEXEC),
            "noatime" => Set(attribute::NOATIME),
            "strictatime" => Set(attribute::STRICTATIME),
            "relatime" | "atime" | "nostrictatime" | "norelatime" => Clear(attribute::ATIME),
            "nodiratime" => Set(attribute::NODIRATIME),
            "diratime" => Clear(attribute::NODIRATIME),
            "nosymfollow" => Set(attribute::NOSYMFOLLOW),
            "symfollow" => Clear(attribute::NOSYMFOLLOW),
            _ => Data,
        };
        let meaning = match option.as_str() {
            "bind" => Bind(Depth::Top),
            "rbind" => Bind(Depth::Recursive),
            "shared" | "rshared" => Propagation(libc::MS_SHARED),
            "slave" | "rslave" => Propagation(libc::MS_SLAVE),
            "private" | "rprivate" => Propagation(libc::MS_PRIVATE),
            "unbindable" | "runbindable" => Propagation(libc::MS_UNBINDABLE),
            "defaults" | "async" | "nolazytime" | "nomand" | "loud" | "silent" | "noiversion" | "" => Nothing,
            "idmap" => IdMap(Depth::Top),
            "ridmap" => IdMap(Depth::Recursive),
            "tmpcopyup" => CopyUp,
            "remount" | "iversion" => Refused,
            text if text.starts_with("idmap=") || text.starts_with("ridmap=") => Refused,
            text => attributes(text),
        };
        match meaning {
            Set(bits) => parsed.top.set(bits),
            Clear(bits) => parsed.top.clear(bits),
            Bind(depth) => parsed.bind = Some(depth),
            IdMap(depth) => parsed.idmap = Some(depth),
            CopyUp => parsed.copy_up = true,
            Propagation(kind) => {
                let depth = if option.starts_with('r') { Depth::Recursive } else { Depth::Top };
                parsed.propagation = Some((kind, depth));
            }
            Nothing => {}
            Refused => return Err(option),
            Data => match option.strip_prefix('r').map(attributes) {
                Some(Set(bits)) => parsed.recursive.set(bits),
                Some(Clear(bits)) => parsed.recursive.clear(bits),
                _ => parsed.data.push(match option.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (option.clone(), None),
                }),
            },
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        let list: Vec<String> = text.split(',').map(str::to_owned).collect();
        parse(&list).expect("valid options")
    }

    #[test]
    fn attributes_are_told_from_data() {
        let parsed = options("nosuid,strictatime,mode=755,size=65536k,newinstance");
        assert_eq!(parsed.top.set, attribute::NOSUID | attribute::STRICTATIME);
        assert_eq!(parsed.top.clear, attribute::ATIME);
        let data = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert_eq!(parsed.data, [data("mode", Some("755")), data("size", Some("65536k")), data("newinstance", None)]);
        assert!(parsed.bind.is_none() && parsed.recursive.none());
    }

    #[test]
    fn the_last_one_wins() {
        assert_eq!(options("ro,rw").top, Attributes { set: 0, clear: attribute::RDONLY });
        assert_eq!(options("rw,ro").top, Attributes { set: attribute::RDONLY, clear: 0 });
        let times = options("noatime,strictatime").top;
        assert_eq!((times.set, times.clear), (attribute::STRICTATIME, attribute::ATIME));
        assert_eq!(options("noatime,relatime").top, Attributes { set: 0, clear: attribute::ATIME });
    }

    #[test]
    fn recursive_ones_are_apart() {
        let parsed = options("rbind,rro,rnosuid,rslave,relatime");
        assert_eq!(parsed.bind, Some(Depth::Recursive));
        assert_eq!(parsed.recursive.set, attribute::RDONLY | attribute::NOSUID);
        assert_eq!(parsed.propagation, Some((libc::MS_SLAVE, Depth::Recursive)));
        assert_eq!(parsed.top.set, 0);
        assert_eq!(options("rw").recursive, Attributes::default());
        assert_eq!(options("rrw").recursive.clear, attribute::RDONLY);
        assert_eq!(options("idmap").idmap, Some(Depth::Top));
        assert_eq!(options("ridmap").idmap, Some(Depth::Recursive));
    }

    #[test]
    fn what_is_not_done_is_refused() {
        for option in ["remount", "iversion", "idmap=x", "ridmap=x"] {
            assert_eq!(parse(&[option.to_owned()]), Err(option));
        }
    }

    #[test]
    fn old_flags_say_the_same() {
        assert_eq!(options("ro,nosuid,exec").top.flags(), (libc::MS_RDONLY | libc::MS_NOSUID, libc::MS_NOEXEC));
    }
}
