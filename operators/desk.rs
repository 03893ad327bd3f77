//! A desk: one thread that serves blocking requests of many workers' operators, and answers each where it came from.
//!
//! For what may block (a database, a dead letter's disk) and exists once per process. The operator holds its capability from request
//! to answer; the answer schedules it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};

use timely::scheduling::SyncActivator;

use crate::fault::{Health, panic_text};

/// A request with the way back.
pub struct Envelope<Q, A> {
    /// What is asked.
    pub request: Q,
    ticket: u64,
    answers: Sender<(u64, A)>,
    activator: Option<SyncActivator>,
}

impl<Q, A> Envelope<Q, A> {
    /// Answers the request and schedules the operator that made it.
    pub fn answer(self, answer: A) {
        // The asker is gone only when its graph was torn down; nobody waits then.
        let _ = self.answers.send((self.ticket, answer));
        if let Some(activator) = self.activator {
            let _ = activator.activate();
        }
    }
}

/// The way to a desk; cheap to clone, ends the desk when the last one is dropped.
pub struct Desk<Q, A> {
    requests: Sender<Envelope<Q, A>>,
}

impl<Q, A> Clone for Desk<Q, A> {
    fn clone(&self) -> Self {
        Desk { requests: self.requests.clone() }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Desk<Q, A> {
    /// Starts a desk for stage `name` whose thread runs `serve` until the requests end. If it panics, that is a fault: nobody would
    /// answer any more, and the graph would stand still without a word.
    pub fn open(
        name: &'static str,
        health: Health,
        serve: impl FnOnce(Receiver<Envelope<Q, A>>) + Send + 'static,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (requests, receiver) = channel();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| serve(receiver))) {
                health.fail(name, format!("the stage's thread panicked: {}", panic_text(panic.as_ref())));
            }
        })?;
        Ok((Desk { requests }, thread))
    }

    /// A counter at the desk for one operator on one worker.
    pub fn counter(&self, activator: SyncActivator) -> Counter<Q, A> {
        let (sender, answers) = channel();
        Counter { requests: self.requests.clone(), answers, sender, activator, next_ticket: 0 }
    }

    /// Asks and waits for the answer; `None` if the desk is gone. Not for operators.
    pub fn ask(&self, request: Q) -> Option<A> {
        let (sender, answers) = channel();
        self.requests.send(Envelope { request, ticket: 0, answers: sender, activator: None }).ok()?;
        answers.recv().ok().map(|(_, answer)| answer)
    }
}

/// Where one operator leaves requests and finds answers.
pub struct Counter<Q, A> {
    requests: Sender<Envelope<Q, A>>,
    answers: Receiver<(u64, A)>,
    sender: Sender<(u64, A)>,
    activator: SyncActivator,
    next_ticket: u64,
}

impl<Q, A> Counter<Q, A> {
    /// Leaves a request; its ticket comes back with the answer. Tickets ascend.
    pub fn request(&mut self, request: Q) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let envelope = Envelope { request, ticket, answers: self.sender.clone(), activator: Some(self.activator.clone()) };
        // The desk is gone only after it raised a fault: the request is never answered and its capability never dropped.
        let _ = self.requests.send(envelope);
        ticket
    }

    /// The next answer that is there.
    pub fn answer(&self) -> Option<(u64, A)> {
        self.answers.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_desk_answers_every_request_and_ends_with_its_last_user() {
        let (desk, thread) = Desk::open("double", Health::default(), |requests: Receiver<Envelope<u32, u32>>| {
            for envelope in requests {
                let doubled = envelope.request * 2;
                envelope.answer(doubled);
            }
        })
        .expect("a thread can be started");
        assert_eq!(desk.clone().ask(21), Some(42));
        drop(desk);
        thread.join().expect("the desk does not panic");
    }

    #[test]
    fn a_desk_that_panics_raises_a_fault() {
        let health = Health::default();
        let serve = |requests: Receiver<Envelope<(), ()>>| {
            let _asked = requests.recv();
            panic!("as staged");
        };
        let (desk, thread) = Desk::open("broken", health.clone(), serve).expect("a thread can be started");
        assert_eq!(desk.ask(()), None);
        thread.join().expect("the panic is caught");
        let expected = "broken: the stage's thread panicked: as staged";
        assert_eq!(health.fault().map(|fault| fault.to_string()), Some(expected.into()));
    }
}
