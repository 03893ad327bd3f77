//! Payloads of one topic, decompressed, into OTLP protobuf: which decoder is asked, and how many records a JSON payload holds.
//!
//! ```text
//! {..}                      one record, over as many lines as it likes
//! {..} LF {..} LF ..        one record a line; empty lines are passed over
//! [{..}, {..}, ..]          one record an element
//! ```
//! Each record is written as a resource of its own, so that rows come in the order of the records. A payload is accepted or refused
//! whole: its rows are numbered from its first record on, and one that lacked some would have other numbers once they are mended.

use std::fmt;

use crate::batch::{Arena, Reason, Signal};

use super::Limits;
use super::detect;
use super::failure::{Checked, Failure};
use super::json;
use super::json_split::parts;
use super::json_text::{object, text_of};
use super::otlp_json;
use super::otlp_proto::{self, Rules};

/// Which records a JSON payload may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Plain,
    Otlp,
    Either,
}

/// Where in its payload a record stands, for a person.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Counted from 1, as editors do.
    Line(usize),
    /// Counted from 0, as in all other places.
    Element(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(number) => write!(f, "line {number}"),
            Place::Element(number) => write!(f, "element {number}"),
        }
    }
}

/// Decodes payloads. Keeps its buffers between them.
pub(super) struct Decoder {
    limits: Limits,
    json: json::Writer,
    /// Where the protobuf of each record starts, of a payload with several.
    records: Vec<(usize, Place)>,
    /// Spans, log records or data points of the last payload that passed the walk.
    rows: u64,
}

impl Decoder {
    pub fn new(limits: Limits) -> Self {
        Decoder { limits, json: json::Writer::new(limits.depth_max), records: Vec::new(), rows: 0 }
    }

    /// Spans, log records or data points of the last payload that was accepted.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Gives back what a huge payload made the buffers grow to.
    pub fn shrink(&mut self, bytes_max: usize) {
        self.json.shrink(bytes_max);
        self.records.clear();
        self.records.shrink_to(bytes_max / size_of::<(usize, Place)>());
    }

    /// Format `auto`, as `detect` says.
    pub fn detect(&mut self, payload: &[u8], options: json::Options<'_>, written: &mut Vec<u8>) -> Checked<Arena> {
        if !detect::protobuf_first(payload) {
            return self.json(payload, Dialect::Either, options, written);
        }
        match self.walk(payload, options.signal) {
            Ok(()) => Ok(Arena::Raw),
            Err(protobuf) if !detect::looks_like_json(payload) => Err(detect::only_protobuf(protobuf)),
            Err(protobuf) => {
                let json = self.json(payload, Dialect::Either, options, written);
                json.map_err(|json| detect::neither(protobuf, &json))
            }
        }
    }

    /// Appends all records of a JSON payload.
    pub fn json(
        &mut self,
        payload: &[u8],
        dialect: Dialect,
        options: json::Options<'_>,
        written: &mut Vec<u8>,
    ) -> Checked<Arena> {
        let text = text_of(payload)?;
        let start = written.len();
        self.records.clear();
        if text.starts_with('[') {
            self.elements(text, dialect, options, written)?;
        } else if memchr::memchr(b'\n', text.as_bytes()).is_some() {
            self.lines(text, dialect, options, written)?;
        } else {
            self.record(text, dialect, options, written)?;
        }
        self.walk(&written[start..], options.signal).map_err(|failure| self.blame(failure, options.signal, written))?;
        Ok(Arena::Written)
    }

    /// One record a line, or one over all lines.
    fn lines(&mut self, text: &str, dialect: Dialect, options: json::Options<'_>, written: &mut Vec<u8>) -> Checked<()> {
        let start = written.len();
        for (number, line) in text.split('\n').map(str::trim_ascii).enumerate() {
            if line.is_empty() {
                continue;
            }
            let place = Place::Line(number + 1);
            self.begin(place, written.len())?;
            let Err(failure) = self.record(line, dialect, options, written) else { continue };
            if number > 0 {
                return Err(failure.in_line(place));
            }
            // Where the first line is no record by itself, one may go over several lines.
            written.truncate(start);
            self.records.clear();
            let whole = self.record(text, dialect, options, written);
            return whole.map_err(|whole| if line.ends_with('}') { failure.in_line(place) } else { whole });
        }
        Ok(())
    }

    /// One record an element.
    fn elements(&mut self, text: &str, dialect: Dialect, options: json::Options<'_>, written: &mut Vec<u8>) -> Checked<()> {
        for (number, element) in parts(text).enumerate() {
            let place = Place::Element(number);
            self.begin(place, written.len())?;
            let record = element.and_then(|element| self.record(element, dialect, options, written));
            record.map_err(|failure| failure.within(place))?;
        }
        if self.records.is_empty() {
            return Err(Failure::new(Reason::Empty, "JSON array is empty"));
        }
        Ok(())
    }

    /// Notes where a record starts, if there may be one more.
    fn begin(&mut self, place: Place, start: usize) -> Checked<()> {
        let limit = self.limits.json_records_max;
        if self.records.len() >= limit {
            return Err(Failure::new(Reason::TooLarge, format_args!("more than {limit} JSON records in one message")));
        }
        self.records.push((start, place));
        Ok(())
    }

    /// Appends one record. OTLP JSON and plain JSON are told apart while reading: the first of OTLP's keys ends the attempt at a plain
    /// record, and it nearly always comes first.
    fn record(&mut self, text: &str, dialect: Dialect, options: json::Options<'_>, written: &mut Vec<u8>) -> Checked<()> {
        let text = object(text)?;
        let is_otlp = match dialect {
            Dialect::Otlp => true,
            Dialect::Plain => self.json.write(text, options, false, written)? == json::Outcome::Otlp,
            Dialect::Either => self.json.write(text, options, true, written)? == json::Outcome::Otlp,
        };
        if is_otlp { otlp_json::write(text, options.signal, written) } else { Ok(()) }
    }

    /// Checks protobuf, also that which was written here.
    pub fn walk(&mut self, payload: &[u8], signal: Signal) -> Checked<()> {
        self.rows = self.count(payload, signal)?;
        Ok(())
    }

    fn count(&self, payload: &[u8], signal: Signal) -> Checked<u64> {
        let Limits { depth_max, row_bytes_max, .. } = self.limits;
        otlp_proto::check_or_name_signal(payload, signal, &Rules { depth_max, row_bytes_max })
    }

    /// Names the record that makes a payload with several fail the walk; `failure` is that of the payload.
    #[cold]
    fn blame(&self, failure: Box<Failure>, signal: Signal, written: &[u8]) -> Box<Failure> {
        let ends = self.records.iter().skip(1).map(|(start, _)| *start).chain([written.len()]);
        let mut records = self.records.iter().zip(ends);
        let blamed =
            records.find_map(|((start, place), end)| Some(self.count(&written[*start..end], signal).err()?.within(place)));
        blamed.unwrap_or(failure)
    }
}
