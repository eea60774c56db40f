//! Two containers on a bridge, one with a published port, in a host that is a namespace of its own. Needs root.
//!
//! ```console
//! # cargo run -p estiba-network --example bridge
//! ```

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use estiba_network::{Attachment, Bridge, Driver, Network, Nftables, Sandbox, Subnet, Sweep};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = Sandbox::new()?;
    host.netlink()?.set_loopback_up()?;
    let root = tempfile::tempdir()?;
    let driver = Bridge {
        host: Some(host.try_clone()?),
        state: root.path().join("state"),
        leases: root.path().join("leases"),
        firewall: Arc::new(Nftables::default()),
        sweep: Sweep::AtOnce,
    };
    let subnets = vec![Subnet::new("10.88.0.0/24".parse()?)];
    let network = driver.create(Network { subnets, ..Network::named("example") }, &[])?;

    let (web, client) = (Sandbox::new()?, Sandbox::new()?);
    let wanted = Attachment { container: "web".into(), ports: vec!["8080:80".parse()?], ..Attachment::default() };
    let endpoint = driver.attach(&network, &web, &wanted)?;
    let plain = Attachment { container: "client".into(), ..Attachment::default() };
    driver.attach(&network, &client, &plain)?;
    println!("web has {}, and leads there: {}", endpoint.addresses[0], endpoint.ports[0]);

    let listener = web.run(|| TcpListener::bind("0.0.0.0:80"))??;
    for (who, from, to) in [("the other container", &client, "10.88.0.2:80"), ("the host", &host, "127.0.0.1:8080")] {
        let mut stream = from.run(|| TcpStream::connect(to))??;
        listener.accept()?.0.write_all(b"hello")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        println!("{who} asks {to} and hears: {text}");
    }

    drop((web, client));
    driver.detach(&network, None, &wanted)?;
    driver.detach(&network, None, &plain)?;
    println!(
        "the bridge is gone: {}",
        host.netlink()?.link(network.interface.as_deref().unwrap_or_default())?.is_none()
    );
    Ok(())
}
