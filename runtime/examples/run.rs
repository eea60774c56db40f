//! Runs an OCI bundle to its end. Needs root.
//!
//! ```console
//! # cargo run -p estiba-runtime --example run -- /path/to/bundle
//! ```

use std::os::fd::AsFd;

use estiba_runtime::{Bundle, ContainerId, CreateOptions, DeleteMode, Native, Runtime, Stdio, wait};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: run BUNDLE (a folder with config.json and a root)")?;
    let bundle = Bundle::load(&folder)?;
    let id: ContainerId = format!("example-{}", std::process::id()).parse()?;

    // State lies where another program could find it, for as long as the container exists.
    let state = std::env::temp_dir().join("estiba-example");
    let runtime = Native::new(&state);
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio = Stdio::Fds { stdin: input.as_fd(), stdout: output.as_fd(), stderr: errors.as_fd() };

    let created = runtime.create(&id, &bundle, &CreateOptions::new(stdio))?;
    let ended = runtime.start(&id).and_then(|()| wait(created.pidfd.as_fd(), created.pid));
    // Whatever happened, nothing stays.
    runtime.delete(&id, DeleteMode::Force)?;
    println!("the container has ended: {:?}", ended?);
    Ok(())
}
