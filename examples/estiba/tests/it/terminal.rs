//! `-it`: a person at a terminal.

use libtest_mimic::Trial;

use crate::home::{HELLO, Home, Result};
use crate::image::{Layout, busybox};
use crate::need::{Need, trial};
use crate::pty::Terminal;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_shell_at_a_terminal", &[Need::Busybox], shell),
        trial("the_terminal_is_as_it_was_after_a_run", &[Need::Busybox], restored),
        trial("t_needs_a_terminal", &[], needs_a_terminal),
    ]
}

fn image(home: &Home) -> Result<String> {
    let image = Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference();
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    Ok(image)
}

fn shell(home: &Home) -> Result {
    let image = image(home)?;
    shell_with(home, &["run", "--rm", "-it", &image, "sh"])
}

/// Types at a shell that `arguments` start, and ends it with 42.
pub(crate) fn shell_with(home: &Home, arguments: &[&str]) -> Result {
    let mut terminal = Terminal::open(home.command(arguments), 97, 31)?;
    terminal.read_until("# ")?;
    // Marks are put together by the shell, so that the echo of what is typed does not hold them.
    terminal.press("stty size; echo si''ze\r")?;
    let shown = terminal.read_until("si")?;
    terminal.read_until("size")?;
    let _ = shown;
    terminal.read_until("# ")?;
    terminal.press("tty; echo m''ark1\r")?;
    let shown = terminal.read_until("mark1")?;
    assert!(shown.contains("/dev/pts/0") || shown.contains("/dev/console"), "{shown:?}");
    terminal.read_until("# ")?;
    terminal.press("stty size; echo m''ark2\r")?;
    let shown = terminal.read_until("mark2")?;
    assert!(shown.contains("31 97"), "the size is not the terminal's: {shown:?}");
    terminal.read_until("# ")?;
    terminal.resize(120, 40)?;
    // The new size arrives as soon as the signal has gone all the way.
    terminal.press("until stty size | { read a; test \"$a\" = '40 120'; }; do sleep 0.01; done; echo m''ark3\r")?;
    terminal.read_until("mark3")?;
    terminal.read_until("# ")?;
    // Ctrl-C ends what is in the foreground, not the shell.
    terminal.press("sleep 1000\r")?;
    terminal.read_until("sleep 1000")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal.press("\x03")?;
    terminal.read_until("# ")?;
    terminal.press("echo m''ark4 $?\r")?;
    terminal.read_until("mark4 130")?;
    terminal.read_until("# ")?;
    terminal.press("exit 42\r")?;
    let (status, shown) = terminal.finish()?;
    if status.code() == Some(42) { Ok(()) } else { Err(format!("{status} instead of 42: {shown:?}").into()) }
}

fn restored(home: &Home) -> Result {
    let image = image(home)?;
    let mut command = std::process::Command::new("/bin/sh");
    let line = format!(
        "stty -a > {0}/before; {1} \"$@\"; echo status $?; stty -a > {0}/after",
        home.folder().display(),
        Home::program()
    );
    command.arg("-c").arg(line).arg("sh").args(home.options());
    command.args(["run", "--rm", "-it", &image, "sh", "-c", "stty -echo; exit 5"]);
    let mut terminal = Terminal::open(command, 80, 24)?;
    terminal.read_until("status 5")?;
    let (status, shown) = terminal.finish()?;
    assert!(status.success(), "{shown:?}");
    let read = |name: &str| std::fs::read_to_string(home.folder().join(name));
    assert_eq!(read("before")?, read("after")?);
    Ok(())
}

fn needs_a_terminal(home: &Home) -> Result {
    let ended = home.run(&["run", "--rm", "-it", HELLO, "tty"])?;
    assert!(ended.status.code() == Some(1) && ended.err.lines().count() == 1, "{ended:?}");
    // -t alone needs none: the container has a terminal whose other side nobody looks at.
    let ended = home.run(&["run", "--rm", "-t", HELLO, "echo", "x"])?.expect_status(0)?;
    assert_eq!(ended.out, "x\r\n");
    Ok(())
}
