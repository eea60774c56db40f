//! Standard streams: all of it, in order, whoever reads slowly, late or not at all.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use estiba_shim::proto::{Code, TaskStatus};

use crate::bundle::{Bundle, SOON, blocking, drain, eventually};
use crate::{Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    ("ten_megabytes_arrive_intact", ten_megabytes_arrive_intact),
    ("a_slow_reader_slows_the_container_alone", a_slow_reader_slows_the_container_alone),
    ("a_reader_that_left_holds_nothing_up", a_reader_that_left_holds_nothing_up),
    ("a_reader_may_come_back", a_reader_may_come_back),
    ("a_stuck_reader_does_not_hide_the_end", a_stuck_reader_does_not_hide_the_end),
    ("stdin_ends_with_its_writers", stdin_ends_with_its_writers),
    ("stdin_is_closed_by_request", stdin_is_closed_by_request),
    ("a_closed_stdin_reaches_the_writer", a_closed_stdin_reaches_the_writer),
    ("streams_that_are_not_wanted_are_null", streams_that_are_not_wanted_are_null),
    ("output_goes_to_a_file", output_goes_to_a_file),
    ("a_terminal_has_its_size", a_terminal_has_its_size),
    ("a_terminal_echoes_and_hangs_up", a_terminal_echoes_and_hangs_up),
    ("a_pipe_held_open_elsewhere_is_given_up", a_pipe_held_open_elsewhere_is_given_up),
    ("bad_places_are_refused", bad_places_are_refused),
];

fn ten_megabytes_arrive_intact() -> Outcome {
    let bundle = Bundle::script("seq 1 1400000");
    let mut client = bundle.spawn();
    let output = drain(bundle.create(&mut client));
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 0);
    let output = String::from_utf8(output.join().expect("stdout"))?;
    assert!(output.len() > 10_000_000);
    assert!(output.lines().enumerate().all(|(index, line)| line.parse() == Ok(index + 1)));
    assert_eq!(output.lines().count(), 1_400_000);
    bundle.finish(&mut client);
    Ok(())
}

fn a_slow_reader_slows_the_container_alone() -> Outcome {
    let bundle = Bundle::script("seq 1 150000; echo done >&2");
    let mut client = bundle.spawn();
    let (stdout_path, stdout) = bundle.fifo("stdout");
    let (stderr_path, stderr) = bundle.fifo("stderr");
    client.create(bundle.request("", &stdout_path, &stderr_path))?;
    let mut stdout = blocking(stdout);
    let stderr = drain(blocking(stderr));
    client.start()?;
    thread::sleep(Duration::from_millis(700));
    // A million bytes fit nowhere, so it still writes; the shim answers meanwhile, and does not spin.
    assert_eq!(client.state()?.status(), TaskStatus::Running);
    let shim = client.who()?.shim_pid;
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{shim}/stat")).expect("stat");
        let fields: Vec<u64> =
            stat.rsplit_once(") ").expect("fields").1.split(' ').filter_map(|field| field.parse().ok()).collect();
        // utime and stime; the state letter is no number and so not counted.
        fields[10] + fields[11]
    };
    let before = ticks();
    thread::sleep(Duration::from_millis(500));
    assert!(ticks() - before < 10, "the shim is busy doing nothing");
    let mut output = Vec::new();
    let mut buffer = [0; 5000];
    for _ in 0..20 {
        let count = stdout.read(&mut buffer)?;
        output.extend_from_slice(&buffer[..count]);
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(client.state()?.status(), TaskStatus::Running);
    stdout.read_to_end(&mut output)?;
    assert_eq!(client.wait()?.exit_status, 0);
    assert_eq!(stderr.join().expect("stderr"), b"done\n");
    let output = String::from_utf8(output)?;
    assert!(output.lines().enumerate().all(|(index, line)| line.parse() == Ok(index + 1)));
    assert_eq!(output.lines().count(), 150_000);
    bundle.finish(&mut client);
    Ok(())
}

fn a_reader_that_left_holds_nothing_up() -> Outcome {
    let bundle = Bundle::script("seq 1 500000; exit 5");
    let mut client = bundle.spawn();
    let mut stdout = bundle.create(&mut client);
    client.start()?;
    stdout.read_exact(&mut [0; 1000])?;
    thread::sleep(Duration::from_millis(100));
    drop(stdout);
    assert_eq!(client.wait()?.exit_status, 5);
    bundle.finish(&mut client);
    Ok(())
}

fn a_reader_may_come_back() -> Outcome {
    let bundle = Bundle::script("while :; do echo still here; sleep 0.02; done");
    let mut client = bundle.spawn();
    let mut stdout = bundle.create(&mut client);
    client.start()?;
    stdout.read_exact(&mut [0; 11])?;
    drop(stdout);
    thread::sleep(Duration::from_millis(100));
    let mut stdout = fs::File::open(bundle.path("stdout"))?;
    let mut line = [0; 11];
    stdout.read_exact(&mut line)?;
    assert_eq!(&line, b"still here\n");
    client.kill(9)?;
    client.wait()?;
    bundle.finish(&mut client);
    Ok(())
}

fn a_stuck_reader_does_not_hide_the_end() -> Outcome {
    // More than the pipe towards the reader takes, less than that and the shim and the container's pipe together.
    let bundle = Bundle::script("seq 1 18000; exit 8");
    let mut client = bundle.spawn();
    let stdout = bundle.create(&mut client);
    client.start()?;
    let start = Instant::now();
    assert_eq!(client.wait()?.exit_status, 8);
    assert!(start.elapsed() > Duration::from_secs(5), "the reader had its time");
    assert_eq!(bundle.exit_record().expect("a record").status, 8);
    // Nothing is lost to the reader if it wakes up after all.
    let output = String::from_utf8(drain(stdout).join().expect("stdout"))?;
    assert_eq!(output.lines().count(), 18_000);
    bundle.finish(&mut client);
    Ok(())
}

fn stdin_ends_with_its_writers() -> Outcome {
    let bundle = Bundle::script("cat; echo end");
    let mut client = bundle.spawn();
    let (stdin_path, stdin_reader) = bundle.fifo("stdin");
    let mut stdin = OpenOptions::new().write(true).open(&stdin_path)?;
    drop(stdin_reader);
    let (stdout_path, stdout) = bundle.fifo("stdout");
    client.create(bundle.request(&stdin_path, &stdout_path, ""))?;
    let output = drain(blocking(stdout));
    client.start()?;
    // More than all pipes hold, so that every write is cut somewhere.
    let sent: Vec<u8> = (0..700_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    stdin.write_all(&sent)?;
    assert_eq!(client.state()?.status(), TaskStatus::Running);
    drop(stdin);
    assert_eq!(client.wait()?.exit_status, 0);
    let output = output.join().expect("stdout");
    assert!(output.strip_suffix(b"end\n") == Some(sent.as_slice()), "{} bytes came back", output.len());
    bundle.finish(&mut client);
    Ok(())
}

fn stdin_is_closed_by_request() -> Outcome {
    let bundle = Bundle::new(&["cat"]);
    let mut client = bundle.spawn();
    let (stdin_path, stdin_reader) = bundle.fifo("stdin");
    let mut stdin = OpenOptions::new().write(true).open(&stdin_path)?;
    drop(stdin_reader);
    let (stdout_path, stdout) = bundle.fifo("stdout");
    client.create(bundle.request(&stdin_path, &stdout_path, ""))?;
    let output = drain(blocking(stdout));
    client.start()?;
    stdin.write_all(b"before the end")?;
    client.close_stdin()?;
    client.close_stdin()?;
    assert_eq!(client.wait()?.exit_status, 0, "though the writer is still there");
    assert_eq!(output.join().expect("stdout"), b"before the end");
    bundle.finish(&mut client);
    Ok(())
}

fn a_closed_stdin_reaches_the_writer() -> Outcome {
    let bundle = Bundle::script("exec <&-; sleep 1000");
    let mut client = bundle.spawn();
    let (stdin_path, stdin_reader) = bundle.fifo("stdin");
    let mut stdin = OpenOptions::new().write(true).open(&stdin_path)?;
    drop(stdin_reader);
    client.create(bundle.request(&stdin_path, "", ""))?;
    client.start()?;
    eventually("the writer is told", || stdin.write_all(b"unwanted").is_err());
    client.kill(9)?;
    client.wait()?;
    bundle.finish(&mut client);
    Ok(())
}

fn streams_that_are_not_wanted_are_null() -> Outcome {
    let bundle =
        Bundle::script("read -r line && exit 1; echo lost; echo lost >&2; ls -l /proc/self/fd > /tmp/fds; exit 2");
    let mut client = bundle.spawn();
    client.create(bundle.request("", "", ""))?;
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 2);
    bundle.finish(&mut client);
    Ok(())
}

fn output_goes_to_a_file() -> Outcome {
    let bundle = Bundle::script("echo to stdout; echo to stderr >&2; seq 1 50000");
    let mut client = bundle.spawn();
    let path = bundle.path("log");
    fs::write(&path, "kept\n")?;
    let place = format!("file://{}", path.display());
    client.create(bundle.request("", &place, &place))?;
    client.start()?;
    client.wait()?;
    let written = fs::read_to_string(&path)?;
    assert!(written.starts_with("kept\n"));
    assert!(written.contains("to stdout\n") && written.contains("to stderr\n") && written.contains("\n50000\n"));
    bundle.finish(&mut client);
    Ok(())
}

fn a_terminal_has_its_size() -> Outcome {
    let bundle = Bundle::script("read -r line; stty size; exit 3").with_terminal();
    let mut client = bundle.spawn();
    let (stdin_path, stdin_reader) = bundle.fifo("stdin");
    let mut stdin = OpenOptions::new().write(true).open(&stdin_path)?;
    drop(stdin_reader);
    let (stdout_path, stdout) = bundle.fifo("stdout");
    client.create(bundle.request(&stdin_path, &stdout_path, ""))?;
    let output = drain(blocking(stdout));
    client.resize(80, 24)?;
    client.start()?;
    client.resize(123, 45)?;
    stdin.write_all(b"\n")?;
    assert_eq!(client.wait()?.exit_status, 3);
    let output = String::from_utf8(output.join().expect("stdout"))?;
    assert!(output.contains("45 123\r\n"), "{output:?}");
    bundle.finish(&mut client);

    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    client.create(bundle.request("", "", ""))?;
    assert_eq!(client.resize(80, 24).expect_err("no terminal").code(), Some(Code::FailedPrecondition));
    bundle.finish(&mut client);
    Ok(())
}

fn a_terminal_echoes_and_hangs_up() -> Outcome {
    let bundle = Bundle::new(&["sh"]).with_terminal();
    let mut client = bundle.spawn();
    let (stdin_path, stdin_reader) = bundle.fifo("stdin");
    let mut stdin = OpenOptions::new().write(true).open(&stdin_path)?;
    drop(stdin_reader);
    let (stdout_path, stdout) = bundle.fifo("stdout");
    client.create(bundle.request(&stdin_path, &stdout_path, ""))?;
    let output = drain(blocking(stdout));
    client.start()?;
    stdin.write_all(b"echo $((40 + 2)); tty_or_not=$(test -t 0 && echo tty); echo is-$tty_or_not\n")?;
    stdin.write_all(b"seq 1 20000; exit 11\n")?;
    assert_eq!(client.wait()?.exit_status, 11);
    let output = String::from_utf8(output.join().expect("stdout"))?;
    assert!(output.contains("42\r\n") && output.contains("is-tty\r\n"), "{}", &output[..output.len().min(2000)]);
    assert!(output.contains("\r\n19999\r\n20000\r\n"), "the last of the output is there");
    bundle.finish(&mut client);
    Ok(())
}

fn a_pipe_held_open_elsewhere_is_given_up() -> Outcome {
    let bundle = Bundle::script("echo last words; sleep 0.5; exit 2");
    let mut client = bundle.spawn();
    let output = drain(bundle.create(&mut client));
    let pid = client.start()?;
    // As a process that left the container's cgroup would hold it.
    let held = OpenOptions::new().write(true).open(format!("/proc/{pid}/fd/1"))?;
    let start = Instant::now();
    assert_eq!(client.wait()?.exit_status, 2);
    assert!(start.elapsed() < SOON / 2);
    assert_eq!(output.join().expect("stdout"), b"last words\n");
    drop(held);
    bundle.finish(&mut client);
    Ok(())
}

fn bad_places_are_refused() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    let plain = bundle.path("plain");
    fs::write(&plain, "")?;
    let plain = plain.to_str().expect("text");
    let absent = bundle.path("absent");
    let absent = absent.to_str().expect("text");
    let cases = [
        (("", "binary:///bin/logger?x=y", ""), Code::InvalidArgument),
        (("", "relative", ""), Code::InvalidArgument),
        (("", plain, ""), Code::InvalidArgument),
        (("", "", plain), Code::InvalidArgument),
        ((plain, "", ""), Code::InvalidArgument),
        (("file:///dev/null", "", ""), Code::InvalidArgument),
        (("", absent, ""), Code::NotFound),
    ];
    for ((stdin, stdout, stderr), code) in cases {
        let error = client.create(bundle.request(stdin, stdout, stderr)).expect_err("refused");
        assert_eq!(error.code(), Some(code), "{error}");
        let place = [stdin, stdout, stderr].concat();
        assert!(error.to_string().contains(&place), "{error}");
    }
    // After all that the shim is as good as new.
    client.create(bundle.request("", "", ""))?;
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 0);
    bundle.finish(&mut client);
    Ok(())
}
