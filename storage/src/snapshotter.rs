//! What a snapshotter is.

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::time::SystemTime;

use oci_spec::runtime::Mount;

use crate::{Key, Name, Result, SnapshotId};

/// What a snapshot is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// May be written through its mounts, and committed.
    Active,
    /// May only be read.
    View,
    /// Never changes again; may be a parent.
    Committed,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its key or name.
    pub id: SnapshotId,
    /// What it is good for.
    pub kind: Kind,
    /// The committed snapshot on which it stands.
    pub parent: Option<Name>,
    /// When it was prepared.
    pub created: SystemTime,
}

/// What a snapshot occupies by itself, without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes (blocks, not lengths); a file with several links counts once.
    pub bytes: u64,
    /// Files, folders and other inodes.
    pub inodes: u64,
}

/// What a power cut may cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// A committed snapshot is on disk, with all its data, before its name appears (`syncfs`).
    #[default]
    Commit,
    /// Nothing is waited for, and a power cut costs whole snapshots, never parts of them: one that was committed since the
    /// machine was started is gone after the next start, unless [`Snapshotter::sync`] has made it last. For layers, which
    /// can be unpacked again.
    Boot,
    /// Nothing is waited for: after a power cut a committed snapshot may have empty files. A killed process still
    /// loses nothing. For machines that are thrown away.
    None,
}

/// What [`Overlay::repair`](crate::Overlay::repair) and [`Native::repair`](crate::Native::repair) found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Half-made or half-removed snapshots that were removed.
    pub leftovers: usize,
    /// Snapshots whose record, or whose promise to last, a power cut took; removed.
    pub torn: usize,
    /// Short links that led nowhere (removed) or were missing (made anew).
    pub links: usize,
}

/// Snapshots of file trees that share what they have in common.
///
/// The life of an image's layers and of a container's root:
///
/// 1. [`prepare`](Self::prepare) an *active* snapshot under a [`Key`], on a *committed* parent or on nothing. It
///    returns mounts; the caller performs them (or gives them to [`layer::Target`](crate::layer::Target)).
/// 2. Write to it.
/// 3. [`commit`](Self::commit) it under a [`Name`], after which the key is gone and the name may be a parent; or
///    [`remove`](Self::remove) it.
///
/// A [`view`](Self::view) is a snapshot that is only read. Nothing is ever mounted or unmounted here: unmount before
/// commit and remove. All methods may be called from any number of threads and processes at once.
pub trait Snapshotter: Debug + Send + Sync {
    /// What is known of a snapshot. `NotFound`.
    fn stat(&self, id: &SnapshotId) -> Result<Info>;

    /// What the snapshot occupies by itself; reads the whole tree. `NotFound`.
    fn usage(&self, id: &SnapshotId) -> Result<Usage>;

    /// The mounts of an active snapshot or a view, in the order in which they are to be performed on one place, all
    /// with destination `/`; the same as `prepare` or `view` gave. `NotFound`.
    fn mounts(&self, key: &Key) -> Result<Vec<Mount>>;

    /// Read-only mounts of a committed snapshot without a snapshot of one's own: a look, for as long as nobody removes it
    /// (a child keeps it). `NotFound`.
    fn look(&self, name: &Name) -> Result<Vec<Mount>>;

    /// Makes a writable snapshot. `AlreadyExists` if the key is taken, `NotFound` for the parent.
    fn prepare(&self, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>>;

    /// Makes a read-only snapshot; its mounts are read-only. Errors as [`prepare`](Self::prepare).
    fn view(&self, key: &Key, parent: Option<&Name>) -> Result<Vec<Mount>>;

    /// Makes the active snapshot `key` the committed snapshot `name`. `AlreadyExists` if the name is taken (the key
    /// stays as it was), `NotFound`, `NotActive` for a view.
    fn commit(&self, name: &Name, key: &Key) -> Result<()>;

    /// Removes a snapshot and its data. `InUse` if it is a parent, `NotFound`.
    fn remove(&self, id: &SnapshotId) -> Result<()>;

    /// Calls `visit` with every snapshot, in no order, until it breaks. Snapshots that come or go meanwhile may be
    /// missed; one that is committed meanwhile may come as both.
    fn walk(&self, visit: &mut dyn FnMut(&Info) -> ControlFlow<()>) -> Result<()>;

    /// Makes a committed snapshot, and all that it stands on, last through a power cut. Cheap if they do. For what cannot be
    /// had again, before it is based on the snapshot. `NotFound`.
    fn sync(&self, _name: &Name) -> Result<()> {
        Ok(())
    }

    /// Finds and removes what killed processes and power cuts left behind. Other processes may go on meanwhile.
    fn repair(&self) -> Result<Repaired> {
        Ok(Repaired::default())
    }

    /// The ability to fill a snapshot before its parent is there, if the snapshotter has it.
    fn late_parent(&self) -> Option<&dyn LateParent> {
        None
    }
}

/// Snapshots that are filled while their parents are still being made: so the layers of an image are unpacked side by side.
///
/// 1. [`prepare_late`](Self::prepare_late) a snapshot for each layer but the lowest, and fill them all, in any order, through
///    [`layer::Target::late`](crate::layer::Target::late).
/// 2. When the parent is committed, [`set_parent`](Self::set_parent): from then on the snapshot is what
///    [`prepare`](Snapshotter::prepare) on this parent would have made, with what was written to it.
/// 3. [`commit`](Snapshotter::commit) it.
///
/// A copying snapshotter cannot do this: its snapshots begin with what the parent has.
pub trait LateParent: Snapshotter {
    /// Makes a writable snapshot whose parent is named later. The mounts say where the layer itself goes; they cannot be
    /// performed yet. `AlreadyExists`.
    fn prepare_late(&self, key: &Key) -> Result<Vec<Mount>>;

    /// Names the parent of a snapshot that was prepared without; returns its mounts. `NotFound` for either,
    /// `HasParent` for one that was prepared with its parent or got it before.
    fn set_parent(&self, key: &Key, parent: &Name) -> Result<Vec<Mount>>;
}
