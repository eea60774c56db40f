//! Containers that live on: made, started, stopped and removed by commands that do not wait for them.

use libtest_mimic::Trial;

use crate::home::{Home, Result, until};
use crate::image::{Layer, busybox, docker_archive};
use crate::need::{Need, trial};

pub(crate) const IMAGE: &str = "test/busybox:1";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("detached_containers", &[Need::Busybox], detached),
        trial("stop_kill_and_restart", &[Need::Busybox], stopped),
        trial("pause_and_unpause", &[Need::Busybox], paused),
        trial("wait_tells_the_status", &[Need::Busybox], waited),
        trial("names_are_changed", &[Need::Busybox], renamed),
        trial("limits_are_changed", &[Need::Busybox, Need::Controller("memory")], updated),
        trial("several_names_and_one_that_is_wrong", &[Need::Busybox], several),
        trial("a_policy_starts_a_container_again", &[Need::Busybox], restarted),
        trial("health_is_shown", &[Need::Busybox], healthy),
        trial("an_id_file_of_a_detached_container", &[Need::Busybox], id_file),
    ]
}

/// Brings the image in under its name.
pub(crate) fn load(home: &Home) -> Result {
    let file = home.folder().join("image.tar");
    docker_archive(&file, &[busybox()?, Layer::new().link("bin/grep", "busybox")?.tar()?])?;
    home.run(&["load", "-i", &file.display().to_string()])?.expect_out(&format!("Loaded image: {IMAGE}\n"))?;
    Ok(())
}

/// A container in the background, which removes itself from nothing.
pub(crate) fn background(home: &Home, name: &str, command: &[&str]) -> Result<String> {
    let words = [&["run", "-d", "--name", name, IMAGE], command].concat();
    Ok(home.run(&words)?.expect_status(0)?.out.trim().to_owned())
}

/// What `inspect` says by a template.
pub(crate) fn inspected(home: &Home, name: &str, format: &str) -> Result<String> {
    Ok(home.run(&["inspect", "-f", format, name])?.expect_status(0)?.out.trim_end_matches('\n').to_owned())
}

fn detached(home: &Home) -> Result {
    load(home)?;
    let id = background(home, "one", &["sleep", "1000"])?;
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    home.run(&["ps", "-q", "--no-trunc"])?.expect_out(&format!("{id}\n"))?;
    assert_eq!(inspected(home, &id[..8], "{{.State.Status}} {{.State.Running}} {{.Name}}")?, "running true /one");
    // Made by one command, started by another, and once more after its end.
    let made = home
        .run(&["create", "--name", "two", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 4"])?
        .expect_status(0)?;
    assert_eq!(inspected(home, made.out.trim(), "{{.State.Status}} {{.State.ExitCode}}")?, "created 0");
    for _ in 0..2 {
        let ended = home.run(&["start", "-a", "two"])?.expect_status(4)?;
        assert_eq!((ended.out.as_str(), ended.err.as_str()), ("out\n", "err\n"));
    }
    home.run(&["start", "two"])?.expect_out("two\n")?;
    home.run(&["wait", "two"])?.expect_out("4\n")?;
    let logs = home.run(&["logs", "two"])?.expect_status(0)?;
    assert_eq!((logs.out.as_str(), logs.err.as_str()), ("out\nout\nout\n", "err\nerr\nerr\n"));
    let refused = home.run(&["rm", "one", "two"])?.expect_status(1)?;
    assert_eq!(refused.out, "two\n");
    home.run(&["rm", "-f", "one"])?.expect_out("one\n")?;
    Ok(())
}

fn stopped(home: &Home) -> Result {
    load(home)?;
    // It hears its signal; one that does not is killed in the end.
    let hears = "trap 'echo bye; exit 9' TERM USR1; while :; do sleep 0.01; done";
    background(home, "polite", &["sh", "-c", hears])?;
    home.run(&["stop", "polite"])?.expect_out("polite\n")?;
    assert_eq!(inspected(home, "polite", "{{.State.Status}} {{.State.ExitCode}}")?, "exited 9");
    home.run(&["start", "polite"])?.expect_out("polite\n")?;
    home.run(&["kill", "-s", "USR1", "polite"])?.expect_out("polite\n")?;
    home.run(&["wait", "polite"])?.expect_out("9\n")?;
    home.run(&["start", "polite"])?.expect_status(0)?;
    let pid = inspected(home, "polite", "{{.State.Pid}}")?;
    home.run(&["restart", "-t", "5", "polite"])?.expect_out("polite\n")?;
    assert_ne!(inspected(home, "polite", "{{.State.Pid}}")?, pid);
    background(home, "deaf", &["sleep", "1000"])?;
    home.run(&["stop", "-t", "0", "deaf"])?.expect_out("deaf\n")?;
    assert_eq!(inspected(home, "deaf", "{{.State.ExitCode}}")?, "137");
    // What does not run can be stopped, but not be killed.
    home.run(&["stop", "deaf"])?.expect_status(0)?;
    home.run(&["kill", "deaf"])?.expect_status(1)?;
    let refused = home.run(&["kill", "-s", "NOPE", "polite"])?.expect_status(1)?;
    assert!(refused.err.contains("invalid signal: NOPE"), "{}", refused.err);
    home.run(&["rm", "-f", "polite", "deaf"])?.expect_status(0)?;
    Ok(())
}

fn paused(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sleep", "1000"])?;
    home.run(&["pause", "one"])?.expect_out("one\n")?;
    let ps = home.run(&["ps", "--format", "{{.Status}}"])?.expect_status(0)?;
    assert!(ps.out.ends_with("(Paused)\n"), "{}", ps.out);
    home.run(&["pause", "one"])?.expect_status(1)?;
    home.run(&["exec", "one", "true"])?.expect_status(1)?;
    home.run(&["unpause", "one"])?.expect_out("one\n")?;
    home.run(&["unpause", "one"])?.expect_status(1)?;
    home.run(&["exec", "one", "true"])?.expect_status(0)?;
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn waited(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sh", "-c", "sleep 0.3; exit 5"])?;
    background(home, "two", &["true"])?;
    home.run(&["wait", "one", "two"])?.expect_out("5\n0\n")?;
    let ended = home.run(&["wait", "one", "nothing"])?.expect_status(1)?;
    assert_eq!(ended.out, "5\n");
    home.run(&["rm", "one", "two"])?.expect_status(0)?;
    Ok(())
}

fn renamed(home: &Home) -> Result {
    load(home)?;
    background(home, "old", &["sleep", "1000"])?;
    background(home, "other", &["sleep", "1000"])?;
    home.run(&["rename", "old", "new"])?.expect_out("")?;
    assert_eq!(inspected(home, "new", "{{.Name}}")?, "/new");
    home.run(&["inspect", "old"])?.expect_status(1)?;
    home.run(&["rename", "new", "other"])?.expect_status(1)?;
    home.run(&["rm", "-f", "new", "other"])?.expect_status(0)?;
    Ok(())
}

fn updated(home: &Home) -> Result {
    load(home)?;
    home.run(&["run", "-d", "--name", "one", "-m", "64m", IMAGE, "sleep", "1000"])?.expect_status(0)?;
    assert_eq!(inspected(home, "one", "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}}")?, "67108864 134217728");
    home.run(&["update", "-m", "100m", "--memory-swap", "200m", "--pids-limit", "50", "one"])?.expect_out("one\n")?;
    assert_eq!(inspected(home, "one", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}")?, "104857600 50");
    let stats =
        home.run(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}"])?.expect_status(0)?;
    assert!(stats.out.starts_with("one ") && stats.out.contains("/ 100MiB 1"), "{}", stats.out);
    home.run(&["update", "--restart", "unless-stopped", "one"])?.expect_status(0)?;
    assert_eq!(inspected(home, "one", "{{.HostConfig.RestartPolicy.Name}}")?, "unless-stopped");
    home.run(&["update", "one"])?.expect_status(1)?;
    home.run(&["update", "-m", "lots", "one"])?.expect_status(125)?;
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn several(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sleep", "1000"])?;
    background(home, "two", &["sleep", "1000"])?;
    for command in
        [&["stop", "-t", "0"][..], &["start"], &["restart", "-t", "0"], &["pause"], &["unpause"], &["kill"], &["rm"]]
    {
        let ended = home.run(&[command, &["one", "nothing", "two"]].concat())?.expect_status(1)?;
        assert_eq!(ended.out, "one\ntwo\n", "{command:?}");
        assert!(ended.err.lines().count() == 1 && ended.err.contains("nothing"), "{command:?}: {}", ended.err);
    }
    // By force one that is not there is said, and fine.
    let ended = home.run(&["rm", "-f", "nothing"])?.expect_out("")?;
    assert!(ended.err.contains("nothing"), "{}", ended.err);
    Ok(())
}

fn restarted(home: &Home) -> Result {
    load(home)?;
    let counts = "echo x >> /count; test $(wc -l < /count) -ge 3";
    home.run(&["run", "-d", "--name", "one", "--restart", "on-failure:5", IMAGE, "sh", "-c", counts])?
        .expect_status(0)?;
    until("the third start", || {
        // One that runs has the exit code 0, too.
        let said = inspected(home, "one", "{{.RestartCount}} {{.State.ExitCode}} {{.State.Status}}");
        said.is_ok_and(|said| said == "2 0 exited")
    })?;
    home.run(&["rm", "one"])?.expect_status(0)?;
    Ok(())
}

fn healthy(home: &Home) -> Result {
    load(home)?;
    let options = ["--health-cmd", "test -e /well", "--health-interval", "50ms", "--health-retries", "1"];
    home.run(&[&["run", "-d", "--name", "one"], &options[..], &[IMAGE, "sleep", "1000"]].concat())?.expect_status(0)?;
    let status = |expected: &str| {
        until(expected, || inspected(home, "one", "{{.State.Health.Status}}").is_ok_and(|said| said == expected))
    };
    status("unhealthy")?;
    home.run(&["exec", "one", "touch", "/well"])?.expect_status(0)?;
    status("healthy")?;
    let ps = home.run(&["ps", "--filter", "health=healthy", "--format", "{{.Status}}"])?.expect_status(0)?;
    assert!(ps.out.starts_with("Up ") && ps.out.ends_with("(healthy)\n"), "{}", ps.out);
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn id_file(home: &Home) -> Result {
    load(home)?;
    let file = home.folder().join("id");
    let path = file.display().to_string();
    let made =
        home.run(&["run", "-d", "--name", "one", "--cidfile", &path, IMAGE, "sleep", "1000"])?.expect_status(0)?;
    assert_eq!(std::fs::read_to_string(&file)?, made.out.trim());
    // The file is another's.
    home.run(&["run", "-d", "--name", "two", "--cidfile", &path, IMAGE, "true"])?.expect_status(125)?;
    home.run(&["inspect", "two"])?.expect_status(1)?;
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}
