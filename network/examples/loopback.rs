//! A network namespace with a loopback interface, and what is in it. Needs root.
//!
//! ```console
//! # cargo run -p estiba-network --example loopback
//! ```

use std::net::TcpListener;

use estiba_network::{Attachment, Driver, Loopback, Network, Sandbox};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sandbox = Sandbox::new()?;
    println!("a new namespace has: {:?}", sandbox.netlink()?.interfaces()?);
    let endpoint = Loopback.attach(&Network::named("none"), &sandbox, &Attachment::default())?;
    println!("attached, these are up: {:?}", endpoint.interfaces);
    let address = sandbox.run(|| TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()))??;
    println!("a socket inside is bound to {address}, which nobody outside can reach");
    Ok(())
}
