//! Docker's commands by `estiba`, compared with what Docker said to them.
//!
//! `transcript.txt` has the commands, and the words and statuses of Docker 28.5 for them. This runs the same commands by
//! `estiba`, and lists each difference. `judged.md` says of each difference why it is there; one that is not in it fails,
//! and so does one that is in it and is not there any more.
//!
//! `ESTIBA_DOCKER=PATH cargo test -p estiba --test docker` writes the transcript anew, by the docker command at that path.
//! Its daemon has to be one for this alone (all its containers are removed), with `--bridge=none`: it need not touch the
//! host's network.

#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/home.rs"]
mod home;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/image.rs"]
mod image;
mod judged;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/need.rs"]
mod need;
mod plain;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/processes.rs"]
mod processes;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/sys.rs"]
mod sys;
mod transcript;
#[path = "../it/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

use crate::home::{Home, Result, finish};
use crate::image::{Layer, busybox, docker_archive};
use crate::judged::Judged;
use crate::need::{Need, text, trial};
use crate::transcript::{Said, Transcript};

const IMAGE: &str = "test/busybox:1";

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if !arguments.list
        && let Err(error) = sys::stand_apart()
    {
        eprintln!("cannot prepare the test process: {error}");
        return ExitCode::FAILURE;
    }
    let trials = vec![
        Trial::test("what_differs_from_run_to_run_is_replaced", || Ok(plain::examples()?)),
        trial("as_docker", &[Need::Busybox], as_docker),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The files beside this one.
fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/docker").join(name)
}

/// A folder in which the commands are run, with what they expect there.
struct Desk {
    folder: PathBuf,
    /// Where `docker` is.
    bin: PathBuf,
}

impl Desk {
    fn new(home: &Home, docker: Option<&Path>) -> Result<Self> {
        let (folder, bin) = (home.folder().join("desk"), home.folder().join("bin"));
        fs::create_dir_all(folder.join("folder"))?;
        fs::create_dir_all(&bin)?;
        fs::write(folder.join("folder/file"), "content\n")?;
        fs::write(folder.join("env"), "# a comment\nC=from file\n")?;
        docker_archive(&folder.join("image.tar"), &[busybox()?, Layer::new().link("bin/grep", "busybox")?.tar()?])?;
        let words = match docker {
            Some(path) => vec![text(path)],
            None => std::iter::once(Home::program().to_owned()).chain(home.options()).collect(),
        };
        let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let program = bin.join("docker");
        fs::write(&program, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(Self { folder, bin })
    }

    fn run(&self, command: &str) -> Result<Said> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("timeout");
        shell.args(["--kill-after=5", "20", "sh", "-c", command]).current_dir(&self.folder);
        shell.env("PATH", format!("{}:{path}", self.bin.display())).env("IMAGE", IMAGE);
        let ended = finish(shell.stdin(std::process::Stdio::null()))?;
        let status = ended.status.code().unwrap_or(-1);
        let folder = text(&self.folder);
        Ok(Said { out: plain::lines(&ended.out, &folder), err: plain::lines(&ended.err, &folder), status })
    }

    /// Removes all containers.
    fn clear(&self) -> Result {
        self.run("docker rm -f $(docker ps -aq)")?;
        let left = self.run("docker ps -aq")?;
        if left.out.is_empty() && left.status == 0 { Ok(()) } else { Err(format!("containers stay:\n{left}").into()) }
    }

    fn load(&self) -> Result {
        // What a home has is no image of Docker's.
        self.run("docker rmi embedded:hello")?;
        let loaded = self.run("docker load -i image.tar")?;
        if loaded.status == 0 { Ok(()) } else { Err(format!("the image cannot be loaded:\n{loaded}").into()) }
    }
}

fn as_docker(home: &Home) -> Result {
    let file = beside("transcript.txt");
    let mut transcript = Transcript::parse(&fs::read_to_string(&file)?)?;
    let docker = std::env::var_os("ESTIBA_DOCKER").map(PathBuf::from);
    let desk = Desk::new(home, docker.as_deref())?;
    desk.load()?;
    let recorded = transcript.clone();
    for section in &mut transcript.sections {
        desk.clear()?;
        for step in &mut section.steps {
            step.said = desk.run(&step.command).map_err(|error| format!("{}: {error}", step.command))?;
        }
    }
    desk.clear()?;
    if docker.is_some() {
        return Ok(fs::write(&file, transcript.to_string())?);
    }
    let differences = judged::differences(&recorded, &transcript);
    let judged = Judged::parse(&fs::read_to_string(beside("judged.md"))?)?;
    let wrong: Vec<String> = judged.wrong(&differences);
    let judged = differences.len() - wrong.len().min(differences.len());
    println!("{} commands, {} differences, {judged} of them judged", recorded.commands(), differences.len());
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}
