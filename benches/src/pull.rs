//! Images on their way from a registry to a root file system.

use std::io;

use crate::contender::{Action, Contender, Group};
use crate::place::Place;
use crate::report::Table;
use crate::rows::{Docker, Yard, text};

/// Rounds before those that count. Each costs the whole image on disk: nothing is deleted before the end, since file systems
/// are slow for minutes where many files were just deleted.
const WARM: usize = 1;

impl Yard {
    /// From nothing to an image whose layers are file trees: every run has a place of its own.
    pub(crate) fn pull(&mut self) -> io::Result<Table> {
        let Some(image) = self.image.clone() else {
            let reason = "the row pull needs an image in a registry that speaks plain HTTP on loopback: --image 127.0.0.1:5000/NAME:TAG";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        };
        let mut contenders = Vec::new();
        for station in 0..self.stations.len() {
            // Cgroups do not matter here.
            if *self.stations[station].place() == Place::V1 {
                continue;
            }
            let home = |part: &str| text(&self.work.join(format!("{{id}}-{part}")));
            let (root, state) = (home("root"), home("run"));
            let (layout, bundle) = (home("layout"), home("bundle"));
            let estiba = ["--root", &root, "--run-root", &state, "pull", "--quiet", &image].map(str::to_owned);
            let program = self.ours("estiba")?;
            contenders.push(self.contender("estiba", program, station, &estiba)?);
            contenders.push(self.skopeo_and_umoci(station, &image, &layout, &bundle)?);
            let podman = [
                format!("--root={root}"),
                format!("--runroot={state}"),
                format!("--tmpdir={state}/tmp"),
                "--cgroup-manager=cgroupfs".to_owned(),
                "--events-backend=file".to_owned(),
                "pull".to_owned(),
                "--quiet".to_owned(),
                "--tls-verify=false".to_owned(),
                image.clone(),
            ];
            let program = self.find("podman", station)?;
            contenders.push(self.contender("podman", program, station, &podman)?);
        }
        let engines = if self.docker == Docker::Start { self.engines()? } else { Vec::new() };
        for engine in engines.into_iter().filter(|engine| engine.name == "docker") {
            let words = engine.words(&["pull", "--quiet", &image]);
            let mut contender = self.contender(engine.name, engine.program.clone(), engine.station, &words)?;
            if let Action::Process(argv) = contender.action {
                let program = argv.first().cloned().into_iter();
                let undo = program.chain(engine.words(&["rmi", "--force", &image])).collect();
                contender.action = Action::Undone { argv, undo };
            }
            contenders.push(contender);
        }
        let about = format!("pull of {image} from a registry on loopback, its layers unpacked, into an empty place");
        let group = Group { name: "pull", about, contenders };
        group.measure_after(WARM, &mut self.stations, self.rounds.0, self.rounds.1)
    }

    /// Two programs, one to fetch and one to unpack.
    fn skopeo_and_umoci(&mut self, station: usize, image: &str, layout: &str, bundle: &str) -> io::Result<Contender> {
        let (skopeo, umoci) = (self.find("skopeo", station)?, self.find("umoci", station)?);
        let (action, version) = match (skopeo, umoci) {
            (Ok(skopeo), Ok(umoci)) => {
                let version = format!("{}, {}", self.version(&skopeo, station)?, self.version(&umoci, station)?);
                let from = format!("docker://{image}");
                let to = format!("oci:{layout}:1");
                let copy = [&text(&skopeo), "copy", "--quiet", "--src-tls-verify=false", &from, &to];
                let named = format!("{layout}:1");
                let unpack = [&text(&umoci), "unpack", "--image", &named, bundle];
                let steps = [copy.map(str::to_owned).to_vec(), unpack.map(str::to_owned).to_vec()];
                (Action::Steps(steps.into()), version)
            }
            (Err(reason), _) => (Action::Absent(format!("skopeo: {reason}")), String::new()),
            (_, Err(reason)) => (Action::Absent(format!("umoci: {reason}")), String::new()),
        };
        Ok(Contender { name: "skopeo + umoci".to_owned(), version, station, action })
    }
}
