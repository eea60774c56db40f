//! The integration tests: one binary, public API only.
//!
//! A test that cannot run here is listed as ignored, and its kind says why.

#![expect(unsafe_code, reason = "calls libseccomp, and makes namespaces and processes")]

mod attack;
mod cgroup;
mod differential;
mod external;
mod fallback;
mod native;
mod sandbox;
mod seccomp;
mod thread;

fn main() {
    let trials = [
        attack::trials(),
        differential::trials(),
        cgroup::trials(),
        external::trials(),
        fallback::trials(),
        native::trials(),
        seccomp::trials(),
        thread::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit();
}
