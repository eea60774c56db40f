//! What the kernel offers.

use crate::sys;

/// What the kernel offers of what this crate has another way for.
///
/// [`Features::probe`] asks the kernel. A value with less in it makes [`crate::Native`] go the other way, which is how the other
/// ways are tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Features {
    /// [`clone3(2)`](https://man7.org/linux/man-pages/man2/clone3.2.html), Linux 5.3; some sandboxes hide it. Otherwise `clone(2)`,
    /// which has no `CLONE_INTO_CGROUP`.
    pub clone3: bool,
    /// [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html), Linux 5.6. Otherwise a walk, one component at a time.
    pub openat2: bool,
    /// [`mount_setattr(2)`](https://man7.org/linux/man-pages/man2/mount_setattr.2.html), Linux 5.12. Otherwise remounts, one mount
    /// at a time; recursive attributes are refused.
    pub mount_setattr: bool,
    /// The option `lowerdir+` of overlay, Linux 6.7. Otherwise one option with all the layers, of a page at most.
    pub lowerdir_append: bool,
    /// [`close_range(2)`](https://man7.org/linux/man-pages/man2/close_range.2.html), Linux 5.9. Otherwise one `close` at a time.
    pub close_range: bool,
}

impl Features {
    /// Asks the kernel, with a handful of calls that have no effect.
    #[must_use]
    pub fn probe() -> Self {
        Self {
            clone3: sys::process::has_clone3(),
            openat2: sys::file::has_openat2(),
            mount_setattr: sys::mount::has_set_attributes(),
            // Nothing answers this but the attempt.
            lowerdir_append: true,
            close_range: sys::file::has_close_range(),
        }
    }
}
