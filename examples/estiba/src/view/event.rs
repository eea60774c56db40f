//! Events as `docker events` shows them.

use std::fmt::Write as _;

use estiba_engine::{Event, Kind};

use super::image::familiar;
use crate::moment;
use crate::template::{Record, Value};

/// The event with the short names of images.
pub(crate) fn shown(mut event: Event) -> Event {
    let keys: &[&str] = if event.kind == Kind::Image { &["name"] } else { &["image"] };
    for key in keys {
        if let Some(name) = event.attributes.get_mut(*key) {
            *name = familiar(name);
        }
    }
    if event.kind == Kind::Image {
        event.id = familiar(&event.id);
    }
    event
}

/// The line without `--format`.
pub(crate) fn line(event: &Event) -> String {
    let mut line =
        format!("{} {} {} {}", moment::rfc3339_local(event.time()), event.kind.name(), event.action, event.id);
    if !event.attributes.is_empty() {
        let pairs: Vec<String> = event.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let _ = write!(line, " ({})", pairs.join(", "));
    }
    line
}

/// The event as an object.
pub(crate) fn object(event: &Event) -> Value {
    let actor = Record::new("events.Actor").with("ID", &event.id).with("Attributes", &event.attributes);
    let nanos = i64::try_from(event.time_nano).unwrap_or(i64::MAX);
    let old = matches!(event.kind, Kind::Container | Kind::Image);
    let from = if event.kind == Kind::Container { event.attributes.get("image").cloned() } else { None };
    let object = Record::new("events.Message");
    // The first three are for readers of an old API; templates know them by capital names.
    let object = if old {
        object
            .with("status", &event.action)
            .with("id", &event.id)
            .with_some("from", from.clone().unwrap_or_default())
            .hidden("Status", &event.action)
            .hidden("ID", &event.id)
            .hidden("From", from.unwrap_or_default())
    } else {
        object
    };
    object
        .with("Type", event.kind.name())
        .with("Action", &event.action)
        .with("Actor", actor)
        .with("scope", "local")
        .with("time", nanos / 1_000_000_000)
        .with("timeNano", nanos)
        .hidden("Scope", "local")
        .hidden("Time", nanos / 1_000_000_000)
        .hidden("TimeNano", nanos)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Json;

    #[test]
    fn an_event_is_dockers_object() {
        let event = Event {
            time_nano: 1_795_734_026_548_354_994,
            kind: Kind::Container,
            action: "create".into(),
            id: "919d".into(),
            attributes: [("image", "bb:1"), ("name", "one")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        };
        assert_eq!(
            object(&event).json(Json::Compact),
            "{\"status\":\"create\",\"id\":\"919d\",\"from\":\"bb:1\",\"Type\":\"container\",\"Action\":\"create\",\"Actor\":\
             {\"ID\":\"919d\",\"Attributes\":{\"image\":\"bb:1\",\"name\":\"one\"}},\"scope\":\"local\",\"time\":1795734026,\
             \"timeNano\":1795734026548354994}"
        );
        assert!(line(&event).ends_with(" container create 919d (image=bb:1, name=one)"), "{}", line(&event));
    }
}
