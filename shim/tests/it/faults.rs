//! Clients and shims that die.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use estiba_runtime::{DeleteMode, Native, Runtime};
use estiba_shim::proto::CreateTaskRequest;
use estiba_shim::{Client, Error};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bundle::{Bundle, drain, eventually, process_state};
use crate::{Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    ("without_clients_the_exit_command_runs", without_clients_the_exit_command_runs),
    ("with_a_client_the_exit_command_waits", with_a_client_the_exit_command_waits),
    ("an_unstarted_container_goes_with_its_last_client", an_unstarted_container_goes_with_its_last_client),
    ("a_shim_without_container_goes_with_its_last_client", a_shim_without_container_goes_with_its_last_client),
    ("a_killed_client_leaves_the_container_running", a_killed_client_leaves_the_container_running),
    ("a_killed_client_before_start_leaves_nothing", a_killed_client_before_start_leaves_nothing),
    ("a_killed_shim_frees_its_lock", a_killed_shim_frees_its_lock),
    ("signals_to_the_shim_do_nothing", signals_to_the_shim_do_nothing),
    ("an_exit_file_that_cannot_be_written_is_logged", an_exit_file_that_cannot_be_written_is_logged),
    ("a_failed_create_leaves_nothing", a_failed_create_leaves_nothing),
];

/// The first argument under which this program is a client that is to be killed.
const PLAY_CLIENT: &str = "play-client";

/// If told so, connects to a shim, says so, and makes the calls that were asked for, the last of which never returns.
pub(crate) fn play_client() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(PLAY_CLIENT) {
        return;
    }
    let (folder, id, stdout) =
        (arguments.next().expect("folder"), arguments.next().expect("id"), arguments.next().expect("stdout"));
    let mut client = Client::connect(PathBuf::from(&folder), id).expect("connect");
    client.create(CreateTaskRequest { bundle: folder, stdout, ..CreateTaskRequest::default() }).expect("create");
    if arguments.next().as_deref() == Some("start") {
        client.start().expect("start");
    }
    println!("ready");
    client.wait().expect("wait");
    std::process::exit(0);
}

/// A client in a process of its own, killed once it has made its calls.
fn killed_client(bundle: &Bundle, stdout: &str, start: bool) -> std::io::Result<()> {
    let mut client = Command::new("/proc/self/exe")
        .args([PLAY_CLIENT, bundle.folder().to_str().expect("text"), bundle.id(), stdout])
        .args(start.then_some("start"))
        .stdout(Stdio::piped())
        .spawn()?;
    client.stdout.take().expect("stdout").read_exact(&mut [0; 6])?;
    client.kill()?;
    client.wait().map(drop)
}

fn without_clients_the_exit_command_runs() -> Outcome {
    let bundle = Bundle::script("sleep 0.3; exit 5").with_exit_command();
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    let pid = client.start()?;
    drop(client);
    // It goes on, and answers who comes while it runs.
    let mut other = bundle.connect();
    assert_eq!(other.state()?.pid, pid);
    drop(other);
    eventually("the exit command has run", || !bundle.mark().is_empty());
    assert_eq!(bundle.mark(), format!("{} in /\n", bundle.id()));
    let record = bundle.exit_record().expect("it is there before the exit command");
    assert_eq!((record.pid, record.status, record.signal), (pid as i32, 5, None));
    bundle.assert_gone();
    assert!(Client::connect(bundle.folder(), bundle.id()).is_err());
    assert_eq!(bundle.log(), "");
    Ok(())
}

fn with_a_client_the_exit_command_waits() -> Outcome {
    let bundle = Bundle::script("exit 5").with_exit_command();
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 5);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(bundle.mark(), "");
    client.delete()?;
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(bundle.mark(), "");
    // It leaves without a word, so somebody else has to finish.
    drop(client);
    eventually("the exit command has run", || !bundle.mark().is_empty());
    bundle.assert_gone();
    Ok(())
}

fn an_unstarted_container_goes_with_its_last_client() -> Outcome {
    let bundle = Bundle::new(&["sleep", "1000"]).with_exit_command();
    let mut client = bundle.spawn();
    let mut other = bundle.connect();
    let stdout = bundle.create(&mut client);
    let pid = client.state()?.pid;
    drop(client);
    assert_eq!(other.state()?.pid, pid, "not the last one");
    drop(other);
    eventually("the exit command has run", || !bundle.mark().is_empty());
    assert_eq!(process_state(pid), None);
    assert_eq!(drain(stdout).join().expect("stdout"), b"");
    assert_eq!(bundle.exit_record(), None);
    bundle.assert_gone();
    Ok(())
}

fn a_shim_without_container_goes_with_its_last_client() -> Outcome {
    let bundle = Bundle::new(&["true"]).with_exit_command();
    let mut client = bundle.spawn();
    assert_eq!(client.who()?.task_pid, 0);
    drop(client);
    eventually("the exit command has run", || !bundle.mark().is_empty());
    bundle.assert_gone();
    Ok(())
}

fn a_killed_client_leaves_the_container_running() -> Outcome {
    let bundle = Bundle::script("seq 1 300000; sleep 0.2; exit 6").with_exit_command();
    let watcher = bundle.spawn();
    let (path, reader) = bundle.fifo("stdout");
    killed_client(&bundle, &path, true)?;
    // With it went the reader.
    drop(reader);
    drop(watcher);
    eventually("the exit command has run", || !bundle.mark().is_empty());
    assert_eq!(bundle.exit_record().expect("a record").status, 6);
    bundle.assert_gone();
    Ok(())
}

fn a_killed_client_before_start_leaves_nothing() -> Outcome {
    let bundle = Bundle::new(&["sleep", "1000"]).with_exit_command();
    let first = bundle.spawn();
    let (path, _reader) = bundle.fifo("stdout");
    killed_client(&bundle, &path, false)?;
    drop(first);
    eventually("the exit command has run", || !bundle.mark().is_empty());
    assert_eq!(bundle.exit_record(), None);
    bundle.assert_gone();
    Ok(())
}

fn a_killed_shim_frees_its_lock() -> Outcome {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let mut client = bundle.spawn();
    let stdout = bundle.create(&mut client);
    let pid = client.start()?;
    let shim = client.who()?.shim_pid;
    kill(Pid::from_raw(shim as i32), Signal::SIGKILL)?;
    assert!(matches!(client.wait(), Err(Error::Disconnected { .. })));
    bundle.wait_for_lock();
    assert_eq!(drain(stdout).join().expect("stdout"), b"", "the readers are told, too");
    assert_eq!(bundle.exit_record(), None);
    // The container outlives it; whoever finds it ends it through the runtime's state.
    assert!(process_state(pid).is_some());
    Native::new(bundle.folder().join("runtime")).delete(&bundle.launch.id, DeleteMode::Force)?;
    eventually("the container is gone", || process_state(pid).is_none_or(|state| state == 'Z'));
    bundle.assert_gone();
    // The folder serves again.
    let mut next = bundle.spawn();
    next.who()?;
    next.shutdown()?;
    Ok(())
}

fn signals_to_the_shim_do_nothing() -> Outcome {
    let bundle = Bundle::script("read -r line; exit 9");
    let mut client = bundle.spawn();
    let (stdin, _reader) = bundle.fifo("stdin");
    client.create(bundle.request(&stdin, "", ""))?;
    client.start()?;
    let shim = Pid::from_raw(client.who()?.shim_pid as i32);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        kill(shim, signal)?;
    }
    std::fs::write(&stdin, "line\n")?;
    assert_eq!(client.wait()?.exit_status, 9);
    bundle.finish(&mut client);
    Ok(())
}

fn an_exit_file_that_cannot_be_written_is_logged() -> Outcome {
    let mut bundle = Bundle::script("exit 3");
    bundle.launch.exit_file = Some(bundle.path("nowhere/exit.json"));
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 3, "those who wait learn it all the same");
    assert!(bundle.log().contains("nowhere/exit.json"), "{}", bundle.log());
    client.delete()?;
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

fn a_failed_create_leaves_nothing() -> Outcome {
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["root"]["path"] = "absent".into();
    let mut client = bundle.spawn();
    let (path, reader) = bundle.fifo("stdout");
    let error = client.create(bundle.request("", &path, "")).expect_err("there is no root");
    assert!(error.to_string().contains("absent"), "{error}");
    assert_eq!(error.exit_code(), 125);
    assert_eq!(drain(reader).join().expect("stdout"), b"");
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}
