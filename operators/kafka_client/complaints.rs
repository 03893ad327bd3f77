//! What a Kafka client complains of, told once in a while, and what to do about it where brokers refuse it.
//!
//! A client that is refused comes back at once, and complains each time: twenty times a second were seen.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, error, warn};

/// How long the same complaint is not repeated.
const SILENCE: Duration = Duration::from_secs(10);
/// Different complaints that are remembered; beyond it all are forgotten, and told again when they come again.
const COMPLAINTS_MAX: usize = 64;

/// The complaints of one client.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    told: BTreeMap<String, Told>,
    /// The last one of all.
    last: Option<String>,
    refusal: Option<String>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    /// Times it came since.
    unsaid: u64,
}

impl Complaints {
    /// Takes a complaint of the client's and logs it, with what to do about it, unless that was just done.
    pub fn note(&self, client: &str, error: &KafkaError, reason: &str) {
        let cause = cause(reason);
        let remedy = self.hear(error, reason);
        let Some(unsaid) = self.due(remedy.unwrap_or(cause)) else { return };
        match remedy {
            Some(remedy) => error!(%error, remedy, unsaid, "{client}: {cause}"),
            None => warn!(%error, unsaid, "{client}: {reason}"),
        }
    }

    /// The same for a line of the client's log about a connection that failed: of one that a broker closes no complaint comes.
    pub fn note_log(&self, client: &str, line: &str) {
        match self.hear_log(line) {
            None => debug!("{client}: {line}"),
            // A broker that just goes away looks the same.
            Some(remedy) => {
                if let Some(unsaid) = self.due(remedy) {
                    warn!(remedy, unsaid, "{client}: {}", cause(line));
                }
            }
        }
    }

    /// Takes a complaint without logging it; gives what to do about it.
    pub fn hear(&self, error: &KafkaError, reason: &str) -> Option<&'static str> {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            self.state().last = Some(cause(reason).to_owned());
        }
        let remedy = remedy(error, reason)?;
        self.state().refusal = Some(format!("{}: {remedy}", cause(reason)));
        Some(remedy)
    }

    /// The same for a line of the client's log about a connection that failed.
    pub fn hear_log(&self, line: &str) -> Option<&'static str> {
        // "[thrd:main]: " says nothing to anybody.
        let line = line.split_once("]: ").map_or(line, |(_, line)| line);
        self.hear(&KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure), line)
    }

    /// How often `what` came without being told since it last was; `None` if it is not to be told yet.
    pub fn due(&self, what: &str) -> Option<u64> {
        let mut state = self.state();
        if let Some(told) = state.told.get_mut(what) {
            if told.at.elapsed() < SILENCE {
                told.unsaid += 1;
                return None;
            }
            told.at = Instant::now();
            return Some(std::mem::take(&mut told.unsaid));
        }
        if state.told.len() >= COMPLAINTS_MAX {
            state.told.clear();
        }
        state.told.insert(what.to_owned(), Told { at: Instant::now(), unsaid: 0 });
        Some(0)
    }

    /// The last complaint that says that the brokers refuse this client, with what to do about it.
    pub fn refusal(&self) -> Option<String> {
        self.state().refusal.clone()
    }

    /// Why nobody answers, as far as the client knows. Brokers that want a login just close connections without one.
    pub fn why_nobody_answers(&self) -> Option<String> {
        let state = self.state();
        let last = || {
            let last = state.last.as_deref()?;
            let is_closed =
                ["connection closed by peer", "Connection reset", "Broken pipe"].iter().any(|words| last.contains(words));
            Some(if is_closed { format!("{last}: {PROTOCOL}") } else { last.to_owned() })
        };
        state.refusal.clone().or_else(last)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without what librdkafka appends: how long it took, and in which state it was.
fn cause(reason: &str) -> &str {
    reason.split(" (after ").next().unwrap_or(reason)
}

const TOKEN: &str = "check token_endpoint_url, client_id, client_secret, scope and ca_location of security.sasl.oauthbearer";
const MECHANISM: &str =
    "set security.sasl.mechanism to one that the brokers offer at this port, or take the port that offers this one";
const LOGIN: &str = "check the user and the password, or the client and its secret, and the mechanism under security.sasl";
const NAME: &str = "the certificate is for another name than the one in brokers: use the name that it is for";
const AUTHORITY: &str = "give the authority that signed the brokers' certificates as security.tls.ca_location, and name the brokers as their \
                         certificates do";
const CERTIFICATE: &str = "the brokers do not take this client's certificate, or miss it: check security.tls.certificate_location and \
                           key_location";
const PROTOCOL: &str = "check that security.protocol is what the brokers speak at this port";

/// What to do about an error that will not pass by itself, by the texts of librdkafka; `None` for all others.
fn remedy(error: &KafkaError, reason: &str) -> Option<&'static str> {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    match error.rdkafka_error_code()? {
        RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed => Some(match () {
            () if says(&["acquire SASL OAUTHBEARER token"]) => TOKEN,
            () if says(&["Request not valid in current SASL state"]) => PROTOCOL,
            () if says(&["mechanism handshake failed"]) => MECHANISM,
            () => LOGIN,
        }),
        RDKafkaErrorCode::SSL | RDKafkaErrorCode::BrokerTransportFailure => match () {
            () if says(&["ostname mismatch", "IP address mismatch"]) => Some(NAME),
            () if says(&["certificate verify failed"]) => Some(AUTHORITY),
            () if says(&["alert bad certificate", "certificate required", "alert unknown ca", "alert handshake failure"]) => {
                Some(CERTIFICATE)
            }
            () if says(&["security.protocol", "PLAINTEXT broker listener", "wrong version number"]) => Some(PROTOCOL),
            () => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_client_is_told_what_to_do() {
        use RDKafkaErrorCode::{AllBrokersDown, Authentication, BrokerTransportFailure, SSL};
        // As Apache Kafka 4.3 and librdkafka 2.12 say it.
        let cases = [
            (
                Authentication,
                "sasl_plaintext://b:1/bootstrap: SASL authentication error: Authentication failed: Invalid",
                Some(LOGIN),
            ),
            (Authentication, "SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism", Some(MECHANISM)),
            (
                Authentication,
                "SASL PLAIN mechanism handshake failed: Broker: Request not valid in current SASL state",
                Some(PROTOCOL),
            ),
            (Authentication, "Failed to acquire SASL OAUTHBEARER token: https://id/token answers 401", Some(TOKEN)),
            (
                SSL,
                "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate",
                Some(AUTHORITY),
            ),
            (BrokerTransportFailure, "error:0A000086:SSL routines::certificate verify failed", Some(AUTHORITY)),
            (BrokerTransportFailure, "Receive failed: SSL routines::ssl/tls alert bad certificate: number 42", Some(CERTIFICATE)),
            (
                BrokerTransportFailure,
                "Disconnected: SSL connection closed by peer: connecting to a PLAINTEXT broker listener?",
                Some(PROTOCOL),
            ),
            (
                BrokerTransportFailure,
                "Disconnected: requesting ApiVersion: might be caused by incorrect security.protocol",
                Some(PROTOCOL),
            ),
            (BrokerTransportFailure, "Disconnected: SSL connection closed by peer", None),
            (BrokerTransportFailure, "Connect to ipv4#127.0.0.1:1 failed: Connection refused", None),
            (AllBrokersDown, "1/1 brokers are down", None),
        ];
        for (code, reason, expected) in cases {
            assert_eq!(remedy(&KafkaError::Global(code), reason), expected, "{reason}");
        }
    }

    #[test]
    fn the_same_complaint_is_told_once_in_a_while() {
        let complaints = Complaints::default();
        assert_eq!((complaints.due("a"), complaints.due("b"), complaints.due("a")), (Some(0), Some(0), None));
        for number in 0..2 * COMPLAINTS_MAX {
            assert_eq!(complaints.due(&number.to_string()), Some(0));
        }
        assert!(complaints.state().told.len() <= COMPLAINTS_MAX);
    }

    #[test]
    fn a_refusal_is_kept_without_what_differs_between_attempts() {
        let complaints = Complaints::default();
        let error = KafkaError::Global(RDKafkaErrorCode::Authentication);
        complaints.note("test", &error, "SASL authentication error: no (after 303ms in state AUTH_REQ)");
        let refusal = Some(format!("SASL authentication error: no: {LOGIN}"));
        assert_eq!((complaints.refusal(), complaints.why_nobody_answers()), (refusal.clone(), refusal));
    }

    #[test]
    fn a_connection_that_is_closed_without_a_word_hints_at_the_protocol() {
        let complaints = Complaints::default();
        assert_eq!(complaints.why_nobody_answers(), None);
        complaints.note_log(
            "test",
            "[thrd:b:1/bootstrap]: b:1/bootstrap: Connect failed: Connection refused (after 0ms in state CONNECT)",
        );
        assert_eq!(complaints.why_nobody_answers().as_deref(), Some("b:1/bootstrap: Connect failed: Connection refused"));
        complaints.note_log(
            "test",
            "[thrd:b:1/bootstrap]: b:1/bootstrap: Disconnected: connection closed by peer (after 0ms in state UP)",
        );
        complaints.note("test", &KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 brokers are down");
        assert_eq!(complaints.refusal(), None);
        assert!(complaints.why_nobody_answers().is_some_and(|why| why.ends_with(PROTOCOL)));
    }
}
