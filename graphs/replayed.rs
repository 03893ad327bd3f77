//! A graph made over for a replay: another source in the place of its own, and a sink of the replay's own in the place of all others.

use std::collections::BTreeSet;

use openwit_operators::capture;

use crate::edge::Kind;
use crate::registry::{self, Operator};
use crate::wiring::{self, Description, Link, Placed, Stage, Wiring, check};

#[cfg(test)]
mod tests;

/// The graph with `source` in the place of everything up to the first edge that carries what `source` gives.
pub fn fed_by(description: &Description, source: Stage) -> Result<Description, String> {
    if description.stages.is_empty() {
        return Err("the configuration has no stages that can be replayed: it is that of a storage node alone".to_owned());
    }
    let wiring = check(description).map_err(|flaws| wiring::told(&flaws))?;
    let operator = registry::find(&source.operator).ok_or_else(|| format!("no such operator: {}", source.operator))?;
    let kind = operator.outputs.first().and_then(|output| output.kind);
    let kind = kind.filter(|_| operator.is_source()).ok_or_else(|| format!("{} is no source", operator.name))?;
    let edge = first_edge(&wiring, kind);
    let edge = edge.ok_or_else(|| format!("the graph has no edge that carries {kind}, which {} gives", operator.name))?;
    let mut gone = ancestors(&wiring, edge.stage);
    // Whoever has lost all of its input goes, too.
    for position in &wiring.order {
        let inputs = &wiring.stages[*position].inputs;
        if !inputs.is_empty() && inputs.iter().all(|link| gone.contains(&link.stage) && *link != edge) {
            gone.insert(*position);
        }
    }
    let mut stages = vec![source];
    for position in wiring.order.iter().filter(|position| !gone.contains(position)) {
        let placed = &wiring.stages[*position];
        let kept = placed.inputs.iter().filter(|link| **link == edge || !gone.contains(&link.stage));
        let from = kept.map(|link| if *link == edge { stages[0].name.clone() } else { name_of(&wiring, *link) });
        let from = from.collect();
        // Nothing is committed in a replay: nobody has to accept a loss.
        let accept_loss = placed.stage.accept_loss && operator.commits;
        stages.push(Stage { from, accept_loss, ..placed.stage.clone() });
    }
    if wiring.has_raw_log() && kind != Kind::Raw {
        log_before_rows(&mut stages);
    }
    Ok(Description { stages, storage: description.storage })
}

/// A log where rows are made: the graph's own stood before what is fed, and is gone.
fn log_before_rows(stages: &mut Vec<Stage>) {
    let Some(encode) = stages.iter().position(|stage| stage.operator == registry::ENCODE) else { return };
    let log = Stage { from: stages[encode].from.clone(), ..Stage::of(registry::LOG) };
    stages[encode].from = vec![log.name.clone()];
    stages.insert(encode, log);
}

/// The graph without its captures: what is replayed is captured already, and they may be what is being read.
pub fn without_captures(description: &Description) -> Result<Description, String> {
    let wiring = check(description).map_err(|flaws| wiring::told(&flaws))?;
    let kept = wiring.stages.iter().filter(|placed| placed.operator.name != capture::NAME);
    let stages = kept.map(|placed| {
        let from = placed.inputs.iter().map(|link| name_of(&wiring, past(&wiring, *link, &is_capture)));
        Stage { from: from.collect(), ..placed.stage.clone() }
    });
    Ok(Description { stages: stages.collect(), storage: description.storage })
}

/// The graph without its log, its sinks and its captures: what would go to the log goes to `sink`, and rejects to the dead letter as
/// before, which the plan puts elsewhere. Nothing of it touches what the graph touches in production.
pub fn ending_in(description: &Description, sink: Stage) -> Result<Description, String> {
    let wiring = check(description).map_err(|flaws| wiring::told(&flaws))?;
    let is_of = |stage: &Placed, operator: &str| stage.operator.name == operator;
    // A log of messages as they came is passed by: what would become rows goes to the sink.
    let passes_on = |placed: &Placed| is_capture(placed) || is_of(placed, registry::LOG) && placed.takes == Some(Kind::Raw);
    let log = wiring.stages.iter().position(|placed| is_of(placed, registry::LOG) && !passes_on(placed));
    let ends = log.or_else(|| wiring.stages.iter().position(|placed| is_of(placed, registry::ENCODE)));
    let takes = registry::find(&sink.operator).map_or(&[][..], |operator| operator.inputs);
    // A sink of rejects may take the same type as this one, and is none of its rows.
    let is_wanted = |kind: Kind| kind != Kind::Reject && takes.contains(&kind);
    let takes_the_same = |stage: &usize| wiring.stages[*stage].takes.is_some_and(is_wanted);
    let ends = ends.or_else(|| wiring.sinks().find(takes_the_same));
    let ends =
        ends.ok_or_else(|| format!("the graph has neither a {} nor a sink for what {} takes", registry::LOG, sink.operator))?;
    let kept = ancestors(&wiring, ends);
    let mut stages = Vec::new();
    for position in wiring.order.iter().filter(|position| kept.contains(position) && **position != ends) {
        let placed = &wiring.stages[*position];
        if !passes_on(placed) {
            let from = placed.inputs.iter().map(|link| name_of(&wiring, past(&wiring, *link, &passes_on)));
            stages.push(Stage { from: from.collect(), ..placed.stage.clone() });
        }
    }
    let letters = wiring.stages.iter().filter(|placed| placed.operator.name == registry::DEAD_LETTER);
    for placed in letters.filter(|placed| placed.inputs.iter().all(|link| kept.contains(&link.stage))) {
        let from = placed.inputs.iter().map(|link| name_of(&wiring, *link)).collect();
        stages.push(Stage { from, ..placed.stage.clone() });
    }
    let from = wiring.stages[ends].inputs.iter().map(|link| name_of(&wiring, past(&wiring, *link, &passes_on)));
    stages.push(Stage { from: from.collect(), ..sink });
    Ok(Description { stages, storage: false })
}

/// The first edge, in the order in which data passes, that carries `kind`. Where nothing drops duplicates, messages without
/// duplicates come in where the others go to the log.
fn first_edge(wiring: &Wiring, kind: Kind) -> Option<Link> {
    let gives = |stage: usize, output: usize| {
        let placed = &wiring.stages[stage];
        placed.gives(&placed.operator.outputs[output]) == Some(kind)
    };
    let outputs = |stage: usize| wiring.stages[stage].operator.outputs.len();
    let mut links = wiring.order.iter().flat_map(|stage| (0..outputs(*stage)).map(|output| Link { stage: *stage, output }));
    let found = links.find(|link| gives(link.stage, link.output));
    let log = wiring.stage(registry::LOG).filter(|_| kind == Kind::Unique);
    found.or_else(|| log.and_then(|log| log.inputs.first().copied()))
}

/// The stage and all that feed it.
fn ancestors(wiring: &Wiring, of: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::from([of]);
    // Against the order every stage comes before those that feed it.
    for position in wiring.order.iter().rev() {
        if found.contains(position) {
            found.extend(wiring.stages[*position].inputs.iter().map(|link| link.stage));
        }
    }
    found
}

fn is_capture(placed: &Placed) -> bool {
    placed.operator.name == capture::NAME
}

/// Where an edge comes from once the stages that only pass on are gone.
fn past(wiring: &Wiring, link: Link, passes_on: &dyn Fn(&Placed) -> bool) -> Link {
    let placed = &wiring.stages[link.stage];
    match placed.inputs.first() {
        Some(above) if passes_on(placed) => past(wiring, *above, passes_on),
        _ => link,
    }
}

fn name_of(wiring: &Wiring, link: Link) -> String {
    let placed = &wiring.stages[link.stage];
    let Operator { outputs, .. } = placed.operator;
    format!("{}.{}", placed.stage.name, outputs[link.output].name)
}
