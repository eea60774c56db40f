//! The virtual machine: qemu, with the guest's console in a file and what the tests say on a second serial line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::command;
use crate::guest::Guest;
use crate::plan::{Message, Outcome};
use crate::report::Report;

/// Lines of the console that are shown when something fails.
const SHOWN: usize = 40;

#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    /// Further words of the kernel's command line.
    pub(crate) options: String,
    pub(crate) initramfs: PathBuf,
    /// Disks, which are not changed: what the guest writes is forgotten.
    pub(crate) disks: Vec<PathBuf>,
    pub(crate) accel: String,
    pub(crate) cpus: u32,
    /// MiB.
    pub(crate) memory: u32,
    /// The file that all the console's output goes to.
    pub(crate) console: PathBuf,
}

impl Machine {
    fn command(&self) -> Command {
        // A harness that is killed takes the machine with it.
        let mut command = command::system("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        // q35 and nothing beside it: each device is looked for by the kernel, which takes its time in emulation.
        command.args(["-M", "q35", "-nodefaults", "-display", "none", "-no-reboot"]);
        command.args(["-accel", &self.accel, "-cpu", "max"]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &self.memory.to_string()]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        // On a busy machine an emulated timer is late, and the kernel would take it for broken.
        let line = format!(
            "console=ttyS0 no_timer_check quiet loglevel=5 panic=-1 mitigations=off random.trust_cpu=on {}",
            self.options
        );
        command.args(["-append", &line]);
        for disk in &self.disks {
            let drive = format!("file={},format=raw,if=virtio,snapshot=on", disk.display());
            command.args(["-drive", &drive]);
        }
        command
    }

    /// Boots with the console on this terminal.
    pub(crate) fn shell(&self) -> Result {
        let status = self
            .command()
            .args(["-serial", "mon:stdio", "-serial", "null"])
            .status()
            .map_err(|error| missing(&error))?;
        if status.success() { Ok(()) } else { Err(format!("qemu-system-x86_64: {status}").into()) }
    }

    /// Boots, follows the tests, and prints each as it ends.
    pub(crate) fn run(&self, guest: Guest, limit: Duration) -> Result<Report> {
        let begun = Instant::now();
        let console = format!("file:{}", self.console.display());
        let mut command = self.command();
        command.args(["-serial", &console, "-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut qemu = Running(command.spawn().map_err(|error| missing(&error))?);
        let output = qemu.0.stdout.take().ok_or("qemu has no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(std::result::Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut report = Report::new(guest);
        let mut shown = 0;
        loop {
            let Some(left) = limit.checked_sub(begun.elapsed()) else {
                report.trouble(&format!("the guest was ended after {} s", limit.as_secs()));
                break;
            };
            let line = match lines.recv_timeout(left) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    report.trouble("the guest has ended before its tests");
                    break;
                }
            };
            match serde_json::from_slice(&line) {
                Ok(Message::Ready { kernel }) => report.ready(&kernel, begun.elapsed()),
                Ok(Message::Begun { binary, test }) => {
                    shown = self.console_length();
                    report.begun(&binary, &test);
                }
                Ok(Message::Ended { binary, test, outcome, seconds, output }) => {
                    let failed = matches!(outcome, Outcome::Failed(_));
                    report.ended(&binary, &test, &outcome, seconds, &output);
                    if failed {
                        self.show(shown);
                    }
                }
                Ok(Message::Trouble { text }) => report.trouble(&text),
                Ok(Message::Done) => {
                    report.done();
                    break;
                }
                Err(error) => {
                    let text = String::from_utf8_lossy(&line);
                    if !text.trim().is_empty() {
                        report.trouble(&format!("the guest said what is not understood ({error}): {text}"));
                    }
                }
            }
        }
        if report.is_incomplete() {
            self.show(shown);
        }
        report.sum(begun.elapsed());
        Ok(report)
    }

    fn console_length(&self) -> u64 {
        fs::metadata(&self.console).map_or(0, |metadata| metadata.len())
    }

    /// Prints the end of the console's output after `from`.
    fn show(&self, from: u64) {
        let mut bytes = Vec::new();
        let read = File::open(&self.console).and_then(|mut file| {
            file.seek(SeekFrom::Start(from))?;
            file.read_to_end(&mut bytes)
        });
        if read.is_err() || bytes.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        println!("---- the guest's console");
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            println!("{}", line.trim_end());
        }
        println!("----");
    }
}

fn missing(error: &std::io::Error) -> String {
    format!("setpriv, which ends qemu with the harness, cannot be run: {error}")
}

/// Says which package is missing before anything is made.
pub(crate) fn check() -> Result {
    command::run(command::system("qemu-system-x86_64").arg("--version")).map(drop)
}

/// A machine that ends with the harness.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
