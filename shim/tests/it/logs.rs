//! Logs: nothing lost and nothing doubled, whatever comes between.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use estiba_shim::proto::TaskStatus;
use estiba_shim::{Client, Entry, LogOptions, LogReader, Stream};
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;

use crate::bundle::{Bundle, SOON, eventually};
use crate::{Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    ("a_log_has_both_streams_and_the_last_words", a_log_has_both_streams_and_the_last_words),
    ("a_log_of_a_terminal_is_one_stream", a_log_of_a_terminal_is_one_stream),
    ("followers_lose_nothing_across_rotation", followers_lose_nothing_across_rotation),
    ("a_full_disk_drops_whole_entries_and_nothing_else", a_full_disk_drops_whole_entries_and_nothing_else),
    ("an_exit_record_waits_for_room", an_exit_record_waits_for_room),
    ("a_second_run_appends_to_the_log", a_second_run_appends_to_the_log),
    ("many_lines_cost_no_memory", many_lines_cost_no_memory),
];

/// The variable that makes this program a reader of logs.
const FOLLOWER: &str = "ESTIBA_TEST_FOLLOW";

/// If this process was started as one, follows the log that it is told of, writes what it reads to standard output, and never
/// returns.
pub(crate) fn play_follower() {
    use std::io::Write;
    let Some(path) = std::env::var_os(FOLLOWER) else { return };
    let mut out = std::io::stdout().lock();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut reader = LogReader::open(path, options).expect("open the log");
    loop {
        if let Some(entry) = reader.next_entry().expect("read the log") {
            out.write_all(&entry.bytes).expect("write");
        } else {
            out.flush().expect("flush");
            reader.wait(None).expect("wait");
        }
    }
}

/// Everything that is in a log now.
pub(crate) fn read(path: &Path, options: LogOptions) -> Vec<Entry> {
    let mut reader = LogReader::open(path, options).expect("open the log");
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().expect("read the log") {
        entries.push(entry);
    }
    assert!(reader.is_finished());
    entries
}

fn text(entries: &[Entry], stream: Stream) -> String {
    let bytes: Vec<u8> =
        entries.iter().filter(|entry| entry.stream == stream).flat_map(|entry| entry.bytes.clone()).collect();
    String::from_utf8(bytes).expect("text")
}

fn a_log_has_both_streams_and_the_last_words() -> Outcome {
    let bundle = Bundle::script("echo out; echo err >&2; seq 1 20000; printf 'h\\303\\251 \\377 no newline'; exit 3");
    let log = bundle.path("log");
    let place = format!("json-file://{}", log.display());
    let mut client = bundle.spawn();
    let before = SystemTime::now();
    client.create(bundle.request("", &place, &place))?;
    client.start()?;
    assert_eq!(client.wait()?.exit_status, 3);
    // Nothing is waited for: what was written before the end is there.
    let entries = read(&log, LogOptions::default());
    assert_eq!(text(&entries, Stream::Stderr), "err\n");
    let out = text(&entries, Stream::Stdout);
    let mut lines = out.split('\n');
    assert_eq!((lines.next(), lines.next_back()), (Some("out"), Some("h\u{e9} \u{fffd} no newline")));
    assert!(lines.map(str::to_owned).eq((1..=20_000).map(|number| number.to_string())));
    assert!(entries.iter().all(|entry| entry.time >= before && entry.time <= SystemTime::now()));
    assert!(entries.is_sorted_by_key(|entry| entry.time));
    // As Docker reads it, field by field.
    for line in fs::read_to_string(&log)?.lines() {
        let value: serde_json::Value = serde_json::from_str(line)?;
        assert_eq!(value.as_object().expect("an object").len(), 3);
        assert!(value["log"].is_string() && value["stream"].is_string() && value["time"].is_string());
    }
    bundle.finish(&mut client);
    Ok(())
}

fn a_log_of_a_terminal_is_one_stream() -> Outcome {
    let bundle = Bundle::script("echo out; echo err >&2").with_terminal();
    let log = bundle.path("log");
    let mut client = bundle.spawn();
    client.create(bundle.request("", &format!("json-file://{}", log.display()), ""))?;
    client.start()?;
    client.wait()?;
    assert_eq!(text(&read(&log, LogOptions::default()), Stream::Stdout), "out\r\nerr\r\n");
    bundle.finish(&mut client);
    Ok(())
}

/// A container writes numbered lines, the log is rotated again and again, and readers follow: one stays, others are killed and
/// replaced.
fn followers_lose_nothing_across_rotation() -> Outcome {
    let campaign = std::env::var_os("ESTIBA_CAMPAIGN").is_some();
    let lines: usize = if campaign { 10_000_000 } else { 1_000_000 };
    let bundle = Bundle::script(&format!("seq 1 {lines}"));
    let log = bundle.path("log");
    let max_size = 1 << 20;
    let place = format!("json-file://{}?max-size={max_size}&max-file=2000", log.display());
    let mut client = bundle.spawn();
    client.create(bundle.request("", &place, &place))?;
    let output = |number: usize| bundle.path(&format!("followed-{number}"));
    let follow = |number: usize| -> std::io::Result<std::process::Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(FOLLOWER, &log).stdin(Stdio::null()).stdout(File::create(output(number))?).process_group(0).spawn()
    };
    let mut steady = follow(0)?;
    let mut changing = Vec::new();
    client.start()?;
    let mut waiting = bundle.connect();
    waiting.set_timeout(Some(Duration::from_secs(600)))?;
    let end = std::thread::spawn(move || waiting.wait());
    while !end.is_finished() {
        let mut follower = follow(changing.len() + 1)?;
        std::thread::sleep(Duration::from_millis(300));
        follower.kill()?;
        follower.wait()?;
        changing.push(changing.len() + 1);
    }
    assert_eq!(end.join().expect("thread")?.exit_status, 0);
    let mut last = follow(changing.len() + 1)?;
    let numbers = |bytes: &[u8]| -> usize {
        // Checked without building what is expected: the numbers rise by one from the first on.
        let mut seen = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            let number: usize = std::str::from_utf8(line).expect("text").trim_end().parse().expect("a number");
            assert_eq!(number, seen + 1);
            seen = number;
        }
        seen
    };
    let whole: u64 = (1..=lines).map(|number| u64::from(number.ilog10()) + 2).sum();
    for (number, follower) in [(0, &mut steady), (changing.len() + 1, &mut last)] {
        let deadline = Instant::now() + Duration::from_secs(300);
        while fs::metadata(output(number))?.len() < whole && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        follower.kill()?;
        follower.wait()?;
        assert_eq!(numbers(&fs::read(output(number))?), lines, "follower {number}");
    }
    for number in changing {
        // What it had read when it was killed is a beginning of the whole.
        numbers(&fs::read(output(number))?);
    }
    // The files themselves.
    let mut reader = LogReader::open(&log, LogOptions::default())?;
    let mut seen = 0;
    while let Some(entry) = reader.next_entry()? {
        seen += 1;
        assert_eq!(std::str::from_utf8(&entry.bytes)?.trim_end().parse(), Ok(seen));
    }
    assert_eq!(seen, lines);
    assert!(fs::metadata(format!("{}.60", log.display())).is_ok(), "it was rotated");
    for file in fs::read_dir(log.parent().expect("a folder"))?.flatten() {
        if file.file_name().to_str().is_some_and(|name| name.starts_with("log")) {
            assert!(file.metadata()?.len() <= max_size, "{file:?}");
        }
    }
    for count in [0, 1, 7, 30_000] {
        let tail = read(&log, LogOptions { tail: Some(count), ..LogOptions::default() });
        let expected = (lines - count as usize + 1..=lines).map(|number| format!("{number}\n").into_bytes());
        assert!(tail.into_iter().map(|entry| entry.bytes).eq(expected), "the last {count}");
    }
    bundle.finish(&mut client);
    Ok(())
}

/// Runs `body` in a mount namespace of this thread's own, with a small file system on `folder`. A shim that is started there sees
/// it, too.
fn with_small_disk(
    folder: &Path,
    size: &str,
    body: impl FnOnce() -> Outcome + Send + 'static,
) -> Result<(), libtest_mimic::Failed> {
    fs::create_dir_all(folder)?;
    let folder = folder.to_owned();
    let options = format!("size={size},mode=755");
    let thread = std::thread::spawn(move || -> Outcome {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        nix::mount::mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        let outcome = body();
        nix::mount::umount2(&folder, MntFlags::MNT_DETACH)?;
        outcome
    });
    thread.join().map_err(|panic| match panic.downcast::<String>() {
        Ok(text) => libtest_mimic::Failed::from(*text),
        Err(_) => libtest_mimic::Failed::from("it panicked"),
    })?
}

fn a_full_disk_drops_whole_entries_and_nothing_else() -> Outcome {
    let bundle = Bundle::script("seq 1 60000; echo full; read -r line; seq 60001 60010; exit 4");
    let disk = bundle.path("disk");
    with_small_disk(&disk.clone(), "1m", move || {
        let log = disk.join("log");
        let mut client = bundle.spawn();
        let (stdin, _reader) = bundle.fifo("stdin");
        // A reader beside it sees all of it.
        let (stdout, reader) = bundle.fifo("stdout");
        client.create(bundle.request(&stdin, &format!("json-file://{}", log.display()), ""))?;
        client.attach(estiba_shim::proto::AttachRequest { stdout, ..Default::default() })?;
        let mut reader = crate::bundle::blocking(reader);
        client.start()?;
        let mut output = Vec::new();
        let mut buffer = [0; 4096];
        // The log is written before a reader gets its bytes: so all is done for what it has.
        while !output.ends_with(b"full\n") {
            let count = reader.read(&mut buffer)?;
            assert!(count > 0);
            output.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(client.state()?.status(), TaskStatus::Running, "the container goes on");
        let said = bundle.log();
        assert!(said.contains("entries are dropped") && said.lines().count() == 1, "{said}");
        let bytes = fs::read(&log)?;
        assert_eq!(bytes.last(), Some(&b'\n'), "no half entry is left");
        let logged = read(&log, LogOptions::default());
        assert!(logged.len() > 5000 && logged.len() < 60_000, "{}", logged.len());
        // Somebody makes room.
        fs::File::options().write(true).open(&log)?.set_len(0)?;
        fs::write(&stdin, "go on\n")?;
        assert_eq!(client.wait()?.exit_status, 4);
        let later: Vec<_> = read(&log, LogOptions::default()).into_iter().map(|entry| entry.bytes).collect();
        assert!(later.into_iter().eq((60_001..=60_010).map(|number| format!("{number}\n").into_bytes())));
        reader.read_to_end(&mut output)?;
        assert_eq!(String::from_utf8(output)?.lines().count(), 60_011);
        let said = bundle.log();
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains("dropped entries"), "{said}");
        client.delete()?;
        client.shutdown()?;
        bundle.assert_gone();
        Ok(())
    })
}

fn an_exit_record_waits_for_room() -> Outcome {
    let mut bundle = Bundle::script("exit 7").with_exit_command();
    let disk = bundle.path("disk");
    bundle.launch.exit_file = Some(disk.join("exit.json"));
    with_small_disk(&disk.clone(), "64k", move || {
        let mut client = bundle.spawn();
        client.create(bundle.request("", "", ""))?;
        let filler = disk.join("filler");
        let mut zeros = std::io::repeat(0).take(1 << 20);
        assert!(std::io::copy(&mut zeros, &mut File::create(&filler)?).is_err(), "the disk is full");
        client.start()?;
        assert_eq!(client.wait()?.exit_status, 7, "who waits is told");
        assert!(!disk.join("exit.json").exists() && !disk.join("exit.json.new").exists());
        let shim = client.who()?.shim_pid;
        drop(client);
        std::thread::sleep(Duration::from_millis(500));
        assert!(crate::bundle::process_state(shim).is_some(), "it stays until the record is written");
        fs::remove_file(&filler)?;
        eventually("the exit command has run", || !bundle.mark().is_empty());
        let record = estiba_shim::ExitRecord::read(&disk.join("exit.json"))?.expect("a record");
        assert_eq!(record.status, 7);
        bundle.assert_gone();
        let said = bundle.log();
        assert!(said.contains("tried again") && said.contains("after all"), "{said}");
        Ok(())
    })
}

fn a_second_run_appends_to_the_log() -> Outcome {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let place = format!("json-file://{}", log.display());
    let mut times = Vec::new();
    for run in 0..3 {
        let bundle = Bundle::script(&format!("echo run {run}"));
        let mut client: Client = bundle.spawn();
        client.create(bundle.request("", &place, &place))?;
        client.start()?;
        client.wait()?;
        bundle.finish(&mut client);
        times.push(SystemTime::now());
        // As a shim that is killed while it writes leaves it.
        let torn = b"{\"log\":\"half an ent";
        std::io::Write::write_all(&mut fs::File::options().append(true).open(&log)?, torn)?;
    }
    let lines = |options| -> Vec<String> {
        read(&log, options).into_iter().map(|entry| String::from_utf8_lossy(&entry.bytes).into_owned()).collect()
    };
    let all = LogOptions::default;
    assert_eq!(lines(all()), ["run 0\n", "run 1\n", "run 2\n"]);
    assert_eq!(lines(LogOptions { since: Some(times[0]), ..all() }), ["run 1\n", "run 2\n"]);
    assert_eq!(lines(LogOptions { until: Some(times[1]), ..all() }), ["run 0\n", "run 1\n"]);
    assert_eq!(lines(LogOptions { tail: Some(2), until: Some(times[1]), ..all() }), ["run 1\n"]);
    assert_eq!(lines(LogOptions { tail: Some(1), ..all() }), ["run 2\n"]);
    // Damage in the middle costs what is damaged.
    let mut bytes = fs::read(&log)?;
    let second = bytes.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
    bytes[second + 3] = 0;
    fs::write(&log, bytes)?;
    assert_eq!(lines(all()), ["run 0\n", "run 2\n"]);
    // A follower waits for a log that is not there yet, and ends when it is told to.
    let other = folder.path().join("other");
    let mut reader = LogReader::open(&other, LogOptions { follow: true, ..all() })?;
    assert_eq!(reader.next_entry()?, None);
    assert!(!reader.is_finished());
    fs::copy(&log, &other)?;
    let deadline = Instant::now() + SOON;
    while reader.next_entry()?.is_none() && Instant::now() < deadline {
        reader.wait(None)?;
    }
    reader.stop_following();
    assert_eq!(reader.next_entry()?.map(|entry| entry.bytes), Some(b"run 2\n".to_vec()));
    assert_eq!(reader.next_entry()?, None);
    assert!(reader.is_finished());
    Ok(())
}

/// The memory that a process has to itself, in kB.
fn private(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.split_ascii_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn many_lines_cost_no_memory() -> Outcome {
    let bundle = Bundle::script("read -r line; seq 1 1000000; cat; exec sleep 1000");
    let log = bundle.path("log");
    let place = format!("json-file://{}?max-size=10000000&max-file=3", log.display());
    let mut client = bundle.spawn();
    client.create(bundle.request("attach:", &place, &place))?;
    client.start()?;
    let shim = client.who()?.shim_pid;
    let (stdin, _reader) = bundle.fifo("stdin");
    let mut writer = fs::File::options().write(true).open(&stdin)?;
    client.attach(estiba_shim::proto::AttachRequest { stdin, ..Default::default() })?;
    std::thread::sleep(Duration::from_millis(500));
    let before = private(shim);
    let start = Instant::now();
    std::io::Write::write_all(&mut writer, b"go\nlast\n")?;
    let last = || read(&log, LogOptions { tail: Some(1), ..LogOptions::default() }).pop().map(|entry| entry.bytes);
    eventually("all is written", || last().is_some_and(|last| last == b"last\n"));
    let took = start.elapsed();
    let after = private(shim);
    println!("a million lines in {took:?}, from {before} to {after} kB");
    // Its own buffers, whatever the container writes; code that is used again is shared.
    assert!(after < before + 2048, "from {before} to {after} kB");
    if std::env::var_os("ESTIBA_CAMPAIGN").is_some() {
        // Once it is calm again the code goes back; that takes a while.
        let deadline = Instant::now() + Duration::from_secs(30);
        while private(shim) > before + 256 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
        }
        let later = private(shim);
        println!("and {later} kB later");
        assert!(later <= before + 256, "{later} kB");
    }
    client.kill(9)?;
    client.wait()?;
    bundle.finish(&mut client);
    Ok(())
}
