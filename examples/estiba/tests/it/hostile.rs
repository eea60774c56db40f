//! Containers that do what nobody should: write without end, keep their output open, hear no signal, fork for ever; and clocks and
//! disks that fail them.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::faults::{at, small, unmounted};
use crate::home::{Home, Result, finish, until, wait};
use crate::lifecycle::{IMAGE, background, inspected, load};
use crate::need::{Need, campaign, trial};
use crate::processes;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("one_that_writes_without_end", &[Need::Busybox], writes),
        trial("one_whose_output_is_held_open", &[Need::Busybox], held_open),
        trial("one_that_hears_no_signal", &[Need::Busybox], deaf),
        trial("one_that_forks_without_end", &[Need::Busybox, Need::Controller("pids")], forks),
        trial("a_clock_that_is_set_back", &[Need::Busybox], clock),
        trial("a_log_that_fills_the_disk", &[Need::Busybox], full_disk),
        trial("a_container_that_comes_back_and_fills_the_disk", &[Need::Busybox], full_disk_for_ever),
    ]
}

/// Runs a command that has to be quick.
fn quick(home: &Home, limit: u64, words: &[&str]) -> Result<crate::home::Ended> {
    let begin = Instant::now();
    let ended = home.run(words)?;
    if begin.elapsed() > Duration::from_secs(limit) {
        return Err(format!("{words:?} took {:?}", begin.elapsed()).into());
    }
    Ok(ended)
}

fn kib_of(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

fn writes(home: &Home) -> Result {
    load(home)?;
    let log = ["--log-opt", "max-size=1m", "--log-opt", "max-file=3"];
    home.run(
        &[
            &["run", "-d", "--name", "one"],
            &log[..],
            &[IMAGE, "busybox", "yes", "a line that is written again and again"],
        ]
        .concat(),
    )?
    .expect_status(0)?;
    std::thread::sleep(Duration::from_secs(if campaign() { 20 } else { 2 }));
    let folder = home.root().join("containers").join(inspected(home, "one", "{{.Id}}")?);
    let logs = fs::read_dir(&folder)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("log"));
    let bytes: u64 = logs.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum();
    // Files change their names while they are counted: one may be missed.
    assert!((1 << 19..4 << 20).contains(&bytes), "the log has {bytes} bytes");
    quick(home, 10, &["exec", "one", "echo", "here"])?.expect_out("here\n")?;
    let tail = quick(home, 10, &["logs", "--tail", "3", "one"])?.expect_status(0)?;
    assert_eq!(tail.out.lines().count(), 3);
    let shims: Vec<_> = processes::below().into_iter().filter(processes::Process::is_shim).collect();
    assert_eq!(shims.len(), 1);
    let kib = kib_of(shims[0].pid);
    assert!((1..64 << 10).contains(&kib), "its shim has used {kib} KiB");
    // A reader that does not read slows the container down, and holds up nobody else.
    let mut reader =
        home.command(&["attach", "--no-stdin", "--sig-proxy=false", "one"]).stdout(Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    quick(home, 10, &["exec", "one", "echo", "here"])?.expect_out("here\n")?;
    quick(home, 25, &["stop", "-t", "1", "one"])?.expect_out("one\n")?;
    assert_eq!(inspected(home, "one", "{{.State.Status}}")?, "exited");
    reader.kill()?;
    wait(&mut reader)?;
    home.run(&["rm", "one"])?.expect_status(0)?;
    Ok(())
}

fn held_open(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sh", "-c", "echo said; sleep 1; exit 5"])?;
    let pid = inspected(home, "one", "{{.State.Pid}}")?;
    // As somebody would who was sent it: it stays open when every process of the container has gone.
    let held = File::options().write(true).open(format!("/proc/{pid}/fd/1"))?;
    quick(home, 20, &["wait", "one"])?.expect_out("5\n")?;
    assert_eq!(inspected(home, "one", "{{.State.Status}} {{.State.ExitCode}}")?, "exited 5");
    quick(home, 10, &["logs", "-f", "one"])?.expect_out("said\n")?;
    drop(held);
    home.run(&["rm", "one"])?.expect_status(0)?;
    // The same with a client, and a process that was added.
    background(home, "one", &["sleep", "1000"])?;
    let words = ["exec", "one", "sh", "-c", "echo $$; readlink /proc/self/ns/pid >/dev/null; sleep 1; exit 6"];
    let client = home.command(&words).stdout(Stdio::piped()).spawn()?;
    let mut fd = None;
    until("the added process", || {
        let pids = home.run(&["top", "one", "-o", "pid,args"]).map(|top| top.out).unwrap_or_default();
        let pid = pids.lines().find(|line| line.contains("exit 6")).and_then(|line| line.split_whitespace().next());
        fd = pid.and_then(|pid| File::options().write(true).open(format!("/proc/{pid}/fd/1")).ok());
        fd.is_some()
    })?;
    let begin = Instant::now();
    let output = client.wait_with_output()?;
    assert_eq!(output.status.code(), Some(6));
    assert!(begin.elapsed() < Duration::from_secs(20), "it took {:?}", begin.elapsed());
    drop(fd);
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn deaf(home: &Home) -> Result {
    load(home)?;
    let deaf = "trap '' TERM INT HUP QUIT USR1 USR2 PIPE ALRM; echo deaf; while :; do sleep 0.1; done";
    background(home, "one", &["sh", "-c", deaf])?;
    until("the traps", || home.run(&["logs", "one"]).is_ok_and(|logs| logs.out == "deaf\n"))?;
    for signal in ["TERM", "INT", "HUP"] {
        home.run(&["kill", "-s", signal, "one"])?.expect_status(0)?;
    }
    quick(home, 15, &["stop", "-t", "1", "one"])?.expect_out("one\n")?;
    assert_eq!(inspected(home, "one", "{{.State.Status}} {{.State.ExitCode}}")?, "exited 137");
    home.run(&["start", "one"])?.expect_status(0)?;
    home.run(&["kill", "-s", "STOP", "one"])?.expect_status(0)?;
    quick(home, 10, &["rm", "-f", "one"])?.expect_out("one\n")?;
    Ok(())
}

fn forks(home: &Home) -> Result {
    load(home)?;
    home.run(&["run", "-d", "--name", "one", "--pids-limit", "100", IMAGE, "sleep", "1000"])?.expect_status(0)?;
    let bomb = "while :; do sh -c 'while :; do sleep 1000 & done' 2>/dev/null & done";
    for _ in 0..5 {
        home.run(&["exec", "-d", "one", "sh", "-c", bomb])?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let stats = quick(home, 10, &["stats", "--no-stream", "--format", "{{.PIDs}}", "one"])?.expect_status(0)?;
    let count: u32 = stats.out.trim().parse()?;
    assert!((50..=100).contains(&count), "it has {count} processes");
    quick(home, 10, &["top", "one"])?.expect_status(0)?;
    // There may be no room for one more; then that is said.
    let ended = quick(home, 20, &["exec", "one", "true"])?;
    assert!(ended.status.success() || ended.err.lines().count() == 1, "{ended:?}");
    quick(home, 20, &["rm", "-f", "one"])?.expect_out("one\n")?;
    Ok(())
}

/// The clock itself is the machine's: the records are put a day ahead, as they are when it was set back.
fn clock(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sh", "-c", "echo said; sleep 1000"])?;
    background(home, "two", &["false"])?;
    home.run(&["wait", "two"])?.expect_out("1\n")?;
    let _ = home.run(&["ps"])?;
    for name in ["one", "two"] {
        let folder = home.root().join("containers").join(inspected(home, name, "{{.Id}}")?);
        let path = folder.join("record.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        let mut changed = 0;
        put_ahead(&mut record, &mut changed);
        assert!(changed >= 2, "{record}");
        fs::write(&path, serde_json::to_vec(&record)?)?;
    }
    let ps = home.run(&["ps", "-a", "--format", "{{.Names}} {{.Status}} {{.RunningFor}}"])?.expect_status(0)?;
    assert!(ps.out.contains("one Up ") && ps.out.contains("two Exited (1) "), "{}", ps.out);
    home.run(&["inspect", "one", "two"])?.expect_status(0)?;
    home.run(&["logs", "-t", "--since", "1h", "one"])?.expect_status(0)?;
    quick(home, 10, &["events", "--since", "1h", "--until", "0s"])?.expect_status(0)?;
    home.run(&["stats", "--no-stream", "one"])?.expect_status(0)?;
    quick(home, 10, &["restart", "-t", "0", "one"])?.expect_status(0)?;
    quick(home, 10, &["start", "two"])?.expect_status(0)?;
    quick(home, 10, &["wait", "two"])?.expect_out("1\n")?;
    quick(home, 10, &["stop", "-t", "0", "one"])?.expect_status(0)?;
    home.run(&["container", "prune", "-f"])?.expect_status(0)?;
    home.run(&["ps", "-aq"])?.expect_out("")?;
    Ok(())
}

fn put_ahead(value: &mut serde_json::Value, changed: &mut u32) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_u64() {
                    Some(seconds) if name == "secs_since_epoch" => {
                        *value = (seconds + 86_400).into();
                        *changed += 1;
                    }
                    _ => put_ahead(value, changed),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(|value| put_ahead(value, changed)),
        _ => {}
    }
}

/// One that is started again whenever it ends can be stopped all the same, and stays so.
fn full_disk_for_ever(home: &Home) -> Result {
    let point = small(home, "disk", "size=16m", nix::mount::MsFlags::empty())?;
    let run = |words: &[&str]| {
        finish(&mut at(home, &point, words)).map_err(|error| crate::home::Error::from(format!("{words:?}: {error}")))
    };
    load(home)?;
    let image = home.folder().join("image.tar").display().to_string();
    run(&["load", "-i", &image])?.expect_status(0)?;
    let fills = "while true; do echo a line of a log that fills the disk it is on, again and again; done";
    run(&["run", "-d", "--network", "none", "--restart", "always", "--name", "fill", IMAGE, "sh", "-c", fills])?
        .expect_status(0)?;
    let is_full = || nix::sys::statvfs::statvfs(Path::new(&point)).is_ok_and(|disk| disk.blocks_available() == 0);
    until("the end of the disk", is_full)?;
    run(&["stop", "-t", "1", "fill"])?.expect_out("fill\n")?;
    let state = ["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", "fill"];
    run(&state)?.expect_out("exited 137 0\n")?;
    std::thread::sleep(Duration::from_secs(1));
    run(&state)?.expect_out("exited 137 0\n")?;
    assert!(is_full(), "the disk was not full any more, so this has shown nothing");
    run(&["rm", "fill"])?.expect_out("fill\n")?;
    until("the end of the monitor", || unmounted(&point).is_ok())
}

fn full_disk(home: &Home) -> Result {
    let point = small(home, "disk", "size=16m", nix::mount::MsFlags::empty())?;
    let run = |words: &[&str]| {
        finish(&mut at(home, &point, words)).map_err(|error| crate::home::Error::from(format!("{words:?}: {error}")))
    };
    load(home)?;
    let image = home.folder().join("image.tar").display().to_string();
    run(&["load", "-i", &image])?.expect_status(0)?;
    let other = ["run", "-d", "--name", "other", IMAGE, "sleep", "1000"];
    run(&other)?.expect_status(0)?;
    let fills =
        "i=0; while [ ! -e /end ]; do i=$((i+1)); echo line $i of a log that fills the disk it is on; done; exit 7";
    run(&["run", "-d", "--name", "fill", IMAGE, "sh", "-c", fills])?.expect_status(0)?;
    until("the end of the disk", || {
        nix::sys::statvfs::statvfs(Path::new(&point)).is_ok_and(|disk| disk.blocks_available() == 0)
    })?;
    let ps = run(&["ps", "--format", "{{.Names}} {{.State}}"])?.expect_status(0)?;
    assert!(ps.out.contains("fill running") && ps.out.contains("other running"), "{}", ps.out);
    run(&["exec", "other", "echo", "here"])?.expect_out("here\n")?;
    run(&["kill", "fill"])?.expect_status(0)?;
    let begin = Instant::now();
    let waited = run(&["wait", "fill"])?.expect_status(0)?;
    assert!(waited.out == "137\n" && begin.elapsed() < Duration::from_secs(20), "{waited:?}");
    let said = run(&["ps", "-a", "--filter", "name=fill", "--format", "{{.Status}}"])?.expect_status(0)?;
    assert!(said.out.starts_with("Exited (137)"), "{}", said.out);
    let first = run(&["logs", "fill"])?.expect_status(0)?;
    let lines = first.out.lines().enumerate();
    for (number, line) in lines {
        let whole = format!("line {} of a log that fills the disk it is on", number + 1);
        // The last one may have met the end of the disk.
        if line != whole && number + 1 < first.out.lines().count() {
            return Err(format!("{line:?} is where {whole:?} should be").into());
        }
    }
    run(&["rm", "-f", "fill"])?.expect_out("fill\n")?;
    run(&["run", "--rm", IMAGE, "echo", "room again"])?.expect_out("room again\n")?;
    run(&["rm", "-f", "other"])?.expect_status(0)?;
    unmounted(&point)
}
