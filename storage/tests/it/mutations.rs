//! Archives with damage at random places: an error or a tree, never a panic, never anything outside.

use std::fs;
use std::io::Cursor;
use std::os::fd::AsFd as _;

use estiba_storage::archive::{UnpackOptions, unpack};
use estiba_storage::layer::{Compression, Limits, Target, apply};
use libtest_mimic::Trial;

use crate::archive::{Header, Tar};
use crate::plain;
use crate::random::Dice;

pub(crate) fn trials() -> Vec<Trial> {
    vec![plain("damaged_archives_do_no_harm", || {
        // More by the environment.
        let rounds = std::env::var("ESTIBA_MUTATION_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
        let outer = tempfile::tempdir().expect("a folder");
        fs::create_dir(outer.path().join("etc")).expect("folder");
        fs::write(outer.path().join("etc/passwd"), "outside").expect("write");
        let (mut taken, mut refused) = (0, 0);
        for seed in 1..=rounds {
            let archive = damaged(&mut Dice(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15)));
            let root = outer.path().join("root");
            fs::create_dir_all(root.join("etc")).expect("folder");
            let target = Target::folder(&root).expect("a target");
            let limits = Limits { bytes: 1 << 20, ..Limits::default() };
            let options = UnpackOptions { limits: limits.clone(), ..UnpackOptions::default() };
            let as_layer = apply(Cursor::new(&archive), Compression::Sniff, &target, &limits);
            let root_fd = fs::File::open(&root).expect("open");
            let _ = unpack(root_fd.as_fd(), "etc", Cursor::new(&archive), &options);
            *(if as_layer.is_ok() { &mut taken } else { &mut refused }) += 1;
            let mut names: Vec<_> =
                fs::read_dir(outer.path()).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
            names.sort();
            assert_eq!(names, ["etc", "root"], "seed {seed} got out");
            assert_eq!(fs::read_to_string(outer.path().join("etc/passwd")).expect("read"), "outside", "seed {seed}");
            fs::remove_dir_all(&root).expect("removed");
        }
        assert!(taken > 10 && refused > 10, "{taken} taken, {refused} refused");
    })]
}

/// An archive with a bit of everything.
fn whole() -> Vec<u8> {
    let long = "../".repeat(30);
    let out = format!("{long}etc/out");
    let sparse = [("GNU.sparse.major", &b"0"[..]), ("GNU.sparse.minor", b"1"), ("GNU.sparse.size", b"9000")];
    Tar::new()
        .dir("etc", 0o755)
        .file("etc/passwd", b"inside")
        .symlink("up", &format!("{long}etc"))
        .file("up/passwd", b"changed")
        .link("linked", "etc/passwd")
        .pax(&[("path", out.as_bytes()), ("mtime", b"-1.5"), ("SCHILY.xattr.user.x", b"y")])
        .file("named", b"x")
        .pax(&[sparse[0], sparse[1], sparse[2], ("GNU.sparse.map", b"0,3,5000,2"), ("GNU.sparse.name", b"holes")])
        .file("h", b"hello")
        .header(&mut Header::new("././@LongLink", b'L', 12), b"../../../etc")
        .dir("cut", 0o755)
        .file("etc/.wh.gone", b"")
        .device("pipe", b'6', 0, 0)
        .finish()
}

/// The archive with some bytes changed, or none; mostly with the checksums put right, since a reader looks no further
/// otherwise.
fn damaged(dice: &mut Dice) -> Vec<u8> {
    let mut archive = whole();
    for _ in 0..dice.roll(4) {
        let at = match dice.roll(3) {
            // Headers are where it hurts.
            0 => dice.roll(archive.len() / 512) * 512 + dice.roll(512),
            1 => dice.roll(archive.len() / 512) * 512 + [0, 100, 124, 156, 157, 257, 345][dice.roll(7)],
            _ => dice.roll(archive.len()),
        };
        archive[at] = [0, b'/', b'.', b'0', b'7', b'x', b'=', b'\n', 0x80, 0xff][dice.roll(10)];
    }
    if dice.roll(12) == 0 {
        archive.truncate(dice.roll(archive.len()));
    }
    if dice.roll(6) > 0 {
        for block in archive.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    archive
}
