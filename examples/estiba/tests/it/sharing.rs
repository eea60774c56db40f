//! What a container shares with the host or with another one: namespaces, devices, volumes, names.

use std::fs;

use libtest_mimic::Trial;

use crate::home::{Home, Result};
use crate::image::{Layout, busybox};
use crate::need::{Need, text, trial};
use crate::refusals::refused;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("namespaces_of_the_host", &[Need::Busybox], of_the_host),
        trial("namespaces_of_another_container", &[Need::Busybox], of_another),
        trial("names_that_a_container_knows", &[Need::Busybox], names),
        trial("devices_of_the_host", &[Need::Busybox], devices),
        trial("volumes_of_another_container", &[Need::Busybox], volumes),
        trial("bounds_that_are_taken_away", &[Need::Busybox], bounds),
        trial("a_commit_has_nothing_that_was_made_to_mount_on", &[Need::Busybox], commit),
        trial("options_that_are_refused_by_name", &[], unsupported),
    ]
}

fn with_image(home: &Home) -> Result<String> {
    let image = Layout::write(&home.folder().join("busybox"), &[busybox()?])?.reference();
    home.run(&["run", "--rm", &image, "true"])?.expect_status(0)?;
    Ok(image)
}

fn own(kind: &str) -> Result<String> {
    Ok(text(&fs::read_link(format!("/proc/self/ns/{kind}"))?))
}

fn of_the_host(home: &Home) -> Result {
    let image = with_image(home)?;
    let inside = |options: &[&str], command: &str| -> Result<String> {
        let words = [&["run", "--rm"], options, &[&image, "sh", "-c", command]].concat();
        Ok(home.run(&words)?.expect_status(0)?.out)
    };
    for (option, kind) in [("--pid", "pid"), ("--uts", "uts"), ("--ipc", "ipc"), ("--cgroupns", "cgroup")] {
        let look = format!("ls -l /proc/self/ns/{kind}");
        let shared = inside(&[option, "host"], &look)?;
        assert!(shared.contains(&own(kind)?), "{option} host: {shared}");
        assert!(!inside(&[], &look)?.contains(&own(kind)?), "{kind} is the host's without a word");
    }
    assert_eq!(inside(&["--uts", "host"], "hostname")?, fs::read_to_string("/proc/sys/kernel/hostname")?);
    assert_eq!(inside(&["--ipc", "none"], "test -e /dev/shm/.; echo $?")?, "1\n");
    assert_eq!(inside(&["--ipc", "private"], "test -d /dev/shm/.; echo $?")?, "0\n");
    let mounts = inside(&["--ipc", "host"], "cat /proc/mounts")?;
    assert!(!mounts.contains("shm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=65536k"), "{mounts}");
    assert_eq!(inside(&["--uts", "", "--pid", "", "--userns", "host"], "echo $$")?, "1\n");
    // Nobody but the first process is told to end: the others must not stay, though no namespace ends with it.
    inside(&["--pid", "host"], "sleep 1000 & sleep 1000 & exit 0")?;
    home.run(&["run", "-d", "--name", "host", "--pid", "host", &image, "sh", "-c", "sleep 1000 & sleep 1000"])?
        .expect_status(0)?;
    home.run(&["exec", "host", "test", "-d", &format!("/proc/{}", std::process::id())])?.expect_status(0)?;
    let said = home.run(&["inspect", "-f", "{{.HostConfig.PidMode}}", "host"])?;
    said.expect_out("host\n")?;
    home.run(&["stop", "-t", "1", "host"])?.expect_status(0)?;
    home.run(&["rm", "host"])?.expect_status(0)?;
    Ok(())
}

fn of_another(home: &Home) -> Result {
    let image = with_image(home)?;
    home.run(&["run", "-d", "--name", "first", "-h", "quay", &image, "sleep", "1000"])?.expect_status(0)?;
    let id = home.run(&["inspect", "-f", "{{.Id}}", "first"])?.expect_status(0)?.out;
    let said = |arguments: &[&str]| -> Result<String> { Ok(home.run(arguments)?.expect_status(0)?.out) };
    for kind in ["net", "pid"] {
        let option = if kind == "net" { "--network" } else { "--pid" };
        let look = format!("ls -l /proc/self/ns/{kind}");
        let namespace = |text: &str| text.split_once(&format!("{kind}:[")).map(|(_, number)| number.to_owned());
        let first = namespace(&said(&["exec", "first", "sh", "-c", &look])?);
        let shared = said(&["run", "--rm", option, "container:first", &image, "sh", "-c", &look])?;
        assert!(first.is_some() && namespace(&shared) == first, "{kind}: {shared}");
        let by_id = format!("container:{}", id.trim().get(..20).unwrap_or_default());
        let again = said(&["run", "--rm", option, &by_id, &image, "sh", "-c", &look])?;
        assert_eq!(namespace(&again), first);
    }
    // Its processes are seen, and its names go with its network.
    let seen = said(&["run", "--rm", "--pid", "container:first", &image, "cat", "/proc/1/cmdline"])?;
    assert_eq!(seen.split('\0').collect::<Vec<_>>(), ["sleep", "1000", ""]);
    let second = ["run", "-d", "--name", "second", "--network", "container:first", &image, "sleep", "1000"];
    said(&second)?;
    let names = said(&["exec", "second", "sh", "-c", "hostname; cat /etc/hostname; echo 1.2.3.4 new >> /etc/hosts"])?;
    assert_eq!(names, "quay\nquay\n");
    assert!(said(&["exec", "first", "cat", "/etc/hosts"])?.contains("1.2.3.4 new"));
    let mode = said(&["inspect", "-f", "{{.HostConfig.NetworkMode}} {{len .NetworkSettings.Networks}}", "second"])?;
    assert_eq!(mode, format!("container:{} 0\n", id.trim()));
    // One that shares with one that shares.
    let third = ["run", "--rm", "--network", "container:second", &image, "cat", "/etc/hostname"];
    assert_eq!(said(&third)?, "quay\n");
    let with = |options: &[&str]| home.run(&[&["run", "--rm"], options, &[&image, "true"]].concat());
    for options in [
        &["--network", "container:first", "-h", "x"][..],
        &["--network", "container:first", "--dns", "1.1.1.1"],
        &["--network", "container:first", "--add-host", "a:1.1.1.1"],
    ] {
        refused(with(options)?, 125, &["the container whose network"])
            .map_err(|error| format!("{options:?}: {error}"))?;
    }
    refused(with(&["--uts", "host", "-h", "x"])?, 125, &["host name", "--uts host"])?;
    refused(with(&["--network", "container:nobody"])?, 125, &["nobody"])?;
    refused(with(&["--uts", "container:first"])?, 125, &["host"])?;
    refused(with(&["--ipc", "container:first"])?, 125, &["shared memory"])?;
    // A container that does not run has nothing to share, also not with one that was made before.
    home.run(&["kill", "first"])?.expect_status(0)?;
    assert!(with(&["--pid", "container:first"])?.err.contains("does not run"));
    home.run(&["kill", "second"])?.expect_status(0)?;
    let ended = home.run(&["start", "second"])?.expect_status(1)?;
    assert!(ended.err.contains("does not run"), "{}", ended.err);
    home.run(&["start", "first"])?.expect_status(0)?;
    home.run(&["start", "second"])?.expect_status(0)?;
    home.run(&["rm", "-f", "first", "second"])?.expect_status(0)?;
    Ok(())
}

fn names(home: &Home) -> Result {
    let image = with_image(home)?;
    let inside = |options: &[&str], command: &str| -> Result<String> {
        let words = [&["run", "--rm"], options, &[&image, "sh", "-c", command]].concat();
        Ok(home.run(&words)?.expect_status(0)?.out)
    };
    let options =
        ["--dns", "1.2.3.4", "--dns", "::1", "--dns-search", "x.y", "--dns-option", "ndots:3", "--domainname", "dom"];
    let found = inside(&options, "cat /etc/resolv.conf /proc/sys/kernel/domainname")?;
    assert_eq!(found, "nameserver 1.2.3.4\nnameserver ::1\nsearch x.y\noptions ndots:3\ndom\n");
    let hosts = inside(&["--add-host", "db:10.0.0.2", "--add-host", "six=[::2]"], "cat /etc/hosts")?;
    assert!(hosts.contains("10.0.0.2\tdb\n::2\tsix\n") && hosts.contains("localhost"), "{hosts}");
    let host = inside(
        &["--network", "host", "--dns", "1.2.3.4", "--add-host", "db:10.0.0.2"],
        "cat /etc/resolv.conf /etc/hosts",
    )?;
    assert!(host.contains("nameserver 1.2.3.4\n") && host.contains("10.0.0.2\tdb\n"), "{host}");
    for (options, word) in [
        (["--add-host", "db"], "db:10.0.0.2"),
        (["--add-host", "db:x"], "IP address"),
        (["--dns", "name"], "IP address"),
        (["--domainname", &"x".repeat(65)], "domain name"),
    ] {
        refused(home.run(&[&["run", "--rm"], &options[..], &[&image, "true"]].concat())?, 125, &[word])?;
    }
    Ok(())
}

fn devices(home: &Home) -> Result {
    let image = with_image(home)?;
    let run = |options: &[&str], command: &str| {
        home.run(&[&["run", "--rm"], options, &[&image, "sh", "-c", command]].concat())
    };
    // The null device under another name may be read and written.
    let null = "echo x > /dev/other && cat /dev/other && ls -l /dev/other";
    let ended = run(&["--device", "/dev/null:/dev/other"], null)?.expect_status(0)?;
    assert!(ended.out.starts_with('c') && ended.out.contains("1,   3"), "{}", ended.out);
    // A device that no container has by itself, if this machine has one.
    let candidates = ["/dev/fuse", "/dev/loop-control", "/dev/vda", "/dev/sda"];
    if let Some(device) = candidates.into_iter().find(|device| fs::File::open(device).is_ok()) {
        let read = format!("dd if={device} of=/dev/null count=0 2>/dev/null");
        run(&["--device", device], &read)?.expect_status(0)?;
        run(&["--device", &format!("{device}:w")], &read)?.expect_status(1)?;
        run(&[], &read)?.expect_status(1)?;
    }
    for (options, words) in [
        (["--device", "/no/such/device"], &["/no/such/device", "no such file"][..]),
        (["--device", "/etc/passwd"], &["/etc/passwd", "no device"]),
        (["--device", "/dev/null:/dev/x:q"], &["q", "r, w and m"]),
        (["--device-cgroup-rule", "c 1 r"], &["c 1 r", "rwm"]),
        (["--device-read-bps", "/dev/null:1m"], &["/dev/null", "block device"]),
        (["--device-read-bps", "/dev/null"], &["/dev/null", "number"]),
    ] {
        refused(run(&options, "true")?, 125, words).map_err(|error| format!("{options:?}: {error}"))?;
    }
    run(&["--device-cgroup-rule", "c 42:* rmw", "--annotation", "a=b"], "true")?.expect_status(0)?;
    Ok(())
}

fn volumes(home: &Home) -> Result {
    let image = with_image(home)?;
    let shared = home.folder().join("shared");
    fs::create_dir(&shared)?;
    let bind = format!("{}:/bind", text(&shared));
    home.run(&["create", "--name", "giver", "-v", &bind, "-v", "kept:/kept", "-v", "/own", &image, "true"])?
        .expect_status(0)?;
    let write = "for place in bind kept own; do echo $place > /$place/file || exit 1; done";
    home.run(&["run", "--rm", "--volumes-from", "giver", &image, "sh", "-c", write])?.expect_status(0)?;
    assert_eq!(fs::read_to_string(shared.join("file"))?, "bind\n");
    let read = ["run", "--rm", "--volumes-from", "giver:ro", &image, "sh", "-c", "cat /bind/file /kept/file /own/file"];
    home.run(&read)?.expect_out("bind\nkept\nown\n")?;
    let refusal = ["run", "--rm", "--volumes-from", "giver:ro", &image, "touch", "/kept/other"];
    assert!(home.run(&refusal)?.expect_status(1)?.err.contains("Read-only"));
    // What is said of a place oneself comes first.
    let own = ["run", "--rm", "--volumes-from", "giver", "--tmpfs", "/kept", &image, "ls", "/kept"];
    home.run(&own)?.expect_out("")?;
    refused(home.run(&["run", "--rm", "--volumes-from", "nobody", &image, "true"])?, 125, &["nobody"])?;
    refused(home.run(&["run", "--rm", "--volumes-from", "giver:x", &image, "true"])?, 125, &["ro or rw"])?;
    home.run(&["rm", "-v", "giver"])?.expect_status(0)?;
    home.run(&["volume", "rm", "kept"])?.expect_status(0)?;
    Ok(())
}

fn bounds(home: &Home) -> Result {
    let image = with_image(home)?;
    let status = |options: &[&str], command: &str| -> Result<String> {
        Ok(home.run(&[&["run", "--rm"], options, &[&image, "sh", "-c", command]].concat())?.expect_status(0)?.out)
    };
    let filter = "while read name value; do [ $name = Seccomp: ] && echo $value; done < /proc/self/status; true";
    assert_eq!(status(&[], filter)?, "2\n");
    assert_eq!(status(&["--security-opt", "seccomp=unconfined"], filter)?, "0\n");
    let hidden = "cat /proc/mounts";
    assert!(status(&[], hidden)?.contains(" /proc/sys proc ro"));
    let shown = status(&["--security-opt", "systempaths=unconfined", "--security-opt", "label=disable"], hidden)?;
    assert!(!shown.contains(" /proc/sys proc ro"), "{shown}");
    let profile = home.run(&["run", "--rm", "--security-opt", "seccomp=/a.json", &image, "true"])?;
    refused(profile, 125, &["seccomp=/a.json", "seccomp=unconfined"])?;
    let swap = ["inspect", "-f", "{{.HostConfig.MemorySwappiness}} {{.HostConfig.OomKillDisable}}", "swap"];
    let made = ["create", "--name", "swap", "--memory-swappiness", "10", "--oom-kill-disable", &image, "true"];
    home.run(&made)?.expect_status(0)?;
    home.run(&swap)?.expect_out("10 true\n")?;
    home.run(&["rm", "swap"])?.expect_status(0)?;
    refused(home.run(&["run", "--rm", "--memory-swappiness", "101", &image, "true"])?, 125, &["101"])
}

/// The layer of a commit is what the container has changed, and no more.
fn commit(home: &Home) -> Result {
    let image = with_image(home)?;
    // The image has no /dev, /proc and /sys, and no /etc/hosts.
    home.run(&["run", "--name", "one", &image, "sh", "-c", "echo x > /made"])?.expect_status(0)?;
    home.run(&["diff", "one"])?.expect_out("A /made\n")?;
    home.run(&["commit", "one", "test/committed:1"])?.expect_status(0)?;
    home.run(&["run", "--name", "two", "-v", "data:/data", "test/committed:1", "sh", "-c", "echo y > /etc/made"])?
        .expect_status(0)?;
    home.run(&["diff", "two"])?.expect_out("A /data\nC /etc\nA /etc/made\n")?;
    let folder = home.folder().join("saved");
    fs::create_dir(&folder)?;
    let archive = text(&folder.join("image.tar"));
    home.run(&["save", "-o", &archive, "test/committed:1"])?.expect_status(0)?;
    let mut names = Vec::new();
    let mut tar = tar::Archive::new(fs::File::open(&archive)?);
    for entry in tar.entries()? {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry?, &mut bytes)?;
        // A layer is a tar itself, plain or compressed.
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut plain = Vec::new();
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut plain)?;
            bytes = plain;
        }
        if bytes.get(257..262) != Some(b"ustar") {
            continue;
        }
        for entry in tar::Archive::new(bytes.as_slice()).entries()? {
            names.push(text(&entry?.path()?));
        }
    }
    assert!(names.iter().any(|name| name == "made"), "{names:?}");
    for place in ["dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        let is_it = |name: &String| name.trim_start_matches("./").trim_end_matches('/') == place;
        assert!(!names.iter().any(is_it), "{place} is in {names:?}");
    }
    home.run(&["rm", "one", "two"])?.expect_status(0)?;
    home.run(&["volume", "rm", "data"])?.expect_status(0)?;
    home.run(&["rmi", "test/committed:1"])?.expect_status(0)?;
    Ok(())
}

fn unsupported(home: &Home) -> Result {
    let before = home.look();
    for (options, words) in [
        (&["--gpus", "all"][..], &["--gpus"][..]),
        (&["--init"], &["--init", "tini"]),
        (&["--link", "a"], &["--link", "--network"]),
        (&["--link-local-ip", "169.254.0.1"], &["--link-local-ip"]),
        (&["--isolation", "hyperv"], &["--isolation", "Windows"]),
        (&["--kernel-memory", "1g"], &["--kernel-memory", "--memory"]),
        (&["--cpu-rt-runtime", "5"], &["--cpu-rt-runtime", "--cpus"]),
        (&["--storage-opt", "size=1g"], &["--storage-opt"]),
        (&["--volume-driver", "nfs"], &["--volume-driver", "local"]),
        (&["--use-api-socket"], &["--use-api-socket"]),
        (&["--userns", "remap"], &["--userns", "host"]),
        (&["--cgroupns", "x"], &["--cgroupns", "private"]),
        (&["--pid", "x"], &["--pid", "container:NAME"]),
    ] {
        let arguments = [&["run", "--rm"], options, &[crate::home::HELLO, "exit", "0"]].concat();
        refused(home.run(&arguments)?, 125, words)
            .and_then(|()| home.settled_as(&before, |_| true))
            .map_err(|error| format!("{options:?}: {error}"))?;
    }
    let fine = ["run", "--rm", "--disable-content-trust", "--volume-driver", "local", "--isolation", "default"];
    home.run(&[&fine[..], &[crate::home::HELLO, "exit", "0"]].concat())?.expect_status(0)?;
    Ok(())
}
