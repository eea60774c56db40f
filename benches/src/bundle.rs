//! The bundle that all runtimes run, and the image that all engines run.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::floor::Network;
use crate::payload;

/// How much is asked of the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What the kernel's floor does and no more: proc, a tmpfs, no network namespace of its own.
    Bare,
    /// What `runc spec` writes: seven mounts, devices, capabilities, masked paths, a network namespace.
    Usual,
}

impl Kind {
    /// The floor to compare with.
    pub(crate) fn network(self) -> Network {
        match self {
            Self::Bare => Network::Host,
            Self::Usual => Network::Own,
        }
    }

    /// For the title of a table.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Bare => "a bundle with proc and one tmpfs, the host's network",
            Self::Usual => "a bundle as `runc spec` writes it",
        }
    }
}

/// Makes a bundle whose process is the smallest program that there is.
pub(crate) fn write(folder: &Path, kind: Kind, cgroup: &str) -> io::Result<()> {
    let root = folder.join("rootfs");
    for inside in ["proc", "dev", "sys"] {
        fs::create_dir_all(root.join(inside))?;
    }
    payload::write_program(&root.join("true"), &payload::exit_zero())?;
    fs::write(folder.join("config.json"), serde_json::to_vec_pretty(&config(kind, cgroup))?)
}

fn config(kind: Kind, cgroup: &str) -> Value {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let mut namespaces = vec!["pid", "mount", "uts", "ipc", "cgroup"];
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ];
    let mut capabilities: &[&str] = &[];
    let (mut masked, mut read_only): (&[&str], &[&str]) = (&[], &[]);
    if kind == Kind::Usual {
        namespaces.push("network");
        mounts.push(mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]));
        mounts.push(mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]));
        mounts.push(mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]));
        mounts.push(mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
        capabilities = &["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
        masked = &[
            "/proc/acpi",
            "/proc/asound",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/sys/firmware",
            "/proc/scsi",
        ];
        read_only = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    }
    let namespaces: Vec<Value> = namespaces.iter().map(|name| json!({ "type": name })).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/true"],
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": kind == Kind::Usual },
        "hostname": "bench",
        "mounts": mounts,
        "linux": {
            "cgroupsPath": cgroup,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": masked,
            "readonlyPaths": read_only,
        },
    })
}

/// Writes a `docker save` archive of one layer: busybox and its name `true`.
pub(crate) fn write_image(archive: &Path, busybox: &Path, name: &str) -> io::Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = |path: &str, kind: tar::EntryType, mode: u32, target: Option<&str>, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        if let Some(target) = target {
            header.set_link_name(target)?;
        }
        layer.append_data(&mut header, path, data)
    };
    for folder in ["bin/", "etc/", "tmp/"] {
        header(folder, tar::EntryType::Directory, 0o755, None, &[])?;
    }
    header("bin/busybox", tar::EntryType::Regular, 0o755, None, &fs::read(busybox)?)?;
    for applet in ["sh", "true", "sleep", "cat", "echo"] {
        header(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, Some("busybox"), &[])?;
    }
    header("etc/passwd", tar::EntryType::Regular, 0o644, None, b"root:x:0:0:root:/:/bin/sh\n")?;
    let layer = layer.into_inner()?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))] },
    }))?;
    let config_name = format!("{}.json", hex(&config));
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut outer = tar::Builder::new(File::create(archive)?);
    let parts =
        [(config_name.as_str(), config), ("layer.tar", layer), ("manifest.json", serde_json::to_vec(&manifest)?)];
    for (path, data) in parts {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        outer.append_data(&mut header, path, data.as_slice())?;
    }
    outer.into_inner()?.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
