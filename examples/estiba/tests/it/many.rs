//! Many runs, one after another and at once: each has its own output and status, and nothing adds up.

use libtest_mimic::Trial;

use crate::home::{Error, HELLO, Home, Result, finish};
use crate::need::{campaign, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("one_after_another", &[], one_after_another), trial("twenty_at_once", &[], at_once)]
}

fn one(home: &Home, number: u32) -> Result {
    let (word, status) = (format!("run {number}"), (number % 256) as i32);
    home.run(&["run", "--rm", HELLO, "echo", &word])?.expect_out(&format!("{word}\n"))?;
    home.run(&["run", "--rm", HELLO, "exit", &status.to_string()])?.expect_status(status)?;
    Ok(())
}

fn one_after_another(home: &Home) -> Result {
    for number in 0..if campaign() { 200 } else { 50 } {
        one(home, number).map_err(|error| format!("run {number}: {error}"))?;
    }
    Ok(())
}

fn at_once(home: &Home) -> Result {
    for _ in 0..if campaign() { 10 } else { 2 } {
        std::thread::scope(|scope| {
            let starts = (0..20).map(|number| scope.spawn(move || one(home, number)));
            let runs: Vec<_> = starts.collect();
            for run in runs {
                run.join().map_err(|_| "a thread panicked")??;
            }
            Ok::<_, Error>(())
        })?;
        home.check()?;
    }
    // A home in which nothing was ever run: twenty find no image, no folder, no format.
    let fresh = tempfile::Builder::new().prefix("estiba-test-").tempdir()?;
    std::thread::scope(|scope| {
        let root = fresh.path().join("root").display().to_string();
        let runs: Vec<_> = (0..20)
            .map(|number| {
                let root = root.clone();
                scope.spawn(move || {
                    let mut command = std::process::Command::new(Home::program());
                    command.args(["--root", &root, "--cgroup-parent", home.cgroup()]);
                    let word = number.to_string();
                    finish(command.args(["run", "--rm", HELLO, "echo", &word]))?.expect_out(&format!("{word}\n"))
                })
            })
            .collect();
        for run in runs {
            run.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}
