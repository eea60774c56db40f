//! The crate from outside. Trials named `privileged_*` need root; where they cannot run they show as ignored.

mod archive;
mod breakout;
mod changes;
mod differential;
mod fallback;
mod fault;
mod files;
mod hostile;
mod layer;
mod mounts;
mod mutations;
mod random;
mod snapshots;
mod tree;
mod umoci;
mod volumes;

use libtest_mimic::{Arguments, Failed, Trial};

/// A trial that any user can run.
fn plain(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || guarded(run))
}

/// A trial that needs root, and whatever program is named.
fn privileged(name: &str, needs: &'static [&'static str], run: impl FnOnce() + Send + 'static) -> Trial {
    let name = format!("privileged_{name}");
    let missing = if nix::unistd::geteuid().is_root() {
        needs.iter().find(|program| !installed(program)).map(|program| format!("{program} is not installed"))
    } else {
        Some("needs root".to_owned())
    };
    match missing {
        Some(reason) => Trial::test(name, || Ok(())).with_kind(reason).with_ignored_flag(true),
        None => plain(name, run),
    }
}

fn installed(program: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).exists())
}

fn guarded(run: impl FnOnce()) -> Result<(), Failed> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Failed::from(text.unwrap_or_else(|| "panicked".into()))
    })
}

fn main() {
    fallback::forbid_if_asked();
    fault::work_if_asked();
    let mut trials = Vec::new();
    trials.extend(breakout::trials());
    trials.extend(changes::trials());
    trials.extend(differential::trials());
    trials.extend(fallback::trials());
    trials.extend(fault::trials());
    trials.extend(files::trials());
    trials.extend(hostile::trials());
    trials.extend(layer::trials());
    trials.extend(mutations::trials());
    trials.extend(random::trials());
    trials.extend(snapshots::trials());
    trials.extend(umoci::trials());
    trials.extend(volumes::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
