//! Being containerd's shim: Debian's containerd starts this test program for containers, and `ctr` asks it for them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::bundle::{self, Bundle, SOON, eventually, process_state};
use crate::{Case, Outcome};

const CONTAINERD: &str = "/usr/bin/containerd";
const CTR: &str = "/usr/bin/ctr";

pub(crate) const CASES: &[Case] = &[
    ("containerd_runs_a_container", containerd_runs_a_container),
    ("containerd_restarts_and_its_shim_dies", containerd_restarts_and_its_shim_dies),
    ("containerd_that_knows_version_3_is_answered_so", containerd_that_knows_version_3_is_answered_so),
];

/// What the machine lacks for these tests.
pub(crate) fn missing() -> Option<&'static str> {
    let there = [CONTAINERD, CTR].iter().all(|program| fs::exists(program).is_ok_and(|there| there));
    if there { None } else { Some("needs Debian's containerd") }
}

/// A containerd of the test's own, and a root for its containers.
struct Containerd {
    bundle: Bundle,
    server: Child,
    /// What it executes as a shim.
    shim: PathBuf,
}

impl Containerd {
    fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let bundle = Bundle::new(&["true"]);
        let place = |name: &str| bundle.path(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            place("root"),
            place("state"),
            place("c.sock"),
            place("c.sock.ttrpc"),
        );
        fs::write(bundle.path("config.toml"), config)?;
        let server = Self::serve(&bundle)?;
        Ok(Self { bundle, server, shim: std::env::current_exe()? })
    }

    fn serve(bundle: &Bundle) -> Result<Child, Box<dyn std::error::Error>> {
        let log = fs::File::options().append(true).create(true).open(bundle.path("containerd.log"))?;
        let mut command = Command::new(CONTAINERD);
        command.arg("-c").arg(bundle.path("config.toml")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let server = command.spawn()?;
        let deadline = Instant::now() + SOON;
        while !Self::ctr_of(bundle).args(["tasks", "ls"]).output()?.status.success() {
            assert!(Instant::now() < deadline, "{}", fs::read_to_string(bundle.path("containerd.log"))?);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn ctr_of(bundle: &Bundle) -> Command {
        let mut command = Command::new("/usr/bin/timeout");
        // The namespace is that of the cgroups, too, which go with the test.
        command.args(["20", CTR, "-n", &bundle::cgroup_parent(), "-a"]).arg(bundle.path("c.sock")).stdin(Stdio::null());
        command
    }

    fn ctr(&self, arguments: &[&str]) -> std::io::Result<Output> {
        Self::ctr_of(&self.bundle).args(arguments).output()
    }

    fn run(&self, options: &[&str], arguments: &[&str]) -> std::io::Result<Output> {
        let mut command = Self::ctr_of(&self.bundle);
        command.args(["run", "--runtime"]).arg(&self.shim).arg("--fifo-dir").arg(self.bundle.path("fifo"));
        command.args(options).arg("--rootfs").arg(self.bundle.folder().join("rootfs")).arg(self.bundle.id());
        command.args(arguments).output()
    }

    /// The shim of the container, and the folder that it serves.
    fn shim(&self) -> Result<(u32, PathBuf), Box<dyn std::error::Error>> {
        let folder = self.bundle.path("state/io.containerd.runtime.v2.task").join(bundle::cgroup_parent());
        let folder = folder.join(self.bundle.id());
        for process in fs::read_dir("/proc")?.flatten() {
            let is = fs::read(process.path().join("cmdline")).is_ok_and(|line| line.starts_with(b"estiba-shim\0"));
            if is && fs::read_link(process.path().join("cwd")).is_ok_and(|place| place == folder) {
                return Ok((process.file_name().to_str().expect("text").parse()?, folder));
            }
        }
        Err("there is no shim".into())
    }

    fn sockets(&self) -> usize {
        fs::read_dir(self.bundle.path("s")).map_or(0, Iterator::count)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.ctr(&["tasks", "rm", "-f", self.bundle.id()]);
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn containerd_runs_a_container() -> Outcome {
    let containerd = Containerd::start()?;
    let id = containerd.bundle.id().to_owned();
    let events = fs::File::create(containerd.bundle.path("events"))?;
    let mut listener =
        Containerd::ctr_of(&containerd.bundle).arg("events").stdout(events).stderr(Stdio::null()).spawn()?;
    std::thread::sleep(Duration::from_millis(300));
    let output = containerd.run(&["--rm"], &["sh", "-c", "echo hello; echo bye >&2; exit 7"])?;
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("hello\n", "bye\n"));
    assert!(containerd.shim().is_err() && containerd.sockets() == 0, "nothing is left");

    let output = containerd.run(&["-d"], &["sleep", "1000"])?;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (shim, _) = containerd.shim()?;
    let fifos = containerd.bundle.path("fifo");
    let fifos = fifos.to_str().expect("text");
    let mut exec = vec!["tasks", "exec", "--fifo-dir", fifos, "--exec-id", "e1", &id];
    exec.extend(["sh", "-c", "echo in it; exit 3"]);
    let output = containerd.ctr(&exec)?;
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(3), "in it\n"), "{}", text(&output.stderr));
    assert!(containerd.ctr(&["tasks", "pause", &id])?.status.success());
    assert!(text(&containerd.ctr(&["tasks", "ls"])?.stdout).contains("PAUSED"));
    assert!(containerd.ctr(&["tasks", "resume", &id])?.status.success());
    let metrics = containerd.ctr(&["tasks", "metrics", &id])?;
    assert!(text(&metrics.stdout).contains("memory.usage"), "{}{}", text(&metrics.stdout), text(&metrics.stderr));
    assert!(containerd.ctr(&["tasks", "kill", "-s", "SIGKILL", &id])?.status.success());
    eventually("it has stopped", || {
        containerd.ctr(&["tasks", "ls"]).is_ok_and(|output| text(&output.stdout).contains("STOPPED"))
    });
    containerd.ctr(&["tasks", "rm", &id])?;
    assert!(containerd.ctr(&["containers", "rm", &id])?.status.success());
    eventually("the shim is gone", || process_state(shim).is_none());
    assert_eq!(containerd.sockets(), 0);
    let expected = [
        "create",
        "start",
        "exit",
        "delete",
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "paused",
        "resumed",
        "exit",
        "delete",
    ];
    let told = || -> Vec<String> {
        let events = fs::read_to_string(containerd.bundle.path("events")).unwrap_or_default();
        let topics = events.lines().filter_map(|line| line.split_once(" /tasks/")?.1.split_once(' '));
        topics.map(|(topic, _)| topic.to_owned()).collect()
    };
    let deadline = Instant::now() + SOON;
    while told().len() < expected.len() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    listener.kill()?;
    listener.wait()?;
    assert_eq!(told(), expected);
    Ok(())
}

fn containerd_restarts_and_its_shim_dies() -> Outcome {
    let mut containerd = Containerd::start()?;
    let id = containerd.bundle.id().to_owned();
    assert!(containerd.run(&["-d"], &["sleep", "1000"])?.status.success());
    containerd.server.kill()?;
    containerd.server.wait()?;
    let (shim, folder) = containerd.shim()?;
    std::thread::sleep(Duration::from_millis(200));
    assert!(process_state(shim).is_some(), "it waits for another containerd");
    containerd.server = Containerd::serve(&containerd.bundle)?;
    assert!(text(&containerd.ctr(&["tasks", "ls"])?.stdout).contains("RUNNING"));
    let pid: u32 = {
        let mut client = estiba_shim::Client::from_stream(
            std::os::unix::net::UnixStream::connect(
                fs::read_to_string(folder.join("address"))?.strip_prefix("unix://").expect("an address"),
            )?,
            id.as_str(),
        );
        client.set_timeout(Some(SOON))?;
        client.who()?.task_pid
    };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim as i32), nix::sys::signal::Signal::SIGKILL)?;
    eventually("containerd has it cleaned up", || process_state(pid).is_none() && !folder.exists());
    assert_eq!(containerd.sockets(), 0);
    assert!(containerd.ctr(&["containers", "rm", &id])?.status.success());
    Ok(())
}

fn containerd_that_knows_version_3_is_answered_so() -> Outcome {
    let mut containerd = Containerd::start()?;
    // 1.6 takes what it is answered for an address, so this one only asks.
    let folder = containerd.bundle.path("asked");
    fs::create_dir(&folder)?;
    let address = containerd.bundle.path("c.sock");
    let ask = |version: &str| -> std::io::Result<Output> {
        let mut command = Command::new(std::env::current_exe()?);
        command.current_dir(&folder).env("MAX_SHIM_VERSION", version).env_remove("TTRPC_ADDRESS");
        command.args(["-namespace", "x", "-publish-binary", "/x", "-id", containerd.bundle.id(), "-address"]);
        command.arg(&address).arg("start").output()
    };
    let output = ask("3")?;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((answer["version"].as_u64(), answer["protocol"].as_str()), (Some(3), Some("ttrpc")));
    let socket = answer["address"].as_str().and_then(|address| address.strip_prefix("unix://")).expect("an address");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(socket)?.permissions());
    assert_eq!(mode & 0o77, 0, "nobody else may connect");
    // In the name of version 3.
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    let request = estiba_shim::proto::Request {
        service: estiba_shim::proto::TASK_SERVICE_V3.to_owned(),
        method: "Shutdown".to_owned(),
        ..Default::default()
    };
    let mut wire = Vec::new();
    let data = prost::Message::encode_to_vec(&request);
    estiba_shim::codec::encode_frame(&mut wire, 1, estiba_shim::codec::Kind::Request, &data)?;
    std::io::Write::write_all(&mut stream, &wire)?;
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut answer)?;
    let mut decoder = estiba_shim::codec::Decoder::default();
    decoder.push(&answer);
    let frame = decoder.next_frame()?.expect("an answer");
    estiba_shim::codec::decode_response::<estiba_shim::proto::ShutdownRequest>(&frame)?;
    eventually("the socket is gone", || !std::path::Path::new(socket).exists());
    // Nobody takes its place while it lives.
    let output = ask("2")?;
    let socket = text(&output.stdout);
    let socket = socket.strip_prefix("unix://").expect("an address");
    let second = ask("2")?;
    assert!(!second.status.success() && text(&second.stderr).contains("a shim runs in"), "{}", text(&second.stderr));
    assert_eq!(containerd.sockets(), 1);
    let mut client =
        estiba_shim::Client::from_stream(std::os::unix::net::UnixStream::connect(socket)?, containerd.bundle.id());
    client.shutdown()?;
    eventually("the socket is gone", || containerd.sockets() == 0);
    containerd.server.kill()?;
    Ok(())
}
