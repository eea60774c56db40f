//! The CNI runner, with plugins made for the purpose: shell scripts that note how they were called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use estiba_network::Error;
use estiba_network::cni::serde_json::{Value, json};
use estiba_network::cni::{Attachment, Network, Runner, Valid, Version};
use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;

type Result = std::result::Result<(), Failed>;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("cni_networks_of_a_folder", networks_of_a_folder),
        Trial::test("cni_plugins_beside_the_list", plugins_beside_the_list),
        Trial::test("cni_a_chain_is_run_forward_and_back", chain_forward_and_back),
        Trial::test("cni_the_record_is_libcni_s", the_record_is_libcni_s),
        Trial::test("cni_what_failed_is_undone", what_failed_is_undone),
        Trial::test("cni_a_hanging_plugin_is_killed_with_its_children", hanging_plugin),
        Trial::test("cni_a_plugin_that_leaves_its_output_to_another_is_not_waited_for", left_output),
        Trial::test("cni_garbage_is_an_error", garbage),
        Trial::test("cni_a_missing_plugin_is_named", missing_plugin),
        Trial::test("cni_check_needs_a_record_and_a_version", check_needs),
        Trial::test("cni_collection", collection),
        Trial::test("cni_versions_and_status", versions_and_status),
        Trial::test("cni_names_become_no_paths", names_become_no_paths),
    ]
}

/// A runner in a folder of its own, with plugins in `bin` that each append to `calls`.
struct Stage {
    folder: TempDir,
    runner: Runner,
}

impl Stage {
    fn new() -> std::io::Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::create_dir(folder.path().join("bin"))?;
        let runner = Runner {
            path: vec![folder.path().join("nowhere"), folder.path().join("bin")],
            cache: folder.path().join("cache"),
            limit: Duration::from_secs(20),
        };
        Ok(Self { folder, runner })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A plugin that notes each call and what it read, then does `body`.
    fn plugin(&self, name: &str, body: &str) -> std::io::Result<()> {
        let path = self.path("bin").join(name);
        let folder = self.folder.path().display();
        let note = "cat > $F/stdin.$(basename $0).$CNI_COMMAND; echo \"$CNI_COMMAND $(basename $0) $CNI_CONTAINERID \
                    $CNI_IFNAME $CNI_NETNS $CNI_ARGS\" >> $F/calls";
        fs::write(&path, format!("#!/bin/sh\nF={folder}\n{note}\n{body}\n"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.path("calls"));
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// What a plugin read last for a command.
    fn read(&self, plugin: &str, command: &str) -> std::result::Result<Value, Failed> {
        let bytes = fs::read(self.path(&format!("stdin.{plugin}.{command}")))?;
        Ok(estiba_network::cni::serde_json::from_slice(&bytes)?)
    }

    fn records(&self) -> Vec<String> {
        let Ok(listing) = fs::read_dir(self.path("cache/results")) else { return Vec::new() };
        let mut names: Vec<_> = listing.flatten().map(|entry| entry.file_name().display().to_string()).collect();
        names.sort();
        names
    }
}

const FIRST: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.1.0.5/16","interface":0}],"x-own":{"kept":true}}'; exit 0"#;
/// It hands on what it was given.
const ECHO: &str = r#"[ $CNI_COMMAND = ADD ] && sed 's/.*"prevResult"://; s/}}$/}/; s/,"runtimeConfig".*//; s/,"type":"second"}$//' $F/stdin.second.ADD; exit 0"#;

fn network(version: &str, plugins: &Value) -> std::result::Result<Network, Error> {
    let list = json!({ "cniVersion": version, "name": "net", "plugins": plugins });
    Network::from_bytes(list.to_string().as_bytes())
}

fn chain(version: &str) -> std::result::Result<Network, Error> {
    let second = json!({ "type": "second", "capabilities": { "portMappings": true, "mac": false } });
    network(version, &json!([{ "type": "first", "unknown": { "a": [1, 2.5] } }, second]))
}

fn attachment() -> Attachment {
    let mut attachment = Attachment::new("c1", Path::new("/run/netns/c1"), "eth0");
    attachment.args = vec![("A".to_owned(), "b".to_owned()), ("C".to_owned(), "d e".to_owned())];
    attachment.capabilities.insert("portMappings".to_owned(), json!([{ "hostPort": 80, "containerPort": 81 }]));
    attachment.capabilities.insert("mac".to_owned(), json!("02:00:00:00:00:01"));
    attachment
}

fn networks_of_a_folder() -> Result {
    let folder = tempfile::tempdir()?;
    let write = |name: &str, value: Value| fs::write(folder.path().join(name), value.to_string());
    let plugins = json!([{ "type": "t" }]);
    write("20.conflist", json!({ "name": "a", "cniVersion": "1.0.0", "plugins": plugins }))?;
    write("10.conflist", json!({ "name": "a", "cniVersion": "1.1.0", "plugins": plugins }))?;
    write("05.conf", json!({ "name": "a", "cniVersion": "0.4.0", "type": "t" }))?;
    write("30.json", json!({ "name": "b", "cniVersion": "0.3.1", "type": "t" }))?;
    write("40.txt", json!({ "name": "c", "type": "t" }))?;
    fs::create_dir(folder.path().join("50.conflist"))?;
    assert_eq!(Network::load(folder.path(), "a")?.version, Version::V1_1_0, "lists first, in their order");
    assert_eq!(Network::load(folder.path(), "b")?.version, Version::V0_3_1);
    let error = Network::load(folder.path(), "c").expect_err("no such file is read");
    assert!(matches!(error, Error::NetworkUnknown { .. }), "{error}");
    // A broken file is told where nothing else is found, and stands in nobody's way.
    fs::write(folder.path().join("00.conflist"), "{")?;
    assert_eq!(Network::load(folder.path(), "a")?.version, Version::V1_1_0);
    let error = Network::load(folder.path(), "c").expect_err("still none");
    assert!(error.to_string().contains("00.conflist"), "{error}");
    let (networks, errors) = Network::load_all(folder.path())?;
    assert_eq!(networks.iter().map(|network| network.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(errors.len(), 1);
    assert!(Network::load_all(&folder.path().join("nowhere"))?.0.is_empty());
    Ok(())
}

fn plugins_beside_the_list() -> Result {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("n.conflist");
    let mut list = json!({ "name": "n", "cniVersion": "1.1.0" });
    fs::write(&file, list.to_string())?;
    assert!(Network::from_file(&file).expect_err("no plugins").to_string().contains("no plugins"));
    fs::create_dir(folder.path().join("n"))?;
    fs::write(folder.path().join("n/2.conf"), r#"{"type":"third"}"#)?;
    fs::write(folder.path().join("n/1.conf"), r#"{"type":"second"}"#)?;
    fs::write(folder.path().join("n/0.json"), r#"{"type":"none"}"#)?;
    let types = |network: Network| network.plugins.into_iter().map(|plugin| plugin.plugin_type).collect::<Vec<_>>();
    assert_eq!(types(Network::from_file(&file)?), ["second", "third"]);
    list["plugins"] = json!([{ "type": "first" }]);
    fs::write(&file, list.to_string())?;
    assert_eq!(types(Network::from_file(&file)?), ["first", "second", "third"]);
    list["loadOnlyInlinedPlugins"] = json!(true);
    fs::write(&file, list.to_string())?;
    assert_eq!(types(Network::from_file(&file)?), ["first"]);
    Ok(())
}

fn chain_forward_and_back() -> Result {
    let stage = Stage::new()?;
    stage.plugin("first", FIRST)?;
    stage.plugin("second", ECHO)?;
    let network = chain("1.0.0")?;
    let success = stage.runner.add(&network, &attachment())?;
    assert_eq!(success.ips[0].address.to_string(), "10.1.0.5/16");
    assert_eq!(success.other["x-own"], json!({ "kept": true }));
    let rest = "c1 eth0 /run/netns/c1 A=b;C=d e";
    assert_eq!(stage.calls(), [format!("ADD first {rest}"), format!("ADD second {rest}")]);
    let first = stage.read("first", "ADD")?;
    assert_eq!(first, json!({ "cniVersion": "1.0.0", "name": "net", "type": "first", "unknown": { "a": [1, 2.5] } }));
    let second = stage.read("second", "ADD")?;
    assert_eq!(second["runtimeConfig"], json!({ "portMappings": [{ "hostPort": 80, "containerPort": 81 }] }));
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.0.5/16");
    assert_eq!(second["prevResult"]["x-own"], json!({ "kept": true }));
    assert_eq!(second.get("capabilities"), None);

    stage.runner.check(&network, &attachment())?;
    assert_eq!(stage.calls(), [format!("CHECK first {rest}"), format!("CHECK second {rest}")]);
    assert_eq!(stage.read("first", "CHECK")?["prevResult"], second["prevResult"]);

    stage.runner.del(&network, &attachment())?;
    assert_eq!(stage.calls(), [format!("DEL second {rest}"), format!("DEL first {rest}")]);
    assert_eq!(stage.read("first", "DEL")?["prevResult"], second["prevResult"]);
    assert!(stage.records().is_empty());
    // Once more: nothing is known any more, and it is no error.
    stage.runner.del(&network, &attachment())?;
    assert_eq!(stage.calls().len(), 2);
    assert_eq!(stage.read("first", "DEL")?.get("prevResult"), None);
    Ok(())
}

fn the_record_is_libcni_s() -> Result {
    let stage = Stage::new()?;
    stage.plugin("first", FIRST)?;
    let network = network("1.0.0", &json!([{ "type": "first" }]))?;
    stage.runner.add(&network, &attachment())?;
    let path = stage.path("cache/results/net-c1-eth0");
    assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
    let record: Value = estiba_network::cni::serde_json::from_slice(&fs::read(&path)?)?;
    assert_eq!(record["kind"], "cniCacheV1");
    assert_eq!(record["containerId"], "c1");
    assert_eq!(record["ifName"], "eth0");
    assert_eq!(record["networkName"], "net");
    assert_eq!(record["netns"], "/run/netns/c1");
    assert_eq!(record["cniArgs"], json!([["A", "b"], ["C", "d e"]]));
    assert_eq!(record["capabilityArgs"]["mac"], "02:00:00:00:00:01");
    assert_eq!(record["result"]["ips"][0]["address"], "10.1.0.5/16");
    let cached = stage.runner.cached("net", &attachment())?.ok_or("it is on record")?;
    assert_eq!(cached.config, network.bytes);
    assert_eq!(cached.attachment, attachment());
    assert_eq!(cached.success()?.interfaces[0].name, "eth0");
    // Another version of the configuration gets the record in its own words.
    let older = Network { version: Version::V0_4_0, ..network };
    stage.runner.check(&older, &attachment())?;
    let given = stage.read("first", "CHECK")?;
    assert_eq!(given["prevResult"]["cniVersion"], "0.4.0");
    assert_eq!(given["prevResult"]["ips"][0]["version"], "4");
    Ok(())
}

fn what_failed_is_undone() -> Result {
    let stage = Stage::new()?;
    stage.plugin("first", FIRST)?;
    let report = r#"[ $CNI_COMMAND = ADD ] && { echo '{"cniVersion":"1.0.0","code":107,"msg":"no room","details":"at all"}'; exit 1; }; exit 0"#;
    stage.plugin("second", report)?;
    let error = stage.runner.add(&chain("1.0.0")?, &attachment()).expect_err("the second fails");
    let Error::Plugin { plugin, failure, .. } = &error else { return Err(format!("{error}").into()) };
    assert_eq!((plugin.as_str(), failure.code), ("second", 107));
    assert_eq!((failure.msg.as_str(), failure.details.as_str()), ("no room", "at all"));
    let commands: Vec<_> =
        stage.calls().iter().map(|call| call.split(" c1").next().unwrap_or_default().to_owned()).collect();
    assert_eq!(commands, ["ADD first", "ADD second", "DEL second", "DEL first"]);
    assert_eq!(stage.read("first", "DEL")?["prevResult"]["ips"][0]["address"], "10.1.0.5/16");
    assert!(stage.records().is_empty());
    // Where undoing fails too, both are told.
    stage.plugin("second", "exit 3")?;
    let error = stage.runner.add(&chain("1.0.0")?, &attachment()).expect_err("the second fails");
    let Error::Several { errors } = &error else { return Err(format!("{error}").into()) };
    assert_eq!(errors.len(), 2);
    assert!(error.to_string().contains("it ended with status 3; it said nothing"), "{error}");
    Ok(())
}

fn hanging_plugin() -> Result {
    let stage = Stage::new()?;
    stage.plugin("first", "[ $CNI_COMMAND = ADD ] || exit 0; sleep 1000 & echo $! > $F/child; wait")?;
    let runner = Runner { limit: Duration::from_millis(400), ..stage.runner.clone() };
    let begin = Instant::now();
    let error = runner.add(&network("1.0.0", &json!([{ "type": "first" }]))?, &attachment()).expect_err("it hangs");
    assert!(matches!(error, Error::PluginTimeout { .. }), "{error}");
    assert!(error.to_string().contains("first"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(15));
    // Its child is gone, or a zombie of whoever has inherited it.
    let child = fs::read_to_string(stage.path("child"))?;
    let stat = || fs::read_to_string(format!("/proc/{}/stat", child.trim())).ok();
    let ended = || stat().is_none_or(|line| line.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')));
    let begin = Instant::now();
    while !ended() && begin.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(ended(), "the child {child} is there");
    Ok(())
}

fn left_output() -> Result {
    let stage = Stage::new()?;
    // A daemon that a plugin starts has its output, and lives on; the pid is for its end.
    stage.plugin("first", &format!("sleep 1000 & echo $! > $F/child\n{FIRST}"))?;
    let begin = Instant::now();
    let added = stage.runner.add(&network("1.0.0", &json!([{ "type": "first" }]))?, &attachment());
    Command::new("kill").arg(fs::read_to_string(stage.path("child"))?.trim()).status()?;
    added?;
    assert!(begin.elapsed() < Duration::from_secs(15));
    Ok(())
}

fn garbage() -> Result {
    let stage = Stage::new()?;
    let network = network("1.0.0", &json!([{ "type": "first" }]))?;
    for (body, expected) in [
        ("echo hello", "it printed hello"),
        ("exit 0", "it printed nothing"),
        ("echo '[]'", "no JSON object"),
        (r#"echo '{"cniVersion":"5.0.0"}'"#, "5.0.0"),
        (r#"echo '{"ips":[{"address":"10.0.0.1"}]}'"#, "makes no sense"),
        ("printf '\\033[31mred\\000'; exit 1", "\\u{1b}[31mred\\0"),
        ("echo oh dear >&2; exit 7", "status 7; it said: oh dear"),
        ("kill -9 $$", "killed by signal 9"),
        ("yes | head -c 8000000", "more than 4194304 bytes"),
        ("yes | head -c 8000000 >&2; exit 1", "status 1"),
    ] {
        stage.plugin("first", &format!("[ $CNI_COMMAND = ADD ] || exit 0; {body}"))?;
        let error = stage.runner.add(&network, &attachment()).expect_err(body).to_string();
        assert!(error.contains(expected), "{body}: {error}");
        assert!(error.len() < 2000, "{body}: {} bytes", error.len());
        assert!(!error.contains('\u{1b}'), "{body}");
        assert!(stage.records().is_empty());
    }
    Ok(())
}

fn missing_plugin() -> Result {
    let stage = Stage::new()?;
    stage.plugin("first", FIRST)?;
    let error = stage.runner.add(&chain("1.0.0")?, &attachment()).expect_err("the second is missing");
    assert!(matches!(error, Error::PluginMissing { .. }));
    assert!(error.to_string().contains("\"second\""), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert!(stage.calls().is_empty(), "nothing was begun");
    for name in ["../bin/first", "/bin/sh", ".", "bin/first"] {
        let error = stage.runner.add(&network("1.0.0", &json!([{ "type": name }]))?, &attachment());
        assert!(matches!(error, Err(Error::PluginMissing { .. })), "{name}");
    }
    fs::write(stage.path("bin/plain"), "no program")?;
    let error = stage.runner.add(&network("1.0.0", &json!([{ "type": "plain" }]))?, &attachment());
    let Err(Error::Several { errors }) = error else { return Err("it cannot be executed".into()) };
    assert!(errors.iter().all(|error| matches!(error, Error::PluginExecute { .. })), "{errors:?}");
    Ok(())
}

fn check_needs() -> Result {
    let stage = Stage::new()?;
    stage.plugin("first", FIRST)?;
    let of = |version: &str| network(version, &json!([{ "type": "first" }]));
    assert!(matches!(stage.runner.check(&of("0.3.1")?, &attachment()), Err(Error::CheckUnsupported { .. })));
    assert!(matches!(stage.runner.check(&of("1.0.0")?, &attachment()), Err(Error::NotAttached { .. })));
    let disabled = Network { disable_check: true, ..of("1.0.0")? };
    stage.runner.check(&disabled, &attachment())?;
    assert!(stage.calls().is_empty());
    // Before 0.4.0 DEL is told nothing of the result.
    let old = r#"[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"version":"4","address":"10.1.0.5/16"}]}'; exit 0"#;
    stage.plugin("first", old)?;
    stage.runner.add(&of("0.3.1")?, &attachment())?;
    stage.runner.del(&of("0.3.1")?, &attachment())?;
    assert_eq!(stage.read("first", "DEL")?.get("prevResult"), None);
    assert!(stage.records().is_empty());
    Ok(())
}

fn collection() -> Result {
    let stage = Stage::new()?;
    let first = FIRST.replace("1.0.0", "1.1.0");
    stage.plugin("first", &first)?;
    let net = network("1.1.0", &json!([{ "type": "first" }]))?;
    let other = Network { name: "other".to_owned(), ..net.clone() };
    for id in ["c1", "c2"] {
        stage.runner.add(&net, &Attachment { container_id: id.to_owned(), ..attachment() })?;
    }
    stage.runner.add(&other, &attachment())?;
    stage.calls();
    fs::write(stage.path("cache/results/.123-0"), "half")?;
    let valid = [Valid { container_id: "c2".to_owned(), interface: "eth0".to_owned() }];
    stage.runner.gc(&net, &valid)?;
    assert_eq!(stage.calls(), ["DEL first c1 eth0 /run/netns/c1 A=b;C=d e", "GC first"]);
    assert_eq!(stage.records(), ["net-c2-eth0", "other-c1-eth0"]);
    let given = stage.read("first", "GC")?;
    assert_eq!(given["cni.dev/valid-attachments"], json!([{ "containerID": "c2", "ifname": "eth0" }]));
    assert_eq!(given["cni.dev/attachments"], given["cni.dev/valid-attachments"]);
    assert_eq!(given["name"], "net");
    // Every plugin is asked, whatever the others say.
    stage.plugin("bad", r#"echo '{"code":999,"msg":"will not"}'; exit 1"#)?;
    let both = network("1.1.0", &json!([{ "type": "bad" }, { "type": "first" }]))?;
    let error = stage.runner.gc(&both, &valid).expect_err("the first fails");
    assert!(error.to_string().contains("will not"), "{error}");
    assert_eq!(stage.calls(), ["GC bad", "GC first"]);
    // None where it is disabled, none in older versions.
    stage.runner.gc(&Network { disable_gc: true, ..net.clone() }, &[])?;
    assert!(stage.calls().is_empty());
    stage.runner.gc(&Network { version: Version::V1_0_0, ..net }, &[])?;
    assert_eq!(stage.calls(), ["DEL first c2 eth0 /run/netns/c1 A=b;C=d e"]);
    Ok(())
}

fn versions_and_status() -> Result {
    let stage = Stage::new()?;
    stage.plugin("new", r#"[ $CNI_COMMAND = VERSION ] && echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.1.0","2.0.0"]}'; exit 0"#)?;
    stage.plugin("old", r#"echo '{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}'; exit 1"#)?;
    stage.plugin(
        "busy",
        r#"[ $CNI_COMMAND = STATUS ] && { echo '{"code":50,"msg":"no addresses"}'; exit 1; }; exit 0"#,
    )?;
    assert_eq!(stage.runner.versions("new")?, [Version::V0_4_0, Version::V1_1_0]);
    assert_eq!(stage.runner.versions("old")?, [Version::V0_1_0]);
    let of = |version: &str, name: &str| network(version, &json!([{ "type": name }]));
    stage.runner.validate(&of("1.1.0", "new")?)?;
    let error = stage.runner.validate(&of("1.0.0", "new")?).expect_err("it does not have it");
    assert!(matches!(&error, Error::Plugin { failure, .. } if failure.code == 1), "{error}");
    stage.calls();
    stage.runner.status(&of("1.1.0", "new")?)?;
    assert_eq!(stage.calls(), ["STATUS new"]);
    let error = stage.runner.status(&of("1.1.0", "busy")?).expect_err("it is not ready");
    assert!(matches!(&error, Error::Plugin { failure, .. } if failure.code == 50), "{error}");
    stage.runner.status(&of("1.0.0", "busy")?)?;
    Ok(())
}

fn names_become_no_paths() -> Result {
    let stage = Stage::new()?;
    stage.plugin("first", FIRST)?;
    let network = network("1.0.0", &json!([{ "type": "first" }]))?;
    let with = |change: fn(&mut Attachment)| {
        let mut attachment = attachment();
        change(&mut attachment);
        attachment
    };
    for wrong in [
        with(|attachment| attachment.container_id = "../../x".into()),
        with(|attachment| attachment.container_id = String::new()),
        with(|attachment| attachment.interface = "a/b".into()),
        with(|attachment| attachment.args = vec![("A".to_owned(), "b;C=d".to_owned())]),
        with(|attachment| attachment.args = vec![(String::new(), String::new())]),
    ] {
        assert!(matches!(stage.runner.add(&network, &wrong), Err(Error::InvalidAttachment { .. })), "{wrong:?}");
        assert!(matches!(stage.runner.del(&network, &wrong), Err(Error::InvalidAttachment { .. })), "{wrong:?}");
        assert!(matches!(stage.runner.check(&network, &wrong), Err(Error::InvalidAttachment { .. })), "{wrong:?}");
        assert!(stage.runner.cached("net", &wrong).is_err());
    }
    assert!(stage.runner.cached("../net", &attachment()).is_err());
    assert!(stage.calls().is_empty());
    Ok(())
}
