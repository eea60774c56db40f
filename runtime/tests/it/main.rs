//! The integration tests: one binary, public API only.
//!
//! A test that cannot run here is listed as ignored, and its kind says why.

#![expect(unsafe_code, reason = "calls libseccomp, and makes namespaces and processes")]

mod external;
mod native;
mod sandbox;
mod seccomp;

fn main() {
    let trials = [external::trials(), native::trials(), seccomp::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&libtest_mimic::Arguments::from_args(), trials).exit();
}
