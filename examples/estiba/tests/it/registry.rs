//! Images from a registry and to it: the real one, on loopback.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use libtest_mimic::Trial;

use crate::home::{Home, Result, until};
use crate::image::{Layer, Layout, OS_RELEASE, busybox};
use crate::need::{Need, find, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let needs = [Need::Busybox, Need::Program("docker-registry")];
    vec![
        trial("images_come_from_a_registry_and_go_to_it", &needs, pull_and_push),
        trial("pulls_that_are_killed_leave_nothing_half", &needs, killed_pulls),
        trial("a_login_is_kept_and_forgotten", &needs, login),
    ]
}

/// A registry in a folder of the home, ended when it is dropped.
#[derive(Debug)]
struct Registry {
    process: Child,
    host: String,
}

impl Registry {
    /// `more` is added to its configuration.
    fn start(home: &Home, more: &str) -> Result<Self> {
        let folder = home.folder().join("registry");
        fs::create_dir(&folder)?;
        // Free a moment ago; another program would have to be quick.
        let host = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let configuration = folder.join("config.yml");
        let storage = folder.join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{host}\"}}\n{more}",
            storage.display()
        );
        fs::write(&configuration, text)?;
        let program = find("docker-registry").ok_or("no docker-registry")?;
        let process = Command::new(program)
            .arg("serve")
            .arg(configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self { process, host };
        until("the registry listens", || TcpStream::connect(&registry.host).is_ok())?;
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The id of the image that is not the embedded one.
fn id_of_busybox(home: &Home) -> Result<String> {
    let listed = home.run(&["images", "--format", "{{.ID}} {{.Repository}}"])?.expect_status(0)?.out;
    let line = listed.lines().find(|line| !line.ends_with(" embedded")).ok_or("no other image is listed")?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

fn pull_and_push(home: &Home) -> Result {
    let registry = Registry::start(home, "")?;
    let layout = Layout::write(&home.folder().join("layout"), &[busybox()?])?;
    home.run(&["run", "--rm", &layout.reference(), "true"])?.expect_status(0)?;
    let (first, second) = (format!("{}/team/app:1", registry.host), format!("{}/team/other:2", registry.host));
    let id = id_of_busybox(home)?;
    home.run(&["tag", &id, &first])?.expect_status(0)?;
    let pushed = home.run(&["push", &first])?.expect_status(0)?.out;
    let digest =
        pushed.split_whitespace().find(|word| word.starts_with("sha256:")).ok_or("no digest is told")?.to_owned();
    home.run(&["rmi", "-f", &id])?.expect_status(0)?;
    home.run(&["run", "--rm", "--pull", "never", &first, "true"])?.expect_status(125)?;

    // A run fetches what is not there, and says so where it does not meet the output.
    let ran = home.run(&["run", "--rm", &first, "cat", "/etc/os-release"])?.expect_out(OS_RELEASE)?;
    assert!(ran.err.contains("Unable to find image") && ran.err.contains("Pull complete"), "{}", ran.err);
    let again = home.run(&["pull", &first])?.expect_status(0)?.out;
    assert!(again.contains("Image is up to date") && again.contains(&digest), "{again}");
    home.run(&["pull", "-q", &format!("{}/team/app@{digest}", registry.host)])?.expect_status(0)?;
    home.run(&["tag", &first, &second])?.expect_status(0)?;
    home.run(&["push", "-q", &second])?.expect_out(&format!("{second}\n"))?;

    for (name, part) in
        [(format!("{}/team/nothing", registry.host), "not found"), ("127.0.0.1:1/nobody".to_owned(), "cannot connect")]
    {
        let refused = home.run(&["pull", &name])?.expect_status(1)?;
        assert!(refused.err.contains(part) && refused.err.contains(&name), "{}", refused.err);
        assert_eq!(refused.err.lines().count(), 1, "{}", refused.err);
        home.run(&["run", "--rm", &name, "true"])?.expect_status(125)?;
    }
    drop(registry);
    Ok(fs::remove_dir_all(home.folder().join("registry"))?)
}

/// Two pulls of one image at once are killed at random moments. The next one succeeds, and what is there then is whole: blobs
/// by an independent sha256, the tree by what it says.
fn killed_pulls(home: &Home) -> Result {
    let registry = Registry::start(home, "")?;
    let mut state = 99_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        std::iter::repeat_with(&mut next).take(length).collect()
    };
    let mut layers = vec![busybox()?];
    for at in 0..4 {
        let mut layer = Layer::new().folder("data/")?.file("data/.wh.last", 0o644, b"")?;
        for file in 0..100 {
            layer = layer.file(&format!("data/{at}-{file}"), 0o644, &noise(20_000))?;
        }
        layers.push(layer.file("data/kept", 0o644, format!("{at}").as_bytes())?.tar()?);
    }
    let layout = Layout::write(&home.folder().join("layout"), &layers)?;
    home.run(&["run", "--rm", &layout.reference(), "true"])?.expect_status(0)?;
    let (id, name) = (id_of_busybox(home)?, format!("{}/big:1", registry.host));
    home.run(&["tag", &id, &name])?.expect_status(0)?;
    home.run(&["push", "-q", &name])?.expect_status(0)?;
    home.run(&["rmi", "-f", &id])?.expect_status(0)?;
    let begun = std::time::Instant::now();
    home.run(&["pull", "-q", &name])?.expect_status(0)?;
    let whole = begun.elapsed();
    let rounds = if crate::need::campaign() { 100 } else { 8 };
    for round in 0..rounds {
        home.run(&["rmi", "-f", &name])?.expect_status(0)?;
        let mut pulls =
            (0..2).map(|_| home.command(&["pull", "-q", &name]).spawn()).collect::<std::io::Result<Vec<_>>>()?;
        // From before the first byte to after the last.
        std::thread::sleep(whole * (1 + round * 7 % rounds) / rounds);
        for pull in &mut pulls {
            pull.kill()?;
            pull.wait()?;
        }
        blobs_are_whole(home)?;
        home.run(&["pull", "-q", &name])?.expect_status(0)?;
        blobs_are_whole(home)?;
        let said = "test -e /data/last || cat /data/kept; ls /data | wc -l";
        home.run(&["run", "--rm", "--pull", "never", &name, "sh", "-c", said])?.expect_out("3401\n")?;
        for folder in ["leases/overlay", "snapshots/overlay/active", "snapshots/overlay/tmp", "content/ingest"] {
            let left = fs::read_dir(home.root().join(folder))?.count();
            assert_eq!(left, 0, "round {round}: {folder}");
        }
    }
    drop(registry);
    Ok(fs::remove_dir_all(home.folder().join("registry"))?)
}

/// Every blob that is visible is what its name says.
fn blobs_are_whole(home: &Home) -> Result {
    for entry in fs::read_dir(home.root().join("content/blobs/sha256"))? {
        let entry = entry?;
        let digest = crate::image::digest(&fs::read(entry.path())?);
        assert_eq!(format!("sha256:{}", entry.file_name().to_string_lossy()), digest);
    }
    Ok(())
}

fn login(home: &Home) -> Result {
    // The user me with the password secret (bcrypt).
    const ME: &str = "me:$2b$05$EzwrE8fLDxDr3gP31O2X4O7rmKZg7.MjTPxuQMQi3V.lzJq/DYiky\n";
    let users = home.folder().join("htpasswd");
    fs::write(&users, ME)?;
    let registry = Registry::start(home, &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", users.display()))?;
    let layout = Layout::write(&home.folder().join("layout"), &[busybox()?])?;
    home.run(&["run", "--rm", &layout.reference(), "true"])?.expect_status(0)?;
    let id = id_of_busybox(home)?;
    let name = format!("{}/app:1", registry.host);
    home.run(&["tag", &id, &name])?.expect_status(0)?;
    let kept = home.folder().join("docker");
    let me = |words: &[&str]| {
        let mut command = home.command(words);
        command.env("DOCKER_CONFIG", &kept).env_remove("REGISTRY_AUTH_FILE");
        command
    };
    crate::home::finish(&mut me(&["push", &name]))?.expect_status(1)?;
    let wrong =
        crate::home::finish(&mut me(&["login", "-u", "me", "-p", "guess", &registry.host]))?.expect_status(1)?;
    assert!(!wrong.err.contains("guess"), "a password is no part of a message: {}", wrong.err);
    crate::home::finish(&mut me(&["login", "-u", "me", "-p", "secret", &registry.host]))?
        .expect_out("Login Succeeded\n")?;
    crate::home::finish(&mut me(&["push", "-q", &name]))?.expect_status(0)?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(kept.join("config.json"))?.permissions());
    assert_eq!(mode & 0o777, 0o600);
    crate::home::finish(&mut me(&["logout", &registry.host]))?.expect_status(0)?;
    crate::home::finish(&mut me(&["push", "-q", &name]))?.expect_status(1)?;
    drop(registry);
    fs::remove_dir_all(&kept)?;
    fs::remove_file(users)?;
    Ok(fs::remove_dir_all(home.folder().join("registry"))?)
}
