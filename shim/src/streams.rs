//! The standard streams of a process: what it gets of them, and what the shim keeps.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::input::Input;
use crate::logfile::{Journal, Stream, Writer};
use crate::output::Output;
use crate::proto::AttachRequest;
use crate::stdio::{self, Sink, Stdio};

/// The ends of the standard streams that a process gets.
#[derive(Debug)]
pub(crate) enum Ends {
    /// Pipes or `/dev/null`.
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// A terminal, which the runtime makes.
    Terminal,
}

impl Ends {
    /// As the runtime takes them.
    pub(crate) fn for_runtime(&self) -> estiba_runtime::Stdio<'_> {
        match self {
            Self::Terminal => estiba_runtime::Stdio::Terminal,
            Self::Pipes { stdin, stdout, stderr } => {
                estiba_runtime::Stdio::Fds { stdin: stdin.as_fd(), stdout: stdout.as_fd(), stderr: stderr.as_fd() }
            }
        }
    }
}

/// Where the standard streams of a process are to come from and go to, as a request says it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    pub(crate) terminal: bool,
    pub(crate) stdin: &'a str,
    pub(crate) stdout: &'a str,
    pub(crate) stderr: &'a str,
}

/// Our ends of the standard streams of a process, and where they lead.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) outputs: Vec<Output>,
    pub(crate) input: Option<Input>,
}

impl Streams {
    /// Opens what a request names.
    pub(crate) fn open(places: Places<'_>) -> Result<(Self, Ends)> {
        let stdin: Stdio = places.stdin.parse()?;
        let stdout: Stdio = places.stdout.parse()?;
        let source = stdio::open_source(&stdin)?;
        let mut input = (source.is_some() || stdin == Stdio::Attach).then(|| Input::new(source));
        let mut log = None;
        if places.terminal {
            let output = output(Stream::Stdout, &stdout, &mut log)?;
            return Ok((Self { outputs: vec![output], input }, Ends::Terminal));
        }
        let mut outputs = Vec::new();
        let mut open = |stream, place: &Stdio| -> Result<OwnedFd> {
            if *place == Stdio::Null {
                return null();
            }
            let mut output = output(stream, place, &mut log)?;
            let (reader, writer) = pipe()?;
            output.connect(ours(reader)?);
            outputs.push(output);
            Ok(writer)
        };
        let stdout = open(Stream::Stdout, &stdout)?;
        let stderr = open(Stream::Stderr, &places.stderr.parse()?)?;
        let stdin = match &mut input {
            None => null()?,
            Some(input) => {
                let (reader, writer) = pipe()?;
                input.connect_pipe(ours(writer)?);
                reader
            }
        };
        Ok((Self { outputs, input }, Ends::Pipes { stdin, stdout, stderr }))
    }

    /// Whether all output has been handed on or thrown away.
    pub(crate) fn is_drained(&self) -> bool {
        self.outputs.iter().all(Output::is_done)
    }

    /// How many clients are attached, at most.
    pub(crate) fn attachments(&self) -> usize {
        let outputs = self.outputs.iter().map(Output::attachments);
        outputs.chain(self.input.iter().map(Input::attachments)).max().unwrap_or(0)
    }

    /// Connects a client: see [`AttachRequest`]. On failure nothing of it is left.
    pub(crate) fn attach(&mut self, number: u64, request: &AttachRequest) -> Result<()> {
        let place = |path: &str| match path.parse()? {
            place @ (Stdio::Null | Stdio::Fifo(_)) => Ok(place),
            _ => Err(Error::Stdio { uri: path.to_owned(), reason: "a client attaches by named pipes" }),
        };
        let open = |path: &str| match place(path)? {
            Stdio::Fifo(path) => Sink::attach(&path).map(Some),
            _ => Ok(None),
        };
        let sinks = [(Stream::Stdout, open(&request.stdout)?), (Stream::Stderr, open(&request.stderr)?)];
        if let Some(source) = stdio::open_source(&place(&request.stdin)?)? {
            let input = self.input.as_mut().ok_or(Error::Request { reason: "the standard input is not open" })?;
            input.attach(number, source, request.stdin_once);
        }
        for (stream, sink) in sinks {
            // Where there is no such output, the sink is closed at once and so its reader sees the end.
            if let Some(sink) = sink
                && let Some(output) = self.outputs.iter_mut().find(|output| output.stream == stream)
            {
                output.attach(number, sink);
            }
        }
        Ok(())
    }

    /// Undoes [`attach`](Self::attach).
    pub(crate) fn detach(&mut self, number: u64, scratch: &mut [u8]) {
        self.outputs.iter_mut().for_each(|output| output.detach(number));
        if let Some(input) = &mut self.input {
            input.detach(number, scratch);
        }
    }
}

/// An output whose source is still to come. `log` is the writer that the outputs of one process share.
fn output(stream: Stream, place: &Stdio, log: &mut Option<(Stdio, Rc<RefCell<Writer>>)>) -> Result<Output> {
    let mut journal = None;
    if let Stdio::JsonFile { path, max_size, max_files } = place {
        let writer = match log {
            Some((known, writer)) if known == place => Rc::clone(writer),
            Some((Stdio::JsonFile { path: known, .. }, _)) if known == path => {
                let reason = "the same log is named with other options";
                return Err(Error::Stdio { uri: place.to_string(), reason });
            }
            _ => Rc::new(RefCell::new(Writer::open(path, *max_size, *max_files)?)),
        };
        *log = Some((place.clone(), Rc::clone(&writer)));
        journal = Some(Journal::new(writer, stream));
    }
    Ok(Output::new(stream, Sink::open(place)?, journal))
}

fn null() -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|error| Error::file("open", "/dev/null", error))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe().map_err(|error| Error::system("make a pipe", error))?;
    Ok((reader.into(), writer.into()))
}

/// Our end of a stream, which never makes us wait. The container's end keeps blocking.
pub(crate) fn ours(fd: OwnedFd) -> Result<File> {
    crate::sys::set_nonblocking(&fd).map_err(|error| Error::system("make a stream not block", error))?;
    Ok(File::from(fd))
}
