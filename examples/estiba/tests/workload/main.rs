//! Many commands at once, on the same containers, while the processes that carry them out are killed; two commands at
//! once on one container; and logs that are rotated and read while they grow.
//!
//! A short version runs with all other tests, and the long one with `ESTIBA_CAMPAIGN=1`. What is random comes from a seed that is
//! printed; `ESTIBA_SEED=N` takes that one again.

mod dice;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/home.rs"]
mod home;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/image.rs"]
mod image;
mod killer;
mod logs;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/need.rs"]
mod need;
mod pairs;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/processes.rs"]
mod processes;
mod random;
#[expect(dead_code, reason = "shared with the other test binary")]
#[path = "../it/sys.rs"]
mod sys;
mod truth;
#[path = "../it/world.rs"]
mod world;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    if !arguments.list
        && let Err(error) = sys::stand_apart()
    {
        eprintln!("cannot prepare the test process: {error}");
        return ExitCode::FAILURE;
    }
    let mut trials = random::trials();
    trials.extend(pairs::trials());
    trials.extend(logs::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}
