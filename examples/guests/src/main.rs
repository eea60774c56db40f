//! Runs privileged tests of any crate in a virtual machine: `guests GUEST CRATE[:FILTER]…`.

mod archive;
mod build;
mod cache;
mod command;
mod disk;
mod guest;
mod inside;
mod kernel;
mod machine;
mod module;
mod plan;
mod report;
mod system;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::cache::Cache;
use crate::guest::Guest;
use crate::machine::Machine;
use crate::plan::{Binary, Plan, Work};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const GUESTS: &str = "\
Guests:
  v2        Debian 12's kernel (6.1), cgroup version 2 with all controllers, nothing else runs
  old       the oldest supported kernel, Debian 11's (5.10); otherwise as v2
  apparmor  as v2, with AppArmor in force
  selinux   as v2, with SELinux switched on and no policy loaded
  systemd   Debian 12 with systemd as init
  user      the same; the tests are run by a user with subordinate ids, in a delegated cgroup
  plain     the same; the tests are run by a user with neither

Examples:
  guests v2 runtime                         the privileged tests of estiba-runtime
  guests v2 runtime:cgroup_v2 engine        some of them, and those of estiba-engine
  guests systemd --run 'estiba info' estiba a command, with the programs of a package at hand
  guests old --shell                        a shell on the guest's console
";

/// Runs privileged tests of any crate in a virtual machine.
#[derive(Debug, Parser)]
#[command(name = "guests", version, after_help = GUESTS, max_term_width = 100)]
struct Arguments {
    /// The virtual machine
    #[arg(value_enum)]
    guest: Guest,
    /// Packages of the workspace, by name or folder, each with a part of its tests' names [default: privileged]
    #[arg(value_name = "CRATE[:FILTER]")]
    crates: Vec<String>,
    /// Also run this shell script; a status other than 0 is a failure
    #[arg(long, value_name = "SCRIPT")]
    run: Vec<String>,
    /// Open a shell on the guest's console instead
    #[arg(long, conflicts_with = "run")]
    shell: bool,
    /// How qemu runs the guest's instructions: tcg works everywhere, kvm is ten times as fast
    #[arg(long, value_name = "NAME", default_value = "tcg")]
    accel: String,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// MiB of memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,
    /// Seconds after which a test is ended
    #[arg(long, value_name = "S", default_value_t = 180)]
    test_limit: u64,
    /// Seconds after which the guest is ended
    #[arg(long, value_name = "S", default_value_t = 3600)]
    limit: u64,
    /// Where kernels and disks are kept [default: $XDG_CACHE_HOME/estiba-guests or ~/.cache/estiba-guests]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// A file for all that the guest's console shows
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
}

fn main() -> ExitCode {
    // The same program is the guest's first process, and the one that runs the tests there.
    if let Some(role) = inside::role() {
        return inside::main(role);
    }
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guests: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all passed.
fn run(arguments: &Arguments) -> Result<bool> {
    let guest = arguments.guest;
    machine::check()?;
    let cache = Cache::open(arguments.cache.as_deref())?;
    let kernel = kernel::get(&cache, guest.release())?;
    let system = system::disk(&cache, &kernel)?;
    let built = build::build(&arguments.crates)?;
    let work = if arguments.shell {
        Work::Shell
    } else {
        let binaries = built.tests.iter().map(|test| Binary {
            name: test.name.clone(),
            program: test.file.clone(),
            folder: test.folder.clone(),
            filter: test.filter.clone(),
        });
        Work::Tests { binaries: binaries.collect(), scripts: arguments.run.clone() }
    };
    if matches!(&work, Work::Tests { binaries, scripts } if binaries.is_empty() && scripts.is_empty()) {
        return Err("name a crate, a script (--run) or --shell; see --help".into());
    }
    let plan = Plan { user: guest.user(), test_limit: arguments.test_limit, places: built.places(), work };
    let folder = tempfile::Builder::new().prefix("estiba-guest-").tempdir()?;
    let payload = folder.path().join("payload.ext4");
    disk::payload(&payload, &built, &plan)?;
    let initramfs = folder.path().join("initramfs");
    kernel.initramfs(&built.inside, guest.init(), &initramfs)?;
    let console = arguments.console.clone().unwrap_or_else(|| folder.path().join("console"));
    let machine = Machine {
        kernel: kernel.image.clone(),
        options: guest.options().to_owned(),
        initramfs,
        disks: vec![system, payload],
        accel: arguments.accel.clone(),
        cpus: arguments.cpus,
        memory: arguments.memory,
        console,
    };
    if arguments.shell {
        return machine.shell().map(|()| true);
    }
    let ended = machine.run(guest, Duration::from_secs(arguments.limit))?;
    Ok(ended.all_passed())
}
