use std::sync::Arc;
use std::time::Instant;
use estiba_network::*;
fn main() {
    let host = Sandbox::new().unwrap();
    host.run(cycles).unwrap();
}
fn cycles() {
    let n: usize = std::env::args().nth(1).map_or(100, |v| v.parse().unwrap());
    let live = std::env::args().nth(2).is_some();
    Netlink::open().unwrap().set_loopback_up().unwrap();
    let root = tempfile::tempdir().unwrap();
    let driver = Bridge { host: None, state: root.path().join("s"), leases: root.path().join("l"), firewall: Arc::new(Nftables::default()), sweep: Sweep::AtOnce };
    let network = driver.create(Network { subnets: vec![Subnet::new("10.77.0.0/20".parse().unwrap())], ..Network::named("n") }, &[]).unwrap();
    let keep = Sandbox::new().unwrap();
    driver.attach(&network, &keep, &Attachment { container: "keep".into(), ..Default::default() }).unwrap();
    let (mut a, mut d, mut u) = (vec![], vec![], vec![]);
    for i in 0..n {
        let t = Instant::now();
        let sandbox = Sandbox::new().unwrap();
        u.push(t.elapsed().as_micros());
        let port = PortMapping { host_port: 8080, container_port: 80, ..Default::default() };
        let att = Attachment { container: format!("c{i}"), ports: vec![port], ..Default::default() };
        let t = Instant::now();
        driver.attach(&network, &sandbox, &att).unwrap();
        a.push(t.elapsed().as_micros());
        let t;
        if live { t = Instant::now(); driver.detach(&network, Some(&sandbox), &att).unwrap(); }
        else { drop(sandbox); t = Instant::now(); driver.detach(&network, None, &att).unwrap(); }
        d.push(t.elapsed().as_micros());
    }
    for (name, v) in [("new ns", &mut u), ("attach", &mut a), ("detach", &mut d)] { v.sort(); println!("{name}: min {} p50 {} p90 {}", v[0], v[v.len()/2], v[v.len()*9/10]); }
}
