//! The same archive by GNU tar and by this crate: the same tree, entry by entry.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use estiba_storage::layer::{Compression, Limits, Target, apply};
use libtest_mimic::Trial;

use crate::{privileged, tree};

const FORMATS: &[(&str, &[&str])] = &[
    ("gnu", &["--format=gnu"]),
    ("gnu_sparse", &["--format=gnu", "--sparse"]),
    ("posix", &["--format=posix", "--xattrs", "--xattrs-include=*"]),
    ("posix_sparse_0_0", &["--format=posix", "--sparse", "--sparse-version=0.0"]),
    ("posix_sparse_0_1", &["--format=posix", "--sparse", "--sparse-version=0.1"]),
    ("posix_sparse_1_0", &["--format=posix", "--sparse", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*"]),
    ("oldgnu", &["--format=oldgnu"]),
    ("ustar", &["--format=ustar", "--exclude=*long*", "--exclude=*huge*", "--exclude=*negative*"]),
    (
        "v7",
        &[
            "--format=v7",
            "--exclude=*long*",
            "--exclude=*huge*",
            "--exclude=*negative*",
            "--exclude=dev*",
            "--exclude=fifo",
        ],
    ),
];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials: Vec<_> = FORMATS
        .iter()
        .map(|(name, options)| {
            privileged(&format!("like_gnu_tar_{name}"), &["tar", "bash", "setfattr"], || compare(options))
        })
        .collect();
    trials.push(privileged("like_umoci", &["tar", "bash", "setfattr", "umoci"], like_umoci));
    trials
}

pub(crate) const TREE: &str = r"
set -e
mkdir -p usr/bin usr/share/doc etc/empty 'with space' $'new\nline'
echo shell > usr/bin/sh; chmod 4755 usr/bin/sh; ln usr/bin/sh usr/bin/bash; ln -s sh usr/bin/dash; ln -s /usr/bin bin
head -c 300000 /dev/urandom > usr/share/data
touch etc/void; echo a > 'with space/fi le'; echo b > $'new\nline/ü'
chown 1000:2000 usr/share/data; chown -h 33:33 usr/bin/dash; chmod 0 etc/void; chmod 1777 etc/empty; chmod 2755 usr/share
mknod dev-null c 1 3; mknod dev-sda b 8 1; mkfifo fifo; chown 5:6 dev-null; chmod 660 dev-sda
long=$(printf 'long%.0s' $(seq 50)); mkdir -p $long/$long; echo deep > $long/$long/$long; ln -s $long/$long target-long
ln $long/$long/$long link-long
truncate -s 10M sparse; printf middle | dd of=sparse bs=1 seek=5000000 conv=notrunc status=none
truncate -s 1M sparse-end; printf start | dd of=sparse-end bs=1 conv=notrunc status=none
truncate -s 4M sparse-many; for i in $(seq 60); do printf x | dd of=sparse-many bs=1 seek=$((i*65536)) conv=notrunc status=none; done
truncate -s 2M sparse-only-hole
echo huge > huge-owner; chown 3000000:3000001 huge-owner
setfattr -n user.note -v value etc/void; setfattr -n user.bin -v 0x00ff3d0a etc; setfattr -n trusted.x -v y usr/bin/sh
setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 usr/share/data
touch -d '2001-02-03 04:05:06.789012345' etc/void; touch -h -d '1999-01-01' usr/bin/dash; touch -d '1960-01-01' negative-time
touch -d '2020-01-01' usr etc 'with space'
";

pub(crate) fn bash(folder: &Path, script: &str) {
    let status = Command::new("bash").arg("-c").arg(script).current_dir(folder).status().expect("bash");
    assert!(status.success(), "bash: {status}");
}

pub(crate) fn tar(folder: &Path, arguments: &[&str]) {
    let done = Command::new("tar").args(arguments).current_dir(folder).output().expect("tar");
    assert!(done.status.success(), "tar: {}", String::from_utf8_lossy(&done.stderr));
}

fn compare(options: &[&str]) {
    let work = tempfile::tempdir().expect("a folder");
    for folder in ["tree", "theirs", "ours"] {
        fs::create_dir(work.path().join(folder)).expect("folder");
    }
    bash(&work.path().join("tree"), TREE);
    let archive = work.path().join("archive.tar");
    let archive_text = archive.to_str().expect("text");
    let tree_text = work.path().join("tree");
    let create = [options, &["-cf", archive_text, "-C", tree_text.to_str().expect("text"), "."]].concat();
    tar(work.path(), &create);
    let extract = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-pxf", archive_text];
    tar(&work.path().join("theirs"), &extract);
    let target = Target::folder(work.path().join("ours")).expect("a target");
    let archive = fs::File::open(&archive).expect("open");
    apply(archive, Compression::Sniff, &target, &Limits::default()).expect("applied");
    let list = |folder: &str| tree::list(&work.path().join(folder), tree::Times::All);
    let ours = list("ours");
    assert!(ours.len() > 20, "{ours:?}");
    tree::assert_same(&list("theirs"), &ours, "GNU tar and ours");
}

/// Two layers with whiteouts, unpacked by umoci and by ours.
fn like_umoci() {
    let work = tempfile::tempdir().expect("a folder");
    for folder in ["one", "two", "ours"] {
        fs::create_dir(work.path().join(folder)).expect("folder");
    }
    bash(&work.path().join("one"), TREE);
    bash(
        &work.path().join("two"),
        "mkdir -p usr/bin etc 'with space'; touch usr/bin/.wh.dash etc/.wh..wh..opq .wh.bin; echo new > etc/new; \
         echo changed > usr/bin/bash; touch 'with space/.wh.fi le'; touch .wh.sparse; touch .wh.none; \
         touch -d 2015-05-05 usr usr/bin etc etc/new usr/bin/bash 'with space'",
    );
    bash(
        work.path(),
        "for l in one two; do tar --format=posix --xattrs --xattrs-include='*' -cf $l.tar -C $l .; done; \
         umoci init --layout image >/dev/null && umoci new --image image:t >/dev/null && \
         umoci raw add-layer --image image:t one.tar >/dev/null && umoci raw add-layer --image image:t two.tar >/dev/null && \
         umoci unpack --image image:t theirs >/dev/null",
    );
    let target = Target::folder(work.path().join("ours")).expect("a target");
    for layer in ["one.tar", "two.tar"] {
        let archive = fs::read(work.path().join(layer)).expect("read");
        apply(Cursor::new(archive), Compression::Sniff, &target, &Limits::default()).expect("applied");
    }
    // The time of the root is umoci's own.
    let list = |folder: &str| {
        let mut list = tree::list(&work.path().join(folder), tree::Times::All);
        list.remove("");
        list
    };
    tree::assert_same(&list("theirs/rootfs"), &list("ours"), "umoci and ours");
}
