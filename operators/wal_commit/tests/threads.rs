//! The writer thread: who is acknowledged when, and who is not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::*;
use crate::fault::Health;

/// Longer than anything here takes on a loaded machine: a test that would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(60);

fn job(ticket: u64, epoch: u64, batches: impl IntoIterator<Item = NormalizedBatch>) -> Job {
    Job { ticket, batches: batches.into_iter().map(|batch| (Epoch(epoch), batch.into())).collect() }
}

fn writer(disk: &Memory, config: &Config) -> (Writer, Health) {
    let health = Health::default();
    (Writer::spawn(open(disk, config, 1).0, health.clone()).unwrap(), health)
}

/// Waits until `reached` holds for the writer's statistics.
fn wait_for(writer: &Writer, reached: impl Fn(&log::Stats) -> bool) -> log::Stats {
    let start = std::time::Instant::now();
    loop {
        let stats = writer.stats();
        if reached(&stats) {
            return stats;
        }
        assert!(start.elapsed() < PATIENCE, "{stats:?}");
        std::thread::yield_now();
    }
}

#[test]
fn acknowledged_jobs_survive_the_loss_of_everything_unsynced() {
    let disk = Memory::aligned();
    let (writer, health) = writer(&disk, &small_config());
    let woken = Arc::new(AtomicU64::new(0));
    let counter = woken.clone();
    let port = writer.port(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let mut expected = Vec::new();
    for ticket in 0..20 {
        let batch = batch(0, ticket as i64 * 3, 3, 200);
        expected.push(content(Epoch(ticket), &batch));
        port.append(job(ticket, ticket, [batch]));
        let ack = port.receiver().recv_timeout(PATIENCE).unwrap();
        assert_eq!(ack.ticket, ticket);
        assert_eq!(content(ack.appended[0].epoch, &ack.appended[0].batch), expected[ticket as usize]);
        let crashed = disk.crash(&mut |_| 0);
        assert_eq!(recovered(&open(&crashed, &small_config(), 100).1), expected);
    }
    writer.shutdown();
    assert!(woken.load(Ordering::Relaxed) > 0 && !health.failed());
}

#[test]
fn concurrent_appends_share_syncs_and_come_back_in_order() {
    let disk = Memory::aligned();
    let config = Config { segment_bytes: 1 << 20, bytes_max: 64 << 20, ..small_config() };
    let (writer, health) = writer(&disk, &config);
    const JOBS: u64 = 2_000;
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let port = writer.port(|| {});
            scope.spawn(move || {
                for ticket in 0..JOBS {
                    port.append(job(ticket, ticket, [batch(worker, ticket as i64, 1, 50)]));
                }
                for ticket in 0..JOBS {
                    assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, ticket);
                }
            });
        }
    });
    writer.shutdown();
    let stats = writer.stats();
    assert_eq!((stats.frames, stats.queued_jobs, stats.queued_bytes), (2 * JOBS, 0, 0));
    assert!(stats.syncs < JOBS, "{} syncs", stats.syncs);
    assert_eq!(stats.sync_histogram.iter().sum::<u64>(), stats.syncs);
    assert!(!health.failed());
    let crashed = disk.crash(&mut |_| 0);
    assert_eq!(recovered(&open(&crashed, &config, 5_000).1).len() as u64, 2 * JOBS);
}

#[test]
fn failed_sync_raises_a_fault_and_acknowledges_nothing_more() {
    // Starting the first segment takes five operations; the group's write and sync follow.
    for after in 0..7 {
        let disk = Memory::aligned();
        let (writer, health) = writer(&disk, &small_config());
        let port = writer.port(|| {});
        disk.fail(after, memory::Fault::Io);
        port.append(job(1, 7_040, [batch(0, 0, 1, 10)]));
        assert_eq!(port.receiver().recv_timeout(PATIENCE).err(), Some(RecvTimeoutError::Disconnected), "operation {after}");
        writer.shutdown();
        let fault = health.fault().unwrap();
        assert_eq!(fault.stage, NAME);
        assert!(fault.message.contains("epochs 7040 to 7040") && fault.message.contains("memory"), "{}", fault.message);
        port.append(job(2, 8, [batch(0, 1, 1, 10)]));
        assert!(port.acks().next().is_none());
    }
}

#[test]
fn full_log_waits_acknowledges_what_is_durable_and_goes_on_after_a_release() {
    let disk = Memory::aligned();
    let config = Config { bytes_max: 2 * segment::BYTES_MIN, ..small_config() };
    let (writer, health) = writer(&disk, &config);
    let port = writer.port(|| {});
    const JOBS: u64 = 12;
    for ticket in 0..JOBS {
        port.append(job(ticket, ticket, [batch(0, ticket as i64, 1, 5_000)]));
    }
    let stats = wait_for(&writer, |stats| stats.stalled);
    assert!(stats.total_bytes <= config.bytes_max && stats.stalls >= 1);
    for ticket in 0..JOBS {
        assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, ticket);
        // Published at once: what is acknowledged makes room for what is not.
        writer.release(Epoch(ticket + 1));
    }
    wait_for(&writer, |stats| !stats.stalled);
    assert!(!health.failed());
}

#[test]
fn full_disk_waits_and_goes_on_when_there_is_space() {
    let disk = Memory::aligned();
    let (writer, health) = writer(&disk, &small_config());
    let port = writer.port(|| {});
    disk.limit(Some(20_000));
    for ticket in 0..10 {
        port.append(job(ticket, ticket, [batch(0, ticket as i64, 1, 4_000)]));
    }
    wait_for(&writer, |stats| stats.stalled);
    disk.limit(None);
    for ticket in 0..10 {
        assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, ticket);
    }
    writer.shutdown();
    assert!(!health.failed());
    assert_eq!(recovered(&open(&disk.crash(&mut |_| 0), &small_config(), 100).1).len(), 10);
}

#[test]
fn shutdown_while_the_log_is_full_ends_without_acknowledging_the_rest() {
    let disk = Memory::aligned();
    let config = Config { bytes_max: 2 * segment::BYTES_MIN, ..small_config() };
    let (writer, health) = writer(&disk, &config);
    let port = writer.port(|| {});
    for ticket in 0..12 {
        port.append(job(ticket, ticket, [batch(0, ticket as i64, 1, 5_000)]));
    }
    wait_for(&writer, |stats| stats.stalled);
    writer.shutdown();
    let acknowledged = port.acks().count();
    assert!(!health.failed());
    let found = recovered(&open(&disk.crash(&mut |_| 0), &config, 100).1).len();
    assert!((1..12).contains(&acknowledged) && found >= acknowledged, "{acknowledged} acknowledged, {found} found");
}

#[test]
fn segments_are_reused_while_the_writer_runs() {
    let disk = Memory::aligned();
    let config = Config { bytes_max: 4 * segment::BYTES_MIN, ..small_config() };
    let (writer, health) = writer(&disk, &config);
    let port = writer.port(|| {});
    for ticket in 0..200u64 {
        port.append(job(ticket, ticket, [batch(0, ticket as i64, 1, 3_000)]));
        assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, ticket);
        writer.release(Epoch(ticket + 1));
    }
    let stats = writer.stats();
    assert!(stats.segments_reused > 20 && stats.total_bytes <= config.bytes_max, "{stats:?}");
    writer.shutdown();
    assert!(!health.failed());
    let (_, recovery) = open(&disk, &config, 1_000);
    assert_eq!(recovery.keys().count(), 200, "the keys of all records are remembered");
}

#[test]
fn sync_interval_acknowledges_written_jobs_and_syncs_them_in_time() {
    let disk = Memory::aligned();
    let interval = Duration::from_millis(5);
    let (writer, health) = writer(&disk, &Config { sync: Sync::Every(interval), ..small_config() });
    let port = writer.port(|| {});
    for ticket in 0..50 {
        port.append(job(ticket, ticket, [batch(0, ticket as i64, 1, 10)]));
        assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, ticket);
    }
    // Nothing more is appended: the last of them is synced all the same.
    let start = std::time::Instant::now();
    while recovered(&open(&disk.crash(&mut |_| 0), &small_config(), 100).1).len() < 50 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    drop(writer);
    assert!(!health.failed());
}

#[test]
fn a_power_failure_takes_what_was_acknowledged_within_the_sync_interval_and_leaves_a_prefix() {
    use std::time::Instant;
    let interval = Duration::from_millis(2);
    let config = Config { sync: Sync::Every(interval), ..small_config() };
    let (mut taken, mut crashes, mut late) = (0, 0, 0);
    for seed in 1..13u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut choose = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        let disk = Memory::aligned();
        let (writer, _health) = writer(&disk, &config);
        let port = writer.port(|| {});
        let (mut appended, mut acked) = (Vec::new(), Vec::new());
        for ticket in 0..100 {
            let batch = batch(0, ticket as i64 * 3, 3, 60);
            appended.push(content(Epoch(ticket), &batch));
            // Whatever is still missing of what was acknowledged before is younger than the interval now: the writer looks when it
            // takes this job, which is later.
            let asked = Instant::now();
            port.append(job(ticket, ticket, [batch]));
            assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, ticket);
            acked.push(Instant::now());
            let left = recovered(&open(&disk.crash(&mut choose), &small_config(), 1_000).1);
            assert!(appended.starts_with(&left), "seed {seed}: no prefix: {} of {}", left.len(), appended.len());
            taken += appended.len() - left.len();
            crashes += 1;
            let is_late = |acked: &Instant| asked.duration_since(*acked) >= interval;
            if acked.iter().take(ticket as usize).skip(left.len()).any(is_late) {
                // Its sync is under way on the other thread, which a busy machine may have put aside: it ends without another job.
                late += 1;
                let start = Instant::now();
                while recovered(&open(&disk.crash(&mut |_| 0), &small_config(), 1_000).1).len() < ticket as usize {
                    assert!(start.elapsed() < PATIENCE, "seed {seed}: jobs before {ticket} are never synced");
                    std::thread::yield_now();
                }
            }
        }
    }
    assert!(taken > 0, "no crash took anything: nothing was tested");
    assert!(late * 4 < crashes, "{late} of {crashes} crashes took what was acknowledged longer before than the interval");
}

#[test]
fn empty_jobs_and_batches_are_acknowledged() {
    let disk = Memory::aligned();
    let (writer, _health) = writer(&disk, &small_config());
    let port = writer.port(|| {});
    port.append(job(1, 1, []));
    port.append(job(2, 1, [batch(0, 5, 0, 0)]));
    assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, 1);
    assert_eq!(port.receiver().recv_timeout(PATIENCE).unwrap().ticket, 2);
}
