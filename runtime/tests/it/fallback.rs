//! Each way for an older kernel, forced.

use std::fs;
use std::io::Read;

use estiba_runtime::{Error, Features, Root, mount};
use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::sandbox::{Outcome, Sandbox, chain, privileged, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("without_clone3", || whole(|features| features.clone3 = false)),
        privileged("without_openat2", || whole(|features| features.openat2 = false)),
        privileged("without_mount_setattr", || whole(|features| features.mount_setattr = false)),
        privileged("without_close_range", || whole(|features| features.close_range = false)),
        privileged("without_mount_setattr_recursive_options_are_refused", recursive),
        privileged("without_lowerdir_append_layers_fit_into_a_page", overlay),
        privileged("without_mount_setattr_a_tree_is_read_only", readonly_tree),
    ]
}

/// A container with everything in it looks the same without the feature.
fn whole(without: fn(&mut Features)) -> Outcome {
    let look = |features: Features| -> Result<String, Failed> {
        let mut sandbox = Sandbox::with_features(features);
        let source = sandbox.outside().join("source");
        fs::create_dir(&source)?;
        fs::write(source.join("file"), "x")?;
        // Absolute links on the way stay inside.
        fs::create_dir(sandbox.rootfs().join("real"))?;
        std::os::unix::fs::symlink("/real", sandbox.rootfs().join("link"))?;
        let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
        list.push(
            json!({"destination": "/link/in", "type": "bind", "source": source, "options": ["rbind", "ro", "nosuid"]}),
        );
        list.push(json!({"destination": "/real/file", "type": "bind", "source": source.join("file"), "options": ["bind", "noexec"]}));
        sandbox.spec["root"]["readonly"] = json!(true);
        let _leak: Vec<_> = (0..5).map(|_| fs::File::open("/etc")).collect();
        sandbox.script(
            "sed 's/^[0-9]* [0-9]* [0-9:]* //; s/ - / /; s/master:[0-9]* //; s,/[^ ]*source,SOURCE,; s,/[^ ]*rootfs,ROOT,; s,/estiba-test[^ ]*,GROUP,' /proc/self/mountinfo | sort; \
             touch /real/in/x 2>/dev/null && echo written; echo x 2>/dev/null > /proc/sys/kernel/hostname && echo written; \
             touch /x 2>/dev/null && echo written; cat /proc/keys; ls /sys/firmware; id; grep Cap /proc/self/status; ls /dev; ls /real; \
             exec ls /proc/self/fd",
        );
        std::os::unix::fs::symlink("busybox", sandbox.rootfs().join("bin/sed"))?;
        sandbox.output()
    };
    let features = Features::probe();
    let mut less = features;
    without(&mut less);
    if less == features {
        return Err("the kernel does not have it anyway".into());
    }
    let wanted = look(features)?;
    let found = look(less)?;
    same(wanted.contains("written"), false)?;
    same(wanted.contains("/real/in ro,nosuid"), true).map_err(|_| wanted.clone())?;
    if found == wanted { Ok(()) } else { Err(format!("found\n{found}\nwanted\n{wanted}").into()) }
}

fn recursive() -> Outcome {
    let mut sandbox = Sandbox::with_features(Features { mount_setattr: false, ..Features::probe() });
    let list = sandbox.spec["mounts"].as_array_mut().expect("a list");
    list.push(json!({"destination": "/x", "type": "bind", "source": "/etc", "options": ["rbind", "rro"]}));
    same(matches!(sandbox.create(), Err(Error::Kernel { feature, .. }) if feature.contains("mount_setattr")), true)
}

/// Thirty layers with long names: together they are more than a page, so descriptors stand for them.
fn overlay() -> Outcome {
    for append in [true, false] {
        let features = Features { lowerdir_append: append, ..Features::probe() };
        let mut sandbox = Sandbox::with_features(features);
        let folder = sandbox.outside().join("layers,with:odd names");
        let long = "l".repeat(200);
        let mut layers = Vec::new();
        for at in 0..30 {
            let layer = folder.join(format!("{long}{at}"));
            fs::create_dir_all(&layer)?;
            fs::write(layer.join(format!("file{at}")), "x")?;
            fs::write(layer.join("same"), format!("{at}\n"))?;
            layers.push(layer.to_str().expect("text").replace(':', "\\:"));
        }
        layers.push(sandbox.rootfs().to_str().expect("text").to_owned());
        for name in ["upper", "work"] {
            fs::create_dir(folder.join(format!("{long}{name}")))?;
        }
        let path = |name: &str| folder.join(format!("{long}{name}")).display().to_string();
        let mounts = serde_json::from_value::<Vec<_>>(json!([{
            "destination": "/", "type": "overlay", "source": "overlay",
            "options": [format!("lowerdir={}", layers.join(":")), format!("upperdir={}", path("upper")), format!("workdir={}", path("work"))]
        }]))?;
        let before = fs::read_to_string("/proc/self/mountinfo")?;
        let fds = fs::read_dir("/proc/self/fd")?.count();
        let tree = mount::Tree::with_features(&mounts, features).map_err(|error| chain(&error))?;
        same(fs::read_to_string("/proc/self/mountinfo")? == before, true)?;
        same(fs::read_dir("/proc/self/fd")?.count(), fds + 1)?;
        let mut text = String::new();
        tree.open("same", libc::O_RDONLY)?.read_to_string(&mut text)?;
        same(text.as_str(), "0\n")?;
        sandbox.script("ls / | grep -c file; echo new > /new");
        let mut bundle = sandbox.bundle();
        bundle.root = Root::Detached(tree);
        same(sandbox.run_from(&bundle)?.stdout.as_str(), "30\n")?;
        same(fs::read_to_string(format!("{}/new", path("upper")))?.as_str(), "new\n")?;
    }
    Ok(())
}

fn readonly_tree() -> Outcome {
    let sandbox = Sandbox::new();
    let mounts = serde_json::from_value::<Vec<_>>(json!([
        {"destination": "/", "type": "bind", "source": sandbox.rootfs(), "options": ["rbind", "ro"]}
    ]))?;
    for mount_setattr in [true, false] {
        let tree = mount::Tree::with_features(&mounts, Features { mount_setattr, ..Features::probe() })?;
        let mut sandbox = Sandbox::new();
        sandbox.spec["process"]["args"] = json!(["touch", "/x"]);
        for name in ["dev", "proc", "sys"] {
            fs::create_dir_all(mounts_source(&mounts).join(name))?;
        }
        let mut bundle = sandbox.bundle();
        bundle.root = Root::Detached(tree);
        let ended = sandbox.run_from(&bundle)?;
        same(ended.stderr.contains("Read-only"), true).map_err(|_| format!("{ended:?}"))?;
    }
    Ok(())
}

fn mounts_source(mounts: &[estiba_runtime::oci_spec::runtime::Mount]) -> std::path::PathBuf {
    mounts.first().and_then(|mount| mount.source().clone()).expect("a source")
}
