//! The host's packet filter.

use estiba_network::firewall::{Firewall, NoFirewall};

/// The kernel's, in the namespace that the plugin runs in.
pub(crate) fn kernel() -> impl Firewall {
    NoFirewall
}
