//! `estiba run`: makes a container, is its terminal and its signals, and ends as it ends.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};
use estiba_engine::image::Source;
use estiba_engine::{Bind, Config, CreateRequest, Engine, Image, Limits, NetworkMode};
use rustix::process::geteuid;

use crate::failure::{Failure, Result};
use crate::session::{Session, Started};
use crate::volume::{self, SeLinux};
use crate::{embedded, environment, quantity};

const EXAMPLES: &str = "\
REF is one of:
  embedded:hello              the image inside this program
  oci:DIR[:TAG]               an OCI image layout (skopeo, umoci, buildah)
  oci-archive:FILE[:TAG]      the same in a tar
  docker-archive:FILE[:REF]   what `docker save` writes

Examples:
  estiba run embedded:hello
  estiba run --rm -it oci:images:debian bash
  estiba run --rm -m 256m --cpus 1.5 --pids-limit 100 oci:images:debian make -j4
  estiba run --rm -v $PWD:/work -w /work -u 1000:1000 oci:images:alpine ./build
  tar c . | estiba run --rm -i oci:images:alpine tar tv

The exit status is the container's; 125 if estiba failed, 126 if the command could not be executed,
127 if it was not found, 128+n if signal n ended it.
";

/// Run a command in a new container
#[derive(Debug, Args)]
#[command(override_usage = "estiba run [OPTIONS] REF [COMMAND [ARG...]]", after_help = EXAMPLES)]
#[command(disable_help_flag = true)]
#[expect(clippy::struct_excessive_bools, reason = "a flag of the command line is a bool")]
pub(crate) struct Run {
    /// Remove the container when it has ended
    #[arg(long)]
    rm: bool,
    /// Keep standard input connected
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Memory limit (512m, 1.5g), swap included
    #[arg(short, long, value_name = "BYTES", allow_negative_numbers = true, value_parser = quantity::bytes)]
    memory: Option<u64>,
    /// How many CPUs it may use (1.5)
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = quantity::nano_cpus)]
    cpus: Option<u64>,
    /// How many processes and threads it may have (-1: any number)
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// none, or host
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "none")]
    network: NetworkMode,
    /// Set a variable; KEY alone takes the caller's value
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file of KEY=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Show a folder or file of the host inside
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    volume: Vec<String>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User inside, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Host name inside
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Replace the image's entrypoint ("" for none)
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// OCI runtime to use instead of the built-in one (/usr/sbin/runc)
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// Write the container's id to a new file
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Show this help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// The image; and a command, with its options, instead of the image's own
    // One list: only so does clap leave every option after REF to the command.
    #[arg(required = true, trailing_var_arg = true, value_name = "REF")]
    image_and_command: Vec<String>,
}

impl Run {
    pub(crate) async fn execute(self, config: Config) -> Result<u8> {
        if self.tty && self.interactive && !std::io::stdin().is_terminal() {
            return Err(Failure::new("the input device is not a TTY"));
        }
        if !geteuid().is_root() {
            // The engine says so too, but a root's folder that cannot be read would say it less clearly.
            return Err(estiba_engine::Error::NotRoot.into());
        }
        // What needs no engine is judged first: then a wrong option costs and leaves nothing.
        let parts = Parts::of(&self)?;
        let mut id_file = self.cidfile.as_deref().map(IdFile::make).transpose()?;
        let engine = Engine::open(config).await?;
        let (image, mut env) = (self.image(&engine).await?, parts.env);
        if self.reference() == embedded::REFERENCE {
            env.extend(embedded::variable());
        }
        let request = CreateRequest {
            name: self.name,
            command: self.image_and_command.into_iter().skip(1).collect(),
            entrypoint: self.entrypoint.map(|program| if program.is_empty() { vec![] } else { vec![program] }),
            env,
            workdir: self.workdir,
            user: self.user,
            hostname: self.hostname,
            binds: parts.binds,
            limits: Limits {
                memory: self.memory,
                nano_cpus: self.cpus,
                pids_limit: self.pids_limit,
                ..Limits::default()
            },
            network: self.network,
            read_only: self.read_only,
            tty: self.tty,
            console_size: crate::terminal::size().filter(|_| self.tty),
            interactive: self.interactive,
            auto_remove: self.rm,
            runtime: parts.runtime,
            ..CreateRequest::new(image)
        };
        let mut session = Session::prepare(request.tty, request.interactive)?;
        let running = match session.start(Box::pin(engine.run(request))).await? {
            Started::Running(running) => *running,
            Started::Interrupted(status) => return Ok(status),
        };
        if let Some(file) = &mut id_file
            && let Err(failure) = file.write(running.id().as_str())
        {
            // Whoever asked for the file finds the container by it alone.
            running.finish().await?;
            return Err(failure);
        }
        session.attend(running).await
    }

    fn reference(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    async fn image(&self, engine: &Engine) -> Result<Image> {
        let reference = self.reference();
        if reference == embedded::REFERENCE {
            return Ok(engine.import_bytes(embedded::ARCHIVE, embedded::REFERENCE).await?);
        }
        let source: Source = reference.parse()?;
        Ok(engine.import(source).await?)
    }
}

/// The options that need more than a parser.
struct Parts {
    env: Vec<String>,
    binds: Vec<Bind>,
    runtime: Option<PathBuf>,
}

impl Parts {
    fn of(run: &Run) -> Result<Self> {
        let env = environment::collect(&run.env_file, &run.env, |key| std::env::var(key).ok())?;
        let mut binds = Vec::new();
        if !run.volume.is_empty() {
            let directory = std::env::current_dir().map_err(|error| {
                Failure::caused("cannot find the current folder, which volumes may start from", error)
            })?;
            let selinux = SeLinux::detect();
            for text in &run.volume {
                binds.push(volume::bind(text, &directory, selinux).map_err(Failure::new)?);
            }
        }
        let runtime =
            run.runtime.as_deref().map(|program| find_program(program, std::env::var_os("PATH"))).transpose()?;
        Ok(Self { env, binds, runtime })
    }
}

/// A path as it is, a mere name from the folders of `PATH`.
fn find_program(program: &Path, path: Option<std::ffi::OsString>) -> Result<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return std::path::absolute(program)
            .map_err(|error| Failure::caused(format!("cannot use the runtime {}", program.display()), error));
    }
    std::env::split_paths(&path.unwrap_or_default())
        .map(|folder| folder.join(program))
        .find(|file| file.is_absolute() && file.is_file())
        .ok_or_else(|| {
            Failure::new(format!("the runtime {} is in no folder of PATH: give its path", program.display()))
        })
}

/// The file of `--cidfile`: made before the container, so that two never share one, and removed if there will be none.
struct IdFile {
    path: PathBuf,
    file: Option<File>,
}

impl IdFile {
    fn make(path: &Path) -> Result<Self> {
        match File::create_new(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file: Some(file) }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Failure::new(format!(
                "the container ID file {} exists: make sure that its container is not in use, and delete it",
                path.display()
            ))),
            Err(error) => Err(Failure::caused(format!("cannot make the container ID file {}", path.display()), error)),
        }
    }

    fn write(&mut self, id: &str) -> Result<()> {
        if let Some(mut file) = self.file.take() {
            file.write_all(id.as_bytes()).map_err(|error| {
                Failure::caused(format!("cannot write the container ID file {}", self.path.display()), error)
            })?;
        }
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // Empty, and so of no use to anybody; the failure that led here is what is told.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn parse(words: &str) -> Run {
        Line::try_parse_from(words.split(' ')).expect("parsed").run
    }

    #[test]
    fn options_after_the_reference_are_the_commands() {
        for (words, expected) in [
            ("run x", "x"),
            ("run x ls -l --memory 1 -it --rm --help", "x ls -l --memory 1 -it --rm --help"),
            ("run x -i", "x -i"),
            ("run x --unknown", "x --unknown"),
            ("run x -- y", "x -- y"),
            ("run -- x y", "x y"),
        ] {
            let run = parse(words);
            assert_eq!(run.image_and_command.join(" "), expected, "{words}");
            assert!(!run.interactive && !run.rm && run.memory.is_none(), "{words}");
        }
    }

    #[test]
    fn dockers_short_forms_are_known() {
        let run =
            parse("run -it -m512m -h box -u 1:2 -w /w -eA=1 -e B -v /a:/b:ro --net host --pids-limit -1 --rm x sh");
        assert!(run.interactive && run.tty && run.rm);
        assert_eq!(run.memory, Some(512 << 20));
        assert_eq!(run.hostname.as_deref(), Some("box"));
        assert_eq!(run.user.as_deref(), Some("1:2"));
        assert_eq!(run.workdir.as_deref(), Some("/w"));
        assert_eq!(run.env, ["A=1", "B"]);
        assert_eq!(run.volume, ["/a:/b:ro"]);
        assert_eq!(run.network, NetworkMode::Host);
        assert_eq!(run.pids_limit, Some(-1));
    }

    #[test]
    fn runtimes_are_found_by_name_or_path() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("somerun"), "").expect("written");
        let find = |program: &str| find_program(Path::new(program), Some(folder.path().into())).ok();
        assert_eq!(find("somerun"), Some(folder.path().join("somerun")));
        assert_eq!(find("otherrun"), None);
        assert_eq!(find("/usr/sbin/runc"), Some("/usr/sbin/runc".into()));
        assert!(find("./runc").is_some_and(|path| path.is_absolute()));
    }

    #[test]
    fn an_id_file_is_never_shared_and_never_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("id");
        drop(IdFile::make(&path).expect("made"));
        assert!(!path.exists(), "an empty file was left");
        IdFile::make(&path).and_then(|mut file| file.write("abc")).expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "abc");
        assert!(IdFile::make(&path).is_err());
    }
}
