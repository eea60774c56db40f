//! Registries that lie, stall, break off and send elsewhere.

use std::collections::HashMap;
use std::error::Error as _;
use std::io::{self, Read as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use estiba_image::oci_spec::image::{Descriptor, Digest, MediaType};
use estiba_image::{
    BlobState, ContentStore, Credential, Error, Event, Follower, Image, Layout, Mirror, Platform, Progress, Proxies,
    Pulled, Registries, Registry, RegistryProblem, RegistrySettings, Rule, Taps, digest_of,
};
use libtest_mimic::Trial;
use serde_json::json;

use crate::fixture::{Files, Made, check_stored, gzip, platform, tree};
use crate::server::{Asked, Reply, Server, Then, honest};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!("registry_faults":
        a_pull_is_verified_named_by_its_root_and_not_repeated,
        an_index_leads_to_its_platform,
        a_blob_with_other_bytes_is_seen_by_nobody,
        sizes_that_are_lies_are_refused,
        a_connection_that_breaks_is_taken_up,
        a_registry_without_ranges_is_asked_again,
        another_part_than_was_asked_for_is_refused,
        who_stalls_or_drips_is_left,
        what_has_no_end_is_not_read_to_it,
        cve_2020_15157_credentials_stay_with_the_registry,
        cve_2020_15157_foreign_layers_are_never_fetched,
        cve_2026_12566_token_servers_of_others_get_no_password,
        cve_2021_41190_documents_are_one_thing,
        cve_2024_3727_digests_are_parsed_before_use,
        cve_2020_1702_documents_have_a_limit,
        a_digest_in_the_name_holds,
        redirects_have_an_end_and_stay_sane,
        errors_are_tried_again_or_told,
        rate_limits_are_honoured,
        who_asks_for_ever_is_denied,
        tokens_are_for_one_repository,
        a_mirror_that_lies_is_passed_over,
        layers_are_handed_out_while_they_come,
        a_pull_that_is_given_up_leaves_nothing,
        two_that_are_killed_leave_nothing_half,
        a_plain_registry_elsewhere_is_not_spoken_to,
        proxies_are_gone_through,
    )
}

pub(crate) fn settings() -> RegistrySettings {
    RegistrySettings {
        attempts: 3,
        backoff: Duration::from_millis(2),
        idle_timeout: Duration::from_millis(400),
        document_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(5),
        longest_wait: Duration::from_secs(2),
        ..RegistrySettings::default()
    }
}

pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

pub(crate) struct Place {
    _folder: tempfile::TempDir,
    pub(crate) store: Layout,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Layout::open_or_create(folder.path().join("store")).expect("is made");
        Self { _folder: folder, store }
    }

    pub(crate) fn pull_as(&self, settings: RegistrySettings, name: &str) -> Result<Pulled, Error> {
        let lease = self.store.lease().expect("a lease");
        let registry = Registry::new(settings);
        let pulled = run(registry.pull(&name.parse()?, &lease, &platform(), &Progress::none()))?;
        self.store.tag(&pulled.name, &pulled.root)?;
        Ok(pulled)
    }

    pub(crate) fn pull(&self, server: &Server) -> Result<Pulled, Error> {
        self.pull_as(settings(), &format!("{}/a:1", server.host()))
    }

    /// What the failed pull of this server's image said; nothing of it is left, but what was whole.
    fn fails(&self, server: &Server) -> String {
        let begun = Instant::now();
        let error = self.pull(server).expect_err("fails");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}: {error}", begun.elapsed());
        self.is_clean();
        chain(&error)
    }

    fn is_clean(&self) {
        for (path, content) in tree(self.store.path()) {
            assert!(!path.starts_with("ingest/blob-"), "{path} is left");
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest_of(&content).digest(), hex, "what is visible is right");
            }
        }
        assert!(self.store.names().expect("lists").is_empty());
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

pub(crate) fn image() -> (Files, Made) {
    let mut files = Files::default();
    // The second layer is larger than any buffer on the way.
    let mut state = 1_u64;
    let mut next = || {
        // xorshift: gzip finds nothing in it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let big: Vec<u8> = (0..3_000_000).map(|_| next()).collect();
    let mut builder = tar::Builder::new(Vec::new());
    crate::fixture::append(&mut builder, "big", &big);
    let made = files.image_of(vec![crate::fixture::layer("one"), builder.into_inner().expect("a tar")], "amd64");
    (files, made)
}

pub(crate) fn layer_path(made: &Made) -> String {
    format!("/blobs/{}", digest_of(&gzip(&made.tars[1])))
}

/// A server of the image whose big layer is answered by `reply`.
pub(crate) fn with_layer(reply: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static) -> (Server, Made) {
    let (files, made) = image();
    let (path, root) = (layer_path(&made), made.manifest.clone());
    let content = files.clone();
    let server = Server::of(&files, &made.manifest, move |asked| {
        asked.path.ends_with(&path).then(|| reply(asked, honest(&content, &root, asked)))
    });
    (server, made)
}

fn a_pull_is_verified_named_by_its_root_and_not_repeated() {
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |_| None);
    let place = Place::new();
    let pulled = place.pull(&server).expect("pulls");
    assert_eq!(pulled.name, format!("{}/a:1", server.host()));
    assert_eq!((pulled.root.digest(), pulled.manifest.digest()), (made.manifest.digest(), made.manifest.digest()));
    assert_eq!(check_stored(&place.store, &pulled.manifest), 4);
    assert_eq!(server.count("GET", "/blobs/"), 3);
    server.forget();
    assert_eq!(place.pull(&server).expect("pulls"), pulled);
    assert_eq!((server.count("GET", "/manifests/"), server.count("GET", "/blobs/")), (0, 0), "{:?}", server.asked());
    // One layer is gone: only that is fetched.
    place.store.remove(&digest_of(&made.tars[0])).expect("removes");
    server.forget();
    place.pull(&server).expect("pulls");
    assert_eq!(server.count("GET", "/blobs/"), 1);
    check_stored(&place.store, &pulled.manifest);
}

fn an_index_leads_to_its_platform() {
    let mut files = Files::default();
    let (amd64, arm64) = (files.image("x", "amd64"), files.image("y", "arm64"));
    let entry = |made: &Made, architecture: &str| {
        let mut entry = serde_json::to_value(&made.manifest).expect("JSON");
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let index = |entries: serde_json::Value| json!({ "schemaVersion": 2, "mediaType": MediaType::ImageIndex.as_ref(), "manifests": entries });
    let mut attestation = entry(&arm64, "unknown");
    attestation["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let inner = index(json!([attestation, entry(&arm64, "arm64"), entry(&amd64, "amd64")]));
    let inner = files.document(&MediaType::ImageIndex, &inner);
    let root = files.document(&MediaType::ImageIndex, &index(json!([inner])));
    let server = Server::of(&files, &root, |_| None);
    let place = Place::new();
    let pulled = place.pull(&server).expect("pulls");
    assert_eq!((pulled.root.digest(), pulled.manifest.digest()), (root.digest(), amd64.manifest.digest()));
    check_stored(&place.store, &pulled.manifest);
    let arm64_there =
        tree(place.store.path()).contains_key(&format!("blobs/sha256/{}", arm64.manifest.digest().digest()));
    assert!(!arm64_there, "where a manifest is, its layers are");
    let registry = Registry::new(settings());
    let name = pulled.name.parse().expect("a reference");
    let lease = place.store.lease().expect("a lease");
    let s390x = Platform::new("linux", "s390x", None);
    let error = run(registry.pull(&name, &lease, &s390x, &Progress::none())).expect_err("has none");
    assert!(matches!(error, Error::NoPlatform { .. }), "{error}");
}

fn a_blob_with_other_bytes_is_seen_by_nobody() {
    let lie = Arc::new(AtomicUsize::new(1));
    let lies = Arc::clone(&lie);
    let (server, made) = with_layer(move |_, mut reply| {
        if lies.load(Ordering::Relaxed) == 1 {
            let last = reply.body.len() - 1;
            reply.body[last] ^= 1;
        }
        reply
    });
    let place = Place::new();
    let error = place.pull(&server).expect_err("lies");
    assert!(matches!(&error, Error::DigestMismatch { location, .. } if *location == server.host()), "{error}");
    place.is_clean();
    lie.store(0, Ordering::Relaxed);
    server.forget();
    let pulled = place.pull(&server).expect("the next one succeeds");
    check_stored(&place.store, &pulled.manifest);
    assert_eq!(pulled.root.digest(), made.manifest.digest());
}

fn sizes_that_are_lies_are_refused() {
    type Lie = fn(Reply) -> Reply;
    let lies: [(&str, Lie); 4] = [
        ("more, announced", |mut reply| {
            reply.body.push(0);
            reply.length = Some(reply.body.len());
            reply
        }),
        ("less, announced", |mut reply| {
            reply.body.pop();
            reply.length = Some(reply.body.len());
            reply
        }),
        ("more, chunked", |mut reply| {
            reply.body.push(0);
            reply.chunked()
        }),
        ("less, chunked", |mut reply| {
            reply.body.pop();
            reply.chunked()
        }),
    ];
    for (name, lie) in lies {
        let (server, _) = with_layer(move |_, reply| lie(reply));
        let place = Place::new();
        let error = place.pull(&server).expect_err(name);
        assert!(matches!(error, Error::SizeMismatch { .. }), "{name}: {error}");
        place.is_clean();
    }
}

fn a_connection_that_breaks_is_taken_up() {
    let (server, made) = with_layer(|_, reply| {
        // Every answer breaks after a megabyte.
        if reply.body.len() > 1_000_000 { reply.then(Then::Cut(1_000_000)) } else { reply }
    });
    let place = Place::new();
    let pulled = place.pull(&server).expect("pulls");
    check_stored(&place.store, &pulled.manifest);
    let parts: Vec<Asked> =
        server.asked().into_iter().filter(|asked| asked.path.ends_with(&layer_path(&made))).collect();
    assert!(parts.len() >= 3, "{}", parts.len());
    assert!(parts[0].header("range").is_empty() && parts[1].header("range").starts_with("bytes="), "{parts:?}");
}

fn a_registry_without_ranges_is_asked_again() {
    let tries = AtomicUsize::new(0);
    let (files, made) = image();
    let (path, content) = (layer_path(&made), gzip(&made.tars[1]));
    let server = Server::of(&files, &made.manifest, move |asked| {
        asked.path.ends_with(&path).then(|| {
            let reply = Reply::new(200, content.clone());
            // Each try gets a bit further.
            match tries.fetch_add(1, Ordering::Relaxed) {
                3.. => reply,
                few => reply.then(Then::Cut(500_000 * (few + 1))),
            }
        })
    });
    let place = Place::new();
    let pulled = place.pull(&server).expect("pulls");
    check_stored(&place.store, &pulled.manifest);
    assert_eq!(server.count("GET", &layer_path(&made)), 4);
}

fn another_part_than_was_asked_for_is_refused() {
    let (server, _) = with_layer(|asked, reply| {
        if asked.header("range").is_empty() {
            return reply.then(Then::Cut(1000));
        }
        Reply::new(206, vec![0; 10]).with("content-range", "bytes 0-9/10")
    });
    let said = Place::new().fails(&server);
    assert!(said.contains("another part"), "{said}");
}

fn who_stalls_or_drips_is_left() {
    // A little more with each try is not progress enough to go on for ever.
    let (server, _) = with_layer(|_, reply| reply.then(Then::Stall(1000)));
    let (empty, _) = with_layer(|_, reply| reply.then(Then::Stall(0)));
    let (drips, _) = with_layer(|_, reply| reply.then(Then::Drip(0)));
    for server in [&empty, &drips] {
        let said = Place::new().fails(server);
        assert!(said.contains("sent nothing of use"), "{said}");
    }
    let said = Place::new().fails(&server);
    assert!(said.contains("sent nothing of use"), "{said}");
    assert!(server.asked().iter().any(|asked| asked.header("range") == "bytes=1000-"), "goes on where it was");
    // A head that never comes, and a manifest that drips.
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |asked| {
        asked.path.contains("/manifests/").then(|| Reply::new(200, vec![b'{'; 1000]).then(Then::Drip(1)))
    });
    let said = Place::new().fails(&server);
    assert!(said.contains("sent nothing of use for 2 s"), "{said}");
}

fn what_has_no_end_is_not_read_to_it() {
    let (files, made) = image();
    let endless = |status| Reply::new(status, "").chunked().then(Then::Endless);
    let manifest =
        Server::of(&files, &made.manifest, move |asked| asked.path.contains("/manifests/").then(|| endless(200)));
    assert!(Place::new().fails(&manifest).contains("larger than 4194304 bytes"));
    let config = Server::of(&files, &made.manifest, {
        let config = digest_of(&made.config).to_string();
        move |asked| asked.path.ends_with(&config).then(|| endless(200))
    });
    assert!(Place::new().fails(&config).contains("larger than"));
    let error =
        Server::of(&files, &made.manifest, move |asked| asked.path.contains("/manifests/").then(|| endless(403)));
    assert!(Place::new().fails(&error).contains("access denied"));
    let (layer, _) = with_layer(move |_, _| endless(200));
    assert!(Place::new().fails(&layer).contains("than its descriptor says"));
    let token = Server::of(&files, &made.manifest, {
        let realm: Arc<Mutex<String>> = Arc::default();
        move |asked| {
            if asked.path.starts_with("/token") {
                return Some(endless(200));
            }
            *realm.lock().expect("not poisoned") = format!("Bearer realm=\"http://{}/token\"", asked.header("host"));
            let challenge = realm.lock().expect("not poisoned").clone();
            Some(Reply::new(401, "").with("www-authenticate", &challenge))
        }
    });
    assert!(Place::new().fails(&token).contains("larger than 1048576 bytes"));
}

fn given(server: &Server, credential: Credential) -> RegistrySettings {
    RegistrySettings { given: HashMap::from([(server.host(), credential)]), ..settings() }
}

fn password() -> Credential {
    Credential::Password { username: "me".to_owned(), password: "secret".to_owned() }
}

fn cve_2020_15157_credentials_stay_with_the_registry() {
    let (files, made) = image();
    let (content, root) = (files.clone(), made.manifest.clone());
    // The other host has the blobs, and wants to be shown something, too.
    let elsewhere = Server::start(move |asked| honest(&content, &root, asked));
    let curious = Server::start(|_| Reply::new(401, "").with("www-authenticate", "Basic realm=\"give\""));
    for (other, succeeds) in [(&elsewhere, true), (&curious, false)] {
        let target = other.url("");
        let server = Server::of(&files, &made.manifest, move |asked| {
            if asked.header("authorization").is_empty() {
                return Some(Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\""));
            }
            asked
                .path
                .contains("/blobs/")
                .then(|| Reply::new(307, "").with("location", &format!("{target}{}", asked.path)))
        });
        let place = Place::new();
        let pulled = place.pull_as(given(&server, password()), &format!("{}/a:1", server.host()));
        assert_eq!(pulled.is_ok(), succeeds, "{pulled:?}");
        assert!(server.asked().iter().any(|asked| asked.header("authorization") == "Basic bWU6c2VjcmV0"));
        assert!(!other.asked().is_empty());
        for asked in other.asked() {
            assert!(asked.header("authorization").is_empty(), "{asked:?}");
        }
    }
}

fn cve_2020_15157_foreign_layers_are_never_fetched() {
    let elsewhere = Server::start(|_| Reply::new(401, "").with("www-authenticate", "Basic realm=\"give\""));
    let mut files = Files::default();
    let tar = crate::fixture::layer("x");
    let mut layer = serde_json::to_value(files.blob(MediaType::ImageLayer.as_ref(), &tar)).expect("JSON");
    layer["urls"] = json!([elsewhere.url("/layer")]);
    let config = files.blob(MediaType::ImageConfig.as_ref(), &crate::fixture::config("amd64", &[tar]));
    let manifest = json!({ "schemaVersion": 2, "mediaType": MediaType::ImageManifest.as_ref(), "config": config, "layers": [layer] });
    let root = files.document(&MediaType::ImageManifest, &manifest);
    let server = Server::of(&files, &root, |_| None);
    let said = Place::new().fails(&server);
    assert!(said.contains("foreign layer"), "{said}");
    assert!(elsewhere.asked().is_empty());
}

fn cve_2026_12566_token_servers_of_others_get_no_password() {
    let (files, made) = image();
    let tokens = Server::start(|_| Reply::new(200, r#"{"token":"t"}"#));
    let port = tokens.host().rsplit_once(':').expect("a port").1.to_owned();
    // By another name it is another host.
    for (host, secret, reason) in [
        ("localhost", true, "a token server must speak HTTPS"),
        ("localhost", false, "a token server must speak HTTPS"),
        ("user@127.0.0.1", true, "it has a user name in it"),
    ] {
        let challenge = format!("Bearer realm=\"http://{host}:{port}/token\",service=\"x\"");
        let server =
            Server::of(&files, &made.manifest, move |_| Some(Reply::new(401, "").with("www-authenticate", &challenge)));
        let settings = if secret { given(&server, password()) } else { settings() };
        let error = Place::new().pull_as(settings, &format!("{}/a:1", server.host())).expect_err("is refused");
        assert!(chain(&error).contains(reason), "{}", chain(&error));
    }
    let challenge = format!("Bearer realm=\"https://evil.invalid:{port}/token\"");
    let server =
        Server::of(&files, &made.manifest, move |_| Some(Reply::new(401, "").with("www-authenticate", &challenge)));
    for secret in [password(), Credential::IdentityToken("refresh".to_owned())] {
        let settings = given(&server, secret);
        let error = Place::new().pull_as(settings, &format!("{}/a:1", server.host())).expect_err("is refused");
        assert!(chain(&error).contains("it is of another domain"), "{}", chain(&error));
        assert!(!chain(&error).contains("secret") && !chain(&error).contains("refresh"));
    }
    assert!(tokens.asked().is_empty());
    // A token server that sends on is not followed: the password would go with it.
    let target = tokens.url("/token");
    let server = Server::of(&files, &made.manifest, move |asked| {
        if asked.path.starts_with("/token") {
            return Some(Reply::new(307, "").with("location", &target));
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", asked.header("host"));
        Some(Reply::new(401, "").with("www-authenticate", &realm))
    });
    let error = Place::new().pull_as(given(&server, password()), &format!("{}/a:1", server.host())).expect_err("fails");
    assert!(chain(&error).contains("status 307"), "{}", chain(&error));
    assert!(tokens.asked().is_empty());
}

fn cve_2021_41190_documents_are_one_thing() {
    let (files, made) = image();
    let honest_manifest = files.0[&format!("blobs/sha256/{}", made.manifest.digest().digest())].clone();
    let mut both: serde_json::Value = serde_json::from_slice(&honest_manifest).expect("JSON");
    both["manifests"] = json!([]);
    let (oci, index) = (MediaType::ImageManifest.to_string(), MediaType::ImageIndex.to_string());
    for (content_type, body, reason) in [
        (index.clone(), honest_manifest.clone(), "which calls itself"),
        (oci.clone(), both.to_string().into_bytes(), "CVE-2021-41190"),
        ("text/html".to_owned(), honest_manifest.clone(), "web page"),
        ("image/png".to_owned(), honest_manifest.clone(), "image/png"),
        (oci, b"<html></html>".to_vec(), "not a manifest"),
    ] {
        let (body, header) = (body.clone(), content_type.clone());
        let server = Server::of(&files, &made.manifest, move |asked| {
            asked.path.contains("/manifests/").then(|| Reply::new(200, body.clone()).with("content-type", &header))
        });
        let said = Place::new().fails(&server);
        assert!(said.contains(reason), "{content_type}: {said}");
        assert_eq!(server.count("GET", "/blobs/"), 0, "{content_type}");
    }
}

fn cve_2024_3727_digests_are_parsed_before_use() {
    for digest in ["sha256:../../../../etc/passwd", "sha256:abc", "sha256:", "../x", "sha512:../../x"] {
        let mut files = Files::default();
        let config = files.blob(MediaType::ImageConfig.as_ref(), b"{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::ImageManifest.as_ref(), "config": config,
            "layers": [{ "mediaType": MediaType::ImageLayer.as_ref(), "digest": digest, "size": 1 }],
        });
        let root = files.document(&MediaType::ImageManifest, &manifest);
        let server = Server::of(&files, &root, |_| None);
        let said = Place::new().fails(&server);
        assert!(said.contains("is not valid"), "{digest}: {said}");
        assert_eq!(server.count("GET", "/blobs/"), 0, "{digest}");
    }
}

fn cve_2020_1702_documents_have_a_limit() {
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |asked| {
        let mut reply = Reply::new(200, "{").with("content-type", MediaType::ImageManifest.as_ref());
        reply.length = Some(1 << 40);
        asked.path.contains("/manifests/").then(|| reply.then(Then::Endless))
    });
    assert!(Place::new().fails(&server).contains("larger than"));
    // A config of which the manifest says that it is huge is not even asked for.
    let mut files = Files::default();
    let config = Descriptor::new(MediaType::ImageConfig, 1 << 33, digest_of(b"huge"));
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MediaType::ImageManifest.as_ref(), "config": config, "layers": [] });
    let root = files.document(&MediaType::ImageManifest, &manifest);
    let server = Server::of(&files, &root, |_| None);
    let said = Place::new().fails(&server);
    assert!(said.contains("more than the limit"), "{said}");
    assert_eq!(server.count("GET", "/blobs/"), 0);
}

fn a_digest_in_the_name_holds() {
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, {
        let (files, root) = (files.clone(), made.manifest.clone());
        // Whatever is asked for, this is the answer.
        move |asked| {
            let any = Asked { path: "/v2/a/manifests/1".to_owned(), ..asked.clone() };
            asked.path.contains("/manifests/").then(|| honest(&files, &root, &any))
        }
    });
    let (right, wrong) = (made.manifest.digest().clone(), digest_of(b"other"));
    let place = Place::new();
    let error = place.pull_as(settings(), &format!("{}/a:1@{wrong}", server.host())).expect_err("is another");
    assert!(chain(&error).contains(&format!("should be {wrong}")), "{}", chain(&error));
    place.is_clean();
    let pulled = place.pull_as(settings(), &format!("{}/a:1@{right}", server.host())).expect("is it");
    assert_eq!(pulled.root.digest(), &right);
    // A registry whose header and bytes disagree is not believed.
    let (content, root) = (files.clone(), made.manifest.clone());
    let server = Server::of(&files, &made.manifest, move |asked| {
        let mut reply = honest(&content, &root, asked);
        reply.headers.retain(|(name, _)| name != "docker-content-digest");
        asked.path.contains("/manifests/").then(|| reply.with("docker-content-digest", digest_of(b"other").as_ref()))
    });
    assert!(Place::new().fails(&server).contains("should be"));
}

fn redirects_have_an_end_and_stay_sane() {
    for (location, reason) in [
        ("/v2/a/blobs/again", "sent on too often"),
        ("file:///etc/passwd", "only http and https"),
        ("http://user:pass@127.0.0.1/", "user name"),
        ("gopher://x/", "only http and https"),
        ("http://[::1", "not valid"),
    ] {
        let (files, made) = image();
        let server = Server::of(&files, &made.manifest, move |asked| {
            asked.path.contains("/blobs/").then(|| Reply::new(302, "").with("location", location))
        });
        let said = Place::new().fails(&server);
        assert!(said.contains(reason), "{location}: {said}");
        assert!(server.count("GET", "/blobs/") < 40);
    }
}

fn errors_are_tried_again_or_told() {
    let failing = |times: usize, status: u16| {
        let failures = AtomicUsize::new(0);
        let (files, made) = image();
        Server::of(&files, &made.manifest, move |asked| {
            let fails = asked.path.contains("/manifests/") && failures.fetch_add(1, Ordering::Relaxed) < times;
            fails.then(|| Reply::new(status, "<html>down</html>"))
        })
    };
    for status in [500, 502, 503, 504] {
        Place::new().pull(&failing(2, status)).unwrap_or_else(|error| panic!("{status}: {error}"));
        let server = failing(usize::MAX, status);
        let said = Place::new().fails(&server);
        assert!(said.contains(&format!("status {status}")) && said.contains("web page"), "{said}");
        assert_eq!(server.count("GET", "/manifests/"), 3);
    }
    for (status, reason) in [(404, "not found"), (403, "access denied"), (401, "access denied"), (418, "status 418")] {
        let server = failing(usize::MAX, status);
        let said = Place::new().fails(&server);
        assert!(said.contains(reason), "{status}: {said}");
        assert_eq!(server.count("GET", "/manifests/"), 1, "{status}");
    }
}

fn rate_limits_are_honoured() {
    let limited = |times: usize, seconds: &'static str| {
        let failures = AtomicUsize::new(0);
        let (files, made) = image();
        Server::of(&files, &made.manifest, move |asked| {
            let fails = asked.path.contains("/manifests/") && failures.fetch_add(1, Ordering::Relaxed) < times;
            fails.then(|| Reply::new(429, r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#).with("retry-after", seconds))
        })
    };
    let begun = Instant::now();
    Place::new().pull(&limited(1, "1")).expect("waits");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let begun = Instant::now();
    let error = Place::new().pull(&limited(1, "3600")).expect_err("has no such patience");
    let Error::Registry { problem, .. } = &error else { panic!("{error}") };
    let RegistryProblem::RateLimited { retry_after, .. } = &**problem else { panic!("{problem}") };
    assert_eq!(*retry_after, Some(Duration::from_secs(3600)));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

fn who_asks_for_ever_is_denied() {
    let (files, made) = image();
    let count = AtomicUsize::new(0);
    let server = Server::of(&files, &made.manifest, move |asked| {
        if asked.path.starts_with("/token") {
            // Another one each time.
            return Some(Reply::new(200, format!(r#"{{"token":"t{}"}}"#, count.fetch_add(1, Ordering::Relaxed))));
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", asked.header("host"));
        Some(Reply::new(401, "").with("www-authenticate", &realm))
    });
    let said = Place::new().fails(&server);
    assert!(said.contains("access denied"), "{said}");
    assert!(server.asked().len() <= 8, "{}", server.asked().len());
}

fn tokens_are_for_one_repository() {
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |asked| {
        if let Some(query) = asked.path.strip_prefix("/token?") {
            let repository =
                query.split("repository:").nth(1).and_then(|rest| rest.split(':').next()).unwrap_or("none");
            return Some(Reply::new(200, format!(r#"{{"access_token":"for-{repository}","expires_in":300}}"#)));
        }
        let repository = asked.path.trim_start_matches("/v2/").split('/').next().unwrap_or_default();
        if repository.is_empty() || asked.header("authorization") == format!("Bearer for-{repository}") {
            return None;
        }
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", asked.header("host"));
        Some(Reply::new(401, "").with("www-authenticate", &realm))
    });
    let place = Place::new();
    let registry = Registry::new(settings());
    for repository in ["a", "b"] {
        let lease = place.store.lease().expect("a lease");
        let name = format!("{}/{repository}:1", server.host()).parse().expect("a reference");
        run(registry.pull(&name, &lease, &platform(), &Progress::none())).expect("pulls");
    }
    assert_eq!(server.count("GET", "/token?"), 2, "one for each, for all its layers");
    for asked in server.asked() {
        let shown = asked.header("authorization");
        assert!(
            shown.is_empty() || asked.path.starts_with(&format!("/v2/{}/", &shown["Bearer for-".len()..])),
            "{asked:?}"
        );
    }
}

fn a_mirror_that_lies_is_passed_over() {
    let (liar, _) = with_layer(|_, mut reply| {
        reply.body[0] ^= 1;
        reply
    });
    let gone = Server::start(|_| Reply::new(404, ""));
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |_| None);
    let mirror = |server: &Server| Mirror { location: format!("{}/a", server.host()), ..Mirror::default() };
    let rule = Rule {
        prefix: "docker.io/library/a".to_owned(),
        location: format!("{}/a", server.host()),
        mirrors: vec![mirror(&gone), mirror(&liar)],
        ..Rule::default()
    };
    let settings =
        RegistrySettings { registries: Registries { rules: vec![rule], ..Registries::default() }, ..settings() };
    let place = Place::new();
    let pulled = place.pull_as(settings, "a:1").expect("pulls");
    assert_eq!(pulled.name, "docker.io/library/a:1");
    check_stored(&place.store, &pulled.manifest);
    assert!(!gone.asked().is_empty() && liar.count("GET", &layer_path(&made)) == 1);
    assert_eq!(server.count("GET", "/blobs/"), 1, "only what the mirror lied about");
}

/// What came of a layer, and the error at its end.
type WasRead = (Vec<u8>, Option<String>);

/// Reads each layer on a thread of its own while it comes.
#[derive(Default)]
struct Reads {
    readers: Mutex<Vec<(Digest, JoinHandle<WasRead>)>>,
    stored: Mutex<Vec<Digest>>,
    image: Mutex<Option<usize>>,
}

impl Taps for Reads {
    fn image(&self, image: &Arc<Image>) {
        *self.image.lock().expect("not poisoned") = Some(image.layers().len());
    }

    fn coming(&self, layer: &Descriptor, mut blob: Follower) {
        assert!(self.image.lock().expect("not poisoned").is_some(), "the image is told first");
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let error = blob.read_to_end(&mut bytes).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), blob.is_void());
            (bytes, error)
        });
        self.readers.lock().expect("not poisoned").push((layer.digest().clone(), reader));
    }

    fn stored(&self, layer: &Descriptor) {
        self.stored.lock().expect("not poisoned").push(layer.digest().clone());
    }
}

impl Reads {
    fn all(&self) -> Vec<(Digest, Vec<u8>, Option<String>)> {
        let readers = std::mem::take(&mut *self.readers.lock().expect("not poisoned"));
        let ended = readers.into_iter().map(|(digest, reader)| (digest, reader.join().expect("reads")));
        ended.map(|(digest, (bytes, error))| (digest, bytes, error)).collect()
    }
}

fn layers_are_handed_out_while_they_come() {
    let (server, made) =
        with_layer(|_, reply| if reply.body.len() > 1_500_000 { reply.then(Then::Cut(1_500_000)) } else { reply });
    let (place, reads, events) = (Place::new(), Arc::new(Reads::default()), Arc::new(Mutex::new(Vec::new())));
    let lease = place.store.lease().expect("a lease");
    let told = Arc::clone(&events);
    let progress = Progress::to(move |event| told.lock().expect("not poisoned").push(event));
    let name = format!("{}/a:1", server.host()).parse().expect("a reference");
    let taps: Arc<dyn Taps> = reads.clone();
    run(Registry::new(settings()).pull_with(&name, &lease, &platform(), &progress, Some(taps))).expect("pulls");
    let packed = gzip(&made.tars[1]);
    let mut all = reads.all();
    all.sort_by_key(|(_, bytes, _)| bytes.len() == packed.len());
    assert_eq!(all.len(), 2, "over two connections it is one stream");
    assert!(all[0] == (digest_of(&made.tars[0]), made.tars[0].clone(), None));
    assert!(all[1] == (digest_of(&packed), packed, None));
    assert_eq!(reads.stored.lock().expect("not poisoned").len(), 2);
    let events = events.lock().expect("not poisoned");
    assert!(matches!(&events[0], Event::Resolved { image, .. } if image.layers().len() == 2));
    let states: Vec<BlobState> = events
        .iter()
        .filter_map(|event| match event {
            Event::Blob { digest, state } if *digest == digest_of(&gzip(&made.tars[1])) => Some(state.clone()),
            _ => None,
        })
        .collect();
    let size = gzip(&made.tars[1]).len() as u64;
    assert_eq!(states[..2], [BlobState::Waiting, BlobState::Moving { done: 0, total: size }]);
    assert!(states.iter().any(|state| matches!(state, BlobState::Retrying { .. })));
    assert_eq!(
        states[states.len() - 3..],
        [BlobState::Moving { done: size, total: size }, BlobState::Verifying, BlobState::Done]
    );
}

fn a_pull_that_is_given_up_leaves_nothing() {
    let (server, _) = with_layer(|_, reply| reply.then(Then::Stall(1_000_000)));
    let place = Place::new();
    {
        let lease = place.store.lease().expect("a lease");
        let registry = Registry::new(RegistrySettings { idle_timeout: Duration::from_secs(60), ..settings() });
        let name = format!("{}/a:1", server.host()).parse().expect("a reference");
        run(async {
            let (progress, platform) = (Progress::none(), platform());
            let pull = registry.pull(&name, &lease, &platform, &progress);
            assert!(tokio::time::timeout(Duration::from_millis(500), pull).await.is_err());
        });
    }
    place.is_clean();
    assert!(std::fs::read_dir(place.store.path().join("ingest")).expect("lists").next().is_none());
}

/// What the children of [`two_that_are_killed_leave_nothing_half`] do.
pub(crate) fn pull_into(store: &Layout, name: &str) {
    let lease = store.lease().expect("a lease");
    let reference = name.parse().expect("a reference");
    let pulled =
        run(Registry::new(settings()).pull(&reference, &lease, &platform(), &Progress::none())).expect("pulls");
    store.tag(&pulled.name, &pulled.root).expect("names");
}

fn two_that_are_killed_leave_nothing_half() {
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |_| None);
    let name = format!("{}/a:1", server.host());
    let rounds = if std::env::var_os("ESTIBA_CAMPAIGN").is_some() { 100 } else { 12 };
    let mut finished = 0;
    for round in 0..rounds {
        let place = Place::new();
        let mut children = [(); 2].map(|()| crate::child::spawn(&format!("pull {name}"), place.store.path()));
        // Somewhere between the start and a little after the end.
        std::thread::sleep(Duration::from_millis(5 + 40 * round / 3 % 300));
        for child in &mut children {
            child.kill().expect("is ours");
            finished += usize::from(child.wait().expect("ends").success());
        }
        for (path, content) in tree(place.store.path()) {
            if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(digest_of(&content).digest(), hex, "round {round}: what is visible is whole");
            }
        }
        if let Some(root) = place.store.resolve(&name).expect("looks") {
            check_stored(&place.store, &root);
        }
        let there = tree(place.store.path()).keys().filter(|path| path.starts_with("blobs/")).count();
        server.forget();
        let pulled = place.pull(&server).expect("the next one succeeds");
        check_stored(&place.store, &pulled.manifest);
        let fetched = server.count("GET", "/blobs/") + server.count("GET", "/manifests/");
        assert!(fetched + there <= 5, "round {round}: {there} blobs were whole, and {fetched} were fetched");
        assert!(!tree(place.store.path()).keys().any(|path| path.starts_with("ingest/")), "round {round}");
    }
    assert!(finished < 2 * rounds as usize, "some were killed");
}

fn a_plain_registry_elsewhere_is_not_spoken_to() {
    let (files, made) = image();
    let server = Server::of(&files, &made.manifest, |_| None);
    // It is found under a name that is not this machine's, by way of a proxy that leads to it.
    let upstream = server.host();
    let proxy = connect_proxy(upstream);
    let proxies = Proxies::new(Some(&proxy.0), Some(&proxy.0), None).expect("is valid");
    let plain = RegistrySettings { proxies: proxies.clone(), ..settings() };
    let error = Place::new().pull_as(plain, "registry.test:5000/a:1").expect_err("speaks no TLS");
    assert!(chain(&error).contains("speaks plain HTTP where HTTPS is wanted"), "{}", chain(&error));
    assert!(server.asked().is_empty());
    let registries = Registries { insecure: vec!["registry.test:5000".to_owned()], ..Registries::default() };
    let insecure = RegistrySettings { proxies, registries, ..settings() };
    let place = Place::new();
    let pulled = place.pull_as(insecure, "registry.test:5000/a:1").expect("is declared insecure");
    check_stored(&place.store, &pulled.manifest);
}

/// A proxy that leads everything to one server: tunnels by CONNECT, plain requests as they are.
fn connect_proxy(upstream: String) -> (String, Arc<Mutex<Vec<String>>>) {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = format!("http://u:p@{}", listener.local_addr().expect("an address"));
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&heads);
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let (upstream, log) = (upstream.clone(), Arc::clone(&log));
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    if client.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let text = String::from_utf8_lossy(&head).into_owned();
                let is_connect = text.starts_with("CONNECT");
                log.lock().expect("not poisoned").push(text);
                let mut server = TcpStream::connect(&upstream).expect("connects");
                if is_connect {
                    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("writes");
                } else {
                    server.write_all(&head).expect("writes");
                }
                let (mut from, mut to) = (client.try_clone().expect("clones"), server.try_clone().expect("clones"));
                std::thread::spawn(move || io::copy(&mut from, &mut to));
                let _ = io::copy(&mut server, &mut client);
            });
        }
    });
    (address, heads)
}

fn proxies_are_gone_through() {
    let (files, made) = image();
    let (content, root) = (files.clone(), made.manifest.clone());
    let server = Server::start(move |asked| {
        // A plain request through a proxy has the whole URL.
        let path = asked.path.split_once("registry.test:5000").map_or(asked.path.as_str(), |(_, path)| path);
        honest(&content, &root, &Asked { path: path.to_owned(), ..asked.clone() })
    });
    let (proxy, heads) = connect_proxy(server.host());
    let proxies = Proxies::new(Some(&proxy), Some(&proxy), None).expect("is valid");
    let registries = Registries { insecure: vec!["registry.test:5000".to_owned()], ..Registries::default() };
    let place = Place::new();
    let settings = RegistrySettings { proxies, registries, ..settings() };
    let pulled = place.pull_as(settings, "registry.test:5000/a:1").expect("pulls");
    check_stored(&place.store, &pulled.manifest);
    let heads = heads.lock().expect("not poisoned");
    assert!(heads[0].starts_with("CONNECT registry.test:5000 HTTP/1.1"), "{heads:?}");
    assert!(heads.iter().any(|head| head.starts_with("GET http://registry.test:5000/v2/a/manifests/1")), "{heads:?}");
    for head in heads.iter() {
        assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic dtpw"), "{head}");
    }
}
