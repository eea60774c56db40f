//! The options of a container's networks and ports.

use std::net::IpAddr;

use clap::Args;
use estiba_engine::network::{MacAddress, PortMapping};
use estiba_engine::{Connection, CreateRequest, NetworkMode};

use crate::failure::{Failure, Result};
use crate::place::place;

/// Networks and ports.
#[derive(Debug, Args)]
#[command(next_help_heading = None)]
pub(crate) struct NetworkOptions {
    /// none, host, bridge, container:NAME, or a network's name (may be repeated; name=NAME,ip=…,alias=… says more) [default: bridge; of a user: none]
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    pub(super) network: Vec<String>,
    /// Give it one more name in its network
    #[arg(long, visible_alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// Its IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// Its IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<std::net::Ipv6Addr>,
    /// Its hardware address
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<MacAddress>,
    /// Let a port of this machine lead to it (`[ADDRESS:][PORT:]PORT[/tcp|udp|sctp]`, ranges included)
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<PortMapping>,
    /// Let free ports of this machine lead to all ports that the image says it serves
    #[arg(short = 'P', long)]
    publish_all: bool,
}

impl NetworkOptions {
    /// Puts them into a request.
    pub(super) fn fill(self, request: &mut CreateRequest) -> Result<()> {
        let addresses: Vec<IpAddr> = self.ip.map(IpAddr::V4).into_iter().chain(self.ip6.map(IpAddr::V6)).collect();
        let of_a_network = !addresses.is_empty() || self.mac_address.is_some() || !self.network_alias.is_empty();
        let usual = [place().network.to_owned()];
        let networks = if self.network.is_empty() { &usual[..] } else { &self.network };
        for text in networks {
            let connection = connection(text)?;
            let mode = connection.network.parse::<NetworkMode>()?;
            if self.network.len() > 1 && mode != NetworkMode::Connected {
                return Err(Failure::new(format!(
                    "--network {} cannot be combined with other networks: leave one of them away",
                    connection.network
                )));
            }
            if mode == NetworkMode::Connected {
                request.connections.push(connection);
            }
            request.network = mode;
        }
        match request.connections.first_mut() {
            Some(first) => {
                if !addresses.is_empty() {
                    first.addresses = addresses;
                }
                first.mac = self.mac_address.or(first.mac);
                first.aliases.extend(self.network_alias);
            }
            None if of_a_network => {
                return Err(Failure::new(
                    "--ip, --ip6, --mac-address and --network-alias need a network: add --network bridge or another",
                ));
            }
            None => {}
        }
        request.ports = self.publish;
        request.publish_all = self.publish_all;
        Ok(())
    }
}

/// `NAME`, or `name=NAME,ip=ADDRESS,ip6=ADDRESS,mac-address=ADDRESS,alias=NAME`.
fn connection(text: &str) -> Result<Connection> {
    let wrong = |reason: String| Failure::new(format!("invalid argument {text:?} for --network: {reason}"));
    if !text.contains('=') {
        return Ok(Connection::to(text));
    }
    let mut connection = Connection::default();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').ok_or_else(|| wrong(format!("{field:?} is not KEY=VALUE")))?;
        match key {
            "name" => connection.network = Connection::to(value).network,
            "alias" => connection.aliases.push(value.to_owned()),
            "ip" | "ip6" => {
                let address = value.parse().map_err(|_| wrong(format!("{value:?} is not an address")))?;
                connection.addresses.push(address);
            }
            "mac-address" => {
                connection.mac =
                    Some(value.parse().map_err(|_| wrong(format!("{value:?} is not a hardware address")))?);
            }
            _ => return Err(wrong(format!("{key:?} is none of name, alias, ip, ip6 and mac-address"))),
        }
    }
    if connection.network.is_empty() {
        return Err(wrong("name= is missing".to_owned()));
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_forms_of_a_network() {
        assert_eq!(connection("web").expect("read"), Connection::to("web"));
        let long = connection("name=web,ip=10.0.0.2,alias=a,alias=b").expect("read");
        assert_eq!((long.network.as_str(), long.aliases.len(), long.addresses.len()), ("web", 2, 1));
        for wrong in ["ip=10.0.0.2", "name=web,ip=x", "name=web,foo=1", "name=web,x"] {
            assert!(connection(wrong).is_err(), "{wrong}");
        }
    }
}
