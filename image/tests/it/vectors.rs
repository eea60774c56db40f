//! What the projects that wrote the rules say of documents and names, as facts: the image specification's schema tests
//! (v1.1) and the distribution project's reference tests.

use estiba_image::oci_spec::image::{Descriptor, MediaType};
use estiba_image::{Image, Layout, Reference, digest_of};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::fixture::{Files, layer, platform};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!["vectors": descriptors, manifests, configs, indexes, layouts, references]
}

const HEX: &str = "5b0bcabd1ed22e9fb1310cf6c2dec7cdef19f0ad69efa1f392e94a4333501270";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What becomes of a document, beside what the schema says of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ours {
    /// The same.
    Same,
    /// Taken, although the schema refuses it.
    Taken,
    /// Refused, although the schema takes it.
    Refused,
}
use Ours::{Refused, Same, Taken};

fn check(what: &str, valid: bool, ours: Ours, taken: bool) {
    let wanted = match ours {
        Same => valid,
        Taken => true,
        Refused => false,
    };
    assert!(ours == Same || wanted != valid, "{what}: that is the same");
    assert_eq!(taken, wanted, "{what}");
}

/// A document with a part of it replaced, or removed with null.
fn with(document: &Value, path: &str, value: Value) -> Value {
    let mut document = document.clone();
    let (parent, key) = path.rsplit_once('/').expect("a path begins with a slash");
    let parent = document.pointer_mut(parent).expect("is there").as_object_mut().expect("an object");
    if value.is_null() {
        parent.remove(key);
    } else {
        parent.insert(key.to_owned(), value);
    }
    document
}

fn descriptors() {
    let base = json!({ "mediaType": MANIFEST, "size": 7682, "digest": format!("sha256:{HEX}") });
    let long = "1234567".repeat(18) + "1";
    let data = json!("aHR0cHM6Ly9naXRodWIuY29tL29wZW5jb250YWluZXJzCg==");
    let cases = [
        ("/size", json!(0), true, Same),
        ("/mediaType", Value::Null, false, Same),
        // What is not known by its media type is refused where it matters, whatever its grammar.
        ("/mediaType", json!("application"), false, Taken),
        ("/mediaType", json!(".foo/bar"), false, Taken),
        ("/mediaType", json!("foo/.bar"), false, Taken),
        ("/mediaType", json!(format!("{long}/{long}")), true, Same),
        ("/mediaType", json!(format!("{long}8/bar")), false, Taken),
        ("/mediaType", json!(format!("foo/{long}8")), false, Taken),
        ("/size", Value::Null, false, Same),
        ("/size", json!("7682"), false, Same),
        ("/size", json!(-7682), false, Same),
        ("/digest", Value::Null, false, Same),
        ("/digest", json!(format!(":{HEX}")), false, Same),
        ("/digest", json!("sha256"), false, Same),
        ("/digest", json!(format!("SHA256:{HEX}")), false, Same),
        ("/digest", json!(format!("sha256:{}", HEX.to_uppercase())), false, Same),
        ("/digest", json!(format!("sha256+b64:{HEX}")), true, Same),
        ("/digest", json!(format!("sha256+foo-bar:{HEX}")), true, Same),
        ("/digest", json!(format!("sha256.foo-bar:{HEX}")), true, Same),
        ("/digest", json!("multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8"), true, Same),
        ("/digest", json!(format!("sha256+foo+-b:{HEX}")), false, Same),
        ("/digest", json!("sha256+b64u:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564"), true, Same),
        ("/digest", json!("sha256+b64u.unknownlength:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564="), true, Same),
        ("/urls", json!(["https://example.com/foo"]), true, Same),
        // URLs are never followed.
        ("/urls", json!(["value"]), false, Taken),
        ("/artifactType", json!(MANIFEST), true, Same),
        ("/artifactType", json!("foo/.bar"), false, Taken),
        // Data in a descriptor is never used.
        ("/data", data, true, Same),
        ("/data", json!("aHR0cHM6Ly9naXRodWIuY29tL29wZW5jb250YWluZXJzCg"), false, Taken),
    ];
    for (path, value, valid, ours) in cases {
        let document = with(&base, path, value);
        let text = document.to_string();
        check(&text, valid, ours, serde_json::from_str::<Descriptor>(&text).is_ok());
    }
    assert!(serde_json::from_value::<Descriptor>(base).is_ok());
}

/// A store with an image, of which documents can be replaced.
struct Place {
    files: Files,
    manifest: Value,
    config: Value,
}

impl Place {
    fn new() -> Self {
        let mut files = Files::default();
        let tar = layer("one");
        let blob = files.blob(MediaType::ImageLayer.as_ref(), &tar);
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [digest_of(&tar).as_ref()] },
            "config": {},
        });
        let described = files.document(&MediaType::ImageConfig, &config);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [blob] });
        Self { files, manifest, config }
    }

    fn load(files: &Files, root: &Descriptor) -> bool {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut files = files.clone();
        files.list(&[(None, root.clone())]);
        files.write(folder.path());
        Image::load(&Layout::open(folder.path()).expect("opens"), root, &platform()).is_ok()
    }

    fn takes_manifest(&self, manifest: &Value) -> bool {
        let mut files = self.files.clone();
        let root = files.document(&MediaType::ImageManifest, manifest);
        Self::load(&files, &root)
    }

    fn takes_config(&self, config: &str) -> bool {
        let mut files = self.files.clone();
        let described = files.blob(MediaType::ImageConfig.as_ref(), config.as_bytes());
        let manifest = with(&self.manifest, "/config", serde_json::to_value(described).expect("JSON"));
        let root = files.document(&MediaType::ImageManifest, &manifest);
        Self::load(&files, &root)
    }
}

fn manifests() {
    let place = Place::new();
    let other = json!("application/vnd.other.layer");
    let cases = [
        ("/annotations", json!({ "key1": "value1", "key2": "value2" }), true, Same),
        ("/mediaType", Value::Null, true, Same),
        ("/mediaType", json!("invalid"), false, Same),
        ("/config/size", json!("1470"), false, Same),
        (
            "/config/digest",
            json!("sha256:c86f7763873b6c0aaehhhhhhhhhhhhhhhhmmmmmmmmmmmmmmmm22d9h3bab59b4f"),
            false,
            Same,
        ),
        ("/layers", json!([]), false, Same),
        ("/layers", Value::Null, false, Same),
        ("/config", Value::Null, false, Same),
        ("/schemaVersion", Value::Null, false, Same),
        ("/schemaVersion", json!("2"), false, Same),
        ("/annotations", json!({ "key": 1 }), false, Same),
    ];
    assert!(place.takes_manifest(&place.manifest));
    for (path, value, valid, ours) in cases {
        let document = with(&place.manifest, path, value);
        check(&document.to_string(), valid, ours, place.takes_manifest(&document));
    }
    // An artifact is valid and no root file system.
    for (key, value, valid, ours) in [("size", json!("675598"), false, Same), ("mediaType", other, true, Refused)] {
        let mut document = place.manifest.clone();
        document["layers"][0][key] = value;
        check(&document.to_string(), valid, ours, place.takes_manifest(&document));
    }
}

fn configs() {
    let place = Place::new();
    let cases = [
        ("/os", json!(123), false, Same),
        ("/os", Value::Null, false, Same),
        ("/architecture", Value::Null, false, Same),
        ("/rootfs", Value::Null, false, Same),
        ("/rootfs/type", json!("other"), false, Same),
        ("/rootfs/diff_ids", json!(["not a digest"]), false, Same),
        ("/config", Value::Null, true, Same),
        ("/config/User", json!(1234), false, Same),
        ("/config/User", json!("1:1"), true, Same),
        ("/config/Env", json!([7353]), false, Same),
        ("/config/Env", json!(["PATH=/usr/bin:/bin", "FOO=docker_is_a_really"]), true, Same),
        ("/config/Volumes", json!({ "/var/job-result-data": {}, "/var/log/my-app-logs": {} }), true, Same),
        ("/config/ExposedPorts", json!({ "8080/tcp": {} }), true, Same),
        ("/config/Labels", json!({ "com.example.project.git.url": "https://example.com/project.git" }), true, Same),
        ("/config/Labels", json!({ "a": 1 }), false, Same),
        ("/config/Entrypoint", json!(["/bin/sh"]), true, Same),
        ("/config/Entrypoint", json!("/bin/sh"), false, Same),
        ("/history", json!("should be an array"), false, Same),
        (
            "/history",
            json!([{ "created": "2015-10-31T22:22:55.613815829Z", "created_by": "x", "empty_layer": true }]),
            true,
            Same,
        ),
        ("/history", json!([{ "empty_layer": "yes" }]), false, Same),
        ("/author", json!("Alyssa P. Hacker <alyspdev@example.com>"), true, Same),
        ("/created", json!("2015-10-31T22:22:56.015925234Z"), true, Same),
        ("/created", json!(5), false, Same),
        // A time is for people: whoever reckons with it finds out.
        ("/created", json!("yesterday"), false, Taken),
    ];
    assert!(place.takes_config(&place.config.to_string()));
    assert!(!place.takes_config("invalid JSON"));
    for (path, value, valid, ours) in cases {
        let document = with(&place.config, path, value).to_string();
        check(&document, valid, ours, place.takes_config(&document));
    }
}

fn indexes() {
    let place = Place::new();
    let mut files = place.files.clone();
    let manifest = files.document(&MediaType::ImageManifest, &place.manifest);
    let mut entry = serde_json::to_value(manifest).expect("JSON");
    entry["platform"] = json!({ "architecture": "amd64", "os": "linux", "features": ["sse4"] });
    let takes = |entry: &Value| {
        let index =
            json!({ "schemaVersion": 2, "manifests": [entry], "annotations": { "com.example.key1": "value1" } });
        let mut files = files.clone();
        let root = files.document(&MediaType::ImageIndex, &index);
        Place::load(&files, &root)
    };
    assert!(takes(&entry));
    let cases = [
        ("/mediaType", json!("invalid"), false, Same),
        ("/mediaType", json!(""), false, Same),
        // It is valid, and nothing that could be run.
        ("/mediaType", json!("application/customized.manifest+json"), true, Refused),
        ("/size", json!("7682"), false, Same),
        ("/digest", Value::Null, false, Same),
        ("/platform", Value::Null, true, Same),
        ("/platform/os", json!(1), false, Same),
    ];
    for (path, value, valid, ours) in cases {
        let document = with(&entry, path, value);
        check(&document.to_string(), valid, ours, takes(&document));
    }
}

fn layouts() {
    let cases = [
        (r#"{"imageLayoutVersion":"1.0.0"}"#, true),
        (r#"{"imageLayoutVersion":1}"#, false),
        (r#"{"imageLayoutVersion":"2.0.0"}"#, false),
        (r#"{"imageLayoutVersion":"1"}"#, false),
        ("{}", false),
        ("", false),
    ];
    for (text, valid) in cases {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut files = Files::default();
        files.list(&[]);
        files.0.insert("oci-layout".to_owned(), text.as_bytes().to_vec());
        files.write(folder.path());
        check(text, valid, Same, Layout::open(folder.path()).is_ok());
    }
}

fn references() {
    let f64 = "f".repeat(64);
    let id = "1a3f5e7d9c1b3a5f7e9d1c3b5a7f9e1d3c5b7a9f1e3d5d7c9b1a3f5e7d9c1b3a";
    let sha512 = format!("xn--7o8h.com/myimage:xn--7o8h.com@sha512:{}", "f".repeat(128));
    let long = format!("{}a:tag-puts-this-over-max", "a/".repeat(127));
    let with_digest = format!("test:5000/repo@sha256:{f64}");
    let six = format!("[2001:db8::1]:5000/repo:tag@sha256:{f64}");
    // The text, its registry and its repository.
    let valid: Vec<(&str, &str, &str)> = vec![
        ("test_com", "docker.io", "library/test_com"),
        ("test.com:tag", "docker.io", "library/test.com"),
        ("test.com:5000", "docker.io", "library/test.com"),
        ("test.com/repo:tag", "test.com", "repo"),
        ("test:5000/repo", "test:5000", "repo"),
        (&with_digest, "test:5000", "repo"),
        ("lowercase:Uppercase", "docker.io", "library/lowercase"),
        ("sub-dom1.foo.com/bar/baz/quux:some-long-tag", "sub-dom1.foo.com", "bar/baz/quux"),
        ("b.gcr.io/test.example.com/my-app:test.example.com", "b.gcr.io", "test.example.com/my-app"),
        ("xn--n3h.com/myimage:xn--n3h.com", "xn--n3h.com", "myimage"),
        ("xn--n3h.com:18080/foo", "xn--n3h.com:18080", "foo"),
        (&sha512, "xn--7o8h.com", "myimage"),
        ("foo_bar.com:8080", "docker.io", "library/foo_bar.com"),
        ("foo/foo_bar.com:8080", "docker.io", "foo/foo_bar.com"),
        ("192.168.1.1", "docker.io", "library/192.168.1.1"),
        ("192.168.1.1:5000", "docker.io", "library/192.168.1.1"),
        ("192.168.1.1/repo", "192.168.1.1", "repo"),
        ("192.168.1.1:5000/repo:5050", "192.168.1.1:5000", "repo"),
        ("192.168.0.1:8/debian", "192.168.0.1:8", "debian"),
        ("[2001:db8::1]/repo", "[2001:db8::1]", "repo"),
        ("[2001:db8:1:2:3:4:5:6]/repo:tag", "[2001:db8:1:2:3:4:5:6]", "repo"),
        (&six, "[2001:db8::1]:5000", "repo"),
        ("[2001:db8::]:5000/repo", "[2001:db8::]:5000", "repo"),
        ("[::1]:5000/repo", "[::1]:5000", "repo"),
        ("[fc00::1]:5000/docker/docker", "[fc00::1]:5000", "docker/docker"),
        ("docker/docker", "docker.io", "docker/docker"),
        ("library/debian", "docker.io", "library/debian"),
        ("docker.io/debian", "docker.io", "library/debian"),
        ("index.docker.io/docker/docker", "docker.io", "docker/docker"),
        ("index.docker.io/debian", "docker.io", "library/debian"),
        ("docker.io/library/foo/bar", "docker.io", "library/foo/bar"),
        ("store/foo/bar", "docker.io", "store/foo/bar"),
        ("test_com/foo", "docker.io", "test_com/foo"),
        ("test-com:8080/foo", "test-com:8080", "foo"),
        ("Docker/docker", "Docker", "docker"),
        ("FOO/bar", "FOO", "bar"),
        ("docker---rules/docker", "docker.io", "docker---rules/docker"),
        ("d/docker", "docker.io", "d/docker"),
        ("jess/t", "docker.io", "jess/t"),
        ("dock__er/docker", "docker.io", "dock__er/docker"),
        ("ubuntu-12.04-base", "docker.io", "library/ubuntu-12.04-base"),
        (
            "thisisthesongthatneverendsitgoesonandonandonthisisthesongthatnev",
            "docker.io",
            "library/thisisthesongthatneverendsitgoesonandonandonthisisthesongthatnev",
        ),
        ("dbcc1", "docker.io", "library/dbcc1"),
        (&id[..63], "docker.io", ""),
        (&long, "docker.io", ""),
    ];
    for (text, registry, repository) in valid {
        let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(reference.registry(), registry, "{text}");
        assert!(repository.is_empty() || reference.repository() == repository, "{text}: {}", reference.repository());
    }
    let in_docker_io = format!("docker.io/{id}");
    assert!(in_docker_io.parse::<Reference>().is_ok(), "with a registry it is no id");
    let invalid = [
        String::new(),
        ":justtag".to_owned(),
        format!("@sha256:{f64}"),
        format!("repo@sha256:{}", &f64[..34]),
        format!("validname@invaliddigest:{f64}"),
        "Uppercase:tag".to_owned(),
        "test:5000/Uppercase/lowercase:tag".to_owned(),
        "a/".repeat(128) + "a:tag",
        "aa/asdf$$^/aa".to_owned(),
        "[2001:db8::1]".to_owned(),
        "[2001:db8::1]:5000".to_owned(),
        "[2001:db8::1]:tag".to_owned(),
        "[fe80::1%eth0]:5000/repo".to_owned(),
        "[fe80::1%@invalidzone]:5000/repo".to_owned(),
        "[2001:db8:3:4::192.0.2.33]:5000/debian".to_owned(),
        "fc00::1:5000/debian".to_owned(),
        "https://github.com/docker/docker".to_owned(),
        "docker/Docker".to_owned(),
        "-docker".to_owned(),
        "-docker/docker".to_owned(),
        "docker-/docker".to_owned(),
        "-docker.io/docker/docker".to_owned(),
        "docker///docker".to_owned(),
        "docker.io/docker///docker".to_owned(),
        "____/____".to_owned(),
        "_docker/_docker".to_owned(),
        "dock..er/docker".to_owned(),
        "dock_.er/docker".to_owned(),
        "dock-.er/docker".to_owned(),
        "docker/".to_owned(),
        id.to_owned(),
    ];
    for text in invalid {
        assert!(text.parse::<Reference>().is_err(), "{text}");
    }
}
