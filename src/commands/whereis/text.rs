//! The answer of `where`, for people.

use std::fmt::Write as _;

use super::{Commit, Frame, Incarnation, Kafka, Letter, Message, Place, Whereabouts};
use crate::generate::time::rfc3339_ms;

/// The record's name.
pub fn name(place: &Place) -> String {
    format!("{}[{}] offset {}", place.topic, place.partition, place.offset)
}

/// The verdict in the first line, what it rests on below.
pub fn of(found: &Whereabouts) -> String {
    let mut text = format!("{}: {}\n", name(&found.place), found.says);
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<12}{value}");
    };
    line("stage", found.stage);
    let has_several = found.incarnations.len() > 1;
    for one in &found.incarnations {
        if has_several {
            line("topic", &incarnation(one));
        }
        one.commits.iter().for_each(|found| commit(found, &mut line));
        if one.commits.is_empty()
            && let Some(is_covered) = one.covered
        {
            line("catalog", if is_covered { "covered" } else { "not covered" });
        }
        one.frames.iter().for_each(|found| line("log", &frame(found)));
        one.letters.iter().for_each(|found| line("dead letter", &letter(found)));
    }
    if let Some(found) = &found.kafka {
        line("Kafka", &kafka(found));
    }
    found.notes.iter().for_each(|note| line("note", note));
    text
}

fn incarnation(one: &Incarnation) -> String {
    let which = match one.topic_id.as_str() {
        "" => "the first of this name",
        id => id,
    };
    let now = if one.is_current { ", as it is now" } else { ", a former one or another cluster's" };
    format!("{which}{now} ({}): {}", one.cluster, one.says)
}

fn commit(commit: &Commit, line: &mut impl FnMut(&str, &str)) {
    let Commit { commit_id, group, node, offsets, dispositions, .. } = commit;
    let registered = match commit.is_registered {
        Some(true) => "",
        Some(false) => ", not registered",
        None => ", the catalog was not asked",
    };
    let counts = [
        (dispositions.stored, "stored"),
        (dispositions.duplicates, "duplicates"),
        (dispositions.rejected, "rejected"),
        (dispositions.skipped, "skipped"),
        (dispositions.absent, "absent"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let (first, last) = (offsets.0, offsets.1 - 1);
    let of = format!("{commit_id} of {group} by node {node}{registered}: offsets {first} to {last}, {}", counts.join(", "));
    line("commit", &of);
    for file in &commit.files {
        let ordinals = match (file.ordinals.first(), file.ordinals.last()) {
            (Some(first), Some(last)) if first != last => format!("ordinals {first} to {last}"),
            (Some(only), _) => format!("ordinal {only}"),
            (None, _) => String::new(),
        };
        line("file", &format!("{}: {} of {} rows, {ordinals}", file.uri, file.rows, file.file_rows));
    }
    commit.absent_files.iter().for_each(|file| line("file", &format!("{file}: not published any more, or gone")));
}

fn frame(frame: &Frame) -> String {
    let Frame { log, segment, at, bytes, epoch, says, payload_bytes } = frame;
    let payload = payload_bytes.map_or(String::new(), |bytes| format!(", {bytes} bytes of payload"));
    let said = says.map_or("as it came".to_owned(), |says| format!("{says:?}").to_lowercase());
    format!("{log}, segment {segment}, frame at byte {at} ({bytes} bytes), epoch {}: {said}{payload}", rfc3339_ms(*epoch))
}

fn letter(letter: &Letter) -> String {
    let Letter { source, place, reason, detail, rejected_at_ms } = letter;
    format!("{source}, {place}, rejected at {}: {reason}: {detail}", rfc3339_ms(*rejected_at_ms))
}

fn kafka(kafka: &Kafka) -> String {
    let Kafka { low, high, committed, message, .. } = kafka;
    let committed = committed.map_or("nothing committed".to_owned(), |committed| format!("committed {committed}"));
    let message = match message {
        Message::There { payload_bytes, timestamp_ms } => {
            let time = timestamp_ms.and_then(|time| u64::try_from(time).ok()).map(|time| format!(" of {}", rfc3339_ms(time)));
            format!("a message{} with {payload_bytes} bytes is there", time.unwrap_or_default())
        }
        Message::Tombstone => "a message without payload is there".to_owned(),
        Message::Absent => "no message is there".to_owned(),
        Message::Removed => "it was removed".to_owned(),
        Message::NotWritten => "nothing was written there yet".to_owned(),
        Message::Unknown => "the broker did not give the message in time".to_owned(),
    };
    format!("offsets {low} to {high}, {committed}; {message}")
}
