//! The integration tests: one binary, public API only.
//!
//! A test that cannot run here is listed as ignored, and its kind says why.

#![expect(unsafe_code, reason = "calls libseccomp, and makes namespaces and processes")]

mod attack;
mod cgroup;
mod differential;
mod exec;
mod external;
mod fallback;
mod field;
mod native;
mod parity;
mod sandbox;
mod seccomp;
mod thread;
mod unified;
mod usage;

fn main() {
    let trials = [
        attack::trials(),
        differential::trials(),
        cgroup::trials(),
        exec::trials(),
        external::trials(),
        fallback::trials(),
        field::trials(),
        native::trials(),
        parity::trials(),
        seccomp::trials(),
        thread::trials(),
        unified::trials(),
        usage::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut arguments = libtest_mimic::Arguments::from_args();
    // The trials count descriptors, processes and mounts: one at a time in one process. (cargo-nextest gives each its own.)
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit();
}
