//! The same bundle under runc and under this runtime looks the same from inside.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};

use crate::sandbox::{Outcome, Sandbox, privileged, same};

const RUNC: &str = "/usr/sbin/runc";

pub(crate) fn trials() -> Vec<Trial> {
    type Case = (&'static str, fn() -> Outcome);
    let cases: [Case; 5] = [
        ("like_runc_by_default", || compare(|_| {})),
        ("like_runc_with_a_user", || {
            compare(|spec| {
                spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "umask": 0o77, "additionalGids": [4, 24]});
                spec["process"]["cwd"] = json!("/a/b");
                spec["process"]["noNewPrivileges"] = json!(false);
                spec["process"]["oomScoreAdj"] = json!(100);
            })
        }),
        ("like_runc_with_mounts", || {
            compare(|spec| {
                spec["root"]["readonly"] = json!(true);
                let list = spec["mounts"].as_array_mut().expect("a list");
                list.push(json!({"destination": "/t", "type": "tmpfs", "source": "x", "options": ["noexec", "mode=1777", "size=1m", "noatime"]}));
                list.push(json!({"destination": "/e", "type": "bind", "source": "/etc", "options": ["rbind", "ro", "nosuid"]}));
                list.push(json!({"destination": "/f", "type": "bind", "source": "/etc/hostname", "options": ["bind"]}));
            })
        }),
        ("like_runc_with_devices", || {
            compare(|spec| {
                spec["linux"]["devices"] = json!([
                    {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 1, "gid": 2},
                    {"path": "/dev/sub/loop", "type": "b", "major": 7, "minor": 0}
                ]);
                spec["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "0"});
            })
        }),
        ("like_runc_with_capabilities_and_limits", || {
            compare(|spec| {
                let some = json!(["CAP_NET_RAW", "CAP_CHOWN", "CAP_SYS_CHROOT"]);
                spec["process"]["capabilities"] = json!({"bounding": some, "effective": ["CAP_CHOWN"], "permitted": some, "inheritable": ["CAP_NET_RAW"], "ambient": ["CAP_NET_RAW"]});
                spec["process"]["rlimits"] = json!([
                    {"type": "RLIMIT_CORE", "hard": 10, "soft": 5}, {"type": "RLIMIT_STACK", "hard": 9_000_000, "soft": 8_000_000}
                ]);
            })
        }),
    ];
    let generated: [Case; 4] = [
        ("like_runc_generated_1", || generated(0..15)),
        ("like_runc_generated_2", || generated(15..30)),
        ("like_runc_generated_3", || generated(30..45)),
        ("like_runc_generated_4", || generated(45..60)),
    ];
    cases
        .into_iter()
        .chain(generated)
        .map(|(name, run)| {
            let trial = privileged(name, run);
            if Path::new(RUNC).exists() { trial } else { trial.with_ignored_flag(true).with_kind("needs runc") }
        })
        .collect()
}

/// Bundles that differ in many fields at once, the same ones every time.
fn generated(seeds: std::ops::Range<u64>) -> Outcome {
    for seed in seeds {
        let mut choice = Choice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        compare_with(|spec| vary(spec, &mut choice)).map_err(|failed| format!("bundle {seed}: {failed:?}"))?;
    }
    Ok(())
}

/// Numbers that look like chance (xorshift).
struct Choice(u64);

impl Choice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn one_of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[usize::try_from(self.below(list.len() as u64)).expect("a place")]
    }

    /// Some of a list, in its order.
    fn some<'a>(&mut self, list: &[&'a str]) -> Vec<&'a str> {
        list.iter().copied().filter(|_| self.below(2) == 0).collect()
    }

    fn perhaps(&mut self) -> bool {
        self.below(2) == 0
    }
}

fn vary(spec: &mut Value, choice: &mut Choice) {
    const CAPABILITIES: [&str; 7] =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_CHROOT", "CAP_SETUID"];
    let process = &mut spec["process"];
    if choice.perhaps() {
        process["user"] = json!({"uid": choice.below(3) * 1000, "gid": choice.below(3) * 500, "additionalGids": [choice.below(100) + 1]});
    }
    process["user"]["umask"] = json!(choice.below(0o100));
    process["cwd"] = json!(choice.one_of(&["/", "/a/b", "/dev", "/proc", "/bin/../a"]));
    process["noNewPrivileges"] = json!(choice.perhaps());
    if choice.perhaps() {
        process["oomScoreAdj"] = json!(choice.below(1000));
    }
    let bounding = choice.some(&CAPABILITIES);
    let permitted = choice.some(&bounding);
    let (effective, inheritable) = (choice.some(&permitted), choice.some(&permitted));
    let ambient = choice.some(&inheritable);
    process["capabilities"] = json!({
        "bounding": bounding, "permitted": permitted, "effective": effective, "inheritable": inheritable, "ambient": ambient
    });
    let limits = choice.some(&["RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_STACK"]);
    process["rlimits"] =
        limits.into_iter().map(|name| json!({"type": name, "soft": 4_000_000, "hard": 7_000_000})).collect();
    for limit in process["rlimits"].as_array_mut().expect("a list") {
        if limit["type"] == "RLIMIT_NOFILE" {
            *limit = json!({"type": "RLIMIT_NOFILE", "soft": 100 + choice.below(100), "hard": 300});
        }
    }
    spec["root"]["readonly"] = json!(choice.perhaps());
    if choice.perhaps() {
        spec["hostname"] = json!(choice.one_of(&["one", "two", "a-longer-name.example"]));
    }
    let mounts = spec["mounts"].as_array_mut().expect("a list");
    if choice.perhaps() {
        let mut options = choice.some(&["nosuid", "nodev", "noexec", "ro", "noatime", "nodiratime"]);
        options.extend(["size=1m", "mode=1770"]);
        mounts.push(
            json!({"destination": "/t", "type": "tmpfs", "source": choice.one_of(&["tmpfs", "x"]), "options": options}),
        );
    }
    if choice.perhaps() {
        mounts.push(json!({"destination": "/a/b", "type": "tmpfs", "source": "tmpfs", "options": ["mode=711", choice.one_of(&["nosuid", "nodev"])]}));
    }
    if choice.perhaps() {
        let mut options = choice.some(&["ro", "nosuid", "nodev", "noexec"]);
        options.push(choice.one_of(&["bind", "rbind"]));
        mounts.push(json!({"destination": "/e", "type": "bind", "source": "/etc", "options": options}));
    }
    if choice.perhaps() {
        mounts.push(json!({"destination": "/f", "type": "bind", "source": "/etc/hostname", "options": ["bind", choice.one_of(&["ro", "rw"])]}));
    }
    let linux = &mut spec["linux"];
    if choice.perhaps() {
        linux["devices"] = json!([{
            "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": choice.below(0o1000), "uid": choice.below(9), "gid": choice.below(9)
        }]);
    }
    if choice.perhaps() {
        linux["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": choice.below(1000).to_string()});
    }
    let masked =
        ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/bin/stat.none", "/none"];
    linux["maskedPaths"] = json!(choice.some(&masked));
    linux["readonlyPaths"] =
        json!(choice.some(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]));
    let gone = choice.one_of(&["ipc", "cgroup", "none"]);
    linux["namespaces"].as_array_mut().expect("a list").retain(|namespace| namespace["type"] != gone);
    if choice.perhaps() {
        linux["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["swapon", "reboot"], "action": "SCMP_ACT_ERRNO"}]
        });
    }
}

/// What a process can find out about itself. Numbers of mounts and inodes, and their order, are nobody's promise.
const LOOK: &str = "id; umask; pwd; hostname; grep -E 'Cap|NoNew|Seccomp:|Groups|Sig(Blk|Cgt)' /proc/self/status; \
    cat /proc/self/limits /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_unprivileged_port_start; \
    cd /dev; find . ! -name . ! -path './pts/*' ! -path './mqueue/*' | sort | while read f; do stat -c '%n %F %a %u %g %t:%T' $f; readlink $f; done; \
    for ns in pid net ipc uts mnt cgroup user; do test $(readlink /proc/self/ns/$ns) = $(cat /host.$ns) && echo shares $ns; done; \
    sed 's/^[0-9]* [0-9]* [0-9:]* //; s/ - / /; s/\\(master\\|shared\\):[0-9]* //g' /proc/self/mountinfo | sort";

fn compare(change: fn(&mut Value)) -> Outcome {
    compare_with(change)
}

fn compare_with(change: impl FnOnce(&mut Value)) -> Outcome {
    let mut sandbox = Sandbox::new();
    change(&mut sandbox.spec);
    // Each hierarchy of version 1 is shown by one, and those with a folder of the container's by the other.
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    list.retain(|mount| mount["type"] != "cgroup");
    let root = sandbox.rootfs();
    for applet in ["find", "sed", "readlink"] {
        let link = root.join("bin").join(applet);
        if !link.is_symlink() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    for name in ["dev", "proc", "sys", "a", "a/b", "t", "e"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::write(root.join("f"), "")?;
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
        let link = fs::read_link(format!("/proc/self/ns/{kind}"))?;
        fs::write(root.join(format!("host.{kind}")), link.to_str().expect("text"))?;
    }
    sandbox.script(LOOK);
    let ours = sandbox.output()?;
    let theirs = runc(&sandbox)?;
    let path = sandbox.rootfs().display().to_string();
    let clean = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.replace(&path, "ROOT"))
            .filter(|line| kept(line))
            .map(|line| known(&line))
            .collect()
    };
    let (ours, theirs) = (clean(&ours), clean(&theirs));
    same(ours.len() > 50, true)?;
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line)).cloned().collect()
    };
    let (more, less) = (only(&ours, &theirs), only(&theirs, &ours));
    if more.is_empty() && less.is_empty() {
        Ok(())
    } else {
        Err(format!("only here:\n{}\nonly under runc:\n{}", more.join("\n"), less.join("\n")).into())
    }
}

/// What differs on purpose: runc gives every masked folder a tmpfs with other attributes. (It also leaves SIGURG ignored, which is why
/// `SigIgn` is not looked at.)
fn kept(line: &str) -> bool {
    let mut fields = line.split(' ');
    // Masked folders, as far as the machine has them, are checked by their own test.
    let masked =
        matches!((fields.next(), fields.next()), (Some("/"), Some("/proc/acpi" | "/sys/firmware" | "/proc/scsi")));
    !masked && (!line.contains(" tmpfs tmpfs ro,") || line.contains("size=1024k"))
}

/// runc makes only the mount of a tmpfs read-only, not the filesystem.
fn known(line: &str) -> String {
    line.replace(" ro,size=1024k", " rw,size=1024k")
}

fn runc(sandbox: &Sandbox) -> Result<String, Failed> {
    fs::write(sandbox.bundle_path().join("config.json"), serde_json::to_vec(&sandbox.spec)?)?;
    let output = Command::new(RUNC)
        .arg("--root")
        .arg(sandbox.outside().join("runc"))
        .args(["run", "--bundle"])
        .arg(sandbox.bundle_path())
        .arg(sandbox.id.as_str())
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        return Err(format!("runc: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
