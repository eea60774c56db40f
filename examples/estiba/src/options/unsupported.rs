//! Options of Docker's that this version cannot keep: they are known, so that each can be refused by its name with what to
//! do instead.

use clap::Args;

use crate::failure::{Failure, Result};

/// Docker's other options.
#[derive(Debug, Args)]
#[command(next_help_heading = None)]
pub(crate) struct Unsupported {
    #[arg(long, hide = true)]
    cpu_count: Option<String>,
    #[arg(long, hide = true)]
    cpu_percent: Option<String>,
    #[arg(long, hide = true)]
    cpu_rt_period: Option<String>,
    #[arg(long, hide = true)]
    cpu_rt_runtime: Option<String>,
    /// Nothing here signs images.
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    #[arg(long, hide = true)]
    expose: Vec<String>,
    #[arg(long, hide = true)]
    gpus: Option<String>,
    #[arg(long, hide = true)]
    init: bool,
    #[arg(long, hide = true)]
    io_maxbandwidth: Option<String>,
    #[arg(long, hide = true)]
    io_maxiops: Option<String>,
    #[arg(long, hide = true)]
    isolation: Option<String>,
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    #[arg(long, hide = true)]
    link: Vec<String>,
    #[arg(long, hide = true)]
    link_local_ip: Vec<String>,
    #[arg(long, hide = true)]
    platform: Option<String>,
    #[arg(long, hide = true)]
    storage_opt: Vec<String>,
    #[arg(long, hide = true)]
    use_api_socket: bool,
    #[arg(long, hide = true)]
    volume_driver: Option<String>,
}

impl Unsupported {
    /// Refuses what would be missed if it were left away. What asks for the way things are anyhow is fine.
    pub(super) fn refuse(&self) -> Result<()> {
        let is = |value: &Option<String>, usual: &[&str]| value.as_deref().is_none_or(|value| usual.contains(&value));
        let here = format!("linux/{}", crate::platform::architecture());
        let names = "containers find each other in a network of their own: give both --network NAME";
        let windows = "it means something on Windows alone: leave it away";
        let realtime = "processes in real time have no limits of their own here: use --cpus or --cpu-quota";
        for (option, given, reason) in [
            ("--link", !self.link.is_empty(), names),
            (
                "--link-local-ip",
                !self.link_local_ip.is_empty(),
                "addresses of the link are the kernel's own choice: leave it away",
            ),
            ("--gpus", self.gpus.is_some(), "drivers of GPUs are not brought in: give it their devices by --device"),
            ("--init", self.init, "no init is added: use an image that has one, such as tini"),
            ("--platform", !is(&self.platform, &["", &here]), "only images for this machine are run: leave it away"),
            ("--cpu-count", !is(&self.cpu_count, &["0"]), windows),
            ("--cpu-percent", !is(&self.cpu_percent, &["0"]), windows),
            ("--io-maxbandwidth", !is(&self.io_maxbandwidth, &["0"]), windows),
            ("--io-maxiops", !is(&self.io_maxiops, &["0"]), windows),
            ("--isolation", !is(&self.isolation, &["", "default"]), windows),
            ("--cpu-rt-period", !is(&self.cpu_rt_period, &["0"]), realtime),
            ("--cpu-rt-runtime", !is(&self.cpu_rt_runtime, &["0"]), realtime),
            (
                "--kernel-memory",
                !is(&self.kernel_memory, &["0"]),
                "the kernel has no limit of its own for it any more: --memory counts it, too",
            ),
            (
                "--storage-opt",
                !self.storage_opt.is_empty(),
                "root file systems have no size of their own: leave it away",
            ),
            ("--use-api-socket", self.use_api_socket, "there is no daemon whose socket it could use"),
            (
                "--volume-driver",
                !is(&self.volume_driver, &["", "local"]),
                "volumes are folders of this machine: the one driver is local",
            ),
        ] {
            if given {
                return Err(Failure::new(format!("{option} is refused: {reason}")));
            }
        }
        Ok(())
    }
}
