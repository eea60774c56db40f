//! The tool box: one small tool for each argument.

use std::io::{self, Error, ErrorKind, IsTerminal, Read, Result, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::sys;

const USAGE: &str = "\
Usage: hello                 say what this container looks like from inside
       hello exit N          exit with status N
       hello echo WORDS...   print the words          (err WORDS... prints them on stderr)
       hello cat [FILE]      copy a file, or stdin, to stdout
       hello lines N         print N numbered lines
       hello env             print the environment, sorted
       hello id              print user, group and working directory
       hello ls [DIR]        list a directory with modes and owners
       hello write FILE TEXT write a file
       hello tty             say whether there is a terminal, and its size
       hello sleep SECONDS   sleep (fractions are fine)
       hello eat MIB         allocate and touch that much memory
       hello fork N          start N processes, say how many could start, end them
       hello signal-wait     print the first signal that arrives, and exit
";

/// Runs the tool `name`; the result is the exit status.
pub(crate) fn run(name: &str, arguments: &[String]) -> Result<u8> {
    let mut stdout = io::stdout().lock();
    match (name, arguments) {
        ("help" | "--help" | "-h", _) => write!(stdout, "{USAGE}")?,
        ("exit", [status]) => return number(status),
        ("echo", words) => writeln!(stdout, "{}", words.join(" "))?,
        ("err", words) => writeln!(io::stderr(), "{}", words.join(" "))?,
        ("cat", []) => copy(&mut io::stdin().lock(), &mut stdout)?,
        ("cat", [file]) => copy(&mut std::fs::File::open(file).map_err(|error| named(file, &error))?, &mut stdout)?,
        ("lines", [count]) => {
            let mut stdout = io::BufWriter::new(stdout);
            for line in 1..=number::<u64>(count)? {
                writeln!(stdout, "{line}")?;
            }
            stdout.flush()?;
        }
        ("env", []) => {
            let mut variables: Vec<_> = std::env::vars_os().collect();
            variables.sort();
            for (key, value) in variables {
                writeln!(stdout, "{}={}", key.to_string_lossy(), value.to_string_lossy())?;
            }
        }
        ("id", []) => {
            let own = std::fs::metadata("/proc/self")?;
            let directory = std::env::current_dir()?;
            writeln!(stdout, "uid={} gid={} cwd={}", own.uid(), own.gid(), directory.display())?;
        }
        ("ls", []) => list(".", &mut stdout)?,
        ("ls", [directory]) => list(directory, &mut stdout)?,
        ("write", [file, text]) => std::fs::write(file, format!("{text}\n")).map_err(|error| named(file, &error))?,
        ("tty", []) => match sys::window_size() {
            Some((columns, rows)) if io::stdin().is_terminal() => writeln!(stdout, "terminal {columns}x{rows}")?,
            _ => writeln!(stdout, "no terminal")?,
        },
        ("sleep", [seconds]) => {
            let seconds = number::<f64>(seconds)?;
            let time = Duration::try_from_secs_f64(seconds)
                .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))?;
            std::thread::sleep(time);
        }
        ("eat", [mebibytes]) => eat(number(mebibytes)?, &mut stdout)?,
        ("fork", [count]) => return fork(number(count)?, &mut stdout),
        ("signal-wait", []) => {
            let signals = sys::Signals::block();
            writeln!(stdout, "ready")?;
            let signal = next_that_matters(&signals);
            writeln!(
                stdout,
                "signal {signal}{}",
                signal_name(signal).map(|name| format!(" ({name})")).unwrap_or_default()
            )?;
        }
        _ => {
            write!(io::stderr(), "{USAGE}")?;
            return Ok(2);
        }
    }
    Ok(0)
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N> {
    text.parse().map_err(|_| Error::new(ErrorKind::InvalidInput, format!("'{text}' is not a number that fits here")))
}

fn named(path: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{path}: {error}"))
}

/// Like `io::copy`, but what was read is handed on at once: an interactive reader waits for no newline.
fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&buffer[..count])?;
        to.flush()?;
    }
}

fn list(directory: &str, stdout: &mut impl Write) -> Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| named(directory, &error))? {
        names.push(entry?.path());
    }
    names.sort();
    for path in names {
        let found = path.symlink_metadata()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        writeln!(stdout, "{:06o} {}:{} {:>9} {name}", found.mode(), found.uid(), found.gid(), found.size())?;
    }
    Ok(())
}

/// Touches every page, so that the memory is charged and not only promised.
fn eat(mebibytes: usize, stdout: &mut impl Write) -> Result<()> {
    let mut eaten = Vec::new();
    for _ in 0..mebibytes {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(1 << 20).is_err() {
            return Err(Error::new(ErrorKind::OutOfMemory, format!("no more memory after {} MiB", eaten.len())));
        }
        piece.resize(1 << 20, 1_u8);
        eaten.push(std::hint::black_box(piece));
    }
    writeln!(stdout, "ate {} MiB", eaten.len())
}

/// Every child copies its empty stdin, a pipe of ours, to nowhere: it lives until we close the pipe or end.
fn fork(count: usize, stdout: &mut impl Write) -> Result<u8> {
    let mut children: Vec<Child> = Vec::new();
    let mut refusal = None;
    while children.len() < count && refusal.is_none() {
        let child = Command::new("/proc/self/exe").arg("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        match child {
            Ok(child) => children.push(child),
            Err(error) => refusal = Some(error),
        }
    }
    let started = children.len();
    for child in &mut children {
        drop(child.stdin.take());
    }
    for mut child in children {
        child.wait()?;
    }
    match refusal {
        None => writeln!(stdout, "started {started} of {count} processes").map(|()| 0),
        Some(error) => writeln!(stdout, "started {started} of {count} processes, then: {error}").map(|()| 1),
    }
}

/// A program without handlers does not notice SIGCHLD, SIGCONT, SIGURG and SIGWINCH. Nor do we.
fn next_that_matters(signals: &sys::Signals) -> i32 {
    loop {
        let signal = signals.next();
        if !matches!(signal, 17 | 18 | 23 | 28) {
            return signal;
        }
    }
}

fn signal_name(signal: i32) -> Option<&'static str> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    usize::try_from(signal).ok()?.checked_sub(1).and_then(|index| NAMES.get(index).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_names() {
        for (signal, name) in
            [(1, Some("HUP")), (9, Some("KILL")), (15, Some("TERM")), (31, Some("SYS")), (0, None), (34, None)]
        {
            assert_eq!(signal_name(signal), name, "{signal}");
        }
    }
}
