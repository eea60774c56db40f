//! The shim's loop: one thread, which waits in one place for clients, children and bytes.

use std::collections::HashSet;
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
use crate::proto::{self, Code, Status, TASK_SERVICE};
use crate::refusal::refuse;
use crate::sys;
use crate::task::Task;

/// How many clients may be connected at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 128;

/// How many calls of `Wait` may be parked at once.
const MAX_PARKED: usize = 4096;

/// Bytes that pass through at once. One buffer serves all, and only the pages that are used are there.
const SCRATCH: usize = 64 << 10;

/// How often time is looked at while something waits for time to pass.
const TICK: Duration = Duration::from_millis(50);

/// How long nothing has to happen after the start of the container until the shim makes itself small.
const CALM: Duration = Duration::from_millis(250);

/// How long the last answers may take to be read.
const FAREWELL: Duration = Duration::from_secs(1);

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
    Output(usize),
    Input,
}

/// The shim's state.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    wake: EventFd,
    pub(crate) task: Task,
    connections: Vec<Connection>,
    next_number: u64,
    /// Calls of `Wait` that have no answer yet: connection and stream.
    parked: HashSet<(u64, u32)>,
    /// Since when the shim is to end.
    shutdown: Option<Instant>,
    /// Whether the code that creates containers has been given back.
    small: bool,
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
            parked: HashSet::new(),
            shutdown: None,
            small: false,
            scratch: vec![0; SCRATCH],
        }
    }

    /// Serves until there is nothing left to do.
    pub(crate) fn run(&mut self) -> Result<Ending> {
        loop {
            if self.task.settle() {
                self.answer_parked();
            }
            if let Some(ending) = self.ending() {
                return Ok(ending);
            }
            let ready = self.poll()?;
            if ready.is_empty() && !self.small && self.task.is_started() {
                sys::forget_code();
                self.small = true;
            }
            for (source, flags) in ready {
                self.handle(source, flags);
            }
            let parked = &mut self.parked;
            self.connections.retain(|connection| {
                if connection.is_gone() {
                    parked.retain(|(number, _)| *number != connection.number);
                }
                !connection.is_gone()
            });
        }
    }

    fn ending(&mut self) -> Option<Ending> {
        if let Some(since) = self.shutdown {
            let said = self.connections.iter().all(Connection::is_flushed) || since.elapsed() >= FAREWELL;
            return said.then_some(Ending::Shutdown);
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
        let mut patience = (!self.small && self.task.is_started()).then_some(CALM);
        if let Some(process) = self.task.process() {
            if let Some(pidfd) = process.pidfd() {
                add(Source::End, pidfd.as_fd(), PollFlags::POLLIN);
            } else if !process.is_drained() {
                patience = Some(TICK);
            }
            for (index, output) in process.outputs.iter().enumerate() {
                if let Some((fd, flags)) = output.interest() {
                    add(Source::Output(index), fd, flags);
                }
            }
            for (fd, flags) in process.input.iter().flat_map(crate::pump::Input::interest) {
                add(Source::Input, fd, flags);
            }
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
            Source::Child => {
                let _ = self.wake.read();
                self.reap();
            }
            Source::End => self.task.notice_end(),
            Source::Connection(number) => self.serve(number, flags),
            Source::Output(index) => {
                if let Some(output) = self.task.process_mut().and_then(|process| process.outputs.get_mut(index)) {
                    output.advance(&mut self.scratch);
                }
            }
            Source::Input => {
                let Some(process) = self.task.process_mut() else { return };
                let Some(input) = &mut process.input else { return };
                // An error is that of the target: only its readers can be missing.
                if flags.contains(PollFlags::POLLERR) {
                    input.hang_up();
                } else {
                    input.advance(&mut self.scratch);
                }
                if input.is_done() {
                    process.input = None;
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
            self.task.notice_end();
            let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) = waitid(Id::All, peek) else { return };
            let first = self.task.process().filter(|process| process.ended.is_none());
            if first.is_some_and(|process| process.pid == pid.as_raw()) {
                // It ended since `notice_end` looked, which will reap it.
                continue;
            }
            let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
        }
    }

    fn answer_parked(&mut self) {
        for (number, stream) in std::mem::take(&mut self.parked) {
            let answer = match self.task.wait(&proto::WaitRequest::default()) {
                Ok(Some(response)) => Ok(encode(&response)),
                Ok(None) => Err(refuse(Code::Internal, "the container has not ended".to_owned())),
                Err(status) => Err(status),
            };
            if let Some(connection) = self.connections.iter_mut().find(|connection| connection.number == number) {
                connection.answer(stream, answer);
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
        if request.service != TASK_SERVICE {
            return Some(Err(refuse(Code::Unimplemented, format!("service {} is not served here", request.service))));
        }
        self.call(number, frame.stream, &request.method, &request.payload).transpose()
    }

    fn call(&mut self, number: u64, stream: u32, method: &str, payload: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        let task = &mut self.task;
        let answer = match method {
            "Create" => encode(&task.create(parse(payload)?)?),
            "Start" => encode(&task.start(&parse(payload)?)?),
            "State" => encode(&task.state(&parse(payload)?)?),
            "Kill" => encode(&task.kill(&parse(payload)?)?),
            "ResizePty" => encode(&task.resize(&parse(payload)?)?),
            "CloseIO" => encode(&task.close_io(&parse(payload)?, &mut self.scratch)?),
            "Pids" => encode(&task.pids(&parse(payload)?)?),
            "Connect" => encode(&task.connect(&parse(payload)?)?),
            "Delete" => {
                let answer = encode(&task.delete(&parse(payload)?)?);
                // Who still waits learns that there is nothing to wait for any more.
                self.answer_parked();
                answer
            }
            "Wait" => match task.wait(&parse(payload)?)? {
                Some(response) => encode(&response),
                None if self.parked.len() >= MAX_PARKED => {
                    return Err(refuse(Code::ResourceExhausted, "too many calls of Wait".to_owned()));
                }
                None => {
                    self.parked.insert((number, stream));
                    return Ok(None);
                }
            },
            "Shutdown" => {
                let _: proto::ShutdownRequest = parse(payload)?;
                if task.may_shut_down() {
                    self.shutdown = Some(Instant::now());
                }
                encode(&proto::Empty {})
            }
            _ => return Err(refuse(Code::Unimplemented, format!("{method} is not supported by this shim"))),
        };
        Ok(Some(answer))
    }
}

fn parse<C: proto::Call + Default>(payload: &[u8]) -> Result<C, Status> {
    codec::decode(C::METHOD, payload).map_err(|error| Status::from(&error))
}

fn encode(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}
