//! Who may send, whose messages are, and that neither leaks: tokens, scopes, times, tenants, and what is recalled.

use crate::batch::headers;
use crate::dead_letter::letter::{Letter, REDACTED};
use crate::kafka_source::topics::Glob;
use crate::tokens::tests::token;
use crate::tokens::{Store, Token};

use super::*;

const NOW_MS: u64 = KAFKA_MS as u64 + 1_000;

fn tenants(from: TenantFrom, default: Option<&str>) -> Tenants {
    Tenants { from, default: default.map(|name| Tenant::new(name).unwrap()) }
}

fn guarded(store: &Arc<Store>, tenants: Tenants) -> Config {
    let auth = Auth { header: "authorization".into(), tokens: store.clone() };
    Config { auth: Some(auth), tenants, ..config(Format::Auto, Signal::Logs) }
}

/// A message with the payload `{}` and these headers.
fn with<'a>(offset: i64, headers: &[(&'a str, &'a str)]) -> Message<'a> {
    let headers = headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))).collect();
    Message { headers, ..message(offset, b"{}") }
}

fn normalized(normalizer: &mut Normalizer, topic: &str, messages: &[Message<'_>]) -> Normalized {
    let raw = batch(topic, 0, messages.len() as i64, messages);
    normalizer.normalize(RawBatch { polled_ms: NOW_MS, ..raw })
}

/// The code and detail of each message's reject; an empty code for those accepted.
fn verdicts(normalizer: &mut Normalizer, topic: &str, messages: &[Message<'_>]) -> Vec<(&'static str, String)> {
    let Normalized { rejects, .. } = normalized(normalizer, topic, messages);
    let mut verdicts = vec![("", String::new()); messages.len()];
    for reject in rejects {
        verdicts[reject.record.offset as usize] = (reject.reason.code(), reject.detail);
    }
    verdicts
}

fn codes(normalizer: &mut Normalizer, topic: &str, messages: &[Message<'_>]) -> Vec<&'static str> {
    verdicts(normalizer, topic, messages).into_iter().map(|(code, _)| code).collect()
}

#[test]
fn only_a_known_token_lets_a_message_in_and_no_detail_shows_one() {
    let store = Arc::new(Store::new(vec![token("a", "right-secret")]));
    let mut normalizer = Normalizer::new(guarded(&store, Tenants::default())).unwrap();
    let long = "x".repeat(10_000);
    let messages = [
        with(0, &[("authorization", "Bearer right-secret")]),
        with(1, &[("AUTHORIZATION", "right-secret")]),
        with(2, &[("authorization", "  bearer   right-secret ")]),
        with(3, &[]),
        with(4, &[("authorization", "Bearer wrong-secret")]),
        with(5, &[("authorization", "")]),
        with(6, &[("authorization", "Bearer ")]),
        with(7, &[("authorization", "right-secre")]),
        with(8, &[("authorization", "Basic right-secret")]),
        with(9, &[("authorization", &long)]),
        with(10, &[("authorization", "wrong-secret"), ("authorization", "right-secret")]),
        with(11, &[("authorization", "right-secret"), ("authorization", "wrong-secret")]),
        with(12, &[("authorisation", "right-secret")]),
        // What has no payload or cannot be read needs a token first, too.
        Message { payload: None, ..with(13, &[]) },
        Message { payload: Some(b"nonsense"), ..with(14, &[]) },
        Message { payload: Some(b"nonsense"), ..with(15, &[("authorization", "right-secret")]) },
    ];
    // Twice: what is remembered of tokens must say the same as what was found.
    for _ in 0..2 {
        let found = verdicts(&mut normalizer, "topic", &messages);
        let unknown = "unauthenticated";
        let expected = ["", "", "", unknown, unknown, unknown, unknown, unknown, unknown, unknown, "", unknown, unknown];
        let found_codes: Vec<_> = found.iter().map(|(code, _)| *code).collect();
        assert_eq!(found_codes[..13], expected);
        assert_eq!(found_codes[13..], [unknown, unknown, "undecodable"]);
        assert!(found.iter().all(|(_, detail)| !detail.contains("secre")), "{found:?}");
        assert_eq!((&*found[3].1, &*found[4].1), ("header authorization is missing", "header authorization has no known token"));
    }
    assert_eq!(store.accepted().into_values().sum::<u64>(), 10, "nothing else is counted for a token");
}

#[test]
fn a_token_is_good_for_its_topics_signals_and_time_only() {
    let topics = vec![Glob::new("shop.**").unwrap(), Glob::new("topic").unwrap()];
    let of = |id: &str, good| Token { good, ..token(id, id) };
    let store = Arc::new(Store::new(vec![
        Token { topics, ..token("topics", "topics") },
        Token { signals: vec![Signal::Traces], ..token("traces", "traces") },
        Token { signals: vec![Signal::Traces, Signal::Logs], ..token("both", "both") },
        of("over", 0..NOW_MS),
        of("ending", 0..NOW_MS + 1),
        of("beginning", NOW_MS..u64::MAX),
        of("later", NOW_MS + 1..u64::MAX),
    ]));
    let mut normalizer = Normalizer::new(guarded(&store, Tenants::default())).unwrap();
    let mut check = |topic: &str, expected: &[(&str, &str)]| {
        let sent: Vec<_> = expected.iter().zip(0..).map(|((id, _), offset)| with(offset, &[("authorization", id)])).collect();
        let found = verdicts(&mut normalizer, topic, &sent);
        for ((id, expected), (code, detail)) in expected.iter().zip(found) {
            assert_eq!(&code, expected, "{topic} {id}: {detail}");
            assert!(code.is_empty() || detail.contains(&format!("token {id}")), "{detail}");
        }
    };
    check("topic", &[("topics", ""), ("traces", "unauthorized"), ("both", "")]);
    check("other", &[("topics", "unauthorized"), ("both", "")]);
    check("shop.eu.logs", &[("topics", "")]);
    let times = [("over", "unauthenticated"), ("ending", ""), ("beginning", ""), ("later", "unauthenticated")];
    check("topic", &times);
}

#[test]
fn the_tenant_is_that_of_the_token_the_header_or_the_topic_and_never_another_than_the_tokens() {
    let store = Arc::new(Store::new(vec![token("shop", "shop"), Token { tenant: None, ..token("any", "any") }]));
    let of = |token: &'static str| ("authorization", token);
    let named = |name: &'static str| ("X-Tenant", name);
    let messages = [
        with(0, &[of("shop")]),
        with(1, &[of("any")]),
        with(2, &[of("shop"), named("shop")]),
        with(3, &[of("shop"), named("cart")]),
        with(4, &[of("any"), named("cart")]),
        with(5, &[of("any"), named("../etc")]),
        with(6, &[of("shop"), named("a\0b")]),
        with(7, &[of("wrong"), named("shop")]),
    ];
    let check = |from: TenantFrom, default: Option<&str>, topic: &str, expected: [&str; 8]| {
        let mut normalizer = Normalizer::new(guarded(&store, tenants(from.clone(), default))).unwrap();
        let mut found = Vec::new();
        for (offset, message) in messages.iter().enumerate() {
            let message = Message { offset: 0, ..message.clone() };
            let Normalized { rejects, tenants, batch, .. } = normalized(&mut normalizer, topic, &[message]);
            let tenant = tenants.first_key_value().map(|(tenant, _)| tenant.to_string()).unwrap_or_default();
            assert_eq!(rejects.len() + batch.records.len(), 1, "message {offset}");
            found.push(rejects.first().map_or(tenant, |reject| reject.reason.code().to_owned()));
        }
        assert_eq!(found, expected, "{from:?}");
    };
    let (no, un, auth) = ("no_tenant", "unauthorized", "unauthenticated");
    check(TenantFrom::None, None, "topic", ["", "", "", "", "", "", "", auth]);
    check(TenantFrom::Token, None, "topic", ["shop", no, "shop", "shop", no, no, "shop", auth]);
    check(TenantFrom::Token, Some("rest"), "topic", ["shop", "rest", "shop", "shop", "rest", "rest", "shop", auth]);
    let header = || TenantFrom::Header("x-tenant".into());
    check(header(), None, "topic", ["shop", no, "shop", un, "cart", no, no, auth]);
    check(header(), Some("rest"), "topic", ["shop", "rest", "shop", un, "cart", no, no, auth]);
    check(TenantFrom::Topic(1), None, "logs.shop", ["shop", "shop", "shop", "shop", "shop", "shop", "shop", auth]);
    check(TenantFrom::Topic(1), None, "logs.cart", [un, "cart", un, un, "cart", "cart", un, auth]);
    check(TenantFrom::Topic(1), None, "logs", ["shop", no, "shop", "shop", no, no, "shop", auth]);
}

#[test]
fn without_tokens_a_header_or_topic_still_tells_the_tenant() {
    let config = Config { tenants: tenants(TenantFrom::Header("t".into()), None), ..config(Format::Auto, Signal::Logs) };
    let mut normalizer = Normalizer::new(config).unwrap();
    let long = "x".repeat(65);
    let messages =
        [with(0, &[("t", "a")]), with(1, &[]), with(2, &[("t", ".")]), with(3, &[("t", &long)]), with(4, &[("T", " a ")])];
    assert_eq!(codes(&mut normalizer, "topic", &messages), ["", "no_tenant", "no_tenant", "no_tenant", ""]);
    let rejects = normalized(&mut normalizer, "topic", &messages).rejects;
    assert!(rejects.iter().all(|reject| reject.secret_header.is_none()), "nothing is a secret");
}

#[test]
fn what_comes_from_a_tenant_is_counted_with_its_bytes() {
    let config = Config { tenants: tenants(TenantFrom::Header("t".into()), None), ..config(Format::Auto, Signal::Logs) };
    let mut normalizer = Normalizer::new(config).unwrap();
    let stats = Stats::default();
    let bad = |offset, tenant| Message { payload: Some(b"nonsense"), ..with(offset, &[("t", tenant)]) };
    let gone = |offset, tenant| Message { payload: None, ..with(offset, &[("t", tenant)]) };
    let messages =
        [with(0, &[("t", "a")]), with(1, &[("t", "b")]), bad(2, "a"), with(3, &[("t", "a")]), gone(4, "b"), with(5, &[])];
    stats.note(&normalized(&mut normalizer, "topic", &messages));
    let found = stats.by_tenant().tenants;
    let of = |name: &str| found[&Tenant::new(name).unwrap()];
    assert_eq!(of("a"), TenantCount { accepted: 2, accepted_bytes: 4, rejected: 1, rejected_bytes: 8 });
    assert_eq!(of("b"), TenantCount { accepted: 1, accepted_bytes: 2, ..TenantCount::default() });
    assert_eq!(stats.by_reason(), BTreeMap::from([(Reason::Undecodable, 1), (Reason::NoTenant, 1)]));
}

#[test]
fn each_record_of_a_batch_has_its_tenant_and_the_batch_lists_those_of_accepted_ones_once() {
    let config = Config { tenants: tenants(TenantFrom::Header("t".into()), None), ..config(Format::Auto, Signal::Logs) };
    let mut normalizer = Normalizer::new(config).unwrap();
    let bad = |offset, tenant| Message { payload: Some(b"nonsense"), ..with(offset, &[("t", tenant)]) };
    let of = |offset, tenant| with(offset, &[("t", tenant)]);
    let messages =
        [bad(0, "x"), of(1, "b"), of(2, "a"), of(3, "b"), bad(4, "a"), of(5, "b"), of(6, "c"), of(7, "a"), with(8, &[])];
    let batch = normalized(&mut normalizer, "topic", &messages).batch;
    let listed: Vec<&str> = batch.tenants.iter().map(Tenant::name).collect();
    assert_eq!(listed, ["b", "a", "c"]);
    let found: Vec<_> = batch.records.iter().map(|record| (record.offset, batch.tenant(record).unwrap().name())).collect();
    assert_eq!(found, [(1, "b"), (2, "a"), (3, "b"), (5, "b"), (6, "c"), (7, "a")]);
    let plain = normalized(&mut self::normalizer(Format::Auto, Signal::Logs), "topic", &messages).batch;
    assert!(plain.tenants.is_empty() && plain.tenant(&plain.records[0]).is_none());
}

#[test]
fn no_tenant_makes_anothers_message_a_duplicate() {
    let from = tenants(TenantFrom::Header("t".into()), None);
    let mut normalizer = Normalizer::new(Config { tenants: from, ..config(Format::Auto, Signal::Logs) }).unwrap();
    let messages = [with(0, &[("t", "a")]), with(1, &[("t", "b")]), with(2, &[("t", "a")])];
    let keys: Vec<u128> = normalized(&mut normalizer, "topic", &messages).batch.records.iter().map(|record| record.key).collect();
    assert_eq!(keys[0], keys[2]);
    assert_ne!(keys[0], keys[1]);
    let plain = normalized(&mut self::normalizer(Format::Auto, Signal::Logs), "topic", &messages).batch.records[0].key;
    assert_ne!(keys[0], plain);
}

#[test]
fn tokens_are_taken_up_and_given_up_with_the_next_batch() {
    let store = Arc::new(Store::new(vec![token("old", "old")]));
    let mut normalizer = Normalizer::new(guarded(&store, Tenants::default())).unwrap();
    let messages = [with(0, &[("authorization", "old")]), with(1, &[("authorization", "new")])];
    let unknown = "unauthenticated";
    assert_eq!(codes(&mut normalizer, "topic", &messages), ["", unknown]);
    store.replace(vec![token("old", "old"), token("new", "new")], 5);
    assert_eq!(codes(&mut normalizer, "topic", &messages), ["", ""], "both while producers change over");
    store.replace(vec![token("new", "new")], 6);
    assert_eq!(codes(&mut normalizer, "topic", &messages), [unknown, ""]);
}

#[test]
fn many_producers_at_once_are_each_told_apart() {
    let ids: Vec<String> = (0..1_000).map(|number| format!("t{number}")).collect();
    let list = ids.iter().map(|id| Token { tenant: Tenant::new(id).ok(), ..token(id, &format!("secret-{id}")) }).collect();
    let store = Arc::new(Store::new(list));
    let mut normalizer = Normalizer::new(guarded(&store, tenants(TenantFrom::Token, None))).unwrap();
    let secrets: Vec<String> = ids.iter().flat_map(|id| [format!("secret-{id}"), format!("wrong-{id}")]).collect();
    let messages: Vec<_> = secrets.iter().zip(0..).map(|(secret, offset)| with(offset, &[("authorization", secret)])).collect();
    for _ in 0..2 {
        let Normalized { tenants, rejects, batch, .. } = normalized(&mut normalizer, "topic", &messages);
        assert_eq!((tenants.len(), rejects.len()), (1_000, 1_000));
        let owners = batch.records.iter().map(|record| batch.tenant(record).unwrap().to_string());
        assert!(owners.eq(ids.iter().cloned()));
        assert!(tenants.values().all(|count| count.accepted == 1 && count.rejected == 0));
    }
}

#[test]
fn a_letter_of_a_rejected_message_does_not_hold_its_token() {
    let store = Arc::new(Store::new(vec![token("a", "right-secret")]));
    let mut normalizer = Normalizer::new(guarded(&store, Tenants::default())).unwrap();
    let own = [("id", "7"), ("Authorization", "Bearer wrong-secret"), ("authorization", ""), ("AUTHORIZATION", "right-secret")];
    let sent = Message { payload: Some(b"nonsense"), ..with(0, &own) };
    let Normalized { rejects, .. } = normalized(&mut normalizer, "topic", &[sent]);
    assert_eq!(rejects[0].reason, Reason::Undecodable);
    let letter = Letter::of(&rejects[0], 9);
    let mut line = Vec::new();
    letter.write_line(&mut line);
    assert!(!String::from_utf8_lossy(&line).contains("secret"), "{}", String::from_utf8_lossy(&line));
    let found: Vec<_> = letter.headers.iter().map(|(name, value)| (&name[..], value.as_deref())).collect();
    let expected: [(&[u8], Option<&[u8]>); 4] = [
        (b"id", Some(b"7")),
        (b"Authorization", Some(REDACTED)),
        (b"authorization", Some(b"")),
        (b"AUTHORIZATION", Some(REDACTED)),
    ];
    assert_eq!(found, expected);
    assert_eq!(letter.payload.as_deref(), Some(&b"nonsense"[..]));
    let whole = headers(rejects[0].record.headers.of(&rejects[0].arena)).count();
    assert_eq!(whole, 4, "the message itself is as it came");
}

/// Whether messages that another process handled have a key here, by the id of their token.
fn recalled(store: &Arc<Store>, ids: &[&str]) -> Vec<bool> {
    let mut normalizer = Normalizer::for_recall(guarded(store, Tenants::default())).unwrap();
    let messages: Vec<_> = ids.iter().zip(0..).map(|(id, offset)| with(offset, &[("authorization", id)])).collect();
    let Normalized { batch, .. } = normalized(&mut normalizer, "topic", &messages);
    (0..ids.len() as i64).map(|offset| batch.records.iter().any(|record| record.offset == offset)).collect()
}

#[test]
fn what_may_have_been_refused_for_its_token_makes_no_later_message_a_duplicate() {
    let (at, of) = (KAFKA_MS as u64, |id: &str, good| Token { good, ..token(id, id) });
    let list = vec![token("known", "known"), of("over", 0..NOW_MS), of("begun", at + 1..u64::MAX), of("in-time", at..NOW_MS + 1)];
    let store = Arc::new(Store::new(list.clone()));
    let ids = ["known", "over", "begun", "in-time", "unknown", "added"];
    assert_eq!(recalled(&store, &ids), [true, false, false, true, false, false]);
    assert!(store.accepted().values().all(|count| *count == 0), "nothing was let in");
    // A token that this process has known since after the record: whoever read it had refused it. The same record sent again later is
    // accepted now, and must be no duplicate of that one.
    let with_added = || list.iter().cloned().chain([token("added", "added")]).collect();
    store.replace(with_added(), at + 1);
    assert_eq!(recalled(&store, &ids), [true, false, false, true, false, false]);
    let mut live = Normalizer::new(guarded(&store, Tenants::default())).unwrap();
    assert_eq!(codes(&mut live, "topic", &[with(0, &[("authorization", "added")])]), [""]);
    // Known since before it.
    store.replace(list.clone(), at - 2);
    store.replace(with_added(), at - 1);
    assert_eq!(recalled(&store, &ids), [true, false, false, true, false, true]);
}
