//! Brokers that demand a login or a certificate: each way in reads, commits and writes dead letters, and a wrong one is told in words that
//! help, moves no offset, and shows no secret.

use crate::kafka::Kafka;
use crate::setup::Setup;
use crate::support::binary::{Finished, PATIENCE, Process, openwit};
use crate::tokens::Provider;

/// In no other text than the settings of a test that logs in with it.
const WRONG: &str = "a-wrong-password-4711";

/// The plaintext listener's topic and group, and how the process gets at them by another.
struct Secured {
    setup: Setup,
    letters: String,
}

impl Secured {
    fn new(test: &str) -> Option<Self> {
        let setup = Setup::new(test, "traces")?;
        let letters = format!("dead-{}", setup.group);
        assert!(Kafka::at(&setup.brokers).create_topic(&letters, 1));
        Some(Secured { setup, letters })
    }

    /// `command` with the listener and the login; `security` is YAML.
    fn arguments(&self, command: &[&str], brokers: &str, security: &str) -> Vec<String> {
        let mut args: Vec<String> = command.iter().map(|&arg| arg.to_owned()).collect();
        args.extend(["--config".into(), self.setup.config()]);
        let letters = format!("ingestion.kafka.dead_letter={{topic: {}, directory: null}}", self.letters);
        let brokers = format!("ingestion.kafka.brokers=[\"{brokers}\"]");
        let security = format!("ingestion.kafka.security={security}");
        args.extend([letters, brokers, security].into_iter().flat_map(|set| ["--set".to_owned(), set]));
        args
    }

    /// Reads to the end by that way; everything must be stored once, rejects lie in the topic, and the group be at the end.
    fn read_by(&self, brokers: &str, security: &str) {
        let ended = openwit(self.arguments(&["run", "--until-end", "--workers", "2"], brokers, security)).expect(0);
        assert!(!ended.stderr.contains(&password()), "{}", ended.stderr);
        self.setup.verify_letters_in("otlp", &self.letters);
        let checked = openwit(self.arguments(&["check", "--connect"], brokers, security)).expect(0);
        assert!(checked.stdout.contains(&self.setup.topic), "{}", checked.stdout);
        openwit(self.arguments(&["audit"], brokers, security)).expect(0);
    }

    /// Neither `run` nor `check` gets in; both say `why` and `remedy`, and no offset moves.
    fn refused(&self, brokers: &str, security: &str, why: &str, remedy: &str) {
        let kafka = Kafka::at(&self.setup.brokers);
        let before = kafka.committed(&self.setup.group, &self.setup.topic);
        let checked = openwit(self.arguments(&["check", "--connect"], brokers, security)).expect(1);
        let ended = self.run_until(remedy, brokers, security);
        for said in [&checked.stdout, &ended.stderr] {
            assert!(said.contains(why) && said.contains(remedy), "no `{why}` or no `{remedy}`:\n{said}");
        }
        for said in [&checked.stdout, &checked.stderr, &ended.stdout, &ended.stderr] {
            assert!(!said.contains(WRONG) && !said.contains(&password()), "a password is shown:\n{said}");
        }
        assert_eq!(kafka.committed(&self.setup.group, &self.setup.topic), before, "{security}");
    }

    /// A run that gets nowhere until it says `text`, and is stopped then.
    fn run_until(&self, text: &str, brokers: &str, security: &str) -> Finished {
        let mut run = Process::start(self.arguments(&["run"], brokers, security));
        assert!(run.wait_for(text) && !run.has_ended(), "it ended: {}", run.stderr());
        run.signal(libc::SIGTERM);
        run.wait(PATIENCE).expect(1)
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is set where Kafka is"))
}

fn password() -> String {
    variable("OPENWIT_TEST_KAFKA_PASSWORD")
}

fn tls(more: &str) -> String {
    let folder = variable("OPENWIT_TEST_TLS");
    format!("tls: {{ca_location: {folder}/ca.pem{}}}", more.replace("FOLDER", &folder))
}

const CLIENT: &str = ", certificate_location: FOLDER/client.pem, key_location: FOLDER/client-key.pem";
const LOCKED_CLIENT: &str = ", certificate_location: FOLDER/client.pem, key_location: FOLDER/client-key-locked.pem, key_password: \
                             '${OPENWIT_TEST_KEY_PASSWORD}'";

/// With the password from the environment, as a deployment gives it.
fn login(mechanism: &str) -> String {
    format!(
        "sasl: {{mechanism: {mechanism}, username: '${{OPENWIT_TEST_KAFKA_USER}}', password: '${{OPENWIT_TEST_KAFKA_PASSWORD}}'}}"
    )
}

#[test]
fn every_sasl_mechanism_with_a_password_reads_commits_and_writes_dead_letters() {
    let Some(secured) = Secured::new("sasl") else { return };
    let (plaintext, ssl) = (variable("OPENWIT_TEST_KAFKA_SASL_PLAINTEXT"), variable("OPENWIT_TEST_KAFKA_SASL_SSL"));
    for (seed, mechanism) in (51..).zip(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]) {
        secured.setup.generate("otlp", 120, seed);
        secured.read_by(&plaintext, &format!("{{protocol: sasl_plaintext, {}}}", login(mechanism)));
        secured.setup.generate("otlp", 120, seed + 10);
        secured.read_by(&ssl, &format!("{{protocol: sasl_ssl, {}, {}}}", login(mechanism), tls("")));
    }
}

#[test]
fn a_clients_certificate_reads_commits_and_writes_dead_letters() {
    let Some(secured) = Secured::new("mtls") else { return };
    let brokers = variable("OPENWIT_TEST_KAFKA_SSL");
    for (seed, client) in [(52, CLIENT), (53, LOCKED_CLIENT)] {
        secured.setup.generate("otlp", 120, seed);
        secured.read_by(&brokers, &format!("{{protocol: ssl, {}}}", tls(client)));
    }
}

#[test]
fn tokens_read_commit_and_write_dead_letters_and_are_renewed() {
    let Some(secured) = Secured::new("tokens") else { return };
    let brokers = variable("OPENWIT_TEST_KAFKA_OAUTHBEARER");
    // Shorter than the run that follows: a broker closes connections whose token is over, and takes one a second at most.
    let provider = Provider::start(6);
    let security = format!("{{protocol: sasl_ssl, {}, {}}}", provider.login(), tls(""));
    secured.setup.generate("otlp", 120, 54);
    let mut run = Process::start(secured.arguments(&["run"], &brokers, &security));
    assert!(run.wait_for("flight stream open"), "{}", run.stderr());
    provider.wait_for_tokens(2);
    secured.setup.generate("otlp", 120, 55);
    provider.wait_for_tokens(4);
    assert!(!run.has_ended(), "{}", run.stderr());
    run.signal(libc::SIGTERM);
    let ended = run.wait(PATIENCE).expect(0);
    assert!(!provider.shown_in(&ended.stderr), "a secret is shown:\n{}", ended.stderr);
    secured.read_by(&brokers, &security);
}

#[test]
fn an_identity_provider_that_refuses_or_is_away_is_told_and_waited_for() {
    let Some(secured) = Secured::new("no-tokens") else { return };
    let brokers = variable("OPENWIT_TEST_KAFKA_OAUTHBEARER");
    let provider = Provider::start(600);
    let right = provider.login();
    let wrong = right.replace(provider.secret(), WRONG);
    let tls = tls("");
    secured.setup.generate("otlp", 120, 56);
    let remedy = "client_secret, scope and ca_location of security.sasl.oauthbearer";
    secured.refused(&brokers, &format!("{{protocol: sasl_ssl, {wrong}, {tls}}}"), "invalid_client", remedy);
    secured.refused(
        &brokers,
        &format!("{{protocol: sasl_ssl, {}, {tls}}}", right.replace(&provider.address(), "127.0.0.1:1")),
        "127.0.0.1:1",
        remedy,
    );
    secured.refused(
        &brokers,
        &format!("{{protocol: sasl_ssl, {}, {tls}}}", right.replace("/ca.pem", "/stranger.pem")),
        "invalid peer certificate",
        remedy,
    );
    let mistrusted = Provider::start_untrusted(600);
    secured.refused(
        &brokers,
        &format!("{{protocol: sasl_ssl, {}, {tls}}}", mistrusted.login()),
        "SASL authentication error",
        "check the user and the password, or the client and its secret",
    );
    secured.read_by(&brokers, &format!("{{protocol: sasl_ssl, {right}, {tls}}}"));
}

#[test]
fn a_login_or_certificate_that_is_refused_is_told_moves_no_offset_and_shows_no_secret() {
    let Some(secured) = Secured::new("refused") else { return };
    let [plaintext, ssl, mtls] =
        ["SASL_PLAINTEXT", "SASL_SSL", "SSL"].map(|listener| variable(&format!("OPENWIT_TEST_KAFKA_{listener}")));
    let right = format!("{{protocol: sasl_ssl, {}, {}}}", login("SCRAM-SHA-512"), tls(""));
    secured.setup.generate("otlp", 120, 57);
    secured.read_by(&ssl, &right);
    secured.setup.generate("otlp", 120, 58);
    let wrong = |mechanism: &str| format!("sasl: {{mechanism: {mechanism}, username: openwit, password: {WRONG}}}");
    let stranger = format!("tls: {{ca_location: {}/stranger.pem}}", variable("OPENWIT_TEST_TLS"));
    let check_login = "check the user and the password";
    let cases = [
        (&plaintext, format!("{{protocol: sasl_plaintext, {}}}", wrong("PLAIN")), "Authentication failed", check_login),
        (&ssl, format!("{{protocol: sasl_ssl, {}, {}}}", wrong("SCRAM-SHA-512"), tls("")), "Authentication failed", check_login),
        (
            &ssl,
            format!("{{protocol: sasl_ssl, {}, {stranger}}}", login("PLAIN")),
            "certificate verify failed",
            "as security.tls.ca_location",
        ),
        (&mtls, format!("{{protocol: ssl, {}}}", tls("")), "bad certificate", "check security.tls.certificate_location"),
        (&plaintext, "{protocol: plaintext}".to_owned(), "bootstrap: ", "what the brokers speak at this port"),
        (
            &secured.setup.brokers,
            format!("{{protocol: ssl, {}}}", tls("")),
            "PLAINTEXT broker listener",
            "what the brokers speak at this port",
        ),
    ];
    for (brokers, security, why, remedy) in &cases {
        secured.refused(brokers, security, why, remedy);
    }
    // Five seconds and some hundred attempts later.
    let (_, security, ..) = &cases[2];
    let told = secured.run_until("no Kafka broker answers yet", &ssl, security).stderr;
    assert!(told.lines().count() < 20, "refused many times, told each time:\n{told}");
    let by_name = ssl.replace("127.0.0.1", "localhost");
    secured.refused(&by_name, &right, "certificate verify failed", "name the brokers as their certificates do");
    secured.read_by(&ssl, &right);
}
