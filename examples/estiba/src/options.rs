//! The options of `run` and `create`: what a container is to be.

mod device;
mod file;
mod hosts;
mod image;
mod limits;
mod mount;
mod network;
mod sharing;
mod unsupported;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args};
use estiba_engine::{CreateRequest, Engine, Healthcheck, Limits, LogConfig, RestartPolicy, Streams, Ulimit};

pub(crate) use self::file::IdFile;
pub(crate) use self::limits::LimitOptions;
use self::network::NetworkOptions;
use self::unsupported::Unsupported;
use crate::failure::{Failure, Result};
use crate::volume::{self, SeLinux};
use crate::{duration, embedded, environment, quantity, signals};

/// What a container is to be.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "a flag of the command line is a bool")]
pub(crate) struct Options {
    /// Tell hooks and other runtimes something of it
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Connect with stdin, stdout or stderr only
    #[arg(short, long, value_name = "STREAM")]
    attach: Vec<String>,
    /// Give it a capability beyond the default ones (NET_ADMIN, ALL)
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Take a default capability from it (ALL)
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// When the image is fetched from a registry
    #[arg(long, value_name = "WHEN", value_enum, default_value = "missing")]
    pull: image::Pull,
    /// Do not say how far the image has come
    #[arg(short, long)]
    quiet: bool,
    /// Write the container's id to a new file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Replace the image's entrypoint ("" for none)
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Set a variable; KEY alone takes the caller's value
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file of KEY=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// One more group of its user, by name or number
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Command that finds out whether it is well
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between checks [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    health_interval: Option<Duration>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "NUMBER")]
    health_retries: Option<u32>,
    /// Time between checks in the start period [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    health_start_interval: Option<Duration>,
    /// Time from the start in which failures do not count [default: 0s]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    health_start_period: Option<Duration>,
    /// Time after which a check has failed [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    health_timeout: Option<Duration>,
    /// Host name inside
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Keep standard input connected
    #[arg(short, long)]
    interactive: bool,
    /// Mark it with a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Read labels from a file of KEY=VALUE lines
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    #[command(flatten)]
    devices: device::Devices,
    #[command(flatten)]
    hosts: hosts::Hosts,
    #[command(flatten)]
    sharing: sharing::Sharing,
    #[command(flatten)]
    limits: LimitOptions,
    /// How ready the kernel is to swap its memory out (0 to 100)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(-1..=100))]
    memory_swappiness: Option<i64>,
    /// Let it wait when its memory runs out, and kill nothing
    #[arg(long)]
    oom_kill_disable: bool,
    /// Where its output is kept: json-file or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file")]
    log_driver: String,
    /// Setting of the log: max-size=10m, max-file=3
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
    /// Show a folder, a volume or a memory file system inside (type=bind,src=/a,dst=/b,readonly)
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Do not check whether it is well, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
    /// How ready the kernel is to end it when memory runs out (-1000 to 1000)
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// Give it all capabilities and devices, and take the bounds of its system calls and files away
    #[arg(long)]
    privileged: bool,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// When it is started again: no, on-failure, on-failure:RETRIES, always or unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = restart)]
    restart: Option<RestartPolicy>,
    /// Remove it when it has ended
    #[arg(long)]
    rm: bool,
    /// OCI runtime to use instead of the built-in one (/usr/sbin/runc)
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// no-new-privileges (the default) or no-new-privileges=false, seccomp=unconfined, systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Size of /dev/shm (64m)
    #[arg(long, value_name = "BYTES", value_parser = quantity::bytes)]
    shm_size: Option<u64>,
    /// Signal that asks it to end [default: the image's, or SIGTERM]
    #[arg(long, value_name = "SIGNAL", value_parser = signals::parse)]
    stop_signal: Option<i32>,
    /// Seconds until it is killed after that signal; -1: never [default: 10]
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<i64>,
    /// Kernel parameter of its own namespaces
    #[arg(long, value_name = "KEY=VALUE")]
    sysctl: Vec<String>,
    /// Memory file system inside (/tmp:size=64m,mode=1777)
    #[arg(long, value_name = "DIR[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Limit of each process (nofile=1024:2048)
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = limits::ulimit)]
    ulimit: Vec<Ulimit>,
    /// User inside, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = user)]
    user: Option<String>,
    /// Show a folder or file of the host inside, or a volume (NAME:DST, or DST for one of its own)
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// Show it what another container has of the host and of volumes
    #[arg(long, value_name = "CONTAINER[:ro]")]
    volumes_from: Vec<String>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Show this help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    unsupported: Unsupported,
    #[command(flatten)]
    networking: NetworkOptions,
}

/// The image, and a command instead of its own.
#[derive(Debug, Args)]
pub(crate) struct WordsOfCommand {
    /// The image; and a command, with its options, instead of the image's own
    // One list: only so does clap leave every option after IMAGE to the command.
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE")]
    words: Vec<String>,
}

/// A user by name or by a number that the kernel can count.
pub(crate) fn user(text: &str) -> Result<String, String> {
    for part in text.splitn(2, ':') {
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        // The greatest number means none.
        if is_number && part.parse::<u32>().is_ok_and(|id| id < u32::MAX) != is_number {
            return Err(format!("{part} is no user or group id: the greatest is 4294967294"));
        }
    }
    Ok(text.to_owned())
}

/// A restart policy.
pub(crate) fn restart(text: &str) -> Result<RestartPolicy, String> {
    text.parse().map_err(|_| "it must be no, on-failure, on-failure:RETRIES, always or unless-stopped".to_owned())
}

impl Options {
    pub(crate) fn tty(&self) -> bool {
        self.tty
    }

    /// Whether streams were named.
    pub(crate) fn attaches(&self) -> bool {
        !self.attach.is_empty()
    }

    /// The streams that a command in the foreground is connected by.
    pub(crate) fn streams(&self) -> Result<Streams> {
        if self.attach.is_empty() {
            return Ok(Streams { stdin: self.interactive, stdout: true, stderr: true });
        }
        let mut streams = Streams::NONE;
        for name in &self.attach {
            match name.to_ascii_lowercase().as_str() {
                "stdin" => streams.stdin = true,
                "stdout" => streams.stdout = true,
                "stderr" => streams.stderr = true,
                _ => {
                    return Err(Failure::new(format!(
                        "--attach {name}: valid streams are STDIN, STDOUT and STDERR: give one of them"
                    )));
                }
            }
        }
        Ok(streams)
    }

    /// Judges what needs no engine: a wrong option costs and leaves nothing.
    pub(crate) fn prepare(self) -> Result<Prepared> {
        self.unsupported.refuse()?;
        if self.rm && self.restart.is_some_and(|policy| policy != RestartPolicy::No) {
            return Err(Failure::new("conflicting options: cannot specify both --restart and --rm: leave one away"));
        }
        let env = environment::collect(&self.env_file, &self.env, |key| std::env::var(key).ok())?;
        let mut labels = BTreeMap::new();
        for pair in environment::lines(&self.label_file)?.iter().chain(&self.label) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if key.is_empty() {
                return Err(Failure::new(format!("the label {pair:?} is refused: it must be KEY or KEY=VALUE")));
            }
            labels.insert(key.to_owned(), value.to_owned());
        }
        let mut sysctls = BTreeMap::new();
        for pair in &self.sysctl {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(Failure::new(format!(
                    "--sysctl {pair}: it must be KEY=VALUE, such as net.core.somaxconn=1024"
                )));
            };
            sysctls.insert(key.to_owned(), value.to_owned());
        }
        let mut annotations = BTreeMap::new();
        for pair in &self.annotation {
            match pair.split_once('=') {
                Some((key, value)) if !key.is_empty() => annotations.insert(key.to_owned(), value.to_owned()),
                _ => return Err(Failure::new(format!("--annotation {pair}: it must be KEY=VALUE"))),
            };
        }
        let mounts = self.mounts()?;
        let security = self.security()?;
        let log = limits::log(&self.log_driver, &self.log_opt)?;
        let health = self.health()?;
        let path = std::env::var_os("PATH");
        let runtime = self.runtime.as_deref().map(|program| find_program(program, path)).transpose()?;
        let limits = Limits {
            // As Docker: -1 is the kernel's own.
            memory_swappiness: self.memory_swappiness.and_then(|number| u64::try_from(number).ok()),
            oom_kill_disable: self.oom_kill_disable.then_some(true),
            ..self.limits.limits()
        };
        Ok(Prepared {
            security,
            env,
            labels,
            annotations,
            sysctls,
            mounts,
            log,
            health,
            runtime,
            limits,
            options: self,
        })
    }

    /// What of its bounds is taken away.
    fn security(&self) -> Result<Security> {
        let mut security = Security::default();
        for option in &self.security_opt {
            let (key, value) = option.split_once(['=', ':']).unwrap_or((option, "true"));
            match (key, value, crate::flags::boolean(value)) {
                ("no-new-privileges", _, Ok(forbidden)) => security.new_privileges = !forbidden,
                ("seccomp", "unconfined", _) => security.seccomp_unconfined = true,
                ("seccomp", "builtin", _) => security.seccomp_unconfined = false,
                ("systempaths", "unconfined", _) => security.paths_unmasked = true,
                // No profile is loaded and no label is set anyhow.
                ("apparmor", "unconfined", _) | ("label", "disable", _) => {}
                _ => {
                    return Err(Failure::new(format!(
                        "--security-opt {option} is not supported: use no-new-privileges[=false], seccomp=unconfined, \
                         systempaths=unconfined, apparmor=unconfined or label=disable"
                    )));
                }
            }
        }
        Ok(security)
    }

    fn mounts(&self) -> Result<mount::Mounts> {
        let mut mounts = mount::Mounts::default();
        if !self.volume.is_empty() {
            let directory = std::env::current_dir().map_err(|error| {
                Failure::caused("cannot find the current folder, which volumes may start from", error)
            })?;
            let selinux = SeLinux::detect();
            for text in &self.volume {
                mounts.add(volume::parse(text, &directory, selinux).map_err(Failure::new)?);
            }
        }
        for text in &self.mount {
            let failed = |reason| Failure::new(format!("--mount {text}: {reason}"));
            mounts.parse(text).map_err(failed)?;
        }
        for text in &self.tmpfs {
            mounts.tmpfs.push(mount::tmpfs(text).map_err(|reason| Failure::new(format!("--tmpfs {text}: {reason}")))?);
        }
        Ok(mounts)
    }

    fn health(&self) -> Result<Option<Healthcheck>> {
        let check = Healthcheck {
            test: self.health_cmd.as_ref().map(|line| vec!["CMD-SHELL".to_owned(), line.clone()]).unwrap_or_default(),
            interval: self.health_interval,
            timeout: self.health_timeout,
            start_period: self.health_start_period,
            start_interval: self.health_start_interval,
            retries: self.health_retries,
        };
        let is_said = check != Healthcheck::default();
        if self.no_healthcheck {
            if is_said {
                return Err(Failure::new("--no-healthcheck conflicts with --health-* options: leave one away"));
            }
            return Ok(Some(Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() }));
        }
        Ok(is_said.then_some(check))
    }
}

/// What of a container's bounds is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Security {
    /// Programs with a set-user-id bit get what they ask for.
    new_privileges: bool,
    seccomp_unconfined: bool,
    paths_unmasked: bool,
}

/// Options that have been judged.
#[derive(Debug)]
pub(crate) struct Prepared {
    security: Security,
    env: Vec<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    sysctls: BTreeMap<String, String>,
    mounts: mount::Mounts,
    log: LogConfig,
    health: Option<Healthcheck>,
    runtime: Option<PathBuf>,
    limits: Limits,
    options: Options,
}

impl Prepared {
    pub(crate) fn cidfile(&self) -> Option<&Path> {
        self.options.cidfile.as_deref()
    }

    /// Finds the image, and puts all together.
    pub(crate) async fn request(self, engine: &Engine, words: WordsOfCommand) -> Result<CreateRequest> {
        let Self { security, mut env, labels, annotations, sysctls, mut mounts, log, health, runtime, limits, options } =
            self;
        let mut words = words.words.into_iter();
        let reference = words.next().unwrap_or_default();
        let image = image::find(engine, &reference, options.pull, options.quiet).await?;
        if reference == embedded::REFERENCE {
            env.extend(embedded::variable());
        }
        for text in &options.volumes_from {
            mounts.take_from(engine, text).await?;
        }
        let (pid, uts, cgroup_namespace, ipc) = options.sharing.into_parts();
        let (extra_hosts, dns, domainname) = options.hosts.into_parts();
        let (devices, device_rules, device_limits) = options.devices.into_parts();
        let mut request = CreateRequest {
            name: options.name,
            command: words.collect(),
            entrypoint: options.entrypoint.map(|program| if program.is_empty() { vec![] } else { vec![program] }),
            env,
            workdir: options.workdir,
            user: options.user,
            group_add: options.group_add,
            hostname: options.hostname,
            domainname,
            labels,
            annotations,
            binds: mounts.binds,
            volumes: mounts.volumes,
            tmpfs: mounts.tmpfs,
            shm_size: options.shm_size,
            limits,
            ulimits: options.ulimit,
            sysctls,
            oom_score_adj: options.oom_score_adj,
            cap_add: options.cap_add,
            cap_drop: options.cap_drop,
            pid,
            uts,
            cgroup_namespace,
            ipc,
            dns,
            extra_hosts,
            devices,
            device_rules,
            device_limits,
            privileged: options.privileged,
            new_privileges: security.new_privileges,
            seccomp_unconfined: security.seccomp_unconfined,
            paths_unmasked: security.paths_unmasked,
            read_only: options.read_only,
            tty: options.tty,
            console_size: crate::terminal::size().filter(|_| options.tty),
            interactive: options.interactive,
            auto_remove: options.rm,
            restart: options.restart.unwrap_or_default(),
            stop_signal: options.stop_signal,
            stop_timeout: options.stop_timeout,
            health,
            log,
            runtime,
            ..CreateRequest::new(image)
        };
        options.networking.fill(&mut request)?;
        Ok(request)
    }
}

/// A program file that is there: a path as it is, a mere name from the folders of `PATH`.
fn find_program(program: &Path, path: Option<OsString>) -> Result<PathBuf> {
    let shown = program.display();
    if program.components().count() > 1 || program.is_absolute() {
        let file = std::path::absolute(program)
            .map_err(|error| Failure::caused(format!("cannot use the runtime {shown}"), error))?;
        if !file.is_file() {
            return Err(Failure::new(format!(
                "the runtime {shown} is no file that is there: give the path of an OCI runtime, such as /usr/sbin/runc"
            )));
        }
        return Ok(file);
    }
    std::env::split_paths(&path.unwrap_or_default())
        .map(|folder| folder.join(program))
        .find(|file| file.is_absolute() && file.is_file())
        .ok_or_else(|| Failure::new(format!("the runtime {shown} is in no folder of PATH: give its path")))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _, Parser};

    use super::*;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Line {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        words: WordsOfCommand,
    }

    fn parse(words: &str) -> Line {
        let command = crate::flags::like_docker(Line::command(), &[]);
        let matches = command.try_get_matches_from(words.split(' ')).expect("parsed");
        Line::from_arg_matches(&matches).expect("options")
    }

    #[test]
    fn options_after_the_image_are_the_commands() {
        for (words, expected) in [
            ("run x", "x"),
            ("run x ls -l --memory 1 -it --rm --help", "x ls -l --memory 1 -it --rm --help"),
            ("run x -i", "x -i"),
            ("run x --unknown", "x --unknown"),
            ("run x -- y", "x -- y"),
            ("run -- x y", "x y"),
        ] {
            let Line { options, words: found } = parse(words);
            assert_eq!(found.words.join(" "), expected, "{words}");
            assert!(!options.interactive && !options.rm && options.limits.limits() == Limits::default(), "{words}");
        }
    }

    #[test]
    fn dockers_short_forms_are_known() {
        let options =
            parse("run -it -m512m -h box -u 1:2 -w /w -eA=1 -e B -v /a:/b:ro --net host --pids-limit -1 --rm x sh")
                .options;
        assert!(options.interactive && options.tty && options.rm);
        let limits = options.limits.limits();
        assert_eq!((limits.memory, limits.pids_limit), (Some(512 << 20), Some(-1)));
        assert_eq!(options.hostname.as_deref(), Some("box"));
        assert_eq!(options.user.as_deref(), Some("1:2"));
        assert_eq!(options.workdir.as_deref(), Some("/w"));
        assert_eq!(options.env, ["A=1", "B"]);
        assert_eq!(options.volume, ["/a:/b:ro"]);
        assert_eq!(options.networking.network, ["host"]);
    }

    #[test]
    fn security_options_are_read() {
        for (words, expected) in [
            ("run x", Some([false; 3])),
            ("run --security-opt no-new-privileges x", Some([false; 3])),
            ("run --security-opt no-new-privileges:true x", Some([false; 3])),
            ("run --security-opt no-new-privileges=false x", Some([true, false, false])),
            ("run --security-opt seccomp=unconfined x", Some([false, true, false])),
            ("run --security-opt systempaths=unconfined --security-opt label=disable x", Some([false, false, true])),
            ("run --security-opt apparmor:unconfined x", Some([false; 3])),
            ("run --security-opt seccomp=/a/profile.json x", None),
            ("run --security-opt no-new-privileges=maybe x", None),
        ] {
            let found = parse(words).options.security().ok();
            let found = found.map(|found| [found.new_privileges, found.seccomp_unconfined, found.paths_unmasked]);
            assert_eq!(found, expected, "{words}");
        }
    }

    #[test]
    fn streams_are_named() {
        for (words, expected) in [
            ("run x", Some((false, true, true))),
            ("run -i x", Some((true, true, true))),
            ("run -a stdout x", Some((false, true, false))),
            ("run -i -a STDIN -a stderr x", Some((true, false, true))),
            ("run -a nothing x", None),
        ] {
            let found = parse(words).options.streams().ok();
            assert_eq!(found.map(|streams| (streams.stdin, streams.stdout, streams.stderr)), expected, "{words}");
        }
    }

    #[test]
    fn users_are_judged() {
        for (text, fits) in [
            ("root", true),
            ("0:0", true),
            ("4294967294", true),
            ("4294967295", false),
            ("99999999999", false),
            ("0:99999999999", false),
            ("name:group", true),
            ("", true),
        ] {
            assert_eq!(user(text).is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn runtimes_are_found_by_name_or_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("somerun");
        std::fs::write(&file, "").expect("written");
        let find = |program: &Path| find_program(program, Some(folder.path().into())).ok();
        assert_eq!(find(Path::new("somerun")), Some(file.clone()));
        assert_eq!(find(&file), Some(file.clone()));
        assert_eq!(find(Path::new("otherrun")), None);
        assert_eq!(find(Path::new("/no/such/runtime")), None);
    }
}
