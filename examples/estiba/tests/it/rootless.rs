//! `estiba` without root. As root these trials become a user that has nothing; run by a user they are his, with what he has.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use libtest_mimic::{Failed, Trial};
use nix::unistd::geteuid;
use tempfile::TempDir;

use crate::home::{Ended, HELLO, Home, Result, finish};
use crate::image;
use crate::need::{find, text};

/// Nobody's number.
const USER: u32 = 54_321;

/// Name, body, and what is missing for it.
type Case = (&'static str, fn(&User) -> Result, Vec<Option<String>>);

pub(crate) fn trials() -> Vec<Trial> {
    let root = geteuid().is_root();
    let namespaces = (!can_unshare()).then(|| "users may not make user namespaces".to_owned());
    let busybox = find("busybox").is_none().then(|| "no busybox-static".to_owned());
    // What a user may have is looked at once, by asking the program.
    let info = if root || namespaces.is_some() { String::new() } else { info() };
    let of_root = root.then(|| "needs a user with it, not root".to_owned());
    let no_cgroup = info.contains("no cgroup").then(|| "no cgroup was delegated".to_owned());
    let no_ids = info.contains("the only user").then(|| "no subordinate ids".to_owned());
    let has_ids = (!root && no_ids.is_none()).then(|| "needs a user without subordinate ids".to_owned());
    let has_cgroup = (!root && no_cgroup.is_none()).then(|| "needs a user without a cgroup".to_owned());
    let list: [Case; 8] = [
        ("runs_and_keeps_its_state_with_the_user", runs, vec![]),
        ("lives_and_is_stopped", lives, vec![busybox.clone()]),
        ("has_the_hosts_network", network, vec![busybox.clone()]),
        ("says_what_is_missing", missing, vec![has_ids.clone(), has_cgroup]),
        ("has_root_alone", single, vec![busybox.clone(), has_ids]),
        ("has_subordinate_ids", subordinate, vec![busybox.clone(), of_root.clone(), no_ids]),
        ("has_limits", limits, vec![busybox.clone(), of_root.clone(), no_cgroup.clone()]),
        ("is_paused", paused, vec![busybox, of_root, no_cgroup]),
    ];
    list.into_iter()
        .map(|(name, body, needs)| {
            let missing: Vec<String> = needs.into_iter().chain([namespaces.clone()]).flatten().collect();
            let trial = Trial::test(format!("rootless_{name}"), move || {
                let user = User::new()?;
                body(&user)?;
                user.check().map_err(Failed::from)
            });
            if missing.is_empty() { trial } else { trial.with_ignored_flag(true).with_kind(missing.join(", ")) }
        })
        .collect()
}

/// A home, and how to be the user whose it is.
struct User {
    folder: TempDir,
    program: PathBuf,
}

impl User {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("estiba-user-").tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let mut program = PathBuf::from(Home::program());
        if geteuid().is_root() {
            // The program's folder may be closed to others.
            program = folder.path().join("estiba");
            fs::copy(Home::program(), &program)?;
        }
        for name in ["home", "run"] {
            fs::create_dir(folder.path().join(name))?;
            if geteuid().is_root() {
                chown(folder.path().join(name), Some(USER), Some(USER))?;
            }
        }
        Ok(Self { folder, program })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = as_user();
        command.arg(format!("HOME={}", text(&self.path("home"))));
        command.arg(format!("XDG_RUNTIME_DIR={}", text(&self.path("run"))));
        command.arg(&self.program).args(arguments).stdin(Stdio::null()).current_dir("/");
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Ended> {
        finish(&mut self.command(arguments))
    }

    /// Makes the image `busybox:1`.
    fn busybox(&self) -> Result {
        let tar = self.path("busybox.tar");
        fs::write(&tar, image::busybox()?)?;
        fs::set_permissions(&tar, fs::Permissions::from_mode(0o644))?;
        self.run(&["import", &text(&tar), "busybox:1"])?.expect_status(0).map(drop)
    }

    /// Nothing is left but images.
    fn check(&self) -> Result {
        let ended = self.run(&["ps", "-aq"])?.expect_status(0)?;
        let root = self.path("home/.local/share/estiba");
        let run = self.path("run/estiba");
        let names = |folder: &Path| -> Vec<OsString> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
            entries.filter(|name| !["boot", "monitor.lock", "monitor.gate"].iter().any(|kept| name == kept)).collect()
        };
        let left =
            [names(&root.join("containers")), names(&root.join("snapshots/overlay/active")), names(&run)].concat();
        if ended.out.is_empty() && left.is_empty() {
            Ok(())
        } else {
            Err(format!("left: {left:?} {}", ended.out).into())
        }
    }
}

/// Becomes the user, and takes the environment away; variables and the program follow.
fn as_user() -> Command {
    let mut command = Command::new(if geteuid().is_root() { "setpriv" } else { "env" });
    if geteuid().is_root() {
        let id = USER.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "env"]);
    }
    command.args(["-i", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]);
    command
}

/// Whether a user can do what all of this begins with.
fn can_unshare() -> bool {
    let mut command = as_user();
    command.args(["unshare", "--user", "--map-root-user", "--mount", "true"]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn info() -> String {
    static INFO: LazyLock<String> = LazyLock::new(|| {
        let ended = User::new().and_then(|user| user.run(&["info"]));
        ended.map(|ended| ended.out).unwrap_or_default()
    });
    INFO.clone()
}

fn runs(user: &User) -> Result {
    let ended = user.run(&["run", "--rm", HELLO])?.expect_status(0)?;
    if !ended.out.contains("pid 1 of 1 visible, uid 0, gid 0") {
        return Err(format!("it said {}", ended.out).into());
    }
    let version = user.path("home/.local/share/estiba/version");
    if !version.is_file() || !user.path("run/estiba").is_dir() {
        return Err("its state is not with the user".into());
    }
    user.run(&["run", "--rm", HELLO, "exit", "7"])?.expect_status(7)?;
    user.run(&["run", "--rm", "--snapshotter", "native", HELLO, "exit", "8"])?.expect_status(8)?;
    Ok(())
}

fn lives(user: &User) -> Result {
    user.busybox()?;
    let script = "echo begun; trap 'echo stopped; exit 3' TERM; while :; do sleep 0.1; done";
    user.run(&["run", "-d", "--name", "one", "busybox:1", "sh", "-c", script])?.expect_status(0)?;
    user.run(&["exec", "one", "id", "-u"])?.expect_out("0\n")?;
    user.run(&["exec", "one", "sh", "-c", "echo text > /file && cat /file"])?.expect_out("text\n")?;
    let ended = user.run(&["ps", "--format", "{{.Names}} {{.State}}"])?.expect_status(0)?;
    if ended.out != "one running\n" {
        return Err(format!("ps says {:?}", ended.out).into());
    }
    user.run(&["stop", "one"])?.expect_status(0)?;
    user.run(&["logs", "one"])?.expect_out("begun\nstopped\n")?;
    user.run(&["inspect", "--format", "{{.State.ExitCode}}", "one"])?.expect_out("3\n")?;
    user.run(&["diff", "one"])?.expect_out("A /file\n")?;
    user.run(&["start", "one"])?.expect_status(0)?;
    user.run(&["exec", "one", "cat", "/file"])?.expect_out("text\n")?;
    user.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn network(user: &User) -> Result {
    user.busybox()?;
    let script = "test -d /sys/class/net/lo && cat /proc/self/net/dev";
    let inside = user.run(&["run", "--rm", "--network", "host", "busybox:1", "sh", "-c", script])?.expect_status(0)?;
    let interfaces = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
    };
    let host = interfaces(&fs::read_to_string("/proc/self/net/dev")?);
    if interfaces(&inside.out) != host {
        return Err(format!("it has {:?}, the host {host:?}", inside.out).into());
    }
    let inside = user.run(&["run", "--rm", "busybox:1", "cat", "/proc/self/net/dev"])?.expect_status(0)?;
    if interfaces(&inside.out) != ["lo"] {
        return Err(format!("without a network it has {:?}", inside.out).into());
    }
    Ok(())
}

fn missing(user: &User) -> Result {
    let first = user.run(&["run", "--rm", HELLO, "exit", "0"])?.expect_status(0)?;
    let told = |text: &str| text.contains("without root: ") && text.contains("no cgroup was delegated");
    if first.err.lines().count() != 1 || !told(&first.err) {
        return Err(format!("at first it said {:?}", first.err).into());
    }
    let second = user.run(&["run", "--rm", HELLO, "exit", "0"])?.expect_status(0)?;
    if !second.err.is_empty() {
        return Err(format!("it said again {:?}", second.err).into());
    }
    let info = user.run(&["info"])?.expect_status(0)?;
    if !info.out.contains("Rootless: true\nWARNING: no cgroup was delegated") {
        return Err(format!("info says {}", info.out).into());
    }
    let limited = user.run(&["run", "--rm", "--memory", "64m", HELLO])?.expect_status(125)?;
    if !limited.err.contains("systemd-run --user --scope") || limited.err.lines().count() != 1 {
        return Err(format!("of a limit it said {:?}", limited.err).into());
    }
    Ok(())
}

fn single(user: &User) -> Result {
    user.busybox()?;
    let ended = user.run(&["run", "--rm", "busybox:1", "cat", "/proc/self/uid_map"])?.expect_status(0)?;
    if ended.out.split_whitespace().nth(2) != Some("1") {
        return Err(format!("its ids are {}", ended.out).into());
    }
    let other = user.run(&["run", "--rm", "--user", "33:33", "busybox:1", "id"])?.expect_status(125)?;
    if !other.err.contains("/etc/subuid") {
        return Err(format!("of another user it said {:?}", other.err).into());
    }
    Ok(())
}

fn subordinate(user: &User) -> Result {
    user.busybox()?;
    let script = "touch /tmp/mine && ls -ln /tmp/mine && id -u && id -g";
    let command = ["run", "--rm", "--user", "33:34", "--tmpfs", "/tmp:mode=1777", "busybox:1", "sh", "-c", script];
    let ended = user.run(&command)?.expect_status(0)?;
    let fields: Vec<&str> = ended.out.split_whitespace().collect();
    if fields.get(2..4) != Some(&["33", "34"]) || !ended.out.ends_with("33\n34\n") {
        return Err(format!("it said {}", ended.out).into());
    }
    // Another's file survives the end of the command that made it, and is his in the next one.
    user.run(&["run", "--name", "two", "busybox:1", "sh", "-c", "touch /f; busybox chown 33:34 /f"])?
        .expect_status(0)?;
    user.run(&["commit", "two", "busybox:2"])?.expect_status(0)?;
    user.run(&["rm", "two"])?.expect_status(0)?;
    let ended = user.run(&["run", "--rm", "busybox:2", "ls", "-ln", "/f"])?.expect_status(0)?;
    let fields: Vec<&str> = ended.out.split_whitespace().collect();
    if fields.get(2..4) != Some(&["33", "34"]) {
        return Err(format!("it said {}", ended.out).into());
    }
    Ok(())
}

fn limits(user: &User) -> Result {
    user.busybox()?;
    let script = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    let limits = ["--memory", "64m", "--pids-limit", "77"];
    let command = [&["run", "--rm"], &limits[..], &["busybox:1", "sh", "-c", script]].concat();
    user.run(&command)?.expect_out("67108864\n77\n")?;
    let eater =
        ["run", "--name", "eater", "--memory", "16m", "busybox:1", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M"];
    user.run(&eater)?.expect_status(137)?;
    user.run(&["inspect", "--format", "{{.State.OOMKilled}}", "eater"])?.expect_out("true\n")?;
    user.run(&["rm", "eater"])?.expect_status(0)?;
    Ok(())
}

fn paused(user: &User) -> Result {
    user.busybox()?;
    user.run(&["run", "-d", "--name", "one", "busybox:1", "sleep", "1000"])?.expect_status(0)?;
    user.run(&["pause", "one"])?.expect_status(0)?;
    user.run(&["inspect", "--format", "{{.State.Status}}", "one"])?.expect_out("paused\n")?;
    user.run(&["unpause", "one"])?.expect_status(0)?;
    user.run(&["update", "--memory", "32m", "one"])?.expect_status(0)?;
    user.run(&["exec", "one", "cat", "/sys/fs/cgroup/memory.max"])?.expect_out("33554432\n")?;
    user.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}
