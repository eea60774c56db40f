//! Options of Docker's that this version cannot keep: they are known, so that each can be refused by its name with what to
//! do instead.

use clap::Args;

use crate::failure::{Failure, Result};

/// Docker's other options.
#[derive(Debug, Args)]
#[command(next_help_heading = None)]
pub(crate) struct Unsupported {
    #[arg(long, hide = true)]
    add_host: Vec<String>,
    #[arg(long, hide = true)]
    annotation: Vec<String>,
    #[arg(long, hide = true)]
    cgroupns: Option<String>,
    #[arg(long, hide = true)]
    device: Vec<String>,
    #[arg(long, hide = true)]
    dns: Vec<String>,
    #[arg(long, hide = true)]
    domainname: Option<String>,
    #[arg(long, hide = true)]
    expose: Vec<String>,
    #[arg(long, hide = true)]
    gpus: Option<String>,
    #[arg(long, hide = true)]
    init: bool,
    #[arg(long, hide = true)]
    ipc: Option<String>,
    #[arg(long, hide = true)]
    link: Vec<String>,
    #[arg(long, hide = true)]
    pid: Option<String>,
    #[arg(long, hide = true)]
    platform: Option<String>,
    #[arg(long, hide = true)]
    userns: Option<String>,
    #[arg(long, hide = true)]
    uts: Option<String>,
    #[arg(long, hide = true)]
    volumes_from: Vec<String>,
}

impl Unsupported {
    /// Refuses what would be missed if it were left away. What asks for the way things are anyhow is fine.
    pub(super) fn refuse(&self) -> Result<()> {
        let is_private = |mode: &Option<String>| mode.as_deref().is_none_or(|mode| matches!(mode, "" | "private"));
        let is_platform = |platform: &Option<String>| {
            let here = format!("linux/{}", crate::platform::architecture());
            platform.as_deref().is_none_or(|platform| platform.is_empty() || platform == here)
        };
        let names = "there are no networks with addresses and names yet: use --network host";
        let for_host = "namespaces of the host or of other containers are not shared yet: leave it away";
        for (option, given, reason) in [
            ("--add-host", !self.add_host.is_empty(), names),
            ("--dns", !self.dns.is_empty(), names),
            ("--link", !self.link.is_empty(), names),
            ("--domainname", self.domainname.is_some(), "only --hostname is supported"),
            ("--annotation", !self.annotation.is_empty(), "annotations are not supported yet: use --label"),
            ("--device", !self.device.is_empty(), "devices are not given to containers yet"),
            ("--gpus", self.gpus.is_some(), "devices are not given to containers yet"),
            ("--init", self.init, "no init is added: use an image that has one, such as tini"),
            ("--cgroupns", !is_private(&self.cgroupns), for_host),
            ("--ipc", !is_private(&self.ipc), for_host),
            ("--pid", !is_private(&self.pid), for_host),
            ("--uts", !is_private(&self.uts), for_host),
            ("--userns", self.userns.as_deref().is_some_and(|mode| mode != "host"), for_host),
            ("--platform", !is_platform(&self.platform), "only images for this machine are run: leave it away"),
            ("--volumes-from", !self.volumes_from.is_empty(), "name the folders by -v"),
        ] {
            if given {
                return Err(Failure::new(format!("{option} is refused: {reason}")));
            }
        }
        Ok(())
    }
}
