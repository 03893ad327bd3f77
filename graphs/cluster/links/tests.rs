//! Two processes of a cluster, as two healths in one process.

use std::net::TcpListener;

use super::*;

struct Pair {
    healths: [Health; 2],
    links: [Option<Links>; 2],
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

impl Pair {
    fn new() -> Self {
        let (to_one, to_zero) = connected();
        let healths = [Health::default(), Health::default()];
        let start = |number: usize, connections| {
            let config = Config::new(number, vec!["a:1".into(), "b:2".into()]).unwrap();
            let (health, stopped) = (&healths[number], healths[number].clone());
            Some(Links::start(&config, connections, health, move || stopped.stop()).unwrap())
        };
        let links = [start(0, vec![None, Some(to_one)]), start(1, vec![Some(to_zero), None])];
        Pair { healths, links }
    }

    fn end(&mut self, number: usize) {
        self.links[number].take().unwrap().end();
    }
}

fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn a_stop_of_one_process_stops_the_others_and_all_end_without_a_fault() {
    let mut pair = Pair::new();
    pair.healths[1].stop();
    until(|| pair.healths[0].stopping());
    let second = pair.links[1].take().unwrap();
    let ended = std::thread::spawn(move || second.end());
    pair.end(0);
    ended.join().unwrap();
    assert_eq!([pair.healths[0].fault(), pair.healths[1].fault()], [None, None]);
}

#[test]
fn a_fault_of_one_process_is_one_of_the_others_with_its_words() {
    let mut pair = Pair::new();
    pair.healths[0].fail("wal_commit", "no space left on device");
    until(|| pair.healths[1].failed());
    let told = pair.healths[1].fault().unwrap();
    assert_eq!(told.to_string(), "cluster: process 0 of the cluster at a:1 has failed: wal_commit: no space left on device");
    let first = pair.links[0].take().unwrap();
    let ended = std::thread::spawn(move || first.end());
    pair.end(1);
    ended.join().unwrap();
}

#[test]
fn a_process_whose_connection_closes_without_a_last_word_is_gone() {
    let (to_other, other) = connected();
    let config = Config::new(0, vec!["a:1".into(), "b:2".into()]).unwrap();
    let health = Health::default();
    let links = Links::start(&config, vec![None, Some(to_other)], &health, || ()).unwrap();
    drop(other);
    until(|| health.failed());
    assert_eq!(health.fault().unwrap().message, "process 1 of the cluster at b:2 is gone: its connection is closed");
    links.end();
}
