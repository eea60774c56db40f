//! Programs that are killed at their work, and many that work at once.

use std::collections::HashSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use estiba_network::ipam::{HostLocal, Owner};
use estiba_network::{Bridge, Driver, Firewall, Ipam, Network, Nftables, Sandbox, Subnet, Sweep};
use libtest_mimic::Failed;

use crate::world::{World, attachment, tcp};

type Body = fn() -> Result<(), Failed>;

pub(crate) const TRIALS: &[(&str, Body)] = &[
    ("privileged_killed_between_any_two_steps_of_attach", killed_at_attach),
    ("privileged_killed_between_any_two_steps_of_detach", killed_at_detach),
    ("privileged_thirty_two_at_once", thirty_two_at_once),
    ("fifty_processes_never_get_the_same_address", fifty_processes),
    ("a_lease_of_the_reference_plugin_is_respected", reference_plugin),
];

/// What a child of this program does: `attach FOLDER`, `detach FOLDER` (the sandbox is its standard input), `reserve FOLDER
/// ID COUNT`.
pub(crate) fn child(words: &[String]) {
    match words {
        [what, folder] => {
            let root = Path::new(folder);
            let text = fs::read(root.join("network.json")).expect("a definition");
            let network: Network = serde_json::from_slice(&text).expect("a definition");
            let driver = driver(root);
            let sandbox = Sandbox::from(std::io::stdin().as_fd().try_clone_to_owned().expect("a descriptor"));
            let attachment = attachment("victim", &["8080:80", "8081:81/udp"]);
            if what == "attach" {
                driver.attach(&network, &sandbox, &attachment).expect("attached");
            } else {
                driver.detach(&network, Some(&sandbox), &attachment).expect("detached");
            }
        }
        [_, folder, id, count] => {
            let ipam = ipam(Path::new(folder));
            for number in 0..count.parse().expect("a number") {
                let owner = Owner { container: format!("{id}-{number}"), interface: "eth0".to_owned() };
                let lease = ipam.reserve(&owner, &[]).expect("reserved");
                println!("{}", lease[0].address.addr());
            }
        }
        other => panic!("{other:?}"),
    }
}

/// A driver in the caller's own namespace.
fn driver(root: &Path) -> Bridge {
    let firewall = Arc::new(Nftables::default());
    Bridge { host: None, state: root.join("state"), leases: root.join("leases"), firewall, sweep: Sweep::AtOnce }
}

fn ipam(folder: &Path) -> HostLocal {
    let subnet = Subnet::new("10.77.0.0/22".parse().expect("a subnet"));
    HostLocal { folder: folder.join("n"), pools: vec![vec![subnet]] }
}

/// The calls that change something.
const CALLS: [&str; 6] = ["sendto", "rename", "unlink", "write", "mkdir", "rmdir"];

/// Each of these calls again and again, until it is not made that often.
fn steps_of_calls() -> impl Iterator<Item = (&'static str, usize)> {
    CALLS.into_iter().flat_map(|call| (1..60).map(move |at| (call, at)))
}

/// Runs the child under strace, which kills it when it is about to make its call number `at` of this kind. Whether it was
/// killed.
fn killed(world: &World, sandbox: &Sandbox, what: &str, calls: &str, at: usize) -> bool {
    let mut command = Command::new("strace");
    command.args(["-qq", "-e", &format!("trace={calls}"), "-o", "/dev/null"]);
    command.args(["-e", &format!("inject={calls}:signal=SIGKILL:when={at}")]);
    command.arg(std::env::current_exe().expect("a path")).args(["child", what]).arg(world.root.path());
    let input = sandbox.as_fd().try_clone_to_owned().expect("a descriptor");
    command.stdin(Stdio::from(input)).stdout(Stdio::null()).stderr(Stdio::piped());
    let output = world.host.run(move || command.output()).expect("entered").expect("strace runs");
    let status = output.status;
    let killed = status.signal() == Some(9) || status.code() == Some(137);
    assert!(killed || status.success(), "{status}: {}", String::from_utf8_lossy(&output.stderr));
    killed
}

fn without_strace() -> bool {
    Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err()
}

fn killed_at_attach() -> Result<(), Failed> {
    if without_strace() {
        return Err("strace is missing: install it".into());
    }
    let world = World::new(Arc::new(Nftables::default()));
    let network = world.network("n", &["10.77.0.0/24", "fd77::/64"], |_| ());
    fs::write(world.root.path().join("network.json"), serde_json::to_vec(&network)?)?;
    let mut steps = 0;
    let mut done = HashSet::new();
    for (call, at) in steps_of_calls() {
        if done.contains(call) {
            continue;
        }
        let sandbox = Sandbox::new()?;
        if !killed(&world, &sandbox, "attach", call, at) {
            world.driver.detach(&network, Some(&sandbox), &attachment("victim", &[]))?;
            world.assert_clean();
            done.insert(call);
            continue;
        }
        steps += 1;
        if at % 2 == 0 {
            world.driver.repair(&network, &|_| false)?;
        } else {
            // The same again, by somebody who knows nothing.
            world.driver.attach(&network, &sandbox, &attachment("victim", &["8080:80"]))?;
            tcp(&world.outside, "192.0.2.1:8080", &sandbox, "0.0.0.0:80")?;
            world.driver.detach(&network, Some(&sandbox), &attachment("victim", &[]))?;
        }
        drop(sandbox);
        world.driver.repair(&network, &|_| false)?;
        world.assert_clean();
        assert_eq!(world.leases("n"), Vec::<String>::new(), "killed at {call} {at}");
        assert!(gone(&world, &network), "killed at {call} {at}");
    }
    assert!(steps > 25, "only {steps} steps were seen");
    Ok(())
}

fn killed_at_detach() -> Result<(), Failed> {
    if without_strace() {
        return Err("strace is missing: install it".into());
    }
    let world = World::new(Arc::new(Nftables::default()));
    let network = world.network("n", &["10.77.0.0/24"], |_| ());
    fs::write(world.root.path().join("network.json"), serde_json::to_vec(&network)?)?;
    let mut steps = 0;
    let mut done = HashSet::new();
    for (call, at) in steps_of_calls() {
        if done.contains(call) {
            continue;
        }
        let sandbox = Sandbox::new()?;
        world.driver.attach(&network, &sandbox, &attachment("victim", &["8080:80", "8081:81/udp"]))?;
        if killed(&world, &sandbox, "detach", call, at) {
            steps += 1;
        } else {
            done.insert(call);
        }
        if at % 2 == 0 {
            drop(sandbox);
            world.driver.repair(&network, &|_| false)?;
        } else {
            world.driver.detach(&network, Some(&sandbox), &attachment("victim", &[]))?;
        }
        // A detach that was killed after it has removed the record may have left the bridge.
        world.driver.sweep(&network)?;
        world.assert_clean();
        assert_eq!(world.leases("n"), Vec::<String>::new(), "killed at {call} {at}");
        assert!(gone(&world, &network), "killed at {call} {at}");
    }
    assert!(steps > 10, "only {steps} steps were seen");
    Ok(())
}

fn gone(world: &World, network: &Network) -> bool {
    let realm = estiba_network::firewall::Realm::of(network, network.interface.as_deref().expect("a name"));
    !Nftables::default().stands(Some(&world.host), &realm).expect("an answer")
}

fn thirty_two_at_once() -> Result<(), Failed> {
    let world = World::new(Arc::new(Nftables::default()));
    let network = world.network("n", &["10.77.0.0/24"], |_| ());
    let (world, network) = (&world, &network);
    for _ in 0..2 {
        let endpoints = thread::scope(|scope| {
            let attach = |number: usize| {
                scope.spawn(move || {
                    let port = format!("{}:80", 9000 + number);
                    world.attach(network, &format!("c{number}"), &[&port])
                })
            };
            let all: Vec<_> = (0..32).map(attach).collect();
            all.into_iter().map(|one| one.join().expect("attached")).collect::<Vec<_>>()
        });
        let addresses: HashSet<_> = endpoints.iter().map(|(_, endpoint)| endpoint.addresses.clone()).collect();
        assert_eq!(addresses.len(), 32);
        for (number, (sandbox, _)) in endpoints.iter().enumerate().step_by(7) {
            tcp(&world.outside, &format!("192.0.2.1:{}", 9000 + number), sandbox, "0.0.0.0:80")?;
        }
        drop(endpoints);
        thread::scope(|scope| {
            for number in 0..32 {
                scope.spawn(move || world.detach(network, &format!("c{number}")));
            }
        });
        world.assert_clean();
        assert!(gone(world, network));
        assert!(world.leases("n").is_empty());
    }
    Ok(())
}

fn fifty_processes() -> Result<(), Failed> {
    let root = tempfile::tempdir()?;
    let program = std::env::current_exe()?;
    let start = |number: usize| {
        let mut command = Command::new(&program);
        command.args(["child", "reserve"]).arg(root.path()).args([&format!("p{number}"), "20"]);
        command.stdout(Stdio::piped()).spawn().expect("started")
    };
    let children: Vec<_> = (0..50).map(start).collect();
    let mut seen = HashSet::new();
    for child in children {
        let output = child.wait_with_output()?;
        assert!(output.status.success());
        for address in String::from_utf8(output.stdout)?.lines() {
            assert!(seen.insert(address.to_owned()), "{address} was given twice");
        }
    }
    // All of a /22 but the network's own addresses, the gateway's, and 21 more.
    assert_eq!(seen.len(), 1000);
    assert_eq!(ipam(root.path()).leases()?.len(), 1000);
    let freed = ipam(root.path()).release_dead(&|owner| owner.container.starts_with("p1-"))?;
    assert_eq!(freed.len(), 980);
    Ok(())
}

/// Where the reference plugin is installed, both of us give out addresses of one folder at the same time.
fn reference_plugin() -> Result<(), Failed> {
    let folders = ["/usr/lib/cni", "/opt/cni/bin"];
    let plugin = folders.iter().map(|folder| Path::new(folder).join("host-local")).find(|path| path.exists());
    let root = tempfile::tempdir()?;
    let ours = ipam(root.path());
    let owner = |name: &str| Owner { container: name.to_owned(), interface: "eth0".to_owned() };
    let Some(plugin) = plugin else {
        // Its files as its source writes them.
        fs::create_dir(root.path().join("n"))?;
        fs::write(root.path().join("n/10.77.0.2"), "theirs\r\neth0")?;
        fs::write(root.path().join("n/last_reserved_ip.0"), "10.77.0.2")?;
        assert_eq!(ours.reserve(&owner("ours"), &[])?[0].address.addr().to_string(), "10.77.0.3");
        ours.release(&owner("theirs"), &[])?;
        assert_eq!(ours.leases()?.len(), 1);
        return Ok(());
    };
    let config = format!(
        r#"{{"cniVersion":"0.4.0","name":"n","type":"x","ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.77.0.0/22"}}]]}}}}"#,
        root.path().display()
    );
    let theirs = |verb: &str, id: &str| -> String {
        let mut command = Command::new(&plugin);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", "/proc/self/ns/net").env("CNI_PATH", "/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("started");
        std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), config.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("ended");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "{text}");
        text
    };
    let mut seen = HashSet::new();
    thread::scope(|scope| {
        let running = scope.spawn(|| (0..30).map(|number| theirs("ADD", &format!("t{number}"))).collect::<Vec<_>>());
        for number in 0..60 {
            let lease = ours.reserve(&owner(&format!("o{number}")), &[]).expect("reserved");
            assert!(seen.insert(lease[0].address.addr().to_string()));
        }
        for text in running.join().expect("no panic") {
            let address =
                text.split("\"address\": \"").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
            assert!(seen.insert(address.to_owned()), "{address} was given twice");
        }
    });
    assert_eq!(seen.len(), 90);
    // Each takes back what the other has given out.
    ours.release(&owner("t0"), &[])?;
    theirs("DEL", "o0");
    assert_eq!(ours.leases()?.len(), 88);
    Ok(())
}
