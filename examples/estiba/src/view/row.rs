//! Rows of `ps` and `images`.

use std::time::SystemTime;

use estiba_engine::Summary;

use super::image::{Config, Name};
use super::{container, network};
use crate::format::Column;
use crate::template::{Lookup, Record, Value};
use crate::{moment, size};

/// Whether ids and commands are shown in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Short,
    Full,
}

impl Length {
    pub(crate) fn of(no_trunc: bool) -> Self {
        if no_trunc { Self::Full } else { Self::Short }
    }

    /// An id: its first twelve digits, without what kind of digest it is.
    pub(crate) fn id(self, id: &str) -> String {
        match self {
            Self::Full => id.to_owned(),
            Self::Short => id.split_once(':').map_or(id, |(_, digits)| digits).chars().take(12).collect(),
        }
    }

    /// A text of so many characters at most, the last of them an ellipsis if there is more.
    pub(crate) fn cut(self, text: &str, width: usize) -> String {
        if self == Self::Full || text.chars().count() <= width {
            return text.to_owned();
        }
        let kept: String = text.chars().take(width - 1).collect();
        format!("{kept}…")
    }
}

/// The columns of `ps`.
pub(crate) const CONTAINER: [Column; 15] = [
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
];

/// A row of `ps`. `sizes`: bytes of its own, and of all of its files.
pub(crate) fn container(summary: &Summary, image: &Config, sizes: Option<(u64, u64)>, length: Length) -> Value {
    let record = &summary.record;
    let labels = container::labels(record, image);
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let sources = record.request.binds.iter().map(|bind| bind.source.display().to_string());
    let volumes = record.volumes.iter().map(|volume| volume.name.clone());
    let mounts: Vec<String> = volumes.chain(sources).map(|source| length.cut(&source, 15)).collect();
    let size = match sizes {
        Some((own, all)) if all > 0 => format!("{} (virtual {})", size::human_with(3, own), size::human_with(3, all)),
        Some((own, _)) => size::human_with(3, own),
        None => "0B".to_owned(),
    };
    let name = super::image::familiar(&record.request.image.name);
    let command = crate::template::quoted(&length.cut(&container::command(record), 20));
    Record::row("formatter.ContainerContext")
        .with("Command", command)
        .with("CreatedAt", moment::listed(record.created))
        .with("ID", length.id(record.id.as_str()))
        .with("Image", if name.is_empty() { length.id(&record.image_id) } else { name })
        .hidden("Label", Lookup::Entries(labels))
        .with("Labels", pairs.join(","))
        .with("LocalVolumes", record.volumes.len().to_string())
        .with("Mounts", mounts.join(","))
        .with("Names", record.name.to_string())
        .with("Networks", network::names(record).join(","))
        .with("Platform", Value::Nil)
        .with("Ports", network::ports(summary))
        .with("RunningFor", moment::ago(record.created))
        .with("Size", size)
        .with("State", summary.status.name())
        .with("Status", container::status(summary))
        .into()
}

/// The columns of `images`.
pub(crate) const IMAGE: [Column; 11] = [
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
];

/// What a row of `images` is about.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) name: Name,
    /// The digest that a registry knows; none if it never had one.
    pub(crate) digest: Option<String>,
    pub(crate) id: String,
    pub(crate) created: Option<SystemTime>,
    pub(crate) size: u64,
    /// The part that other images have, too.
    pub(crate) shared: Option<u64>,
    pub(crate) containers: Option<usize>,
}

impl Image {
    /// A row of `images`, or of `system df -v`.
    pub(crate) fn row(&self, length: Length) -> Value {
        let unknown = || "N/A".to_owned();
        let unique = self.shared.map_or_else(unknown, |shared| size::human(self.size.saturating_sub(shared)));
        Record::row("formatter.imageContext")
            .with("Containers", self.containers.map_or_else(unknown, |count| count.to_string()))
            .with("CreatedAt", self.created.map(moment::listed).unwrap_or_default())
            .with("CreatedSince", self.created.map_or_else(unknown, moment::ago))
            .with("Digest", self.digest.clone().unwrap_or_else(|| super::image::NONE.to_owned()))
            .with("ID", length.id(&self.id))
            .with("Repository", &self.name.repository)
            .with("SharedSize", self.shared.map_or_else(unknown, size::human))
            .with("Size", size::human_with(3, self.size))
            .with("Tag", &self.name.tag)
            .with("UniqueSize", unique)
            .with("VirtualSize", size::human(self.size))
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Json;

    #[test]
    fn long_texts_are_cut_as_docker_cuts_them() {
        let id = "sha256:33ed573aa3a47aec609078c01e17cb24b03fea71dbcd49d6c0b24387a19511c0";
        assert_eq!(Length::Short.id(id), "33ed573aa3a4");
        assert_eq!(Length::Full.id(id), id);
        assert_eq!(Length::Short.cut("sh -c 'echo hi; exit 3'", 20), "sh -c 'echo hi; exi…");
        assert_eq!(Length::Short.cut("sleep 1000", 20), "sleep 1000");
        assert_eq!(Length::Full.cut("sh -c 'echo hi; exit 3'", 20), "sh -c 'echo hi; exit 3'");
    }

    /// The row that `docker images --format json` prints.
    #[test]
    fn an_image_is_dockers_row() {
        let image = Image {
            name: Name { repository: "bb".into(), tag: "1".into() },
            digest: None,
            id: "sha256:33ed573aa3a47aec".into(),
            created: None,
            size: 2_063_232,
            shared: None,
            containers: Some(3),
        };
        let expected = "{\"Containers\":\"3\",\"CreatedAt\":\"\",\"CreatedSince\":\"N/A\",\"Digest\":\"\\u003cnone\\u003e\",\
                        \"ID\":\"33ed573aa3a4\",\"Repository\":\"bb\",\"SharedSize\":\"N/A\",\"Size\":\"2.06MB\",\"Tag\":\"1\",\
                        \"UniqueSize\":\"N/A\",\"VirtualSize\":\"2.063MB\"}";
        assert_eq!(image.row(Length::Short).json(Json::Compact), expected);
    }
}
