//! Reading letters from a folder and from a topic, and sending their messages to Kafka, which is rdkafka's mock cluster here.

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::super::read::{self, Found, Origin, Place, Selection, Source};
use super::super::resend::{self, Message, Resender};
use super::*;

fn all(source: &Source, after: Option<&Place>) -> Vec<Found> {
    source.letters(after).map(|found| found.expect("a letter")).collect()
}

fn offsets(found: &[Found]) -> Vec<i64> {
    found.iter().map(|found| found.letter.offset).collect()
}

/// Every place tells where to go on: what is read from there is the rest.
fn check_every_place(source: &Source) {
    let whole = all(source, None);
    assert_eq!(source.read(), source.total());
    for (number, found) in whole.iter().enumerate() {
        let place: Place = found.place.to_string().parse().expect("a place reads back as written");
        assert_eq!(place, found.place);
        assert_eq!(all(source, Some(&place)), whole[number + 1..], "behind {place}");
        assert_eq!(source.read(), source.total(), "behind {place}");
    }
}

#[test]
fn a_folder_is_read_as_it_was_when_opened_and_on_from_every_place() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = file::Config { file_bytes_max: 1_000, ..file::Config::new(directory.path()) };
    let mut sink = File::open(config, &BTreeMap::new(), clock()).expect("opened");
    let mut write = |offset: i64| {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
        assert_eq!(acked(sink.poll()), [offset as u64]);
    };
    (0..9).for_each(&mut write);
    let source = Source::folder(directory.path()).expect("listed");
    // What comes while somebody reads is for the next reader.
    (9..12).for_each(&mut write);
    assert_eq!(offsets(&all(&source, None)), (0..9).collect::<Vec<_>>());
    check_every_place(&source);
    // A file that was moved away: reading goes on with the next.
    let place = all(&source, None)[1].place.clone();
    let Place::Line { file, .. } = &place else { panic!("{place}") };
    fs::remove_file(directory.path().join(file)).expect("removed");
    let next = Source::folder(directory.path()).expect("listed");
    let rest = offsets(&all(&next, Some(&place)));
    assert!(rest.len() > 5 && rest.ends_with(&[9, 10, 11]), "{rest:?}");
    assert_eq!(offsets(&all(&next, None)), rest);
}

#[test]
fn a_topic_is_read_to_its_end_and_on_from_every_place_and_what_is_no_letter_is_named() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("letters", 3, 1).expect("a topic");
    let client = BTreeMap::from([
        ("bootstrap.servers".to_owned(), cluster.bootstrap_servers()),
        ("group.id".to_owned(), "reader".to_owned()),
    ]);
    let mut sink = Kafka::open(kafka_config(&cluster), clock()).expect("opened");
    for offset in 0..30 {
        sink.submit(offset as u64, &reject(0, offset)).expect("taken");
    }
    assert_eq!(flush_until(&mut sink, 30).0.len(), 30);
    let source = Source::topic("letters", &client).expect("opened");
    check_every_place(&source);
    let mut found = offsets(&all(&source, None));
    found.sort_unstable();
    assert_eq!(found, (0..30).collect::<Vec<_>>());

    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().expect("a producer");
    producer.send(BaseRecord::<[u8], [u8]>::to("letters").partition(1).payload(b"no letter")).expect("queued");
    producer.flush(WAIT).expect("sent");
    assert_eq!(all(&source, None).len(), 30, "it came after the source was opened");
    let source = Source::topic("letters", &client).expect("opened");
    let damaged: Vec<_> = source.letters(None).filter_map(Result::err).collect();
    assert!(matches!(&damaged[..], [read::Error::NoLetter { place: Place::Message { partition: 1, .. }, .. }]), "{damaged:?}");
    assert_eq!(source.letters(None).filter(Result::is_ok).count(), 30);
    assert!(matches!(Source::topic("lettres", &client), Err(read::Error::NoTopic { .. })));
}

#[test]
fn filters_take_what_they_name() {
    let letter = Letter::of(&reject(2, 7), NOW_MS);
    let check = |expected: bool, selection: Selection| assert_eq!(selection.takes(&letter), expected, "{selection:?}");
    check(true, Selection::default());
    for (expected, origin) in [
        (true, "spans"),
        (false, "span"),
        (true, "spans:2"),
        (false, "spans:1"),
        (true, "spans:2:7"),
        (false, "spans:2:8"),
        (true, "spans:2:7..8"),
        (false, "spans:2:5..7"),
        (true, "spans:2:..8"),
        (false, "spans:2:8.."),
    ] {
        let origin: Origin = origin.parse().expect("an origin");
        check(expected, Selection { origins: vec![origin], ..Selection::default() });
    }
    for text in ["", ":1", "t:x", "t:1:9..9", "t:1:9..3", "t:1:2:3", "t:1:x..y"] {
        assert!(text.parse::<Origin>().is_err(), "{text}");
    }
    for text in ["", "7", "x:7", "1:x", "dead-letter-x.ndjson:1", "other.ndjson:1"] {
        assert!(text.parse::<Place>().is_err(), "{text}");
    }
    let reasons = |reasons: &[&str]| reasons.iter().map(|reason| (*reason).to_owned()).collect();
    check(true, Selection { reasons: reasons(&["empty", "malformed"]), ..Selection::default() });
    check(false, Selection { reasons: reasons(&["empty"]), ..Selection::default() });
    check(true, Selection { since_ms: Some(NOW_MS), until_ms: Some(NOW_MS + 1), ..Selection::default() });
    check(false, Selection { since_ms: Some(NOW_MS + 1), ..Selection::default() });
    check(false, Selection { until_ms: Some(NOW_MS), ..Selection::default() });
}

fn message(offset: i64) -> Message {
    Message {
        place: Place::Message { partition: 0, offset },
        topic: "letters".into(),
        partition: Some(0),
        key: None,
        payload: Some(vec![7; 100]),
        headers: vec![],
        timestamp_ms: None,
    }
}

fn resender(cluster: &MockCluster<'static, DefaultProducerContext>) -> Resender {
    let client = [("bootstrap.servers", cluster.bootstrap_servers()), ("linger.ms", "200".into())];
    Resender::open(&client.map(|(name, value)| (name.to_owned(), value)).into()).expect("opened")
}

#[test]
fn a_message_refused_as_too_large_is_named_and_costs_the_others_of_its_batch_nothing() {
    let cluster = cluster();
    let mut resender = resender(&cluster);
    (0..5).for_each(|offset| resender.send(message(offset)).expect("taken"));
    // The batch is refused, and the first message that is then sent alone.
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(RDKafkaApiKey::Produce, &[too_large, too_large]);
    resender.settle().expect("all others are acked");
    let refused = resender.take_refused();
    assert!(
        matches!(&refused[..], [resend::Error::TooLarge { place: Place::Message { offset: 0, .. }, bytes: 100, .. }]),
        "{refused:?}"
    );
    let progress = resender.progress();
    assert_eq!((progress.acked, progress.bytes, progress.acked_behind), (4, 400, 0));
    assert_eq!(progress.done_to, Some(message(4).place));
}

#[test]
fn a_failure_ends_the_run_and_tells_up_to_where_all_is_acked() {
    let cluster = cluster();
    let mut resender = resender(&cluster);
    resender.pass(message(0).place);
    resender.send(message(1)).expect("taken");
    resender.settle().expect("acked");
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    resender.send(message(2)).expect("taken");
    let failed = resender.settle().expect_err("refused");
    assert!(matches!(&failed, resend::Error::Delivery { place: Place::Message { offset: 2, .. }, .. }), "{failed:?}");
    let progress = resender.progress();
    assert_eq!((progress.acked, progress.done_to, progress.acked_behind), (1, Some(message(1).place), 0));
}

#[test]
fn a_topic_that_does_not_exist_is_named_and_not_created() {
    let cluster = cluster();
    let mut resender = resender(&cluster);
    let elsewhere = Message { topic: "lettres".into(), ..message(0) };
    for _ in 0..2 {
        assert!(matches!(resender.send(elsewhere.clone()), Err(resend::Error::NoTopic { .. })));
    }
    // A partition that the topic does not have: the key decides.
    resender.send(Message { partition: Some(9), ..message(1) }).expect("taken");
    resender.settle().expect("acked");
}
