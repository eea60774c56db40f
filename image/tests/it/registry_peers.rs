//! The distribution project's registry takes what is pushed and gives it back, and skopeo agrees.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{
    BlobState, Credential, Credentials, Error, Event, Layout, Progress, Push, Reference, Registries, Registry,
    RegistrySettings, digest_of,
};
use libtest_mimic::Trial;
use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{Files, check_stored, platform};
use crate::peers::{find, run as execute, text};

type Test = (&'static str, &'static [&'static str], fn());

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [Test; 8] = [
        ("registry_peers::push_and_pull", &["docker-registry"], push_and_pull),
        ("registry_peers::skopeo_agrees", &["docker-registry", "skopeo"], skopeo_agrees),
        ("registry_peers::an_index_goes_and_comes_whole", &["docker-registry"], an_index_goes_and_comes_whole),
        (
            "registry_peers::blobs_are_mounted_and_sent_in_parts",
            &["docker-registry"],
            blobs_are_mounted_and_sent_in_parts,
        ),
        ("registry_peers::logins", &["docker-registry", "skopeo"], logins),
        ("registry_peers::certificates", &["docker-registry", "openssl"], certificates),
        ("registry_peers::tags_deletion_and_referrers", &["docker-registry"], tags_deletion_and_referrers),
        ("registry_peers::helpers", &["sh"], helpers),
    ];
    let trial = |(name, tools, test): Test| {
        let missing: Vec<&str> = tools.iter().copied().filter(|tool| find(tool).is_none()).collect();
        let kind = if missing.is_empty() { String::new() } else { format!("needs {}", missing.join(" and ")) };
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_kind(kind)
        .with_ignored_flag(!missing.is_empty())
    };
    tests.into_iter().map(trial).collect()
}

/// A registry of this test's own.
struct Distribution {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl Distribution {
    fn start(more: &str) -> Self {
        Self::in_folder(tempfile::tempdir().expect("a temporary folder"), more)
    }

    /// `more` is what else stands in the configuration; `DIR` in it is the folder.
    fn in_folder(folder: TempDir, more: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("an address").port();
        let dir = text(folder.path());
        let http = format!("http:\n  addr: 127.0.0.1:{port}\n");
        let more = more.replace("DIR", dir);
        let more = if more.contains("tls:") { http + &more } else { more + &http };
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {dir}/data\n  delete:\n    enabled: true\n{more}"
        );
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).expect("write");
        let child = Command::new("docker-registry")
            .args(["serve", text(&path)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the registry does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { folder, port, child }
    }

    fn reference(&self, name: &str) -> Reference {
        format!("127.0.0.1:{}/{name}", self.port).parse().expect("a reference")
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

fn settings() -> RegistrySettings {
    RegistrySettings { backoff: Duration::from_millis(5), attempts: 3, ..RegistrySettings::default() }
}

/// A store with an image, named `one`.
fn store(folder: &Path, files: &Files) -> Layout {
    let dir = folder.join("image");
    files.write(&dir);
    Layout::open_or_create(&dir).expect("is a layout")
}

fn one() -> (Files, Descriptor) {
    let mut files = Files::default();
    let made = files.image("one", "amd64");
    files.list(&[(Some("one"), made.manifest.clone())]);
    (files, made.manifest)
}

fn pull(settings: RegistrySettings, reference: &Reference) -> Result<(TempDir, Layout, Descriptor), Error> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = Layout::open_or_create(folder.path().join("store")).expect("is made");
    let lease = store.lease()?;
    let pulled = run(Registry::new(settings).pull(reference, &lease, &platform(), &Progress::none()))?;
    store.tag(&pulled.name, &pulled.root)?;
    check_stored(&store, &pulled.manifest);
    drop(lease);
    Ok((folder, store, pulled.root))
}

fn push(
    settings: RegistrySettings,
    from: &Layout,
    root: &Descriptor,
    to: &Reference,
    mounts: Vec<Reference>,
) -> Vec<BlobState> {
    let states = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = std::sync::Arc::clone(&states);
    let progress = Progress::to(move |event| {
        if let Event::Blob { state, .. } = event {
            told.lock().expect("not poisoned").push(state);
        }
    });
    let options = Push { mounts, ..Push::default() };
    let pushed = run(Registry::new(settings).push(from, root, to, &options, &progress));
    assert_eq!(pushed.unwrap_or_else(|error| panic!("{}", chain(&error))).digest(), root.digest());
    let states = states.lock().expect("not poisoned");
    states.iter().filter(|state| !matches!(state, BlobState::Waiting | BlobState::Moving { .. })).cloned().collect()
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

fn push_and_pull() {
    let registry = Distribution::start("");
    let (files, root) = one();
    let from = store(registry.folder.path(), &files);
    let to = registry.reference("team/one:1");
    let missing = pull(settings(), &to).map(|_| ()).expect_err("is not there yet");
    assert!(chain(&missing).contains("not found"), "{}", chain(&missing));
    assert_eq!(push(settings(), &from, &root, &to, vec![]), vec![BlobState::Done; 3]);
    assert_eq!(push(settings(), &from, &root, &to, vec![]), vec![BlobState::Exists; 3]);
    let (_folder, pulled, found) = pull(settings(), &to).expect("pulls");
    assert_eq!(found.digest(), root.digest());
    assert_eq!(pulled.names().expect("lists"), [to.to_string()]);
    // A store with a damaged layer sends nothing that the registry would take for whole.
    let blob = files.0.keys().find(|path| path.contains(&digest_of(&crate::fixture::layer("one one")).digest()[..12]));
    std::fs::write(from.path().join(blob.expect("is there")), vec![b'x'; crate::fixture::layer("one one").len()])
        .expect("write");
    let to = registry.reference("team/damaged:1");
    let error = run(Registry::new(settings()).push(&from, &root, &to, &Push::default(), &Progress::none()));
    let error = error.expect_err("is damaged");
    assert!(matches!(error, Error::DigestMismatch { .. }), "{}", chain(&error));
    assert!(pull(settings(), &to).is_err());
}

fn skopeo_agrees() {
    let registry = Distribution::start("");
    let (files, root) = one();
    let from = store(registry.folder.path(), &files);
    let skopeo = |arguments: &[&str]| execute("skopeo", arguments);
    // We push, skopeo pulls.
    let ours = registry.reference("ours:1");
    push(settings(), &from, &root, &ours, vec![]);
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{ours}")]);
    assert_eq!(digest_of(&raw), *root.digest());
    let copied = registry.folder.path().join("copied");
    let target = format!("oci:{}:x", text(&copied));
    let copy = ["copy", "--quiet", "--insecure-policy", "--preserve-digests"];
    skopeo(&[&copy[..], &["--src-tls-verify=false", &format!("docker://{ours}"), &target]].concat());
    let theirs = Layout::open(&copied).expect("opens").resolve("x").expect("looks").expect("is there");
    assert_eq!(theirs.digest(), root.digest());
    check_stored(&Layout::open(&copied).expect("opens"), &theirs);
    // skopeo pushes, we pull; and in Docker's own schema, too.
    for (format, name) in [("oci", "theirs:1"), ("v2s2", "theirs:2")] {
        let to = registry.reference(name);
        let from = format!("oci:{}:one", text(from.path()));
        skopeo(&[
            "copy",
            "--quiet",
            "--insecure-policy",
            "--format",
            format,
            "--dest-tls-verify=false",
            &from,
            &format!("docker://{to}"),
        ]);
        let (_folder, pulled, root) = pull(settings(), &to).expect("pulls");
        let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{to}")]);
        assert_eq!(digest_of(&raw), *root.digest(), "{format}");
        assert_eq!(pulled.resolve(&to.to_string()).expect("looks").expect("is there").digest(), root.digest());
    }
}

fn an_index_goes_and_comes_whole() {
    let registry = Distribution::start("");
    let mut files = Files::default();
    let (amd64, arm64) = (files.image("x", "amd64"), files.image("y", "arm64"));
    let entry = |root: &Descriptor, architecture: &str| {
        let mut entry = serde_json::to_value(root).expect("JSON");
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": MediaType::ImageIndex.as_ref(),
        "manifests": [entry(&arm64.manifest, "arm64"), entry(&amd64.manifest, "amd64")],
    });
    let root = files.document(&MediaType::ImageIndex, &index);
    files.list(&[(Some("one"), root.clone())]);
    let from = store(registry.folder.path(), &files);
    let to = registry.reference("index:1");
    push(settings(), &from, &root, &to, vec![]);
    let (_folder, pulled, found) = pull(settings(), &to).expect("pulls");
    assert_eq!(found.digest(), root.digest());
    // What was pulled has one platform: all of the index cannot be pushed, that platform can.
    let options = Push { platform: Some(platform()), ..Push::default() };
    let part = registry.reference("part:1");
    let whole = run(Registry::new(settings()).push(&pulled, &root, &part, &Push::default(), &Progress::none()));
    assert!(matches!(whole, Err(Error::BlobMissing { .. })), "{whole:?}");
    let sent = run(Registry::new(settings()).push(&pulled, &root, &part, &options, &Progress::none()));
    assert_eq!(sent.expect("is whole").digest(), amd64.manifest.digest());
    assert_eq!(pull(settings(), &part).expect("pulls").2.digest(), amd64.manifest.digest());
}

fn blobs_are_mounted_and_sent_in_parts() {
    let registry = Distribution::start("");
    let (files, root) = one();
    let from = store(registry.folder.path(), &files);
    let (first, second) = (registry.reference("first:1"), registry.reference("second:1"));
    let parts = RegistrySettings { chunk: Some(1000), ..settings() };
    push(parts, &from, &root, &first, vec![]);
    pull(settings(), &first).expect("parts are a whole");
    let states = push(settings(), &from, &root, &second, vec![registry.reference("none:1"), first]);
    assert_eq!(states, vec![BlobState::Mounted; 3]);
    pull(settings(), &second).expect("what was mounted is there");
    // A repository that does not have them is no obstacle.
    let states = push(settings(), &from, &root, &registry.reference("third:1"), vec![registry.reference("none:1")]);
    assert!(states.iter().all(|state| *state == BlobState::Done), "{states:?}");
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().expect("runs");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority `ca.crt`, a server's `server.crt`/`.key`, and a client's `client.cert`/`.key`.
fn make_certificates(folder: &Path) {
    openssl(folder, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 2");
    for (name, usage) in [("server", "serverAuth"), ("client", "clientAuth")] {
        std::fs::write(folder.join("ext"), format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n"))
            .expect("write");
        openssl(folder, &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2 -extfile ext"
            ),
        );
    }
}

fn logins() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // bcrypt of "secret", at its lowest cost.
    let hash = "$2y$04$DeKZ3ggEQEZ2tORA9xwDzOXHFXtPPXTXJWHz0fwt3hnqBrHIUUA7q";
    std::fs::write(folder.path().join("htpasswd"), format!("me:{hash}\n")).expect("write");
    let registry = Distribution::in_folder(folder, "auth:\n  htpasswd:\n    realm: here\n    path: DIR/htpasswd\n");
    let file = registry.folder.path().join("docker/config.json");
    let credentials = Credentials { files: vec![file.clone()] };
    let settings = || RegistrySettings { credentials: credentials.clone(), ..settings() };
    let (files, root) = one();
    let from = store(registry.folder.path(), &files);
    let to = registry.reference("private:1");
    let denied = pull(settings(), &to).map(|_| ()).expect_err("nobody is let in");
    assert!(chain(&denied).contains("access denied"), "{}", chain(&denied));
    let password = |password: &str| Credential::Password { username: "me".to_owned(), password: password.to_owned() };
    let wrong = run(Registry::new(settings()).login(&registry.host(), &password("wrong"))).expect_err("is wrong");
    assert!(chain(&wrong).contains("access denied") && !file.exists(), "{}", chain(&wrong));
    let kept = run(Registry::new(settings()).login(&registry.host(), &password("secret"))).expect("is right");
    assert_eq!(kept, text(&file));
    push(settings(), &from, &root, &to, vec![]);
    pull(settings(), &to).expect("pulls");
    // skopeo reads the same file.
    let raw = execute(
        "skopeo",
        &["inspect", "--raw", "--tls-verify=false", "--authfile", text(&file), &format!("docker://{to}")],
    );
    assert_eq!(digest_of(&raw), *root.digest());
    assert!(run(Registry::new(settings()).logout(&registry.host())).expect("forgets"));
    assert!(!run(Registry::new(settings()).logout(&registry.host())).expect("is forgotten"));
    assert!(pull(settings(), &to).is_err());
}

fn certificates() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    make_certificates(folder.path());
    let tls = "  tls:\n    certificate: DIR/server.crt\n    key: DIR/server.key\n    clientcas:\n      - DIR/ca.crt\n";
    let registry = Distribution::in_folder(folder, tls);
    let (files, root) = one();
    let from = store(registry.folder.path(), &files);
    let to = registry.reference("tls:1");
    let with = |certs: &Path| RegistrySettings {
        registries: Registries { certificates: vec![certs.to_owned()], ..Registries::default() },
        ..settings()
    };
    let certs = registry.folder.path().join("certs.d");
    let host = certs.join(registry.host());
    let none = pull(with(&certs), &to).map(|_| ()).expect_err("is signed by nobody");
    assert!(chain(&none).contains("no trusted TLS connection"), "{}", chain(&none));
    std::fs::create_dir_all(&host).expect("mkdir");
    std::fs::copy(registry.folder.path().join("ca.crt"), host.join("ca.crt")).expect("copy");
    let stranger = pull(with(&certs), &to).map(|_| ()).expect_err("shows no certificate");
    assert!(chain(&stranger).to_lowercase().contains("certificate"), "{}", chain(&stranger));
    std::fs::copy(registry.folder.path().join("client.crt"), host.join("client.cert")).expect("copy");
    let alone = pull(with(&certs), &to).map(|_| ()).expect_err("has no key");
    assert!(chain(&alone).contains("without a .key"), "{}", chain(&alone));
    std::fs::copy(registry.folder.path().join("client.key"), host.join("client.key")).expect("copy");
    push(with(&certs), &from, &root, &to, vec![]);
    assert_eq!(pull(with(&certs), &to).expect("pulls").2.digest(), root.digest());
    // The same by containerd's file.
    let hosts = registry.folder.path().join("hosts");
    std::fs::create_dir_all(hosts.join(registry.host())).expect("mkdir");
    let path = |name: &str| text(&registry.folder.path().join(name)).to_owned();
    let toml = format!(
        "[host.\"https://{}\"]\nca = {:?}\nclient = [[{:?}, {:?}]]\n",
        registry.host(),
        path("ca.crt"),
        path("client.crt"),
        path("client.key")
    );
    std::fs::write(hosts.join(registry.host()).join("hosts.toml"), toml).expect("write");
    let registries = Registries { hosts: vec![hosts], ..Registries::default() };
    let settings = RegistrySettings { registries, ..settings() };
    assert_eq!(pull(settings, &to).expect("pulls").2.digest(), root.digest());
}

fn tags_deletion_and_referrers() {
    let registry = Distribution::start("");
    let (mut files, root) = one();
    let empty = files.blob("application/vnd.oci.empty.v1+json", b"{}");
    let artifact = |files: &mut Files, kind: &str| {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::ImageManifest.as_ref(), "artifactType": kind,
            "config": empty, "layers": [empty], "subject": root, "annotations": { "kind": kind },
        });
        files.document(&MediaType::ImageManifest, &manifest)
    };
    let (signature, sbom) = (artifact(&mut files, "example/signature"), artifact(&mut files, "example/sbom"));
    let from = store(registry.folder.path(), &files);
    let to = |tag: &str| registry.reference(&format!("things:{tag}"));
    for number in 0..5 {
        push(settings(), &from, &root, &to(&format!("v{number}")), vec![]);
    }
    let client = Registry::new(settings());
    let mut tags = run(client.tags(&to("v1"))).expect("lists");
    tags.sort();
    assert_eq!(tags, ["v0", "v1", "v2", "v3", "v4"]);
    let none = run(client.referrers(&to("v1"), root.digest(), None)).expect("lists");
    assert!(none.is_empty());
    push(settings(), &from, &signature, &to("signature"), vec![]);
    push(settings(), &from, &sbom, &to("sbom"), vec![]);
    push(settings(), &from, &sbom, &to("sbom"), vec![]);
    let found = run(client.referrers(&to("v1"), root.digest(), None)).expect("lists");
    assert_eq!(found.iter().map(Descriptor::digest).collect::<Vec<_>>(), [signature.digest(), sbom.digest()]);
    let found = run(client.referrers(&to("v1"), root.digest(), Some("example/sbom"))).expect("lists");
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0].annotations().as_ref().and_then(|all| all.get("kind")).map(String::as_str),
        Some("example/sbom")
    );
    run(client.delete(&to("v0"))).expect("deletes");
    assert!(pull(settings(), &to("v0")).is_err());
    assert!(run(client.delete(&to("v0"))).is_err());
}

/// A helper that keeps one secret in a file, one that hangs, and one that talks for ever.
fn helpers() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = |name: &str, text: &str| {
        let path = folder.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{text}")).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    };
    let keep = "dir=$(dirname \"$0\")\ncase $1 in\n\
        store) cat > \"$dir/kept\";;\n\
        get) read server; [ -e \"$dir/kept\" ] && cat \"$dir/kept\" || { echo 'credentials not found in native keychain'; exit 1; };;\n\
        erase) rm \"$dir/kept\";;\nesac\n";
    script("test-keep", keep);
    script(
        "test-loud",
        "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done\n",
    );
    script("test-sour", "echo 'the keychain is locked'; exit 1\n");
    let output = crate::child::command("credentials", &folder.path().join("store"))
        .env("PATH", std::env::join_paths(std::iter::once(folder.path().to_owned()).chain(paths())).expect("joins"))
        .stderr(Stdio::inherit())
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn paths() -> Vec<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect()
}

/// What the child of [`helpers`] does, which has a `PATH` of its own.
pub(crate) fn use_helpers(folder: &Path) {
    let path = folder.join("config.json");
    let with = |document: serde_json::Value| {
        std::fs::write(&path, document.to_string()).expect("write");
        Credentials { files: vec![path.clone()] }
    };
    let credential = Credential::Password { username: "me".to_owned(), password: "secret".to_owned() };
    let files = with(json!({ "credHelpers": { "a.example": "test-keep" } }));
    assert_eq!(files.find("a.example", "x").expect("has none"), None);
    assert_eq!(files.store("a.example", &credential).expect("keeps"), "the helper docker-credential-test-keep");
    assert_eq!(files.find("a.example", "x").expect("has it"), Some(credential.clone()));
    assert_eq!(files.find("b.example", "x").expect("is not asked"), None);
    let mut kept = String::new();
    std::fs::File::open(folder.join("kept")).expect("opens").read_to_string(&mut kept).expect("reads");
    let kept: HashMap<String, String> = serde_json::from_str(&kept).expect("JSON");
    assert_eq!(kept["ServerURL"], "a.example");
    assert!(!std::fs::read_to_string(&path).expect("reads").contains("secret"));
    assert!(files.erase("a.example").expect("forgets"));
    assert_eq!(files.find("a.example", "x").expect("has none"), None);
    for (store, reason) in [
        ("test-loud", "its answer has no end"),
        ("test-sour", "the keychain is locked"),
        ("test-none", "it is not installed"),
        ("../test-keep", "characters that no helper's has"),
    ] {
        let error = with(json!({ "credsStore": store })).find("a.example", "x").expect_err(store).to_string();
        assert!(error.contains(reason), "{store}: {error}");
    }
}
