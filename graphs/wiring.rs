//! A graph as data: its stages and what joins them; and whether it can work.
//!
//! ```text
//! Description   as the configuration says it: stages in order, each with its operator and where its input comes from
//!     | check   names, types, sources, cycles, loose ends, durability: all flaws at once
//! Wiring        every link found, in an order in which it can be built
//! ```
//!
//! What is checked is what the graph promises. A source that commits offsets does so when *every* branch behind it has made its records
//! durable, so a fork cannot commit for one branch what another has not kept. Two things would break that, and are refused unless
//! the stage says `accept_loss`: a sink that keeps nothing, and a sink beside the log, as a start resumes behind what the log has.

use std::collections::{BTreeMap, BTreeSet};

use openwit_operators::options::Options;

use crate::edge::Kind;
use crate::registry::{self, Keeps, Operator, Output};

#[cfg(test)]
mod tests;

/// One stage as it is described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its name, unique in the graph.
    pub name: String,
    /// The name of its operator.
    pub operator: String,
    /// Where its input comes from: `stage` or `stage.output`. Empty: from the nearest stage above that has an output for it.
    pub from: Vec<String>,
    /// Offsets may be committed though this stage may lose what they stand for.
    pub accept_loss: bool,
    /// What its operator is told.
    pub options: Options,
}

impl Stage {
    /// A stage named as its operator, with its input from above.
    pub fn of(operator: &str) -> Stage {
        let (name, operator) = (operator.to_owned(), operator.to_owned());
        Stage { name, operator, from: Vec::new(), accept_loss: false, options: Options::default() }
    }

    /// The same with another name.
    pub fn named(self, name: &str) -> Stage {
        Stage { name: name.to_owned(), ..self }
    }

    /// The same with its input from `from`.
    pub fn from(self, from: &str) -> Stage {
        Stage { from: vec![from.to_owned()], ..self }
    }

    /// The same, which may lose what it is given.
    pub fn losing(self) -> Stage {
        Stage { accept_loss: true, ..self }
    }

    /// The same with options.
    pub fn with(self, options: Options) -> Stage {
        Stage { options, ..self }
    }
}

/// A graph as it is described.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The stages from the source on; none where this process reads nothing.
    pub stages: Vec<Stage>,
    /// This process is a storage node, too.
    pub storage: bool,
}

/// Which part of a stage is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Its name.
    Name,
    /// Its operator.
    Operator,
    /// Where its input comes from.
    From,
    /// Whether it may lose anything.
    AcceptLoss,
}

/// One thing wrong with a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The stage, by its position; `None` where the graph as a whole is meant.
    pub stage: Option<usize>,
    /// Which part of it.
    pub part: Part,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// All flaws, a line each.
pub fn told(flaws: &[Flaw]) -> String {
    let place = |flaw: &Flaw| flaw.stage.map_or("graph".to_owned(), |stage| format!("graph.stages[{stage}]"));
    flaws.iter().map(|flaw| format!("{}: {}", place(flaw), flaw.message)).collect::<Vec<_>>().join("\n")
}

/// An output of a stage, by positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The stage.
    pub stage: usize,
    /// Which of its outputs.
    pub output: usize,
}

/// A stage whose links are found.
#[derive(Clone, Debug)]
pub struct Placed {
    /// As it was described.
    pub stage: Stage,
    /// Its operator.
    pub operator: &'static Operator,
    /// Where its input comes from; none for a source.
    pub inputs: Vec<Link>,
    /// The type of its input.
    pub takes: Option<Kind>,
}

impl Placed {
    /// The type of one of its outputs.
    pub fn gives(&self, output: &Output) -> Option<Kind> {
        output.given(self.takes)
    }
}

/// A graph that can be built.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// The stages, as they were described.
    pub stages: Vec<Placed>,
    /// Their positions, each behind those it needs.
    pub order: Vec<usize>,
}

impl Wiring {
    /// The stage with this operator, where there is one.
    pub fn stage(&self, operator: &str) -> Option<&Placed> {
        self.stages.iter().find(|placed| placed.operator.name == operator)
    }

    /// True if a stage has this operator.
    pub fn has(&self, operator: &str) -> bool {
        self.stage(operator).is_some()
    }

    /// True if its log stands before `normalize`: it holds messages as they came.
    pub fn has_raw_log(&self) -> bool {
        self.stage(registry::LOG).is_some_and(|log| log.takes == Some(Kind::Raw))
    }

    /// True if its source commits offsets.
    pub fn commits(&self) -> bool {
        self.stages.iter().any(|placed| placed.operator.commits)
    }

    /// The stages that are fed by `stage`, directly or not.
    pub fn below(&self, stage: usize) -> BTreeSet<usize> {
        let mut below = BTreeSet::new();
        for next in &self.order {
            if self.stages[*next].inputs.iter().any(|link| link.stage == stage || below.contains(&link.stage)) {
                below.insert(*next);
            }
        }
        below
    }

    /// The sinks: stages without an output.
    pub fn sinks(&self) -> impl Iterator<Item = usize> {
        (0..self.stages.len()).filter(|stage| self.stages[*stage].operator.outputs.is_empty())
    }

    /// Sinks, other than `flight_sink`, that keep what they are given and stand behind the log. After a start they are given again what
    /// the catalog knows already: it says nothing about them.
    pub fn has_other_keepers(&self) -> bool {
        let Some(log) = self.stages.iter().position(|placed| placed.operator.name == registry::LOG) else { return false };
        let is_keeper = |stage: &usize| {
            let operator = self.stages[*stage].operator;
            operator.outputs.is_empty() && operator.keeps == Keeps::Durable && operator.name != registry::FLIGHT
        };
        self.below(log).iter().any(is_keeper)
    }
}

/// More stages than any graph needs; keeps a hostile file from taking its time.
pub const STAGES_MAX: usize = 64;

/// Finds all links of a description, or everything that is wrong with it.
pub fn check(description: &Description) -> Result<Wiring, Vec<Flaw>> {
    if description.stages.len() > STAGES_MAX {
        let message = format!("a graph has at most {STAGES_MAX} stages, and this one {}", description.stages.len());
        return Err(vec![Flaw { stage: None, part: Part::Name, message }]);
    }
    let mut checker = Checker { stages: &description.stages, flaws: Vec::new() };
    let operators = checker.operators();
    let links = checker.links(&operators);
    if !checker.flaws.is_empty() {
        // Types and promises are only told of links that were found.
        return Err(checker.flaws);
    }
    let order = checker.order(&links);
    let takes = checker.types(&operators, &links, &order);
    checker.loose_ends(&operators, &links);
    let placed = description.stages.iter().zip(&operators).zip(links).zip(takes);
    let stages = placed.filter_map(|(((stage, operator), inputs), takes)| {
        operator.map(|operator| Placed { stage: stage.clone(), operator, inputs, takes })
    });
    let wiring = Wiring { stages: stages.collect(), order };
    if checker.flaws.is_empty() {
        checker.promises(&wiring);
    }
    checker.flaws.sort_by_key(|flaw| (flaw.stage, flaw.part));
    if checker.flaws.is_empty() { Ok(wiring) } else { Err(checker.flaws) }
}

struct Checker<'a> {
    stages: &'a [Stage],
    flaws: Vec<Flaw>,
}

type Operators = Vec<Option<&'static Operator>>;

impl Checker<'_> {
    fn flaw(&mut self, stage: usize, part: Part, message: String) {
        self.flaws.push(Flaw { stage: Some(stage), part, message });
    }

    fn name(&self, stage: usize) -> &str {
        &self.stages[stage].name
    }

    /// The operators, and what is wrong with names.
    fn operators(&mut self) -> Operators {
        let (mut names, mut singles) = (BTreeMap::new(), BTreeMap::new());
        let mut found = Vec::new();
        for (position, stage) in self.stages.iter().enumerate() {
            if let Some(first) = names.insert(stage.name.as_str(), position) {
                let message = format!("is the name of stage {} already: give each stage a name of its own", first + 1);
                self.flaw(position, Part::Name, message);
            }
            let operator = registry::find(&stage.operator);
            match operator {
                None => {
                    let known: Vec<&str> = registry::public().map(|operator| operator.name).collect();
                    self.flaw(position, Part::Operator, format!("no such operator: there are {}", known.join(", ")));
                }
                Some(operator) if operator.is_single => {
                    if let Some(first) = singles.insert(operator.name, position) {
                        let first = self.name(first);
                        let message = format!("stage {first} is a {} already, and a process has only one", operator.name);
                        self.flaw(position, Part::Operator, message);
                    }
                }
                Some(_) => {}
            }
            found.push(operator);
        }
        let sources = found.iter().enumerate().filter(|(_, operator)| operator.is_some_and(Operator::is_source));
        let sources: Vec<usize> = sources.map(|(position, _)| position).collect();
        for second in sources.iter().skip(1) {
            let message = format!("a second source beside {}: a graph has one", self.name(sources[0]));
            self.flaw(*second, Part::Operator, message);
        }
        if sources.is_empty() && found.iter().all(Option::is_some) {
            let known = registry::public().filter(|operator| operator.is_source()).map(|operator| operator.name);
            let message = format!("the graph has no source: one of {}", known.collect::<Vec<_>>().join(", "));
            self.flaws.push(Flaw { stage: None, part: Part::Operator, message });
        }
        found
    }

    /// Where the input of each stage comes from.
    fn links(&mut self, operators: &Operators) -> Vec<Vec<Link>> {
        (0..self.stages.len())
            .map(|position| {
                let Some(operator) = operators[position] else { return Vec::new() };
                let from = &self.stages[position].from;
                match (operator.is_source(), from.is_empty()) {
                    (true, true) => Vec::new(),
                    (true, false) => {
                        self.flaw(position, Part::From, format!("{} is a source: nothing goes into it", operator.name));
                        Vec::new()
                    }
                    (false, true) => self.link_from_above(position, operator, operators).into_iter().collect(),
                    (false, false) => from.iter().filter_map(|from| self.link_to(position, from, operators)).collect(),
                }
            })
            .collect()
    }

    /// The nearest stage above that has outputs, and there the first one; for what takes rejects, the nearest one that has some.
    fn link_from_above(&mut self, position: usize, operator: &Operator, operators: &Operators) -> Option<Link> {
        let takes_rejects_only = operator.inputs == [Kind::Reject];
        for above in (0..position).rev() {
            let outputs = operators[above].map_or(&[][..], |operator| operator.outputs);
            let output = match takes_rejects_only {
                true => outputs.iter().position(|output| output.kind == Some(Kind::Reject)),
                false => (!outputs.is_empty()).then_some(0),
            };
            if let Some(output) = output {
                return Some(Link { stage: above, output });
            }
        }
        let is_known = operators[..position].iter().all(Option::is_some);
        if is_known {
            self.flaw(position, Part::From, format!("no stage above gives {}: say where it comes from", list(operator.inputs)));
        }
        None
    }

    fn link_to(&mut self, position: usize, from: &str, operators: &Operators) -> Option<Link> {
        let (name, output) = from.split_once('.').map_or((from, None), |(name, output)| (name, Some(output)));
        let Some(stage) = self.stages.iter().position(|stage| stage.name == name) else {
            let known: Vec<&str> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
            self.flaw(position, Part::From, format!("no stage is called {name}: there are {}", known.join(", ")));
            return None;
        };
        let operator = operators[stage]?;
        if operator.outputs.is_empty() {
            self.flaw(position, Part::From, format!("{name} is a {}: nothing comes out of it", operator.name));
            return None;
        }
        let Some(output) = output else { return Some(Link { stage, output: 0 }) };
        let found = operator.outputs.iter().position(|known| known.name == output);
        if found.is_none() {
            let known: Vec<&str> = operator.outputs.iter().map(|output| output.name).collect();
            let message = format!("{name} has no output {output}: a {} has {}", operator.name, known.join(", "));
            self.flaw(position, Part::From, message);
        }
        found.map(|output| Link { stage, output })
    }

    /// An order in which every stage stands behind those it needs; stages of a circle are left out.
    fn order(&mut self, links: &[Vec<Link>]) -> Vec<usize> {
        let mut order: Vec<usize> = Vec::new();
        loop {
            let is_ready = |stage: &usize| !order.contains(stage) && links[*stage].iter().all(|link| order.contains(&link.stage));
            let ready = (0..links.len()).filter(is_ready);
            // The log waits for the dead letter; behind a log of messages as they came, what makes rows of them.
            let waits = |stage: usize| [registry::LOG, registry::ENCODE].contains(&self.stages[stage].operator.as_str());
            let Some(next) = ready.min_by_key(|stage| (waits(*stage), *stage)) else { break };
            order.push(next);
        }
        let circle: Vec<usize> = (0..links.len()).filter(|stage| !order.contains(stage)).collect();
        if let Some(first) = circle.first() {
            let names: Vec<&str> = circle.iter().map(|stage| self.name(*stage)).collect();
            let message = format!("{} wait for one another: data flows one way", names.join(", "));
            self.flaw(*first, Part::From, message);
        }
        order
    }

    /// The type of each stage's input, as far as it is known.
    fn types(&mut self, operators: &Operators, links: &[Vec<Link>], order: &[usize]) -> Vec<Option<Kind>> {
        let mut takes: Vec<Option<Kind>> = vec![None; links.len()];
        for position in order {
            let Some(operator) = operators[*position] else { continue };
            for link in &links[*position] {
                let above = operators[link.stage].map(|operator| &operator.outputs[link.output]);
                let Some(kind) = above.and_then(|output| output.given(takes[link.stage])) else { continue };
                let giver = (self.name(link.stage), operators[link.stage].map_or("", |operator| operator.name));
                let giver = if giver.0 == giver.1 { giver.0.to_owned() } else { format!("{} ({})", giver.0, giver.1) };
                let taker = (self.name(*position), operator.name);
                let taker = if taker.0 == taker.1 { taker.0.to_owned() } else { format!("{} ({})", taker.0, taker.1) };
                if !operator.inputs.contains(&kind) {
                    self.flaw(*position, Part::From, format!("{giver} gives {kind}, {taker} takes {}", list(operator.inputs)));
                } else if let Some(first) = takes[*position].filter(|first| *first != kind) {
                    self.flaw(
                        *position,
                        Part::From,
                        format!("{giver} gives {kind}, and another input of {taker} gives {first}: they cannot be joined"),
                    );
                } else {
                    takes[*position] = Some(kind);
                }
            }
        }
        takes
    }

    /// Outputs that nobody takes: what is in them would be lost.
    fn loose_ends(&mut self, operators: &Operators, links: &[Vec<Link>]) {
        let taken: BTreeSet<Link> = links.iter().flatten().copied().collect();
        for (position, operator) in operators.iter().enumerate() {
            let Some(operator) = operator else { continue };
            for (output, declared) in operator.outputs.iter().enumerate() {
                if taken.contains(&Link { stage: position, output }) {
                    continue;
                }
                let name = self.name(position);
                let kind = declared.kind.map_or("what it gives", Kind::name);
                let takers =
                    registry::public().filter(|operator| declared.kind.is_some_and(|kind| operator.inputs.contains(&kind)));
                let takers: Vec<&str> = takers.map(|operator| operator.name).collect();
                let message = format!(
                    "nothing takes {kind} from {name}.{}: add a stage with `from: {name}.{}`, of {}",
                    declared.name,
                    declared.name,
                    if takers.is_empty() { "any sink".to_owned() } else { takers.join(", ") },
                );
                self.flaw(position, Part::Operator, message);
            }
        }
    }

    /// Rows on their way to storage are made again from the log: of normalized messages in it, or, if these stand behind it, by the graph.
    fn rows_behind_the_log(&mut self, wiring: &Wiring, behind_log: &BTreeSet<usize>) {
        for (position, placed) in wiring.stages.iter().enumerate().filter(|(_, placed)| placed.operator.name == registry::ENCODE)
        {
            let Some(kind) = placed.takes.filter(|kind| *kind != Kind::Durable) else { continue };
            if !(wiring.has_raw_log() && behind_log.contains(&position)) {
                let message = format!(
                    "{} takes {kind} only behind a log: put {} before it, or between the source and normalize",
                    placed.operator.name,
                    registry::LOG
                );
                self.flaw(position, Part::From, message);
            }
        }
    }

    /// What a source that commits offsets promises.
    fn promises(&mut self, wiring: &Wiring) {
        let log = wiring.stages.iter().position(|placed| placed.operator.name == registry::LOG);
        let behind_log = log.map(|log| wiring.below(log)).unwrap_or_default();
        self.rows_behind_the_log(wiring, &behind_log);
        for (position, placed) in wiring.stages.iter().enumerate() {
            let Placed { stage, operator, .. } = placed;
            let is_sink = operator.outputs.is_empty();
            let loses = is_sink && operator.keeps == Keeps::Nothing;
            let is_beside_log = is_sink
                && operator.keeps == Keeps::Durable
                && log.is_some()
                && !behind_log.contains(&position)
                && operator.name != registry::DEAD_LETTER;
            let problem = if !wiring.commits() {
                None
            } else if loses {
                Some(format!("{} keeps nothing, and the offsets of what it is given are committed", operator.name))
            } else if let Some(why) = (operator.forgets)(&stage.options) {
                Some(format!("{}: {why}", operator.name))
            } else if is_beside_log {
                Some(format!(
                    "{} stands beside the log: what is in the log when the process ends, and not yet here, is not given to it again; put it behind {}",
                    operator.name,
                    log.map_or("the log", |log| wiring.stages[log].stage.name.as_str()),
                ))
            } else {
                None
            };
            match (problem, stage.accept_loss) {
                (Some(problem), false) => {
                    self.flaw(position, Part::AcceptLoss, format!("{problem}. Where that is meant, say accept_loss: true"));
                }
                (None, true) => {
                    self.flaw(position, Part::AcceptLoss, format!("{} loses nothing here: leave it out", stage.name));
                }
                (Some(_), true) | (None, false) => {}
            }
        }
    }
}

fn list(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" or ")
}
