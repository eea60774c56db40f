//! Containers through the library alone, in a program that is its own shim.

mod dropping;
mod image;
mod keeping;
mod living;
mod place;
mod reuse;

use std::time::Duration;

use estiba_engine::{CreateRequest, Error, Exit, Kill, Limits, Running, Stage, Status};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::io::AsyncReadExt;

use crate::place::Place;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() {
    estiba_engine::reexec();
    place::monitor();
    let arguments = Arguments::from_args();
    let missing = place::missing();
    let privileged = |name: &str, test: fn() -> Result| {
        Trial::test(name, move || test().map_err(|error| Failed::from(place::chain(&*error))))
            .with_ignored_flag(missing.is_some())
            .with_kind(missing.clone().unwrap_or_default())
    };
    let trials = vec![
        privileged("privileged_ten_at_once_and_nothing_stays", ten_at_once),
        privileged("privileged_a_created_container_is_kept_and_can_be_started_again", created_and_started_twice),
        privileged("privileged_a_name_is_taken_once", name_taken_once),
        privileged("privileged_a_program_that_is_missing_is_127_and_leaves_nothing", missing_program),
        privileged("privileged_signals_and_input_arrive", signals_and_input),
        privileged("privileged_a_dropped_run_leaves_nothing_for_good", dropped_run),
        privileged("privileged_a_dropped_start_can_be_made_again", dropping::start),
        privileged("privileged_a_dropped_stop_can_be_made_again", dropping::stop),
        privileged("privileged_a_dropped_exec_or_attach_holds_up_nothing", dropping::exec_and_attach),
        privileged("privileged_a_dropped_pause_is_known", dropping::pause),
        privileged("privileged_a_dropped_removal_is_finished", dropping::remove),
        privileged("privileged_a_dropped_commit_leaves_the_container_running", dropping::commit),
        privileged("privileged_a_dropped_handle_leaves_the_container_running", dropped_handle),
        privileged("privileged_a_killed_shim_is_told_and_cleaned_up", killed_shim),
        privileged("privileged_the_number_in_a_record_may_be_a_strangers", reuse::of_a_record),
        privileged("privileged_the_number_that_a_dead_shim_left_may_be_a_strangers", reuse::of_a_dead_shim),
        privileged("privileged_memory_that_ran_out_is_told", memory_ran_out),
        privileged("privileged_a_record_of_the_future_stops_nobody_else", future_record),
        privileged("privileged_users_and_files_of_the_image_are_used", users_and_files),
        privileged("privileged_a_damaged_blob_is_removed_and_comes_again", damaged_blob),
        privileged("privileged_a_detached_container_has_a_log_and_a_status", living::detached_with_log_and_status),
        privileged("privileged_an_end_that_was_waited_for_is_on_record", living::waited_for_and_removed),
        privileged("privileged_several_clients_are_attached_at_once", living::several_clients),
        privileged("privileged_further_processes_run_in_a_container", living::further_processes),
        privileged("privileged_containers_are_stopped_and_killed", living::stopped_and_killed),
        privileged("privileged_containers_are_paused_renamed_and_limited", living::paused_and_renamed_and_limited),
        privileged("privileged_events_are_told", living::events_are_told),
        privileged("privileged_the_monitor_restarts", living::restarted_by_the_monitor),
        privileged("privileged_the_monitor_checks_health", living::checked_by_the_monitor),
        privileged("privileged_a_reboot_is_noticed", living::after_a_reboot),
        privileged("privileged_after_a_reboot_nothing_is_lost", living::after_a_reboot_with_much_left),
        privileged("privileged_files_go_in_and_out_and_become_images", keeping::files_go_in_and_out),
        privileged("privileged_images_are_saved_and_loaded", keeping::images_are_saved_and_loaded),
        privileged("privileged_volumes_outlive_containers", keeping::volumes_outlive_containers),
        privileged("privileged_a_damaged_record_can_be_removed", living::damaged_records),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

/// Runs a test on a runtime with two threads, in a place of its own, after which nothing of it may be left.
fn on(test: impl AsyncFnOnce(&Place) -> Result) -> Result {
    let place = Place::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(test(&place))?;
    drop(runtime);
    place.is_clean()
}

fn shell(place: &Place, script: &str) -> CreateRequest {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    CreateRequest { command, auto_remove: true, ..CreateRequest::new(place.image.clone()) }
}

/// Reads the container's output to its end, waits for it, and removes it.
async fn attend(mut running: Running) -> Result<(String, Exit)> {
    let mut text = String::new();
    if let Some(mut stdout) = running.stdout.take() {
        stdout.read_to_string(&mut text).await?;
    }
    let exit = running.wait().await?;
    running.finish().await?;
    Ok((text, exit))
}

fn ten_at_once() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..10 {
            let (engine, request) = (engine.clone(), shell(place, &format!("echo line {number}; exit {number}")));
            tasks.spawn(async move { attend(engine.run(request).await?).await.map(|end| (number, end)) });
        }
        while let Some(ended) = tasks.join_next().await {
            let (number, (text, exit)) = ended??;
            assert_eq!(text, format!("line {number}\n"));
            assert_eq!(exit, Exit { status: number, signal: None, oom_killed: false });
        }
        Ok(())
    })
}

fn created_and_started_twice() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let request = CreateRequest { auto_remove: false, ..shell(place, "echo x >> /file; cat /file; exit 4") };
        let container = engine.create(request).await?;
        assert_eq!(container.status().await?, Status::Created);
        // Another engine on the same root, and its repair, leave it alone.
        let again = place.open().await?.container(container.id().short()).await?;
        let (text, exit) = attend(again.start().await?).await?;
        assert_eq!((text.as_str(), exit.status), ("x\n", 4));
        assert_eq!(container.status().await?, Status::Exited(Some(exit)));
        let (text, _) = attend(container.start().await?).await?;
        assert_eq!(text, "x\nx\n", "its root file system is kept");
        container.remove(Kill::No).await?;
        assert!(matches!(container.status().await, Err(Error::NoContainer { .. })));
        Ok(())
    })
}

fn name_taken_once() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let named = || CreateRequest { name: Some("only-one".to_owned()), auto_remove: false, ..shell(place, "true") };
        let first = engine.create(named()).await?;
        let error = engine.create(named()).await.err().ok_or("a name was given twice")?;
        assert!(matches!(&error, Error::NameTaken { owner, .. } if owner == first.id().as_str()), "{error}");
        assert_eq!(engine.containers().await?.len(), 1, "the one that got no name is gone");
        engine.container("only-one").await?.remove(Kill::No).await?;
        engine.create(named()).await?.remove(Kill::No).await?;
        Ok(())
    })
}

fn missing_program() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        for (program, code) in [("/nosuch", 127), ("nosuch", 127), ("/etc/passwd", 126), ("/etc", 126)] {
            let request = CreateRequest { command: vec![program.to_owned()], ..shell(place, "") };
            let error = engine.run(request).await.err().ok_or("it was executed")?;
            assert_eq!(error.exit_code(), code, "{program}: {}", place::chain(&error));
            assert!(place::chain(&error).contains(program), "{}", place::chain(&error));
            place.is_clean()?;
        }
        Ok(())
    })
}

fn signals_and_input() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
        let mut running = engine.run(shell(place, script)).await?;
        let mut stdout = running.stdout.take().ok_or("no output")?;
        let mut text = vec![0; 6];
        stdout.read_exact(&mut text).await?;
        running.kill(15).await?;
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).await?;
        assert_eq!(rest, "got it\n");
        assert_eq!(running.wait().await?.status, 9);
        running.finish().await?;

        let request = CreateRequest { interactive: true, ..shell(place, "cat; echo end") };
        let mut running = engine.run(request).await?;
        let mut stdin = running.stdin.take().ok_or("no input")?;
        tokio::io::AsyncWriteExt::write_all(&mut stdin, b"typed\n").await?;
        drop(stdin);
        assert_eq!(attend(running).await?.0, "typed\nend\n");

        let running = engine.run(shell(place, "sleep 100")).await?;
        running.kill(9).await?;
        assert_eq!(attend(running).await?.1, Exit { status: 137, signal: Some(9), oom_killed: false });
        Ok(())
    })
}

fn dropped_run() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        // From "just begun" to "runs already": the future is dropped at every stage.
        for microseconds in (0..40_u64).map(|step| step * step * 12) {
            let run = engine.run(shell(place, "sleep 100"));
            if let Ok(running) = tokio::time::timeout(Duration::from_micros(microseconds), run).await {
                running?.finish().await?;
            }
        }
        // One that was started before its future was dropped runs on. All else ends by itself, and what it left is found
        // by the next command.
        place
            .settles(async || {
                let Ok(engine) = place.open().await else { return };
                for summary in engine.containers().await.unwrap_or_default() {
                    if summary.record.stage == Stage::Started
                        && let Ok(container) = engine.container(summary.record.id.as_str()).await
                    {
                        let _ = container.remove(Kill::Yes).await;
                    }
                }
            })
            .await
    })
}

fn dropped_handle() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let running = engine.run(CreateRequest { auto_remove: false, ..shell(place, "sleep 0.3; exit 3") }).await?;
        let id = running.id().clone();
        drop(running);
        drop(place.open().await?);
        let container = engine.container(id.as_str()).await?;
        assert_eq!(container.status().await?, Status::Running, "repair must not touch it");
        let refused = container.remove(Kill::No).await.err().ok_or("a running container was removed")?;
        assert!(matches!(refused, Error::StillRunning { .. }), "{refused}");
        for _ in 0..200 {
            if container.status().await? != Status::Running {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let exit = Exit { status: 3, signal: None, oom_killed: false };
        assert_eq!(container.status().await?, Status::Exited(Some(exit)), "the shim stored how it ended");
        container.remove(Kill::No).await?;

        let running = engine.run(shell(place, "sleep 100")).await?;
        let container = engine.container(running.id().short()).await?;
        drop(running);
        container.remove(Kill::Yes).await?;
        Ok(())
    })
}

fn killed_shim() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let other = engine.run(shell(place, "sleep 1; echo still here")).await?;
        let running = engine.run(shell(place, "sleep 100")).await?;
        place::kill_shim(running.id().as_str())?;
        let error = running.wait().await.err().ok_or("a dead shim answered")?;
        assert!(matches!(error, Error::ShimLost { .. }), "{error}");
        running.finish().await?;
        assert_eq!(attend(other).await?.0, "still here\n");

        // The same without anybody who waits: the next command cleans up.
        let running = engine.run(shell(place, "sleep 100")).await?;
        let id = running.id().to_string();
        drop(running);
        place::kill_shim(&id)?;
        // A kill is not at once, and then one command is enough.
        place.settles(async || drop(place.open().await)).await
    })
}

fn memory_ran_out() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let request = CreateRequest {
            limits: Limits { memory: Some(16 << 20), ..Limits::default() },
            ..shell(place, "exec dd if=/dev/zero of=/dev/null bs=64M")
        };
        let (_, exit) = attend(engine.run(request).await?).await?;
        assert_eq!(exit, Exit { status: 137, signal: Some(9), oom_killed: true });
        Ok(())
    })
}

fn future_record() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let container = engine.create(CreateRequest { auto_remove: false, ..shell(place, "true") }).await?;
        let path = place.root().join("containers").join(container.id().as_str()).join("record.json");
        let record = std::fs::read_to_string(&path)?;
        std::fs::write(&path, record.replacen("\"version\":2", "\"version\":3", 1))?;
        let other = place.open().await?;
        assert_eq!(attend(other.run(shell(place, "echo fine")).await?).await?.0, "fine\n");
        let error = container.status().await.err().ok_or("a record of the future was read")?;
        assert!(matches!(error, Error::Version { .. }), "{error}");
        std::fs::write(&path, record)?;
        container.remove(Kill::No).await?;
        Ok(())
    })
}

fn damaged_blob() -> Result {
    on(async |place| {
        use estiba_engine::image::Source;
        let engine = place.open().await?;
        // A source beside the store: a copy of it, whole.
        let copy = place.root().with_file_name("source");
        let status =
            std::process::Command::new("cp").arg("-a").arg(place.root().join("content")).arg(&copy).status()?;
        assert!(status.success());
        let source: Source = format!("oci:{}:busybox", copy.display()).parse()?;
        let layer = place.layer()?;
        let mut bytes = std::fs::read(&layer)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::set_permissions(&layer, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        std::fs::write(&layer, bytes)?;
        let image = engine.import(source.clone()).await?;
        let request = |image| CreateRequest { image, ..shell(place, "echo whole") };
        let error = engine.run(request(image)).await.err().ok_or("a damaged layer was used")?;
        assert!(matches!(error, Error::DamagedBlob { .. }), "{}", place::chain(&error));
        place.is_clean()?;
        let image = engine.import(source).await?;
        assert_eq!(attend(engine.run(request(image)).await?).await?.0, "whole\n");
        Ok(())
    })
}

fn users_and_files() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let script = "id -u; id -g; id -G; echo $HOME; hostname; cat /etc/hostname; grep -c localhost /etc/hosts";
        let request =
            CreateRequest { user: Some("web".to_owned()), hostname: Some("box".to_owned()), ..shell(place, script) };
        let (text, _) = attend(engine.run(request).await?).await?;
        assert_eq!(text, "33\n34\n34 50\n/srv/web\nbox\nbox\n2\n");
        for user in ["nobody-there", "4294967296", "-1"] {
            let request = CreateRequest { user: Some(user.to_owned()), ..shell(place, "id") };
            let error = engine.run(request).await.err().ok_or("a user that is not there was taken")?;
            assert!(matches!(error, Error::NoUser { .. } | Error::IdRange { .. }), "{user}: {error}");
            place.is_clean()?;
        }
        Ok(())
    })
}
