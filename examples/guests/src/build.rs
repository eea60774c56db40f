//! Builds the tests, statically, so that any guest can execute them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cargo_metadata::{Message, Metadata, MetadataCommand, Package};

use crate::Result;
use crate::command;
use crate::plan::{PAYLOAD, Place};

const TARGET: &str = "x86_64-unknown-linux-musl";
/// This package.
const OWN: &str = env!("CARGO_PKG_NAME");

/// A test binary.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) name: String,
    /// Where it is in the guest.
    pub(crate) file: PathBuf,
    /// The package's folder, on this machine and by a link in the guest.
    pub(crate) folder: PathBuf,
    pub(crate) filter: String,
}

/// What was built.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) tests: Vec<Test>,
    /// This program, for the guest.
    pub(crate) inside: PathBuf,
    /// Where files are on this machine, by their path below the payload.
    files: BTreeMap<PathBuf, PathBuf>,
    /// Folders of packages, by their path below the payload: tests read files beside them.
    folders: BTreeMap<PathBuf, PathBuf>,
}

/// Builds the tests and programs of packages; each is NAME or NAME:FILTER.
pub(crate) fn build(wanted: &[String]) -> Result<Built> {
    let metadata = MetadataCommand::new().no_deps().exec()?;
    let mut packages: Vec<(&Package, String)> = Vec::new();
    for text in wanted {
        let (name, filter) = text.split_once(':').unwrap_or((text, "privileged"));
        packages.push((package(&metadata, name)?, filter.to_owned()));
    }
    let mut built =
        Built { tests: Vec::new(), inside: PathBuf::new(), files: BTreeMap::new(), folders: BTreeMap::new() };
    cargo(&["build", "--package", OWN], |artifact, file| {
        if artifact.target.name == OWN {
            file.clone_into(&mut built.inside);
        }
    })?;
    let mut names: Vec<&str> = packages.iter().map(|(package, _)| package.name.as_str()).collect();
    names.dedup();
    for name in names {
        let of_it: Vec<_> = packages.iter().filter(|(package, _)| package.name.as_str() == name).collect();
        let Some((package, _)) = of_it.first() else { continue };
        let folder = package.manifest_path.parent().ok_or("a package without a folder")?.as_std_path();
        built.folders.insert(Path::new("packages").join(name), folder.to_owned());
        cargo(&["test", "--no-run", "--all-features", "--package", name], |artifact, file| {
            let name = &artifact.target.name;
            let inside = if artifact.profile.test {
                PathBuf::from(format!("tests/{}-{name}", package.name))
            } else {
                Path::new("bin").join(name)
            };
            built.files.insert(inside.clone(), file.to_owned());
            if artifact.profile.test {
                built.tests.extend(of_it.iter().map(|(package, filter)| Test {
                    name: format!("{}::{name}", package.name),
                    file: Path::new(PAYLOAD).join(&inside),
                    folder: folder.to_owned(),
                    filter: filter.clone(),
                }));
            }
        })?;
    }
    built.files.insert(Path::new("bin").join(OWN), built.inside.clone());
    Ok(built)
}

fn package<'a>(metadata: &'a Metadata, name: &str) -> Result<&'a Package> {
    let is_it = |package: &&&Package| {
        package.name.as_str() == name
            || package.name.strip_prefix("estiba-") == Some(name)
            || package.manifest_path.parent().and_then(|folder| folder.file_name()) == Some(name)
    };
    // A name that is exactly a package's comes before another one's folder.
    let members = metadata.workspace_packages();
    let exactly = members.iter().find(|package| package.name.as_str() == name);
    let found = exactly.or_else(|| members.iter().find(|package| is_it(package)));
    found.copied().ok_or_else(|| format!("the workspace has no package {name:?}").into())
}

/// Runs cargo, and hands over what it makes that can be executed.
fn cargo(arguments: &[&str], mut made: impl FnMut(&cargo_metadata::Artifact, &Path)) -> Result {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).args(["--target", TARGET, "--message-format", "json-render-diagnostics"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("cargo has no output")?;
    for message in Message::parse_stream(std::io::BufReader::new(output)) {
        if let Message::CompilerArtifact(artifact) = message?
            && let Some(file) = artifact.executable.clone()
        {
            made(&artifact, file.as_std_path());
        }
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("cargo {} failed ({status}); the target is added by: rustup target add {TARGET}", arguments.join(" "))
        .into())
}

impl Built {
    /// The paths that programs have compiled in: of other programs, and of their own package.
    pub(crate) fn places(&self) -> Vec<Place> {
        let all = self.files.iter().chain(&self.folders);
        all.map(|(inside, path)| Place { path: path.clone(), target: Path::new(PAYLOAD).join(inside) }).collect()
    }

    /// Copies everything into the payload's folder; programs without what debuggers need.
    pub(crate) fn copy(&self, to: &Path) -> Result {
        for (inside, path) in &self.files {
            let copy = to.join(inside);
            fs::create_dir_all(copy.parent().unwrap_or(to))?;
            command::run(command::system("strip").arg("-o").arg(&copy).arg(path))?;
        }
        for (inside, path) in &self.folders {
            let tests = to.join(inside).join("tests");
            fs::create_dir_all(to.join(inside))?;
            if path.join("tests").is_dir() {
                command::run(command::system("cp").arg("-a").arg(path.join("tests")).arg(tests))?;
            }
        }
        Ok(())
    }
}
