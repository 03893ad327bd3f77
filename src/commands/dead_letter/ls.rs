//! `dead-letter ls`: letters as a table or as JSON lines, or their number by reason.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};

use openwit_operators::dead_letter::letter::Letter;
use openwit_operators::dead_letter::read::{Found, Met};
use openwit_operators::dead_letter::replay::Mark;
use openwit_operators::fault::chain;
use serde_json::{Value, json};

use super::super::{Ended, Failure, load};
use super::{open, selection};
use crate::cli::{ConfigArgs, DeadLetterLsArgs};
use crate::generate::time;
use crate::progress::grouped;

/// Runs the command, printing to `out`.
pub fn run(args: &DeadLetterLsArgs, out: &mut impl Write) -> Ended {
    let config = args.config.clone().map(|config| load(&ConfigArgs { config, set: args.set.clone() })).transpose()?;
    let source = open(&args.from, &args.filter, config.as_ref())?;
    let (selection, mut met, mut left) = (selection(&args.filter), Met::default(), args.filter.limit.unwrap_or(u64::MAX));
    let mut printer = Printer { out: io::BufWriter::new(out), args, is_begun: false, counts: BTreeMap::new() };
    let mut damaged = 0u64;
    for found in source.letters(args.filter.after.as_ref()) {
        if left == 0 {
            break;
        }
        let found = match found {
            Ok(found) => found,
            Err(error) if error.is_damage() => {
                damaged += 1;
                eprintln!("{}", chain(&error));
                continue;
            }
            Err(error) => return Err(Failure::fault(chain(&error))),
        };
        if !selection.takes(&found.letter) || !met.first(&found.letter.partition, found.letter.offset) {
            continue;
        }
        left -= 1;
        if is_enough(printer.print(&found))? {
            return Ok(());
        }
    }
    is_enough(printer.finish())?;
    match damaged {
        0 => Ok(()),
        damaged => Err(Failure::fault(format!("{}: {damaged} places are damaged and left out, see above", source.name()))),
    }
}

/// True if whoever reads has enough, as `head` does.
fn is_enough(printed: io::Result<()>) -> Result<bool, Failure> {
    match printed {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(Failure::fault(format!("writing to stdout: {error}"))),
    }
}

/// Letters of one reason.
#[derive(Default)]
struct Count {
    letters: u64,
    bytes: u64,
    first_ms: u64,
    last_ms: u64,
}

impl Count {
    fn add(&mut self, other: &Count) {
        self.first_ms = if self.letters == 0 { other.first_ms } else { self.first_ms.min(other.first_ms) };
        self.last_ms = self.last_ms.max(other.last_ms);
        self.letters += other.letters;
        self.bytes += other.bytes;
    }
}

struct Printer<'a, W: Write> {
    out: io::BufWriter<W>,
    args: &'a DeadLetterLsArgs,
    is_begun: bool,
    counts: BTreeMap<String, Count>,
}

impl<W: Write> Printer<'_, W> {
    fn print(&mut self, found: &Found) -> io::Result<()> {
        let letter = &found.letter;
        if self.args.count {
            let (bytes, at) = (letter.original_bytes() as u64, letter.rejected_at_ms);
            let one = Count { letters: 1, bytes, first_ms: at, last_ms: at };
            self.counts.entry(letter.reason.clone()).or_default().add(&one);
            return Ok(());
        }
        if self.args.json {
            return writeln!(self.out, "{}", line(found, self.args.payload));
        }
        if !self.is_begun {
            self.is_begun = true;
            row(&mut self.out, ["rejected at", "topic", "partition", "offset", "reason", "bytes", "detail"])?;
        }
        row(
            &mut self.out,
            [
                &time_of(letter.rejected_at_ms),
                &printable(&letter.partition.topic.name),
                &letter.partition.partition.to_string(),
                &letter.offset.to_string(),
                &printable(&letter.reason),
                &letter.original_bytes().to_string(),
                &printable(&letter.detail),
            ],
        )
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.args.count && self.args.json {
            for (reason, Count { letters, bytes, first_ms, last_ms }) in &self.counts {
                let line = json!({
                    "reason": reason, "letters": letters, "bytes": bytes,
                    "first_rejected_at_ms": first_ms, "last_rejected_at_ms": last_ms,
                });
                writeln!(self.out, "{line}")?;
            }
        } else if self.args.count {
            self.table()?;
        }
        self.out.flush()
    }

    fn table(&mut self) -> io::Result<()> {
        let mut all = Count::default();
        let titles = ["reason", "letters", "bytes", "first rejected at", "last rejected at"];
        let [reason, letters, bytes, first, last] = titles;
        writeln!(self.out, "{reason:14} {letters:>12} {bytes:>16}  {first:24}  {last}")?;
        for (reason, count) in &self.counts {
            count_row(&mut self.out, &printable(reason), count)?;
            all.add(count);
        }
        count_row(&mut self.out, "all", &all)
    }
}

fn count_row(out: &mut impl Write, reason: &str, count: &Count) -> io::Result<()> {
    let times = if count.letters == 0 { [String::new(), String::new()] } else { [count.first_ms, count.last_ms].map(time_of) };
    let [first, last] = times;
    let line = format!("{reason:14} {:>12} {:>16}  {first:24}  {last}", grouped(count.letters), grouped(count.bytes));
    writeln!(out, "{}", line.trim_end())
}

fn row(out: &mut impl Write, [at, topic, partition, offset, reason, bytes, detail]: [&str; 7]) -> io::Result<()> {
    let line = format!("{at:24}  {topic:32} {partition:>9} {offset:>12}  {reason:13} {bytes:>9}  {detail}");
    writeln!(out, "{}", line.trim_end())
}

/// A letter as one line of JSON: the fields of the files, and what a table shows.
fn line(found: &Found, with_payload: bool) -> Value {
    let Letter { partition, key, payload, headers, omitted, .. } = &found.letter;
    let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(Vec::len);
    let mut line = json!({
        "place": found.place.to_string(),
        "cluster": partition.topic.cluster,
        "topic": partition.topic.name,
        "topic_id": partition.topic.id,
        "partition": partition.partition,
        "offset": found.letter.offset,
        "timestamp_ms": found.letter.timestamp_ms,
        "rejected_at_ms": found.letter.rejected_at_ms,
        "reason": found.letter.reason,
        "detail": found.letter.detail,
        "key_bytes": length(key),
        "payload_bytes": length(payload),
        "header_bytes": found.letter.header_bytes(),
        "omitted": omitted,
        "replays": Mark::find(headers).map_or(0, |mark| mark.attempt),
    });
    if with_payload {
        let mut bytes = Vec::new();
        found.letter.write_line(&mut bytes);
        if let Ok(Value::Object(whole)) = serde_json::from_slice(&bytes) {
            let original = ["key_base64", "payload_base64", "headers"];
            original.into_iter().filter_map(|name| Some((name, whole.get(name)?))).for_each(|(name, value)| {
                line[name] = value.clone();
            });
        }
    }
    line
}

/// RFC 3339 to the millisecond.
fn time_of(unix_ms: u64) -> String {
    let mut text = Vec::new();
    time::push_rfc3339(&mut text, unix_ms.saturating_mul(1_000_000));
    // `.123456789Z` to `.123Z`.
    text.truncate(text.len().saturating_sub(7));
    String::from_utf8_lossy(&text).into_owned() + "Z"
}

/// Text that a producer may have had a hand in: what would move a terminal's cursor is shown as an escape.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() { shown.extend(character.escape_default()) } else { shown.push(character) }
    }
    shown
}
