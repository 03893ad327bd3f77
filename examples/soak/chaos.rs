//! Carries outages out: kills, stops and pauses nodes and services, and starts them again, as a supervisor would.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Child;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::group;
use crate::node::{Node, Role, Surroundings, peak_memory};
use crate::outages::{How, Outage, Victim};
use crate::random::Random;
use crate::services::{self, Services};

/// How long a node may take to stop before it is killed; more than its own `shutdown_timeout_seconds`.
const STOP_PATIENCE: Duration = Duration::from_secs(40);
/// What a supervisor waits before it starts what ended by itself, and no longer than this when that happens again and again.
const RESTART_DELAY: Duration = Duration::from_millis(500);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(4);
/// Who ran this long has recovered: the delay begins anew.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);
/// Between two looks at the memory of all processes.
const MEMORY_INTERVAL: Duration = Duration::from_millis(500);

/// What was done to one process, or happened to it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Count {
    /// Killed without warning.
    pub kills: u64,
    /// Asked to stop.
    pub stops: u64,
    /// Did not stop in time when asked to, and was killed.
    pub stops_late: u64,
    /// Ended with another code than 0 when asked to stop.
    pub stops_failed: u64,
    /// Paused for a while.
    pub pauses: u64,
    /// Ended without being asked to.
    pub ended_by_itself: u64,
    /// Started again.
    pub starts: u64,
    /// Greatest resident memory of any of its processes.
    pub peak_memory_bytes: u64,
}

/// Where a process is between an outage and the next.
enum State {
    Up,
    Paused {
        until: Instant,
    },
    Stopping {
        since: Instant,
        away: Duration,
    },
    Down {
        until: Instant,
    },
    Starting(Child),
    /// Its group is being changed.
    Held,
}

/// All processes of a run, and what is to happen to them.
pub struct Chaos<'a> {
    surroundings: &'a Surroundings,
    services: &'a Services,
    nodes: Vec<Node>,
    node_states: Vec<State>,
    service_states: Vec<State>,
    /// Of each node: the last delay, and when it was started.
    restart_delays: Vec<(Duration, Instant)>,
    outages: Vec<Outage>,
    reset: Option<(Outage, JoinHandle<anyhow::Result<()>>)>,
    random: Random,
    started: Instant,
    memory_seen: Instant,
    /// By name.
    pub counts: BTreeMap<String, Count>,
    /// Times that the group was deleted or rewound.
    pub group_resets: u64,
}

impl<'a> Chaos<'a> {
    /// Starts all nodes.
    pub fn start(
        surroundings: &'a Surroundings,
        services: &'a Services,
        nodes: Vec<Node>,
        outages: Vec<Outage>,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let names = nodes.iter().map(|node| node.name.clone()).chain(services::NAMES.map(str::to_owned));
        let mut chaos = Chaos {
            surroundings,
            services,
            counts: names.map(|name| (name, Count::default())).collect(),
            node_states: nodes.iter().map(|_| State::Up).collect(),
            service_states: services::NAMES.iter().map(|_| State::Up).collect(),
            restart_delays: vec![(Duration::ZERO, Instant::now()); nodes.len()],
            nodes,
            outages,
            reset: None,
            // Another stream than that of the outages.
            random: Random::of_seed(!seed),
            started: Instant::now(),
            memory_seen: Instant::now(),
            group_resets: 0,
        };
        for node in 0..chaos.nodes.len() {
            chaos.start_node(node)?;
        }
        Ok(chaos)
    }

    fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        // What was written by one number of workers is read by another.
        let workers = if self.nodes[node].role == Role::Ingest { 1 + self.random.below(2) } else { 1 };
        self.nodes[node].start(self.surroundings, workers)?;
        self.restart_delays[node].1 = Instant::now();
        self.node_states[node] = State::Up;
        Ok(())
    }

    fn say(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs();
        eprintln!("{:02}:{:02}:{:02} {what}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    }

    fn count(&mut self, name: &str) -> &mut Count {
        self.counts.entry(name.to_owned()).or_default()
    }

    /// Kills of all processes together.
    pub fn kills(&self) -> u64 {
        self.counts.values().map(|count| count.kills).sum()
    }

    /// No more outages; those under way come to their end.
    pub fn calm_down(&mut self) {
        self.outages.clear();
    }

    /// True if everything runs.
    pub fn is_calm(&self) -> bool {
        let mut states = self.node_states.iter().chain(&self.service_states);
        self.outages.is_empty() && self.reset.is_none() && states.all(|state| matches!(state, State::Up))
    }

    /// Does what is due.
    pub fn tick(&mut self) -> anyhow::Result<()> {
        self.watch_memory();
        let elapsed = self.started.elapsed();
        let due: Vec<Outage> = self.outages.iter().filter(|outage| outage.at <= elapsed).cloned().collect();
        self.outages.retain(|outage| outage.at > elapsed);
        for outage in due {
            if self.can_be_hit(outage.victim) {
                self.begin(outage)?;
            } else {
                // Its turn comes when the one before is over.
                self.outages.push(outage);
            }
        }
        for node in 0..self.nodes.len() {
            self.tick_node(node)?;
        }
        for service in 0..self.service_states.len() {
            self.tick_service(service)?;
        }
        self.tick_reset()
    }

    fn can_be_hit(&self, victim: Victim) -> bool {
        let is_up = |state: &State| matches!(state, State::Up);
        match victim {
            Victim::Node(node) => is_up(&self.node_states[node]),
            Victim::Service(service) => is_up(&self.service_states[service]),
            Victim::Group => self.ingest_nodes().all(|node| is_up(&self.node_states[node])),
        }
    }

    fn ingest_nodes(&self) -> impl Iterator<Item = usize> + use<> {
        let roles: Vec<Role> = self.nodes.iter().map(|node| node.role).collect();
        (0..roles.len()).filter(move |node| roles[*node] == Role::Ingest)
    }

    fn begin(&mut self, outage: Outage) -> anyhow::Result<()> {
        let name = match outage.victim {
            Victim::Node(node) => self.nodes[node].name.clone(),
            Victim::Service(service) => services::NAMES[service].to_owned(),
            Victim::Group => "the group".to_owned(),
        };
        self.say(&format!("{} {name}, {:.1} s", outage.how, outage.away.as_secs_f64()));
        match outage.victim {
            Victim::Node(node) => self.begin_node(node, &outage),
            Victim::Service(service) => self.begin_service(service, &outage),
            Victim::Group => self.begin_reset(outage),
        }
    }

    fn begin_node(&mut self, node: usize, outage: &Outage) -> anyhow::Result<()> {
        let name = self.nodes[node].name.clone();
        // It may have ended by itself since the last look: the next one finds out.
        match outage.how {
            How::Pause => {
                self.nodes[node].signal(libc::SIGSTOP)?;
                self.count(&name).pauses += 1;
                self.node_states[node] = State::Paused { until: Instant::now() + outage.away };
            }
            How::Stop => {
                self.nodes[node].signal(libc::SIGTERM)?;
                self.count(&name).stops += 1;
                self.node_states[node] = State::Stopping { since: Instant::now(), away: outage.away };
            }
            How::Kill | How::Forget | How::Rewind => {
                self.nodes[node].kill()?;
                self.count(&name).kills += 1;
                self.node_states[node] = State::Down { until: Instant::now() + outage.away };
            }
        }
        Ok(())
    }

    fn begin_service(&mut self, service: usize, outage: &Outage) -> anyhow::Result<()> {
        let name = services::NAMES[service];
        let until = Instant::now() + outage.away;
        match outage.how {
            How::Pause => {
                self.services.signal("pause", name)?;
                self.count(name).pauses += 1;
                self.service_states[service] = State::Paused { until };
            }
            How::Stop => {
                self.services.stop(name)?;
                self.count(name).stops += 1;
                self.service_states[service] = State::Stopping { since: Instant::now(), away: outage.away };
            }
            How::Kill | How::Forget | How::Rewind => {
                self.services.signal("kill", name)?;
                self.count(name).kills += 1;
                self.service_states[service] = State::Down { until };
            }
        }
        Ok(())
    }

    /// A group can be changed when it has no members: all ingest nodes are killed, and started when it is done.
    fn begin_reset(&mut self, outage: Outage) -> anyhow::Result<()> {
        for node in self.ingest_nodes() {
            self.begin_node(node, &outage)?;
            self.node_states[node] = State::Held;
        }
        let brokers = self.surroundings.brokers.clone();
        let how = outage.how;
        let thread = std::thread::spawn(move || group::reset(&brokers, how == How::Rewind));
        self.reset = Some((outage, thread));
        Ok(())
    }

    fn tick_reset(&mut self) -> anyhow::Result<()> {
        if !self.reset.as_ref().is_some_and(|(_, thread)| thread.is_finished()) {
            return Ok(());
        }
        let Some((outage, thread)) = self.reset.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow::anyhow!("the thread that resets the group panicked"))??;
        self.group_resets += 1;
        self.say("the group is reset");
        for node in self.ingest_nodes() {
            self.node_states[node] = State::Down { until: Instant::now() + outage.away };
        }
        Ok(())
    }

    fn tick_node(&mut self, node: usize) -> anyhow::Result<()> {
        let name = self.nodes[node].name.clone();
        if let Some(code) = self.nodes[node].ended()? {
            return self.node_ended(node, &name, code);
        }
        let now = Instant::now();
        match self.node_states[node] {
            State::Paused { until } if now >= until => {
                self.nodes[node].signal(libc::SIGCONT)?;
                self.node_states[node] = State::Up;
            }
            State::Stopping { since, away } if now >= since + STOP_PATIENCE => {
                self.say(&format!("{name} does not stop, killed"));
                self.nodes[node].kill()?;
                self.count(&name).stops_late += 1;
                self.node_states[node] = State::Down { until: now + away };
            }
            State::Down { until } if now >= until => {
                self.start_node(node)?;
                self.count(&name).starts += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn node_ended(&mut self, node: usize, name: &str, code: Option<i32>) -> anyhow::Result<()> {
        let shown = code.map_or("a signal".to_owned(), |code| format!("code {code}"));
        let away = match self.node_states[node] {
            State::Stopping { away, .. } => {
                if code != Some(0) {
                    self.say(&format!("{name} stopped with {shown}: {}", self.nodes[node].last_words()));
                    self.count(name).stops_failed += 1;
                }
                away
            }
            _ => {
                let delay = self.restart_delay(node);
                // It may try many times until what it needs is back: said once.
                if delay == RESTART_DELAY {
                    self.say(&format!("{name} ended by itself with {shown}: {}", self.nodes[node].last_words()));
                }
                self.count(name).ended_by_itself += 1;
                delay
            }
        };
        self.node_states[node] = State::Down { until: Instant::now() + away };
        Ok(())
    }

    /// Doubles each time that a node ends soon after its start.
    fn restart_delay(&mut self, node: usize) -> Duration {
        let (delay, started) = &mut self.restart_delays[node];
        let has_recovered = started.elapsed() >= RECOVERED_AFTER;
        *delay = if has_recovered { RESTART_DELAY } else { (*delay * 2).clamp(RESTART_DELAY, RESTART_DELAY_MAX) };
        *delay
    }

    fn tick_service(&mut self, service: usize) -> anyhow::Result<()> {
        let name = services::NAMES[service];
        let now = Instant::now();
        let is_gone = || !self.services.pid(name).is_some_and(is_alive);
        let next = match &mut self.service_states[service] {
            State::Up if is_gone() => {
                self.say(&format!("{name} ended by itself"));
                self.count(name).ended_by_itself += 1;
                State::Down { until: now }
            }
            State::Paused { until } if now >= *until => {
                self.services.signal("resume", name)?;
                State::Up
            }
            State::Stopping { since, away } if is_gone() || now >= *since + STOP_PATIENCE => State::Down { until: now + *away },
            State::Down { until } if now >= *until => {
                self.count(name).starts += 1;
                State::Starting(self.services.restart(name)?)
            }
            State::Starting(child) => match child.try_wait()? {
                None => return Ok(()),
                Some(status) if status.success() => State::Up,
                Some(_) => {
                    self.say(&format!("{name} did not start, once more"));
                    State::Down { until: now }
                }
            },
            _ => return Ok(()),
        };
        self.service_states[service] = next;
        Ok(())
    }

    fn watch_memory(&mut self) {
        if self.memory_seen.elapsed() < MEMORY_INTERVAL {
            return;
        }
        self.memory_seen = Instant::now();
        let nodes = self.nodes.iter().map(|node| (node.name.clone(), node.pid()));
        let services = services::NAMES.iter().map(|name| ((*name).to_owned(), self.services.pid(name)));
        let pids: Vec<(String, Option<u32>)> = nodes.chain(services).collect();
        for (name, pid) in pids {
            let peak = pid.and_then(peak_memory).unwrap_or(0);
            let count = self.count(&name);
            count.peak_memory_bytes = count.peak_memory_bytes.max(peak);
        }
    }

    /// Stops all nodes; the codes other than 0 they ended with, by name.
    pub fn stop_nodes(&mut self) -> anyhow::Result<Vec<String>> {
        for node in &self.nodes {
            node.signal(libc::SIGTERM)?;
        }
        let since = Instant::now();
        let mut failed = Vec::new();
        for node in &mut self.nodes {
            while node.pid().is_some() {
                match node.ended()? {
                    Some(Some(0)) => {}
                    Some(code) => failed.push(format!("{} stopped with {code:?}: {}", node.name, node.last_words())),
                    None if since.elapsed() > STOP_PATIENCE => {
                        node.kill()?;
                        failed.push(format!("{} did not stop", node.name));
                    }
                    None => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        }
        Ok(failed)
    }
}

/// True for a process that is there and not a zombie.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}
