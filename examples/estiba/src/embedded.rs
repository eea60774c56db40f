//! The image inside this program.

use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};

/// How it is asked for.
pub(crate) const REFERENCE: &str = "embedded:hello";

/// An OCI image archive that the build script made.
pub(crate) static ARCHIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello.tar"));

#[cfg(test)]
#[path = "../build/pack.rs"]
mod pack;

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of the machine share.
static STARTED: OnceLock<u64> = OnceLock::new();

/// Remembers when this program started.
pub(crate) fn note_start() {
    let now = clock_gettime(ClockId::Monotonic);
    let _ = STARTED.set(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned());
}

/// The variable by which the program in the image learns when this one started.
pub(crate) fn variable() -> Option<String> {
    STARTED.get().map(|started| format!("ESTIBA_STARTED_NS={started}"))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn packing_the_same_program_twice_gives_the_same_bytes() {
        let pack = || pack::archive(b"a program", "amd64", "1").expect("packed");
        assert_eq!(pack(), pack());
        assert_ne!(pack(), pack::archive(b"another", "amd64", "1").expect("packed"));
    }

    #[test]
    fn every_blob_has_its_digest_for_a_name() {
        use sha2::{Digest as _, Sha256};
        let mut blobs = 0;
        for entry in tar::Archive::new(ARCHIVE).entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            if let Some(digest) = name.strip_prefix("blobs/sha256/").filter(|digest| !digest.is_empty()) {
                let mut data = Vec::new();
                entry.read_to_end(&mut data).expect("read");
                let hex: Vec<String> = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(hex.concat(), digest);
                blobs += 1;
            }
        }
        assert_eq!(blobs, 3, "manifest, configuration, layer");
    }
}
