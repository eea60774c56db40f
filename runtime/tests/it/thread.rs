//! Containers from a program with threads, and no allocator between clone and exec.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use estiba_runtime::{ExitStatus, Runtime};
use libtest_mimic::Trial;
use serde_json::json;

use crate::sandbox::{Outcome, Sandbox, chain, privileged, same};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        privileged("the_child_does_not_allocate", no_allocation),
        privileged("busy_threads_disturb_no_container", busy),
        privileged("the_watch_over_the_allocator_works", watch),
    ]
}

/// The system's allocator, which ends the process if a child of a watched thread calls it.
struct Watched;

thread_local! {
    /// The process that may allocate, 0 for any. A clone has a copy of it.
    static OWNER: Cell<u32> = const { Cell::new(0) };
}

/// What the child ends with if it allocates: a status that nothing else gives.
const ALLOCATED: i32 = 99;

fn check() {
    let owner = OWNER.get();
    if owner != 0 && owner != std::process::id() {
        // SAFETY: a plain number; no destructor runs.
        unsafe { libc::_exit(ALLOCATED) };
    }
}

// SAFETY: everything is the system's allocator's.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// Whoever watches has to be seen to.
fn watch() -> Outcome {
    OWNER.set(std::process::id());
    // SAFETY: the child does nothing but allocate, which is what is tried.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(black_box(Box::new(1u64)));
        // SAFETY: a plain number.
        unsafe { libc::_exit(0) };
    }
    OWNER.set(0);
    let mut status = 0;
    // SAFETY: status is a valid place.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    same(libc::WEXITSTATUS(status), ALLOCATED)
}

/// Every kind of step, with and without what older kernels lack, and every way to fail.
fn no_allocation() -> Outcome {
    let full = estiba_runtime::Features::probe();
    let bare = estiba_runtime::Features {
        clone3: false,
        openat2: false,
        mount_setattr: false,
        lowerdir_append: false,
        close_range: false,
    };
    for features in [full, bare] {
        let mut sandbox = Sandbox::with_features(features);
        for name in ["dev", "proc", "sys"] {
            std::fs::create_dir(sandbox.rootfs().join(name))?;
        }
        std::fs::create_dir(sandbox.rootfs().join("etc"))?;
        std::fs::write(sandbox.rootfs().join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n")?;
        sandbox.spec["linux"]["devices"] =
            json!([{"path": "/dev/x/null", "type": "c", "major": 1, "minor": 3, "uid": 1}]);
        sandbox.spec["linux"]["sysctl"] = json!({"kernel.shmmax": "12345"});
        sandbox.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        sandbox.spec["process"]["oomScoreAdj"] = json!(5);
        sandbox.spec["mounts"]
            .as_array_mut()
            .expect("a list")
            .push(json!({"destination": "/made/for/it", "type": "bind", "source": "/etc", "options": ["rbind", "ro"]}));
        sandbox.spec["root"]["readonly"] = json!(true);
        let bundle = sandbox.bundle();
        OWNER.set(std::process::id());
        let ended = sandbox.run_from(&bundle);
        OWNER.set(0);
        same(ended.map_err(|error| chain(&error))?.status, ExitStatus::Exited(0))?;

        sandbox.script("exec sleep 1000");
        let (first, _out, _err) = sandbox.create()?;
        sandbox.native.start(&sandbox.id)?;
        let mut added = Sandbox::process("true");
        added["oomScoreAdj"] = json!(6);
        let mut missing = added.clone();
        missing["args"] = json!(["nothing"]);
        let mut nowhere = added.clone();
        nowhere["cwd"] = json!("/nowhere");
        for (process, code) in [(&added, Ok(ExitStatus::Exited(0))), (&missing, Err(127)), (&nowhere, Err(125))] {
            OWNER.set(std::process::id());
            let ended = sandbox.exec(process);
            OWNER.set(0);
            same(ended.map(|ended| ended.status).map_err(|error| error.exit_code()), code)?;
        }
        sandbox.stop(&first)?;

        let user = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let mut mapped = sandbox.spec.clone();
        mapped["linux"]["uidMappings"] = user.clone();
        mapped["linux"]["gidMappings"] = user;
        mapped["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
        mapped["linux"]["devices"] = json!([]);
        mapped["linux"].as_object_mut().expect("an object").remove("sysctl");
        mapped["mounts"].as_array_mut().expect("a list").pop();
        mapped["process"]["args"] = json!(["nothing"]);
        let mut missing = sandbox.spec.clone();
        missing["process"]["args"] = json!(["nothing"]);
        let mut joined = sandbox.spec.clone();
        joined["linux"]["namespaces"][0]["path"] = json!("/proc/self/ns/pid");
        joined["process"]["args"] = json!(["nothing"]);
        for spec in [mapped, missing, joined] {
            sandbox.spec = spec;
            let bundle = sandbox.bundle();
            OWNER.set(std::process::id());
            let created = sandbox.create_from(&bundle);
            OWNER.set(0);
            match created {
                Err(error) => same(
                    (error.exit_code(), chain(&error)),
                    (
                        127,
                        "nothing: executable file not found in $PATH: No such file or directory (os error 2)"
                            .to_owned(),
                    ),
                )?,
                Ok(_) => return Err("it was created".into()),
            }
        }
    }
    Ok(())
}

/// Eight threads allocate and free without pause, holding the allocator's locks at any moment, while containers run.
fn busy() -> Outcome {
    let stop = AtomicBool::new(false);
    let ran = AtomicU32::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut kept = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    for size in 1..64usize {
                        kept.push(black_box(vec![0u8; size * 37]));
                    }
                    kept.clear();
                }
            });
        }
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<(), String> {
                    let mut sandbox = Sandbox::new();
                    sandbox.spec["process"]["args"] = json!(["echo", "done"]);
                    for _ in 0..50 {
                        let ended = sandbox.run().map_err(|error| chain(&error))?;
                        if ended.stdout != "done\n" {
                            return Err(format!("{ended:?}"));
                        }
                        ran.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        for result in results {
            result.map_err(|_| "a thread panicked")??;
        }
        Ok::<(), String>(())
    })?;
    same(ran.into_inner(), 200)
}
