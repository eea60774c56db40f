//! Clients that attach to a container's streams, and leave.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use estiba_shim::proto::{AttachRequest, Code, TaskStatus};
use estiba_shim::{Client, LogOptions, Stream};

use crate::bundle::{Bundle, blocking, drain, eventually};
use crate::{Case, Outcome, logs};

pub(crate) const CASES: &[Case] = &[
    ("several_clients_attach_and_none_loses_anything", several_clients_attach_and_none_loses_anything),
    ("an_attached_client_that_is_killed_holds_nothing_up", an_attached_client_that_is_killed_holds_nothing_up),
    ("stdin_stays_open_for_others_or_closes_with_one", stdin_stays_open_for_others_or_closes_with_one),
    ("who_detaches_closes_nothing", who_detaches_closes_nothing),
    ("a_terminal_is_shared", a_terminal_is_shared),
    ("a_slow_attached_reader_slows_the_container", a_slow_attached_reader_slows_the_container),
    ("attaching_wrongly_is_refused", attaching_wrongly_is_refused),
];

/// A client's own ends of the streams it attaches.
struct Ends {
    attachment: u64,
    stdin: File,
    stdout: File,
    stderr: File,
}

/// Attaches to all streams; the pipes are gone from the folder afterwards.
fn attach(
    bundle: &Bundle,
    client: &mut Client,
    name: &str,
    stdin_once: bool,
) -> Result<Ends, Box<dyn std::error::Error>> {
    let (stdout_path, stdout) = bundle.fifo(&format!("{name}-out"));
    let (stderr_path, stderr) = bundle.fifo(&format!("{name}-err"));
    let (stdin_path, _reader) = bundle.fifo(&format!("{name}-in"));
    let stdin = OpenOptions::new().write(true).open(&stdin_path)?;
    let [paths @ .., _] = [stdin_path.clone(), stdout_path.clone(), stderr_path.clone(), String::new()];
    let request =
        AttachRequest { stdin: stdin_path, stdout: stdout_path, stderr: stderr_path, stdin_once, ..Default::default() };
    let attachment = client.attach(request)?;
    for path in paths {
        fs::remove_file(path)?;
    }
    Ok(Ends { attachment, stdin, stdout: blocking(stdout), stderr: blocking(stderr) })
}

fn several_clients_attach_and_none_loses_anything() -> Outcome {
    let bundle = Bundle::script("seq 1 100000; echo err >&2; echo last words");
    let log = bundle.path("log");
    let place = format!("json-file://{}", log.display());
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", &place, &place))?;
    let mut readers = Vec::new();
    for number in 0..5 {
        let ends = attach(&bundle, &mut client, &number.to_string(), false)?;
        readers.push((drain(ends.stdout), drain(ends.stderr)));
    }
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 0);
    let lines: Vec<String> = (1..=100_000).map(|number| number.to_string()).collect();
    let expected = format!("{}\nlast words\n", lines.join("\n"));
    for (stdout, stderr) in readers {
        // They have seen the end, or the threads would not.
        assert!(stdout.join().expect("stdout") == expected.as_bytes());
        assert_eq!(stderr.join().expect("stderr"), b"err\n");
    }
    let logged = logs::read(&log, LogOptions::default());
    let logged = logged.into_iter().filter(|entry| entry.stream == Stream::Stdout).flat_map(|entry| entry.bytes);
    assert!(logged.eq(expected.into_bytes()));
    bundle.finish(&mut client);
    Ok(())
}

fn an_attached_client_that_is_killed_holds_nothing_up() -> Outcome {
    let bundle = Bundle::script("while :; do echo a line of text; done");
    let log = bundle.path("log");
    let place = format!("json-file://{}?max-size=1000000&max-file=2", log.display());
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", &place, &place))?;
    client.start()?;
    let shim = client.who()?.shim_pid;
    let open = || fs::read_dir(format!("/proc/{shim}/fd")).map_or(0, Iterator::count);
    let before = open();
    // `sleep` has the reading end and never reads: the container stands still until it is killed.
    let (path, reader) = bundle.fifo("stuck");
    let mut stuck = Command::new("/bin/sleep").arg("1000").stdin(reader).stdout(Stdio::null()).spawn()?;
    client.attach(AttachRequest { stdout: path, ..Default::default() })?;
    let size = || -> Vec<u64> {
        let names: [PathBuf; 2] = [log.clone(), bundle.path("log.1")];
        names.iter().map(|name| fs::metadata(name).map_or(0, |metadata| metadata.len())).collect()
    };
    let mut last = size();
    eventually("it stands still", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = size();
        std::mem::replace(&mut last, now.clone()) == now
    });
    stuck.kill()?;
    stuck.wait()?;
    eventually("it goes on", || size() != last);
    // While the log is rotated there is one file more or less.
    eventually("nothing of the client is left", || open() <= before);
    // One that leaves while nothing is written is noticed, too.
    client.kill(9)?;
    client.wait()?;
    bundle.finish(&mut client);

    let bundle = Bundle::script("sleep 1000");
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", "attach:", "attach:"))?;
    client.start()?;
    let shim = client.who()?.shim_pid;
    let open = || fs::read_dir(format!("/proc/{shim}/fd")).map_or(0, Iterator::count);
    let before = open();
    let ends = attach(&bundle, &mut client, "quiet", false)?;
    assert_eq!(open(), before + 3);
    drop(ends);
    eventually("it is noticed", || open() == before);
    client.kill(9)?;
    client.wait()?;
    bundle.finish(&mut client);
    Ok(())
}

fn stdin_stays_open_for_others_or_closes_with_one() -> Outcome {
    let bundle = Bundle::script("cat; exit 5");
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", "attach:", ""))?;
    client.start()?;
    let mut first = attach(&bundle, &mut client, "first", false)?;
    let mut second = attach(&bundle, &mut client, "second", false)?;
    first.stdin.write_all(b"one\n")?;
    let mut line = [0; 4];
    second.stdout.read_exact(&mut line)?;
    assert_eq!(&line, b"one\n");
    second.stdin.write_all(b"two\n")?;
    second.stdout.read_exact(&mut line)?;
    assert_eq!(&line, b"two\n");
    drop((first, second));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(client.state()?.status(), TaskStatus::Running, "nobody is attached, and stdin is open");
    let mut last = attach(&bundle, &mut client, "last", true)?;
    last.stdin.write_all(b"six\n")?;
    drop(last.stdin);
    let output = drain(last.stdout);
    assert_eq!(client.wait()?.exit_status, 5);
    assert_eq!(output.join().expect("stdout"), b"six\n");
    bundle.finish(&mut client);

    // What is sent before the start is kept, and CloseIO closes it.
    let bundle = Bundle::script("cat; exit 6");
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", "attach:", ""))?;
    let mut ends = attach(&bundle, &mut client, "early", false)?;
    ends.stdin.write_all(b"early\n")?;
    client.start()?;
    client.close_stdin()?;
    let output = drain(ends.stdout);
    assert_eq!(client.wait()?.exit_status, 6);
    assert_eq!(output.join().expect("stdout"), b"early\n");
    bundle.finish(&mut client);
    Ok(())
}

fn who_detaches_closes_nothing() -> Outcome {
    let bundle = Bundle::script("cat");
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", "attach:", ""))?;
    client.start()?;
    let mut stays = attach(&bundle, &mut client, "stays", false)?;
    let mut leaves = attach(&bundle, &mut client, "leaves", true)?;
    leaves.stdin.write_all(b"sent before\n")?;
    client.detach("", leaves.attachment)?;
    let mut line = [0; 12];
    stays.stdout.read_exact(&mut line)?;
    assert_eq!(&line, b"sent before\n");
    let mut rest = String::new();
    leaves.stdout.read_to_string(&mut rest)?;
    assert!(rest.is_empty() || rest == "sent before\n", "{rest}");
    drop(leaves);
    // Twice, or one that never was, does no harm.
    client.detach("", 1000)?;
    client.detach("", 0)?;
    stays.stdin.write_all(b"still here..")?;
    stays.stdout.read_exact(&mut line)?;
    assert_eq!(&line, b"still here..");
    client.close_stdin()?;
    assert_eq!(client.wait()?.exit_status, 0);
    bundle.finish(&mut client);
    Ok(())
}

fn a_terminal_is_shared() -> Outcome {
    let bundle = Bundle::script("read -r line; echo \"got $line\"; stty size; exit 2").with_terminal();
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", "attach:", ""))?;
    let mut first = attach(&bundle, &mut client, "first", true)?;
    let second = attach(&bundle, &mut client, "second", false)?;
    client.start()?;
    client.resize(77, 22)?;
    first.stdin.write_all(b"word\n")?;
    let outputs = [drain(first.stdout), drain(second.stdout)];
    assert_eq!(client.wait()?.exit_status, 2);
    for output in outputs {
        let output = String::from_utf8(output.join().expect("stdout"))?;
        assert!(output.ends_with("got word\r\n22 77\r\n"), "{output:?}");
    }
    // There is no other stream: it ends at once.
    let mut nothing = String::new();
    first.stderr.read_to_string(&mut nothing)?;
    assert_eq!(nothing, "");
    bundle.finish(&mut client);
    Ok(())
}

fn a_slow_attached_reader_slows_the_container() -> Outcome {
    let bundle = Bundle::script("seq 1 150000");
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", "attach:", ""))?;
    let mut slow = attach(&bundle, &mut client, "slow", false)?;
    let quick = drain(attach(&bundle, &mut client, "quick", false)?.stdout);
    client.start()?;
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(client.state()?.status(), TaskStatus::Running);
    let mut output = Vec::new();
    slow.stdout.read_to_end(&mut output)?;
    assert_eq!(client.wait()?.exit_status, 0);
    assert!(output == quick.join().expect("quick"));
    assert_eq!(output.split_inclusive(|byte| *byte == b'\n').count(), 150_000);
    bundle.finish(&mut client);
    Ok(())
}

fn attaching_wrongly_is_refused() -> Outcome {
    let bundle = Bundle::script("sleep 1000");
    let mut client = bundle.spawn();
    client.create(bundle.request("", "attach:", ""))?;
    client.start()?;
    let (unread, _) = bundle.fifo("unread");
    let (stdin, _reader) = bundle.fifo("stdin");
    let plain = bundle.path("plain");
    fs::write(&plain, "")?;
    let plain = plain.to_str().expect("text").to_owned();
    let request = AttachRequest::default;
    let cases = [
        (AttachRequest { stdout: unread, ..request() }, Code::Internal, "unread"),
        (AttachRequest { stdout: "/nowhere/out".into(), ..request() }, Code::NotFound, "/nowhere/out"),
        (AttachRequest { stdout: plain.clone(), ..request() }, Code::InvalidArgument, "not a named pipe"),
        (AttachRequest { stdout: format!("file://{plain}"), ..request() }, Code::InvalidArgument, "named pipes"),
        (AttachRequest { stdout: "attach:".into(), ..request() }, Code::InvalidArgument, "named pipes"),
        (AttachRequest { stdin, ..request() }, Code::InvalidArgument, "not open"),
        (AttachRequest { exec_id: "nobody".into(), ..request() }, Code::NotFound, "nobody"),
    ];
    let shim = client.who()?.shim_pid;
    let open = || fs::read_dir(format!("/proc/{shim}/fd")).map_or(0, Iterator::count);
    let before = open();
    for (request, code, text) in cases {
        let error = client.attach(request).expect_err("refused");
        assert_eq!(error.code(), Some(code), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(open(), before);
    let mut kept = Vec::new();
    let refused = loop {
        let (path, reader) = bundle.fifo(&format!("many-{}", kept.len()));
        kept.push(reader);
        if let Err(error) = client.attach(AttachRequest { stdout: path, ..request() }) {
            break error;
        }
    };
    assert_eq!((refused.code(), kept.len()), (Some(Code::ResourceExhausted), 65));
    client.kill(9)?;
    client.wait()?;
    assert_eq!(client.attach(request()).expect_err("it has ended").code(), Some(Code::FailedPrecondition));
    bundle.finish(&mut client);
    Ok(())
}
