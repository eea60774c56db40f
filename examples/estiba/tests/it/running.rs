//! `estiba run`: what goes in, what comes out, and how it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Stdio};

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::home::{HELLO, Home, Result, finish, until, wait};
use crate::image::{Layout, busybox};
use crate::need::{Need, text, trial};
use crate::processes;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("embedded_image_tells_that_it_is_isolated", &[], tells),
        trial("exit_status_is_the_containers", &[], statuses),
        trial("signals_reach_the_container", &[], signals),
        trial("a_killed_container_ends_with_137", &[], killed),
        trial("stdout_and_stderr_are_apart", &[], streams),
        trial("stdin_goes_in_whole", &[], stdin),
        trial("large_output_comes_out_whole", &[], large),
        trial("a_closed_stdout_ends_the_run", &[], closed_stdout),
        trial("options_of_the_process", &[Need::Busybox], process),
        trial("volumes", &[Need::Busybox], volumes),
        trial("read_only_root", &[Need::Busybox], read_only),
        trial("isolation", &[Need::Busybox], isolation),
        trial("ps_and_rm", &[], ps_and_rm),
        trial("the_container_outlives_a_killed_command", &[], outlives),
    ]
}

fn tells(home: &Home) -> Result {
    let ended = home.run(&["run", "--rm", "--hostname", "quay", HELLO])?.expect_status(0)?;
    for word in ["quay", "pid", "capabilit"] {
        if !ended.out.to_lowercase().contains(word) {
            return Err(format!("{word} is not in what it tells:\n{}", ended.out).into());
        }
    }
    Ok(())
}

fn statuses(home: &Home) -> Result {
    for status in [0, 1, 7, 125, 255] {
        home.run(&["run", "--rm", HELLO, "exit", &status.to_string()])?.expect_status(status)?;
    }
    Ok(())
}

/// A container in the background that has said its first line.
pub(crate) fn started(home: &Home, arguments: &[&str], first: &str) -> Result<(Child, BufReader<ChildStdout>)> {
    let mut child = home.command(arguments).stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    let mut line = String::new();
    out.read_line(&mut line)?;
    if line.trim_end() == first { Ok((child, out)) } else { Err(format!("{line:?} instead of {first:?}").into()) }
}

fn signals(home: &Home) -> Result {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGQUIT] {
        let (mut child, mut out) = started(home, &["run", "--rm", HELLO, "signal-wait"], "ready")?;
        kill(Pid::from_raw(child.id() as i32), signal)?;
        let status = wait(&mut child)?;
        let mut said = String::new();
        out.read_to_string(&mut said)?;
        let expected = format!("signal {}", signal as i32);
        if !said.starts_with(&expected) || status.code() != Some(0) {
            return Err(format!("{signal}: {said:?} and {status}").into());
        }
    }
    Ok(())
}

/// The container's first process, as this machine numbers it, by the last word of its command line.
fn init(word: &str) -> Result<i32> {
    let mut found = None;
    until("the container's process", || {
        // The command that started it has the same last word.
        let is_it =
            |process: &processes::Process| process.command.ends_with(word) && !process.command.contains("--root");
        found = processes::below().into_iter().find(is_it).map(|process| process.pid);
        found.is_some()
    })?;
    Ok(found.ok_or("no process")?)
}

fn killed(home: &Home) -> Result {
    let (mut child, _out) = started(home, &["run", "--rm", HELLO, "signal-wait"], "ready")?;
    processes::end(init("signal-wait")?);
    match wait(&mut child)?.code() {
        Some(137) => Ok(()),
        other => Err(format!("{other:?} instead of 137").into()),
    }
}

fn streams(home: &Home) -> Result {
    let ended = home.run(&["run", "--rm", HELLO, "err", "to", "stderr"])?.expect_status(0)?;
    assert_eq!((ended.out.as_str(), ended.err.as_str()), ("", "to stderr\n"));
    let ended = home.run(&["run", "--rm", HELLO, "echo", "to", "stdout"])?.expect_status(0)?;
    assert_eq!((ended.out.as_str(), ended.err.as_str()), ("to stdout\n", ""));
    Ok(())
}

fn stdin(home: &Home) -> Result {
    let mut bytes: Vec<u8> = (0..3_000_001_u32).map(|number| (number * 7 % 251) as u8).collect();
    bytes.push(b'\n');
    let mut child =
        home.command(&["run", "--rm", "-i", HELLO, "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (mut input, mut output) = (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let mut received = Vec::new();
    output.read_to_end(&mut received)?;
    writer.join().map_err(|_| "the writer panicked")??;
    assert_eq!(wait(&mut child)?.code(), Some(0));
    assert!(received == bytes, "{} bytes came back of {}", received.len(), bytes.len());
    // Without -i the container has nothing to read, whatever is there.
    home.run(&["run", "--rm", HELLO, "cat"])?.expect_out("")?;
    Ok(())
}

fn large(home: &Home) -> Result {
    const LINES: usize = 1_000_000;
    let ended = home.run(&["run", "--rm", HELLO, "lines", &LINES.to_string()])?.expect_status(0)?;
    let mut lines = ended.out.lines();
    assert!((1..=LINES).all(|number| lines.next() == Some(number.to_string().as_str())), "a line is lost");
    assert_eq!(lines.next(), None);
    Ok(())
}

fn closed_stdout(home: &Home) -> Result {
    let (mut child, out) = started(home, &["run", "--rm", HELLO, "lines", "100000000"], "1")?;
    drop(out);
    let status = wait(&mut child)?;
    assert!(status.code() == Some(141), "{status} instead of 141");
    Ok(())
}

fn image(home: &Home) -> Result<String> {
    let folder = home.folder().join("busybox");
    if !folder.exists() {
        Layout::write(&folder, &[busybox()?])?;
    }
    let reference = Layout { folder, layer: "".into(), config: "".into(), manifest: "".into() }.reference();
    Ok(reference)
}

/// Imports the image, so that what stays of that is no difference.
fn with_image(home: &Home) -> Result<String> {
    let image = image(home)?;
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    Ok(image)
}

fn process(home: &Home) -> Result {
    let image = with_image(home)?;
    let run = |options: &[&str], command: &[&str], expected: &str| -> Result {
        let words = [&["run", "--rm"], options, &[image.as_str()], command].concat();
        home.run(&words)?.expect_out(expected).map_err(|error| format!("{options:?} {command:?}: {error}"))?;
        Ok(())
    };
    run(&[], &["pwd"], "/tmp\n")?;
    run(&["-w", "/etc"], &["pwd"], "/etc\n")?;
    run(&["-w", "/made/for/it"], &["pwd"], "/made/for/it\n")?;
    run(&["-e", "A=b c"], &["sh", "-c", "echo \"$A $FROM_IMAGE\""], "b c yes\n")?;
    run(&["-e", "FROM_IMAGE=no"], &["sh", "-c", "echo $FROM_IMAGE"], "no\n")?;
    run(&["-h", "quay"], &["hostname"], "quay\n")?;
    run(&["-u", "1000:1000"], &["sh", "-c", "id -u; id -g"], "1000\n1000\n")?;
    run(&["-u", "user"], &["sh", "-c", "id -u; id -g; echo $HOME"], "1000\n1000\n/tmp\n")?;
    run(&["--entrypoint", "echo"], &["hello"], "hello\n")?;
    run(&[], &["sh", "-c", "echo $$"], "1\n")?;
    run(&[], &["sh", "-c", "sh -c 'kill -TERM $$'; echo $?"], "143\n")?;
    run(&[], &["cat", "/proc/self/comm"], "cat\n")?;
    Ok(())
}

fn volumes(home: &Home) -> Result {
    let image = with_image(home)?;
    let shared = home.folder().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("in"), "from outside\n")?;
    let volume = format!("{}:/shared", text(&shared));
    home.run(&["run", "--rm", "-v", &volume, &image, "sh", "-c", "cat /shared/in; echo from inside > /shared/out"])?
        .expect_out("from outside\n")?;
    assert_eq!(fs::read_to_string(shared.join("out"))?, "from inside\n");
    let ended = home.run(&["run", "--rm", "-v", &format!("{volume}:ro"), &image, "touch", "/shared/not"])?;
    let ended = ended.expect_status(1)?;
    assert!(ended.err.contains("Read-only file system"), "{}", ended.err);
    assert!(!shared.join("not").exists());
    Ok(())
}

fn read_only(home: &Home) -> Result {
    let image = with_image(home)?;
    home.run(&["run", "--rm", &image, "touch", "/file"])?.expect_status(0)?;
    let ended = home.run(&["run", "--rm", "--read-only", &image, "touch", "/file"])?.expect_status(1)?;
    assert!(ended.err.contains("Read-only file system"), "{}", ended.err);
    Ok(())
}

fn isolation(home: &Home) -> Result {
    let image = with_image(home)?;
    // A write in one container is in no other.
    home.run(&["run", "--rm", &image, "sh", "-c", "echo x > /file; rm /etc/os-release"])?.expect_status(0)?;
    home.run(&["run", "--rm", &image, "sh", "-c", "test ! -e /file && test -e /etc/os-release"])?.expect_status(0)?;
    let said = |command: &str| -> Result<String> {
        Ok(home.run(&["run", "--rm", "--network", "none", &image, "sh", "-c", command])?.expect_status(0)?.out)
    };
    let namespaces = "for n in pid mnt uts ipc net cgroup; do ls -l /proc/self/ns/$n; done";
    let inside = said(namespaces)?;
    for name in ["pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let own = fs::read_link(format!("/proc/self/ns/{name}"))?.display().to_string();
        assert!(inside.contains(&format!("{name}:[")), "{name} is not told: {inside}");
        assert!(!inside.contains(&own), "the {name} namespace is the host's");
    }
    let status = said("cat /proc/self/status")?;
    for line in ["NoNewPrivs:\t1", "CapEff:\t00000000a80425fb", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    // Masked and read-only paths. Which of them there are is the kernel's choice.
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/latency_stats"] {
        if fs::exists(path)? {
            assert_eq!(said(&format!("cat {path}"))?, "", "{path} can be read");
        }
    }
    home.run(&["run", "--rm", &image, "sh", "-c", "echo 1 > /proc/sys/kernel/panic"])?.expect_status(1)?;
    // No network but the loopback, and that one is up.
    let network = said("cat /proc/net/dev")?;
    assert_eq!(network.lines().count(), 3, "{network}");
    let host = home.run(&["run", "--rm", "--network", "host", &image, "ls", "-l", "/proc/self/ns/net"])?;
    let own = fs::read_link("/proc/self/ns/net")?.display().to_string();
    assert!(host.out.contains(&own), "{host:?}");
    Ok(())
}

fn ps_and_rm(home: &Home) -> Result {
    let (mut child, _out) = started(home, &["run", "--name", "one", HELLO, "signal-wait"], "ready")?;
    let ps = home.run(&["ps"])?.expect_status(0)?;
    assert!(ps.out.contains("one") && ps.out.contains("Up"), "{}", ps.out);
    let refused = home.run(&["rm", "one"])?;
    assert!(refused.status.code() != Some(0) && refused.err.lines().count() == 1, "{refused:?}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
    assert_eq!(wait(&mut child)?.code(), Some(0));
    let ps = home.run(&["ps"])?.expect_status(0)?;
    assert!(!ps.out.contains("one"), "{}", ps.out);
    let ps = home.run(&["ps", "-a"])?.expect_status(0)?;
    assert!(ps.out.contains("one") && ps.out.contains("Exited (0)"), "{}", ps.out);
    home.run(&["rm", "one"])?.expect_status(0)?;
    let ps = home.run(&["ps", "-aq"])?.expect_out("")?;
    drop(ps);
    // A running one only by force.
    let (mut child, _out) = started(home, &["run", "--name", "two", HELLO, "signal-wait"], "ready")?;
    home.run(&["rm", "-f", "two"])?.expect_status(0)?;
    assert_eq!(wait(&mut child)?.code(), Some(137));
    Ok(())
}

fn outlives(home: &Home) -> Result {
    let (mut child, _out) = started(home, &["run", "--rm", "--name", "one", HELLO, "signal-wait"], "ready")?;
    child.kill()?;
    child.wait()?;
    let ps = home.run(&["ps"])?.expect_status(0)?;
    assert!(ps.out.contains("one") && ps.out.contains("Up"), "{}", ps.out);
    // Its end is seen by nobody but its shim, which cleans up.
    processes::end(init("signal-wait")?);
    finish(&mut home.command(&["ps", "-aq"]))?.expect_status(0)?;
    Ok(())
}
