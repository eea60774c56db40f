//! Runtimes by name, for programs that are their own shims.

use std::path::PathBuf;

use estiba_runtime::Runtime;

/// Makes a runtime that keeps its state in the given folder.
pub type Factory = fn(PathBuf) -> Box<dyn Runtime>;

/// Runtimes of an embedding program's own, by name.
///
/// A container whose `RuncOptions.binary_name` is a registered name is run by that runtime; any other name is an OCI
/// runtime's program.
///
/// ```
/// use estiba_shim::Runtimes;
///
/// let mut runtimes = Runtimes::default();
/// runtimes.register("sandbox", |state_root| Box::new(estiba_runtime::Native::new(state_root)));
/// // At the start of `main`:
/// estiba_shim::reexec_with(&runtimes);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Runtimes {
    list: Vec<(String, Factory)>,
}

impl Runtimes {
    /// Registers a runtime, in place of one of the same name.
    pub fn register(&mut self, name: impl Into<String>, factory: Factory) {
        let name = name.into();
        self.list.retain(|(known, _)| *known != name);
        self.list.push((name, factory));
    }

    /// The names that are registered.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|(name, _)| name.as_str())
    }

    /// The runtime of that name, with its state in `state_root`; `None` if no runtime has the name.
    #[must_use]
    pub fn make(&self, name: &str, state_root: PathBuf) -> Option<Box<dyn Runtime>> {
        let (_, factory) = self.list.iter().find(|(known, _)| known == name)?;
        Some(factory(state_root))
    }
}
