//! Volumes: named ones that outlive containers, and those that a container is given for itself.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;

use estiba_runtime::mount::Tree;
use estiba_storage::VolumeName;
use estiba_storage::volume::{Volume, Volumes};
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, Inner};
use crate::error::{Error, Result};
use crate::identity::Id;
use crate::journal::{Event, Kind};
use crate::record::Record;
use crate::request::CreateRequest;
use crate::spec::{ImageDefaults, VolumeFolder};

/// The label of a volume that was made for one container.
pub(crate) const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUse {
    /// Its name.
    pub name: String,
    /// Absolute path inside.
    pub destination: String,
    /// Not writable inside.
    #[serde(default)]
    pub read_only: bool,
    /// It was made for this container alone.
    #[serde(default)]
    pub anonymous: bool,
    /// An empty one is not filled with what the image has there.
    #[serde(default)]
    pub no_copy: bool,
}

impl Engine {
    /// Makes a volume; without a name one is made up.
    ///
    /// # Errors
    ///
    /// [`Error::Volume`] if the name is taken.
    pub async fn create_volume(&self, name: Option<String>, labels: BTreeMap<String, String>) -> Result<Volume> {
        self.blocking(move |inner| {
            let name = match name {
                Some(name) => name,
                None => Id::random()?.to_string(),
            };
            let created = inner.volumes()?.create(&volume_name(&name)?, labels, BTreeMap::new());
            let volume = created.map_err(failed("create", &name))?;
            inner.tell(&[Event::new(Kind::Volume, "create", name)]);
            Ok(volume)
        })
        .await
    }

    /// All volumes, by name. One whose record cannot be read is passed over, with a warning.
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        self.blocking(Inner::list_volumes).await
    }

    /// A volume.
    pub async fn volume(&self, name: &str) -> Result<Volume> {
        let name = name.to_owned();
        self.blocking(move |inner| inner.volumes()?.get(&volume_name(&name)?).map_err(failed("find", &name))).await
    }

    /// The bytes of a volume's data, and how many containers it is in.
    pub async fn volume_usage(&self, name: &str) -> Result<(u64, usize)> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            let usage = inner.volumes()?.usage(&volume_name(&name)?).map_err(failed("measure", &name))?;
            Ok((usage.bytes, inner.users_of_volume(&name)?.len()))
        })
        .await
    }

    /// Removes a volume with its data.
    ///
    /// # Errors
    ///
    /// [`Error::VolumeInUse`] if a container has it, whether it runs or not.
    pub async fn remove_volume(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.blocking(move |inner| {
            if let Some(user) = inner.users_of_volume(&name)?.into_iter().next() {
                return Err(Error::VolumeInUse { name, id: user });
            }
            inner.remove_volume(&name)
        })
        .await
    }

    /// Removes the volumes that no container has: those that were made for one, or all. Returns their names and bytes.
    pub async fn prune_volumes(&self, all: bool) -> Result<(Vec<String>, u64)> {
        self.blocking(move |inner| {
            let (mut names, mut bytes) = (Vec::new(), 0);
            for volume in inner.list_volumes()? {
                let name = volume.name.to_string();
                if (all || volume.labels.contains_key(ANONYMOUS)) && inner.users_of_volume(&name)?.is_empty() {
                    bytes += inner.volumes()?.usage(&volume.name).map_or(0, |usage| usage.bytes);
                    inner.remove_volume(&name)?;
                    names.push(name);
                }
            }
            Ok((names, bytes))
        })
        .await
    }
}

fn volume_name(name: &str) -> Result<VolumeName> {
    name.parse().map_err(failed("name", name))
}

fn failed(operation: &'static str, name: &str) -> impl FnOnce(estiba_storage::Error) -> Error {
    let name = name.to_owned();
    move |source| Error::Volume { operation, name, source: Box::new(source) }
}

/// The volumes that a container is going to have: those of the request, and one for each that the image wants and nothing else is
/// mounted on.
pub(crate) fn wanted(request: &CreateRequest, image: &ImageDefaults) -> Result<Vec<VolumeUse>> {
    let mut uses = request.volumes.clone();
    let taken = |uses: &[VolumeUse], path: &str| {
        let same = |other: &str| Path::new(other) == Path::new(path);
        uses.iter().any(|volume| same(&volume.destination))
            || request.binds.iter().any(|bind| same(&bind.destination))
            || request.tmpfs.iter().any(|tmpfs| same(&tmpfs.destination))
    };
    for path in &image.volumes {
        if !path.starts_with('/') || path.trim_matches('/').is_empty() {
            let reason = "the image wants a volume there, and it is not an absolute path other than /";
            return Err(Error::Request { field: "the volume", value: path.clone(), reason });
        }
        if !taken(&uses, path) {
            uses.push(VolumeUse {
                name: String::new(),
                destination: path.clone(),
                read_only: false,
                anonymous: true,
                no_copy: false,
            });
        }
    }
    for volume in &mut uses {
        if volume.name.is_empty() {
            volume.name = Id::random()?.to_string();
            volume.anonymous = true;
        }
        volume_name(&volume.name)?;
    }
    Ok(uses)
}

impl Inner {
    pub(crate) fn volumes(&self) -> Result<Volumes> {
        let path = self.config.root.join("volumes");
        Volumes::open(&path).map_err(failed("open", &path.to_string_lossy()))
    }

    fn list_volumes(&self) -> Result<Vec<Volume>> {
        let mut list = Vec::new();
        let walked = self.volumes()?.walk(&mut |name, volume| {
            match volume {
                Ok(volume) => list.push(volume),
                Err(error) => {
                    tracing::warn!(volume = %name, error = &error as &dyn std::error::Error, "a volume cannot be listed");
                }
            }
            ControlFlow::Continue(())
        });
        walked.map_err(failed("list", "all"))?;
        Ok(list)
    }

    /// The containers that have a volume.
    fn users_of_volume(&self, name: &str) -> Result<Vec<Id>> {
        let ids = self.records.ids()?;
        let has = |id: &Id| {
            let record = self.records.read(id).ok().flatten();
            record.is_some_and(|record| record.volumes.iter().any(|volume| volume.name == name))
        };
        Ok(ids.into_iter().filter(has).collect())
    }

    fn remove_volume(&self, name: &str) -> Result<()> {
        self.volumes()?.remove(&volume_name(name)?).map_err(failed("remove", name))?;
        self.tell(&[Event::new(Kind::Volume, "destroy", name)]);
        Ok(())
    }

    /// Makes the volumes of a new container that are not there, and fills the empty ones with what the image has in their places.
    /// `mounts` make the container's root.
    pub(crate) fn make_volumes(&self, record: &Record, mounts: &[oci_spec::runtime::Mount]) -> Result<()> {
        if record.volumes.is_empty() {
            return Ok(());
        }
        let volumes = self.volumes()?;
        let root = |source| Error::Root { id: record.id.clone(), source: Box::new(source) };
        let tree = Tree::new(&estiba_storage::mounts::read_only(mounts.to_vec())).map_err(root)?;
        for volume in &record.volumes {
            let name = volume_name(&volume.name)?;
            let labels = if volume.anonymous {
                BTreeMap::from([(ANONYMOUS.to_owned(), String::new())])
            } else {
                BTreeMap::new()
            };
            match volumes.create(&name, labels, BTreeMap::new()) {
                Ok(_) => self.tell(&[Event::new(Kind::Volume, "create", volume.name.as_str())]),
                Err(estiba_storage::Error::VolumeExists { .. }) => {}
                Err(source) => return Err(failed("create", &volume.name)(source)),
            }
            if !volume.no_copy {
                let filled = volumes.fill(&name, tree.as_fd(), &volume.destination);
                filled.map_err(failed("fill", &volume.name))?;
            }
        }
        Ok(())
    }

    /// The folders of a container's volumes; a named one that was removed meanwhile is made again, empty.
    pub(crate) fn volume_folders(&self, record: &Record) -> Result<Vec<VolumeFolder>> {
        if record.volumes.is_empty() {
            return Ok(Vec::new());
        }
        let volumes = self.volumes()?;
        let folder = |volume: &VolumeUse| {
            let name = volume_name(&volume.name)?;
            let found = match volumes.get(&name) {
                Err(estiba_storage::Error::VolumeNotFound { .. }) => {
                    volumes.create(&name, BTreeMap::new(), BTreeMap::new())
                }
                found => found,
            };
            let path = found.map_err(failed("find", &volume.name))?.path;
            Ok(VolumeFolder { path, destination: volume.destination.clone(), read_only: volume.read_only })
        };
        record.volumes.iter().map(folder).collect()
    }

    /// Removes the volumes that were made for a container alone.
    pub(crate) fn remove_own_volumes(&self, record: &Record) -> Result<()> {
        let mut failures = Vec::new();
        for volume in record.volumes.iter().filter(|volume| volume.anonymous) {
            match self.volumes()?.remove(&volume_name(&volume.name)?) {
                Ok(()) => self.tell(&[Event::new(Kind::Volume, "destroy", volume.name.as_str())]),
                Err(estiba_storage::Error::VolumeNotFound { .. }) => {}
                Err(source) => failures.push(failed("remove", &volume.name)(source)),
            }
        }
        Error::all(&record.id, failures)
    }
}
