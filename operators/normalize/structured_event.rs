//! CloudEvents in structured mode, `application/cloudevents+json`: one JSON object holds the event's attributes and its data.
//!
//! ```text
//! "data": {..} or [..]        the payload, as JSON
//! "data": "text"              the text is the payload, unless the type of the data is JSON
//! "data_base64": "..."        the payload's bytes
//! "datacontenttype"           what the payload is, where the configured format is `auto`; JSON if it is left out
//! id, source, type, ..        as the headers of binary mode
//! ```

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::batch::Reason;

use super::failure::{Checked, Failure, quote};
use super::json_split::{member, parts};
use super::json_text::{failure_of, object, text_of};
use super::otlp_json::base64_of;
use super::said::{Content, Event};

/// An event taken apart.
pub(super) struct Opened<'t> {
    pub event: Event<'t>,
    pub content: Option<Content>,
    pub data: Cow<'t, [u8]>,
}

/// Text of JSON, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'t>(#[serde(borrow)] Cow<'t, str>);

/// Takes an event apart.
pub(super) fn open(payload: &[u8]) -> Checked<Opened<'_>> {
    let text = object(text_of(payload)?)?;
    let mut event = Event::default();
    let (mut data, mut base64, mut media_type, mut version) = (None, None, None, None);
    for part in parts(text) {
        let (key, value) = member(part?)?;
        let key = string(key)?;
        let known = matches!(&*key, "id" | "source" | "type" | "subject" | "time");
        match &*key {
            _ if value == "null" => {}
            "data" => set(&mut data, value, "data")?,
            "data_base64" => set(&mut base64, string(value)?, "data_base64")?,
            "datacontenttype" => set(&mut media_type, string(value)?, "datacontenttype")?,
            "specversion" => set(&mut version, string(value)?, "specversion")?,
            _ if known => event.take(&key, string(value)?),
            _ => drop(parse::<IgnoredAny>(value)?),
        }
    }
    let Some(version) = version.filter(|version| version.starts_with("1.")) else {
        return Err(Failure::new(Reason::Undecodable, "CloudEvent without a specversion of 1.x"));
    };
    event.take("specversion", version);
    let content = match &media_type {
        Some(media_type) => Content::of(media_type.as_bytes()).filter(|content| *content != Content::StructuredEvent),
        None => Some(Content::Json),
    };
    let (content, data) = match (data, base64) {
        (Some(_), Some(_)) => {
            return Err(Failure::new(Reason::Malformed, "CloudEvent with data and data_base64, which exclude each other"));
        }
        (None, None) => return Err(Failure::new(Reason::Empty, "CloudEvent without data")),
        (Some(text), None) if text.starts_with('"') && content != Some(Content::Json) => (content, as_bytes(string(text)?)),
        // Whatever its type says, it is JSON that stands there.
        (Some(json), None) => (Some(Content::Json), Cow::Borrowed(json.as_bytes())),
        (None, Some(base64)) => {
            let bytes = base64_of(&base64);
            let bytes = bytes.ok_or_else(|| {
                Failure::new(Reason::InvalidField, format_args!("data_base64 {} is not base64", quote(&base64)))
            })?;
            // Without a type the bytes show what they are.
            (content.filter(|_| media_type.is_some()), Cow::Owned(bytes))
        }
    };
    Ok(Opened { event, content, data })
}

fn set<T>(slot: &mut Option<T>, value: T, name: &str) -> Checked<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Failure::new(Reason::Malformed, format_args!("{name} comes twice in one CloudEvent"))),
    }
}

fn string(text: &str) -> Checked<Cow<'_, str>> {
    parse::<Text<'_>>(text).map(|Text(text)| text)
}

fn parse<'t, T: Deserialize<'t>>(text: &'t str) -> Checked<T> {
    serde_json::from_str(text).map_err(|error| failure_of(&error, None).within("CloudEvent"))
}

fn as_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}
