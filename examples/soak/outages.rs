//! What goes wrong when: drawn from the seed before anything starts, so that a run can be repeated, up to the scheduling of the machine.

use std::fmt;
use std::time::Duration;

use crate::random::Random;

/// The time without outages at the beginning: a run that breaks at once should show so.
const CALM_START: Duration = Duration::from_secs(10);

/// Who is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// A node, by its position.
    Node(usize),
    /// A service, by its position.
    Service(usize),
    /// What Kafka knows of the group; all ingest nodes are killed for it.
    Group,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// SIGKILL, and started again after a while.
    Kill,
    /// SIGTERM, and started again after a while.
    Stop,
    /// SIGSTOP, and SIGCONT after a while.
    Pause,
    /// The group is deleted with its offsets.
    Forget,
    /// The group's offsets are set to the beginning.
    Rewind,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            How::Kill => "kill -9",
            How::Stop => "stop",
            How::Pause => "pause",
            How::Forget => "delete the offsets of",
            How::Rewind => "rewind",
        })
    }
}

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub struct Outage {
    /// When; later if the victim is still busy with the one before.
    pub at: Duration,
    /// Who is hit.
    pub victim: Victim,
    /// How.
    pub how: How,
    /// For how long.
    pub away: Duration,
}

/// The outages of a run of `length`, one each `interval` on average.
pub fn schedule(seed: u64, length: Duration, interval: Duration, ingest: usize, storage: usize) -> Vec<Outage> {
    let mut random = Random::of_seed(seed);
    let mut at = CALM_START;
    let mut outages = Vec::new();
    while at < length {
        let (victim, how) = victim_and_how(&mut random, ingest, storage);
        outages.push(Outage { at, victim, how, away: away(&mut random, victim, how) });
        // From almost at once to twice the mean: outages overlap often.
        at += random.duration_below(2 * interval);
    }
    outages
}

fn victim_and_how(random: &mut Random, ingest: usize, storage: usize) -> (Victim, How) {
    let victim = match random.below(100) {
        0..36 => Victim::Node(random.below(ingest as u64) as usize),
        36..66 => Victim::Node(ingest + random.below(storage as u64) as usize),
        66..75 => Victim::Service(0),
        75..86 => Victim::Service(1),
        86..96 => Victim::Service(2),
        _ => Victim::Group,
    };
    let how = match (victim, random.below(100)) {
        (Victim::Group, 0..50) => How::Forget,
        (Victim::Group, _) => How::Rewind,
        (_, 0..66) => How::Kill,
        (_, 66..80) => How::Stop,
        _ => How::Pause,
    };
    (victim, how)
}

/// Mostly short; a node sometimes for longer than the group waits for its members, so that its partitions move.
fn away(random: &mut Random, victim: Victim, how: How) -> Duration {
    let (least, spread) = match (victim, how, random.below(100)) {
        (_, How::Pause, 0..70) => (200, 3_000),
        (_, How::Pause, _) => (3_000, 6_000),
        (Victim::Node(_), _, 0..50) => (0, 500),
        (Victim::Node(_), _, 50..88) => (500, 3_500),
        (Victim::Node(_), _, _) => (8_000, 6_000),
        (Victim::Service(_) | Victim::Group, _, _) => (0, 3_000),
    };
    Duration::from_millis(least) + random.duration_below(Duration::from_millis(spread))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_and_an_hour_hits_everyone_in_every_way() {
        let hour = |seed| schedule(seed, Duration::from_secs(3_600), Duration::from_secs(8), 2, 2);
        assert_eq!(format!("{:?}", hour(1)), format!("{:?}", hour(1)));
        assert_ne!(format!("{:?}", hour(1)), format!("{:?}", hour(2)));
        for seed in 0..20 {
            let outages = hour(seed);
            let kills = outages.iter().filter(|outage| outage.how == How::Kill).count();
            assert!(kills >= 220, "seed {seed}: {kills} kills");
            let victims = (0..4).map(Victim::Node).chain((0..3).map(Victim::Service));
            for (victim, how) in victims.flat_map(|victim| [How::Kill, How::Stop, How::Pause].map(|how| (victim, how))) {
                let is_there = outages.iter().any(|outage| (outage.victim, outage.how) == (victim, how));
                assert!(is_there, "seed {seed}: no {how} of {victim:?}");
            }
            assert!(outages.iter().any(|outage| outage.victim == Victim::Group), "seed {seed}");
        }
    }
}
