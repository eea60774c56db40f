//! The caller's terminal while it is the container's.

use std::io::{self, IsTerminal, stdin};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// What the terminal was before [`Raw::enter`], kept where the panic hook finds it as well.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

fn before() -> MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The terminal on stdin in raw mode: every key goes to the container, which echoes and edits by itself. Dropping it,
/// and a panic, bring the old mode back.
#[derive(Debug)]
pub(crate) struct Raw {
    mode: Termios,
}

impl Raw {
    /// Enters raw mode if stdin is a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let mut mode = tcgetattr(stdin())?;
        *before() = Some(mode.clone());
        mode.make_raw();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
        let raw = Self { mode };
        raw.again()?;
        Ok(Some(raw))
    }

    /// Sets raw mode anew: a shell has set its own while we were stopped.
    pub(crate) fn again(&self) -> io::Result<()> {
        Ok(tcsetattr(stdin(), OptionalActions::Now, &self.mode)?)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(mode) = before().take() {
        // A terminal that is gone needs no mode, and there is nobody to tell.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &mode);
    }
}

/// Keys are not shown while this lives.
#[derive(Debug)]
pub(crate) struct Hidden(Termios);

/// Hides what is typed on the terminal on stdin.
pub(crate) fn hide() -> io::Result<Hidden> {
    use rustix::termios::LocalModes;
    let mode = tcgetattr(stdin())?;
    let mut silent = mode.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(stdin(), OptionalActions::Flush, &silent)?;
    Ok(Hidden(mode))
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// Columns and rows of the terminal on stdin, else of the one on stdout.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
