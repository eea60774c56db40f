//! Our client and containerd's own shim.

use std::fs::{self, File};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use estiba_shim::proto::{Any, AttachRequest, Code, ExecProcessRequest, RuncOptions, TaskStatus};
use estiba_shim::{Client, Error};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bundle::{Bundle, SOON, blocking, drain, eventually, process_state};
use crate::{Case, Outcome};

/// The shim of Debian's package.
const SHIM: &str = "/usr/bin/containerd-shim-runc-v2";

pub(crate) const CASES: &[Case] = &[
    ("our_client_drives_the_shim_of_containerd", our_client_drives_the_shim_of_containerd),
    (
        "a_missing_program_is_127_with_the_shim_of_containerd_too",
        a_missing_program_is_127_with_the_shim_of_containerd_too,
    ),
];

/// What the machine lacks for these tests.
pub(crate) fn missing() -> Option<&'static str> {
    if fs::exists(SHIM).is_ok_and(|there| there) && fs::exists("/usr/sbin/runc").is_ok_and(|there| there) {
        None
    } else {
        Some("needs Debian's containerd and runc")
    }
}

/// containerd's shim, started as containerd starts it.
struct Foreign {
    client: Client,
    pid: Pid,
    container: Option<Pid>,
    socket: String,
    /// The named pipe for its log, held open.
    _log: File,
    /// Where it publishes its events: containerd's part is played by a socket that hears and says nothing.
    _events: UnixListener,
}

impl Foreign {
    fn start(bundle: &Bundle) -> Result<Self, libtest_mimic::Failed> {
        let events = bundle.path("events.sock");
        let listener = UnixListener::bind(&events)?;
        let log = bundle.folder().join("log");
        nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU)?;
        let log = File::options().read(true).write(true).open(log)?;
        let output = Command::new(SHIM)
            .args(["-namespace", "estiba-test", "-id", bundle.id(), "-address"])
            .arg(&events)
            .args(["-publish-binary", "/bin/true", "start"])
            .env("TTRPC_ADDRESS", &events)
            .current_dir(bundle.folder())
            .stdin(Stdio::null())
            .output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let address = String::from_utf8(output.stdout)?;
        let socket = address.trim().strip_prefix("unix://").expect("an address").to_owned();
        let mut client = Client::from_stream(UnixStream::connect(&socket)?, bundle.id());
        client.set_timeout(Some(SOON))?;
        let pid = Pid::from_raw(client.who()?.shim_pid as i32);
        Ok(Self { client, pid, container: None, socket, _log: log, _events: listener })
    }

    fn is_gone(&self) -> bool {
        process_state(self.pid.as_raw() as u32).is_none_or(|state| state == 'Z')
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        for pid in self.container.into_iter().chain((!self.is_gone()).then_some(self.pid)) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = fs::remove_file(&self.socket);
    }
}

fn our_client_drives_the_shim_of_containerd() -> Outcome {
    let bundle = Bundle::script("echo hello; read -r line; echo bye >&2; exit 7");
    bundle.write_config();
    let mut foreign = Foreign::start(&bundle)?;
    let (stdin_path, _reader) = bundle.fifo("stdin");
    let (stdout_path, stdout) = bundle.fifo("stdout");
    let (stderr_path, stderr) = bundle.fifo("stderr");
    let mut request = bundle.request(&stdin_path, &stdout_path, &stderr_path);
    // runc is to leave nothing in the machine's own state.
    let root = bundle.path("runc").to_str().expect("text").to_owned();
    request.options = Some(Any::pack(&RuncOptions { root, ..RuncOptions::default() }));
    let pid = foreign.client.create(request)?;
    foreign.container = Some(Pid::from_raw(pid as i32));
    let (stdout, stderr) = (drain(blocking(stdout)), drain(blocking(stderr)));

    let client = &mut foreign.client;
    let state = client.state()?;
    assert_eq!((state.pid, state.status(), state.id.as_str()), (pid, TaskStatus::Created, bundle.id()));
    assert_eq!(client.start()?, pid);
    assert_eq!(client.pids()?, [pid]);
    let (path, reader) = bundle.fifo("added");
    // Containerd's own shim wants both outputs.
    let (complaints, _complaints) = bundle.fifo("complaints");
    let names = ExecProcessRequest { exec_id: "e1".into(), stdout: path, ..ExecProcessRequest::default() };
    let request = ExecProcessRequest { stderr: complaints, ..names };
    client.exec(request, &crate::exec::script("echo added; exit 5"))?;
    assert!(client.start_exec("e1")? > 0);
    // Only now: this shim opens the pipe when it starts the process, and before that it reads as ended.
    let added = drain(blocking(reader));
    assert_eq!(client.wait_exec("e1")?.exit_status, 5);
    assert_eq!(added.join().expect("stdout"), b"added\n");
    assert_eq!(client.delete_exec("e1")?.exit_status, 5);
    client.pause()?;
    assert_eq!(client.state()?.status(), TaskStatus::Paused);
    client.resume()?;
    let limits = serde_json::json!({ "pids": { "limit": 30 }, "memory": { "limit": 64 << 20 } });
    client.update(&serde_json::from_value(limits)?)?;
    let used = client.stats()?;
    assert_eq!((used.pids.limit, used.pids.current), (Some(30), 1), "{used:?}");
    assert_eq!(used.memory.limit, Some(64 << 20), "{used:?}");
    assert!(used.cpu.usage > 0 && used.memory.usage > 0, "{used:?}");
    let error = client.attach(AttachRequest::default()).expect_err("it does not know that");
    assert_eq!(error.code(), Some(Code::Unimplemented), "{error}");
    fs::write(&stdin_path, "line\n")?;
    let end = client.wait()?;
    assert_eq!(end.exit_status, 7);
    assert!(end.exited_at.is_some_and(|time| time.seconds > 0));
    assert_eq!(client.state()?.status(), TaskStatus::Stopped);
    assert_eq!(client.delete()?.exit_status, 7);
    foreign.container = None;
    let error = client.start().expect_err("it is deleted");
    assert!(matches!(&error, Error::Status { .. }) && error.code() == Some(Code::NotFound), "{error:?}");
    // It may hang up before it answers.
    let _ = client.shutdown();
    assert_eq!(stdout.join().expect("stdout"), b"hello\n");
    assert_eq!(stderr.join().expect("stderr"), b"bye\n");
    eventually("the shim is gone", || foreign.is_gone());
    Ok(())
}

fn a_missing_program_is_127_with_the_shim_of_containerd_too() -> Outcome {
    let bundle = Bundle::new(&["nope"]);
    bundle.write_config();
    let mut foreign = Foreign::start(&bundle)?;
    let mut request = bundle.request("", "", "");
    let root = bundle.path("runc").to_str().expect("text").to_owned();
    request.options = Some(Any::pack(&RuncOptions { root, ..RuncOptions::default() }));
    let error = foreign.client.create(request).expect_err("there is no such program");
    assert_eq!(error.exit_code(), 127, "{error}");
    let _ = foreign.client.shutdown();
    eventually("the shim is gone", || foreign.is_gone());
    Ok(())
}
