//! The `estiba` program from outside: whole runs, by the command line alone.
//!
//! Every trial has its own root, run folder and cgroup parent, and its own view of the mounts. When it has ended the
//! world is looked at again: no process, mount, cgroup, network namespace, snapshot or file may be left of it.

mod faults;
mod files;
mod home;
mod hostile;
mod image;
mod kills;
mod lifecycle;
mod limits;
mod listing;
mod many;
mod need;
mod networks;
mod processes;
mod pty;
mod refusals;
mod registry;
mod rootless;
mod running;
mod runtimes;
mod sessions;
mod sharing;
mod sources;
mod sys;
mod terminal;
mod trace;
mod world;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The trials count processes and mounts: one at a time in one process. (cargo-nextest gives each its own.)
    arguments.test_threads = Some(1);
    if !arguments.list
        && let Err(error) = sys::stand_apart()
    {
        eprintln!("cannot prepare the test process: {error}");
        return ExitCode::FAILURE;
    }
    let mut trials = running::trials();
    trials.extend(lifecycle::trials());
    trials.extend(listing::trials());
    trials.extend(sessions::trials());
    trials.extend(files::trials());
    trials.extend(sharing::trials());
    trials.extend(sources::trials());
    trials.extend(registry::trials());
    trials.extend(terminal::trials());
    trials.extend(limits::trials());
    trials.extend(networks::trials());
    trials.extend(rootless::trials());
    trials.extend(runtimes::trials());
    trials.extend(trace::trials());
    trials.extend(many::trials());
    trials.extend(kills::trials());
    trials.extend(refusals::trials());
    trials.extend(faults::trials());
    trials.extend(hostile::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}
