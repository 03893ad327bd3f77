//! `dead-letter replay`: the messages of letters back to Kafka.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use openwit_operators::dead_letter::read::{Place, Selection, Source};
use openwit_operators::dead_letter::replay::{self, Choice, Chooser, RejectedAgain};
use openwit_operators::dead_letter::resend::{Message, Resender};
use openwit_operators::fault::chain;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::info;

use super::super::run::INTERRUPTED;
use super::super::{Ended, Failure, load};
use super::{open, selection};
use crate::cli::DeadLetterReplayArgs;
use crate::config::Config;
use crate::plan::connection_properties;
use crate::progress::grouped;

/// How often a line tells how far the replay is, and with it where to go on if it were killed now.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What a replay did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// True if nothing was sent: `sent` is what would have been.
    pub dry_run: bool,
    /// Messages sent, and acked by all replicas in sync.
    pub sent: u64,
    /// Their bytes: keys, payloads, headers.
    pub bytes: u64,
    /// Messages by the topic they were sent to.
    pub topics: BTreeMap<String, u64>,
    /// Letters left out because they were replayed before and rejected again.
    pub rejected_again: u64,
    /// Letters left out because their message was sent by this run, or has a later letter.
    pub repeated: u64,
    /// Letters that were not asked for.
    pub unselected: u64,
    /// Letters that lack their payload: it was too large for the dead letter topic.
    pub incomplete: u64,
    /// Letters whose producer's token was left out of them, without another one to send.
    pub without_token: u64,
    /// Messages larger than their topic takes.
    pub too_large: u64,
    /// Damaged places.
    pub damaged: u64,
    /// True if it was stopped before the end.
    pub stopped: bool,
    /// All letters up to this place are done: a replay with `--after` goes on behind it.
    pub after: Option<String>,
    /// Messages acked behind that place, which going on there sends a second time. Only after a failure.
    pub acked_behind: u64,
}

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.dry_run { "would be sent" } else { "sent and acknowledged" };
        writeln!(f, "{} messages, {} bytes, {verb}", grouped(self.sent), grouped(self.bytes))?;
        for (topic, messages) in &self.topics {
            writeln!(f, "  to {topic}: {}", grouped(*messages))?;
        }
        let left_out = [
            (self.unselected, "not asked for"),
            (self.rejected_again, "replayed before and rejected again: mend them, or send them once more with --again"),
            (self.repeated, "repeated: their message was sent, or has a later letter"),
            (self.incomplete, "without their payload: fetch them from their topic, or from a folder of dead letters"),
            (self.without_token, "whose token is not kept in letters: give one with --token-env"),
            (self.too_large, "larger than their topic takes"),
            (self.damaged, "damaged"),
        ];
        for (letters, why) in left_out.into_iter().filter(|(letters, _)| *letters > 0) {
            writeln!(f, "{} letters left out, {why}", grouped(letters))?;
        }
        if self.acked_behind > 0 {
            writeln!(f, "{} messages behind the place below are acknowledged already", grouped(self.acked_behind))?;
        }
        match &self.after {
            Some(after) => write!(f, "to go on behind these letters: --after {after}"),
            None => write!(f, "no letter is done"),
        }
    }
}

/// What is asked of a replay.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Which letters.
    pub selection: Selection,
    /// Letters at most.
    pub limit: Option<u64>,
    /// Letters behind this place.
    pub after: Option<Place>,
    /// How they are sent.
    pub sending: replay::Config,
    /// Nothing is sent.
    pub dry_run: bool,
}

/// Runs the command.
pub fn run(args: &DeadLetterReplayArgs) -> Ended {
    let config = load(&args.config)?;
    let source = open(&args.from, &args.filter, Some(&config))?;
    let is_letters = |to: &&String| config.ingestion.kafka.dead_letter.topic.as_ref() == Some(to) || source.is_topic(to);
    if let Some(to) = args.to.as_ref().filter(is_letters) {
        return Err(Failure::usage(format!("--to {to}: that is a topic of dead letters, which no pipeline reads")));
    }
    let stop = stop_on_signals()?;
    let request = Request {
        selection: selection(&args.filter),
        limit: args.filter.limit,
        after: args.filter.after.clone(),
        sending: replay::Config {
            to: args.to.clone(),
            keep_timestamp: args.keep_timestamp,
            again: args.again,
            token: args.token_env.as_deref().map(|name| token(name, &config)).transpose()?,
        },
        dry_run: args.dry_run,
    };
    let (replayed, ended) = send_back(&source, &config, &request, &mut || stop.load(Ordering::Relaxed))?;
    if args.json {
        println!("{}", serde_json::to_string(&replayed).map_err(Failure::fault)?);
    } else {
        println!("{replayed}");
    }
    ended
}

/// The token in an environment variable, where no list of processes shows it.
fn token(variable: &str, config: &Config) -> Result<replay::Token, Failure> {
    let token = std::env::var(variable).ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| Failure::usage(format!("--token-env {variable}: that variable is not set, or empty")))?;
    Ok(replay::Token { header: config.ingestion.auth.header.clone(), value: format!("Bearer {token}").into_bytes() })
}

/// The first signal ends the replay behind the letter that is being sent, a second one at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second looks at what the first signal set.
        let at_once = signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED, stop.clone());
        at_once
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|error| Failure::fault(format!("installing the signal handlers: {error}")))?;
    }
    Ok(stop)
}

/// Sends the letters of `source` back to the brokers of `config`, until the end or until `should_stop`, which is asked before each. What
/// was done is told also where it ends with a failure.
pub fn send_back(
    source: &Source,
    config: &Config,
    request: &Request,
    should_stop: &mut dyn FnMut() -> bool,
) -> Result<(Replayed, Ended), Failure> {
    let again = RejectedAgain::survey(source).map_err(|error| Failure::fault(chain(&error)))?;
    let resender = match request.dry_run {
        true => None,
        false => Some(Resender::open(&connection_properties(config)).map_err(|error| Failure::fault(chain(&error)))?),
    };
    let mut run = Run {
        source,
        request,
        chooser: Chooser::new(request.sending.clone(), again),
        resender,
        replayed: Replayed { dry_run: request.dry_run, ..Replayed::default() },
        after: request.after.clone(),
        told: None,
    };
    let ended = run.letters(should_stop);
    let settled = run.settle();
    Ok(run.finish(ended.and(settled)))
}

/// One replay.
struct Run<'a> {
    source: &'a Source,
    request: &'a Request,
    chooser: Chooser,
    /// `None` if nothing is sent.
    resender: Option<Resender>,
    replayed: Replayed,
    /// Up to where a dry run got.
    after: Option<Place>,
    told: Option<Instant>,
}

impl Run<'_> {
    fn letters(&mut self, should_stop: &mut dyn FnMut() -> bool) -> Ended {
        let (source, request) = (self.source, self.request);
        let mut chosen = 0;
        for found in source.letters(request.after.as_ref()) {
            if chosen == request.limit.unwrap_or(u64::MAX) {
                return Ok(());
            }
            if should_stop() {
                self.replayed.stopped = true;
                return Ok(());
            }
            self.tell();
            let found = match found {
                Ok(found) => found,
                Err(error) if error.is_damage() => {
                    self.replayed.damaged += 1;
                    eprintln!("{}", chain(&error));
                    continue;
                }
                Err(error) => return Err(Failure::fault(chain(&error))),
            };
            let place = found.place.clone();
            if !request.selection.takes(&found.letter) {
                self.replayed.unselected += 1;
                self.pass(place);
                continue;
            }
            let identity = (found.letter.partition.clone(), found.letter.offset);
            match self.chooser.choose(found) {
                Choice::Send(message) => {
                    chosen += 1;
                    self.send(place, message)?;
                    continue;
                }
                Choice::Repeated => self.replayed.repeated += 1,
                Choice::RejectedAgain => self.replayed.rejected_again += 1,
                Choice::WithoutToken => self.replayed.without_token += 1,
                Choice::Incomplete(omitted) => {
                    self.replayed.incomplete += 1;
                    let (partition, offset) = identity;
                    eprintln!("letter {place} of {partition} offset {offset} cannot be sent, it lacks {omitted}");
                }
            }
            self.pass(place);
        }
        Ok(())
    }

    fn send(&mut self, place: Place, message: Message) -> Ended {
        match &mut self.resender {
            Some(resender) => resender.send(message).map_err(|error| Failure::fault(chain(&error)))?,
            None => {
                self.replayed.sent += 1;
                self.replayed.bytes += message.bytes() as u64;
                *self.replayed.topics.entry(message.topic).or_default() += 1;
                self.after = Some(place);
            }
        }
        self.name_refused();
        Ok(())
    }

    fn name_refused(&mut self) {
        for error in self.resender.iter_mut().flat_map(Resender::take_refused) {
            self.replayed.too_large += 1;
            eprintln!("{}", chain(&error));
        }
    }

    fn pass(&mut self, place: Place) {
        match &mut self.resender {
            Some(resender) => resender.pass(place),
            None => self.after = Some(place),
        }
    }

    /// Waits for the acks of what is on its way.
    fn settle(&mut self) -> Ended {
        let Some(resender) = &mut self.resender else { return Ok(()) };
        resender.settle().map_err(|error| Failure::fault(chain(&error)))
    }

    fn tell(&mut self) {
        if self.told.is_some_and(|told| told.elapsed() < LINE_INTERVAL) {
            return;
        }
        self.told = Some(Instant::now());
        let percent = (self.source.read() * 100).checked_div(self.source.total()).unwrap_or(100);
        let progress = self.resender.as_ref().map(Resender::progress).unwrap_or_default();
        let after = progress.done_to.or_else(|| self.after.clone()).map(|place| place.to_string());
        info!(source = self.source.name(), read_percent = percent, acked = progress.acked, after, "replaying dead letters");
    }

    fn finish(mut self, ended: Ended) -> (Replayed, Ended) {
        self.name_refused();
        if let Some(resender) = self.resender.take() {
            let progress = resender.progress();
            (self.replayed.sent, self.replayed.bytes) = (progress.acked, progress.bytes);
            self.replayed.acked_behind = progress.acked_behind;
            self.replayed.topics = resender.acked().clone();
            self.after = progress.done_to.or(self.after);
        }
        self.replayed.after = self.after.map(|place| place.to_string());
        let verdict = ended.and_then(|()| verdict(&self.replayed));
        (self.replayed, verdict)
    }
}

fn verdict(replayed: &Replayed) -> Ended {
    let left_out = replayed.incomplete + replayed.without_token + replayed.too_large + replayed.damaged;
    if replayed.stopped {
        let how =
            replayed.after.as_ref().map_or_else(|| "start it again".to_owned(), |after| format!("go on with --after {after}"));
        return Err(Failure::fault(format!("stopped before the last letter: {how}")));
    }
    match left_out {
        0 => Ok(()),
        left_out => Err(Failure::fault(format!("{left_out} letters could not be sent, see above; all others are"))),
    }
}
