//! What a message's headers say of its payload: `content-encoding`, `content-type`, and CloudEvents' `ce_*` of Kafka's binary mode.
//!
//! Names are compared without case. Where a header comes several times, the last one counts. A header that says nothing known says
//! nothing: producers set them for readers of their own.

use std::borrow::Cow;

use crate::batch::headers;

use super::compressed::Codec;
use super::json::time::nanos_of_rfc3339;

/// What the headers say.
#[derive(Debug, Default)]
pub(super) struct Said<'a> {
    /// How the payload is compressed.
    pub codec: Option<Codec>,
    /// An encoding that is none known, told where the payload turns out to be unreadable.
    pub unknown_encoding: Option<&'a [u8]>,
    /// What the payload is.
    pub content: Option<Content>,
    /// The event that the payload is the data of.
    pub event: Event<'a>,
}

/// What a media type says of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Json,
    Protobuf,
    /// A whole event as JSON, its data inside.
    StructuredEvent,
}

/// A CloudEvent without its data.
#[derive(Debug, Default)]
pub(super) struct Event<'a> {
    /// Attributes of the row, under the names of OpenTelemetry's semantic conventions.
    pub attributes: Vec<(&'static str, Cow<'a, str>)>,
    /// When it happened; 0 if it does not say so.
    pub nanos: u64,
}

/// The event's attributes that become attributes of rows, and as what. Others are not kept.
const ATTRIBUTES: [(&str, &str); 5] = [
    ("id", "cloudevents.event_id"),
    ("source", "cloudevents.event_source"),
    ("specversion", "cloudevents.event_spec_version"),
    ("subject", "cloudevents.event_subject"),
    ("type", "cloudevents.event_type"),
];

impl<'a> Event<'a> {
    /// Takes the attribute `name`, if it is one that counts.
    pub fn take(&mut self, name: &str, value: Cow<'a, str>) {
        if name == "time" {
            self.nanos = nanos_of_rfc3339(value.as_bytes()).unwrap_or(0);
        } else if let Some((_, attribute)) = ATTRIBUTES.iter().find(|(known, _)| *known == name) {
            self.attributes.retain(|(present, _)| present != attribute);
            self.attributes.push((attribute, value));
        }
    }
}

impl<'a> Said<'a> {
    /// Reads the headers of one message as `push_header` wrote them.
    pub fn by(encoded: &'a [u8]) -> Self {
        let mut said = Said::default();
        let mut is_event = false;
        for (name, value) in headers(encoded) {
            let Some(value) = value.map(<[u8]>::trim_ascii).filter(|value| !value.is_empty()) else { continue };
            if name.eq_ignore_ascii_case(b"content-encoding") {
                said.codec = Codec::named(value);
                let known = said.codec.is_some() || value.eq_ignore_ascii_case(b"identity");
                said.unknown_encoding = (!known).then_some(value);
            } else if name.eq_ignore_ascii_case(b"content-type") {
                said.content = Content::of(value);
            } else if let Some(name) = event_attribute(name)
                && let Ok(value) = std::str::from_utf8(value)
            {
                is_event |= name == "specversion";
                said.event.take(&name, Cow::Borrowed(value));
            }
        }
        if !is_event {
            // Headers that only look like an event's.
            said.event = Event::default();
        }
        said
    }
}

/// The attribute that a header of binary mode carries.
fn event_attribute(header: &[u8]) -> Option<String> {
    let (prefix, name) = header.split_at_checked(3)?;
    let name = prefix.eq_ignore_ascii_case(b"ce_").then(|| std::str::from_utf8(name).ok())??;
    Some(name.to_ascii_lowercase())
}

impl Content {
    /// What a media type says, less its parameters.
    pub fn of(media_type: &[u8]) -> Option<Self> {
        let end = media_type.iter().position(|byte| *byte == b';').unwrap_or(media_type.len());
        let media_type = media_type[..end].trim_ascii().to_ascii_lowercase();
        match &media_type[..] {
            b"application/cloudevents+json" => Some(Content::StructuredEvent),
            b"application/json" | b"text/json" | b"application/x-ndjson" | b"application/ndjson" | b"application/jsonl" => {
                Some(Content::Json)
            }
            b"application/x-protobuf" | b"application/protobuf" => Some(Content::Protobuf),
            _ => None,
        }
    }
}
