//! Limits hold.

use std::fs;
use std::process::Stdio;

use libtest_mimic::Trial;

use crate::home::{HELLO, Home, Result, until, wait};
use crate::need::{Need, trial};
use crate::world::hierarchies;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("more_than_the_memory_is_killed", &[Need::Controller("memory")], memory),
        trial("a_fork_bomb_stops_at_the_pids_limit", &[Need::Controller("pids")], pids),
        trial("cpus", &[Need::Controller("cpu")], cpus),
    ]
}

fn memory(home: &Home) -> Result {
    home.run(&["run", "--rm", "--memory", "64m", HELLO, "eat", "256"])?.expect_status(137)?;
    home.run(&["run", "--rm", "--memory", "64m", HELLO, "eat", "16"])?.expect_out("ate 16 MiB\n")?;
    // Without the limit the same is possible: it was the limit that killed.
    home.run(&["run", "--rm", HELLO, "eat", "256"])?.expect_out("ate 256 MiB\n")?;
    let ended = home.run(&["run", "--name", "eater", "--memory", "64m", HELLO, "eat", "256"])?;
    ended.expect_status(137)?;
    let format = "{{.State.OOMKilled}} {{.State.ExitCode}}";
    home.run(&["inspect", "-f", format, "eater"])?.expect_out("true 137\n")?;
    home.run(&["rm", "eater"])?.expect_status(0)?;
    Ok(())
}

fn pids(home: &Home) -> Result {
    let ended = home.run(&["run", "--rm", "--pids-limit", "20", HELLO, "fork", "100"])?.expect_status(1)?;
    // The first process and whatever threads it has count too.
    let started = ended.out.split_whitespace().nth(1).and_then(|count| count.parse::<u32>().ok()).unwrap_or_default();
    assert!((10..20).contains(&started), "{}", ended.out);
    home.run(&["run", "--rm", HELLO, "fork", "100"])?.expect_out("started 100 of 100 processes\n")?;
    Ok(())
}

fn cpus(home: &Home) -> Result {
    let mut child = home
        .command(&["run", "--rm", "-i", "--cpus", "0.25", HELLO, "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found = Vec::new();
    until("the container's cgroup", || {
        for hierarchy in hierarchies(&mounts) {
            let parent = hierarchy.join(home.cgroup().trim_start_matches('/'));
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
                found.extend(read("cpu.max"));
                let quota = read("cpu.cfs_quota_us").zip(read("cpu.cfs_period_us"));
                found.extend(quota.map(|(quota, period)| format!("{} {}", quota.trim(), period.trim())));
            }
        }
        found.retain(|value| !value.starts_with("-1") && !value.starts_with("max"));
        !found.is_empty()
    })?;
    let numbers: Vec<f64> = found[0].split_whitespace().filter_map(|number| number.parse().ok()).collect();
    assert!((numbers[0] / numbers[1] - 0.25).abs() < 0.001, "{found:?}");
    drop(child.stdin.take());
    assert_eq!(wait(&mut child)?.code(), Some(0));
    Ok(())
}
