//! What this program does in the guest: as `/init` it reaches the disks, as the first process it keeps the machine, and as
//! `tests` it runs what the plan says.

mod boot;
mod keeper;
mod tests;
mod trial;

use std::process::ExitCode;

/// What the program is in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The first process of the first root.
    Init,
    /// The first process of a guest without another init.
    Keeper,
    /// Runs the tests.
    Tests,
}

/// The role, if it is one in a guest.
pub(crate) fn role() -> Option<Role> {
    let mut arguments = std::env::args();
    match (arguments.next()?.as_str(), arguments.next().as_deref()) {
        ("/init", _) if std::process::id() == 1 => Some(Role::Init),
        (_, Some("inside-keeper")) => Some(Role::Keeper),
        (_, Some("inside-tests")) => Some(Role::Tests),
        _ => None,
    }
}

pub(crate) fn main(role: Role) -> ExitCode {
    let done = match role {
        Role::Init => boot::boot(),
        Role::Keeper => keeper::keep(),
        Role::Tests => tests::run(),
    };
    if let Err(error) = done {
        // The console is all that there is.
        eprintln!("guests: in the guest: {error}");
        if role != Role::Tests {
            keeper::power_off();
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
