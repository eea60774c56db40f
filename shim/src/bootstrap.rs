//! Being started by containerd.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use estiba_runtime::{DeleteMode, Native, Runtime};
use nix::sys::stat::{Mode, umask};
use prost::Message;

use crate::arguments::Arguments;
use crate::client::log_tail;
use crate::daemon::LOG;
use crate::error::{Error, Result, chain};
use crate::exit::ExitRecord;
use crate::launch::{Program, serve_elsewhere};
use crate::moment::parse_rfc3339;
use crate::proto::DeleteResponse;

/// Where the address of the shim's socket lies in the bundle, for containerd of version 1.
const ADDRESS: &str = "address";

/// The exit record's name in the bundle.
const RECORD: &str = "exit.json";

/// The most bytes that a socket's address may have.
const LONGEST: usize = 107;

/// Does what containerd asks of a shim's program, and is its whole `main` then: `-namespace NAME -address SOCKET -id ID start`,
/// which starts a shim for the bundle in the working directory and writes its address to standard output, and `… -bundle PATH
/// delete`, which removes what a shim that died has left.
///
/// Events go to the socket in the environment's `TTRPC_ADDRESS`. The address is a line of text, or JSON of version 3 for a
/// containerd that says in `MAX_SHIM_VERSION` that it knows it. `arguments` are those that follow the program's name, and the
/// program calls [`serve_from_args`](crate::serve_from_args) if the first one is `serve`.
pub fn bootstrap(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    match run(arguments) {
        Ok(answer) if std::io::stdout().write_all(&answer).is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// What containerd says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    namespace: String,
    id: String,
    address: PathBuf,
    bundle: Option<PathBuf>,
    action: String,
}

impl Order {
    /// Reads flags as Go's package flag does: one dash or two, the value after `=` or in the next argument.
    fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        let refuse =
            |reason, argument: &OsString| Error::Argument { reason, argument: argument.to_string_lossy().into_owned() };
        let mut order = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let text = argument.to_str().ok_or_else(|| refuse("it is not text", &argument))?;
            let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
                text.clone_into(&mut order.action);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (flag, None),
            };
            if name == "debug" {
                continue;
            }
            let value = value.or_else(|| arguments.next()).ok_or_else(|| refuse("its value is missing", &argument))?;
            let text = || value.to_str().map(str::to_owned).ok_or_else(|| refuse("it is not text", &value));
            match name {
                "namespace" => order.namespace = text()?,
                "id" => order.id = text()?,
                "address" => order.address = value.into(),
                "bundle" => order.bundle = Some(value.into()),
                // We publish events ourselves.
                "publish-binary" => {}
                _ => return Err(refuse("unknown", &argument)),
            }
        }
        Ok(order)
    }
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<u8>> {
    let order = Order::parse(arguments)?;
    let folder = std::env::current_dir().map_err(|error| Error::system("find the working directory", error))?;
    match order.action.as_str() {
        "start" => start(&order, &folder),
        "delete" => delete(&order, order.bundle.as_deref().unwrap_or(&folder)),
        _ => Err(Error::Argument { reason: "expected `start` or `delete`", argument: order.action }),
    }
}

fn start(order: &Order, folder: &Path) -> Result<Vec<u8>> {
    let id = order.id.parse();
    let id = id.map_err(|_| Error::Argument { reason: "not a container's id", argument: order.id.clone() })?;
    let socket = socket_path(&order.address);
    if let Some(parent) = socket.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent);
        made.map_err(|error| Error::file("create", parent, error))?;
    }
    // Whoever can connect rules the container; the shim sets its own mask.
    umask(Mode::from_bits_truncate(0o077));
    let listener = UnixListener::bind(&socket).map_err(|error| Error::file("bind", &socket, error))?;
    let started = serve(order, id, folder, &socket, listener);
    started.inspect_err(|_| {
        let _ = std::fs::remove_file(&socket);
    })?;
    Ok(answer(&socket, std::env::var("MAX_SHIM_VERSION").ok().and_then(|version| version.parse().ok()).unwrap_or(2)))
}

/// The shim's address, in the form of the newest version that containerd and we know.
fn answer(socket: &Path, newest: u32) -> Vec<u8> {
    let address = format!("unix://{}", socket.display());
    if newest < 3 {
        return address.into_bytes();
    }
    serde_json::json!({ "version": 3, "address": address, "protocol": "ttrpc" }).to_string().into_bytes()
}

fn serve(
    order: &Order,
    id: estiba_runtime::ContainerId,
    folder: &Path,
    socket: &Path,
    listener: UnixListener,
) -> Result<()> {
    let beside = || {
        let mut beside = order.address.clone().into_os_string();
        beside.push(".ttrpc");
        beside
    };
    let events = std::env::var_os("TTRPC_ADDRESS").filter(|address| !address.is_empty()).unwrap_or_else(beside);
    let arguments = Arguments {
        id,
        exit_file: Some(folder.join(RECORD)),
        cgroup_root: None,
        socket: Some(socket.to_owned()),
        events: Some(events.into()),
        namespace: Some(order.namespace.clone()),
        exit_command: Vec::new(),
    };
    let mut first = serve_elsewhere(&Program::Reexec, &arguments, folder, listener)?;
    let status = first.wait().map_err(|error| Error::system("wait for the shim", error))?;
    if !status.success() {
        return Err(Error::EarlyExit { status, log: log_tail(&folder.join(LOG)) });
    }
    let place = folder.join(ADDRESS);
    let address = format!("unix://{}", socket.display());
    std::fs::write(&place, address).map_err(|error| Error::file("write", &place, error))
}

/// A place for a socket near containerd's own that nobody has used before; the bundle's folder is too deep for one.
fn socket_path(containerd: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let name = format!("s/estiba-{:x}-{now:x}", std::process::id());
    let near = containerd.parent().unwrap_or(Path::new("")).join(&name);
    if near.is_absolute() && near.as_os_str().as_bytes().len() <= LONGEST {
        return near;
    }
    Path::new("/run/containerd").join(name)
}

/// Removes what a shim that died has left, and says how the container ended, as far as it is known.
fn delete(order: &Order, bundle: &Path) -> Result<Vec<u8>> {
    let id: estiba_runtime::ContainerId =
        order.id.parse().map_err(|_| Error::Argument { reason: "not a container's id", argument: order.id.clone() })?;
    let state = bundle.join("runtime");
    if state.exists() {
        let removed = Native::new(state).delete(&id, DeleteMode::Force);
        removed.map_err(|source| Error::Runtime {
            operation: "delete",
            id: id.to_string(),
            source: Box::new(source),
        })?;
    }
    if let Ok(address) = std::fs::read_to_string(bundle.join(ADDRESS))
        && let Some(socket) = address.strip_prefix("unix://")
    {
        let _ = std::fs::remove_file(socket);
    }
    let record = ExitRecord::read(&bundle.join(RECORD)).ok().flatten();
    let response = match record {
        Some(record) => DeleteResponse {
            pid: record.pid as u32,
            exit_status: record.status as u32,
            exited_at: parse_rfc3339(&record.exited_at).map(Into::into),
        },
        None => DeleteResponse { pid: 0, exit_status: 137, exited_at: Some(SystemTime::now().into()) },
    };
    Ok(response.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Order> {
        Order::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn orders_are_read() {
        let order = Order {
            namespace: "default".into(),
            id: "c1".into(),
            address: "/run/containerd/containerd.sock".into(),
            bundle: None,
            action: "start".into(),
        };
        let address = "/run/containerd/containerd.sock";
        let words = ["-namespace", "default", "-address", address, "-publish-binary", "/x", "-id", "c1", "start"];
        assert_eq!(parse(&words).expect("parses"), order);
        let words = ["--namespace=default", "-debug", "-address=/run/containerd/containerd.sock", "-id=c1", "start"];
        assert_eq!(parse(&words).expect("parses"), order);
        assert!(parse(&["-id"]).is_err());
        assert!(parse(&["-idd", "x", "start"]).is_err());
    }

    #[test]
    fn a_socket_fits_its_address() {
        let near = socket_path(Path::new("/run/containerd/containerd.sock"));
        assert!(near.starts_with("/run/containerd/s/"), "{near:?}");
        for other in ["", "relative.sock", &format!("/{}/c.sock", "deep/".repeat(30))] {
            let path = socket_path(Path::new(other));
            assert!(path.is_absolute() && path.as_os_str().len() <= LONGEST, "{path:?}");
        }
    }

    #[test]
    fn the_answer_is_of_the_version_that_is_known() {
        assert_eq!(answer(Path::new("/s/1"), 2), b"unix:///s/1");
        let json: serde_json::Value = serde_json::from_slice(&answer(Path::new("/s/1"), 4)).expect("JSON");
        assert_eq!(json, serde_json::json!({ "version": 3, "address": "unix:///s/1", "protocol": "ttrpc" }));
    }
}
