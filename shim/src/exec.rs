//! Processes that are added to a container.

use estiba_runtime::ExecOptions;
use estiba_runtime::oci_spec::runtime::Process as Spec;

use crate::output::Output;
use crate::process::{Ended, Process};
use crate::proto::events::{TaskExecAdded, TaskExecStarted};
use crate::proto::{self, Code, ExecProcessRequest, Status, TaskStatus};
use crate::refusal::refuse;
use crate::streams::{Ends, Places, Streams};
use crate::task::{Answer, Container, Task, failed, from_json};

/// How many processes may be added at once.
const MAX_EXECS: usize = 1024;

/// How many that have ended are kept for others once the client that added them has left.
const KEPT: usize = 16;

/// A process that was added, from `Exec` to `Delete`.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Its number, never used twice.
    pub(crate) number: u64,
    request: ExecProcessRequest,
    /// The client that added it, while that is connected.
    owner: Option<u64>,
    /// What it will be; until it is started.
    waiting: Option<Waiting>,
    /// What it is, once it was started.
    pub(crate) process: Option<Process>,
    /// It has ended and its output is handed on.
    settled: bool,
}

/// What `Start` needs.
#[derive(Debug)]
struct Waiting {
    spec: Spec,
    streams: Streams,
    ends: Ends,
}

impl Exec {
    pub(crate) fn name(&self) -> &str {
        &self.request.exec_id
    }

    /// How it ended, once that may be told.
    pub(crate) fn ending(&self) -> Option<Ended> {
        self.process.as_ref()?.ended.filter(|_| self.settled)
    }

    /// Its streams, and whether it has ended.
    pub(crate) fn streams(&mut self) -> Answer<(&mut Streams, bool)> {
        match (&mut self.process, &mut self.waiting) {
            (Some(process), _) => Ok((&mut process.streams, process.ended.is_some())),
            (None, Some(waiting)) => Ok((&mut waiting.streams, false)),
            (None, None) => Err(refuse(Code::NotFound, "the process was not started".to_owned())),
        }
    }

    /// Its state. `running` is what a process that runs is called now.
    pub(crate) fn state(&self, running: TaskStatus) -> proto::StateResponse {
        let ended = self.ending();
        let status = match (&self.process, ended) {
            (None, _) => TaskStatus::Created,
            (Some(_), None) => running,
            (Some(_), Some(_)) => TaskStatus::Stopped,
        };
        let given = &self.request;
        proto::StateResponse {
            exec_id: given.exec_id.clone(),
            pid: self.process.as_ref().map_or(0, |process| process.pid as u32),
            status: status as i32,
            stdin: given.stdin.clone(),
            stdout: given.stdout.clone(),
            stderr: given.stderr.clone(),
            terminal: given.terminal,
            exit_status: ended.map_or(0, |ended| ended.status.code() as u32),
            exited_at: ended.map(|ended| ended.at.into()),
            ..proto::StateResponse::default()
        }
    }
}

impl Task {
    /// Takes note of a process that `client` wants to add; it runs from [`Task::start`] on.
    pub(crate) fn add_exec(&mut self, mut request: ExecProcessRequest, client: u64) -> Answer<proto::Empty> {
        let number = self.next_process();
        let container = self.find(&request.id)?;
        let name = &request.exec_id;
        if name.is_empty() || name.len() > 1024 {
            return Err(refuse(Code::InvalidArgument, "the name of the process is empty or too long".to_owned()));
        }
        if container.exec(name).is_ok() {
            return Err(refuse(Code::AlreadyExists, format!("process {name:?} already exists")));
        }
        if container.execs.len() >= MAX_EXECS {
            return Err(refuse(Code::ResourceExhausted, "too many processes are added".to_owned()));
        }
        may_be_added(container)?;
        let mut spec: Spec = from_json(request.spec.take().as_ref(), "Process")?;
        if spec.terminal().unwrap_or(false) != request.terminal {
            let reason = "Exec: terminal differs between the request and the process";
            return Err(refuse(Code::InvalidArgument, reason.to_owned()));
        }
        if spec.oom_score_adj().is_none() {
            // Else it would inherit the shim's own.
            spec.set_oom_score_adj(container.oom_score);
        }
        let places = Places {
            terminal: request.terminal,
            stdin: &request.stdin,
            stdout: &request.stdout,
            stderr: &request.stderr,
        };
        let (streams, ends) = Streams::open(places).map_err(|error| Status::from(&error))?;
        let waiting = Some(Waiting { spec, streams, ends });
        let (container_id, exec_id) = (request.id.clone(), request.exec_id.clone());
        container.execs.push(Exec { number, request, owner: Some(client), waiting, process: None, settled: false });
        self.publish(&TaskExecAdded { container_id, exec_id });
        Ok(proto::Empty {})
    }

    /// Starts a process that was added. One that cannot be started is forgotten.
    pub(crate) fn start_exec(&mut self, id: &str, exec_id: &str) -> Answer<proto::StartResponse> {
        let own = self.arguments().id.clone();
        let container = self.find(id)?;
        container.exec(exec_id)?;
        may_be_added(container)?;
        let Some(waiting) = container.exec(exec_id)?.waiting.take() else {
            return Err(refuse(Code::FailedPrecondition, format!("process {exec_id:?} was started before")));
        };
        let Waiting { spec, mut streams, ends } = waiting;
        streams.outputs.iter_mut().for_each(Output::release);
        let created = container.runtime.exec(&own, &spec, &ExecOptions::new(ends.for_runtime()));
        let created = created.map_err(|source| failed("add a process to", &own, source));
        let started =
            created.and_then(|created| Process::new(created, streams, &ends).map_err(|error| Status::from(&error)));
        match started {
            Ok(process) => {
                let pid = process.pid as u32;
                container.exec(exec_id)?.process = Some(process);
                self.publish(&TaskExecStarted { container_id: own.to_string(), exec_id: exec_id.to_owned(), pid });
                Ok(proto::StartResponse { pid })
            }
            Err(status) => {
                container.execs.retain(|exec| exec.name() != exec_id);
                Err(status)
            }
        }
    }
}

impl Container {
    /// A process that was added, by its name.
    pub(crate) fn exec(&mut self, name: &str) -> Answer<&mut Exec> {
        let missing = || refuse(Code::NotFound, format!("no process {name:?}"));
        self.execs.iter_mut().find(|exec| exec.name() == name).ok_or_else(missing)
    }

    /// Forgets a process that does not run. Returns its pid and how it ended.
    pub(crate) fn delete_exec(&mut self, name: &str) -> Answer<(u32, Option<Ended>)> {
        let exec = self.exec(name)?;
        let ended = exec.ending();
        if exec.process.is_some() && ended.is_none() {
            return Err(refuse(Code::FailedPrecondition, format!("process {name:?} is running: kill it first")));
        }
        let pid = exec.process.as_ref().map_or(0, |process| process.pid as u32);
        self.execs.retain(|exec| exec.name() != name);
        Ok((pid, ended))
    }

    /// Returns the names of those that have ended and whose output is handed on since the last time, with their pids and ends.
    pub(crate) fn settle_execs(&mut self) -> Vec<(String, u32, Ended)> {
        let mut told = Vec::new();
        for exec in self.execs.iter_mut().filter(|exec| !exec.settled) {
            let Some(process) = exec.process.as_mut() else { continue };
            if process.is_settled()
                && let Some(ended) = process.ended
            {
                exec.settled = true;
                told.push((exec.request.exec_id.clone(), process.pid as u32, ended));
            }
        }
        told
    }

    /// A client has left. What it has not started is forgotten, and of what it has started and not deleted the last few ends
    /// are kept.
    pub(crate) fn forget_client(&mut self, client: u64) {
        self.execs.retain(|exec| exec.owner != Some(client) || exec.process.is_some());
        for exec in self.execs.iter_mut().filter(|exec| exec.owner == Some(client)) {
            exec.owner = None;
        }
        let is_over = |exec: &Exec| exec.owner.is_none() && exec.settled;
        let mut surplus = self.execs.iter().filter(|exec| is_over(exec)).count().saturating_sub(KEPT);
        self.execs.retain(|exec| {
            let goes = surplus > 0 && is_over(exec);
            surplus -= usize::from(goes);
            !goes
        });
    }
}

fn may_be_added(container: &Container) -> Answer<()> {
    container
        .takes_processes()
        .map_err(|state| refuse(Code::FailedPrecondition, format!("no process can be added: the container is {state}")))
}
