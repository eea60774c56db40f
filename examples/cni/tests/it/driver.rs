//! The driver `Cni` of `estiba-network`, with our plugins and with the reference's.

use std::fs;

use estiba_network::cni::Runner;
use estiba_network::cni::serde_json::json;
use estiba_network::{Attachment, Cni, Driver, Error, Network, PortMapping, testsuite};

use crate::ports::{ask, serve, stage_with_outside};
use crate::stage::{Named, Outcome, Stage, interfaces};

pub(crate) const TRIALS: &[Named] = &[
    ("privileged_driver_conforms_with_our_plugins", || conforms(Stage::ours)),
    ("privileged_driver_hands_on_what_is_asked", hands_on),
    ("privileged_driver_repairs", repairs),
];

pub(crate) const COMPARED: &[Named] =
    &[("privileged_reference_driver_conforms_with_its_plugins", || conforms(Stage::theirs))];

fn driver(stage: &Stage, runner: Runner) -> Outcome<Cni> {
    let folder = stage.path("net.d");
    fs::create_dir_all(&folder)?;
    let ipam = stage.ipam(&json!([[{ "subnet": "10.71.0.0/24" }], [{ "subnet": "fd71::/64" }]]));
    let mut bridge = json!({ "type": "bridge", "bridge": "br0", "isGateway": true, "hairpinMode": true, "ipam": ipam });
    bridge["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
    bridge["capabilities"] = json!({ "mac": true, "ips": true });
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let list = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [bridge, portmap] });
    fs::write(folder.join("10-net.conflist"), list.to_string())?;
    Ok(Cni { folder, runner })
}

fn conforms(runner: fn(&Stage) -> Runner) -> Outcome {
    let stage = Stage::new()?;
    let driver = driver(&stage, runner(&stage))?;
    let container = stage.container("c1")?;
    let network = stage.on_host(|| driver.create(Network::named("net"), &[]))??;
    stage.on_host(|| testsuite::run(&driver, &network, &container.sandbox))?;
    assert!(interfaces(&container.sandbox)?.is_empty());
    assert!(stage.leases("net").is_empty());
    driver.delete(&network)?;
    let error = stage.on_host(|| driver.create(Network::named("other"), &[]))?.expect_err("it is not configured");
    assert!(matches!(error, Error::NetworkUnknown { .. }), "{error}");
    Ok(())
}

fn hands_on() -> Outcome {
    let (stage, outside) = stage_with_outside()?;
    let driver = driver(&stage, stage.ours())?;
    let container = stage.container("c1")?;
    let network = Network::named("net");
    let attachment = Attachment {
        container: "c1".to_owned(),
        addresses: vec!["10.71.0.77".parse()?, "fd71::77".parse()?],
        mac: Some("02:00:00:00:00:77".parse()?),
        ports: vec!["8080-8081:80-81".parse::<PortMapping>()?],
        names: vec!["friend".to_owned()],
        ..Attachment::default()
    };
    let endpoint = stage.on_host(|| driver.attach(&network, &container.sandbox, &attachment))??;
    let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.71.0.77/24", "fd71::77/64"]);
    let gateways: Vec<_> = endpoint.gateways.iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["10.71.0.1", "fd71::1"]);
    assert_eq!(endpoint.mac, attachment.mac);
    assert_eq!(endpoint.interfaces[0].name, "eth0");
    assert!(endpoint.host_interface.is_some_and(|name| name.starts_with("veth")));
    serve(&container)?;
    assert!(ask(&outside, "198.51.100.1:8080")?.is_some());
    assert!(matches!(driver.delete(&network), Err(Error::InUse { containers: 1, .. })));
    // Only the key counts.
    let key = Attachment { container: "c1".to_owned(), ..Attachment::default() };
    stage.on_host(|| driver.detach(&network, Some(&container.sandbox), &key))??;
    assert_eq!(ask(&outside, "198.51.100.1:8080")?, None);
    assert!(stage.leases("net").is_empty() && interfaces(&container.sandbox)?.is_empty());
    let free = Attachment { ports: vec!["80".parse()?], ..key };
    let error = stage.on_host(|| driver.attach(&network, &container.sandbox, &free))?.expect_err("no port is chosen");
    assert!(matches!(error, Error::Publish { .. }), "{error}");
    Ok(())
}

fn repairs() -> Outcome {
    let stage = Stage::new()?;
    let driver = driver(&stage, stage.ours())?;
    let network = Network::named("net");
    let of = |id: &str| Attachment { container: id.to_owned(), ..Attachment::default() };
    let (one, two) = (stage.container("c1")?, stage.container("c2")?);
    let first = stage.on_host(|| driver.attach(&network, &one.sandbox, &of("c1")))??;
    stage.on_host(|| driver.attach(&network, &two.sandbox, &of("c2")))??;
    drop(one);
    stage.on_host(|| driver.repair(&network, &|id| id == "c2"))??;
    assert_eq!(stage.leases("net").len(), 2);
    // The same container in a new namespace: what is on record is of the old one.
    let again = stage.container("c2")?;
    let endpoint = stage.on_host(|| driver.attach(&network, &again.sandbox, &of("c2")))??;
    assert_eq!(interfaces(&again.sandbox)?, ["eth0"]);
    assert_ne!(endpoint.addresses, first.addresses);
    assert_eq!(stage.leases("net").len(), 2);
    Ok(())
}
