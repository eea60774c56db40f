#![doc = include_str!("../README.md")]

mod arguments;
mod bootstrap;
mod client;
pub mod codec;
mod connection;
mod daemon;
mod error;
mod exec;
mod exit;
mod input;
mod launch;
mod logfile;
mod measure;
mod moment;
mod output;
mod process;
pub mod proto;
mod publisher;
mod refusal;
mod runtimes;
mod server;
mod stdio;
mod streams;
mod sys;
mod task;

pub use bootstrap::bootstrap;
pub use client::Client;
pub use daemon::{LOCK, LOG, REEXEC_NAME, SOCKET, reexec, reexec_with, serve_from_args, serve_with};
pub use error::{Error, Result};
pub use exit::ExitRecord;
pub use launch::{Launch, Launching, Program};
pub use logfile::{Entry, LogOptions, LogReader, Stream};
pub use runtimes::{Factory, Runtimes};
pub use stdio::Stdio;
