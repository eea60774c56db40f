//! Networks: containers reach one another, the host and its ports, and nothing stays. The host is a namespace of the trials' own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use libtest_mimic::Trial;

use crate::home::{Home, Result, until};
use crate::image::{Layout, busybox};
use crate::need::{Need, trial};
use crate::processes;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("containers_of_a_network_reach_one_another", &[Need::Busybox], together),
        trial("networks_are_apart", &[Need::Busybox], apart),
        trial("published_ports_lead_to_the_container", &[Need::Busybox], ports),
        trial("networks_are_made_listed_and_removed", &[], made),
        trial("a_running_container_is_connected_and_disconnected", &[Need::Busybox], connected),
        trial("what_no_network_can_be", &[], refused),
        trial("of_a_killed_container_no_address_stays", &[Need::Busybox], killed),
        trial("fifty_at_once_have_addresses_of_their_own", &[Need::Busybox, Need::Campaign], crowd),
    ]
}

fn image(home: &Home) -> Result<String> {
    Ok(Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference())
}

/// The interfaces of the trial's host.
fn interfaces() -> Result<Vec<String>> {
    let mut names: Vec<String> = std::fs::read_to_string("/proc/self/net/dev")?
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .collect();
    names.sort();
    Ok(names)
}

fn nothing_stays() -> Result {
    until("the interfaces go", || interfaces().is_ok_and(|names| names == ["lo"]))
}

/// The address of a container in a network.
fn address(home: &Home, name: &str, network: &str) -> Result<String> {
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    Ok(home.run(&["inspect", name, "--format", &format])?.expect_status(0)?.out.trim().to_owned())
}

/// A container that serves one word to whoever connects to its port 80.
fn server(home: &Home, image: &str, name: &str, options: &[&str]) -> Result {
    let serve = "mkdir /www; echo served > /www/index.html; exec busybox httpd -f -p 80 -h /www";
    let arguments = [&["run", "-d", "--name", name], options, &[image, "sh", "-c", serve]].concat();
    home.run(&arguments)?.expect_status(0)?;
    Ok(())
}

/// Asks a server for its word. Says nothing where no packet comes back.
const ASK: &str = "ask() { printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 2 $1 80 | busybox tail -n 1; }";

/// What a container gets from a server.
fn fetch(home: &Home, image: &str, options: &[&str], from: &str) -> Result<String> {
    let script =
        format!("{ASK}; for i in $(busybox seq 50); do ask {from} | busybox grep . && exit 0; sleep 0.2; done");
    Ok(home.run(&[&["run", "--rm"], options, &[image, "sh", "-c", &script]].concat())?.out)
}

fn together(home: &Home) -> Result {
    let image = image(home)?;
    server(home, &image, "server", &["--network", "bridge", "--hostname", "berth"])?;
    let server = address(home, "server", "bridge")?;
    assert_eq!(fetch(home, &image, &["--network", "bridge"], &server)?, "served\n");
    let hosts = home.run(&["exec", "server", "busybox", "cat", "/etc/hosts"])?.expect_status(0)?.out;
    assert!(hosts.lines().any(|line| line == format!("{server}\tberth")), "{hosts}");
    // The host itself is the gateway.
    let gateway = home.run(&["inspect", "server", "--format", "{{.NetworkSettings.Gateway}}"])?.expect_status(0)?.out;
    let listener = TcpListener::bind((gateway.trim(), 0))?;
    let port = listener.local_addr()?.port();
    let answer = std::thread::spawn(move || -> std::io::Result<()> { listener.accept()?.0.write_all(b"host\n") });
    let said = home.run(&["exec", "server", "busybox", "nc", gateway.trim(), &port.to_string()])?;
    assert_eq!(said.out, "host\n", "{}", said.err);
    answer.join().map_err(|_| "the listener panicked")??;
    home.run(&["rm", "-f", "server"])?.expect_status(0)?;
    nothing_stays()
}

fn apart(home: &Home) -> Result {
    let image = image(home)?;
    for name in ["one", "other"] {
        home.run(&["network", "create", name])?.expect_status(0)?;
    }
    home.run(&["network", "create", "--internal", "inner"])?.expect_status(0)?;
    server(home, &image, "server", &["--network", "one"])?;
    let server = address(home, "server", "one")?;
    assert_eq!(fetch(home, &image, &["--network", "one"], &server)?, "served\n");
    for network in ["other", "inner", "none"] {
        let script = format!("{ASK}; ask {server}");
        let ended = home.run(&["run", "--rm", "--network", network, &image, "sh", "-c", &script])?;
        assert_eq!(ended.out, "", "{network}: {}", ended.err);
    }
    // One that is in both reaches it.
    let both = fetch(home, &image, &["--network", "other", "--network", "one"], &server)?;
    assert_eq!(both, "served\n");
    home.run(&["rm", "-f", "server"])?.expect_status(0)?;
    home.run(&["network", "rm", "one", "other", "inner"])?.expect_status(0)?;
    nothing_stays()
}

fn ports(home: &Home) -> Result {
    let image = image(home)?;
    server(home, &image, "server", &["--network", "bridge", "-p", "18080:80", "-p", "127.0.0.1:18053:53/udp"])?;
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:18080")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    until("the server answers", || get().is_ok_and(|text| text.ends_with("served\n")))?;
    let listed = home.run(&["port", "server"])?.expect_status(0)?.out;
    assert_eq!(listed, "53/udp -> 127.0.0.1:18053\n80/tcp -> 0.0.0.0:18080\n");
    home.run(&["port", "server", "80"])?.expect_status(0)?.expect_out("0.0.0.0:18080\n")?;
    let shown = home.run(&["ps", "--format", "{{.Ports}}"])?.expect_status(0)?.out;
    assert_eq!(shown, "127.0.0.1:18053->53/udp, 0.0.0.0:18080->80/tcp\n");
    // Nobody else gets it, neither a container nor a program of the host.
    let taken =
        home.run(&["run", "--rm", "--network", "bridge", "-p", "18080:80", &image, "true"])?.expect_status(125)?;
    assert!(taken.err.contains("18080"), "{}", taken.err);
    until("the port is held", || TcpListener::bind("0.0.0.0:18080").is_err())?;
    home.run(&["rm", "-f", "server"])?.expect_status(0)?;
    until("the ports are free", || {
        TcpListener::bind("0.0.0.0:18080").is_ok() && UdpSocket::bind("127.0.0.1:18053").is_ok()
    })?;
    nothing_stays()
}

fn made(home: &Home) -> Result {
    let id =
        home.run(&["network", "create", "--subnet", "10.231.7.0/24", "--label", "a=b", "quay"])?.expect_status(0)?.out;
    home.run(&["network", "ls", "--no-trunc", "-q", "--filter", "name=quay"])?.expect_out(&id)?;
    home.run(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"])?
        .expect_out("bridge bridge\nhost host\nnone null\nquay bridge\n")?;
    let format = "{{(index .IPAM.Config 0).Subnet}} {{(index .IPAM.Config 0).Gateway}} {{.Labels}}";
    home.run(&["network", "inspect", "quay", "--format", format])?.expect_out("10.231.7.0/24 10.231.7.1 map[a:b]\n")?;
    let twice = home.run(&["network", "create", "quay"])?.expect_status(1)?;
    assert!(twice.err.contains("quay"), "{}", twice.err);
    let overlap = home.run(&["network", "create", "--subnet", "10.231.0.0/16", "pier"])?.expect_status(1)?;
    assert!(overlap.err.contains("10.231.7.0/24") && overlap.err.contains("quay"), "{}", overlap.err);
    home.run(&["network", "prune", "-f"])?.expect_status(0)?.expect_out("Deleted Networks:\nquay\n\n")?;
    home.run(&["network", "rm", "quay"])?.expect_status(1)?;
    nothing_stays()
}

fn connected(home: &Home) -> Result {
    let image = image(home)?;
    server(home, &image, "server", &["--network", "bridge"])?;
    home.run(&["network", "create", "quay"])?.expect_status(0)?;
    home.run(&["network", "connect", "quay", "server"])?.expect_status(0)?;
    let there = address(home, "server", "quay")?;
    assert_eq!(fetch(home, &image, &["--network", "quay"], &there)?, "served\n");
    let used = home.run(&["network", "rm", "quay"])?.expect_status(1)?;
    assert!(used.err.contains("in use"), "{}", used.err);
    let twice = home.run(&["network", "connect", "quay", "server"])?.expect_status(1)?;
    assert!(twice.err.contains("already"), "{}", twice.err);
    home.run(&["network", "disconnect", "quay", "server"])?.expect_status(0)?;
    let links = home.run(&["exec", "server", "busybox", "ip", "-o", "link"])?.expect_status(0)?.out;
    assert_eq!(links.lines().count(), 2, "{links}");
    home.run(&["network", "rm", "quay"])?.expect_status(0)?;
    home.run(&["rm", "-f", "server"])?.expect_status(0)?;
    nothing_stays()
}

fn refused(home: &Home) -> Result {
    let cases: [(&[&str], &str); 6] = [
        (&["--network", "nosuch"], "nosuch"),
        (&["--network", "none", "-p", "80"], "80/tcp"),
        (&["--network", "bridge", "-p", "99999"], "99999"),
        (&["--network", "host", "--network", "bridge"], "host"),
        (&["--network", "bridge", "--ip", "192.0.2.1"], "192.0.2.1"),
        (&["--network", "bridge", "-p", "1.2.3.4:18081:80"], "1.2.3.4"),
    ];
    for (options, word) in cases {
        let arguments = [&["run", "--rm"], options, &[crate::home::HELLO, "exit", "0"]].concat();
        let ended = home.run(&arguments)?.expect_status(125)?;
        assert!(ended.err.contains(word), "{options:?}: {}", ended.err);
        assert_eq!(ended.err.trim_end().lines().count(), 1, "{options:?}: {}", ended.err);
    }
    nothing_stays()
}

fn killed(home: &Home) -> Result {
    let image = image(home)?;
    server(home, &image, "server", &["--network", "bridge", "-p", "18080:80"])?;
    let mine = address(home, "server", "bridge")?;
    for shim in processes::below().iter().filter(|process| process.is_shim()) {
        processes::end(shim.pid);
    }
    // Any ordinary command finds it.
    until("the interfaces go", || home.run(&["ps", "-a"]).is_ok() && interfaces().is_ok_and(|names| names == ["lo"]))?;
    let leases = home.root().join("networks/leases/bridge");
    assert!(!leases.join(&mine).exists(), "the address {mine} is still given");
    home.run(&["rm", "server"])?.expect_status(0)?;
    nothing_stays()
}

fn crowd(home: &Home) -> Result {
    let image = image(home)?;
    let script = "busybox ip -o -4 addr show eth0; sleep 5";
    let mut children = Vec::new();
    for _ in 0..50 {
        let mut command = home.command(&["run", "--rm", "--network", "bridge", &image, "sh", "-c", script]);
        children.push(command.stdout(std::process::Stdio::piped()).spawn()?);
    }
    let mut addresses = Vec::new();
    for child in children {
        let output = child.wait_with_output()?;
        assert!(output.status.success());
        addresses.push(String::from_utf8_lossy(&output.stdout).split_whitespace().nth(3).map(str::to_owned));
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 50);
    nothing_stays()
}
