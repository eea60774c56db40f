//! The files by which a container finds names: `/etc/hosts` and `/etc/resolv.conf`. They are written by whoever has its
//! root; here is what stands in them.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

/// A line of [hosts(5)](https://man7.org/linux/man-pages/man5/hosts.5.html).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The address.
    pub address: IpAddr,
    /// The name, and others for it.
    pub names: Vec<String>,
}

/// The text of `/etc/hosts` with these lines behind those of the loopback interface. A name that would be no name (with
/// spaces, or the sign of a comment) is left out.
#[must_use]
pub fn hosts(lines: &[Host]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                    ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    for Host { address, names } in lines {
        let names: Vec<&str> = names.iter().map(String::as_str).filter(|name| is_word(name)).collect();
        if !names.is_empty() {
            let _ = writeln!(text, "{address}\t{}", names.join(" "));
        }
    }
    text
}

/// What [resolv.conf(5)](https://man7.org/linux/man-pages/man5/resolv.conf.5.html) says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// The servers, in the order in which they are asked. A link-local address may have its interface: `fe80::1%eth0`.
    pub servers: Vec<String>,
    /// The domains that names without a dot are looked for in.
    pub search: Vec<String>,
    /// `ndots:1` and the like.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a file; what it does not know it leaves out, as resolvers do.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => parsed.servers.extend(words.next().map(str::to_owned)),
                // The last of these counts.
                Some("search" | "domain") => {
                    parsed.search = words.filter(|word| *word != ".").map(str::to_owned).collect();
                }
                Some("options") => parsed.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        parsed
    }

    /// The servers that can be asked from this machine, at port 53.
    #[must_use]
    pub fn upstream(&self) -> Vec<SocketAddr> {
        let address = |server: &String| server.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
        self.servers.iter().filter_map(address).collect()
    }

    /// The same for a container that reaches nothing of the host's loopback: without servers there, and without those that
    /// need an interface of the host.
    #[must_use]
    pub fn beyond_loopback(mut self) -> Self {
        self.servers.retain(|server| server.parse::<IpAddr>().is_ok_and(|address| !address.is_loopback()));
        self
    }
}

impl fmt::Display for ResolvConf {
    /// The text of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in self.servers.iter().filter(|server| is_word(server)) {
            writeln!(f, "nameserver {server}")?;
        }
        for (word, list) in [("search", &self.search), ("options", &self.options)] {
            let list: Vec<&str> = list.iter().map(String::as_str).filter(|item| is_word(item)).collect();
            if !list.is_empty() {
                writeln!(f, "{word} {}", list.join(" "))?;
            }
        }
        Ok(())
    }
}

/// Nothing that would be two words, two lines, or a comment.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == '#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let text = "# by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\ndomain old\n\
                    search a.example b.example .\noptions ndots:2 edns0\nsortlist x\n";
        let parsed = ResolvConf::parse(text);
        assert_eq!(parsed.upstream().len(), 2);
        assert_eq!(parsed.search, ["a.example", "b.example"]);
        let outside = parsed.beyond_loopback();
        assert_eq!(outside.to_string(), "nameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:2 edns0\n");
    }

    #[test]
    fn hosts_of_a_hostile_name() {
        let names = ["web", "two words", "line\nbreak", "#comment", ""].map(str::to_owned).to_vec();
        let text = hosts(&[Host { address: IpAddr::from([10, 0, 0, 2]), names }]);
        assert_eq!(text.lines().last(), Some("10.0.0.2\tweb"));
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
    }
}
