//! Why a call is refused, as the task API says it.

use std::io::ErrorKind;

use crate::error::{Error, chain};
use crate::proto::{Any, Code, ExitCode, Status};

/// Refuses a call.
pub(crate) fn refuse(code: Code, message: String) -> Status {
    Status { code: code as i32, message, details: Vec::new() }
}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        // Whoever called knows what was asked of which container: the message is why it failed.
        let Error::Runtime { source, .. } = error else { return refuse(code(error), chain(error)) };
        let mut status = refuse(code(error), chain(source.as_ref()));
        let exit = ExitCode { code: u32::try_from(source.exit_code()).unwrap_or(125) };
        status.details.push(Any::pack(&exit));
        status
    }
}

fn code(error: &Error) -> Code {
    use estiba_runtime::Error as Cause;
    match error {
        Error::Message { .. } | Error::Frame { .. } | Error::Stdio { .. } | Error::Request { .. } => {
            Code::InvalidArgument
        }
        Error::File { source, .. } if source.kind() == ErrorKind::NotFound => Code::NotFound,
        Error::Runtime { source, .. } => match source.as_ref() {
            Cause::ExecutableNotFound { .. } | Cause::InterpreterNotFound { .. } | Cause::NotFound { .. } => {
                Code::NotFound
            }
            Cause::NotExecutable { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Code::PermissionDenied
            }
            Cause::NotExecutable { .. } | Cause::WrongStatus { .. } => Code::FailedPrecondition,
            Cause::AlreadyExists { .. } => Code::AlreadyExists,
            Cause::InvalidId { .. } | Cause::InvalidSpec { .. } | Cause::ParseSpec { .. } => Code::InvalidArgument,
            Cause::Unsupported { .. } | Cause::UnsupportedField { .. } | Cause::Kernel { .. } => Code::Unimplemented,
            _ => Code::Internal,
        },
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn what_cannot_be_executed_is_told_from_the_rest() {
        use estiba_runtime::Error as Cause;
        let executable = || "nope".to_owned();
        let source = io::Error::from;
        let cases = [
            (
                Cause::ExecutableNotFound { executable: executable(), source: source(ErrorKind::NotFound) },
                Code::NotFound,
                127,
            ),
            (
                Cause::NotExecutable { executable: executable(), source: source(ErrorKind::PermissionDenied) },
                Code::PermissionDenied,
                126,
            ),
            (
                Cause::NotExecutable { executable: executable(), source: io::Error::from_raw_os_error(libc::ENOEXEC) },
                Code::FailedPrecondition,
                126,
            ),
            (Cause::SetupDied { status: 137 }, Code::Internal, 125),
        ];
        for (cause, code, exit_code) in cases {
            let error = Error::Runtime { operation: "start", id: "c1".into(), source: Box::new(cause) };
            let status = Status::from(&error);
            assert!(!status.message.contains("c1"), "{}", status.message);
            assert_eq!(status.code, code as i32);
            assert_eq!(Error::Status { method: "Start", status }.exit_code(), exit_code);
        }
    }
}
