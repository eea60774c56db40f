//! What a container, a network and an interface may be called. All three become parts of file names.

use super::failure::{Failure, code};

/// The kernel's `IFNAMSIZ`, without the NUL.
const INTERFACE_NAME_MAX: usize = 15;
/// Longer than any engine's; three of them must fit into a path.
const NAME_MAX: usize = 1024;

/// Letters and digits, and after the first also `_`, `.` and `-` (specification, section 2, "Parameters").
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= NAME_MAX
        && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Whether a container may be called so.
///
/// # Errors
///
/// Code 3 if it is empty, 4 if it has other characters.
pub fn check_container_id(id: &str) -> Result<(), Failure> {
    match id {
        "" => Err(Failure::new(code::UNKNOWN_CONTAINER, "missing container id")),
        id if is_name(id) => Ok(()),
        id => Err(Failure::new(code::INVALID_ENVIRONMENT, "invalid characters in container id").details(shortened(id))),
    }
}

/// Whether a network may be called so.
///
/// # Errors
///
/// Code 7 if not.
pub fn check_network_name(name: &str) -> Result<(), Failure> {
    match name {
        "" => Err(Failure::new(code::INVALID_CONFIG, "missing network name")),
        name if is_name(name) => Ok(()),
        name => Err(Failure::new(code::INVALID_CONFIG, "invalid characters in network name").details(shortened(name))),
    }
}

/// Whether an interface may be called so.
///
/// # Errors
///
/// Code 4 if not.
pub fn check_interface_name(name: &str) -> Result<(), Failure> {
    let wrong = if name.is_empty() {
        "interface name is empty"
    } else if name.len() > INTERFACE_NAME_MAX {
        "interface name has more than 15 bytes"
    } else if name == "." || name == ".." {
        "interface name is . or .."
    } else if name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        "interface name has a slash, a colon, white space or a control character"
    } else {
        return Ok(());
    };
    Err(Failure::new(code::INVALID_ENVIRONMENT, wrong).details(shortened(name)))
}

fn shortened(text: &str) -> String {
    text.chars().take(100).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_no_paths() {
        for good in ["a", "0", "c-1", "A.b_c"] {
            assert!(check_container_id(good).is_ok(), "{good}");
            assert!(check_network_name(good).is_ok(), "{good}");
        }
        for bad in ["../x", "-a", ".a", "a/b", "a b", "a\0", "ä", "a\n"] {
            assert_eq!(check_container_id(bad).expect_err(bad).code, 4);
            assert_eq!(check_network_name(bad).expect_err(bad).code, 7);
        }
        assert_eq!(check_container_id("").expect_err("empty").code, 3);
        assert!(check_container_id(&"a".repeat(1025)).is_err());
    }

    #[test]
    fn interface_names_are_the_kernel_s() {
        for good in ["eth0", "a-b.c@d", "fifteen-letters", "é0"] {
            assert!(check_interface_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-letters-", "a\0"] {
            assert_eq!(check_interface_name(bad).expect_err(bad).code, 4);
        }
    }
}
