//! `ipMasq`: what containers send to the outside carries the host's address.

use estiba_network::cni::Failure;
use estiba_network::cni::plugin::Request;
use estiba_network::firewall::{Firewall, Realm};

use crate::firewall;
use crate::record::{Key, Records};

const KIND: &str = "masquerade";

fn realm(interface: &str) -> Realm {
    Realm { bridge: interface.to_owned(), internal: false, isolate: false, masquerade: true }
}

/// Has the host's address put on what comes in by that interface of the host, for this attachment and others.
pub(crate) fn admit(key: &Key, interface: &str) -> Result<(), Failure> {
    let records = Records::open(KIND)?;
    records.write(key, &interface)?;
    let admitted = firewall::kernel().admit(None, &realm(interface)).map_err(Failure::from);
    if admitted.is_err() {
        let _ = records.remove(key);
    }
    admitted
}

/// Takes that back; for an interface, with the last attachment that has it.
pub(crate) fn withdraw(key: &Key) -> Result<(), Failure> {
    take_back(&Records::open(KIND)?, key)
}

/// Takes it back for attachments that nobody wants any more.
pub(crate) fn collect(request: &Request) -> Result<(), Failure> {
    let records = Records::open(KIND)?;
    records.stale(request).iter().try_for_each(|key| take_back(&records, key))
}

fn take_back(records: &Records, key: &Key) -> Result<(), Failure> {
    let Some(interface) = records.read::<String>(key) else { return records.remove(key) };
    let others = records.keys().into_iter().filter(|other| other != key);
    if !others.filter_map(|other| records.read::<String>(&other)).any(|other| other == interface) {
        firewall::kernel().withdraw(None, &realm(&interface))?;
    }
    records.remove(key)
}
