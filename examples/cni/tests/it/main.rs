//! The plugins, driven by the runner of `estiba-network`: alone, and beside the reference plugins.

mod driver;
mod netavark;
mod plugins;
mod ports;
mod reference;
mod stage;

use estiba_network::Sandbox;
use libtest_mimic::{Arguments, Trial};
use stage::{Outcome, REFERENCE, is_there};

fn main() {
    let unprivileged = Sandbox::new().err().map(|error| format!("cannot make a network namespace: {error:?}"));
    let missing = (!is_there(&format!("{REFERENCE}/bridge")))
        .then(|| format!("{REFERENCE} has no reference plugins: apt-get install containernetworking-plugins"));
    let without = |reason: Option<&String>, name: &str, body: fn() -> Outcome| {
        if let Some(reason) = reason {
            eprintln!("{name} is skipped: {reason}");
        }
        Trial::test(name, body).with_ignored_flag(reason.is_some())
    };
    let compared = unprivileged.as_ref().or(missing.as_ref());
    let alone = plugins::TRIALS
        .iter()
        .chain(ports::TRIALS)
        .chain(netavark::TRIALS)
        .chain(driver::TRIALS)
        .map(|(name, body)| without(unprivileged.as_ref(), name, *body));
    let beside = reference::TRIALS.iter().chain(driver::COMPARED).map(|(name, body)| without(compared, name, *body));
    let trials = alone.chain(beside).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
