//! Debian's kernels: fetched by apt, unpacked, and started from a small archive of this program's own.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::archive::Archive;
use crate::cache::{Cache, fingerprint};
use crate::command;
use crate::guest::Init;
use crate::module::Modules;

/// The package that depends on the newest kernel of a release.
const META: &str = "linux-image-cloud-amd64";
/// What the first root needs to reach the disks.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];
/// The file that says what comes after the first root.
pub(crate) const INIT: &str = "estiba-init";

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The compressed kernel.
    pub(crate) image: PathBuf,
    /// The folder that `/lib/modules/VERSION` is.
    pub(crate) modules: PathBuf,
    /// As `uname -r` says it.
    pub(crate) version: String,
}

/// The newest kernel of a release of Debian, as far as the cache knows: removing `kernel-*` there asks again.
pub(crate) fn get(cache: &Cache, release: &str) -> Result<Kernel> {
    let folder = cache.get(&format!("kernel-{release}"), |folder| {
        eprintln!("guests: fetching the kernel of Debian {release}");
        let work = tempfile::tempdir()?;
        let package = fetch(work.path(), release)?;
        fs::create_dir(folder)?;
        command::run(command::system("dpkg").arg("-x").arg(package).arg(folder)).map(drop)
    })?;
    // Debian's later releases have /lib as a link to usr/lib.
    let parents = [folder.join("lib/modules"), folder.join("usr/lib/modules")];
    let modules = parents.iter().find_map(|parent| only(parent)).ok_or("the kernel's package has no modules")?;
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Kernel { image: folder.join("boot").join(format!("vmlinuz-{version}")), modules, version })
}

fn only(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).next()
}

/// Fetches the package, whose signatures apt checks, with lists of its own: the machine's sources may be of another release.
fn fetch(work: &Path, release: &str) -> Result<PathBuf> {
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let mut sources = String::new();
    for (place, suite) in [("debian", release.to_owned()), ("debian-security", format!("{release}-security"))] {
        let _ = writeln!(sources, "deb [signed-by={keys}] http://deb.debian.org/{place} {suite} main");
    }
    fs::write(work.join("sources"), sources)?;
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(folder))?;
    }
    let apt = |program: &str| {
        let mut command = command::system(program);
        let path = |name: &str| work.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::SourceList={}", path("sources")),
            "Dir::Etc::SourceParts=-".to_owned(),
            format!("Dir::State::Lists={}", path("lists")),
            format!("Dir::Cache={}", path("cache")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.current_dir(work);
        command
    };
    command::run(apt("apt-get").args(["-q", "update"]))?;
    let depends = command::run(apt("apt-cache").args(["depends", META]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .ok_or_else(|| format!("{META} of {release} depends on no kernel"))?;
    command::run(apt("apt-get").args(["-q", "download", package]))?;
    let found = fs::read_dir(work)?.flatten().map(|entry| entry.path());
    found.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb")).ok_or("apt-get fetched nothing".into())
}

impl Kernel {
    /// What it was made from, for the names of what is made from it.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        let size = fs::metadata(&self.image)?.len();
        Ok(fingerprint(&[self.version.as_bytes(), &size.to_le_bytes()]))
    }

    /// Writes the archive with the first root: this program as `/init`, and the modules that reach the disks.
    pub(crate) fn initramfs(&self, program: &Path, init: Init, to: &Path) -> Result {
        let mut archive = Archive::new(BufWriter::new(File::create(to)?));
        for folder in ["dev", "proc", "sys", "root", "modules"] {
            archive.folder(folder)?;
        }
        archive.console("dev/console")?;
        archive.file("init", &fs::read(program)?)?;
        archive.file(INIT, &serde_json::to_vec(&init)?)?;
        let modules = Modules::find(&self.modules)?;
        for (number, (name, content)) in modules.ordered(&MODULES)?.iter().enumerate() {
            archive.file(&format!("modules/{number:02}-{name}"), content)?;
        }
        archive.end()?;
        Ok(())
    }
}
