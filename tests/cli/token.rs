//! `token new` and `token check`, and what a token of theirs opens: a run, and the way back of dead letters.

use std::process::Command;

use openwit_operators::tokens::digest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::binary::{Finished, PATIENCE, Process, openwit};
use crate::{DONE, FAULT, Loaded, TOPIC, USAGE, line};

const VARIABLE: &str = "OPENWIT_TEST_TOKEN";

/// The token and its entry for the file.
fn new_token(words: &str) -> (String, String) {
    let made = line(&format!("token new --json {words}")).expect(DONE).json();
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    (text("token"), text("entry"))
}

fn check(path: &std::path::Path) -> Finished {
    openwit(["token", "check", "--file", path.to_str().unwrap()])
}

#[test]
fn a_new_token_is_shown_once_and_its_entry_is_what_check_takes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokens.yaml");
    let (token, entry) =
        new_token("--id shop-1 --tenant shop --topics v6.** other --signals logs traces --expires 2099-01-01T00:00:00Z");
    let (other, any) = new_token("--id any");
    assert!(token.starts_with("owt_") && token.len() == 47 && token != other, "{token}");
    let hash: String = digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(entry.contains(&hash) && !entry.contains(&token), "{entry}");
    std::fs::write(&path, format!("version: 1\ntokens:\n{entry}{any}")).unwrap();
    let checked = check(&path).expect(DONE).stdout;
    let of_shop = "token shop-1: tenant shop; topics v6.**, other; signals logs, traces; until 2099-01-01T00:00:00Z\n";
    assert!(checked.contains(of_shop), "{checked}");
    assert!(checked.contains("token any: tenant any; topics all; signals all\n") && checked.contains("2 tokens, no errors"));

    let shown = line("token new --id a").expect(DONE).stdout;
    assert_eq!(shown.matches("owt_").count(), 1, "{shown}");
    std::fs::write(&path, format!("version: 1\ntokens:\n{entry}{entry}  - id: x\n    tenant: ../etc\n")).unwrap();
    let refused = check(&path).expect(USAGE);
    for problem in
        ["tokens[1].id: is that of tokens[0]", "tokens[1].sha256", "tokens[2].sha256: must be given", "tokens[2].tenant"]
    {
        assert!(refused.stderr.contains(problem), "{problem}: {}", refused.stderr);
    }
    let ended = line("token new --id a --not-before 2027-01-01T00:00:00Z --expires 2026-01-01T00:00:00Z").expect(USAGE);
    assert!(ended.stderr.contains("--expires"), "{}", ended.stderr);
}

/// A broker with messages, and a token file for who may read them.
struct Guarded {
    loaded: Loaded,
    token: String,
}

impl Guarded {
    fn new() -> Self {
        let loaded = Loaded::new();
        let (token, entry) = new_token("--id shop-1 --tenant shop");
        std::fs::write(loaded.folder.path().join("tokens.yaml"), format!("version: 1\ntokens:\n{entry}")).unwrap();
        Guarded { loaded, token }
    }

    fn command(&self, words: &[&str]) -> Finished {
        let tokens = self.loaded.folder.path().join("tokens.yaml");
        let sets = [format!("ingestion.auth.tokens_file={}", tokens.display()), "ingestion.tenants.from=token".into()];
        let mut command = Command::new(env!("CARGO_BIN_EXE_openwit-ingest"));
        command.args(self.loaded.arguments(words, &sets)).env_remove("OPENWIT_LOG").env(VARIABLE, &self.token);
        Process::spawn(command).wait(PATIENCE)
    }

    fn run(&self) -> Value {
        self.command(&["run", "--until-end", "--json"]).expect(DONE).json()
    }
}

#[test]
fn messages_without_a_token_are_dead_letters_that_go_back_with_one() {
    let guarded = Guarded::new();
    let load = "--count 30 --duplicates 0 --seed 5 --json";
    line(&format!("generate --brokers {} --topic {TOPIC} {load}", guarded.loaded.broker.brokers())).expect(DONE);
    let summary = guarded.run();
    assert_eq!((&summary["rejects_by_reason"], &summary["tenants"]), (&json!({"unauthenticated": 30}), &json!({})), "{summary}");
    assert_eq!((&summary["rows"], &summary["tokens"]), (&json!(0), &json!({"shop-1": 0})));

    let unset = guarded.command(&["dead-letter", "replay", "--token-env", "OPENWIT_NO_SUCH_TOKEN"]).expect(USAGE);
    assert!(unset.stderr.contains("OPENWIT_NO_SUCH_TOKEN"), "{}", unset.stderr);
    let replayed = guarded.command(&["dead-letter", "replay", "--json", "--token-env", VARIABLE]).expect(DONE);
    assert!(!replayed.stderr.contains(&guarded.token) && !replayed.stdout.contains(&guarded.token));
    assert_eq!(replayed.json()["sent"], json!(30));
    let summary = guarded.run();
    assert_eq!((&summary["rejects"], &summary["tenants"]["shop"]["accepted"]), (&json!(0), &json!(30)), "{summary}");
    assert_eq!(summary["tokens"], json!({"shop-1": 30}));
}

#[test]
fn letters_whose_token_was_left_out_are_not_sent_back_without_one() {
    let guarded = Guarded::new();
    let load = "--count 60 --invalid 10 --duplicates 0 --seed 5 --json";
    line(&format!("generate --brokers {} --topic {TOPIC} {load}", guarded.loaded.broker.brokers())).expect(DONE);
    guarded.run();
    guarded.command(&["dead-letter", "replay", "--json", "--token-env", VARIABLE]).expect(DONE);
    // Those that cannot be read are rejected again, now with a token, which their new letters do not hold.
    let again = guarded.run()["rejects"].as_u64().unwrap();
    assert!(again > 0);
    let listed = guarded.command(&["dead-letter", "ls", "--json", "--payload"]).expect(DONE).stdout;
    assert!(!listed.contains(&guarded.token[4..]), "{listed}");
    let refused = guarded.command(&["dead-letter", "replay", "--json", "--again"]).expect(FAULT);
    assert_eq!(refused.json()["without_token"], json!(again), "{}", refused.stdout);
}

#[test]
fn check_names_every_problem_of_the_token_file() {
    let guarded = Guarded::new();
    assert!(guarded.command(&["check"]).expect(DONE).stdout.contains("no errors"));
    std::fs::write(guarded.loaded.folder.path().join("tokens.yaml"), "version: 2\ntokens:\n  - id: a/b\n").unwrap();
    for command in [&["check"][..], &["run", "--until-end"]] {
        let refused = guarded.command(command).expect(USAGE).stderr;
        for problem in ["tokens.yaml:1: version", "tokens.yaml:3: tokens[0].id", "tokens[0].sha256: must be given"] {
            assert!(refused.contains(problem), "{command:?}: {problem}: {refused}");
        }
    }
}

#[test]
fn problems_of_all_files_that_a_configuration_names_are_told_at_once() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let tokens = write("tokens.yaml", "version: 7\ntokens: []\n");
    let quotas = write("quotas.yaml", "version: 1\ntopics: [{match: a, events_per_second: none}]\n");
    let schema = write("dataset.yaml", "version: 1\nnot_a_key: 1\n");
    let config = write(
        "config.yaml",
        &format!(
            "ingestion:\n  kafka: {{topics: [a.b]}}\n  auth: {{tokens_file: {tokens}}}\n  quotas: {{file: {quotas}}}\n  datasets: {{directory: {schema}}}\n"
        ),
    );
    let checked = openwit(["check", "--config", &config]).expect(USAGE);
    for told in ["tokens.yaml:1: version", "quotas.yaml:2: topics[0].events_per_second", "dataset.yaml:2: not_a_key"] {
        assert!(checked.stderr.contains(told), "{told} is not in\n{}", checked.stderr);
    }
}
