//! The guests: which kernel each has, with which options, and what runs there.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::plan::User;

/// A virtual machine that tests can run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guest {
    V2,
    Old,
    Apparmor,
    Selinux,
    Systemd,
    User,
    Plain,
}

/// What the guest's first process is, once its root is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Init {
    /// This program: it mounts what is needed, runs the tests and ends the machine.
    Bare,
    Systemd,
}

impl Guest {
    /// Debian's release that the kernel is taken from.
    pub(crate) fn release(self) -> &'static str {
        match self {
            Self::Old => "bullseye",
            _ => "bookworm",
        }
    }

    pub(crate) fn init(self) -> Init {
        match self {
            Self::V2 | Self::Old | Self::Apparmor | Self::Selinux => Init::Bare,
            Self::Systemd | Self::User | Self::Plain => Init::Systemd,
        }
    }

    /// Options of the kernel's command line.
    pub(crate) fn options(self) -> &'static str {
        match self {
            Self::V2 | Self::Old => "apparmor=0",
            Self::Apparmor => "apparmor=1 security=apparmor",
            Self::Selinux => "apparmor=0 selinux=1 enforcing=0 security=selinux",
            Self::Systemd | Self::User | Self::Plain => "apparmor=0 systemd.unified_cgroup_hierarchy=1",
        }
    }

    /// Who runs the tests.
    pub(crate) fn user(self) -> User {
        match self {
            Self::User => User::Delegated,
            Self::Plain => User::Plain,
            _ => User::Root,
        }
    }
}
