//! Damage at random: an image comes out whole or not at all.

use estiba_image::{Layout, Source};
use libtest_mimic::Trial;

use crate::fixture::{Files, check_stored, docker_save_new, docker_save_old, gzip, platform};

pub(crate) fn trials() -> Vec<Trial> {
    crate::trials!["random": damage_is_an_error_or_does_not_matter]
}

/// Xorshift: enough to choose bytes, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }

    fn damage(&mut self, bytes: &mut Vec<u8>) -> String {
        match self.below(5) {
            0 => {
                bytes.truncate(self.below(bytes.len()));
                format!("cut to {}", bytes.len())
            }
            1 => {
                let (from, to) = (self.below(bytes.len()), self.below(bytes.len()));
                let length = 1 + self.below(600).min(bytes.len() - from.max(to) - 1);
                bytes.copy_within(from..from + length, to);
                format!("{length} bytes copied from {from} to {to}")
            }
            _ => {
                let mut said = String::from("bits flipped at");
                for _ in 0..=self.below(3) {
                    let at = self.below(bytes.len());
                    bytes[at] ^= 1 << self.below(8);
                    said = format!("{said} {at}");
                }
                said
            }
        }
    }
}

fn damage_is_an_error_or_does_not_matter() {
    let seed = std::env::var("ESTIBA_IMAGE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        now.as_nanos() as u64 | 1
    });
    println!("seed {seed} (ESTIBA_IMAGE_TEST_SEED sets it)");
    let mut random = Random(seed);

    let mut files = Files::default();
    let made = files.image("random", "amd64");
    let mut nested = Files::default();
    let inner = nested.image("nested", "amd64").manifest;
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [inner] });
    let root = nested.document(&estiba_image::oci_spec::image::MediaType::ImageIndex, &index);
    nested.list(&[(None, root)]);
    files.list(&[(None, made.manifest)]);
    let old = docker_save_old(&[("random", &["random:1"])]).0;
    let new = docker_save_new("random", "random:1").0;
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("oci-archive", files.tar()),
        ("oci-archive", nested.tar()),
        ("oci-archive", gzip(&files.tar())),
        ("docker-archive", old.tar()),
        ("docker-archive", gzip(&old.tar())),
        ("docker-archive", new.tar()),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut failed, mut passed) = (0, 0);
    let mut import = |source: &str, round: usize, wanted: Option<&str>, said: &str| {
        let place = folder.path().join(format!("store-{round}"));
        let store = Layout::open_or_create(&place).expect("is made");
        let source: Source = source.parse().expect("a source");
        let digest = match source.import_for(&platform(), &store) {
            Ok(imported) => {
                check_stored(&store, &imported.manifest);
                Some(imported.manifest.digest().to_string())
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "seed {seed} round {round}: {error}");
                None
            }
        };
        // Now and then all of an archive: what is whole is named and stays, the rest is nothing that a collection leaves.
        if let Source::OciArchive { path, .. } | Source::DockerArchive { path, .. } = &source
            && round.is_multiple_of(4)
        {
            for image in store.load(path, &platform()).unwrap_or_default() {
                check_stored(&store, &image.manifest);
                store.find(image.id.as_ref()).expect("is listed");
                let found = store.find(image.manifest.digest().as_ref()).expect("is listed");
                assert_eq!(found.root.digest(), image.manifest.digest(), "seed {seed} round {round}");
            }
        }
        store.collect(&[]).unwrap_or_else(|error| panic!("seed {seed} round {round}: {error}"));
        let problems = store.verify().expect("verifies").problems;
        assert!(problems.is_empty(), "seed {seed} round {round}: {problems:?}");
        let left = store.usage(&[]).expect("counts").unreachable;
        assert_eq!(left.blobs, 0, "seed {seed} round {round}");
        if let (Some(wanted), Some(digest)) = (wanted, &digest) {
            assert_eq!(digest, wanted, "seed {seed} round {round}: {source}, {said}");
        }
        if wanted.is_some() {
            *(if digest.is_some() { &mut passed } else { &mut failed }) += 1;
        }
        std::fs::remove_dir_all(place).expect("remove");
        digest
    };

    let path = folder.path().join("archive");
    let mut wanted = Vec::new();
    for (transport, bytes) in &forms {
        std::fs::write(&path, bytes).expect("write");
        wanted.push(import(&format!("{transport}:{}", path.display()), 0, None, "").expect("whole"));
    }
    for round in 0..400 {
        let form = random.below(forms.len());
        let (transport, mut bytes) = forms[form].clone();
        let said = random.damage(&mut bytes);
        std::fs::write(&path, &bytes).expect("write");
        import(&format!("{transport}:{}", path.display()), round, Some(&wanted[form]), &said);
    }
    // The same for one file of a folder.
    let dir = folder.path().join("dir");
    for round in 0..120 {
        let mut damaged = files.clone();
        let name = damaged.0.keys().nth(random.below(damaged.0.len())).expect("a file").clone();
        let said = format!("{name}: {}", random.damage(damaged.0.get_mut(&name).expect("a file")));
        damaged.write(&dir);
        import(&format!("oci:{}", dir.display()), round, Some(&wanted[0]), &said);
    }
    println!("{failed} refused, {passed} came out whole");
    assert!(failed > 150 && passed > 5, "the damage is neither all fatal nor all harmless: {failed} and {passed}");

    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak < 512 << 10, "memory stays bounded: {peak} kB");
}
