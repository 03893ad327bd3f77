//! One OTLP message, made of the parts that its rows give.
//!
//! ```text
//! rows, by ordinal    0         1         2         3
//!   resource          R1        R1        R1        R2       equal ones side by side become one group
//!   scope             S1        S1        S2        S2
//!   metric            M1        M2        M2        M2       of metrics only
//! message             R1( S1( M1(0) M2(1)) S2( M2(2)))  R2( S2( M2(3)))
//! ```

use super::Problem;
use crate::arrow_encode::encoder::{MESSAGE_EXPANDED_BYTES_MAX, expanded_bytes};
use crate::arrow_encode::metrics::Kind;
use crate::batch::Signal;
use crate::otlp::write::{close, open, put_bytes};

/// Where something lies in the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    start: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug)]
struct Metric {
    kind: Kind,
    head: Part,
    data: Part,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    ordinal: i32,
    resource: Part,
    scope: Part,
    metric: Option<Metric>,
    content: Part,
}

/// The parts of one message, in whatever order its rows come.
#[derive(Debug, Default)]
pub struct Pieces {
    arena: Vec<u8>,
    rows: Vec<Row>,
    /// Those of the row that is being added.
    resource: Part,
    scope: Part,
    metric: Option<Metric>,
}

impl Pieces {
    /// Bytes they take up.
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.rows.len() * size_of::<Row>()
    }

    /// Without a row, with the memory they have.
    pub fn clear(&mut self) {
        self.arena.clear();
        self.rows.clear();
        (self.resource, self.scope, self.metric) = (Part::default(), Part::default(), None);
    }

    fn of(&self, part: Part) -> &[u8] {
        &self.arena[part.start..part.end]
    }

    /// What `put` writes; where that is what the row before had, that.
    fn shared(&mut self, before: Part, put: impl FnOnce(&mut Vec<u8>) -> Result<(), Problem>) -> Result<Part, Problem> {
        let start = self.arena.len();
        put(&mut self.arena)?;
        if !self.rows.is_empty() && self.of(before) == &self.arena[start..] {
            self.arena.truncate(start);
            return Ok(before);
        }
        Ok(Part { start, end: self.arena.len() })
    }

    /// The resource of the row that follows: the content of its group, but for the scopes.
    pub fn resource(&mut self, put: impl FnOnce(&mut Vec<u8>) -> Result<(), Problem>) -> Result<(), Problem> {
        self.resource = self.shared(self.resource, put)?;
        Ok(())
    }

    /// The scope of the row that follows: the content of its group, but for the rows.
    pub fn scope(&mut self, put: impl FnOnce(&mut Vec<u8>) -> Result<(), Problem>) -> Result<(), Problem> {
        self.scope = self.shared(self.scope, put)?;
        Ok(())
    }

    /// The metric of the row that follows: its fields but for the data, and the data's but for the points.
    pub fn metric(&mut self, kind: Kind, head: impl FnOnce(&mut Vec<u8>), data: impl FnOnce(&mut Vec<u8>)) {
        let start = self.arena.len();
        head(&mut self.arena);
        let middle = self.arena.len();
        data(&mut self.arena);
        let metric = Metric { kind, head: Part { start, end: middle }, data: Part { start: middle, end: self.arena.len() } };
        match self.metric.filter(|before| self.is_same_metric(before, &metric)) {
            Some(_) => self.arena.truncate(start),
            None => self.metric = Some(metric),
        }
    }

    fn is_same_metric(&self, one: &Metric, other: &Metric) -> bool {
        one.kind == other.kind && self.of(one.head) == self.of(other.head) && self.of(one.data) == self.of(other.data)
    }

    /// The row itself, by its place in the message.
    pub fn row(&mut self, ordinal: i32, put: impl FnOnce(&mut Vec<u8>) -> Result<(), Problem>) -> Result<(), Problem> {
        let start = self.arena.len();
        put(&mut self.arena)?;
        let content = Part { start, end: self.arena.len() };
        self.rows.push(Row { ordinal, resource: self.resource, scope: self.scope, metric: self.metric, content });
        Ok(())
    }

    /// Takes over the rows of `other`, which are of the same message.
    pub fn append(&mut self, other: &Pieces) {
        let shift = self.arena.len();
        let moved = |part: Part| Part { start: part.start + shift, end: part.end + shift };
        self.arena.extend_from_slice(&other.arena);
        self.rows.extend(other.rows.iter().map(|row| Row {
            ordinal: row.ordinal,
            resource: moved(row.resource),
            scope: moved(row.scope),
            metric: row.metric.map(|metric| Metric { head: moved(metric.head), data: moved(metric.data), ..metric }),
            content: moved(row.content),
        }));
    }

    /// Appends the message. Its rows must be numbered from 0 without a gap, as `arrow_encode` numbers them again.
    pub fn write(&mut self, signal: Signal, out: &mut Vec<u8>) -> Result<(), Problem> {
        self.rows.sort_by_key(|row| row.ordinal);
        if let Some((wanted, row)) = (0..).zip(&self.rows).find(|(wanted, row)| row.ordinal != *wanted) {
            let what = if row.ordinal > wanted {
                format!("row {wanted} of it is missing")
            } else {
                format!("row {} of it is there twice", row.ordinal)
            };
            return Err(Problem::of("_ordinal", what));
        }
        let start = out.len();
        for resource in self.rows.chunk_by(|one, other| self.of(one.resource) == self.of(other.resource)) {
            let group = open(out, 1);
            out.extend_from_slice(self.of(resource[0].resource));
            for scope in resource.chunk_by(|one, other| self.of(one.scope) == self.of(other.scope)) {
                let group = open(out, 2);
                out.extend_from_slice(self.of(scope[0].scope));
                self.write_rows(scope, out);
                close(out, group);
            }
            close(out, group);
        }
        self.check_size(signal, &out[start..])
    }

    fn write_rows(&self, rows: &[Row], out: &mut Vec<u8>) {
        let is_same = |one: &Row, other: &Row| match (&one.metric, &other.metric) {
            (Some(one), Some(other)) => self.is_same_metric(one, other),
            _ => true,
        };
        for rows in rows.chunk_by(is_same) {
            match rows[0].metric {
                None => rows.iter().for_each(|row| put_bytes(out, 2, self.of(row.content))),
                Some(Metric { kind, head, data }) => {
                    let metric = open(out, 2);
                    out.extend_from_slice(self.of(head));
                    let points = open(out, kind.field());
                    out.extend_from_slice(self.of(data));
                    rows.iter().for_each(|row| put_bytes(out, 1, self.of(row.content)));
                    close(out, points);
                    close(out, metric);
                }
            }
        }
    }

    /// A value may have more bytes as text than it had: what was near the limit of `normalize` may now be over that of `arrow_encode`.
    fn check_size(&self, signal: Signal, message: &[u8]) -> Result<(), Problem> {
        let most = (message.len() as u64 + 1_024).saturating_mul(self.rows.len() as u64);
        if most <= MESSAGE_EXPANDED_BYTES_MAX {
            return Ok(());
        }
        match expanded_bytes(signal, message) {
            Ok(bytes) if bytes <= MESSAGE_EXPANDED_BYTES_MAX => Ok(()),
            _ => Err(Problem::of("_offset", format!("its rows have over {MESSAGE_EXPANDED_BYTES_MAX} bytes together"))),
        }
    }
}
