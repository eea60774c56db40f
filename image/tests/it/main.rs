//! Integration tests of `estiba-image`, through its public API only.

mod archives;
mod child;
mod collect;
mod commit;
mod fixture;
mod hostile;
mod layout;
mod peers;
mod random;
#[cfg(feature = "registry")]
mod registry_faults;
#[cfg(feature = "registry")]
mod registry_peers;
#[cfg(feature = "registry")]
mod registry_resume;
mod save;
#[cfg(feature = "registry")]
mod server;
mod stored;
mod vectors;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Names the test functions of a module as trials.
macro_rules! trials {
    ($module:literal: $($test:ident),+ $(,)?) => {
        vec![$(libtest_mimic::Trial::test(concat!($module, "::", stringify!($test)), || {
            $test();
            Ok(())
        })),+]
    };
}
pub(crate) use trials;

fn main() -> ExitCode {
    // Tests that need a process of their own run this program again.
    if let Some(code) = child::run() {
        return code;
    }
    #[cfg_attr(not(feature = "registry"), expect(unused_mut, reason = "there is more with the feature"))]
    let mut trials: Vec<Trial> = [
        layout::trials(),
        archives::trials(),
        hostile::trials(),
        random::trials(),
        save::trials(),
        collect::trials(),
        commit::trials(),
        stored::trials(),
        vectors::trials(),
        peers::trials(),
    ]
    .into_iter()
    .flatten()
    .collect();
    #[cfg(feature = "registry")]
    trials.extend(registry_faults::trials());
    #[cfg(feature = "registry")]
    trials.extend(registry_peers::trials());
    #[cfg(feature = "registry")]
    trials.extend(registry_resume::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
