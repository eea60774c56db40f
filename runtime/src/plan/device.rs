//! What is in `/dev`.

use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxDeviceType;

use super::{NEW_USER, Open, Options, Planner, Step, Target, c_path, invalid, unsupported};
use crate::Result;
use crate::sys::mount::Depth;

/// The [default devices](https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#default-devices).
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &std::ffi::CStr); 4] = [
    ("/dev/fd", c"/proc/self/fd"),
    ("/dev/stdin", c"/proc/self/fd/0"),
    ("/dev/stdout", c"/proc/self/fd/1"),
    ("/dev/stderr", c"/proc/self/fd/2"),
];

/// A device node.
struct Node {
    path: PathBuf,
    mode: u32,
    rdev: u64,
    uid: u32,
    gid: u32,
}

impl Planner<'_> {
    /// The default devices, links and the console.
    pub(super) fn devices(&mut self) -> Result<()> {
        let listed: Vec<PathBuf> = self.listed().iter().map(|device| device.path().clone()).collect();
        for (path, major, minor) in DEFAULT {
            if listed.iter().any(|listed| listed == Path::new(path)) {
                continue;
            }
            let rdev = libc::makedev(major, minor);
            let node = Node { path: path.into(), mode: libc::S_IFCHR | 0o666, rdev, uid: 0, gid: 0 };
            self.device(node, "devices")?;
        }
        let core = Some(("/dev/core", c"/proc/kcore")).filter(|_| self.host.kcore);
        for (path, to) in LINKS.into_iter().chain(core) {
            let target = Target::new(Path::new(path), "devices")?;
            self.steps.push(Step::Link { target, to: to.to_owned(), replace: false });
        }
        let pts = |mount: &oci_spec::runtime::Mount| mount.destination() == Path::new("/dev/pts");
        if self.spec.mounts().iter().flatten().any(pts) {
            let target = Target::new(Path::new("/dev/ptmx"), "devices")?;
            self.steps.push(Step::Link { target, to: c"pts/ptmx".to_owned(), replace: true });
        } else if self.host.terminal {
            return Err(invalid("process.terminal", "needs a devpts at /dev/pts"));
        }
        Ok(())
    }

    /// `linux.devices`, and the terminal, which may lie beside them.
    pub(super) fn listed_devices(&mut self) -> Result<()> {
        let listed = self.listed().to_vec();
        for (at, device) in listed.iter().enumerate() {
            let field = format!("linux.devices[{at}]");
            let kind = match device.typ() {
                LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
                LinuxDeviceType::B => libc::S_IFBLK,
                LinuxDeviceType::P => libc::S_IFIFO,
                LinuxDeviceType::A => return Err(invalid(field, "type a is for cgroup rules")),
            };
            let number = |value: i64| {
                u32::try_from(value).map_err(|_| invalid(&field, format!("{value} is no number of a device")))
            };
            let rdev = libc::makedev(number(device.major())?, number(device.minor())?);
            let node = Node {
                path: device.path().clone(),
                mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
                rdev: if kind == libc::S_IFIFO { 0 } else { rdev },
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
            };
            self.device(node, &field)?;
        }
        if self.host.terminal {
            let place = Target::new(Path::new("/dev/console"), "process.terminal")?;
            let console = self.program()?.console(Some(place))?;
            self.steps.push(console);
        }
        Ok(())
    }

    fn listed(&self) -> &[oci_spec::runtime::LinuxDevice] {
        self.spec.linux().as_ref().and_then(|linux| linux.devices().as_deref()).unwrap_or_default()
    }

    fn device(&mut self, node: Node, field: &str) -> Result<()> {
        let target = Target::new(&node.path, field)?;
        if target.len() == 0 {
            return Err(invalid(field, "has no path"));
        }
        if !self.own_or_joined(NEW_USER) && !self.host.confined {
            let Node { mode, rdev, uid, gid, .. } = node;
            self.steps.push(Step::Device { target, mode, rdev, uid, gid });
            return Ok(());
        }
        // A user namespace may not make devices: it is shown the host's.
        if node.mode & libc::S_IFMT == libc::S_IFIFO {
            return Err(unsupported(field, "a fifo in a user namespace"));
        }
        if self.host.rootless {
            let source = c_path(&node.path, field)?;
            let (depth, options) = (Depth::Top, Options::default());
            self.steps.push(Step::BindHost { source, depth, options, target, guarded: true, late: None });
            return Ok(());
        }
        let slot = self.open(Open::Bind {
            source: node.path,
            depth: Depth::Top,
            options: Options::default(),
            idmap: None,
            field: field.to_owned(),
        });
        self.steps.push(Step::Bind { slot, target, guarded: true, late: None });
        Ok(())
    }
}
