//! Variations on the mounts that a snapshotter gives, without asking it again.

use oci_spec::runtime::Mount;

/// The same tree to look at only, changes included: overlay without an upper folder, or a read-only bind. To mount and
/// unmount it is cheap, since the kernel has nothing to sync when it goes. Only for a snapshot that nobody writes to now.
#[must_use]
pub fn read_only(mut mounts: Vec<Mount>) -> Vec<Mount> {
    for mount in &mut mounts {
        let mut options = mount.options().clone().unwrap_or_default();
        if is_overlay(mount) {
            if let Some(upper) = options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(str::to_owned) {
                options.retain(|option| {
                    !option.starts_with("upperdir=") && !option.starts_with("workdir=") && option != "volatile"
                });
                for option in &mut options {
                    if let Some(lower) = option.strip_prefix("lowerdir=") {
                        *option = format!("lowerdir={upper}:{lower}");
                    }
                }
            }
        } else {
            options.retain(|option| option != "rw");
        }
        if !options.iter().any(|option| option == "ro") {
            options.push("ro".to_owned());
        }
        mount.set_options(Some(options));
    }
    mounts
}

/// The same tree for a container whose changes are thrown away when it has ended: overlay's `volatile` (Linux 5.10), with
/// which the kernel does not write the file system behind it to disk when it is unmounted. Such a snapshot can be mounted
/// once. Other kinds of mounts are as they were.
#[must_use]
pub fn volatile(mut mounts: Vec<Mount>) -> Vec<Mount> {
    for mount in mounts.iter_mut().filter(|mount| is_overlay(mount)) {
        let mut options = mount.options().clone().unwrap_or_default();
        let writable = options.iter().any(|option| option.starts_with("upperdir="));
        if writable && !options.iter().any(|option| option == "volatile") {
            options.push("volatile".to_owned());
            mount.set_options(Some(options));
        }
    }
    mounts
}

fn is_overlay(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("overlay")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Vec<Mount> {
        let mut mount = Mount::default();
        mount.set_typ(Some(kind.to_owned()));
        mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
        vec![mount]
    }

    #[test]
    fn the_upper_folder_becomes_the_first_of_the_lower_ones() {
        let table: &[(&str, &[&str], &[&str])] = &[
            (
                "overlay",
                &["index=off", "volatile", "lowerdir=/b:/a", "upperdir=/u", "workdir=/w"],
                &["index=off", "lowerdir=/u:/b:/a", "ro"],
            ),
            ("overlay", &["lowerdir=/b:/a", "ro"], &["lowerdir=/b:/a", "ro"]),
            ("bind", &["bind", "rw"], &["bind", "ro"]),
        ];
        for (kind, given, expected) in table {
            assert_eq!(read_only(mount(kind, given)), mount(kind, expected), "{given:?}");
        }
    }

    #[test]
    fn only_a_writable_overlay_is_volatile() {
        let table: &[(&str, &[&str], &[&str])] = &[
            (
                "overlay",
                &["lowerdir=/a", "upperdir=/u", "workdir=/w"],
                &["lowerdir=/a", "upperdir=/u", "workdir=/w", "volatile"],
            ),
            ("overlay", &["upperdir=/u", "volatile"], &["upperdir=/u", "volatile"]),
            ("overlay", &["lowerdir=/b:/a", "ro"], &["lowerdir=/b:/a", "ro"]),
            ("bind", &["bind", "rw"], &["bind", "rw"]),
        ];
        for (kind, given, expected) in table {
            assert_eq!(volatile(mount(kind, given)), mount(kind, expected), "{given:?}");
        }
    }
}
