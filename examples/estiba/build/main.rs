//! Builds the image that is embedded in `estiba`: compiles `hello/` to a static program and packs it as an OCI archive.

mod pack;

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=hello");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let program = compile(&out)?;
    let (target, version) = (env::var("CARGO_CFG_TARGET_ARCH")?, env::var("CARGO_PKG_VERSION")?);
    let archive = pack::archive(&std::fs::read(program)?, architecture(&target), &version)?;
    std::fs::write(out.join("hello.tar"), archive)?;
    Ok(())
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set: build scripts are run by Cargo"))
}

/// Compiles `hello/main.rs` for the target of the build. `+crt-static` is what musl targets do anyhow; on gnu ones it
/// needs the C library's static half, which comes with its headers (`libc6-dev`).
fn compile(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let folder = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let program = out.join("hello");
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc.args(["--crate-name=hello", "--crate-type=bin", "--edition=2024", "-Dunsafe_code"]);
    rustc.arg("--target").arg(variable("TARGET")?);
    for option in ["target-feature=+crt-static", "panic=abort", "opt-level=s", "strip=symbols", "codegen-units=1"] {
        rustc.arg("-C").arg(option);
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    // The same bytes wherever the sources lie.
    let mut remap = folder.clone().into_os_string();
    remap.push("=.");
    rustc.arg("--remap-path-prefix").arg(remap);
    rustc.arg("-o").arg(&program).arg(folder.join("hello/main.rs"));
    let status = rustc.status().map_err(|error| format!("starting {}: {error}", rustc.get_program().display()))?;
    if status.success() {
        Ok(program)
    } else {
        Err("compiling the program of the embedded image failed: see rustc's message above (a linker that finds no \
             static C library wants the package libc6-dev, or a musl target)"
            .into())
    }
}

/// The name that images use, which is Go's.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}
