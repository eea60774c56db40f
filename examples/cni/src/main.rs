//! `estiba-cni`: the CNI reference plugins, and Podman's `netavark`, as one program. Which of them it is, its name says: it is linked to
//! `bridge`, `host-local` and so on in a folder of plugins.

mod address;
mod bandwidth;
mod bridge;
mod config;
mod device;
mod firewall;
mod fixed;
mod host_device;
mod host_local;
mod loopback;
mod macvlan;
mod namespace;
mod netavark;
mod portmap;
mod ptp;
mod qdisc;
mod record;
mod sysctl;
mod tuning;
mod walls;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;

use estiba_network::cni::plugin::{self, Plugin};

/// All plugins, by their names.
const PLUGINS: [(&str, &dyn Plugin); 11] = [
    ("bandwidth", &bandwidth::Bandwidth),
    ("bridge", &bridge::Bridge),
    ("firewall", &walls::Walls),
    ("host-device", &host_device::HostDevice),
    ("host-local", &host_local::HostLocal),
    ("loopback", &loopback::Loopback),
    ("macvlan", &macvlan::Macvlan),
    ("portmap", &portmap::Portmap),
    ("ptp", &ptp::Ptp),
    ("static", &fixed::Static),
    ("tuning", &tuning::Tuning),
];

/// Podman's, which is no plugin.
const NETAVARK: &str = "netavark";

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let own = arguments.next().unwrap_or_default();
    let own = Path::new(&own).file_name().and_then(OsStr::to_str).unwrap_or_default();
    let named = |name: &str| PLUGINS.iter().find(|(known, _)| *known == name).map(|(_, plugin)| *plugin);
    if let Some(plugin) = named(own) {
        return plugin::main(plugin);
    }
    let arguments: Vec<_> = arguments.collect();
    if own == NETAVARK {
        return netavark::main(arguments);
    }
    if arguments.first().is_some_and(|first| first == NETAVARK) {
        return netavark::main(arguments[1..].to_vec());
    }
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
    match arguments.as_slice() {
        ["install", folder] => match install(Path::new(folder)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("estiba-cni: cannot install into {folder}: {error}");
                ExitCode::FAILURE
            }
        },
        [name] if named(name).is_some() => named(name).map_or(ExitCode::FAILURE, plugin::main),
        _ => {
            let all: Vec<_> = PLUGINS.iter().map(|(name, _)| *name).collect();
            eprintln!("usage: estiba-cni install FOLDER   links every plugin into a folder of plugins");
            eprintln!("       estiba-cni PLUGIN           is that plugin, as a program of its name is");
            eprintln!("       estiba-cni netavark …       is Podman's netavark, as a program of that name is");
            eprintln!("plugins: {}", all.join(", "));
            ExitCode::from(2)
        }
    }
}

/// Copies this program into the folder, and links each plugin's name to it. A name that is there is replaced.
fn install(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let beside = folder.join(format!(".estiba-cni.{}", std::process::id()));
    let program = folder.join("estiba-cni");
    let placed = fs::copy("/proc/self/exe", &beside).and_then(|_| fs::rename(&beside, &program));
    if placed.is_err() {
        let _ = fs::remove_file(&beside);
    }
    placed?;
    for (name, _) in PLUGINS {
        symlink("estiba-cni", &beside)?;
        fs::rename(&beside, folder.join(name)).inspect_err(|_| {
            let _ = fs::remove_file(&beside);
        })?;
    }
    Ok(())
}

/// What a person is told who starts a plugin.
fn about(name: &str) -> String {
    format!("CNI {name} plugin of estiba-cni {}", env!("CARGO_PKG_VERSION"))
}
