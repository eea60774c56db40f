//! A host and containers, all of them network namespaces of the test's own.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use estiba_network::cni::serde_json::{self, Value, json};
use estiba_network::cni::{Attachment, Network, Runner, Success};
use estiba_network::{Error, Sandbox};
use libtest_mimic::Failed;
use tempfile::TempDir;

pub(crate) type Outcome<T = ()> = Result<T, Failed>;

/// A test with its name.
pub(crate) type Named = (&'static str, fn() -> Outcome);

/// Where Debian has the reference plugins.
pub(crate) const REFERENCE: &str = "/usr/lib/cni";

pub(crate) struct Stage {
    pub(crate) host: Sandbox,
    pub(crate) folder: TempDir,
}

pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: Sandbox,
    pub(crate) netns: PathBuf,
}

impl Stage {
    pub(crate) fn new() -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let installed =
            Command::new(env!("CARGO_BIN_EXE_estiba-cni")).arg("install").arg(folder.path().join("bin")).status()?;
        assert!(installed.success());
        let host = Sandbox::new()?;
        host.netlink()?.set_loopback_up()?;
        Ok(Self { host, folder })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A runner of our plugins.
    pub(crate) fn ours(&self) -> Runner {
        self.runner(self.path("bin"))
    }

    /// A runner of the reference plugins.
    pub(crate) fn theirs(&self) -> Runner {
        self.runner(PathBuf::from(REFERENCE))
    }

    fn runner(&self, path: PathBuf) -> Runner {
        Runner { path: vec![path], cache: self.path("cache"), limit: Duration::from_secs(60) }
    }

    #[expect(clippy::unused_self, reason = "a container is one of a host")]
    pub(crate) fn container(&self, id: &str) -> Outcome<Container> {
        let sandbox = Sandbox::new()?;
        let netns = format!("/proc/{}/fd/{}", std::process::id(), sandbox.as_fd().as_raw_fd());
        Ok(Container { id: id.to_owned(), sandbox, netns: PathBuf::from(netns) })
    }

    /// Runs `work` on the host.
    pub(crate) fn on_host<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Outcome<T> {
        Ok(self.host.run(work)?)
    }

    pub(crate) fn add(
        &self,
        runner: &Runner,
        network: &Network,
        container: &Container,
    ) -> Outcome<Result<Success, Error>> {
        self.on_host(|| runner.add(network, &container.attachment()))
    }

    /// The leases of a network.
    pub(crate) fn leases(&self, network: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path("leases").join(network)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
        names.sort();
        names
    }

    /// host-local's configuration with leases in the stage's folder.
    pub(crate) fn ipam(&self, ranges: &Value) -> Value {
        json!({
            "type": "host-local", "dataDir": self.path("leases"), "ranges": ranges,
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]
        })
    }
}

impl Drop for Stage {
    /// What plugins have on record of the host goes with it: another one may get its number.
    fn drop(&mut self) {
        for folder in self.records() {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

impl Stage {
    /// The folders of what plugins have on record.
    pub(crate) fn records(&self) -> Vec<PathBuf> {
        let Ok(Ok(host)) = self.host.run(|| fs::metadata("/proc/thread-self/ns/net")) else { return Vec::new() };
        let prefix = format!("{}-", host.ino());
        let all = fs::read_dir("/run/cni/estiba").into_iter().flatten().flatten();
        all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).map(|entry| entry.path()).collect()
    }
}

impl Container {
    pub(crate) fn attachment(&self) -> Attachment {
        Attachment::new(&self.id, &self.netns, "eth0")
    }
}

pub(crate) fn network(version: &str, plugins: &[Value]) -> Outcome<Network> {
    let list = json!({ "cniVersion": version, "name": "net", "plugins": plugins });
    Ok(Network::from_bytes(list.to_string().as_bytes())?)
}

/// What a command prints in a namespace.
pub(crate) fn run(sandbox: &Sandbox, command: &str) -> Outcome<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = sandbox.run(|| Command::new(words[0]).args(&words[1..]).stderr(Stdio::piped()).output())??;
    if !output.status.success() {
        return Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What `ip -j` tells of a namespace, without what is another each time.
pub(crate) fn seen(sandbox: &Sandbox, what: &str) -> Outcome<Value> {
    fn clean(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for key in [
                    "ifindex",
                    "link_index",
                    "link_netnsid",
                    "address",
                    "permaddr",
                    "root_id",
                    "bridge_id",
                    "ifname",
                    "link",
                    "stable_secret",
                    "preferred_life_time",
                    "valid_life_time",
                    "hello_timer",
                    "gc_timer",
                    "tcn_timer",
                    "topology_change_timer",
                    "designated_bridge",
                    "designated_root",
                    "id",
                    "no",
                    "port",
                    "broadcast_ttl",
                    "root_port",
                    "group",
                    "txqlen",
                    "noprefixroute",
                    "state",
                    "bc_queue_len",
                    "tentative",
                    "ifalias",
                    // Ours forwards at once.
                    "forward_delay",
                    "forward_delay_timer",
                    "message_age_timer",
                    "hold_timer",
                ] {
                    map.remove(key);
                }
                // Link-local addresses are made of hardware addresses.
                if let Some(Value::Array(addresses)) = map.get_mut("addr_info") {
                    addresses.retain(|address| address["scope"] != "link");
                    for address in addresses.iter_mut().filter_map(Value::as_object_mut) {
                        address.remove("nodad");
                        address.remove("label");
                    }
                }
                // A bridge without a port that is up has no carrier, sooner or later.
                map.remove("operstate");
                if let Some(Value::Array(flags)) = map.get_mut("flags") {
                    flags.retain(|flag| !["NO-CARRIER", "LOWER_UP", "M-DOWN"].iter().any(|passing| flag == passing));
                }
                if map.get("dev").and_then(Value::as_str).is_some_and(|name| name.starts_with("veth")) {
                    map.remove("dev");
                }
                map.values_mut().for_each(clean);
            }
            Value::Array(list) => {
                let local = |route: &Value| route["dst"].as_str().is_some_and(|dst| dst.starts_with("fe80::"));
                list.retain(|entry| !local(entry));
                list.iter_mut().for_each(clean);
            }
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_str(&run(sandbox, &format!("ip -j -d {what}"))?)?;
    clean(&mut value);
    Ok(value)
}

/// A result without what is another each time: names and addresses of cables, and the container's namespace.
pub(crate) fn plain(success: &Success, container: &Container) -> Value {
    let mut value = json!(success);
    for interface in value.get_mut("interfaces").and_then(Value::as_array_mut).into_iter().flatten() {
        for (key, prefix) in [("name", "veth"), ("mac", "")] {
            let text = interface[key].as_str().unwrap_or_default();
            if text.starts_with(prefix) && !text.is_empty() && text != "00:00:00:00:00:00" {
                interface[key] = json!("(one)");
            }
        }
        if interface["sandbox"] == json!(container.netns) {
            interface["sandbox"] = json!("(its)");
        }
    }
    value
}

/// The interfaces of a namespace but `lo`.
pub(crate) fn interfaces(sandbox: &Sandbox) -> Outcome<Vec<String>> {
    let all = sandbox.netlink()?.interfaces()?;
    Ok(all.into_iter().map(|interface| interface.name).filter(|name| name != "lo").collect())
}

pub(crate) fn is_there(path: &str) -> bool {
    Path::new(path).exists()
}
