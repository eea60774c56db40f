//! `estiba info`: the machine, and what is kept on it.

use std::fmt::Write as _;

use clap::Args;
use estiba_engine::{Engine, Status};

use crate::cli::Place;
use crate::failure::Result;
use crate::place::place;
use crate::template::{Json, Record, Value};
use crate::{format, output, platform, size};

/// Show the machine, and what is kept on it
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// json, or a template
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// What is told.
struct Facts {
    containers: usize,
    running: usize,
    paused: usize,
    images: usize,
    driver: &'static str,
    cgroup_version: u8,
    kernel: String,
    system: String,
    cpus: usize,
    memory: u64,
    name: String,
    root: String,
}

impl Info {
    pub(crate) async fn execute(self, engine: &Engine, place: &Place) -> Result<u8> {
        let facts = Facts::gather(engine, place).await?;
        match self.format.as_deref() {
            None | Some("") => output::print(&facts.text()),
            Some("json") => output::print(&format!("{}\n", facts.object().json(Json::Compact))),
            Some(template) => output::print(&format::inspect(Some(template), vec![facts.object()])?),
        }
    }
}

impl Facts {
    async fn gather(engine: &Engine, place: &Place) -> Result<Self> {
        let containers = engine.containers().await?;
        let count = |status: &Status| containers.iter().filter(|container| container.status == *status).count();
        let names = rustix::system::uname();
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Ok(Self {
            containers: containers.len(),
            running: count(&Status::Running),
            paused: count(&Status::Paused),
            images: engine.stored_images().await?.len(),
            driver: place.snapshotter,
            cgroup_version: if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 },
            kernel: names.release().to_string_lossy().into_owned(),
            system: system.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, Into::into),
            memory: platform::memory(),
            name: names.nodename().to_string_lossy().into_owned(),
            root: place.root.display().to_string(),
        })
    }

    fn stopped(&self) -> usize {
        self.containers - self.running - self.paused
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "Containers: {}", self.containers);
        let _ = writeln!(text, " Running: {}", self.running);
        let _ = writeln!(text, " Paused: {}", self.paused);
        let _ = writeln!(text, " Stopped: {}", self.stopped());
        let _ = writeln!(text, "Images: {}", self.images);
        let _ = writeln!(text, "Server Version: {}", env!("CARGO_PKG_VERSION"));
        let _ = writeln!(text, "Storage Driver: {}", self.driver);
        let _ = writeln!(text, "Logging Driver: json-file");
        let _ = writeln!(text, "Cgroup Driver: cgroupfs");
        let _ = writeln!(text, "Cgroup Version: {}", self.cgroup_version);
        let _ = writeln!(text, "Kernel Version: {}", self.kernel);
        let _ = writeln!(text, "Operating System: {}", self.system);
        let _ = writeln!(text, "OSType: linux");
        let _ = writeln!(text, "Architecture: {}", std::env::consts::ARCH);
        let _ = writeln!(text, "CPUs: {}", self.cpus);
        let _ = writeln!(text, "Total Memory: {}", size::binary(self.memory));
        let _ = writeln!(text, "Name: {}", self.name);
        let _ = writeln!(text, "Root Dir: {}", self.root);
        if place().rootless {
            let _ = writeln!(text, "Rootless: true");
        }
        for what in &place().missing {
            let _ = writeln!(text, "WARNING: {what}");
        }
        text
    }

    fn object(&self) -> Value {
        Record::new("system.Info")
            .with("Containers", self.containers)
            .with("ContainersRunning", self.running)
            .with("ContainersPaused", self.paused)
            .with("ContainersStopped", self.stopped())
            .with("Images", self.images)
            .with("Driver", self.driver)
            .with("LoggingDriver", "json-file")
            .with("CgroupDriver", "cgroupfs")
            .with("CgroupVersion", self.cgroup_version.to_string())
            .with("KernelVersion", &self.kernel)
            .with("OperatingSystem", &self.system)
            .with("OSType", "linux")
            .with("Architecture", std::env::consts::ARCH)
            .with("NCPU", self.cpus)
            .with("MemTotal", self.memory)
            .with("DockerRootDir", &self.root)
            .with("Name", &self.name)
            .with("Rootless", place().rootless)
            .with("Warnings", place().missing.clone())
            .with("ServerVersion", env!("CARGO_PKG_VERSION"))
            .into()
    }
}
