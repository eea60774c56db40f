//! The conformance suite on this crate's own runtime and on the runtime binaries of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use estiba_runtime::testsuite::{CASES, Subject};
use estiba_runtime::{Bundle, ContainerId, CreateOptions, DeleteMode, Error, External, Native, Runtime, Stdio};
use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::sandbox::{Outcome, privileged};

const BUSYBOX: &str = "/bin/busybox";

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (at, case) in CASES.iter().enumerate() {
        trials.push(suite(at, &format!("suite_native_{}", case.name), &|_| None, |_, state| {
            Box::new(Native::new(state))
        }));
        trials.push(suite(at, &format!("suite_runc_{}", case.name), &|_| missing("runc"), |_, state| {
            Box::new(External::new("runc", state))
        }));
        trials.push(suite(at, &format!("suite_crun_{}", case.name), &|_| missing("crun"), |folder, state| {
            Box::new(External::new(crun(folder), state))
        }));
    }
    trials.push(privileged("external_reports_what_the_binary_logs", logged));
    trials.push(privileged("external_tells_a_missing_binary_from_a_missing_program", not_there));
    trials.push(privileged("external_refuses_what_it_cannot_do", refused));
    trials
}

fn suite(
    case: usize,
    name: &str,
    missing: &dyn Fn(&str) -> Option<String>,
    runtime: fn(&Path, &Path) -> Box<dyn Runtime>,
) -> Trial {
    let run = move || -> Outcome {
        nix::sys::prctl::set_child_subreaper(true)?;
        let folder = tempfile::tempdir()?;
        let runtime = runtime(folder.path(), &folder.path().join("state"));
        let subject = Subject::new(&*runtime, BUSYBOX.as_ref(), folder.path())?;
        let outcome = (CASES[case].run)(&subject).map_err(|e| Failed::from(explain(&*e)));
        let left = leftovers(&folder.path().join("state"));
        outcome?;
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}").into()) }
    };
    let reason = if !nix::unistd::geteuid().is_root() {
        Some("needs root".to_owned())
    } else if !Path::new(BUSYBOX).exists() {
        Some("needs busybox-static".to_owned())
    } else {
        missing(name)
    };
    let trial = Trial::test(format!("privileged_{name}"), run);
    match reason {
        Some(reason) => trial.with_ignored_flag(true).with_kind(reason),
        None => trial,
    }
}

fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text.push_str(": ");
        text.push_str(&e.to_string());
        source = e.source();
    }
    text
}

/// What is in a state root after the last container is gone.
fn leftovers(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state).into_iter().flatten().flatten();
    entries.map(|e| e.path()).collect()
}

fn missing(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    (!found).then(|| format!("needs {program}"))
}

/// crun refuses a host with both versions of cgroups unless it does not see version 2: it gets a mount namespace without it.
fn crun(folder: &Path) -> PathBuf {
    if !Path::new("/sys/fs/cgroup/unified").exists() {
        return "crun".into();
    }
    let script = folder.join("crun");
    let text = "#!/bin/sh\nexec unshare -m sh -c 'umount /sys/fs/cgroup/unified && exec crun \"$@\"' crun \"$@\"\n";
    let written =
        fs::write(&script, text).and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)));
    written.expect("a script in a new folder");
    script
}

fn bundle(folder: &Path, spec: &serde_json::Value) -> Result<Bundle, Failed> {
    fs::create_dir_all(folder.join("rootfs"))?;
    fs::write(folder.join("config.json"), serde_json::to_vec(spec)?)?;
    Ok(Bundle::load(folder)?)
}

fn create(runtime: &External, bundle: &Bundle) -> Result<Error, Failed> {
    use std::os::fd::AsFd;
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    let stdio = Stdio::Fds { stdin: null.as_fd(), stdout: null.as_fd(), stderr: null.as_fd() };
    let id: ContainerId = "estiba-test".parse()?;
    match runtime.create(&id, bundle, &CreateOptions::new(stdio)) {
        Err(error) => Ok(error),
        Ok(created) => {
            runtime.delete(&id, DeleteMode::Force)?;
            Err(format!("nothing failed: {created:?}").into())
        }
    }
}

/// A runtime that answers as it is told.
fn fake(folder: &Path, body: &str) -> Result<External, Failed> {
    let script = folder.join("fake");
    fs::write(
        &script,
        format!("#!/bin/sh\n# --root ROOT --log LOG --log-format json OPERATION …\nroot=$2 log=$4\nshift 6\n{body}\n"),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(External::new(script, folder.join("state")))
}

fn logged() -> Outcome {
    let folder = tempfile::tempdir()?;
    let bundle = bundle(
        folder.path(),
        &json!({ "ociVersion": "1.0.2", "root": { "path": "rootfs" }, "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["prog"] } }),
    )?;
    let table = [
        (r#"printf '%s\n' '{"level":"error","msg":"it broke\nbadly"}' > $log; exit 3"#, "it broke badly", 3, 125),
        (r"exit 4", "", 4, 125),
        (
            r#"printf '%s\n' '{"level":"error","msg":"exec: \"prog\": executable file not found in $PATH"}' > $log; exit 1"#,
            "",
            1,
            127,
        ),
        (r#"printf '%s\n' '{"level":"error","msg":"exec: \"prog\": permission denied"}' > $log; exit 1"#, "", 1, 126),
        (r"kill -9 $$", "", 137, 125),
    ];
    for (body, message, status, code) in table {
        let error = create(&fake(folder.path(), body)?, &bundle)?;
        let fits = match &error {
            Error::External { message: m, status: s, .. } => code == 125 && m == message && *s == status,
            Error::ExecutableNotFound { executable, .. } => code == 127 && executable == "prog",
            Error::NotExecutable { executable, .. } => code == 126 && executable == "prog",
            _ => false,
        };
        if !fits || error.exit_code() != code {
            return Err(format!("{body}: {error:?}").into());
        }
    }
    let left = leftovers(&folder.path().join("state"));
    if left.is_empty() { Ok(()) } else { Err(format!("left behind: {left:?}").into()) }
}

fn not_there() -> Outcome {
    let folder = tempfile::tempdir()?;
    let bundle = bundle(
        folder.path(),
        &json!({ "ociVersion": "1.0.2", "root": { "path": "rootfs" }, "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["prog"] } }),
    )?;
    let error = create(&External::new("/no/such/runtime", folder.path().join("state")), &bundle)?;
    // Not to be taken for a missing program of the container.
    if !matches!(error, Error::Io { operation: "execute", .. }) || error.exit_code() != 125 {
        return Err(format!("{error:?}").into());
    }
    // It ends well, but has made nothing.
    let error = create(&fake(folder.path(), "exit 0")?, &bundle)?;
    match error {
        Error::External { message, status: 0, .. } if message.contains("no pid file") => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn refused() -> Outcome {
    let folder = tempfile::tempdir()?;
    let bundle = bundle(
        folder.path(),
        &json!({ "ociVersion": "1.0.2", "root": { "path": "rootfs" }, "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["prog"], "terminal": true } }),
    )?;
    match create(&fake(folder.path(), "exit 0")?, &bundle)? {
        Error::InvalidSpec { field, .. } if field == "process.terminal" => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}
