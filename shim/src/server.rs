//! The shim's loop: one thread, which waits in one place for clients, children and bytes.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::codec::{self, Frame, Kind};
use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::output::NAMED;
use crate::proto::{self, Code, SHIM_SERVICE, Status, TASK_SERVICE, TASK_SERVICE_V3};
use crate::publisher::Publisher;
use crate::refusal::refuse;
use crate::sys;
use crate::task::{TICK, Task};

/// How many clients may be connected at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 128;

/// How many calls of `Wait` may be parked at once.
const MAX_PARKED: usize = 4096;

/// Bytes that pass through at once. One buffer serves all, and only the pages that are used are there.
const SCRATCH: usize = 64 << 10;

/// How long nothing has to happen after the start of the container until the shim makes itself small.
const CALM: Duration = Duration::from_millis(250);

/// How long it stays as it is at least once it has made itself small.
const SMALL: Duration = Duration::from_secs(20);

/// How long the last answers may take to be read.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a shim that containerd started waits for it to connect.
const FIRST_CLIENT: Duration = Duration::from_secs(60);

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A client said so.
    Shutdown,
    /// Nobody is connected and nothing runs.
    Abandoned,
}

/// What a descriptor in the poll set is.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Child,
    End,
    Connection(u64),
    /// An output of a process, by the process's number and its own, or one of the sinks it leads to.
    Output(u64, usize, Option<u64>),
    Input(u64),
    Publisher,
}

/// The shim's state.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    wake: EventFd,
    pub(crate) task: Task,
    connections: Vec<Connection>,
    next_number: u64,
    /// Calls of `Wait` that have no answer yet, connection and stream, with the name of the process.
    parked: HashMap<(u64, u32), String>,
    /// Since when the shim is to end.
    shutdown: Option<Instant>,
    /// When code that is not used now was given back.
    small: Option<Instant>,
    /// Whether anything was done since.
    touched: bool,
    started: Instant,
    scratch: Vec<u8>,
}

impl Server {
    pub(crate) fn new(listener: UnixListener, wake: EventFd, task: Task) -> Self {
        Self {
            listener,
            wake,
            task,
            connections: Vec::new(),
            next_number: 0,
            parked: HashMap::new(),
            shutdown: None,
            small: None,
            touched: false,
            started: Instant::now(),
            scratch: vec![0; SCRATCH],
        }
    }

    /// Serves until there is nothing left to do.
    pub(crate) fn run(&mut self) -> Result<Ending> {
        loop {
            if let Some(publisher) = &mut self.task.publisher {
                publisher.advance(PollFlags::empty(), &mut self.scratch);
            }
            let told = self.task.settle();
            for name in &told {
                self.answer_parked(name);
            }
            if !told.is_empty() {
                self.answer_orphaned();
            }
            if let Some(ending) = self.ending() {
                return Ok(ending);
            }
            let ready = self.poll()?;
            if !ready.is_empty() {
                self.touched = true;
            } else if self.until_small() == Some(Duration::ZERO) {
                sys::forget_code();
                self.small = Some(Instant::now());
                self.touched = false;
            }
            for (source, flags) in ready {
                self.handle(source, flags);
            }
            let (parked, task) = (&mut self.parked, &mut self.task);
            self.connections.retain(|connection| {
                if connection.is_gone() {
                    parked.retain(|(number, _), _| *number != connection.number);
                    task.client_left(connection.number);
                }
                !connection.is_gone()
            });
        }
    }

    /// How long the shim stays as it is at least until it makes itself small; `None` if there is nothing to give back.
    fn until_small(&self) -> Option<Duration> {
        match self.small {
            _ if !self.task.is_started() => None,
            None => Some(Duration::ZERO),
            Some(since) => self.touched.then(|| SMALL.saturating_sub(since.elapsed())),
        }
    }

    fn ending(&mut self) -> Option<Ending> {
        if let Some(since) = self.shutdown {
            let published = self.task.publisher.as_ref().is_none_or(Publisher::is_done);
            let said = published && self.connections.iter().all(Connection::is_flushed) || since.elapsed() >= FAREWELL;
            return said.then_some(Ending::Shutdown);
        }
        if self.task.publisher.is_some() && (self.next_number > 0 || self.started.elapsed() < FIRST_CLIENT) {
            // containerd comes back after a restart, and says when it is over.
            return None;
        }
        if self.task.publisher.is_some() {
            return Some(Ending::Abandoned);
        }
        // Before the first client there is nothing to be abandoned by.
        if self.next_number == 0 || !self.connections.is_empty() || self.task.is_needed() {
            return None;
        }
        self.accept();
        self.connections.is_empty().then_some(Ending::Abandoned)
    }

    /// Waits until something is to be done.
    fn poll(&self) -> Result<Vec<(Source, PollFlags)>> {
        let mut sources = Vec::new();
        let mut set: Vec<PollFd<'_>> = Vec::new();
        let mut add = |source, fd, flags| {
            sources.push(source);
            set.push(PollFd::new(fd, flags));
        };
        add(Source::Child, self.wake.as_fd(), PollFlags::POLLIN);
        if self.connections.len() < MAX_CONNECTIONS && self.shutdown.is_none() {
            add(Source::Listener, self.listener.as_fd(), PollFlags::POLLIN);
        }
        for connection in &self.connections {
            let (fd, flags) = connection.interest();
            add(Source::Connection(connection.number), fd, flags);
        }
        let mut patience = self.until_small().map(|time| time.max(CALM));
        for (number, process) in self.task.processes() {
            if let Some(pidfd) = process.pidfd() {
                add(Source::End, pidfd.as_fd(), PollFlags::POLLIN);
            }
            for (index, output) in process.streams.outputs.iter().enumerate() {
                for (sink, fd, flags) in output.interest() {
                    add(Source::Output(number, index, sink), fd, flags);
                }
            }
            for (fd, flags) in process.streams.input.iter().flat_map(crate::input::Input::interest) {
                add(Source::Input(number), fd, flags);
            }
        }
        patience = self.task.patience().into_iter().chain(patience).min();
        if let Some(publisher) = &self.task.publisher {
            if let Some((fd, flags)) = publisher.interest() {
                add(Source::Publisher, fd, flags);
            }
            let first = (self.next_number == 0).then_some(FIRST_CLIENT);
            patience = publisher.patience().into_iter().chain(first).chain(patience).min();
        }
        if self.shutdown.is_some() {
            patience = Some(TICK);
        }
        let timeout = patience.and_then(|time| PollTimeout::try_from(time).ok()).unwrap_or(PollTimeout::NONE);
        match poll(&mut set, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(Error::system("poll", error)),
        }
        let flags = set.iter().map(|entry| entry.revents().unwrap_or(PollFlags::empty()));
        Ok(sources.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn handle(&mut self, source: Source, flags: PollFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Publisher => {
                if let Some(publisher) = &mut self.task.publisher {
                    publisher.advance(flags, &mut self.scratch);
                }
            }
            Source::Child => {
                let _ = self.wake.read();
                self.reap();
            }
            Source::End => self.task.notice_ends(),
            Source::Connection(number) => self.serve(number, flags),
            Source::Output(number, index, sink) => {
                let Some(process) = self.task.process_mut(number) else { return };
                let Some(output) = process.streams.outputs.get_mut(index) else { return };
                match sink {
                    Some(sink) if sink != NAMED && flags.contains(PollFlags::POLLERR) => output.detach(sink),
                    _ => output.advance(&mut self.scratch),
                }
            }
            Source::Input(number) => {
                let Some(process) = self.task.process_mut(number) else { return };
                let Some(input) = &mut process.streams.input else { return };
                // An error is that of the target: only its readers can be missing.
                if flags.contains(PollFlags::POLLERR) {
                    input.hang_up();
                } else {
                    input.advance(&mut self.scratch);
                }
                if input.is_done() {
                    process.streams.input = None;
                }
            }
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = stream.set_nonblocking(true) {
                        crate::daemon::log(&format!("cannot take a client: {error}"));
                        continue;
                    }
                    self.next_number += 1;
                    self.connections.push(Connection::new(self.next_number, stream));
                }
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(_) => return,
            }
        }
    }

    /// Reaps every child that has ended: also those that the container left behind when they came to us as subreaper.
    fn reap(&mut self) {
        loop {
            self.task.notice_ends();
            let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) = waitid(Id::All, peek) else { return };
            let mut awaited = self.task.processes().filter(|(_, process)| process.ended.is_none());
            if awaited.any(|(_, process)| process.pid == pid.as_raw()) {
                // It ended since `notice_ends` looked, which will reap it.
                continue;
            }
            let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
        }
    }

    /// Answers those who wait for the end of a process, by its name.
    fn answer_parked(&mut self, name: &str) {
        let answered: Vec<_> = self.parked.extract_if(|_, parked| parked == name).map(|(call, _)| call).collect();
        for (number, stream) in answered {
            let request = proto::WaitRequest { exec_id: name.to_owned(), ..proto::WaitRequest::default() };
            let answer = match self.task.wait(&request) {
                Ok(Some(response)) => Ok(encode(&response)),
                Ok(None) => Err(refuse(Code::Internal, "the process has not ended".to_owned())),
                Err(status) => Err(status),
            };
            if let Some(connection) = self.connections.iter_mut().find(|connection| connection.number == number) {
                connection.answer(stream, answer);
            }
        }
    }

    /// Answers all who wait for a process that is not there any more.
    fn answer_orphaned(&mut self) {
        let mut names: Vec<String> = self.parked.values().cloned().collect();
        names.sort();
        names.dedup();
        for name in names {
            let request = proto::WaitRequest { exec_id: name.clone(), ..proto::WaitRequest::default() };
            if !matches!(self.task.wait(&request), Ok(None)) {
                self.answer_parked(&name);
            }
        }
    }

    fn serve(&mut self, number: u64, flags: PollFlags) {
        let Some(index) = self.connections.iter().position(|connection| connection.number == number) else { return };
        let connection = &mut self.connections[index];
        if flags.contains(PollFlags::POLLOUT) {
            connection.send();
        }
        if !flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        for frame in connection.receive(&mut self.scratch) {
            let answer = self.take(number, &frame);
            if let Some(answer) = answer {
                self.connections[index].answer(frame.stream, answer);
            }
        }
    }

    /// Does what a frame asks; `None` if the answer comes later or there is none.
    fn take(&mut self, number: u64, frame: &Frame) -> Option<Result<Vec<u8>, Status>> {
        if frame.kind != Kind::Request {
            // Data on a stream that was refused, or nonsense; neither has an answer.
            return None;
        }
        if frame.stream.is_multiple_of(2) {
            return Some(Err(refuse(Code::InvalidArgument, format!("stream {} is not odd", frame.stream))));
        }
        if frame.flags & codec::REMOTE_OPEN != 0 {
            return Some(Err(refuse(Code::Unimplemented, "the task API has no streams".to_owned())));
        }
        let request = match codec::decode_request(frame) {
            Ok(request) => request,
            Err(error) => return Some(Err(Status::from(&error))),
        };
        match request.service.as_str() {
            TASK_SERVICE | TASK_SERVICE_V3 => {
                self.call(number, frame.stream, &request.method, &request.payload).transpose()
            }
            SHIM_SERVICE => Some(self.call_own(&request.method, &request.payload)),
            other => Some(Err(refuse(Code::Unimplemented, format!("service {other} is not served here")))),
        }
    }

    /// A call of the service of our own.
    fn call_own(&mut self, method: &str, payload: &[u8]) -> Result<Vec<u8>, Status> {
        match method {
            "Attach" => Ok(encode(&self.task.attach(&parse(payload)?)?)),
            "Detach" => Ok(encode(&self.task.detach(&parse(payload)?, &mut self.scratch)?)),
            _ => Err(not_built(method)),
        }
    }

    fn call(&mut self, number: u64, stream: u32, method: &str, payload: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        let task = &mut self.task;
        let answer = match method {
            "Create" => encode(&task.create(parse(payload)?)?),
            "Start" => match task.start(&parse(payload)?) {
                Ok(response) => encode(&response),
                Err(status) => {
                    self.answer_orphaned();
                    return Err(status);
                }
            },
            "Exec" => encode(&task.add_exec(parse(payload)?, number)?),
            "Pause" => encode(&task.set_paused(&parse::<proto::PauseRequest>(payload)?.id, true)?),
            "Resume" => encode(&task.set_paused(&parse::<proto::ResumeRequest>(payload)?.id, false)?),
            "Update" => encode(&task.update(&parse(payload)?)?),
            "Stats" => encode(&task.stats(&parse(payload)?)?),
            "State" => encode(&task.state(&parse(payload)?)?),
            "Kill" => encode(&task.kill(&parse(payload)?)?),
            "ResizePty" => encode(&task.resize(&parse(payload)?)?),
            "CloseIO" => encode(&task.close_io(&parse(payload)?, &mut self.scratch)?),
            "Pids" => encode(&task.pids(&parse(payload)?)?),
            "Connect" => encode(&task.connect(&parse(payload)?)?),
            "Delete" => {
                let answer = encode(&task.delete(&parse(payload)?)?);
                // Who still waits learns that there is nothing to wait for any more.
                self.answer_orphaned();
                answer
            }
            "Wait" => {
                let request: proto::WaitRequest = parse(payload)?;
                match task.wait(&request)? {
                    Some(response) => encode(&response),
                    None if self.parked.len() >= MAX_PARKED => {
                        return Err(refuse(Code::ResourceExhausted, "too many calls of Wait".to_owned()));
                    }
                    None => {
                        self.parked.insert((number, stream), request.exec_id);
                        return Ok(None);
                    }
                }
            }
            "Shutdown" => {
                let _: proto::ShutdownRequest = parse(payload)?;
                if task.may_shut_down() {
                    self.shutdown = Some(Instant::now());
                }
                encode(&proto::Empty {})
            }
            _ => return Err(not_built(method)),
        };
        Ok(Some(answer))
    }
}

fn not_built(method: &str) -> Status {
    refuse(Code::Unimplemented, format!("{method} is not supported by this shim"))
}

fn parse<C: proto::Call + Default>(payload: &[u8]) -> Result<C, Status> {
    codec::decode(C::METHOD, payload).map_err(|error| Status::from(&error))
}

fn encode(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}
