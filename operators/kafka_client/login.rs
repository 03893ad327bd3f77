//! Logs Kafka clients in with tokens (SASL OAUTHBEARER, OAuth 2.0 client credentials): fetches them, and renews them in time.
//!
//! librdkafka can do this alone only with libcurl, which is not built in. Its other way is a callback from polling, but much here calls
//! the client for minutes without polling it. So a thread fetches the token, and `Login::renew` hands it to a client wherever that one is
//! polled or called.
//!
//! ```text
//! identity provider  <-- HTTP --  Source: one thread for all clients of a login
//!                                   |  renew
//!                                 client ... client
//! ```

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use base64::Engine;
use rdkafka::client::{Client, ClientContext};
use serde::Deserialize;
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::clock::{Clock, SystemClock};

/// How long the identity provider may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The wait before another attempt, in milliseconds, doubled up to the second.
const BACKOFF_MS: (u64, u64) = (500, 30_000);
/// A token is renewed after this part of its life, as librdkafka would ask for it.
const LIFE_USED: f64 = 0.8;
/// Of what an identity provider says in a refusal.
const WORDS_MAX: usize = 200;

/// The property that says that tokens are to be fetched.
pub const ENDPOINT: &str = "sasl.oauthbearer.token.endpoint.url";
const CLIENT_ID: &str = "sasl.oauthbearer.client.id";
const CLIENT_SECRET: &str = "sasl.oauthbearer.client.secret";
const SCOPE: &str = "sasl.oauthbearer.scope";
const CA: &str = "https.ca.location";
/// Properties by librdkafka's names which are handled here: this build of it refuses them.
pub const PROPERTIES: [&str; 5] = [ENDPOINT, CLIENT_ID, CLIENT_SECRET, SCOPE, CA];

/// Where tokens come from: `PROPERTIES` and their values.
type Properties = BTreeMap<String, String>;

/// How one client logs in; without tokens all of this does nothing.
#[derive(Default)]
pub struct Login {
    source: Option<Arc<Source>>,
    /// Number of the outcome that this client has.
    has: AtomicU64,
}

impl Login {
    /// The login that `properties` ask for.
    pub(super) fn new(properties: &Properties) -> Self {
        let ours: Properties = properties
            .iter()
            .filter(|(name, _)| PROPERTIES.contains(&name.as_str()))
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect();
        let source = ours.contains_key(ENDPOINT).then(|| Source::shared(ours));
        Login { source, has: AtomicU64::new(0) }
    }

    /// Waits for the first token, or the first refusal, and hands it on: for a client that is called but not polled.
    pub fn begin<C: ClientContext>(&self, client: &Client<C>) {
        if let Some(source) = &self.source {
            source.wait_for_outcome();
            self.renew(client);
        }
    }

    /// Hands the newest token to the client, or why there is none. Cheap: call it wherever the client is polled or called.
    pub fn renew<C: ClientContext>(&self, client: &Client<C>) {
        let Some(source) = &self.source else { return };
        let Some(outcome) = source.outcome_unless(self.has.load(Ordering::Acquire)) else { return };
        self.has.store(outcome.number, Ordering::Release);
        let handed = match &outcome.result {
            Some(Ok(token)) => set_token(client, token),
            Some(Err(why)) => Err(why.clone()),
            None => Ok(()),
        };
        if let Err(why) = handed {
            set_failure(client, &why);
        }
    }
}

/// A token, and until when it is good.
#[derive(Clone)]
struct Token {
    text: String,
    good_until_unix_ms: i64,
    /// Only for librdkafka's logs: brokers take the name from the token.
    principal: String,
}

fn set_token<C: ClientContext>(client: &Client<C>, token: &Token) -> Result<(), String> {
    let no_zero = |text: &str| CString::new(text).map_err(|_| "the token has a zero in it".to_owned());
    let (text, principal) = (no_zero(&token.text)?, no_zero(&token.principal)?);
    let mut said = [0u8; 512];
    // SAFETY: the client lives as long as the reference to it. The function may be called from any thread, copies the two texts, which end
    // with a zero, takes no extensions, and writes at most the length it is given.
    let code = unsafe {
        rdkafka_sys::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            text.as_ptr(),
            token.good_until_unix_ms,
            principal.as_ptr(),
            std::ptr::null_mut(),
            0,
            said.as_mut_ptr().cast(),
            said.len(),
        )
    };
    if code == rdkafka_sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    Err(String::from_utf8_lossy(said.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned())
}

/// The client raises an error with these words, as for any other login that fails; what token it has stays.
fn set_failure<C: ClientContext>(client: &Client<C>, why: &str) {
    let why = CString::new(why.replace('\0', " ")).expect("zeros were replaced");
    // SAFETY: as above; the text ends with a zero and is copied.
    unsafe { rdkafka_sys::rd_kafka_oauthbearer_set_token_failure(client.native_ptr(), why.as_ptr()) };
}

/// What came of the last attempt.
#[derive(Clone, Default)]
struct Outcome {
    /// Counts attempts; 0: none yet.
    number: u64,
    result: Option<Result<Token, String>>,
}

/// Fetches the tokens of one login for as long as somebody holds it.
struct Source {
    outcome: Mutex<Outcome>,
    arrived: Condvar,
    /// Its end is what ends the thread.
    _alive: Sender<()>,
}

/// The sources of this process, so that all clients of a login share its token.
static SOURCES: Mutex<BTreeMap<Properties, Weak<Source>>> = Mutex::new(BTreeMap::new());

impl Source {
    fn shared(properties: Properties) -> Arc<Self> {
        let mut sources = SOURCES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(&properties).and_then(Weak::upgrade) {
            return source;
        }
        let (alive, gone) = channel();
        let source = Arc::new(Source { outcome: Mutex::default(), arrived: Condvar::new(), _alive: alive });
        let (weak, wanted) = (Arc::downgrade(&source), properties.clone());
        let started = std::thread::Builder::new().name("kafka-token".into()).spawn(move || keep(&wanted, &weak, &gone));
        if let Err(error) = started {
            source.set(Err(format!("cannot start the thread that fetches tokens: {error}")));
        }
        sources.insert(properties, Arc::downgrade(&source));
        source
    }

    fn lock(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last outcome, unless it has this number.
    fn outcome_unless(&self, number: u64) -> Option<Outcome> {
        let outcome = self.lock();
        (outcome.number != number).then(|| outcome.clone())
    }

    fn set(&self, result: Result<Token, String>) {
        let mut outcome = self.lock();
        *outcome = Outcome { number: outcome.number + 1, result: Some(result) };
        self.arrived.notify_all();
    }

    fn wait_for_outcome(&self) {
        let outcome = self.lock();
        let waited = self.arrived.wait_timeout_while(outcome, 2 * PATIENCE, |outcome| outcome.number == 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Fetches tokens until nobody wants them any more.
fn keep(properties: &Properties, source: &Weak<Source>, gone: &Receiver<()>) {
    let new_backoff = || Backoff::new(BACKOFF_MS.0, BACKOFF_MS.1, u64::from(std::process::id()));
    let mut backoff = new_backoff();
    loop {
        let fetched = fetch(properties);
        let wait = match &fetched {
            Ok((_, life)) => {
                debug!(life_seconds = life.as_secs(), "fetched a token for Kafka");
                backoff = new_backoff();
                life.mul_f64(LIFE_USED)
            }
            Err(why) => {
                let wait = backoff.next_wait();
                warn!(why, again_ms = wait.as_millis(), "no token for Kafka");
                wait
            }
        };
        match source.upgrade() {
            Some(source) => source.set(fetched.map(|(token, _)| token)),
            None => return,
        }
        // Nothing is ever sent.
        if gone.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// What an identity provider answers (RFC 6749, sections 5.1 and 5.2). No `Debug`: it is the secret.
#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    expires_in: Option<f64>,
    error: Option<String>,
    error_description: Option<String>,
}

/// Asks for one token; gives its life, too. No error holds the secret or what was answered, but for the words of a refusal.
fn fetch(properties: &Properties) -> Result<(Token, Duration), String> {
    let value = |name: &str| properties.get(name).map(String::as_str);
    let endpoint = value(ENDPOINT).unwrap_or_default();
    let at = |why: String| format!("{endpoint}: {why}");
    let mut builder = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none());
    if let Some(path) = value(CA) {
        let pem = std::fs::read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
        let authorities = reqwest::Certificate::from_pem_bundle(&pem);
        let authorities = authorities.map_err(|error| format!("{path} holds no certificates: {error}"))?;
        builder = builder.tls_certs_only(authorities);
    }
    let client = builder.build().map_err(|error| at(crate::fault::chain(&error)))?;
    let (id, secret) = (value(CLIENT_ID).unwrap_or_default(), value(CLIENT_SECRET).unwrap_or_default());
    let login = base64::engine::general_purpose::STANDARD.encode(format!("{id}:{secret}"));
    let request = client
        .post(endpoint)
        .header("authorization", format!("Basic {login}"))
        .header("content-type", "application/x-www-form-urlencoded")
        .header("accept", "application/json")
        .body(form(value(SCOPE)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let answered = runtime.block_on(async {
        let response = request.send().await?;
        Ok::<_, reqwest::Error>((response.status(), response.bytes().await?))
    });
    let (status, body) = answered.map_err(|error| at(crate::fault::chain(&error.without_url())))?;
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| at(format!("answers {status}, and no JSON")))?;
    let (Some(text), true) = (answer.access_token, status.is_success()) else {
        let words = [answer.error, answer.error_description].into_iter().flatten().collect::<Vec<_>>().join(": ");
        return Err(at(format!("answers {status} {}", words.chars().take(WORDS_MAX).collect::<String>()).trim_end().to_owned()));
    };
    let life = answer.expires_in.filter(|seconds| *seconds >= 1.0 && *seconds < 1e9);
    let life = Duration::from_secs_f64(life.ok_or_else(|| at("does not say how long its token is good (expires_in)".into()))?);
    let good_until_unix_ms = SystemClock::default().now_ms() as i64 + life.as_millis() as i64;
    Ok((Token { text, good_until_unix_ms, principal: id.to_owned() }, life))
}

/// The body of the request. A scope is made of ASCII letters, digits and signs: all but letters and digits are escaped.
fn form(scope: Option<&str>) -> String {
    let mut body = "grant_type=client_credentials".to_owned();
    if let Some(scope) = scope {
        body.push_str("&scope=");
        for byte in scope.bytes() {
            match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => body.push(byte.into()),
                _ => body.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const SECRET: &str = "hunter2";

    /// An identity provider that answers one request; gives the properties to ask it by, and what it was asked.
    fn provider(answer: &str) -> (Properties, std::thread::JoinHandle<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = answer.to_owned();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut request, mut piece) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"scope=a%20b") {
                let read = stream.read(&mut piece).unwrap();
                assert!(read > 0, "{}", String::from_utf8_lossy(&request));
                request.extend_from_slice(&piece[..read]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        let endpoint = format!("http://{address}/token");
        let given = [(ENDPOINT, endpoint.as_str()), (CLIENT_ID, "me"), (CLIENT_SECRET, SECRET), (SCOPE, "a b")];
        (given.map(|(name, value)| (name.to_owned(), value.to_owned())).into(), asked)
    }

    fn response(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn a_token_is_asked_for_by_client_and_secret_and_good_as_long_as_the_provider_says() {
        let before = SystemClock::default().now_ms() as i64;
        let (properties, asked) = provider(&response("200 OK", r#"{"access_token":"t","token_type":"Bearer","expires_in":60}"#));
        let (token, life) = fetch(&properties).unwrap();
        assert_eq!((token.text.as_str(), token.principal.as_str(), life), ("t", "me", Duration::from_secs(60)));
        assert!((before + 60_000..before + 90_000).contains(&token.good_until_unix_ms));
        let asked = asked.join().unwrap();
        // `me:hunter2` in base64.
        assert!(asked.starts_with("POST /token ") && asked.contains("authorization: Basic bWU6aHVudGVyMg=="), "{asked}");
        assert!(asked.ends_with("grant_type=client_credentials&scope=a%20b"), "{asked}");
    }

    #[test]
    fn what_the_provider_refuses_or_leaves_out_is_said_without_the_secret() {
        let cases = [
            (
                response("401 Unauthorized", r#"{"error":"invalid_client","error_description":"who?"}"#),
                "401 Unauthorized invalid_client: who?",
            ),
            (response("200 OK", r#"{"access_token":"t"}"#), "does not say how long its token is good (expires_in)"),
            (
                response("200 OK", r#"{"access_token":"t","expires_in":0}"#),
                "does not say how long its token is good (expires_in)",
            ),
            (response("200 OK", "<html>"), "answers 200 OK, and no JSON"),
            (response("302 Found", "{}"), "answers 302 Found"),
            (String::new(), "http://127.0.0.1:"),
        ];
        for (answer, expected) in cases {
            let (properties, asked) = provider(&answer);
            let why = fetch(&properties).err().expect("it is refused");
            assert!(why.contains(expected) && !why.contains(SECRET), "{why}");
            asked.join().unwrap();
        }
        let missing = Properties::from([(CA.to_owned(), "/nonexistent/ca.pem".to_owned())]);
        assert!(fetch(&missing).err().is_some_and(|why| why.contains("/nonexistent/ca.pem")));
    }

    #[test]
    fn clients_of_one_login_share_its_tokens_and_others_do_not() {
        let of = |id: &str| {
            Properties::from([(ENDPOINT.to_owned(), "http://127.0.0.1:1".to_owned()), (CLIENT_ID.to_owned(), id.to_owned())])
        };
        let (one, same, other) = (Source::shared(of("a")), Source::shared(of("a")), Source::shared(of("b")));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        one.wait_for_outcome();
        let outcome = one.outcome_unless(0).unwrap();
        assert!(one.outcome_unless(outcome.number).is_none());
        assert!(matches!(outcome.result, Some(Err(why)) if why.contains("127.0.0.1:1")));
    }
}
