//! Processes, as threads, that look for each other on this machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use openwit_operators::clock::ManualClock;

use super::*;

/// Addresses that nobody listens at. Not on 127.0.0.1, where a connection of anybody could take a port before it is listened at.
fn addresses(count: usize) -> Vec<String> {
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = format!("127.78.{high}.{low}:0");
    let bound: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind(&own).unwrap()).collect();
    bound.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

fn facts(workers: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("the number of workers".to_owned(), workers.to_owned())])
}

struct Process {
    thread: JoinHandle<Result<Option<Joined>, Error>>,
    is_over: Arc<AtomicBool>,
}

impl Process {
    fn start(number: usize, addresses: &[String], workers: &str, now_ms: u64) -> Self {
        let config = Config::new(number, addresses.to_vec()).unwrap();
        let (is_over, facts) = (Arc::new(AtomicBool::new(false)), facts(workers));
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            let own = Own { facts, logged: Logged::default() };
            let clock = ManualClock::default();
            clock.set_ms(now_ms);
            join(&config, own, &clock, || over.load(Ordering::Acquire))
        });
        Process { thread, is_over }
    }

    fn end(self) -> Result<Option<Joined>, Error> {
        self.thread.join().unwrap()
    }

    fn stop(self) -> Option<Joined> {
        self.is_over.store(true, Ordering::Release);
        self.end().unwrap()
    }
}

fn numbers(streams: &[Option<TcpStream>]) -> Vec<usize> {
    (0..streams.len()).filter(|number| streams[*number].is_some()).collect()
}

#[test]
fn processes_find_each_other_in_any_order_and_each_hears_the_right_one() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let addresses = addresses(3);
        let started: Vec<(usize, Process)> =
            order.iter().map(|number| (*number, Process::start(*number, &addresses, "2", 5_000))).collect();
        let mut joined: Vec<(usize, Joined)> =
            started.into_iter().map(|(number, process)| (number, process.end().unwrap().unwrap())).collect();
        joined.sort_by_key(|(number, _)| *number);
        for (number, joined) in &joined {
            let others: Vec<usize> = (0..3).filter(|other| other != number).collect();
            assert_eq!((numbers(&joined.data), numbers(&joined.control)), (others.clone(), others));
        }
        // Each writes its number, and that of the one it is for.
        for (number, joined) in &joined {
            for (to, stream) in joined.data.iter().enumerate().filter_map(|(to, stream)| Some((to, stream.as_ref()?))) {
                (&*stream).write_all(&[*number as u8, to as u8]).unwrap();
            }
        }
        for (number, joined) in &joined {
            for (from, stream) in joined.data.iter().enumerate().filter_map(|(from, stream)| Some((from, stream.as_ref()?))) {
                let mut heard = [0; 2];
                (&*stream).read_exact(&mut heard).unwrap();
                assert_eq!(heard, [from as u8, *number as u8]);
            }
        }
    }
}

#[test]
fn processes_that_are_not_alike_say_what_differs_on_both_sides() {
    let addresses = addresses(2);
    let (one, other) = (Process::start(0, &addresses, "2", 5_000), Process::start(1, &addresses, "4", 5_000));
    let said = |process: Process| process.end().err().map(|error| error.to_string()).unwrap();
    let expected = format!(
        "process 1 of the cluster at {} has another configuration: the number of workers is 4 there and 2 here",
        addresses[1]
    );
    assert_eq!(said(one), expected);
    assert!(said(other).ends_with("the number of workers is 2 there and 4 here"));
}

#[test]
fn clocks_that_are_far_apart_are_refused() {
    let addresses = addresses(2);
    let (one, other) = (Process::start(0, &addresses, "2", 5_000), Process::start(1, &addresses, "2", 65_000));
    let refused = other.end().err().unwrap().to_string();
    assert_eq!(
        refused,
        format!(
            "the clock of process 0 of the cluster at {} is 60000 ms away from this one: synchronize them, with NTP say",
            addresses[0]
        )
    );
    one.stop();
}

#[test]
fn a_wait_ends_when_the_process_is_stopped_and_an_address_in_use_is_named() {
    let addresses = addresses(2);
    let waiting = Process::start(1, &addresses, "2", 5_000);
    assert!(waiting.stop().is_none());
    let taken = TcpListener::bind(&addresses[0]).unwrap();
    let refused = Process::start(0, &addresses, "2", 5_000).end().err().unwrap();
    assert_eq!(refused.to_string(), format!("binding {}, which is this process's address in the cluster", addresses[0]));
    drop(taken);
}

#[test]
fn strangers_at_the_port_and_a_process_that_dies_while_others_wait_do_no_harm() {
    let addresses = addresses(3);
    let first = Process::start(0, &addresses, "2", 5_000);
    // Until it listens.
    let stranger = std::iter::repeat_with(|| TcpStream::connect(&addresses[0])).find_map(Result::ok).unwrap();
    (&stranger).write_all(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n").unwrap();
    // Process 2 finds process 0, waits for process 1, and dies.
    let died = Process::start(2, &addresses, "2", 5_000);
    assert!(died.stop().is_none());
    let rest = [Process::start(2, &addresses, "2", 5_000), Process::start(1, &addresses, "2", 5_000)];
    for joined in rest.into_iter().chain([first]).map(Process::end) {
        assert_eq!(numbers(&joined.unwrap().unwrap().control).len(), 2);
    }
}
