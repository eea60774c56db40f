pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
    Vec::new()
}
pub(crate) fn forbid_if_asked() {}
