//! The shim from outside: started as a program starts it, spoken to as a client speaks to it.
//!
//! Containers are busybox in namespaces of their own. The test program itself is the shim, by `reexec`.

mod attach;
mod bundle;
mod containerd;
mod exec;
mod external;
mod faults;
mod interop;
mod lifecycle;
mod logs;
mod protocol;
mod streams;

use libtest_mimic::{Arguments, Failed, Trial};

/// What a test returns.
type Outcome = Result<(), Failed>;

/// A test by its name.
type Case = (&'static str, fn() -> Outcome);

fn main() {
    let mut runtimes = estiba_shim::Runtimes::default();
    runtimes.register(exec::REGISTERED, |state_root| {
        let state_root = state_root.join(exec::REGISTERED);
        std::fs::create_dir_all(&state_root).expect("create folder");
        Box::new(estiba_runtime::Native::new(state_root))
    });
    estiba_shim::reexec_with(&runtimes);
    if std::env::args().any(|argument| argument == "-namespace") {
        // containerd starts a shim.
        let status = estiba_shim::bootstrap(std::env::args_os().skip(1));
        std::process::exit(i32::from(status != std::process::ExitCode::SUCCESS));
    }
    faults::play_client();
    logs::play_follower();
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let missing = bundle::missing();
    for cases in
        [lifecycle::CASES, streams::CASES, attach::CASES, exec::CASES, logs::CASES, faults::CASES, protocol::CASES]
    {
        for (name, run) in cases {
            trials.push(trial(name, *run, missing));
        }
    }
    let other_program = std::env::var_os("ESTIBA_SHIM").map(|_| "needs a shim that is this program");
    for (name, run) in exec::REGISTERED_CASES {
        trials.push(trial(name, *run, missing.or(other_program)));
    }
    for (name, run) in external::CASES {
        trials.push(trial(name, *run, missing.or_else(external::missing)));
    }
    for (name, run) in containerd::CASES {
        trials.push(trial(name, *run, missing.or_else(containerd::missing)));
    }
    for (name, run) in interop::CASES {
        trials.push(trial(name, *run, missing.or_else(interop::missing)));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    bundle::clean_up();
    conclusion.exit();
}

/// A test, ignored with the reason if something it needs is missing.
fn trial(name: &str, run: fn() -> Outcome, missing: Option<&'static str>) -> Trial {
    Trial::test(format!("privileged_{name}"), run)
        .with_kind(missing.unwrap_or_default())
        .with_ignored_flag(missing.is_some())
}
