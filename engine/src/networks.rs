//! Networks that containers are connected to: their definitions in `ROOT/networks`, a file each, and who drives them.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use estiba_network::ports::{self, Held};
use estiba_network::{
    Attachment, Bridge, Driver, Endpoint, MacAddress, Network, Nftables, PortMapping, Sandbox, Subnet, Sweep,
};
use estiba_runtime::rootless::{self, Ids};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::container::Container;
use crate::engine::{Engine, Inner};
use crate::error::{Error, Result};
use crate::folder::{self, Durability, FolderLock};
use crate::identity::Id;
use crate::journal::{Event, Kind};
use crate::record::Record;
use crate::request::{CreateRequest, NetworkMode};

/// The network of containers that ask for none by name. It is defined by the first of them.
pub const DEFAULT_NETWORK: &str = "bridge";

/// What is no network's name, since it says something else as a network of a container.
const RESERVED: [&str; 5] = ["none", "host", "default", "container", DEFAULT_NETWORK];

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Connection {
    /// The network's name.
    pub network: String,
    /// The interface's name inside; the first one that is free if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// Addresses that it must have: one of IPv4 and one of IPv6 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// More names that it has in the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// What it has there: written when it is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
}

impl Connection {
    /// A place in the network of that name, wherever there is one.
    #[must_use]
    pub fn to(network: &str) -> Self {
        let network = if network == "default" { DEFAULT_NETWORK } else { network };
        Self { network: network.to_owned(), ..Self::default() }
    }
}

/// A network to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkRequest {
    /// Its name.
    pub name: String,
    /// The driver; `bridge` if it is not said.
    pub driver: Option<String>,
    /// Where addresses come from; the driver chooses if there are none.
    pub subnets: Vec<Subnet>,
    /// No way out and no way in.
    pub internal: bool,
    /// The driver's options, Docker's names for a bridge's among them.
    pub options: BTreeMap<String, String>,
    /// Marks of the user's own.
    pub labels: BTreeMap<String, String>,
}

impl Engine {
    /// Defines a network. Nothing of it is there before a container is connected.
    ///
    /// # Errors
    ///
    /// [`Error::NetworkExists`], [`Error::NetworkDriver`], and what the driver has against it.
    pub async fn create_network(&self, request: NetworkRequest) -> Result<Network> {
        self.blocking(move |inner| inner.create_network(request)).await
    }

    /// All networks that are defined, by name.
    pub async fn networks(&self) -> Result<Vec<Network>> {
        self.blocking(Inner::list_networks).await
    }

    /// A network, by name, id or the beginning of an id.
    pub async fn network(&self, name: &str) -> Result<Network> {
        let name = name.to_owned();
        self.blocking(move |inner| inner.find_network(&name)).await
    }

    /// When a network was defined.
    pub async fn network_created(&self, network: &Network) -> Result<std::time::SystemTime> {
        let path = self.inner.definition(&network.id);
        self.blocking(move |_| {
            let changed = fs::metadata(&path).map_err(Error::io("look at", &path))?.mtime();
            Ok(std::time::UNIX_EPOCH + std::time::Duration::from_secs(changed.unsigned_abs()))
        })
        .await
    }

    /// Removes a network.
    ///
    /// # Errors
    ///
    /// [`Error::NetworkInUse`] if a container is connected, whether it runs or not.
    pub async fn remove_network(&self, name: &str) -> Result<Network> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            let _lock = FolderLock::wait(&inner.networks_folder()?)?;
            let network = inner.find_network(&name)?;
            if let Some(id) = inner.users_of_network(&network.name)?.into_iter().next() {
                return Err(Error::NetworkInUse { name: network.name, id });
            }
            inner.remove_network(&network)?;
            Ok(network)
        })
        .await
    }

    /// Removes the networks that no container is connected to. Returns their names.
    pub async fn prune_networks(&self) -> Result<Vec<String>> {
        self.blocking(move |inner| {
            let _lock = FolderLock::wait(&inner.networks_folder()?)?;
            let mut names = Vec::new();
            for network in inner.list_networks()? {
                if network.name != DEFAULT_NETWORK && inner.users_of_network(&network.name)?.is_empty() {
                    inner.remove_network(&network)?;
                    names.push(network.name);
                }
            }
            Ok(names)
        })
        .await
    }
}

impl Container {
    /// Connects it to one more network, now if it runs, and at every start.
    ///
    /// # Errors
    ///
    /// [`Error::Connected`] if it is.
    pub async fn connect(&self, network: &str, connection: Connection) -> Result<()> {
        let name = network.to_owned();
        self.with(move |inner, id| {
            let id = id.clone();
            let (_lock, mut record) = inner.lock(&id)?;
            let network = inner.network_called(&name)?;
            if record.request.network != NetworkMode::Connected {
                return Err(Error::Unconnectable { id });
            }
            if record.request.connections.iter().any(|connection| connection.network == network.name) {
                return Err(Error::Connected { id, network: network.name });
            }
            let mut connection = Connection { network: network.name.clone(), ..connection };
            connection.interface = free_interface(&record.request.connections);
            let running = inner.records.status(&record)?.is_running();
            // On record first: whoever undoes the container looks there for what is to be undone.
            record.request.connections.push(connection.clone());
            inner.records.write(&record)?;
            if running {
                let attached = inner.attach_one(&record, &connection);
                match (&attached, record.request.connections.last_mut()) {
                    (Ok(endpoint), Some(last)) => last.endpoint = Some(endpoint.clone()),
                    _ => drop(record.request.connections.pop()),
                }
                inner.records.write(&record)?;
                attached?;
            }
            inner.tell(&[told("connect", &network).with("container", &id)]);
            Ok(())
        })
        .await
    }

    /// Disconnects it from a network.
    ///
    /// # Errors
    ///
    /// [`Error::NotConnected`] if it is not.
    pub async fn disconnect(&self, network: &str) -> Result<()> {
        let name = network.to_owned();
        self.with(move |inner, id| {
            let id = id.clone();
            let (_lock, mut record) = inner.lock(&id)?;
            let network = inner.network_called(&name)?;
            let connections = &mut record.request.connections;
            let Some(at) = connections.iter().position(|connection| connection.network == network.name) else {
                return Err(Error::NotConnected { id, network: network.name });
            };
            let connection = connections.remove(at);
            let sandbox = if inner.records.status(&record)?.is_running() { Some(sandbox_of(&record)?) } else { None };
            let attachment = attachment_of(&record, &connection);
            let detached = inner.driver(&network)?.detach(&network, sandbox.as_ref(), &attachment);
            detached.map_err(failed(&id))?;
            inner.records.write(&record)?;
            inner.tell(&[told("disconnect", &network).with("container", &id)]);
            Ok(())
        })
        .await
    }
}

impl Inner {
    /// `ROOT/networks`, which is made.
    fn networks_folder(&self) -> Result<PathBuf> {
        let folder = self.config.root.join("networks");
        folder::make(&folder)?;
        Ok(folder)
    }

    fn definition(&self, id: &str) -> PathBuf {
        self.config.root.join("networks").join(definition_name(id))
    }

    fn list_networks(&self) -> Result<Vec<Network>> {
        let folder = self.config.root.join("networks");
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", &folder))?,
        };
        let mut networks = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match read_definition(&path) {
                    Ok(network) => networks.extend(network),
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "a network is passed over");
                    }
                }
            }
        }
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(networks)
    }

    /// A network that is defined.
    fn find_network(&self, name: &str) -> Result<Network> {
        let mut networks = self.list_networks()?;
        if let Some(at) = networks.iter().position(|network| network.name == name || network.id == name) {
            return Ok(networks.swap_remove(at));
        }
        networks.retain(|network| !name.is_empty() && network.id.starts_with(name));
        match networks.len() {
            1 => Ok(networks.swap_remove(0)),
            0 => Err(Error::NoNetwork { name: name.to_owned() }),
            count => Err(Error::AmbiguousNetwork { name: name.to_owned(), count }),
        }
    }

    /// The same; the default one is defined if it is not.
    fn network_called(&self, name: &str) -> Result<Network> {
        match self.find_network(name) {
            Err(Error::NoNetwork { .. }) if name == DEFAULT_NETWORK => {
                let _lock = FolderLock::wait(&self.networks_folder()?)?;
                match self.find_network(name) {
                    Err(Error::NoNetwork { .. }) => {
                        let request = NetworkRequest { name: name.to_owned(), ..NetworkRequest::default() };
                        self.define(request)
                    }
                    found => found,
                }
            }
            found => found,
        }
    }

    fn create_network(&self, request: NetworkRequest) -> Result<Network> {
        if RESERVED.contains(&request.name.as_str()) {
            let reason = "containers say something else by it";
            return Err(Error::Request { field: "the network's name", value: request.name, reason });
        }
        let _lock = FolderLock::wait(&self.networks_folder()?)?;
        if let Ok(network) = self.find_network(&request.name)
            && network.name == request.name
        {
            return Err(Error::NetworkExists { name: request.name });
        }
        let network = self.define(request)?;
        self.tell(&[told("create", &network)]);
        Ok(network)
    }

    /// Writes a definition. The caller has the folder's lock.
    fn define(&self, request: NetworkRequest) -> Result<Network> {
        let mut network = Network {
            name: request.name.clone(),
            id: Id::random()?.to_string(),
            driver: request.driver.unwrap_or_else(|| "bridge".to_owned()),
            subnets: request.subnets,
            internal: request.internal,
            options: request.options,
            labels: request.labels,
            ..Network::default()
        };
        take_options(&mut network)?;
        let failed = |source| Error::NetworkDefinition { name: request.name.clone(), source: Box::new(source) };
        let network = self.driver(&network)?.create(network, &self.list_networks()?).map_err(failed)?;
        let bytes = serde_json::to_vec(&network)
            .map_err(|source| Error::Damaged { path: self.definition(&network.id), source: source.into() })?;
        folder::replace(&self.networks_folder()?, &definition_name(&network.id), &bytes, Durability::Synced)?;
        Ok(network)
    }

    fn remove_network(&self, network: &Network) -> Result<()> {
        let failed = |source| Error::NetworkDefinition { name: network.name.clone(), source: Box::new(source) };
        self.driver(network)?.delete(network).map_err(failed)?;
        let path = self.definition(&network.id);
        fs::remove_file(&path).map_err(Error::io("remove", path))?;
        self.tell(&[told("destroy", network)]);
        Ok(())
    }

    /// The containers that are connected to a network, or will be when they run.
    fn users_of_network(&self, name: &str) -> Result<Vec<Id>> {
        let mut users = Vec::new();
        for id in self.records.ids()? {
            if let Ok(Some(record)) = self.records.read(&id)
                && record.request.connections.iter().any(|connection| connection.network == name)
            {
                users.push(id);
            }
        }
        Ok(users)
    }

    fn driver(&self, network: &Network) -> Result<Arc<dyn Driver>> {
        self.drivers.get(&network.driver).cloned().ok_or_else(|| Error::NetworkDriver {
            network: network.name.clone(),
            driver: network.driver.clone(),
            known: self.drivers.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Checks the networks that a container wants, and gives each place its interface.
    pub(crate) fn plan_connections(&self, request: &mut CreateRequest) -> Result<()> {
        if request.network != NetworkMode::Connected {
            let refused = |field, value: String| {
                let reason =
                    "a container of the networks none, host and container:NAME has no ports and addresses of its own";
                Err(Error::Request { field, value, reason })
            };
            if let Some(port) = request.ports.first() {
                return refused("the port", port.to_string());
            }
            return match request.connections.first() {
                Some(connection) => refused("the network", connection.network.clone()),
                None => Ok(()),
            };
        }
        if rootless::ids() != Ids::Host {
            // Its other end would be on the host.
            let value = request.connections.first().map_or(DEFAULT_NETWORK, |one| one.network.as_str()).to_owned();
            let reason = "without root there are the networks none and host";
            return Err(Error::Request { field: "the network", value, reason });
        }
        if request.connections.is_empty() {
            request.connections.push(Connection::to(DEFAULT_NETWORK));
        }
        for at in 0..request.connections.len() {
            let network = self.network_called(&request.connections[at].network)?;
            if request.connections[..at].iter().any(|other| other.network == network.name) {
                let (value, reason) = (network.name, "it is named twice");
                return Err(Error::Request { field: "the network", value, reason });
            }
            request.connections[at].network = network.name;
            request.connections[at].endpoint = None;
            request.connections[at].interface = free_interface(&request.connections[..at]);
        }
        Ok(())
    }

    /// Connects a container that is about to be started: `record.request.connections` say afterwards what it has.
    pub(crate) fn attach_networks(&self, record: &mut Record, pid: u32) -> Result<()> {
        record.pid = pid;
        if record.request.network == NetworkMode::Host && rootless::ids() != Ids::Host {
            // Nothing is to be changed there, and a user may not even enter it anew.
            return Ok(());
        }
        let sandbox = sandbox_of(record)?;
        let failed = |source| Error::Network { id: record.id.clone(), source: Box::new(source) };
        let plain = |name: &str, driver: &dyn Driver| {
            let attachment = Attachment { container: record.id.to_string(), ..Attachment::default() };
            driver.attach(&Network::named(name), &sandbox, &attachment).map(drop).map_err(failed)
        };
        match record.request.network {
            NetworkMode::None => return plain("none", &estiba_network::Loopback),
            NetworkMode::Host => return plain("host", &estiba_network::Host),
            // Whoever has made it has connected it.
            NetworkMode::Container(_) => return Ok(()),
            NetworkMode::Connected => {}
        }
        for at in 0..record.request.connections.len() {
            let endpoint = self.attach_one(record, &record.request.connections[at])?;
            record.request.connections[at].endpoint = Some(endpoint);
        }
        self.write_hosts(record)
    }

    fn attach_one(&self, record: &Record, connection: &Connection) -> Result<Endpoint> {
        let network = self.network_called(&connection.network)?;
        let attached =
            self.driver(&network)?.attach(&network, &sandbox_of(record)?, &attachment_of(record, connection));
        attached.map_err(failed(&record.id))
    }

    /// The container's own names, into its `/etc/hosts`: in place, since it is mounted already.
    fn write_hosts(&self, record: &Record) -> Result<()> {
        use std::io::Write;
        let path = self.records.folder(&record.id).join("hosts");
        let short = record.id.short();
        let name = record.request.hostname.as_deref().unwrap_or(short);
        let mut lines = String::new();
        for endpoint in record.request.connections.iter().filter_map(|connection| connection.endpoint.as_ref()) {
            for address in &endpoint.addresses {
                lines.extend([address.addr().to_string().as_str(), "\t", name, "\n"]);
            }
        }
        let file = fs::OpenOptions::new().append(true).open(&path);
        file.and_then(|mut file| file.write_all(lines.as_bytes())).map_err(Error::io("write", path))
    }

    /// Sockets on the published ports of a container that runs, so that no other program listens there in vain.
    pub(crate) fn hold_ports(&self, id: &Id) -> Vec<Held> {
        let Ok(Some(record)) = self.records.read(id) else { return Vec::new() };
        let endpoints = record.request.connections.iter().filter_map(|connection| connection.endpoint.as_ref());
        let held = endpoints.map(|endpoint| ports::hold(None, endpoint));
        held.filter_map(|held| {
            held.inspect_err(|error| {
                tracing::warn!(container = %id, error = error as &dyn std::error::Error, "published ports are not held");
            })
            .ok()
        })
        .collect()
    }

    /// The first time in a boot: what was attached before is gone, and its addresses are free again.
    pub(crate) fn forget_attachments(&self) -> Result<()> {
        for network in self.list_networks()? {
            let alive =
                |container: &str| container.parse::<Id>().is_ok_and(|id| self.records.has_shim(&id).unwrap_or(true));
            let failed = |source| Error::NetworkDefinition { name: network.name.clone(), source: Box::new(source) };
            self.driver(&network)?.repair(&network, &alive).map_err(failed)?;
        }
        Ok(())
    }

    /// Takes a container that does not run off its networks. What is gone already is fine.
    pub(crate) fn detach_networks(&self, record: &Record) -> Result<()> {
        let mut failures = Vec::new();
        for connection in &record.request.connections {
            let network = match self.find_network(&connection.network) {
                // It had nobody connected when it was removed.
                Err(Error::NoNetwork { .. }) => continue,
                network => network?,
            };
            let detached = self.driver(&network)?.detach(&network, None, &attachment_of(record, connection));
            failures.extend(detached.map_err(failed(&record.id)).err());
        }
        Error::all(&record.id, failures)
    }
}

/// The drivers that an engine has by itself.
pub(crate) fn drivers(config: &Config) -> BTreeMap<String, Arc<dyn Driver>> {
    let bridge = Bridge {
        host: None,
        state: config.run.join("networks"),
        leases: config.root.join("networks").join("leases"),
        firewall: Arc::new(Nftables::default()),
        sweep: Sweep::AtOnce,
    };
    BTreeMap::from([("bridge".to_owned(), Arc::new(bridge) as Arc<dyn Driver>)])
}

/// The path of a definition below `ROOT/networks`.
fn definition_name(id: &str) -> String {
    format!("{id}.json")
}

fn read_definition(path: &Path) -> Result<Option<Network>> {
    match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        bytes => {
            let bytes = bytes.map_err(Error::io("read", path))?;
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| Error::Damaged { path: path.to_owned(), source: source.into() })
        }
    }
}

/// Docker's options of a bridge that are fields of a definition.
fn take_options(network: &mut Network) -> Result<()> {
    let refused = |field, value: &str, reason| Err(Error::Request { field, value: value.to_owned(), reason });
    let flag = |value: &str| match value {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    };
    let mut rest = BTreeMap::new();
    for (key, value) in std::mem::take(&mut network.options) {
        let switch = match key.as_str() {
            "com.docker.network.driver.mtu" | "mtu" => {
                network.mtu = match value.parse() {
                    Ok(mtu) => Some(mtu),
                    Err(_) => return refused("the option mtu", &value, "it is a number of bytes"),
                };
                continue;
            }
            "com.docker.network.bridge.name" | "parent" => {
                network.interface = Some(value);
                continue;
            }
            "com.docker.network.bridge.enable_icc" => &mut network.switch,
            "com.docker.network.bridge.enable_ip_masquerade" => &mut network.masquerade,
            _ => {
                rest.insert(key, value);
                continue;
            }
        };
        match flag(&value) {
            Some(wanted) => *switch = wanted,
            None => return refused("the option", &format!("{key}={value}"), "it is true or false"),
        }
    }
    network.options = rest;
    Ok(())
}

/// The first name that no place has: `eth0`, `eth1` …
fn free_interface(connections: &[Connection]) -> String {
    let free = |name: &String| connections.iter().all(|connection| connection.interface != *name);
    (0..=connections.len()).map(|number| format!("eth{number}")).find(free).unwrap_or_default()
}

fn attachment_of(record: &Record, connection: &Connection) -> Attachment {
    // The first network is the way out, and the one of the ports.
    let first = record.request.connections.first().is_none_or(|first| first.network == connection.network);
    let ports: Vec<PortMapping> = if first { record.request.ports.clone() } else { Vec::new() };
    Attachment {
        container: record.id.to_string(),
        interface: connection.interface.clone(),
        addresses: connection.addresses.clone(),
        mac: connection.mac,
        ports,
        names: std::iter::once(record.name.to_string()).chain(connection.aliases.clone()).collect(),
        default_route: first,
    }
}

/// The network namespace of a container whose first process runs.
fn sandbox_of(record: &Record) -> Result<Sandbox> {
    Sandbox::open(Path::new(&format!("/proc/{}/ns/net", record.pid))).map_err(failed(&record.id))
}

fn failed(id: &Id) -> impl Fn(estiba_network::Error) -> Error {
    let id = id.clone();
    move |source| Error::Network { id: id.clone(), source: Box::new(source) }
}

fn told(action: &str, network: &Network) -> Event {
    Event::new(Kind::Network, action, &network.id).with("name", &network.name).with("type", &network.driver)
}
