//! Leases as files, in the format of the CNI plugin `host-local`, which may work on the same folder at the same time:
//! [its description](https://www.cni.dev/plugins/current/ipam/host-local/).
//!
//! A file named after each address that is given out says to whom (id, `\r\n`, interface), `last_reserved_ip.N` says where
//! pool `N` goes on, and the file `lock` is locked (flock) while any of it is looked at or changed.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};

use super::{Ipam, Lease, Owner};
use crate::error::{Error, Result};
use crate::ledger::failed;
use crate::network::{Family, Network, Subnet, add};

/// What is between a container's id and its interface.
const BREAK: &str = "\r\n";

/// An owner's file is an id and a name; one that is longer is nobody's.
const LONGEST: u64 = 4096;

/// Addresses of some pools, as files in a folder that programs share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLocal {
    /// The folder of one network: the plugin's `dataDir`, and the network's name. It is made when it is needed.
    pub folder: PathBuf,
    /// An owner gets an address of each of these pools; a pool is one or more subnets of one address family.
    pub pools: Vec<Vec<Subnet>>,
}

impl HostLocal {
    /// The addresses of a network, in a folder of its name below `folder`: a pool for each address family that it has.
    #[must_use]
    pub fn of(network: &Network, folder: &Path) -> Self {
        let pool = |family| -> Vec<Subnet> {
            network.subnets.iter().filter(|subnet| Family::of(subnet.subnet.addr()) == family).cloned().collect()
        };
        let pools = [pool(Family::V4), pool(Family::V6)].into_iter().filter(|pool| !pool.is_empty()).collect();
        Self { folder: folder.join(&network.name), pools }
    }

    /// What the owner has. This reads all leases.
    pub fn owned_by(&self, owner: &Owner) -> Result<Vec<Lease>> {
        let mut leases = self.leases()?;
        leases.retain(|lease| lease.owner == *owner);
        Ok(leases)
    }

    /// Forgets the network: all leases, and where its pools go on.
    pub fn remove_folder(&self) -> Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove the folder", &self.folder)(error)),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> Result<Flock<File>> {
        let path = self.folder.join("lock");
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.folder);
                made.map_err(failed("make the folder", &self.folder))?;
                open()
            }
            other => other,
        };
        let file = file.map_err(failed("open", &path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed("lock", &path)(errno.into()))
    }

    fn reserve_in(&self, number: usize, owner: &Owner, wanted: &[IpAddr]) -> Result<Lease> {
        let pool = &self.pools[number];
        let inside = |address: &&IpAddr| pool.iter().any(|subnet| subnet.subnet.contains(*address));
        if let Some(address) = wanted.iter().find(inside) {
            return self.reserve_exactly(number, owner, *address);
        }
        let last = self.folder.join(format!("last_reserved_ip.{number}"));
        let last = fs::read_to_string(last).ok().and_then(|text| text.trim().parse::<IpAddr>().ok());
        for (address, subnet) in round(pool, last) {
            if self.take(number, owner, address)? {
                return Ok(lease(subnet, address, owner));
            }
        }
        Err(Error::Exhausted { subnet: pool.first().map(|subnet| subnet.subnet).unwrap_or_default() })
    }

    fn reserve_exactly(&self, number: usize, owner: &Owner, address: IpAddr) -> Result<Lease> {
        let in_range = |subnet: &&Subnet| {
            // A reserved address, or one beside the range, is for who asks for it.
            subnet.usable(address) && subnet.gateway() != address
        };
        let subnet = self.pools[number].iter().find(in_range).ok_or(Error::AddressOutside { address })?;
        if self.take(number, owner, address)? {
            return Ok(lease(subnet, address, owner));
        }
        let owner = read_owner(&self.folder.join(address.to_string()))?.unwrap_or_else(nobody);
        Err(Error::AddressTaken { address, container: owner.container })
    }

    /// Makes the file of an address, unless it is somebody's. The lock is held.
    fn take(&self, number: usize, owner: &Owner, address: IpAddr) -> Result<bool> {
        let path = self.folder.join(address.to_string());
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Who makes a file has the lock: an empty one is of somebody who died between two steps.
                if fs::symlink_metadata(&path).map_err(failed("look at", &path))?.len() > 0 {
                    return Ok(false);
                }
                let opened = OpenOptions::new().write(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path);
                opened.map_err(failed("open", &path))?
            }
            Err(error) => return Err(failed("make", &path)(error)),
        };
        if let Err(error) = file.write_all(format!("{}{BREAK}{}", owner.container, owner.interface).as_bytes()) {
            let _ = fs::remove_file(&path);
            return Err(failed("write", &path)(error));
        }
        let last = self.folder.join(format!("last_reserved_ip.{number}"));
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&last);
        let written = written.and_then(|mut file| file.write_all(address.to_string().as_bytes()));
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(failed("write", &last)(error));
        }
        Ok(true)
    }

    fn given_out(&self) -> Result<Vec<IpAddr>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed("read the folder", &self.folder))?,
        };
        let mut addresses = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("read the folder", &self.folder))?.file_name();
            addresses.extend(name.to_str().and_then(|name| name.parse::<IpAddr>().ok()));
        }
        addresses.sort_unstable();
        Ok(addresses)
    }
}

impl Ipam for HostLocal {
    fn reserve(&self, owner: &Owner, wanted: &[IpAddr]) -> Result<Vec<Lease>> {
        let inside = |address: &IpAddr| self.pools.iter().flatten().any(|subnet| subnet.subnet.contains(address));
        if let Some(address) = wanted.iter().find(|address| !inside(address)) {
            return Err(Error::AddressOutside { address: *address });
        }
        let _lock = self.lock()?;
        let mut leases: Vec<Lease> = Vec::new();
        for number in 0..self.pools.len() {
            match self.reserve_in(number, owner, wanted) {
                Ok(lease) => leases.push(lease),
                Err(error) => {
                    for lease in leases {
                        let _ = fs::remove_file(self.folder.join(lease.address.addr().to_string()));
                    }
                    return Err(error);
                }
            }
        }
        Ok(leases)
    }

    fn release(&self, owner: &Owner, known: &[IpAddr]) -> Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let addresses = if known.is_empty() { self.given_out()? } else { known.to_vec() };
        for address in addresses {
            let path = self.folder.join(address.to_string());
            if read_owner(&path)?.is_some_and(|found| found == *owner || is_older(&found, owner)) {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn leases(&self) -> Result<Vec<Lease>> {
        if !self.folder.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let mut leases = Vec::new();
        for address in self.given_out()? {
            let Some(owner) = read_owner(&self.folder.join(address.to_string()))? else { continue };
            let subnet = self.pools.iter().flatten().find(|subnet| subnet.subnet.contains(&address));
            leases.push(match subnet {
                Some(subnet) => lease(subnet, address, &owner),
                // Of a pool that there is no more.
                None => Lease { address: IpNet::from(address), gateway: None, owner },
            });
        }
        Ok(leases)
    }
}

impl Subnet {
    /// The gateway, which by itself is the first address.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.gateway.unwrap_or_else(|| add(self.subnet.network(), 1))
    }
}

/// Files of plugins before 0.8.2 have the container alone.
fn is_older(found: &Owner, owner: &Owner) -> bool {
    found.interface.is_empty() && !found.container.is_empty() && found.container == owner.container
}

fn nobody() -> Owner {
    Owner { container: String::new(), interface: String::new() }
}

fn lease(subnet: &Subnet, address: IpAddr, owner: &Owner) -> Lease {
    let address = IpNet::new(address, subnet.subnet.prefix_len()).unwrap_or(subnet.subnet);
    Lease { address, gateway: Some(subnet.gateway()), owner: owner.clone() }
}

/// What the file of an address says; none if there is no such file.
fn read_owner(path: &Path) -> Result<Option<Owner>> {
    let file =
        match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("open", path))?,
        };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).map_err(failed("read", path))?;
    let text = String::from_utf8_lossy(&bytes);
    let (container, interface) = text.trim().split_once(BREAK).unwrap_or((text.trim(), ""));
    Ok(Some(Owner { container: container.to_owned(), interface: interface.to_owned() }))
}

/// All addresses that a pool gives out, from the one after `last`, once around.
fn round(pool: &[Subnet], last: Option<IpAddr>) -> impl Iterator<Item = (IpAddr, &Subnet)> {
    let within = |subnet: &Subnet, address: IpAddr| (subnet.first()..=subnet.last()).contains(&address);
    let found = last.and_then(|last| pool.iter().position(|subnet| within(subnet, last)).map(|at| (at, last)));
    let before = found.map(|(at, last)| (at, Span { next: Some(pool[at].first()), last }));
    let after = match found {
        Some((at, last)) => {
            let next = (last < pool[at].last()).then(|| add(last, 1));
            (at, Span { next, last: pool[at].last() })
        }
        None => (0, pool.first().map_or(Span { next: None, last: IpAddr::from([0; 4]) }, Span::of)),
    };
    let others = (1..pool.len()).map(move |step| (after.0 + step) % pool.len()).map(|at| (at, Span::of(&pool[at])));
    std::iter::once(after)
        .chain(others)
        .chain(before)
        .flat_map(move |(at, span)| span.map(move |address| (address, &pool[at])))
        .filter(|(address, subnet)| *address != subnet.gateway() && !subnet.reserved.contains(address))
}

/// Addresses one after another.
struct Span {
    next: Option<IpAddr>,
    last: IpAddr,
}

impl Span {
    fn of(subnet: &Subnet) -> Self {
        Self { next: Some(subnet.first()), last: subnet.last() }
    }
}

impl Iterator for Span {
    type Item = IpAddr;

    fn next(&mut self) -> Option<IpAddr> {
        let address = self.next?;
        self.next = (address < self.last).then(|| add(address, 1));
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn subnet(text: &str) -> Subnet {
        Subnet::new(text.parse().expect("a subnet"))
    }

    fn owner(container: &str) -> Owner {
        Owner { container: container.to_owned(), interface: "eth0".to_owned() }
    }

    fn host_local(folder: &Path, pools: &[&[&str]]) -> HostLocal {
        let pools = pools.iter().map(|pool| pool.iter().map(|text| subnet(text)).collect()).collect();
        HostLocal { folder: folder.join("net"), pools }
    }

    #[test]
    fn once_around_from_the_last() {
        let pool = [subnet("10.0.0.0/29"), subnet("10.0.1.0/30")];
        let order = |last: Option<&str>| -> Vec<String> {
            round(&pool, last.map(address)).map(|(address, _)| address.to_string().replace("10.0.", "")).collect()
        };
        assert_eq!(order(None), ["0.2", "0.3", "0.4", "0.5", "0.6", "1.2"]);
        assert_eq!(order(Some("10.0.0.4")), ["0.5", "0.6", "1.2", "0.2", "0.3", "0.4"]);
        assert_eq!(order(Some("10.0.0.6")), ["1.2", "0.2", "0.3", "0.4", "0.5", "0.6"]);
        assert_eq!(order(Some("10.0.1.2")), ["0.2", "0.3", "0.4", "0.5", "0.6", "1.2"]);
        assert_eq!(order(Some("192.168.0.1")).len(), 6);
        let end = [subnet("255.255.255.252/30")];
        assert_eq!(round(&end, Some(address("255.255.255.254"))).count(), 1);
    }

    #[test]
    fn the_files_are_the_plugins() {
        let root = tempfile::tempdir().expect("a folder");
        let ipam = host_local(root.path(), &[&["10.0.0.0/29"], &["fd00::/64"]]);
        let leases = ipam.reserve(&owner("abc"), &[]).expect("reserved");
        assert_eq!(
            leases.iter().map(|lease| lease.address.to_string()).collect::<Vec<_>>(),
            ["10.0.0.2/29", "fd00::2/64"]
        );
        assert_eq!(leases[0].gateway, Some(address("10.0.0.1")));
        let text = |name: &str| fs::read_to_string(root.path().join("net").join(name)).expect(name);
        assert_eq!(text("10.0.0.2"), "abc\r\neth0");
        assert_eq!(text("fd00::2"), "abc\r\neth0");
        assert_eq!((text("last_reserved_ip.0"), text("last_reserved_ip.1")), ("10.0.0.2".into(), "fd00::2".into()));
        assert!(root.path().join("net/lock").exists());
        assert_eq!(ipam.leases().expect("listed"), leases);
        assert_eq!(ipam.owned_by(&owner("abc")).expect("listed").len(), 2);
        ipam.release(&owner("other"), &[]).expect("released");
        assert_eq!(ipam.leases().expect("listed").len(), 2);
        ipam.release(&owner("abc"), &[]).expect("released");
        ipam.release(&owner("abc"), &[]).expect("released again");
        assert!(ipam.leases().expect("listed").is_empty());
    }

    #[test]
    fn exhausted_taken_outside() {
        let root = tempfile::tempdir().expect("a folder");
        let ipam = host_local(root.path(), &[&["10.0.0.0/30"]]);
        assert!(matches!(ipam.reserve(&owner("a"), &[address("10.0.0.1")]), Err(Error::AddressOutside { .. })));
        assert!(matches!(ipam.reserve(&owner("a"), &[address("10.0.0.3")]), Err(Error::AddressOutside { .. })));
        assert!(matches!(ipam.reserve(&owner("a"), &[address("10.9.0.2")]), Err(Error::AddressOutside { .. })));
        ipam.reserve(&owner("a"), &[address("10.0.0.2")]).expect("reserved");
        match ipam.reserve(&owner("b"), &[address("10.0.0.2")]) {
            Err(Error::AddressTaken { container, .. }) => assert_eq!(container, "a"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(ipam.reserve(&owner("b"), &[]), Err(Error::Exhausted { .. })));
        ipam.release(&owner("a"), &[address("10.0.0.2")]).expect("released");
        assert_eq!(ipam.reserve(&owner("b"), &[]).expect("reserved").len(), 1);
    }

    #[test]
    fn a_failure_of_the_second_pool_leaves_nothing_of_the_first() {
        let root = tempfile::tempdir().expect("a folder");
        let ipam = host_local(root.path(), &[&["10.0.0.0/24"], &["10.0.1.0/30"]]);
        ipam.reserve(&owner("a"), &[]).expect("reserved");
        assert!(matches!(ipam.reserve(&owner("b"), &[]), Err(Error::Exhausted { .. })));
        assert_eq!(ipam.leases().expect("listed").len(), 2);
    }

    #[test]
    fn a_file_cut_off_in_its_making_is_free() {
        let root = tempfile::tempdir().expect("a folder");
        let ipam = host_local(root.path(), &[&["10.0.0.0/30"]]);
        fs::create_dir(root.path().join("net")).expect("made");
        File::create(root.path().join("net/10.0.0.2")).expect("made");
        assert_eq!(ipam.leases().expect("listed")[0].owner.container, "");
        assert_eq!(ipam.reserve(&owner("a"), &[]).expect("reserved").len(), 1);
    }

    #[test]
    fn leases_of_the_dead_are_found() {
        let root = tempfile::tempdir().expect("a folder");
        let ipam = host_local(root.path(), &[&["10.0.0.0/24"]]);
        for name in ["a", "b", "c"] {
            ipam.reserve(&owner(name), &[]).expect("reserved");
        }
        fs::write(root.path().join("net/10.0.0.9"), "old").expect("written");
        let dead = ipam.release_dead(&|owner| owner.container == "b").expect("released");
        assert_eq!(dead.len(), 3);
        let left = ipam.leases().expect("listed");
        assert_eq!(left.iter().map(|lease| lease.owner.container.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_reserved_address_is_for_who_asks() {
        let root = tempfile::tempdir().expect("a folder");
        let mut ipam = host_local(root.path(), &[&["10.0.0.0/29"]]);
        ipam.pools[0][0].reserved = vec![address("10.0.0.2")];
        ipam.pools[0][0].last = Some(address("10.0.0.4"));
        let given = |wanted: &[IpAddr]| ipam.reserve(&owner("a"), wanted).expect("reserved")[0].address.addr();
        assert_eq!(given(&[]), address("10.0.0.3"));
        assert_eq!(given(&[address("10.0.0.2")]), address("10.0.0.2"));
        assert_eq!(given(&[]), address("10.0.0.4"));
        assert!(matches!(ipam.reserve(&owner("a"), &[]), Err(Error::Exhausted { .. })));
        assert_eq!(given(&[address("10.0.0.6")]), address("10.0.0.6"));
    }
}
