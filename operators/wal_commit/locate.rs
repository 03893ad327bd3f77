//! Finds the frames of a log that account for an offset, also while a process writes there. Reads only.

use super::Error;
use super::inspect::Source;
use super::long_term::read::Selection;
use super::read::RecoveredFrame;
use crate::batch::Group;
use crate::coverage::{Disposition, PartitionKey};
use crate::epoch::Epoch;
use crate::wal_commit::read::Position;

/// A frame that accounts for the offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The partition, of this incarnation of the topic.
    pub partition: PartitionKey,
    /// The group of its rows.
    pub group: Group,
    /// The epoch in which it was logged.
    pub epoch: Epoch,
    /// Where it lies.
    pub position: Position,
    /// What it says of the offset.
    pub disposition: Disposition,
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

fn look(frame: &RecoveredFrame, partition: i32, offset: i64) -> Option<Found> {
    let coverage = &frame.batch.coverage;
    let disposition = coverage.disposition(offset).filter(|_| coverage.partition.partition == partition)?;
    let record = frame.batch.records.iter().find(|record| record.offset == offset);
    Some(Found {
        partition: coverage.partition.clone(),
        group: frame.batch.group.clone(),
        epoch: frame.epoch,
        position: frame.position,
        disposition,
        payload_bytes: record.map(|record| frame.batch.payload(record).len()),
    })
}
