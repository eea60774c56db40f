#![doc = include_str!("../README.md")]

mod arguments;
mod client;
pub mod codec;
mod connection;
mod daemon;
mod error;
mod exit;
mod launch;
mod process;
pub mod proto;
mod pump;
mod refusal;
mod server;
mod stdio;
mod sys;
mod task;

pub use client::Client;
pub use daemon::{LOCK, LOG, REEXEC_NAME, SOCKET, reexec, serve_from_args};
pub use error::{Error, Result};
pub use exit::ExitRecord;
pub use launch::{Launch, Launching, Program};
pub use stdio::Stdio;
