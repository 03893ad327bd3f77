//! Watches what memory the process takes, and holds the sources back before it takes more than it may.
//!
//! Buffers are bounded one by one, and their bounds are summed up before the start. What cannot be bounded like that (what the allocators
//! keep, what compressed fetches become, what small messages cost beside their bytes) shows in the memory of the process as the system
//! sees it. Near the ceiling no more than an eighth of what may be buffered is on its way to the log, and nothing stays in memory behind it:
//! so memory is given back, and a ceiling that was set too low makes the process slow, and not still. It is a brake and not a wall: what the
//! allocators keep of former peaks can lie above it.

use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use openwit_operators::budget::Budget;
use tracing::warn;

/// Between two looks near the ceiling: at full rate tens of MiB come in meanwhile.
const INTERVAL: Duration = Duration::from_millis(50);
/// Between two looks far below it.
const INTERVAL_MAX: Duration = Duration::from_millis(500);
/// What no load comes near to: what is free is not filled faster than this.
const FILLED_PER_SECOND: u64 = 4 << 30;
/// How often it is told.
const TOLD: Duration = Duration::from_secs(10);

/// Starts the thread. It ends with the last user of the budget.
pub fn watch(ceiling: u64, budget: &Arc<Budget>) -> io::Result<()> {
    let budget = Arc::downgrade(budget);
    std::thread::Builder::new().name("memory".into()).spawn(move || serve(ceiling, &budget))?;
    Ok(())
}

fn serve(ceiling: u64, budget: &Weak<Budget>) {
    let mut told: Option<Instant> = None;
    // A system that does not tell has no ceiling.
    while let (Some(budget), Some(resident)) = (budget.upgrade(), resident_bytes()) {
        let was_pressed = budget.is_pressed();
        let is_pressed = is_pressed(was_pressed, resident, ceiling);
        budget.press(is_pressed);
        if is_pressed && told.is_none_or(|told| told.elapsed() >= TOLD) {
            told = Some(Instant::now());
            let in_flight_mib = budget.in_flight().bytes >> 20;
            warn!(
                resident_mib = resident >> 20,
                max_buffer_memory_mib = ceiling >> 20,
                in_flight_mib,
                "the process takes nearly as much memory as it may; less is read until some of it is free"
            );
        }
        drop(budget);
        std::thread::sleep(interval(resident, ceiling));
    }
}

/// Until the next look: shorter than it takes to reach the ceiling.
fn interval(resident: u64, ceiling: u64) -> Duration {
    let free = (ceiling / 16 * 15).saturating_sub(resident);
    Duration::from_secs_f64(free as f64 / FILLED_PER_SECOND as f64).clamp(INTERVAL, INTERVAL_MAX)
}

/// From 15/16 of the ceiling on, until it is below 7/8 again.
fn is_pressed(was_pressed: bool, resident: u64, ceiling: u64) -> bool {
    resident >= if was_pressed { ceiling / 8 * 7 } else { ceiling / 16 * 15 }
}

/// The resident memory of this process.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_begins_near_the_ceiling_and_ends_well_below_it() {
        let steps =
            [(900, false), (937, false), (938, true), (900, true), (876, true), (874, false), (930, false), (2_000, true)];
        let mut pressed = false;
        for (resident, expected) in steps {
            pressed = is_pressed(pressed, resident * 1_000, 1_000_000);
            assert_eq!(pressed, expected, "at {resident}");
        }
    }

    #[test]
    fn the_memory_is_looked_at_again_before_it_can_be_full() {
        const CEILING: u64 = 2 << 30;
        for resident in [0, 1 << 30, CEILING / 16 * 15, CEILING, u64::MAX] {
            let interval = interval(resident, CEILING);
            assert!((INTERVAL..=INTERVAL_MAX).contains(&interval));
            let reached = resident as f64 + interval.as_secs_f64() * FILLED_PER_SECOND as f64;
            assert!(interval == INTERVAL || reached <= CEILING as f64, "{interval:?} at {resident}");
        }
        assert!(interval(100 << 20, CEILING) > 8 * INTERVAL);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_memory_of_this_process_is_read() {
        let before = resident_bytes().unwrap();
        let taken = vec![1u8; 64 << 20];
        let after = resident_bytes().unwrap();
        assert!(after >= before + (32 << 20), "{before} {after} {}", taken.len());
    }
}
