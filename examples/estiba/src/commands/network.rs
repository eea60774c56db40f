//! `estiba network …`: networks that containers are connected to.

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use estiba_engine::network::ipnet::IpNet;
use estiba_engine::network::{Network as Definition, Subnet};
use estiba_engine::{Connection, DEFAULT_NETWORK, Engine, NetworkRequest};

use super::{confirm, each, tell};
use crate::failure::{Failure, Result};
use crate::filter::{Filters, has_label};
use crate::format::{self, Column, Format};
use crate::template::{Lookup, Record, Value};
use crate::{moment, output, view};

/// Manage networks
#[derive(Debug, Subcommand)]
pub(crate) enum Network {
    Connect(Connect),
    Create(Create),
    Disconnect(Disconnect),
    Inspect(Inspect),
    #[command(visible_alias = "list")]
    Ls(Ls),
    Prune(Prune),
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

/// Connect a container to one more network
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// One more name of the container there
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Its IPv4 address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// Its IPv6 address
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<std::net::Ipv6Addr>,
    /// Name or id
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Make a network
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Anybody may connect containers: as it is anyhow
    #[arg(long)]
    attachable: bool,
    /// bridge, or another driver's name
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// The host's address in a subnet, or the router's
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// No way out and no way in
    #[arg(long)]
    internal: bool,
    /// Give out addresses of this part of a subnet only
    #[arg(long, value_name = "SUBNET")]
    ip_range: Vec<IpNet>,
    /// IPv6 as well: needs a --subnet of it
    #[arg(long)]
    ipv6: bool,
    /// Mark it with a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// An option of the driver
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Addresses, such as 10.5.0.0/24; chosen if none are given
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<IpNet>,
    /// Its name
    #[arg(value_name = "NETWORK")]
    name: String,
}

/// Disconnect a container from a network
#[derive(Debug, Args)]
pub(crate) struct Disconnect {
    /// Do not mind what is not there
    #[arg(short, long)]
    force: bool,
    /// Name or id
    #[arg(value_name = "NETWORK")]
    network: String,
    /// Name or id, or the beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Show all that is known of networks
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// json, or a template for each
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Name or id
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

/// List networks
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only those that fit: dangling=, driver=, id=, label=, name=, scope=, type=
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// table, table TEMPLATE, json, or a template for each
    #[arg(long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    format: String,
    /// Do not cut ids
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

/// Remove the networks that no container is connected to
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Remove networks
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Do not mind those that are not there
    #[arg(short, long)]
    force: bool,
    /// Name or id
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

const TABLE: &str = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";

const COLUMNS: [Column; 8] = [
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("Scope", "SCOPE"),
    ("IPv6", "IPV6"),
    ("Internal", "INTERNAL"),
    ("Labels", "LABELS"),
    ("CreatedAt", "CREATED AT"),
];

impl Network {
    pub(crate) async fn execute(self, engine: &Engine) -> Result<u8> {
        match self {
            Self::Connect(command) => command.execute(engine).await,
            Self::Create(command) => command.execute(engine).await,
            Self::Disconnect(command) => command.execute(engine).await,
            Self::Inspect(command) => command.execute(engine).await,
            Self::Ls(command) => command.execute(engine).await,
            Self::Prune(command) => command.execute(engine).await,
            Self::Rm(command) => command.execute(engine).await,
        }
    }
}

fn pairs(texts: &[String]) -> BTreeMap<String, String> {
    let pair =
        |text: &String| text.split_once('=').map_or((text.clone(), String::new()), |(k, v)| (k.into(), v.into()));
    texts.iter().map(pair).collect()
}

impl Connect {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let container = engine.container(&self.container).await?;
        let addresses = self.ip.map(IpAddr::V4).into_iter().chain(self.ip6.map(IpAddr::V6)).collect();
        let connection = Connection { addresses, aliases: self.alias, ..Connection::default() };
        container.connect(&self.network, connection).await?;
        Ok(0)
    }
}

impl Disconnect {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let disconnect = async { Ok(engine.container(&self.container).await?.disconnect(&self.network).await?) };
        match disconnect.await {
            Err(error) if !self.force => Err(error),
            _ => Ok(0),
        }
    }
}

impl Create {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let mut subnets: Vec<Subnet> = self.subnet.iter().copied().map(Subnet::new).collect();
        if self.ipv6 && !self.subnet.iter().any(|subnet| subnet.addr().is_ipv6()) {
            return Err(Failure::new("--ipv6 needs a --subnet of IPv6, such as fd00:5::/64"));
        }
        let outside = |what: &str, value: &dyn std::fmt::Display| {
            Failure::new(format!("no matching subnet for {what} {value}: give it with --subnet"))
        };
        for gateway in &self.gateway {
            let subnet = subnets.iter_mut().find(|subnet| subnet.subnet.contains(gateway));
            subnet.ok_or_else(|| outside("gateway", gateway))?.gateway = Some(*gateway);
        }
        for range in &self.ip_range {
            let subnet = subnets.iter_mut().find(|subnet| subnet.subnet.contains(range));
            let subnet = subnet.ok_or_else(|| outside("range", range))?;
            let part = Subnet::new(*range);
            (subnet.first, subnet.last) = (Some(part.first()), Some(part.last()));
        }
        let request = NetworkRequest {
            name: self.name,
            driver: Some(self.driver),
            subnets,
            internal: self.internal,
            options: pairs(&self.opt),
            labels: pairs(&self.label),
        };
        let network = engine.create_network(request).await?;
        output::print(&format!("{}\n", network.id))
    }
}

/// The networks that are there without anybody's doing.
fn standing() -> [Definition; 2] {
    let standing = |name: &str, driver: &str| Definition { driver: driver.to_owned(), ..Definition::named(name) };
    [standing("host", "host"), standing("none", "null")]
}

impl Inspect {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let containers = engine.containers().await?;
        let (mut objects, mut missing) = (Vec::new(), Vec::new());
        for name in &self.names {
            let found = match engine.network(name).await {
                Ok(network) => Ok((moment::rfc3339(engine.network_created(&network).await?), network)),
                Err(error) => match standing().into_iter().find(|network| network.name == *name) {
                    Some(network) => Ok((String::new(), network)),
                    None => Err(error),
                },
            };
            match found {
                Ok((created, network)) => objects.push(view::network::inspect(&network, &created, &containers)),
                Err(error) => missing.push(Failure::from(error)),
            }
        }
        let status = output::print(&format::inspect(self.format.as_deref(), objects)?)?;
        missing.iter().for_each(tell);
        Ok(if missing.is_empty() { status } else { 1 })
    }
}

fn row(network: &Definition, no_trunc: bool) -> Value {
    let id = if no_trunc { network.id.clone() } else { network.id.chars().take(12).collect() };
    let labels: Vec<String> = network.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Record::row("network.networkContext")
        .with("Driver", &network.driver)
        .with("ID", id)
        .with("IPv4", network.subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv4()).to_string())
        .with("IPv6", network.subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv6()).to_string())
        .with("Internal", network.internal.to_string())
        .hidden("Label", Lookup::Entries(network.labels.clone()))
        .with("Labels", labels.join(","))
        .with("Name", &network.name)
        .with("Scope", "local")
        .into()
}

impl Ls {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let known = ["dangling", "driver", "id", "label", "name", "scope", "type"];
        let filters = Filters::parse(&self.filter, &known)?;
        let dangling = filters.flag("dangling")?;
        let containers = engine.containers().await?;
        let in_use = |name: &str| {
            containers.iter().any(|summary| summary.record.request.connections.iter().any(|c| c.network == name))
        };
        let mut networks = engine.networks().await?;
        networks.extend(standing());
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        networks.retain(|network| {
            let own = !matches!(network.name.as_str(), "none" | "host" | DEFAULT_NETWORK);
            filters.any("name", |wanted| network.name.contains(wanted))
                && filters.any("id", |wanted| network.id.contains(wanted))
                && filters.any("driver", |wanted| network.driver == wanted)
                && filters.any("scope", |wanted| wanted == "local")
                && filters.any("type", |wanted| wanted == if own { "custom" } else { "builtin" })
                && filters.values("label").iter().all(|wanted| has_label(wanted, &network.labels))
                && dangling.is_none_or(|dangling| own && in_use(&network.name) != dangling)
        });
        if self.quiet {
            let shown = |id: &str| if self.no_trunc { id.to_owned() } else { id.chars().take(12).collect() };
            return output::print(&output::lines(networks.iter().map(|network| shown(&network.id))));
        }
        let rows: Vec<Value> = networks.iter().map(|network| row(network, self.no_trunc)).collect();
        output::print(&Format::parse(&self.format, TABLE).print(&COLUMNS, &rows)?)
    }
}

impl Prune {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let warning = "WARNING! This will remove all custom networks not used by at least one container.";
        if !self.force && !confirm(warning)? {
            return Ok(0);
        }
        let names = engine.prune_networks().await?;
        if names.is_empty() {
            return Ok(0);
        }
        output::print(&format!("Deleted Networks:\n{}\n", output::lines(names)))
    }
}

impl Rm {
    async fn execute(self, engine: &Engine) -> Result<u8> {
        let remove = async |name: &str| -> Result<()> {
            if matches!(name, "none" | "host" | DEFAULT_NETWORK) {
                return Err(Failure::new(format!("{name} is a pre-defined network and cannot be removed")));
            }
            if self.force && engine.network(name).await.is_err() {
                return Ok(());
            }
            engine.remove_network(name).await?;
            Ok(())
        };
        each(&self.names, remove).await
    }
}
