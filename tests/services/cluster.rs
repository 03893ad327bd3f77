//! Two processes as one timely cluster: one dedup window, and one fate.

use std::time::Duration;

use crate::group::Group;
use crate::setup::LOG_FIRST;
use crate::support::binary::PATIENCE;
use crate::support::wait;

/// How soon the others of a cluster end with one of them.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Messages of a load, and how many percent of them repeat another one.
const COUNT: u64 = 800;
const DUPLICATES_PERCENT: u64 = 30;
/// Messages a second. It is part of what is in them: only the same load at the same rate is the same.
const RATE: u64 = 300;

/// Sends a load and gives how many of its messages are distinct.
fn send(group: &Group, seed: u64) -> u64 {
    let sent = group.generate_with_duplicates(COUNT, seed, RATE, DUPLICATES_PERCENT).wait(PATIENCE).expect(0).json();
    let duplicates = sent["duplicates"].as_u64().expect("it is counted");
    assert!(duplicates > COUNT / 5, "{sent}");
    COUNT - duplicates
}

fn dispositions(audited: &serde_json::Value) -> (u64, u64) {
    let of = |disposition: &str| audited["balance"]["dispositions"][disposition].as_u64().expect("it is counted");
    (of("stored"), of("duplicates"))
}

#[test]
fn duplicates_in_partitions_of_two_processes_are_found_and_a_stop_of_one_stops_both() {
    let Some(mut group) = Group::cluster("cluster", 2) else { return };
    group.join_all();
    let distinct = send(&group, 31);
    group.wait_until_read();
    // The very same once more: what one process remembers is a duplicate in the other.
    assert_eq!(send(&group, 31), distinct);
    group.wait_until_read();
    group.stop(0);
    let other = group.nodes[1].take().expect("it was started").wait(PATIENCE).expect(0);
    assert!(other.stderr.contains("is stopping, and so is this one"), "{}", other.stderr);
    assert_eq!(dispositions(&group.check()), (distinct, 2 * COUNT - distinct));
}

/// Kills each of two processes under a load, starts both again each time, and accounts for every message.
fn check_deaths(mut group: Group) {
    for (round, killed) in [(0, 1), (1, 0)] {
        group.join_all();
        let sending = group.generate_with_duplicates(COUNT, 32, RATE, DUPLICATES_PERCENT);
        // Somewhere in the load.
        let left = 1 - killed;
        assert!(group.nodes[killed].as_mut().expect("it runs").wait_for("flight stream open"));
        group.kill(killed);
        let mut other = group.nodes[left].take().expect("it was started");
        assert!(wait::until_or_late(ENDS_WITHIN, || other.has_ended()), "{}", other.stderr());
        let ended = other.wait(PATIENCE).expect(1);
        let told = format!("cluster: process {killed} of the cluster at 127.77.");
        assert!(ended.stderr.contains(&told) && ended.stderr.contains("is gone"), "round {round}: {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        sending.wait(PATIENCE).expect(0);
    }
    // Both come back, and what comes after the crash repeats what was before it.
    group.join_all();
    let distinct = send(&group, 32);
    group.wait_until_read();
    group.stop(1);
    group.nodes[0].take().expect("it was started").wait(PATIENCE).expect(0);
    assert_eq!(dispositions(&group.check()), (distinct, 3 * COUNT - distinct));
}

#[test]
fn the_death_of_one_process_ends_the_other_and_both_together_lose_and_double_nothing() {
    let Some(group) = Group::cluster("cluster-killed", 2) else { return };
    check_deaths(group);
}

#[test]
fn with_the_log_first_and_storage_in_each_the_death_of_one_process_loses_and_doubles_nothing_either() {
    let Some(group) = Group::cluster("cluster-log-first", 2) else { return };
    check_deaths(group.storing(LOG_FIRST));
}

#[test]
fn a_process_that_waits_for_the_others_says_so_and_can_be_stopped() {
    let Some(mut group) = Group::cluster("cluster-waits", 2) else { return };
    let waiting = group.start(1);
    assert!(waiting.wait_for("waiting for process 0 of the cluster"));
    group.stop(1);
}

#[test]
fn a_process_that_stands_still_is_gone_for_the_others_and_ends_itself_when_it_wakes_up() {
    let Some(mut group) = Group::cluster("cluster-silent", 2) else { return };
    group.join_all();
    let silent = group.nodes[1].take().expect("it was started");
    silent.signal(libc::SIGSTOP);
    let other = group.nodes[0].take().expect("it was started").wait(PATIENCE).expect(1);
    assert!(other.stderr.contains("is gone: it has said nothing for 10 s"), "{}", other.stderr);
    silent.signal(libc::SIGCONT);
    silent.wait(PATIENCE).expect(1);
}

#[test]
fn until_the_end_all_processes_end_when_all_have_read_what_was_there() {
    let Some(group) = Group::cluster("cluster-until-end", 2) else { return };
    let distinct = send(&group, 33);
    let summaries: Vec<serde_json::Value> = group.run_to_end().into_iter().map(|ended| ended.expect(0).json()).collect();
    let read: Vec<u64> = summaries.iter().map(|summary| summary["messages"].as_u64().expect("it is counted")).collect();
    assert_eq!(read.iter().sum::<u64>(), COUNT, "{summaries:?}");
    assert_eq!(dispositions(&group.check()), (distinct, COUNT - distinct));
}
