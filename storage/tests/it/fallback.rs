//! Without `openat2`, as before Linux 5.6 and under seccomp filters that do not know it: the same trials again.

use std::process::Command;

use libtest_mimic::Trial;

use crate::plain;

const ASKED: &str = "ESTIBA_TEST_WITHOUT_OPENAT2";

pub(crate) fn trials() -> Vec<Trial> {
    if std::env::var_os(ASKED).is_some() {
        return vec![plain("openat2_is_missing", is_missing)];
    }
    vec![plain("without_openat2_all_is_the_same", again)]
}

fn again() {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.env(ASKED, "1").env("ESTIBA_RANDOM_ROUNDS", "30");
    for slow in ["stay_linear", "bombs", "many_", "kill"] {
        command.args(["--skip", slow]);
    }
    let done = command.output().expect("run");
    let output = String::from_utf8_lossy(&done.stdout);
    let ok = output.contains("openat2_is_missing") && output.contains("test result: ok") && done.status.success();
    // Only what went wrong is worth reading.
    let wrong = output.split_once("\nfailures:").map_or(&*output, |(_, wrong)| wrong);
    assert!(ok, "{}: {wrong}", done.status);
}

fn is_missing() {
    let resolve = rustix::fs::ResolveFlags::empty();
    let mode = rustix::fs::Mode::empty();
    let result = rustix::fs::openat2(rustix::fs::CWD, ".", rustix::fs::OFlags::PATH, mode, resolve);
    assert_eq!(result.err(), Some(rustix::io::Errno::NOSYS));
}

/// In the program that [`again`] starts: makes the kernel answer ENOSYS to `openat2`, before there are threads.
pub(crate) fn forbid_if_asked() {
    if std::env::var_os(ASKED).is_some() {
        forbid();
    }
}

#[expect(unsafe_code, reason = "a seccomp filter is how a test takes a system call away")]
fn forbid() {
    let statement = |code: u32, value: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value };
    let number = u32::try_from(libc::SYS_openat2).expect("a number");
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number) },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no pointers are passed.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0, "no new privileges");
    // SAFETY: `program` points to a filter that lives until the call returns, which copies it.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "a filter");
}
