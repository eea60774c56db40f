//! Networks, and a container's places in them, as Docker shows them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use estiba_engine::network::ipnet::IpNet;
use estiba_engine::network::{Endpoint, Network, PortMapping};
use estiba_engine::{Connection, NetworkMode, Record as Container, Summary};

use crate::template::{Record, Value};

/// How a container's network is called.
pub(crate) fn mode(record: &Container) -> String {
    match &record.request.network {
        NetworkMode::Container(id) => format!("container:{id}"),
        _ => names(record).into_iter().next().unwrap_or_default(),
    }
}

/// The names of all networks of a container.
pub(crate) fn names(record: &Container) -> Vec<String> {
    match record.request.network {
        NetworkMode::None => vec!["none".to_owned()],
        NetworkMode::Host => vec!["host".to_owned()],
        // It is in those of the other one.
        NetworkMode::Container(_) => Vec::new(),
        NetworkMode::Connected => {
            record.request.connections.iter().map(|connection| connection.network.clone()).collect()
        }
    }
}

/// Each port of a container that is published: `80/tcp`, and where on the host.
pub(crate) fn published(record: &Container) -> Vec<(String, Vec<(String, u16)>)> {
    let mut ports: BTreeMap<(u16, String), Vec<(String, u16)>> = BTreeMap::new();
    let mappings = endpoints(record).flat_map(|endpoint| endpoint.ports.iter().map(move |mapping| (endpoint, mapping)));
    for (endpoint, mapping) in mappings {
        for offset in 0..mapping.count {
            let key = (mapping.container_port + offset, mapping.protocol.to_string());
            let hosts = ports.entry(key).or_default();
            for address in addresses(endpoint, mapping) {
                hosts.push((address, mapping.host_port + offset));
            }
        }
    }
    ports.into_iter().map(|((port, protocol), hosts)| (format!("{port}/{protocol}"), hosts)).collect()
}

/// The host's addresses that a mapping is at: all of the families that the container has an address of.
fn addresses(endpoint: &Endpoint, mapping: &PortMapping) -> Vec<String> {
    let all = [("0.0.0.0", v4 as fn(&IpNet) -> bool), ("::", v6)];
    if let Some(address) = mapping.host_address {
        return vec![address.to_string()];
    }
    let has = |wanted: fn(&IpNet) -> bool| endpoint.addresses.iter().any(wanted);
    all.into_iter().filter(|(_, wanted)| has(*wanted)).map(|(address, _)| address.to_owned()).collect()
}

fn endpoints(record: &Container) -> impl Iterator<Item = &Endpoint> {
    record.request.connections.iter().filter_map(|connection| connection.endpoint.as_ref())
}

/// The column of `ps`: `0.0.0.0:8080->80/tcp, [::]:8080->80/tcp`.
pub(crate) fn ports(summary: &Summary) -> String {
    if !summary.status.is_running() {
        return String::new();
    }
    let shown = |address: &str| if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let published = published(&summary.record);
    let lines = published.iter().flat_map(|(port, hosts)| {
        hosts.iter().map(move |(address, number)| format!("{}:{number}->{port}", shown(address)))
    });
    lines.collect::<Vec<_>>().join(", ")
}

/// `PortBindings` of the host configuration: what was asked for.
pub(crate) fn bindings(record: &Container) -> Value {
    let mut bindings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for mapping in &record.request.ports {
        for offset in 0..mapping.count {
            let host = if mapping.host_port == 0 { String::new() } else { (mapping.host_port + offset).to_string() };
            let address = mapping.host_address.map(|address| address.to_string()).unwrap_or_default();
            let key = format!("{}/{}", mapping.container_port + offset, mapping.protocol);
            bindings.entry(key).or_default().push(binding(address, host));
        }
    }
    Value::map(bindings.into_iter().map(|(port, hosts)| (port, Value::list(hosts))))
}

fn binding(address: String, port: String) -> Value {
    Record::new("nat.PortBinding").with("HostIp", address).with("HostPort", port).into()
}

fn first(addresses: &[IpNet], wanted: fn(&IpNet) -> bool) -> (String, u8) {
    addresses
        .iter()
        .find(|address| wanted(address))
        .map(|address| (address.addr().to_string(), address.prefix_len()))
        .unwrap_or_default()
}

fn v4(address: &IpNet) -> bool {
    address.addr().is_ipv4()
}

fn v6(address: &IpNet) -> bool {
    address.addr().is_ipv6()
}

fn gateway(endpoint: &Endpoint, wanted: fn(&IpAddr) -> bool) -> String {
    endpoint.gateways.iter().find(|gateway| wanted(gateway)).map(ToString::to_string).unwrap_or_default()
}

/// `NetworkSettings` of `inspect`. `running`: only then has it addresses.
pub(crate) fn settings(record: &Container, running: bool) -> Record {
    let of = |endpoint: Option<&Endpoint>| endpoint.filter(|_| running).cloned().unwrap_or_default();
    let one = |connection: Option<&Connection>| {
        let endpoint = of(connection.and_then(|connection| connection.endpoint.as_ref()));
        let (address, length) = first(&endpoint.addresses, v4);
        let (address6, length6) = first(&endpoint.addresses, v6);
        let aliases = connection.map(|connection| connection.aliases.clone()).unwrap_or_default();
        let names: Vec<String> = match connection {
            Some(_) => {
                [record.name.to_string(), record.id.short().to_owned()].into_iter().chain(aliases.clone()).collect()
            }
            None => Vec::new(),
        };
        Record::new("network.EndpointSettings")
            .with("IPAMConfig", Value::Nil)
            .with("Links", Value::nil_list())
            .with("Aliases", Value::list_or_nil(aliases))
            .with("MacAddress", endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default())
            .with("DriverOpts", Value::nil_map())
            .with("GwPriority", 0)
            .with("NetworkID", "")
            .with("EndpointID", endpoint.host_interface.clone().unwrap_or_default())
            .with("Gateway", gateway(&endpoint, IpAddr::is_ipv4))
            .with("IPAddress", address)
            .with("IPPrefixLen", length)
            .with("IPv6Gateway", gateway(&endpoint, IpAddr::is_ipv6))
            .with("GlobalIPv6Address", address6)
            .with("GlobalIPv6PrefixLen", length6)
            .with("DNSNames", Value::list_or_nil(names))
    };
    let ports: Vec<(String, Value)> = if running {
        let list = |hosts: Vec<(String, u16)>| {
            Value::list(hosts.into_iter().map(|(address, port)| binding(address, port.to_string())))
        };
        published(record).into_iter().map(|(port, hosts)| (port, list(hosts))).collect()
    } else {
        Vec::new()
    };
    // The fields of the default network stand outside once more.
    let default = record.request.connections.iter().find(|connection| connection.network == "bridge");
    let outer = of(default.and_then(|connection| connection.endpoint.as_ref()));
    let (address, length) = first(&outer.addresses, v4);
    let (address6, length6) = first(&outer.addresses, v6);
    let networks: Vec<(String, Value)> = if record.request.network == NetworkMode::Connected {
        let place = |connection: &Connection| (connection.network.clone(), one(Some(connection)).into());
        record.request.connections.iter().map(place).collect()
    } else {
        names(record).into_iter().map(|name| (name, one(None).into())).collect()
    };
    Record::new("container.NetworkSettings")
        .with("Bridge", "")
        .with("SandboxID", "")
        .with("SandboxKey", if running { format!("/proc/{}/ns/net", record.pid) } else { String::new() })
        .with("Ports", Value::map(ports))
        .with("HairpinMode", false)
        .with("LinkLocalIPv6Address", "")
        .with("LinkLocalIPv6PrefixLen", 0)
        .with("SecondaryIPAddresses", Value::nil_list())
        .with("SecondaryIPv6Addresses", Value::nil_list())
        .with("EndpointID", outer.host_interface.clone().unwrap_or_default())
        .with("Gateway", gateway(&outer, IpAddr::is_ipv4))
        .with("GlobalIPv6Address", address6)
        .with("GlobalIPv6PrefixLen", length6)
        .with("IPAddress", address)
        .with("IPPrefixLen", length)
        .with("IPv6Gateway", gateway(&outer, IpAddr::is_ipv6))
        .with("MacAddress", outer.mac.map(|mac| mac.to_string()).unwrap_or_default())
        .with("Networks", Value::map(networks))
}

/// What `network inspect` shows. `containers`: all that are connected and run.
pub(crate) fn inspect(network: &Network, created: &str, containers: &[Summary]) -> Value {
    let configurations = network.subnets.iter().map(|subnet| {
        Record::new("network.IPAMConfig")
            .with("Subnet", subnet.subnet.to_string())
            .with_some("IPRange", Value::Nil)
            .with_some("Gateway", subnet.gateway.map(|gateway| gateway.to_string()))
    });
    let inside = containers.iter().filter_map(|summary| {
        let record = &summary.record;
        let connection = record.request.connections.iter().find(|connection| connection.network == network.name)?;
        let endpoint = connection.endpoint.as_ref().filter(|_| summary.status.is_running())?;
        let written = |wanted: fn(&IpNet) -> bool| {
            endpoint.addresses.iter().find(|address| wanted(address)).map(ToString::to_string).unwrap_or_default()
        };
        let shown = Record::new("network.EndpointResource")
            .with("Name", record.name.to_string())
            .with("EndpointID", endpoint.host_interface.clone().unwrap_or_default())
            .with("MacAddress", endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default())
            .with("IPv4Address", written(v4))
            .with("IPv6Address", written(v6));
        Some((record.id.to_string(), shown.into()))
    });
    Record::new("network.Inspect")
        .with("Name", &network.name)
        .with("Id", &network.id)
        .with("Created", created.to_owned())
        .with("Scope", "local")
        .with("Driver", &network.driver)
        .with("EnableIPv4", network.subnets.iter().any(|subnet| v4(&subnet.subnet)))
        .with("EnableIPv6", network.subnets.iter().any(|subnet| v6(&subnet.subnet)))
        .with(
            "IPAM",
            Record::new("network.IPAM")
                .with("Driver", "default")
                .with("Options", Value::nil_map())
                .with("Config", Value::list(configurations)),
        )
        .with("Internal", network.internal)
        .with("Attachable", false)
        .with("Ingress", false)
        .with("ConfigFrom", Record::new("network.ConfigReference").with("Network", ""))
        .with("ConfigOnly", false)
        .with("Containers", Value::map(inside))
        .with("Options", Value::from(&network.options))
        .with("Labels", Value::from(&network.labels))
        .into()
}
