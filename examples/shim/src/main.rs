//! `containerd-shim-estiba-v2`: the Estiba shim as a small static binary.
//!
//! `serve --id ID [--exit-file PATH] [--cgroup-root PATH] [-- EXIT COMMAND…]`, with the listening socket as standard input and
//! the bundle's folder as working directory, is how `estiba_shim::Launch` starts it. `-namespace NAME -id ID … start` is how containerd
//! does: `ctr run --runtime io.containerd.estiba.v2` finds it under this name in containerd's `PATH`.

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let answer = match arguments.first().and_then(|word| word.to_str()) {
        Some("serve") => estiba_shim::serve_from_args(arguments),
        Some("-v" | "--version") => {
            let line = concat!("containerd-shim-estiba-v2 ", env!("CARGO_PKG_VERSION"));
            return if writeln!(io::stdout(), "{line}").is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Some("-h" | "--help") | None => {
            "usage: containerd-shim-estiba-v2 serve --id ID [--exit-file PATH] \
             [--cgroup-root PATH] [-- EXIT COMMAND...]\n\
             The listening socket is standard input, the bundle the working directory. Programs start it: see the crate \
             estiba-shim.\n\
             or: containerd-shim-estiba-v2 -namespace NAME -address SOCKET -id ID [-bundle PATH] start|delete\n\
             Containerd starts it so, for the runtime io.containerd.estiba.v2."
        }
        Some(_) => return estiba_shim::bootstrap(arguments),
    };
    let _ = writeln!(io::stderr(), "{answer}");
    ExitCode::from(2)
}
