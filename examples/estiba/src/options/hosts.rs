//! How a container finds others by their names, and what it is called itself.

use std::net::IpAddr;

use clap::Args;
use estiba_engine::{Dns, ExtraHost};

/// Names.
#[derive(Debug, Args)]
pub(super) struct Hosts {
    /// One more line in /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host)]
    add_host: Vec<ExtraHost>,
    /// Address of a server that it asks for names
    #[arg(long, value_name = "ADDRESS", value_parser = server)]
    dns: Vec<IpAddr>,
    /// Option of resolv.conf(5), such as ndots:2
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Domain in which it looks names up; . is none
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// NIS domain name
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
}

impl Hosts {
    pub(super) fn into_parts(self) -> (Vec<ExtraHost>, Dns, Option<String>) {
        let dns = Dns { servers: self.dns, search: self.dns_search, options: self.dns_option };
        (self.add_host, dns, self.domainname.filter(|name| !name.is_empty()))
    }
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; an address of IPv6 may stand in brackets.
fn host(text: &str) -> Result<ExtraHost, String> {
    let invalid = || "it must be NAME:ADDRESS, such as db:10.0.0.2".to_owned();
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(invalid)?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(invalid());
    }
    if address == "host-gateway" {
        return Err("there is no gateway to the host yet: use --network host".to_owned());
    }
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let address = bare.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
    Ok(ExtraHost { name: name.to_owned(), address })
}

fn server(text: &str) -> Result<IpAddr, String> {
    text.trim().parse().map_err(|_| "it must be an IP address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read() {
        for (text, expected) in [
            ("db:10.0.0.2", Some(("db", "10.0.0.2"))),
            ("db=::1", Some(("db", "::1"))),
            ("db:::1", Some(("db", "::1"))),
            ("db:[::1]", Some(("db", "::1"))),
            ("db", None),
            ("db:x", None),
            (":10.0.0.2", None),
            ("a b:10.0.0.2", None),
            ("gate:host-gateway", None),
        ] {
            let found = host(text).ok().map(|host| (host.name, host.address.to_string()));
            let expected = expected.map(|(name, address)| (name.to_owned(), address.to_owned()));
            assert_eq!(found, expected, "{text}");
        }
    }
}
