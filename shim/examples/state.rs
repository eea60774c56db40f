//! Asks a container's shim how the container is: over the task API, which any of containerd's shims speaks.
//!
//! ```console
//! # cargo run -p estiba-shim --example state -- /run/estiba/ID ID
//! ```

use estiba_shim::Client;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(id)) = (arguments.next(), arguments.next()) else {
        return Err("usage: state FOLDER ID (the folder has the shim's socket)".into());
    };
    let mut client = Client::connect(&folder, id)?;
    let who = client.who()?;
    let state = client.state()?;
    println!("shim      {} (version {:?})", who.shim_pid, who.version);
    println!("container {} in {}", state.pid, state.bundle);
    println!("status    {:?}", state.status);
    println!("processes {:?}", client.pids()?);
    Ok(())
}
