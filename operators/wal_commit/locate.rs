//! Finds the frames of a log that account for an offset, also while a process writes there. Reads only.

use super::inspect::Source;
use super::long_term::read::Selection;
use super::read::RecoveredFrame;
use super::{Error, Logged};
use crate::batch::Group;
use crate::coverage::{Disposition, PartitionKey};
use crate::epoch::Epoch;
use crate::wal_commit::read::Position;

/// A frame that accounts for the offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The partition, of this incarnation of the topic.
    pub partition: PartitionKey,
    /// The group of its rows; unknown of messages as they came.
    pub group: Option<Group>,
    /// The epoch in which it was logged.
    pub epoch: Epoch,
    /// Where it lies.
    pub position: Position,
    /// What it says of the offset; nothing of messages as they came, which are judged behind the log.
    pub disposition: Option<Disposition>,
    /// The record's payload, where it is stored.
    pub payload_bytes: Option<usize>,
}

/// All frames that account for an offset of a topic, whatever its incarnation; and what of the log could not be read.
pub fn locate(source: &Source, topic: &str, partition: i32, offset: i64) -> Result<(Vec<Found>, Vec<Error>), Error> {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for part in parts(source, topic, partition, offset)? {
        let selection = Selection { topics: vec![topic.to_owned()], ..Selection::default() };
        for frame in part.frames_of(&selection)?.1 {
            match frame {
                Ok(frame) if selection.has_frame(&frame) => found.extend(look(&frame, partition, offset)),
                Ok(_) => {}
                Err(error) => problems.push(error),
            }
        }
    }
    Ok((found, problems))
}

/// The segments whose coverage has the offset. Copies do not tell theirs: all are read.
fn parts(source: &Source, topic: &str, partition: i32, offset: i64) -> Result<Vec<Source>, Error> {
    let Source::Short(disk, None) = source else { return Ok(vec![source.clone()]) };
    let is_asked = |key: &PartitionKey| *key.topic.name == *topic && key.partition == partition;
    let segments = source.list()?.into_iter();
    let has_offset = segments
        .filter(|segment| segment.offsets.iter().any(|(key, offsets)| is_asked(key) && offsets.range_around(offset).is_some()));
    Ok(has_offset.map(|segment| Source::Short(disk.clone(), Some(segment.number))).collect())
}

fn look(frame: &RecoveredFrame<Logged>, partition: i32, offset: i64) -> Option<Found> {
    let looked_at = frame.batch.by_ref();
    let is_there = looked_at.partition().partition == partition && looked_at.range().contains(&offset);
    let (group, disposition, payload_bytes) = match &frame.batch {
        _ if !is_there => return None,
        Logged::Normalized(batch) => {
            let record = batch.records.iter().find(|record| record.offset == offset);
            let disposition = batch.coverage.disposition(offset)?;
            (Some(batch.group.clone()), Some(disposition), record.map(|record| batch.payload(record).len()))
        }
        Logged::Raw(batch) => {
            let record = batch.records.iter().find(|record| record.offset == offset);
            (None, None, record.and_then(|record| record.payload).map(|payload| payload.len as usize))
        }
        // Whoever handled it accounts for it.
        Logged::Recalled(_) => return None,
    };
    let partition = looked_at.partition().clone();
    Some(Found { partition, group, epoch: frame.epoch, position: frame.position, disposition, payload_bytes })
}
