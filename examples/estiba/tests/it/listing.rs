//! What commands print about containers, images and the machine.

use libtest_mimic::Trial;
use serde_json::Value;

use crate::home::{Home, Result};
use crate::lifecycle::{IMAGE, background, inspected, load};
use crate::need::{Need, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("ps_is_dockers", &[Need::Busybox], ps),
        trial("ps_filters", &[Need::Busybox], filters),
        trial("inspect_is_dockers", &[Need::Busybox], inspect),
        trial("images_are_listed", &[Need::Busybox], images),
        trial("logs_are_chosen", &[Need::Busybox], logs),
        trial("logs_follow", &[Need::Busybox], follow),
        trial("events_are_told", &[Need::Busybox], events),
        trial("top_and_stats", &[Need::Busybox, Need::Program("ps")], top_and_stats),
        trial("the_machine_and_the_disk", &[Need::Busybox], machine),
        trial("formats_that_are_wrong", &[Need::Busybox], wrong_formats),
    ]
}

fn json(text: &str) -> Result<Value> {
    Ok(serde_json::from_str(text)?)
}

fn ps(home: &Home) -> Result {
    load(home)?;
    let id = home
        .run(&["run", "-d", "--name", "one", "--label", "team=a", IMAGE, "sh", "-c", "sleep 1000; echo a long line"])?
        .expect_status(0)?
        .out;
    let shown = home.run(&["ps"])?.expect_status(0)?.out;
    let mut lines = shown.lines();
    let head: Vec<&str> =
        lines.next().unwrap_or_default().split("   ").map(str::trim).filter(|word| !word.is_empty()).collect();
    assert_eq!(head, ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"], "{shown}");
    let row = lines.next().unwrap_or_default();
    assert!(row.starts_with(&id[..12]) && row.ends_with("one"), "{shown}");
    assert!(row.contains("   \"sh -c 'sleep 1000; …\"   "), "{shown}");
    let row = json(&home.run(&["ps", "--format", "json"])?.expect_status(0)?.out)?;
    for (key, value) in
        [("Names", "one"), ("State", "running"), ("Labels", "team=a"), ("Networks", "bridge"), ("Size", "0B")]
    {
        assert_eq!(row[key], value, "{key}: {row}");
    }
    let format = "table {{.Names}}\\t{{.Label \"team\"}}\\t{{upper .State}}";
    home.run(&["ps", "--format", format])?.expect_out("NAMES     team      STATE\none       a         RUNNING\n")?;
    let sized = home.run(&["ps", "-s", "--format", "{{.Size}}"])?.expect_status(0)?.out;
    assert!(sized.contains("(virtual "), "{sized}");
    let full = home.run(&["ps", "--no-trunc", "--format", "{{.ID}} {{.Command}}"])?.expect_status(0)?.out;
    assert_eq!(full, format!("{} \"sh -c 'sleep 1000; echo a long line'\"\n", id.trim()));
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    let empty = home.run(&["container", "ls", "-a"])?.expect_status(0)?;
    assert_eq!(empty.out.lines().count(), 1, "{}", empty.out);
    Ok(())
}

fn filters(home: &Home) -> Result {
    load(home)?;
    home.run(&["run", "-d", "--name", "web-1", "--label", "a=b", IMAGE, "sleep", "1000"])?.expect_status(0)?;
    home.run(&["run", "--name", "web-2", IMAGE, "sh", "-c", "exit 3"])?.expect_status(3)?;
    home.run(&["create", "--name", "db", "--label", "a=c", IMAGE])?.expect_status(0)?;
    for (options, expected) in [
        (vec![], "web-1"),
        (vec!["-a"], "db web-2 web-1"),
        (vec!["-n", "2"], "db web-2"),
        (vec!["-l"], "db"),
        (vec!["-a", "-f", "name=web"], "web-2 web-1"),
        (vec!["-a", "-f", "name=^db$"], "db"),
        (vec!["-a", "-f", "label=a"], "db web-1"),
        (vec!["-a", "-f", "label=a=b"], "web-1"),
        (vec!["-f", "status=exited"], "web-2"),
        (vec!["-f", "exited=3"], "web-2"),
        (vec!["-f", "status=created", "-f", "status=exited"], "db web-2"),
        (vec!["-a", "-f", "ancestor=test/busybox:1"], "db web-2 web-1"),
        (vec!["-a", "-f", "ancestor=embedded:hello"], ""),
        (vec!["-a", "-f", "before=web-2"], "web-1"),
        (vec!["-a", "-f", "since=web-2"], "db"),
        (vec!["-a", "-f", "health=none", "-f", "name=db"], "db"),
        (vec!["-a", "-f", "network=bridge", "-f", "name=db"], "db"),
    ] {
        let words = [&["ps", "--format", "{{.Names}}"], options.as_slice()].concat();
        let found = home.run(&words)?.expect_status(0)?.out;
        assert_eq!(found.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{options:?}");
    }
    for filter in ["foo=bar", "name", "status=flying", "exited=x", "before=nothing"] {
        home.run(&["ps", "-f", filter])?.expect_status(1)?;
    }
    home.run(&["rm", "-f", "web-1", "web-2", "db"])?.expect_status(0)?;
    Ok(())
}

fn inspect(home: &Home) -> Result {
    load(home)?;
    let options = [
        "--network",
        "none",
        "--name",
        "one",
        "--label",
        "a=b",
        "-e",
        "A=1",
        "-w",
        "/etc",
        "--restart",
        "on-failure:3",
        "--stop-signal",
        "INT",
    ];
    let words =
        [&["run", "-d"], &options[..], &["-v", "/tmp:/mnt:ro", "--tmpfs", "/scratch:size=1m", IMAGE, "sleep", "1000"]];
    home.run(&words.concat())?.expect_status(0)?;
    let shown = json(&home.run(&["inspect", "one"])?.expect_status(0)?.out)?;
    let one = &shown[0];
    for (pointer, expected) in [
        ("/Name", "\"/one\""),
        ("/Path", "\"sleep\""),
        ("/Args/0", "\"1000\""),
        ("/State/Status", "\"running\""),
        ("/State/FinishedAt", "\"0001-01-01T00:00:00Z\""),
        ("/Config/Env/0", "\"A=1\""),
        ("/Config/Env/1", "\"PATH=/bin\""),
        ("/Config/WorkingDir", "\"/etc\""),
        ("/Config/StopSignal", "\"SIGINT\""),
        ("/Config/Image", "\"test/busybox:1\""),
        ("/Config/Labels/a", "\"b\""),
        ("/HostConfig/RestartPolicy/Name", "\"on-failure\""),
        ("/HostConfig/RestartPolicy/MaximumRetryCount", "3"),
        ("/HostConfig/Binds/0", "\"/tmp:/mnt:ro\""),
        ("/HostConfig/Tmpfs/~1scratch", "\"size=1m\""),
        ("/HostConfig/CapAdd", "null"),
        ("/Mounts/0/Destination", "\"/mnt\""),
        ("/Mounts/0/RW", "false"),
        ("/NetworkSettings/Networks/none/IPAddress", "\"\""),
    ] {
        let found = one.pointer(pointer).map(ToString::to_string);
        assert_eq!(found.as_deref(), Some(expected), "{pointer}");
    }
    let log = one["LogPath"].as_str().unwrap_or_default();
    assert!(std::fs::exists(log)? && one["State"]["Pid"].as_u64() > Some(1), "{one}");
    let template = "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}}{{end}} {{len .Mounts}} {{json .State.Paused}} {{.HostConfig.RestartPolicy}}";
    assert_eq!(inspected(home, "one", template)?, "a=b 1 false {on-failure 3}");
    assert_eq!(inspected(home, "one", "{{.Config.Labels.nope}}{{if .State.Health}}x{{end}}")?, "<no value>");
    let sizes = home.run(&["inspect", "-s", "-f", "{{.SizeRootFs}}", "one"])?.expect_status(0)?.out;
    assert!(sizes.trim().parse::<u64>()? > 100_000, "{sizes}");
    let image = json(&home.run(&["inspect", "--type", "image", IMAGE])?.expect_status(0)?.out)?;
    assert_eq!((&image[0]["RepoTags"][0], &image[0]["Id"]), (&Value::from(IMAGE), &one["Image"]));
    let ended = home.run(&["inspect", "nothing", "one"])?.expect_status(1)?;
    assert_eq!(json(&ended.out)?[0]["Name"], "/one");
    assert!(ended.err.contains("No such object: nothing"), "{}", ended.err);
    home.run(&["inspect", "--type", "image", "one"])?.expect_status(1)?;
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn images(home: &Home) -> Result {
    load(home)?;
    let names = |options: &[&str]| -> Result<String> {
        let words = [&["images", "--format", "{{.Repository}}:{{.Tag}}"], options].concat();
        let mut names: Vec<String> = home.run(&words)?.expect_status(0)?.out.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names.join(" "))
    };
    assert_eq!(names(&[])?, "embedded:hello test/busybox:1");
    assert_eq!(names(&["test/busybox"])?, "test/busybox:1");
    assert_eq!(names(&["-f", "reference=test/*"])?, "test/busybox:1");
    assert_eq!(names(&["-f", "dangling=true"])?, "");
    home.run(&["tag", IMAGE, "other:2"])?.expect_out("")?;
    assert_eq!(names(&[])?, "embedded:hello other:2 test/busybox:1");
    let id = home.run(&["images", "-q", "other"])?.expect_status(0)?.out;
    assert_eq!(id.trim().len(), 12);
    assert!(home.run(&["images", "--no-trunc", "-q", "other"])?.out.starts_with(&format!("sha256:{}", id.trim())));
    let history = home.run(&["history", "--format", "json", "embedded:hello"])?.expect_status(0)?.out;
    assert_eq!(json(&history)?["CreatedBy"], "estiba");
    home.run(&["rmi", "other:2"])?.expect_out("Untagged: other:2\n")?;
    let ended = home.run(&["rmi", IMAGE])?.expect_status(0)?;
    assert!(ended.out.starts_with(&format!("Untagged: {IMAGE}\nDeleted: sha256:{}", id.trim())), "{}", ended.out);
    home.run(&["rmi", IMAGE])?.expect_status(1)?;
    home.run(&["rmi", "-f", IMAGE])?.expect_status(0)?;
    Ok(())
}

fn logs(home: &Home) -> Result {
    load(home)?;
    home.run(&["run", "--name", "one", IMAGE, "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.05; done; printf end"])?
        .expect_status(0)?;
    let logs = |options: &[&str]| -> Result<String> {
        Ok(home.run(&[&["logs"], options, &["one"]].concat())?.expect_status(0)?.out)
    };
    assert_eq!(logs(&[])?, "1\n2\n3\nend");
    assert_eq!(logs(&["--tail", "2"])?, "3\nend");
    assert_eq!(logs(&["-n", "0"])?, "");
    assert_eq!(logs(&["--tail", "nonsense"])?, "1\n2\n3\nend");
    assert_eq!(logs(&["--since", "1h"])?, "1\n2\n3\nend");
    assert_eq!(logs(&["--until", "1h"])?, "");
    let stamped = logs(&["-t"])?;
    let time = stamped.lines().nth(1).and_then(|line| line.strip_suffix(" 2")).unwrap_or_default();
    assert!(time.len() == 30 && time.ends_with('Z'), "{stamped}");
    assert_eq!(logs(&["--since", time])?, "2\n3\nend");
    home.run(&["logs", "--since", "nonsense", "one"])?.expect_status(1)?;
    home.run(&["logs", "nothing"])?.expect_status(1)?;
    home.run(&["rm", "one"])?.expect_status(0)?;
    Ok(())
}

fn follow(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done"])?;
    home.run(&["logs", "-f", "one"])?.expect_out("1\n2\n3\n")?;
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}

fn events(home: &Home) -> Result {
    load(home)?;
    home.run(&["run", "--name", "one", "--label", "k=v", IMAGE, "sh", "-c", "exit 3"])?.expect_status(3)?;
    home.run(&["rm", "one"])?.expect_status(0)?;
    let events = |options: &[&str]| -> Result<String> {
        let words = [&["events", "--since", "1h", "--until", "0s"], options].concat();
        Ok(home.run(&words)?.expect_status(0)?.out)
    };
    let actions = events(&["--filter", "container=one", "--format", "{{.Type}} {{.Action}}"])?;
    assert_eq!(actions, "container create\ncontainer attach\ncontainer start\ncontainer die\ncontainer destroy\n");
    let died = json(&events(&["--filter", "container=one", "--filter", "event=die", "--format", "json"])?)?;
    assert_eq!(died["Actor"]["Attributes"]["exitCode"], "3");
    assert_eq!((&died["from"], &died["scope"]), (&Value::from(IMAGE), &Value::from("local")));
    let line = events(&["--filter", "label=k=v", "--filter", "event=start"])?;
    assert!(line.trim_end().ends_with("(image=test/busybox:1, k=v, name=one)"), "{line}");
    assert_eq!(events(&["--filter", "type=volume"])?, "");
    home.run(&["events", "--since", "nonsense"])?.expect_status(1)?;
    Ok(())
}

fn top_and_stats(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sleep", "1000"])?;
    let top = home.run(&["top", "one"])?.expect_status(0)?.out;
    assert!(top.starts_with("UID ") && top.lines().count() == 2 && top.ends_with("sleep 1000\n"), "{top}");
    let top = home.run(&["top", "one", "-o", "pid,comm"])?.expect_status(0)?.out;
    assert_eq!(top.lines().next(), Some("PID                 COMMAND"), "{top}");
    let stats = json(&home.run(&["stats", "--no-stream", "--format", "json"])?.expect_status(0)?.out)?;
    assert_eq!((&stats["Name"], &stats["NetIO"]), (&Value::from("one"), &Value::from("0B / 0B")));
    let table = home.run(&["stats", "--no-stream", "one"])?.expect_status(0)?.out;
    assert!(table.starts_with("CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT"), "{table}");
    home.run(&["stop", "-t", "0", "one"])?.expect_status(0)?;
    home.run(&["top", "one"])?.expect_status(1)?;
    let idle = home.run(&["stats", "-a", "--no-stream", "--format", "{{.Name}} {{.PIDs}}"])?.expect_status(0)?.out;
    assert_eq!(idle, "one 0\n");
    home.run(&["rm", "one"])?.expect_status(0)?;
    Ok(())
}

fn machine(home: &Home) -> Result {
    load(home)?;
    home.run(&["create", "--name", "one", IMAGE])?.expect_status(0)?;
    let info = json(&home.run(&["info", "--format", "json"])?.expect_status(0)?.out)?;
    assert_eq!((&info["Containers"], &info["ContainersStopped"], &info["Images"]), (&1.into(), &1.into(), &2.into()));
    assert!(home.run(&["info"])?.expect_status(0)?.out.contains("Storage Driver: overlay\n"));
    let version = home.run(&["version", "-f", "{{.Server.Version}} {{.Client.Os}}"])?.expect_status(0)?.out;
    assert_eq!(version, format!("{} linux\n", env!("CARGO_PKG_VERSION")));
    let kinds = home.run(&["system", "df", "--format", "{{.Type}} {{.TotalCount}}"])?.expect_status(0)?.out;
    assert_eq!(kinds, "Images 2\nContainers 1\nLocal Volumes 0\n");
    let details = home.run(&["system", "df", "-v"])?.expect_status(0)?.out;
    assert!(details.contains("Containers space usage:") && details.contains("one"), "{details}");
    let pruned = home.run(&["container", "prune", "-f"])?.expect_status(0)?.out;
    assert!(pruned.starts_with("Deleted Containers:\n") && pruned.contains("Total reclaimed space: "), "{pruned}");
    // Nobody says yes.
    home.run(&["create", "--name", "two", IMAGE])?.expect_status(0)?;
    home.run(&["container", "prune"])?.expect_out("")?;
    home.run(&["container", "prune", "-f", "--filter", "label=none"])?.expect_out("Total reclaimed space: 0B\n")?;
    home.run(&["rm", "two"])?.expect_status(0)?;
    home.run(&["system", "prune", "-af"])?.expect_status(0)?;
    home.run(&["images", "-q"])?.expect_out("")?;
    Ok(())
}

fn wrong_formats(home: &Home) -> Result {
    load(home)?;
    background(home, "one", &["sleep", "1000"])?;
    for (words, status, part) in [
        (&["ps", "--format", "{{"][..], 1, "failed to parse template: template: :1: unclosed action"),
        (&["ps", "--format", "{{.Nope}}"], 1, "can't evaluate field Nope in type *formatter.ContainerContext"),
        (&["inspect", "-f", "{{.State.Nope}}", "one"], 1, "map has no entry for key \"Nope\""),
        (&["inspect", "-f", "{{nope}}", "one"], 64, "function \"nope\" not defined"),
        (&["images", "--format", "{{.Nope}}"], 1, "can't evaluate field Nope"),
    ] {
        let ended = home.run(words)?.expect_status(status)?;
        assert!(ended.err.lines().count() == 1 && ended.err.contains(part), "{words:?}: {}", ended.err);
    }
    home.run(&["rm", "-f", "one"])?.expect_status(0)?;
    Ok(())
}
