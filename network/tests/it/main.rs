//! The crate's public face on real network namespaces, none of them the host's.

use std::net::{TcpListener, TcpStream};
use std::path::Path;

use estiba_network::{Attachment, Driver, Error, Host, Loopback, Network, Sandbox, testsuite};
use libtest_mimic::{Arguments, Failed, Trial};

mod bridge;
mod cni;
mod dns;
mod fault;
mod firewall;
mod macvlan;
mod world;

fn main() {
    // Some trials need processes that do one thing, and may be killed at it.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = words.as_slice()
        && first == "child"
    {
        return fault::child(rest);
    }
    let reason = Sandbox::new().err().map(|error| format!("cannot make a network namespace: {error:?}"));
    let privileged = |name: &str, body: fn() -> Result<(), Failed>| {
        let trial = Trial::test(name, body).with_ignored_flag(reason.is_some());
        trial.with_kind(reason.as_deref().unwrap_or_default())
    };
    let mut trials = vec![
        privileged("privileged_loopback_conforms", loopback_conforms),
        privileged("privileged_loopback_is_all_there_is", loopback_is_all_there_is),
        privileged("privileged_loopback_carries_connections", loopback_carries_connections),
        privileged("privileged_host_conforms_in_its_own_namespace", host_conforms),
        privileged("privileged_host_refuses_another_namespace", host_refuses_another_namespace),
        privileged("privileged_a_thread_stays_where_it_was", a_thread_stays),
        Trial::test("a_path_that_is_no_namespace_is_named", || {
            let error = Sandbox::open(Path::new("/nowhere/net")).expect_err("there is none");
            assert!(error.to_string().contains("/nowhere/net"), "{error}");
            Ok(())
        }),
    ];
    let modules = [bridge::TRIALS, firewall::TRIALS, macvlan::TRIALS, dns::TRIALS, fault::TRIALS];
    trials.extend(modules.into_iter().flatten().map(|(name, body)| privileged(name, *body)));
    let without = reason.clone().or_else(macvlan::without_ipvlan);
    let ipvlan = Trial::test(macvlan::IPVLAN.0, macvlan::IPVLAN.1).with_ignored_flag(without.is_some());
    trials.push(ipvlan.with_kind(without.as_deref().unwrap_or_default()));
    trials.extend(cni::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn loopback_conforms() -> Result<(), Failed> {
    testsuite::run(&Loopback, &Network::named("none"), &Sandbox::new()?);
    Ok(())
}

fn loopback_is_all_there_is() -> Result<(), Failed> {
    let sandbox = Sandbox::new()?;
    let mut netlink = sandbox.netlink()?;
    assert!(netlink.interfaces()?.iter().all(|interface| !interface.up), "a new namespace has nothing up");
    Loopback.attach(&Network::named("none"), &sandbox, &Attachment::default())?;
    let up: Vec<_> = netlink.interfaces()?.into_iter().filter(|interface| interface.up).collect();
    assert_eq!(up.len(), 1);
    assert_eq!(up[0].name, "lo");
    Ok(())
}

fn loopback_carries_connections() -> Result<(), Failed> {
    let sandbox = Sandbox::new()?;
    let connect = || -> std::io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        TcpStream::connect(listener.local_addr()?).map(drop)
    };
    assert!(sandbox.run(connect)?.is_err(), "without loopback nothing connects");
    Loopback.attach(&Network::named("none"), &sandbox, &Attachment::default())?;
    sandbox.run(connect)??;
    Ok(())
}

fn host_conforms() -> Result<(), Failed> {
    // "The host" of this test is a namespace of its own.
    let sandbox = Sandbox::new()?;
    sandbox.run(|| -> Result<(), Error> {
        let own = Sandbox::open(Path::new("/proc/thread-self/ns/net"))?;
        testsuite::run(&Host, &Network::named("host"), &own);
        Ok(())
    })??;
    Ok(())
}

fn host_refuses_another_namespace() -> Result<(), Failed> {
    assert!(matches!(
        Host.attach(&Network::named("host"), &Sandbox::new()?, &Attachment::default()),
        Err(Error::NotHost)
    ));
    Ok(())
}

fn a_thread_stays() -> Result<(), Failed> {
    let own = Sandbox::open(Path::new("/proc/thread-self/ns/net"))?;
    let other = Sandbox::new()?;
    assert!(own.is_current()?);
    assert!(!other.is_current()?);
    assert!(other.run(|| Sandbox::open(Path::new("/proc/thread-self/ns/net")).and_then(|here| here.is_current()))??);
    assert!(own.is_current()?);
    Ok(())
}
