pub(crate) fn trials() -> Vec<libtest_mimic::Trial> {
    Vec::new()
}
pub(crate) fn work_if_asked() {}
