//! Mounts, performed where nobody else sees them.

use std::path::Path;

use estiba_storage::oci_spec::runtime::Mount;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::mount as new;

/// Runs `work` on a thread with a mount namespace of its own, which goes with the thread.
pub(crate) fn private(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
            work();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Performs the mounts in the current namespace, calls the function, and unmounts.
pub(crate) fn with(mounts: &[Mount], work: &mut dyn FnMut(&Path)) {
    let place = tempfile::tempdir().expect("a folder");
    for one in mounts {
        perform(one, place.path());
    }
    work(place.path());
    for _ in mounts {
        nix::mount::umount(place.path()).expect("unmount");
    }
}

fn perform(one: &Mount, place: &Path) {
    let options = one.options().as_deref().unwrap_or_default();
    let none: Option<&str> = None;
    let read_only = options.iter().any(|option| option == "ro");
    if one.typ().as_deref() == Some("bind") {
        mount(one.source().as_deref(), place, none, MsFlags::MS_BIND, none).expect("bind");
        if read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, place, none, flags, none).expect("read-only");
        }
        return;
    }
    assert_eq!(one.typ().as_deref(), Some("overlay"));
    let fs = new::fsopen("overlay", new::FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", lowers)) => {
                for lower in lowers.split(':') {
                    new::fsconfig_set_string(&fs, "lowerdir+", lower).expect("lowerdir+");
                }
            }
            Some((key, value)) => new::fsconfig_set_string(&fs, key, value).expect("an option"),
            None if option == "ro" => {}
            None => new::fsconfig_set_flag(&fs, option.as_str()).expect("a flag"),
        }
    }
    new::fsconfig_create(&fs).expect("create overlay");
    let flags = if read_only { new::MountAttrFlags::MOUNT_ATTR_RDONLY } else { new::MountAttrFlags::empty() };
    let tree = new::fsmount(&fs, new::FsMountFlags::FSMOUNT_CLOEXEC, flags).expect("fsmount");
    let to = rustix::fs::CWD;
    new::move_mount(&tree, "", to, place, new::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).expect("move_mount");
}
