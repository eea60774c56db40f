//! What a newcomer wants to see: that this process runs apart from the machine, and how.

use std::fmt::Write as _;
use std::io::{Result, Write as _};
use std::path::Path;

use crate::sys;

/// `estiba` puts the time of its own start here: nanoseconds of CLOCK_MONOTONIC.
const STARTED: &str = "ESTIBA_STARTED_NS";

const TRY_NEXT: &str = "\
Try next:
  estiba run --rm embedded:hello help                          what else this image can do
  estiba run --rm --memory 64m embedded:hello eat 128          too much memory: killed, status 137
  estiba run --rm --pids-limit 16 embedded:hello fork 100      too many processes: refused
  estiba run --rm -v $PWD:/here:ro embedded:hello ls /here     a folder of yours, read-only
  skopeo copy docker://alpine oci:images:alpine                fetch a real image, then:
  estiba run --rm -it oci:images:alpine sh                     a shell in it
";

/// Prints the report on stdout.
pub(crate) fn print() -> Result<()> {
    // First of all: what comes next is this program's own time.
    let now = sys::monotonic_nanoseconds();
    let started = std::env::var(STARTED).ok().and_then(|text| text.parse().ok());

    let mut text = String::from("Hello from a container. No daemon was needed.\n\n");
    if let Some(duration) = started.and_then(|started| now.checked_sub(started)) {
        row(
            &mut text,
            "started in",
            &format!("{:.1} ms, from the start of estiba to this program", milliseconds(duration)),
        );
    }
    let status = read("/proc/self/status");
    row(&mut text, "process", &process(&status));
    row(&mut text, "hostname", read("/proc/sys/kernel/hostname").trim());
    row(&mut text, "root", &root());
    row(&mut text, "capabilities", &capabilities(field(&status, "CapEff").unwrap_or("0")));
    row(&mut text, "privileges", &privileges(&status));
    row(&mut text, "limits", &limits(Path::new("/sys/fs/cgroup"), &read("/proc/self/limits")));
    row(&mut text, "network", &network(&read("/proc/net/dev")));
    let _ = write!(text, "\n{TRY_NEXT}");
    std::io::stdout().write_all(text.as_bytes())
}

/// A file's text; nothing if it can't be read, for the container may hide it.
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn row(text: &mut String, name: &str, value: &str) {
    // Long values go on in the same column.
    const COLUMN: usize = 15;
    const WIDTH: usize = 100;
    let _ = write!(text, "  {name:<COLUMN$}");
    let mut used = COLUMN;
    for (index, word) in value.split(' ').enumerate() {
        if used + word.len() + 1 > WIDTH {
            let _ = write!(text, "\n  {:<COLUMN$}", "");
            used = COLUMN;
        } else if index > 0 {
            text.push(' ');
        }
        text.push_str(word);
        used += word.len() + 1;
    }
    text.push('\n');
}

fn milliseconds(nanoseconds: u64) -> f64 {
    std::time::Duration::from_nanos(nanoseconds).as_secs_f64() * 1000.0
}

/// A line of /proc/self/status.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn process(status: &str) -> String {
    let first = |name| field(status, name).and_then(|ids| ids.split_whitespace().next()).unwrap_or("?");
    let visible = std::fs::read_dir("/proc").map_or(0, |entries| {
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).count()
    });
    format!("pid {} of {visible} visible, uid {}, gid {}", std::process::id(), first("Uid"), first("Gid"))
}

fn root() -> String {
    let mountinfo = read("/proc/self/mountinfo");
    let kind = mountinfo
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some("/"))
        .find_map(|line| line.split_once(" - ")?.1.split(' ').next())
        .unwrap_or("unknown");
    let mut names: Vec<String> = std::fs::read_dir("/")
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    format!("{kind}, {} mounts; / holds {}", mountinfo.lines().count(), names.join(" "))
}

/// The names of capabilities(7) in the order of their numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn capabilities(mask: &str) -> String {
    let Ok(mask) = u64::from_str_radix(mask, 16) else { return "unknown".into() };
    let names: Vec<String> = (0..64)
        .filter(|bit| mask >> bit & 1 == 1)
        .map(|bit| CAPABILITIES.get(bit).map_or_else(|| format!("CAP_{bit}"), |name| (*name).to_string()))
        .collect();
    if names.is_empty() {
        "none".into()
    } else {
        format!("{} ({} of {})", names.join(" "), names.len(), CAPABILITIES.len())
    }
}

fn privileges(status: &str) -> String {
    let gain = match field(status, "NoNewPrivs") {
        Some("1") => "can never gain more (no_new_privs)",
        Some("0") => "may gain more (no_new_privs is off)",
        _ => "no_new_privs unknown",
    };
    let seccomp = match field(status, "Seccomp") {
        Some("0") => "off",
        Some("1") => "strict",
        Some("2") => "on",
        _ => "unknown",
    };
    format!("{gain}, seccomp filter {seccomp}")
}

/// The limits that a container sees at its own cgroup: cgroup 2 in one folder, cgroup 1 in a folder a controller.
fn limits(cgroup: &Path, resource_limits: &str) -> String {
    let first = |paths: &[&str]| {
        paths
            .iter()
            .map(|path| read(cgroup.join(path)))
            .find(|text| !text.is_empty())
            .map(|text| text.trim().to_string())
    };
    let memory = first(&["memory.max", "memory/memory.limit_in_bytes"]).map_or_else(
        || "memory not visible".into(),
        |text| match text.parse::<u64>() {
            // cgroup 1 shows "no limit" as the largest multiple of a page.
            Ok(bytes) if bytes < 1 << 62 => format!("memory {}", size(bytes)),
            _ => "memory unlimited".into(),
        },
    );
    let processes = first(&["pids.max", "pids/pids.max"]).map_or_else(
        || "processes not visible".into(),
        |text| format!("processes {}", if text == "max" { "unlimited" } else { &text }),
    );
    let quota = first(&["cpu.max"]).or_else(|| {
        let quota = first(&["cpu/cpu.cfs_quota_us", "cpu,cpuacct/cpu.cfs_quota_us"])?;
        let period = first(&["cpu/cpu.cfs_period_us", "cpu,cpuacct/cpu.cfs_period_us"])?;
        Some(format!("{quota} {period}"))
    });
    let cpus = quota.map_or_else(
        || "CPUs not visible".into(),
        |text| {
            let (quota, period) = text.split_once(' ').unwrap_or((&text, ""));
            match (quota.parse::<f64>(), period.parse::<f64>()) {
                (Ok(quota), Ok(period)) if quota > 0.0 && period > 0.0 => format!("CPUs {:.2}", quota / period),
                _ => "CPUs unlimited".into(),
            }
        },
    );
    let files = resource_limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().next())
        .unwrap_or("unknown");
    format!("{memory}, {processes}, {cpus}, open files {files}")
}

fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) {
        format!("{} GiB", bytes >> 30)
    } else if bytes >= 1 << 20 {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{bytes} bytes")
    }
}

fn network(devices: &str) -> String {
    let mut names: Vec<&str> =
        devices.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    names.sort_unstable();
    match names.as_slice() {
        [] => "no interface".into(),
        ["lo"] => "lo alone: nothing outside can be reached".into(),
        names => names.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named() {
        for (mask, names) in [
            ("0000000000000000", "none"),
            ("0000000000000001", "CHOWN (1 of 41)"),
            ("0000010000000020", "KILL CHECKPOINT_RESTORE (2 of 41)"),
            ("0000020000000000", "CAP_41 (1 of 41)"),
            ("?", "unknown"),
        ] {
            assert_eq!(capabilities(mask), names, "{mask}");
        }
    }

    #[test]
    fn networks_are_listed() {
        let head = "Inter-|\n face |\n";
        for (lines, said) in [
            ("", "no interface"),
            ("    lo:  0 0\n", "lo alone: nothing outside can be reached"),
            ("    lo:  0 0\n  eth0: 1 1\n", "eth0 lo"),
        ] {
            assert_eq!(network(&format!("{head}{lines}")), said, "{lines:?}");
        }
    }

    #[test]
    fn sizes_are_readable() {
        for (bytes, text) in [(1 << 30, "1 GiB"), (512 << 20, "512 MiB"), (3 << 29, "1536 MiB"), (4096, "4096 bytes")] {
            assert_eq!(size(bytes), text);
        }
    }
}
