//! What ARCHITECTURE.md says of the crates' edges and of `unsafe`, checked against `cargo metadata` and the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// Each library crate, and the siblings that it may depend on. Programs may depend on all of them.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("estiba-image", &[]),
    ("estiba-storage", &[]),
    ("estiba-network", &[]),
    ("estiba-runtime", &[]),
    ("estiba-shim", &["estiba-runtime"]),
    ("estiba-engine", &["estiba-image", "estiba-storage", "estiba-network", "estiba-runtime", "estiba-shim"]),
];

/// Crates that block and say so: tokio is not below them, unless a feature of theirs asks for it.
const BLOCKING: [&str; 5] = ["estiba-image", "estiba-storage", "estiba-network", "estiba-runtime", "estiba-shim"];

/// Folders of crates whose system calls may be unsafe, in `src/sys.rs` or `src/sys/`.
const SYSTEM_CALLS: [&str; 4] = ["runtime", "network", "shim", "storage"];

/// Folders of crates that have none.
const FORBIDDING: [&str; 2] = ["image", "engine"];

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

fn metadata() -> Result<Metadata> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    Ok(MetadataCommand::new().manifest_path(manifest).exec()?)
}

/// The siblings that each crate depends on, for building, for its tests or for itself.
fn edges(metadata: &Metadata) -> Vec<(String, String)> {
    let members: BTreeSet<&str> = metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in &package.dependencies {
            // A crate may name itself, to test with its own features.
            if members.contains(dependency.name.as_str()) && *package.name != dependency.name {
                edges.push((package.name.to_string(), dependency.name.clone()));
            }
        }
    }
    edges
}

/// The edges that the map does not have. `programs` are the packages that may depend on anything.
fn forbidden(edges: &[(String, String)], programs: &BTreeSet<String>) -> Vec<String> {
    let allowed = |from: &str, to: &str| {
        let row = ALLOWED.iter().find(|(name, _)| *name == from);
        row.map_or(programs.contains(from), |(_, siblings)| siblings.contains(&to))
    };
    let wrong = edges.iter().filter(|(from, to)| !allowed(from, to));
    wrong.map(|(from, to)| format!("{from} must not depend on {to}")).collect()
}

#[test]
fn crates_depend_on_no_peer_but_those_of_the_map() -> Result {
    let metadata = metadata()?;
    let root = metadata.workspace_root.as_std_path();
    let is_program = |manifest: &Path| {
        manifest.strip_prefix(root).is_ok_and(|path| path.starts_with("examples") || path.starts_with("benches"))
    };
    let (mut programs, mut libraries) = (BTreeSet::new(), BTreeSet::new());
    for package in metadata.workspace_packages() {
        let set = if is_program(package.manifest_path.as_std_path()) { &mut programs } else { &mut libraries };
        set.insert(package.name.to_string());
    }
    let known = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(libraries, known, "the map and the workspace have other crates");
    let found = edges(&metadata);
    assert!(found.iter().any(|(from, to)| from == "estiba-engine" && to == "estiba-shim"), "no edges were read");
    let wrong = forbidden(&found, &programs);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_check_of_edges_sees_a_wrong_one() {
    let edge = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    let programs = BTreeSet::from(["estiba".to_owned()]);
    let cases = [
        (edge("estiba-image", "estiba-storage"), false),
        (edge("estiba-runtime", "estiba-shim"), false),
        (edge("estiba-shim", "estiba-network"), false),
        (edge("estiba-storage", "estiba-engine"), false),
        (edge("estiba-new", "estiba-image"), false),
        (edge("estiba-shim", "estiba-runtime"), true),
        (edge("estiba-engine", "estiba-image"), true),
        (edge("estiba", "estiba-engine"), true),
    ];
    for (edge, right) in cases {
        assert_eq!(forbidden(std::slice::from_ref(&edge), &programs).is_empty(), right, "{edge:?}");
    }
}

/// All packages that `from` is built with (not its tests or build scripts), by a walk over the resolved graph.
fn reached<'a>(graph: &BTreeMap<&'a PackageId, Vec<&'a PackageId>>, from: &'a PackageId) -> BTreeSet<&'a PackageId> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(package) = open.pop() {
        if seen.insert(package) {
            open.extend(graph.get(package).into_iter().flatten());
        }
    }
    seen
}

#[test]
fn tokio_is_not_below_the_crates_that_block() -> Result {
    let metadata = metadata()?;
    let resolve = metadata.resolve.as_ref().ok_or("cargo metadata resolved nothing")?;
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    // What is optional is another's choice: the features of all members are united here.
    let mut optional = BTreeSet::new();
    for package in metadata.workspace_packages() {
        assert!(package.features.get("default").is_none_or(Vec::is_empty), "{} has default features", package.name);
        let own = package.dependencies.iter().filter(|dependency| dependency.optional);
        optional.extend(own.map(|dependency| (package.name.as_str(), dependency.name.as_str())));
    }
    let mut graph = BTreeMap::new();
    for node in &resolve.nodes {
        let normal =
            |kinds: &[cargo_metadata::DepKindInfo]| kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
        let mandatory = |dep: &&cargo_metadata::NodeDep| !optional.contains(&(names[&node.id], names[&dep.pkg]));
        let below = node.deps.iter().filter(|dep| normal(&dep.dep_kinds)).filter(mandatory);
        graph.insert(&node.id, below.map(|dep| &dep.pkg).collect::<Vec<_>>());
    }
    let below = |name: &str| -> Result<bool> {
        let id = names.iter().find(|(_, known)| **known == name).ok_or_else(|| format!("no package {name}"))?.0;
        Ok(reached(&graph, id).iter().any(|package| names[*package] == "tokio"))
    };
    assert!(below("estiba-engine")?, "the engine is above tokio: the walk found nothing");
    for name in BLOCKING {
        assert!(!below(name)?, "tokio is below {name}");
    }
    Ok(())
}

/// What is wrong with a source file's word on `unsafe`. The path is relative to the workspace.
fn unsafe_wrong(path: &Path, text: &str) -> Option<String> {
    let words: Vec<&str> = path.iter().filter_map(|word| word.to_str()).collect();
    let place = match words.as_slice() {
        // `hello` is the program inside the embedded image.
        ["benches", ..]
        | [_, "tests", ..]
        | ["examples", _, "tests", ..]
        | ["examples", "estiba", "hello", "sys.rs"] => true,
        [folder, "src", inside, ..] => SYSTEM_CALLS.contains(folder) && matches!(*inside, "sys" | "sys.rs"),
        _ => false,
    };
    // The names are put together here so that this file does not find itself.
    let (allow, expect) = (["allow(", "unsafe_code"].concat(), ["expect(", "unsafe_code"].concat());
    let path = path.display();
    if text.contains(&allow) {
        Some(format!("{path}: expect it, with a reason, rather than allow it"))
    } else if text.contains(&expect) && !place {
        Some(format!("{path}: unsafe code belongs in sys"))
    } else {
        None
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn unsafe_code_is_in_sys_alone() -> Result {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the crate has no parent folder")?;
    let mut found = Vec::new();
    sources(root, &mut found)?;
    assert!(found.len() > 20, "{} source files were found", found.len());
    let mut wrong = Vec::new();
    for path in found {
        let text = fs::read_to_string(&path)?;
        wrong.extend(unsafe_wrong(path.strip_prefix(root)?, &text));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for folder in FORBIDDING {
        let text = fs::read_to_string(root.join(folder).join("src/lib.rs"))?;
        assert!(text.contains("#![forbid(unsafe_code)]"), "{folder} does not forbid unsafe code");
    }
    for package in metadata()?.workspace_packages() {
        let text = fs::read_to_string(&package.manifest_path)?;
        assert!(text.contains("[lints]\nworkspace = true"), "{} has lints of its own", package.name);
    }
    Ok(())
}

#[test]
fn the_check_of_unsafe_sees_a_wrong_place() {
    let expect = ["#![expect(", "unsafe_code, reason = \"x\")]"].concat();
    let allow = ["#![allow(", "unsafe_code)]"].concat();
    let cases = [
        ("runtime/src/sys.rs", &expect, true),
        ("runtime/src/sys/child.rs", &expect, true),
        ("shim/src/sys.rs", &expect, true),
        ("benches/src/sys.rs", &expect, true),
        ("runtime/tests/it/main.rs", &expect, true),
        ("examples/estiba/tests/it/pty.rs", &expect, true),
        ("runtime/src/native.rs", &expect, false),
        ("engine/src/sys.rs", &expect, false),
        ("image/src/sys/map.rs", &expect, false),
        ("examples/estiba/src/main.rs", &expect, false),
        ("runtime/src/sys.rs", &allow, false),
        ("runtime/src/native.rs", &String::new(), true),
    ];
    for (path, text, right) in cases {
        assert_eq!(unsafe_wrong(Path::new(path), text).is_none(), right, "{path}");
    }
}
