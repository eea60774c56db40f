//! Being connected with a container that lives on: exec, attach, the keys that leave it, a terminal that goes away.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::home::{Home, Result, until, wait};
use crate::lifecycle::{IMAGE, background, inspected, load};
use crate::need::{Need, trial};
use crate::pty::Terminal;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("exec_adds_a_process", &[Need::Busybox], exec),
        trial("exec_at_a_terminal", &[Need::Busybox], exec_terminal),
        trial("attach_shows_and_feeds", &[Need::Busybox], attach),
        trial("keys_leave_a_container_running", &[Need::Busybox], keys),
        trial("a_terminal_that_hangs_up_ends_the_session", &[Need::Busybox], hang_up),
        trial("signals_of_an_attached_command", &[Need::Busybox], signals),
        trial("an_interactive_start", &[Need::Busybox], interactive_start),
    ]
}

fn exec(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sleep", "1000"])?;
    let run = |words: &[&str]| home.run(&[&["exec"], words].concat());
    run(&["one", "echo", "hello"])?.expect_out("hello\n")?;
    run(&["one", "sh", "-c", "exit 7"])?.expect_status(7)?;
    run(&["one", "no-such-program"])?.expect_status(127)?;
    run(&["one", "/etc/not-a-program"])?.expect_status(126)?;
    run(&["nothing", "true"])?.expect_status(1)?;
    run(&["one"])?.expect_status(1)?;
    run(&["-e", "A=b", "-w", "/tmp", "-u", "1000:1000", "one", "sh", "-c", "echo $A; pwd; id -u"])?
        .expect_out("b\n/tmp\n1000\n")?;
    let errors = run(&["one", "sh", "-c", "echo to stderr >&2"])?.expect_status(0)?;
    assert_eq!((errors.out.as_str(), errors.err.as_str()), ("", "to stderr\n"));
    // Options after the container are the program's.
    run(&["one", "ls", "-d", "/"])?.expect_out("/\n")?;
    run(&["one", "echo", "--", "-it", "--help"])?.expect_out("-- -it --help\n")?;
    run(&["--privileged", "one", "grep", "CapEff", "/proc/self/status"])?.expect_status(0)?;
    run(&["-d", "one", "touch", "/made"])?.expect_out("")?;
    until("the file of a detached program", || {
        run(&["one", "test", "-e", "/made"]).is_ok_and(|ended| ended.status.success())
    })?;
    // Input goes in whole.
    let mut child = home.command(&["exec", "-i", "one", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    let mut input = child.stdin.take().ok_or("no stdin")?;
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let mut received = Vec::new();
    child.stdout.take().ok_or("no stdout")?.read_to_end(&mut received)?;
    writer.join().map_err(|_| "the writer panicked")??;
    assert!(wait(&mut child)?.success() && received == bytes, "{} bytes came back of {}", received.len(), bytes.len());
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn exec_terminal(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sleep", "1000"])?;
    let mut terminal = Terminal::open(home.command(&["exec", "-it", "one", "sh"]), 97, 31)?;
    terminal.read_until("# ")?;
    terminal.press("stty size; echo m''ark\r")?;
    let shown = terminal.read_until("mark")?;
    assert!(shown.contains("31 97"), "{shown:?}");
    terminal.read_until("# ")?;
    terminal.press("exit 9\r")?;
    let (status, shown) = terminal.finish()?;
    assert_eq!(status.code(), Some(9), "{shown:?}");
    assert_eq!(inspected(home, "one", "{{.State.Status}}")?, "running");
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn attach(home: &Home) -> Result {
    load(home)?;
    let echoes = "while read line; do echo got $line; test \"$line\" != end || exit 6; done";
    home.run(&["run", "-d", "-i", "--name", "one", IMAGE, "sh", "-c", echoes])?.expect_status(0)?;
    let mut watcher = home.command(&["attach", "--no-stdin", "one"]).stdout(Stdio::piped()).spawn()?;
    let mut seen = BufReader::new(watcher.stdout.take().ok_or("no stdout")?);
    let mut typist = home.command(&["attach", "one"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut keys = typist.stdin.take().ok_or("no stdin")?;
    let mut said = BufReader::new(typist.stdout.take().ok_or("no stdout")?);
    let mut line = String::new();
    // What is typed before the watcher is there is not seen by it: it is typed until it is.
    let watching = std::thread::spawn(move || -> std::io::Result<_> {
        let mut line = String::new();
        seen.read_line(&mut line)?;
        Ok((seen, line))
    });
    until("both to be attached", || {
        let _ = writeln!(keys, "x");
        line.clear();
        said.read_line(&mut line).is_ok_and(|_| line == "got x\n") && watching.is_finished()
    })?;
    let (mut seen, line) = watching.join().map_err(|_| "the watcher's reader panicked")??;
    assert_eq!(line, "got x\n");
    writeln!(keys, "end")?;
    let mut rest = String::new();
    said.read_to_string(&mut rest)?;
    assert!(rest.trim_start_matches("got x\n") == "got end\n", "{rest}");
    assert_eq!(wait(&mut typist)?.code(), Some(6));
    let mut rest = String::new();
    seen.read_to_string(&mut rest)?;
    assert!(rest.ends_with("got end\n"), "{rest}");
    assert_eq!(wait(&mut watcher)?.code(), Some(6));
    let refused = home.run(&["attach", "one"])?.expect_status(1)?;
    assert!(refused.err.contains("cannot attach to a stopped container"), "{}", refused.err);
    home.run(&["rm", "one"])?.expect_status(0)?;
    Ok(())
}

fn keys(home: &Home) -> Result {
    load(home)?;
    let mut terminal = Terminal::open(home.command(&["run", "-it", "--name", "one", IMAGE, "sh"]), 80, 24)?;
    terminal.read_until("# ")?;
    terminal.press("A=kept; echo m''ark1\r")?;
    terminal.read_until("mark1")?;
    terminal.read_until("# ")?;
    terminal.press("\x10\x11")?;
    let (status, shown) = terminal.finish()?;
    assert!(status.success(), "{status}: {shown:?}");
    assert_eq!(inspected(home, "one", "{{.State.Status}}")?, "running");
    // The shell goes on where it was; other keys leave it this time, and half of them are passed on.
    let attach = home.command(&["attach", "--detach-keys", "ctrl-x,y", "one"]);
    let mut terminal = Terminal::open(attach, 80, 24)?;
    terminal.press("echo $A m''ark2\r")?;
    terminal.read_until("kept mark2")?;
    terminal.press("cat -v\r")?;
    terminal.press("\x18z\r")?;
    terminal.read_until("^Xz")?;
    terminal.press("\x03")?;
    terminal.read_until("# ")?;
    terminal.press("\x18y")?;
    let (status, shown) = terminal.finish()?;
    assert_eq!(status.code(), Some(1), "{shown:?}");
    assert!(shown.contains("read escape sequence"), "{shown:?}");
    assert_eq!(inspected(home, "one", "{{.State.Status}}")?, "running");
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn hang_up(home: &Home) -> Result {
    load(home)?;
    // One whose program ends when its terminal hangs up, and one whose program does not.
    for (name, command, runs) in [
        ("ends", "trap 'exit 3' HUP; echo ready; while :; do sleep 0.01; done", "exited"),
        ("stays", "trap '' HUP; echo ready; while :; do sleep 0.01; done", "running"),
    ] {
        let mut terminal =
            Terminal::open(home.command(&["run", "-it", "--name", name, IMAGE, "sh", "-c", command]), 80, 24)?;
        terminal.read_until("ready")?;
        terminal.hang_up()?;
        until(name, || inspected(home, name, "{{.State.Status}}").is_ok_and(|status| status == runs))?;
        home.run(&["rm", "-f", name])?.expect_status(0)?;
    }
    Ok(())
}

fn signals(home: &Home) -> Result {
    load(home)?;
    let hears = "trap 'echo heard' USR1; echo ready; while :; do sleep 0.01; done";
    for (options, heard) in [(&[][..], true), (&["--sig-proxy=false"], false)] {
        let words = [&["run", "--name", "one"], options, &[IMAGE, "sh", "-c", hears]].concat();
        let mut child = home.command(&words).stdout(Stdio::piped()).spawn()?;
        let mut out = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut line = String::new();
        out.read_line(&mut line)?;
        assert_eq!(line, "ready\n");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGUSR1)?;
        if heard {
            line.clear();
            out.read_line(&mut line)?;
            assert_eq!(line, "heard\n");
            // A change of size is no concern of a container without a terminal.
            kill(Pid::from_raw(child.id() as i32), Signal::SIGWINCH)?;
            std::thread::sleep(Duration::from_millis(50));
        } else {
            // It does to the command what it does to any, and the container goes on.
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&wait(&mut child)?), Some(10));
        }
        assert_eq!(inspected(home, "one", "{{.State.Status}}")?, "running");
        home.run(&["rm", "-f", "one"])?.expect_status(0)?;
        if heard {
            assert_eq!(wait(&mut child)?.code(), Some(137));
        }
    }
    Ok(())
}

fn interactive_start(home: &Home) -> Result {
    load(home)?;
    home.run(&["create", "-i", "--name", "one", IMAGE, "cat"])?.expect_status(0)?;
    for word in ["first", "second"] {
        let mut child = home.command(&["start", "-ai", "one"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().ok_or("no stdin")?;
        writeln!(input, "{word}")?;
        drop(input);
        let mut said = String::new();
        child.stdout.take().ok_or("no stdout")?.read_to_string(&mut said)?;
        assert_eq!((said, wait(&mut child)?.code()), (format!("{word}\n"), Some(0)));
    }
    home.run(&["rm", "one"])?.expect_status(0)?;
    Ok(())
}
