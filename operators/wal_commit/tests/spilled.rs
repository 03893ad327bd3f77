//! What was let go and cannot be read back: it is not lost, so its capability is kept.

use timely::dataflow::operators::Probe;
use timely::dataflow::operators::vec::Input;

use super::*;
use crate::batch::SpilledBatches;
use crate::budget::{Budget, Load};
use crate::fault::Health;
use crate::wal_commit::read::Run;
use crate::wal_commit::replay::{self, Replay, wal_replay};
use crate::wal_commit::reread::{self, wal_reread};

/// Runs one of the two operators on a frame in a segment that is gone, and looks at its frontier once the input has ended.
fn keeps_its_capability(is_raw: bool) {
    let disk = Memory::aligned();
    let (log, recovery) = open(&disk, &small_config(), 1);
    let health = Health::default();
    let writer = Writer::spawn(log, health.clone()).unwrap();
    let budget = Budget::new(Load { bytes: 1 << 20, messages: 1_000 });
    let (of_graph, told) = (writer.clone(), health);
    timely::execute_directly(move |worker| {
        let (mut input, probe) = worker.dataflow::<Epoch, _, _>(|scope| {
            let (input, spilled) = scope.new_input::<SpilledBatches>();
            let (reader, budget, health) = (of_graph.reader(), budget, told.clone());
            let probe = if is_raw {
                let (recovered, turns, stats) = Default::default();
                wal_reread(spilled, reread::Ports { recovered, turns, reader, budget, health, stats }).probe().0
            } else {
                let replay = Arc::new(Replay::new(recovery.frames(), Default::default()));
                wal_replay(spilled, replay::Ports { replay, reader, budget, health, stats: Default::default() }).probe().0
            };
            (input, probe)
        });
        input.advance_to(Epoch(7));
        input.send(SpilledBatches { run: Run { segment: 4_711, bytes: 4_096..8_192 }, batches: 1 });
        input.close();
        for _ in 0..100 {
            worker.step();
        }
        assert!(probe.less_equal(&Epoch(7)), "the frontier passed what could not be read");
        assert!(told.failed(), "and nobody was told");
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    });
    writer.shutdown();
}

#[test]
fn a_frame_that_cannot_be_read_back_raises_a_fault_and_holds_the_frontier() {
    keeps_its_capability(false);
}

#[test]
fn messages_as_they_came_that_cannot_be_read_back_raise_a_fault_and_hold_the_frontier() {
    keeps_its_capability(true);
}
