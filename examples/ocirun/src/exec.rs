//! A further program in a container.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use estiba_runtime::oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use estiba_runtime::{
    Bundle, ContainerId, Created, ExecOptions, ExitStatus, Labels, Native, Paused, Runtime, Status, Stdio, SubCgroup,
    inherited_fds,
};
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::{Value, json};

use crate::cli::Exec;
use crate::{Result, code, console, foreground, signal, write_pid};

/// Executes it, and waits for its end unless it is to be left alone.
pub(crate) fn exec(native: &Native, arguments: &Exec) -> Result<ExitCode> {
    let id: ContainerId = arguments.id.parse()?;
    let mut process = process(native, &id, arguments)?;
    let terminal = process.terminal() == Some(true);
    match (terminal, &arguments.console_socket) {
        (true, None) if arguments.detach => return Err("a terminal with --detach needs --console-socket".into()),
        (false, Some(_)) => return Err("--console-socket is given, but no terminal is asked for".into()),
        _ => {}
    }
    if terminal && !arguments.detach {
        foreground::adopt_size(&mut process);
    }
    // From here on a signal is for the program.
    let signals = if arguments.detach { None } else { Some(signal::Forwarded::new()?) };
    let (input, output, errors) = (io::stdin(), io::stdout(), io::stderr());
    let stdio = if terminal {
        Stdio::Terminal
    } else {
        Stdio::Fds { stdin: input.as_fd(), stdout: output.as_fd(), stderr: errors.as_fd() }
    };
    let inherited = inherited_fds(arguments.preserve_fds)?;
    let preserved: Vec<_> = inherited.iter().map(AsFd::as_fd).collect();
    let cgroups: Vec<_> = arguments.cgroup.iter().map(|text| sub_cgroup(text)).collect();
    let options = ExecOptions {
        preserve_fds: &preserved,
        labels: Labels::WherePossible,
        cgroups: &cgroups,
        paused: if arguments.ignore_paused { Paused::Awaited } else { Paused::Refused },
        ..ExecOptions::new(stdio)
    };
    let mut created = native.exec(&id, &process, &options).map_err(|error| match error {
        // The words that engines look for.
        estiba_runtime::Error::WrongStatus { status: Status::Paused, .. } => "cannot exec in a paused container".into(),
        error => Box::<dyn std::error::Error>::from(error),
    })?;
    if let Err(error) = deliver(arguments, &mut created) {
        let _ = pidfd_send_signal(&created.pidfd, Signal::KILL);
        let _ = estiba_runtime::wait(created.pidfd.as_fd(), created.pid);
        return Err(error);
    }
    let Some(signals) = signals else { return Ok(code(ExitStatus::Exited(0))) };
    let kill = |number| {
        let signal = Signal::from_named_raw(number).ok_or("no signal that can be handed on")?;
        Ok(pidfd_send_signal(&created.pidfd, signal)?)
    };
    let bridge = created.console.as_ref().map(foreground::Bridge::new).transpose()?;
    foreground::wait(&created, bridge, &signals, kill).map(code)
}

fn deliver(arguments: &Exec, created: &mut Created) -> Result<()> {
    if let Some(socket) = &arguments.console_socket
        && let Some(console) = created.console.take()
    {
        console::send(socket, &console)?;
    }
    if let Some(socket) = &arguments.pidfd_socket {
        console::send_pidfd(socket, &created.pidfd, "setns")?;
    }
    arguments.pid_file.as_deref().map_or(Ok(()), |path| write_pid(path, created.pid))
}

/// What a file says, or the container's process with the changes that are asked for.
fn process(native: &Native, id: &ContainerId, arguments: &Exec) -> Result<Process> {
    if let Some(path) = &arguments.process {
        let text = fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let parse = |error: serde_json::Error| format!("cannot parse {}: {error}", path.display());
        let mut value: Value = serde_json::from_slice(&text).map_err(parse)?;
        if let Some(process) = value.as_object_mut() {
            // Root, if nobody is named.
            process.entry("user").or_insert_with(|| json!({"uid": 0, "gid": 0}));
        }
        return Ok(serde_json::from_value(value).map_err(parse)?);
    }
    if arguments.arguments.is_empty() {
        return Err("there is no program to execute".into());
    }
    let bundle = Bundle::load(native.state(id)?.bundle)?;
    let mut process = bundle.spec.process().clone().ok_or("the container's config.json has no process")?;
    process.set_args(Some(arguments.arguments.clone())).set_terminal(Some(arguments.tty)).set_console_size(None);
    if let Some(cwd) = &arguments.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(user) = &arguments.user {
        let (uid, gid) = parse_user(user)?;
        process.user_mut().set_uid(uid);
        if let Some(gid) = gid {
            process.user_mut().set_gid(gid);
        }
    }
    if !arguments.additional_gids.is_empty() {
        process.user_mut().set_additional_gids(Some(arguments.additional_gids.clone()));
    }
    let mut environment = process.env().clone().unwrap_or_default();
    environment.extend(arguments.env.iter().cloned());
    process.set_env(Some(environment));
    if arguments.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(profile) = &arguments.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &arguments.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if !arguments.cap.is_empty() {
        let named = arguments.cap.iter().map(|name| capability(name)).collect::<Result<Vec<_>>>()?;
        let mut sets = process.capabilities().clone().unwrap_or_else(none);
        let with =
            |set: &Option<Capabilities>| Some(set.iter().flatten().copied().chain(named.iter().copied()).collect());
        // Not what is inherited (CVE-2022-29162); what is so by the configuration is ambient, too, as with runc.
        let inherited = sets.inheritable().clone().unwrap_or_default();
        let ambient = sets.ambient().iter().flatten().chain(named.iter().filter(|name| inherited.contains(name)));
        let ambient = Some(ambient.copied().collect());
        let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
        sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted).set_ambient(ambient);
        process.set_capabilities(Some(sets));
    }
    Ok(process)
}

/// `[CONTROLLER[,CONTROLLER]:]PATH`.
fn sub_cgroup(text: &str) -> SubCgroup {
    let (controllers, path) = text.split_once(':').unwrap_or(("", text));
    let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    SubCgroup { controllers, path: path.into() }
}

fn none() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    sets
}

fn capability(name: &str) -> Result<Capability> {
    let name = name.to_ascii_uppercase();
    let name = if name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
    serde_json::from_value(name.clone().into()).map_err(|_| format!("{name} is no capability").into())
}

/// Numbers and nothing else: a name would have to be looked up in the container, and half a number is another user
/// (CVE-2026-30892).
fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |part: &str| {
        let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|_| plain).ok_or_else(|| format!("{text:?} is no user: want UID or UID:GID"))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CVE-2026-30892: half a number was another user.
    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("5").ok(), Some((5, None)));
        assert_eq!(parse_user("5:6").ok(), Some((5, Some(6))));
        for bad in ["", ":", "5:", ":6", "root", "5:6:7", "5x", "+5", "-1", " 5", "4294967296", "0x0"] {
            assert!(parse_user(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cgroups_are_for_some_controllers_or_all() {
        let sub = |controllers: &[&str], path: &str| SubCgroup {
            controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
            path: path.into(),
        };
        assert_eq!(sub_cgroup("a/b"), sub(&[], "a/b"));
        assert_eq!(sub_cgroup("cpu,cpuacct:/x"), sub(&["cpu", "cpuacct"], "/x"));
    }

    #[test]
    fn capabilities_have_names() {
        for name in ["CAP_KILL", "kill", "cap_kill"] {
            assert_eq!(capability(name).ok(), Some(Capability::Kill), "{name}");
        }
        assert!(capability("CAP_NOTHING").is_err());
    }
}
