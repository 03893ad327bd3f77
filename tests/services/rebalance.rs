//! Several processes of one group: they join, leave, are killed, are paused; every message is stored once, its copies are dropped.

use std::time::Duration;

use crate::group::Group;
use crate::support::binary::PATIENCE;
use crate::support::random::Random;
use crate::support::wait;

#[test]
fn duplicates_of_what_a_killed_process_handled_are_found_by_the_next_owner() {
    let Some(mut group) = Group::new("killed-owner", 2) else { return };
    group.start(0);
    group.generate(400, 21, 10_000).wait(PATIENCE).expect(0);
    group.wait_until_read();
    group.kill(0);
    // The very same messages once more: nothing of them may be stored.
    group.generate(400, 21, 10_000).wait(PATIENCE).expect(0);
    let next = group.start(1);
    assert!(next.wait_for("dedup window warmed up from Kafka"));
    group.wait_until_read();
    group.stop(1);
    // What the killed process had logged and not published comes from its log.
    group.join(0);
    group.stop(0);
    let audited = group.check();
    assert_eq!(
        (&audited["balance"]["dispositions"]["stored"], &audited["balance"]["dispositions"]["duplicates"]),
        (&400.into(), &400.into()),
        "{audited}"
    );
}

#[test]
fn three_processes_that_join_leave_and_are_killed_store_everything_once() {
    let Some(mut group) = Group::new("three", 3) else { return };
    let mut random = Random::for_test("three_processes_that_join_leave_and_are_killed_store_everything_once");
    group.join(0);
    let (count, rate) = (1_000, 250);
    // The second load is the first one once more: all of it duplicates, of what may have been handled by any of the three.
    for _ in 0..2 {
        let mut sending = group.generate(count, 22, rate);
        while !sending.has_ended() {
            let node = random.below(3) as usize;
            match (&group.nodes[node], random.below(2)) {
                (None, _) => group.join(node),
                (Some(_), 0) => group.kill(node),
                (Some(_), _) => drop(group.stop(node)),
            }
            wait::until_or_late(random.duration_below(Duration::from_millis(800)), || sending.has_ended());
        }
        sending.wait(PATIENCE).expect(0);
    }
    // All come back, publish what their logs hold, and read the rest.
    for node in 0..3 {
        if group.nodes[node].is_none() {
            group.join(node);
        }
    }
    group.wait_until_read();
    (0..3).for_each(|node| drop(group.stop(node)));
    let audited = group.check();
    assert_eq!(
        (&audited["balance"]["dispositions"]["stored"], &audited["balance"]["dispositions"]["duplicates"]),
        (&count.into(), &count.into()),
        "{audited}"
    );
}

#[test]
fn a_process_paused_past_its_session_commits_nothing_of_what_it_lost() {
    let Some(mut group) = Group::new("paused", 2) else { return };
    group.start(0);
    let sending = group.generate(1_200, 23, 200);
    assert!(group.nodes[0].as_mut().expect("it runs").wait_for("flight stream open"));
    group.nodes[0].as_ref().expect("it runs").signal(libc::SIGSTOP);
    // Another one takes over all partitions, with messages on their way in the first.
    let next = group.start(1);
    assert!(next.wait_for("partition assigned"));
    sending.wait(PATIENCE).expect(0);
    group.wait_until_read();
    group.nodes[0].as_ref().expect("it runs").signal(libc::SIGCONT);
    assert!(group.nodes[0].as_mut().expect("it runs").wait_for("lost=true"));
    // It joins again: whatever it had stored for a commit would move the group back now.
    assert!(group.nodes[0].as_mut().expect("it runs").wait_for("partitions revoked"));
    group.wait_until_read();
    (0..2).for_each(|node| drop(group.stop(node)));
    assert!(group.is_read(), "somebody has moved the group back:\n{}", group.described());
    let audited = group.check();
    assert_eq!(audited["balance"]["dispositions"]["stored"], 1_200, "{audited}");
}
