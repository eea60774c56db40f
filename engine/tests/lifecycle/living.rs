//! Containers that live on: without a client, with several, again and again.

use std::time::{Duration, Instant};

use estiba_engine::{
    Container, CreateRequest, Error, EventsRequest, ExecRequest, Exit, HealthStatus, Healthcheck, Kill, Limits,
    LogConfig, LogsRequest, RestartPolicy, Status, Streams, Until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::place::{self, Place, RunFolder};
use crate::{Result, on, shell};

fn kept(place: &Place, script: &str) -> CreateRequest {
    CreateRequest { auto_remove: false, ..shell(place, script) }
}

/// Starts a container without a client.
async fn detached(engine: &estiba_engine::Engine, request: CreateRequest) -> Result<Container> {
    let running = engine.run_with(request, Streams::NONE).await?;
    Ok(engine.container(running.id().as_str()).await?)
}

async fn until(what: &str, mut so: impl AsyncFnMut() -> Result<bool>) -> Result {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so().await? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within ten seconds").into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn log_of(container: &Container, follow: bool) -> Result<String> {
    let mut logs = container.logs(LogsRequest { follow, ..LogsRequest::default() }).await?;
    let mut text = String::new();
    while let Some(entry) = logs.next().await {
        text.push_str(&String::from_utf8_lossy(&entry?.bytes));
    }
    Ok(text)
}

pub(crate) fn detached_with_log_and_status() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let container = detached(&engine, kept(place, "echo one; sleep 0.3; echo two >&2; exit 5")).await?;
        assert_eq!(container.status().await?, Status::Running);
        assert_eq!(log_of(&container, true).await?, "one\ntwo\n", "followed to its end");
        let exit = Exit { status: 5, signal: None, oom_killed: false };
        assert_eq!(container.wait(Until::NotRunning).await?, Some(exit.clone()));
        assert_eq!(container.status().await?, Status::Exited(Some(exit.clone())));
        assert_eq!(log_of(&container, false).await?, "one\ntwo\n");
        container.remove(Kill::No).await?;
        let silent = CreateRequest { log: LogConfig::None, ..kept(place, "echo lost") };
        let container = detached(&engine, silent).await?;
        container.wait(Until::NotRunning).await?;
        let refused = container.logs(LogsRequest::default()).await.err().ok_or("there was a log")?;
        assert!(matches!(refused, Error::NoLog { .. }), "{refused}");
        Ok(container.remove(Kill::Yes).await?)
    })
}

pub(crate) fn waited_for_and_removed() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        // What comes right behind the wait or the kill finds that it does not run.
        for _ in 0..10 {
            let container = detached(&engine, kept(place, "exit 3")).await?;
            container.wait(Until::NotRunning).await?;
            container.remove(Kill::No).await?;
            let container = detached(&engine, kept(place, "exec sleep 100")).await?;
            let waiting = container.clone();
            let waiting = tokio::spawn(async move { waiting.wait(Until::NotRunning).await });
            container.kill(9).await?;
            container.start_with(Streams::NONE).await?;
            container.kill(9).await?;
            container.remove(Kill::No).await?;
            assert_eq!(waiting.await??.map(|exit| exit.status), Some(137));
        }
        Ok(())
    })
}

pub(crate) fn several_clients() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let request = CreateRequest { interactive: true, ..kept(place, "while read line; do echo got $line; done") };
        let container = detached(&engine, request).await?;
        let mut first = container.attach(Streams::ALL).await?;
        let mut second = container.attach(Streams::OUTPUT).await?;
        assert!(second.stdin.is_none());
        let mut stdin = first.stdin.take().ok_or("no input")?;
        stdin.write_all(b"this\n").await?;
        let mut text = [0; 9];
        for client in [&mut first, &mut second] {
            client.stdout.as_mut().ok_or("no output")?.read_exact(&mut text).await?;
            assert_eq!(&text, b"got this\n");
        }
        // The end of a client that came later is not the end of the container's input.
        drop((stdin, first));
        let mut third = container.attach(Streams::ALL).await?;
        let mut stdin = third.stdin.take().ok_or("no input")?;
        stdin.write_all(b"that\n").await?;
        second.stdout.as_mut().ok_or("no output")?.read_exact(&mut text).await?;
        assert_eq!(&text, b"got that\n");
        third.detach().await?;
        assert_eq!(container.status().await?, Status::Running);
        container.remove(Kill::Yes).await?;
        let mut rest = String::new();
        second.stdout.take().ok_or("no output")?.read_to_string(&mut rest).await?;
        assert_eq!(rest, "", "it sees the end");
        Ok(())
    })
}

pub(crate) fn further_processes() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let container = detached(&engine, kept(place, "exec sleep 100")).await?;
        let exec = |words: &[&str]| ExecRequest {
            command: words.iter().map(|word| (*word).to_owned()).collect(),
            ..ExecRequest::default()
        };
        let run = async |request: ExecRequest| -> Result<(String, i32)> {
            let mut exec = container.exec(request, Streams::ALL).await?;
            let mut text = String::new();
            exec.stdout.take().ok_or("no output")?.read_to_string(&mut text).await?;
            let status = exec.wait().await?;
            exec.finish(status).await?;
            Ok((text, status))
        };
        assert_eq!(run(exec(&["sh", "-c", "echo in; exit 7"])).await?, ("in\n".to_owned(), 7));
        let request = ExecRequest {
            env: vec!["A=b c".into()],
            workdir: Some("/etc".into()),
            ..exec(&["sh", "-c", "echo $A; pwd"])
        };
        assert_eq!(run(request).await?.0, "b c\n/etc\n");
        let request = ExecRequest { user: Some("12:34".into()), ..exec(&["id", "-u"]) };
        assert_eq!(run(request).await?.0, "12\n");
        let request = ExecRequest { interactive: true, ..exec(&["cat"]) };
        let mut cat = container.exec(request, Streams::ALL).await?;
        let mut stdin = cat.stdin.take().ok_or("no input")?;
        stdin.write_all(b"typed").await?;
        drop(stdin);
        let mut text = String::new();
        cat.stdout.take().ok_or("no output")?.read_to_string(&mut text).await?;
        assert_eq!((text.as_str(), cat.wait().await?), ("typed", 0));
        cat.finish(0).await?;
        for (program, code) in [("/nosuch", 127), ("/etc/passwd", 126)] {
            let error = container.exec(exec(&[program]), Streams::NONE).await.err().ok_or("it was executed")?;
            assert_eq!(error.exit_code(), code, "{}", place::chain(&error));
        }
        let error = container.exec(exec(&[]), Streams::NONE).await.err().ok_or("nothing was executed")?;
        assert!(matches!(error, Error::Request { .. }), "{error}");
        assert_eq!(container.processes().await?.len(), 1, "all others have gone");
        let long = container.exec(exec(&["sleep", "100"]), Streams::NONE).await?;
        long.kill(9).await?;
        assert_eq!(long.wait().await?, 137);
        container.remove(Kill::Yes).await?;
        let error = container.exec(exec(&["true"]), Streams::NONE).await.err().ok_or("it was executed")?;
        assert!(matches!(error, Error::NoContainer { .. }), "{error}");
        Ok(())
    })
}

pub(crate) fn stopped_and_killed() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let polite = "trap 'exit 3' TERM; while :; do sleep 0.05; done";
        let container = detached(&engine, kept(place, polite)).await?;
        // The trap has to be set.
        tokio::time::sleep(Duration::from_millis(200)).await;
        container.stop(None, None).await?;
        let ended = |status, signal| Status::Exited(Some(Exit { status, signal, oom_killed: false }));
        assert_eq!(container.status().await?, ended(3, None));
        container.stop(None, None).await?;
        assert!(matches!(container.kill(9).await, Err(Error::NotRunning { .. })));
        container.restart(None, Some(1)).await?;
        assert_eq!(container.status().await?, Status::Running);
        container.kill(9).await?;
        until("it is dead", async || Ok(container.status().await? == ended(137, Some(9)))).await?;
        container.remove(Kill::No).await?;

        let stubborn = detached(&engine, kept(place, "trap '' TERM; while :; do sleep 0.05; done")).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let begin = Instant::now();
        stubborn.stop(None, Some(1)).await?;
        assert!(begin.elapsed() >= Duration::from_secs(1));
        assert_eq!(stubborn.status().await?, ended(137, Some(9)));
        Ok(stubborn.remove(Kill::No).await?)
    })
}

pub(crate) fn paused_and_renamed_and_limited() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let container = detached(&engine, kept(place, "while :; do date +%N; sleep 0.01; done")).await?;
        container.pause().await?;
        assert_eq!(container.status().await?, Status::Paused);
        assert!(matches!(container.pause().await, Err(Error::Paused { .. })));
        let length = log_of(&container, false).await?.len();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(log_of(&container, false).await?.len(), length, "it stands");
        assert!(matches!(container.remove(Kill::No).await, Err(Error::StillPaused { .. })));
        container.unpause().await?;
        assert!(matches!(container.unpause().await, Err(Error::NotPaused { .. })));
        until("it goes on", async || Ok(log_of(&container, false).await?.len() > length)).await?;

        container.rename("other-name").await?;
        assert_eq!(engine.container("other-name").await?.id(), container.id());
        assert!(matches!(container.rename("other-name").await, Err(Error::SameName { .. })));
        assert!(container.rename("not a name").await.is_err());
        let second = engine.create(kept(place, "true")).await?;
        let taken = second.rename("other-name").await.err().ok_or("a name was given twice")?;
        assert!(matches!(taken, Error::NameTaken { .. }), "{taken}");
        second.rename("third").await?;
        second.remove(Kill::No).await?;

        let limits = Limits { memory: Some(64 << 20), pids_limit: Some(50), ..Limits::default() };
        container.update(limits, None).await?;
        let usage = container.usage().await?;
        assert_eq!(usage.stats.memory.limit, Some(64 << 20));
        assert_eq!(usage.stats.pids.limit, Some(50));
        assert!(usage.stats.cpu.usage > 0);
        assert_eq!(container.record().await?.request.limits.memory, Some(64 << 20));
        let refused = container.update(Limits { memory: Some(1), ..Limits::default() }, None).await;
        assert!(matches!(refused, Err(Error::Request { .. })));
        // Frozen, and all the same stopped.
        container.pause().await?;
        container.stop(None, Some(1)).await?;
        assert!(matches!(container.status().await?, Status::Exited(_)));
        assert!(matches!(container.usage().await, Err(Error::NotRunning { .. })));
        Ok(container.remove(Kill::No).await?)
    })
}

pub(crate) fn events_are_told() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let begin = std::time::SystemTime::now();
        let mut events = engine.events(EventsRequest::default()).await?;
        let container = detached(&engine, CreateRequest { name: Some("told".into()), ..kept(place, "exit 4") }).await?;
        container.wait(Until::NotRunning).await?;
        // Nobody was there at its end: the next command puts it on record.
        until("it is settled", async || {
            drop(place.open().await?);
            Ok(container.record().await?.ended.is_some())
        })
        .await?;
        container.remove(Kill::No).await?;
        let mut seen = Vec::new();
        while seen.last().is_none_or(|action| action != "destroy") {
            let event = events.next().await.ok_or("the end of events")??;
            assert_eq!((event.id.as_str(), event.attributes["name"].as_str()), (container.id().as_str(), "told"));
            if event.action == "die" {
                assert_eq!(event.attributes["exitCode"], "4");
            }
            seen.push(event.action);
        }
        assert_eq!(seen, ["create", "start", "die", "destroy"]);
        let past = EventsRequest { since: Some(begin), until: Some(std::time::SystemTime::now()) };
        let mut events = engine.events(past).await?;
        let mut again = Vec::new();
        while let Some(event) = events.next().await {
            again.push(event?.action);
        }
        assert_eq!(again, seen);
        Ok(())
    })
}

pub(crate) fn restarted_by_the_monitor() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let request = CreateRequest {
            restart: RestartPolicy::OnFailure { retries: Some(2) },
            ..kept(place, "echo run; sleep 0.1; exit 1")
        };
        let container = detached(&engine, request).await?;
        until("it has used up its restarts", async || {
            let record = container.record().await?;
            Ok(record.restarts == 2 && record.ended.is_some() && !record.restarting)
        })
        .await?;
        assert_eq!(log_of(&container, false).await?, "run\nrun\nrun\n");
        container.remove(Kill::No).await?;

        let request = CreateRequest { restart: RestartPolicy::Always, ..kept(place, "sleep 0.05") };
        let container = detached(&engine, request).await?;
        until("it is started again", async || Ok(container.record().await?.restarts >= 2)).await?;
        // Another monitor goes on where this one was killed.
        place::kill_monitor(place)?;
        let before = container.record().await?.restarts;
        // A kill is not at once, and then one command is enough.
        until("there is a monitor again", async || {
            drop(place.open().await?);
            Ok(place.has_monitor())
        })
        .await?;
        until("it is started again", async || Ok(container.record().await?.restarts > before)).await?;
        container.stop(None, Some(1)).await?;
        let stopped = container.record().await?.starts;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let record = container.record().await?;
        assert!(record.starts == stopped && !record.restarting, "{record:?}");
        container.remove(Kill::No).await?;
        until("the monitor goes", async || Ok(!place.has_monitor())).await
    })
}

pub(crate) fn checked_by_the_monitor() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let check = Healthcheck {
            test: vec!["CMD-SHELL".into(), "echo looked; test -e /well".into()],
            interval: Some(Duration::from_millis(100)),
            retries: Some(2),
            ..Healthcheck::default()
        };
        let container =
            detached(&engine, CreateRequest { health: Some(check), ..kept(place, "exec sleep 100") }).await?;
        let health = async || -> Result<_> { Ok(container.health().await?.ok_or("it is not checked")?) };
        assert_eq!(health().await?.status, HealthStatus::Starting);
        until("it is unhealthy", async || Ok(health().await?.status == HealthStatus::Unhealthy)).await?;
        let found = health().await?;
        assert_eq!((found.log[0].exit_code, found.log[0].output.as_str()), (1, "looked\n"));
        let request =
            ExecRequest { command: ["sh", "-c", ": > /well"].map(str::to_owned).to_vec(), ..ExecRequest::default() };
        let touch = container.exec(request, Streams::NONE).await?;
        assert_eq!(touch.wait().await?, 0);
        until("it is healthy", async || Ok(health().await?.status == HealthStatus::Healthy)).await?;
        // An event follows what it tells of.
        until("both are told", async || {
            let mut events = engine
                .events(EventsRequest { since: Some(std::time::UNIX_EPOCH), until: Some(std::time::SystemTime::now()) })
                .await?;
            let mut told = Vec::new();
            while let Some(event) = events.next().await {
                let action = event?.action;
                told.extend(action.starts_with("health").then_some(action));
            }
            Ok(told == ["health_status: unhealthy", "health_status: healthy"])
        })
        .await?;
        container.remove(Kill::Yes).await?;
        until("the monitor goes", async || Ok(!place.has_monitor())).await
    })
}

pub(crate) fn after_a_reboot() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let always = CreateRequest {
            restart: RestartPolicy::Always,
            name: Some("always".into()),
            ..kept(place, "exec sleep 100")
        };
        let always = detached(&engine, always).await?;
        let unless = CreateRequest { restart: RestartPolicy::UnlessStopped, ..kept(place, "exec sleep 100") };
        let unless = detached(&engine, unless).await?;
        unless.stop(None, Some(0)).await?;
        let plain = detached(&engine, kept(place, "exec sleep 100")).await?;
        let passing = detached(&engine, shell(place, "exec sleep 100")).await?;
        drop(engine);
        // What a reboot does: every process of ours is gone at once, RUN is empty, and another boot is on record.
        place::kill_monitor(place)?;
        for container in [&always, &plain, &passing] {
            place::kill_shim(container.id().as_str())?;
        }
        place.reboot(RunFolder::Gone)?;
        let engine = place.open().await?;
        let names: Vec<_> = engine.containers().await?.into_iter().map(|summary| summary.record.id).collect();
        assert!(!names.contains(passing.id()), "a container that was to be removed is");
        assert!(matches!(plain.status().await?, Status::Exited(None)));
        assert!(matches!(unless.status().await?, Status::Exited(_)), "somebody had stopped it");
        let again = engine.container("always").await?;
        until("it is back", async || Ok(again.status().await? == Status::Running)).await?;
        for container in [&always, &plain, &unless] {
            engine.container(container.id().as_str()).await?.remove(Kill::Yes).await?;
        }
        until("the monitor goes", async || Ok(!place.has_monitor())).await
    })
}

pub(crate) fn after_a_reboot_with_much_left() -> Result {
    for run in [RunFolder::Gone, RunFolder::Stays] {
        on(async |place| much_left(place, run).await).map_err(|error| format!("RUN is {run:?}: {error}"))?;
    }
    Ok(())
}

/// Containers in all states, with added processes, and none that comes back by itself.
async fn much_left(place: &Place, run: RunFolder) -> Result {
    let engine = place.open().await?;
    let named = |name: &str, script: &str| CreateRequest { name: Some(name.into()), ..kept(place, script) };
    let plain = detached(&engine, named("plain", "echo run; echo x >> /file; cat /file; exec sleep 100")).await?;
    let request =
        ExecRequest { command: vec!["sleep".into(), "100".into()], interactive: true, ..ExecRequest::default() };
    let exec = plain.exec(request, Streams::ALL).await?;
    let attached = plain.attach(Streams::OUTPUT).await?;
    let paused = detached(&engine, named("paused", "exec sleep 100")).await?;
    paused.pause().await?;
    let created = engine.create(named("created", "exit 4")).await?;
    let exited = detached(&engine, named("exited", "exit 3")).await?;
    exited.wait(Until::NotRunning).await?;
    until("it is settled", async || {
        drop(place.open().await?);
        Ok(exited.record().await?.ended.is_some())
    })
    .await?;
    let passing = detached(&engine, CreateRequest { auto_remove: true, ..named("passing", "exec sleep 100") }).await?;
    for container in [&plain, &paused, &passing] {
        place::kill_shim(container.id().as_str())?;
    }
    drop((engine, exec, attached));
    place.reboot(run)?;

    let engine = place.open().await?;
    let ended = |status| Status::Exited(Some(Exit { status, signal: None, oom_killed: false }));
    for (name, expected) in [
        ("plain", Status::Exited(None)),
        ("paused", Status::Exited(None)),
        ("created", Status::Created),
        ("exited", ended(3)),
    ] {
        let container = engine.container(name).await?;
        assert_eq!(container.status().await?, expected, "{name}");
        assert!(matches!(container.kill(9).await, Err(Error::NotRunning { .. })), "{name}");
        assert!(container.unpause().await.is_err(), "{name}");
        container.stop(None, Some(0)).await?;
    }
    assert!(matches!(engine.container("passing").await, Err(Error::NoContainer { .. })));
    let request = ExecRequest { command: vec!["true".into()], ..ExecRequest::default() };
    let refused = engine.container("plain").await?.exec(request, Streams::NONE).await.err().ok_or("it was executed")?;
    assert!(matches!(refused, Error::NotRunning { .. }), "{refused}");
    // What it was is there: its log, its files, its name.
    let again = engine.container("plain").await?;
    assert_eq!(log_of(&again, false).await?, "run\nx\n");
    again.start_with(Streams::NONE).await?;
    until("it has run again", async || Ok(log_of(&again, false).await? == "run\nx\nrun\nx\nx\n")).await?;
    let again = engine.container("paused").await?;
    again.start_with(Streams::NONE).await?;
    assert_eq!(again.status().await?, Status::Running);
    created.start_with(Streams::NONE).await?;
    assert_eq!(created.wait(Until::NotRunning).await?.map(|exit| exit.status), Some(4));
    for container in [&plain, &paused, &created, &exited] {
        engine.container(container.id().as_str()).await?.remove(Kill::Yes).await?;
    }
    Ok(())
}

pub(crate) fn damaged_records() -> Result {
    on(async |place| {
        let engine = place.open().await?;
        let whole = engine.create(kept(place, "true")).await?;
        for content in ["", "{", "{\"version\":99}", "[]"] {
            let container = detached(&engine, kept(place, "exec sleep 100")).await?;
            let path = place.root().join("containers").join(container.id().as_str()).join("record.json");
            std::fs::write(path, content)?;
            let engine = place.open().await?;
            let ids: Vec<_> = engine.containers().await?.into_iter().map(|summary| summary.record.id).collect();
            assert_eq!(ids, [whole.id().clone()]);
            let container = engine.container(container.id().as_str()).await?;
            assert!(container.remove(Kill::No).await.is_err());
            container.remove(Kill::Yes).await?;
        }
        Ok(whole.remove(Kill::No).await?)
    })
}
