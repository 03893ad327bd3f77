//! Partitions that come and go: where those assigned begin, and how those revoked are given up.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use tracing::{info, warn};

use super::super::NAME;
use super::super::collector::Collector;
use super::super::context::{Context, Rebalance, is_cooperative};
use super::super::resume::{self, Known, Lost};
use super::super::warm_up::{Gained, Round, WarmUp};
use super::{CALL_TIMEOUT, Event, Revoking, SET_BACK_INTERVAL, Thread, position_list};
use crate::coverage::{OffsetSet, PartitionKey};

/// Where a partition starts.
struct Started {
    partition: PartitionKey,
    offset: i64,
    /// First offset that the group has handled and the broker still has.
    handled_from: Option<i64>,
    /// What the group has committed.
    committed: Option<i64>,
    /// One past the last offset that was handled of a topic that had this name before.
    former_end: Option<i64>,
}

impl<W: Fn()> Thread<W> {
    pub(super) fn answer_rebalances(&mut self) -> Result<(), String> {
        if let Some(revoking) = &self.revoking {
            // Holding the revoke back holds the whole group back: give up after a bounded wait.
            if revoking.since.elapsed() < self.config.revoke_wait {
                return Ok(());
            }
            warn!("revoked partitions were not drained in time; their last records will be read again by the next owner");
            let keys = revoking.keys.clone();
            self.send(Event::Lost(keys));
            self.give_up_revoked(&[])?;
        }
        let context = self.consumer().context().clone();
        let mut rebalances = context.take_rebalances().into_iter();
        for rebalance in rebalances.by_ref() {
            match rebalance {
                Rebalance::Assign(partitions) => self.assign(partitions)?,
                Rebalance::Revoke(partitions) => self.begin_revoke(partitions)?,
            }
            if self.revoking.is_some() {
                break;
            }
        }
        // What came after a revoke waits until the revoke is answered.
        context.put_back(rebalances.collect());
        Ok(())
    }

    fn assign(&mut self, partitions: TopicPartitionList) -> Result<(), String> {
        let started = match self.starts_of(&partitions) {
            // A stop waits for nobody. What was not begun is read by the next owner, from where catalog and log end.
            Err(error) if self.was_asked_to_stop() => {
                info!(error, "stopping, the partitions assigned last are not read");
                Vec::new()
            }
            started => started?,
        };
        let (mut starts, mut resumed, mut gained) = (TopicPartitionList::new(), Vec::new(), Vec::new());
        for Started { partition, offset, handled_from, committed, former_end } in started {
            let topic = partition.topic.name.clone();
            let added = starts.add_partition_offset(&topic, partition.partition, Offset::Offset(offset));
            added.map_err(|error| format!("assigning {partition}: {error}"))?;
            info!(%partition, offset, "partition assigned");
            if self.config.commit_resumed && committed.is_none_or(|committed| committed < offset) {
                resumed.push((partition.clone(), offset));
            }
            // Where the broker has forgotten the offsets of a deleted topic, this client has not what it committed there.
            let behind = committed.max(former_end);
            if let Some(behind) = behind.filter(|behind| offset < *behind) {
                warn!(%partition, behind, offset, "the partition is read from before the group's offset, which is set back");
                self.set_back.retain(|(other, _)| *other != partition);
                self.set_back.push((partition.clone(), offset));
            }
            if former_end.is_some() {
                self.recreated.watch(partition.clone(), Instant::now());
            }
            if let Some(low) = handled_from.filter(|low| *low < offset) {
                gained.push(Gained { known: self.known(&partition), partition: partition.clone(), low, resume: offset });
            }
            let (number, lane) = (partition.partition, self.ports.budget.lane(&partition));
            self.ports.stats.flows.begin(&partition, &lane);
            self.collectors.entry(topic).or_default().insert(number, Collector::new(partition, offset, lane));
        }
        let cooperative = is_cooperative(self.consumer());
        let assigned = if cooperative { self.consumer().incremental_assign(&starts) } else { self.consumer().assign(&starts) };
        assigned.map_err(|error| format!("assigning partitions: {error}"))?;
        self.store(&resumed);
        self.begin_warm_up(gained)?;
        self.ends_asked_at.get_or_insert_with(Instant::now);
        if self.is_paused || self.is_stopping {
            self.pause(true);
        }
        self.check_ended();
        Ok(())
    }

    /// Sets the group's offsets back where partitions resumed before them: a topic was created anew, or records are read again that the
    /// log lost. librdkafka's auto-commit never goes back, and while the group's offset is ahead a restart would not find what is missing.
    pub(super) fn set_group_back(&mut self) {
        if self.set_back.is_empty() || Instant::now() < self.set_back_at {
            return;
        }
        let mut set_back = std::mem::take(&mut self.set_back);
        // What was stored meanwhile is committed by auto-commit, which goes on from here.
        set_back.retain(|(partition, _)| self.collector_of(partition).is_some());
        let list = position_list(set_back.iter());
        if list.count() > 0
            && let Err(error) = self.consumer().commit(&list, CommitMode::Sync)
        {
            warn!(%error, "the group's offsets are not set back yet, trying again");
            self.set_back_at = Instant::now() + SET_BACK_INTERVAL;
            self.set_back = set_back;
        }
    }

    fn was_asked_to_stop(&self) -> bool {
        self.ports.health.stopping() && !self.ports.health.failed()
    }

    fn starts_of(&self, partitions: &TopicPartitionList) -> Result<Vec<Started>, String> {
        let ask = |consumer: &BaseConsumer<Context>| consumer.committed_offsets(partitions.clone(), CALL_TIMEOUT);
        let committed = self.retry("reading committed offsets", ask)?;
        let start = |element: TopicPartitionListElem<'_>| {
            let committed = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            self.start_of(&element.topic().into(), element.partition(), committed)
        };
        committed.elements().into_iter().map(start).collect()
    }

    /// What this process knows of a partition from its log, or because it owned it before.
    fn known(&self, partition: &PartitionKey) -> OffsetSet {
        let mut known = self.ports.covered.remembered(partition);
        for range in self.handled.get(partition).iter().flat_map(|set| set.ranges()) {
            known.insert(range);
        }
        known
    }

    fn begin_warm_up(&mut self, gained: Vec<Gained>) -> Result<(), String> {
        let Some(config) = self.config.warm_up.filter(|_| !self.is_stopping) else { return Ok(()) };
        let Some(warm_up) = WarmUp::begin(&self.config.client, config, gained)? else { return Ok(()) };
        self.consumer()
            .pause(&warm_up.held())
            .map_err(|error| format!("holding partitions until the dedup window is warm: {error}"))?;
        self.warm_ups.push(warm_up);
        Ok(())
    }

    /// Reads on for the dedup window's sake, and resumes the partitions that it now knows.
    pub(super) fn warm_up(&mut self) -> Result<(), String> {
        if self.warm_ups.is_empty() || self.ports.budget.is_full() {
            return Ok(());
        }
        let mut warm_ups = std::mem::take(&mut self.warm_ups);
        let round = Round { messages_max: self.config.poll_records_max.max(1), ports: &self.ports, pool: &self.config.pool };
        for warm_up in &mut warm_ups {
            for batch in warm_up.poll(&round)? {
                self.send(Event::Recalled(batch));
            }
        }
        let (done, waiting): (Vec<_>, Vec<_>) = warm_ups.into_iter().partition(WarmUp::is_done);
        self.warm_ups = waiting;
        for warm_up in done {
            warm_up.tell_end(&self.ports);
            for Gained { partition, low, resume, .. } in warm_up.gained() {
                self.handled.entry(partition.clone()).or_default().insert(*low..*resume);
            }
            if !self.is_paused {
                let resumed = self.resume(&warm_up.held());
                resumed.map_err(|error| format!("resuming partitions whose dedup window is warm: {error}"))?;
            }
        }
        Ok(())
    }

    /// True while a partition waits for the dedup window.
    pub(super) fn is_held(&self, topic: &str, partition: i32) -> bool {
        self.warm_ups.iter().any(|warm_up| warm_up.holds(topic, partition))
    }

    /// The partition in one of the topics that have had this name, the first of which is 0.
    fn key_of(&self, topic: &Arc<str>, partition: i32, incarnation: u32) -> PartitionKey {
        PartitionKey::of_incarnation(&self.cluster, topic, partition, incarnation)
    }

    /// One past the last offset that this process has handled of a partition before it was assigned now; 0 if none.
    fn read_end(&self, partition: &PartitionKey) -> i64 {
        self.handled.get(partition).and_then(|handled| handled.ranges().next_back()).map_or(0, |last| last.end)
    }

    fn start_of(&self, topic: &Arc<str>, partition: i32, committed: Option<i64>) -> Result<Started, String> {
        let (low, high) = self.watermarks(topic, partition)?;
        let (mut incarnation, mut former_end) = (0u32, None);
        loop {
            let key = self.key_of(topic, partition, incarnation);
            let covered = self.covered(&key)?;
            let (read_end, log_lost_records) = (self.read_end(&key), self.ports.covered.log_lost_records());
            let known = Known { committed, low, high, covered, read_end, log_lost_records };
            // What was found to be another topic stays one, also when it has grown beyond the former.
            let next = self.key_of(topic, partition, incarnation + 1);
            let is_known = self.read_end(&next) > 0 || self.covered(&next)?.ranges().next().is_some();
            if is_known || resume::is_recreated(&known) {
                if !is_known {
                    warn!(partition = %key, high, "the topic was deleted and created anew: its offsets start over");
                }
                incarnation += 1;
                former_end = former_end.max(Some(known.read_end));
                continue;
            }
            let start = resume::start(&known, self.config.reset);
            if let Some(lost) = start.lost {
                self.note_lost(&key, &lost)?;
            }
            if let Some(end) = self.ends.as_ref().and_then(|ends| ends.get(topic)?.get(&partition)) {
                let count = usize::try_from(end - start.offset).unwrap_or(0);
                self.ports.stats.total.fetch_add(count, Ordering::Relaxed);
            }
            let handled_from = known.handled_from(self.config.reset);
            return Ok(Started { partition: key, offset: start.offset, handled_from, committed, former_end });
        }
    }

    /// After the client found a position gone: asks what the broker still has. The messages behind the gap are not handed out before,
    /// as this thread polls for them.
    pub(super) fn look_for_lost_offsets(&mut self) -> Result<(), String> {
        if !self.consumer().context().offset_reset.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let positions = self.collectors.values().flat_map(BTreeMap::values);
        let positions: Vec<(PartitionKey, i64)> = positions.map(|at| (at.partition().clone(), at.next())).collect();
        for (partition, next) in positions {
            let (low, high) = self.watermarks(&partition.topic.name, partition.partition)?;
            if high < next {
                let message =
                    format!("{partition} was read up to {next} and ends at {high} now: the topic was created anew, or cut");
                self.ports.health.fail_curable(NAME, message);
            }
            self.lows.entry(partition.topic.name.clone()).or_default().insert(partition.partition, low);
        }
        Ok(())
    }

    /// Tells of offsets that retention removed before they were read, and leaves them out of all coverage, so that an audit finds them.
    /// Those of `gap` that the broker still had are markers, or compacted away: they are accounted for as absent.
    pub(super) fn skip_lost(&mut self, topic: &str, number: i32, gap: Range<i64>) -> Result<(), String> {
        let low = self.lows.get(topic).and_then(|topic| topic.get(&number));
        let lost = gap.start..low.map_or(gap.start, |low| *low.min(&gap.end));
        let collector = self.collectors.get(topic).and_then(|topic| topic.get(&number));
        let Some(collector) = collector.filter(|_| !lost.is_empty()) else { return Ok(()) };
        self.note_lost(collector.partition(), &lost)?;
        let collector = self.collectors.get_mut(topic).and_then(|topic| topic.get_mut(&number));
        let Some(collector) = collector else { return Ok(()) };
        let before = collector.close(&self.config.pool);
        collector.skip_to(lost.end);
        before.into_iter().for_each(|batch| self.emit(batch));
        Ok(())
    }

    /// Tells of offsets that are gone; an error if nothing behind them may be read.
    fn note_lost(&self, partition: &PartitionKey, lost: &Range<i64>) -> Result<(), String> {
        self.ports.stats.lost_offsets.fetch_add((lost.end - lost.start) as usize, Ordering::Relaxed);
        tracing::error!(%partition, from = lost.start, to = lost.end, "the broker's retention removed offsets before they were read");
        match self.config.lost {
            Lost::Continue => Ok(()),
            Lost::Stop => Err(format!(
                "the broker's retention removed offsets {} to {} of {partition} before they were read, and the configuration says to stop \
                 there; to read on behind them, let it continue, or set the group's offset to {}",
                lost.start,
                lost.end - 1,
                lost.end
            )),
        }
    }

    pub(super) fn covered(&self, partition: &PartitionKey) -> Result<OffsetSet, String> {
        let mut wait = Duration::from_millis(100);
        loop {
            let error = match self.ports.covered.covered(partition) {
                Ok(covered) => return Ok(covered),
                Err(error) => error,
            };
            if self.ports.health.failed() || self.ports.health.stopping() {
                return Err(format!("reading the coverage of {partition}: {error}"));
            }
            warn!(%partition, error, "reading the catalog's coverage failed, trying again");
            std::thread::sleep(wait);
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }

    fn begin_revoke(&mut self, partitions: TopicPartitionList) -> Result<(), String> {
        let lost = self.consumer().assignment_lost();
        let mut keys = Vec::new();
        for element in partitions.elements() {
            let collector = self.collectors.get_mut(element.topic()).and_then(|topic| topic.get_mut(&element.partition()));
            let Some(collector) = collector else { continue };
            let (partition, emitted) = collector.emitted();
            self.handled.entry(partition.clone()).or_default().insert(emitted);
            keys.push(partition.clone());
            // Collected messages hold no epoch: the next owner reads them again.
            drop(collector.close(&self.config.pool));
        }
        info!(partitions = keys.len(), lost, "partitions revoked");
        self.next_revoke += 1;
        self.revoking = Some(Revoking { id: self.next_revoke, keys: keys.clone(), partitions, since: Instant::now() });
        if lost {
            self.fence();
            self.send(Event::Lost(keys));
            return self.give_up_revoked(&[]);
        }
        self.send(Event::Revoked(self.next_revoke, keys));
        Ok(())
    }

    /// Takes positions back that librdkafka would commit as it gives partitions up: they are lost, and another owner has gone on.
    fn fence(&self) {
        let mut none = TopicPartitionList::new();
        for element in self.revoking.iter().flat_map(|revoking| revoking.partitions.elements()) {
            // Without an offset: nothing to be committed.
            none.add_partition(element.topic(), element.partition());
        }
        if let Err(error) = self.consumer().store_offsets(&none) {
            warn!(%error, "positions of lost partitions could not be taken back");
        }
    }

    pub(super) fn give_up_revoked(&mut self, positions: &[(PartitionKey, i64)]) -> Result<(), String> {
        let Some(revoking) = self.revoking.take() else { return Ok(()) };
        if !positions.is_empty() {
            // One attempt: while the group refuses commits, waiting makes it worse for everybody.
            if let Err(error) = self.commit_now(positions) {
                self.ports.stats.commit_errors.fetch_add(1, Ordering::Relaxed);
                warn!(%error, "commit at revoke refused; the next owner will read some records again, storage drops them");
            }
        }
        for element in revoking.partitions.elements() {
            let topic = self.collectors.get_mut(element.topic());
            if let Some(collector) = topic.and_then(|topic| topic.remove(&element.partition())) {
                self.gate.forget(collector.partition());
                self.throttle.forget(collector.partition(), self.ports.clock.now_ms());
                self.ports.stats.flows.end(collector.partition());
            }
        }
        // The client remembers a pause beyond the assignment: a partition that comes back would stand still.
        if let Err(error) = self.consumer().resume(&revoking.partitions) {
            warn!(%error, "resuming partitions that are given up failed");
        }
        self.warm_ups.iter_mut().for_each(|warm_up| warm_up.remove(&revoking.partitions));
        let cooperative = is_cooperative(self.consumer());
        let given_up =
            if cooperative { self.consumer().incremental_unassign(&revoking.partitions) } else { self.consumer().unassign() };
        given_up.map_err(|error| format!("giving up revoked partitions: {error}"))
    }
}
