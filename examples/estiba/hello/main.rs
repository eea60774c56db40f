//! The program of the image that is embedded in `estiba`.
//!
//! Without arguments it tells a newcomer what a process in a container sees, and what to try next. With arguments it
//! is a small tool box, enough to try or test an engine with no other image. It uses the standard library alone, and
//! is linked statically: the image holds nothing else that could run.

mod report;
mod sys;
mod tool;

use std::io::ErrorKind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        None => report::print().map(|()| 0),
        Some((name, rest)) => tool::run(name, rest),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        // Whoever read our output has seen enough: end as quietly as if SIGPIPE were not ignored by the standard library.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(141),
        Err(error) => {
            eprintln!("hello: {error}");
            ExitCode::FAILURE
        }
    }
}
