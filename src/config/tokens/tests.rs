//! Which token files are taken, and what is said of the others.

use openwit_operators::reload::File as _;
use openwit_operators::tokens;

use super::*;

fn digest_text(token: &str) -> String {
    hex(&tokens::digest(token.as_bytes()))
}

fn refused(text: &str) -> String {
    parse("t.yaml", text).expect_err("the file is wrong").to_string()
}

#[test]
fn every_key_of_a_token_arrives_and_its_entry_reads_back() {
    let text = format!(
        "version: 1\ntokens:\n  - id: shop-1\n    description: the collectors in Frankfurt\n    sha256: {}\n    tenant: shop\n    \
         topics: [v6.shop.**, other]\n    signals: [logs, traces]\n    not_before: 2026-11-26T00:00:00Z\n    expires: 2027-11-26T00:00:00.5Z\n  \
         - {{id: any, sha256: {}}}\n",
        digest_text("one"),
        digest_text("two").to_uppercase()
    );
    let tokens = parse("t.yaml", &text).unwrap_or_else(|problems| panic!("{problems}"));
    let [shop, any] = &tokens[..] else { panic!("{tokens:?}") };
    assert_eq!((&*shop.id, shop.digest), ("shop-1", tokens::digest(b"one")));
    assert_eq!(shop.tenant, Tenant::new("shop").ok());
    assert!(shop.topics[0].matches("v6.shop.a") && shop.topics[1].matches("other") && !shop.topics[0].matches("v6.cart.a"));
    assert_eq!(shop.signals, [Signal::Logs, Signal::Traces]);
    assert_eq!(shop.good, 1_795_651_200_000..1_827_187_200_500);
    assert_eq!((any.digest, any.tenant.clone(), any.good.clone()), (tokens::digest(b"two"), None, Token::ALWAYS));
    let written = format!("version: 1\ntokens:\n{}{}", entry(shop), entry(any));
    let again = parse("t.yaml", &written).unwrap_or_else(|problems| panic!("{written}: {problems}"));
    assert_eq!(format!("{again:?}"), format!("{tokens:?}"));
    assert_eq!(parse("t.yaml", "version: 1\ntokens: []\n").map(|tokens| tokens.len()).ok(), Some(0), "nobody");
}

#[test]
fn every_problem_is_told_at_once_with_line_and_path() {
    let one = digest_text("one");
    let text = format!(
        "version: 2\ntokens:\n  - id: a/b\n    sha256: {one}\n  - id: b\n    sha256: {one}\n    tenant: ../etc\n    signals: [profiles]\n  \
         - id: c\n    sha256: {one}\n    topics: [a**]\n    expires: tomorrow\n  - id: c\n    sha256: {one}\n    expire: x\n  - tenant: t\n  \
         - {{id: e, sha256: {}, topics: [], not_before: 2026-01-02T00:00:00Z, expires: 2026-01-01T00:00:00Z}}\n",
        digest_text("e")
    );
    let found = refused(&text);
    let expected = [
        "t.yaml:1: version: value \"2\": must be 1",
        "t.yaml:3: tokens[0].id: value \"a/b\": must be 1 to 128 of",
        "t.yaml:7: tokens[1].tenant: value \"../etc\": must be 1 to 64 of",
        "t.yaml:8: tokens[1].signals: value \"profiles\": must be one of traces, logs, metrics",
        "t.yaml:9: tokens[2].sha256: is that of tokens[1], too",
        "t.yaml:11: tokens[2].topics: value \"a**\": must be a topic name or glob",
        "t.yaml:12: tokens[2].expires: value \"tomorrow\": must be a time in UTC",
        "t.yaml:13: tokens[3].id: is that of tokens[2], too",
        "t.yaml:13: tokens[3].sha256: is that of tokens[2], too",
        "t.yaml:15: tokens[3].expire: unknown key: did you mean expires?",
        "t.yaml:16: tokens[4].id: must be given",
        "t.yaml:16: tokens[4].sha256: must be given",
        "t.yaml:17: tokens[5].topics: must have at least one entry",
        "t.yaml:17: tokens[5].expires: must be later than not_before",
    ];
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{found}");
    for expected in expected {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}\nis not in\n{found}");
    }
    for cut_off in ["", "version: 1\n", "version: 1\ntokens:\n", "[]"] {
        refused(cut_off);
    }
}

#[test]
fn a_token_in_the_place_of_its_hash_is_not_shown() {
    for text in ["sha256: owt_verysecret", "sha256: [owt_verysecret]", "sha256: {owt_verysecret: 1}"] {
        let found = refused(&format!("version: 1\ntokens:\n  - id: a\n    {text}\n"));
        assert!(found.contains("tokens[0].sha256: must be 64 hex digits") && !found.contains("verysecret"), "{found}");
    }
}

#[test]
fn a_file_is_news_once_whether_it_is_good_or_not() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("tokens.yaml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    let of = |id: &str| format!("version: 1\ntokens: [{{id: {id}, sha256: {}}}]\n", digest_text(id));
    write(&of("a"));
    let (file, tokens) = TokenFile::open(&path).unwrap();
    assert_eq!(tokens.len(), 1);
    let look = || file.changed().map(|read| read.map(|tokens| tokens[0].id.to_string()));
    assert_eq!(look(), None);
    // As long as before, and perhaps in the same tick of the file system's clock.
    write(&of("b"));
    assert_eq!(look(), Some(Ok("b".into())));
    write("version: 1\n");
    assert!(look().is_some_and(|read| read.is_err_and(|problems| problems.contains("tokens: must be given"))));
    assert_eq!(look(), None, "a broken file is told once");
    std::fs::remove_file(&path).unwrap();
    assert!(look().is_some_and(|read| read.is_err()));
    assert_eq!(look(), None);
    write(&of("b"));
    assert_eq!(look(), Some(Ok("b".into())));
    std::fs::remove_file(&path).unwrap();
    assert!(TokenFile::open(&path).is_err());
}
