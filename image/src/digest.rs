//! Hashing with the algorithms that a digest may name.

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

use crate::{Error, Result};

/// The sha256 digest of some bytes.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// A running hash of one of the supported algorithms.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    pub(crate) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// A hash that can be compared with `digest`.
    pub(crate) fn for_digest(digest: &Digest) -> Result<Self> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Ok(Self::sha256()),
            DigestAlgorithm::Sha512 => Ok(Self::Sha512(Box::new(Sha512::new()))),
            _ => Err(Error::UnsupportedDigest { digest: digest.clone() }),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Self::Sha256(hash) => ("sha256:", hash.finalize().to_vec()),
            Self::Sha512(hash) => ("sha512:", hash.finalize().to_vec()),
        };
        let mut text = String::with_capacity(algorithm.len() + 2 * bytes.len());
        text.push_str(algorithm);
        for byte in bytes {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Digest::try_from(text).expect("an algorithm and its number of hexadecimal digits are a digest")
    }
}

/// The path of a blob below a layout's root, in parts: `blobs`, the algorithm, the hexadecimal digits.
///
/// Only algorithms that can be verified get a path: so its parts are plain words, whatever the document said (CVE-2024-3727).
pub(crate) fn path_parts(digest: &Digest) -> Result<[&str; 3]> {
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(["blobs", "sha256", digest.digest()]),
        DigestAlgorithm::Sha512 => Ok(["blobs", "sha512", digest.digest()]),
        _ => Err(Error::UnsupportedDigest { digest: digest.clone() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_the_well_known_vectors() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest_of(b"").to_string(), empty);
        let abc = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                   2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        let wanted: Digest = abc.parse().expect("a digest");
        let mut hasher = Hasher::for_digest(&wanted).expect("sha512 is supported");
        hasher.update(b"ab");
        hasher.update(b"c");
        assert_eq!(hasher.finish(), wanted);
    }

    #[test]
    fn only_verifiable_digests_get_a_path() {
        let good = digest_of(b"x");
        assert_eq!(path_parts(&good).expect("sha256")[1], "sha256");
        for text in ["sha384:".to_owned() + &"a".repeat(96), "md5:abc".to_owned()] {
            let digest: Digest = text.parse().expect("well-formed");
            assert!(matches!(path_parts(&digest), Err(Error::UnsupportedDigest { .. })), "{text}");
        }
    }
}
