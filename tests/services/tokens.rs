//! An identity provider for one test: an HTTPS server that gives tokens which the test broker's key set accepts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod, SslStream};
use serde_json::json;

use crate::support::binary::PATIENCE;
use crate::support::wait;

const CLIENT: &str = "openwit";
const SECRET: &str = "the-clients-secret-0815";

/// Gives tokens until the test's process ends.
pub struct Provider {
    address: String,
    state: Arc<State>,
}

struct State {
    key: PKey<Private>,
    life_seconds: u64,
    given: AtomicUsize,
    last: std::sync::Mutex<String>,
}

impl Provider {
    /// Its tokens are good for so many seconds.
    pub fn start(life_seconds: u64) -> Self {
        let path = file("issuer-key.pem");
        let pem = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self::with_key(PKey::private_key_from_pem(&pem).expect("a private key"), life_seconds)
    }

    /// Its tokens are signed with a key that the broker does not know.
    pub fn start_untrusted(life_seconds: u64) -> Self {
        Self::with_key(PKey::from_rsa(Rsa::generate(2048).expect("a key")).expect("a key"), life_seconds)
    }

    fn with_key(key: PKey<Private>, life_seconds: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let state = Arc::new(State { key, life_seconds, given: AtomicUsize::new(0), last: std::sync::Mutex::default() });
        let serving = Arc::clone(&state);
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).expect("OpenSSL has these settings");
        acceptor.set_certificate_chain_file(file("server.pem")).expect("a certificate");
        acceptor.set_private_key_file(file("server-key.pem"), SslFiletype::PEM).expect("its key");
        let acceptor = acceptor.build();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that does not trust it, or goes away, is its own affair.
                let _ = acceptor.accept(stream).map(|stream| serving.answer(stream));
            }
        });
        Provider { address, state }
    }

    /// Host and port.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// The secret that it accepts.
    pub fn secret(&self) -> &'static str {
        SECRET
    }

    /// The `sasl` section of a client that logs in here.
    pub fn login(&self) -> String {
        format!(
            "sasl: {{mechanism: OAUTHBEARER, oauthbearer: {{token_endpoint_url: 'https://{}/token', ca_location: {}, client_id: {CLIENT}, \
             client_secret: {SECRET}, scope: 'kafka read'}}}}",
            self.address,
            file("ca.pem"),
        )
    }

    /// Waits until it has given so many tokens in all.
    pub fn wait_for_tokens(&self, count: usize) {
        wait::until("tokens to be renewed", PATIENCE, || self.state.given.load(Ordering::Relaxed) >= count);
    }

    /// True if the secret or a token is in `text`.
    pub fn shown_in(&self, text: &str) -> bool {
        let last = self.state.last.lock().expect("nobody panics with it").clone();
        text.contains(SECRET) || (!last.is_empty() && text.contains(&last))
    }
}

/// A file of `scripts/services`.
fn file(name: &str) -> String {
    format!("{}/{name}", std::env::var("OPENWIT_TEST_TLS").expect("set where Kafka is"))
}

impl State {
    fn answer(&self, stream: SslStream<TcpStream>) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let (mut line, mut login, mut length) = (String::new(), String::new(), 0);
        while reader.read_line(&mut line)? > 2 {
            let (name, value) = line.split_once(':').unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "authorization" => login = value.trim().to_owned(),
                "content-length" => length = value.trim().parse().unwrap_or(0),
                _ => {}
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let expected = format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{SECRET}")));
        let (status, answer) = match (login == expected, body.as_slice()) {
            (true, b"grant_type=client_credentials&scope=kafka%20read") => {
                let token = self.token();
                self.last.lock().expect("nobody panics with it").clone_from(&token);
                self.given.fetch_add(1, Ordering::Relaxed);
                ("200 OK", json!({"access_token": token, "token_type": "Bearer", "expires_in": self.life_seconds}))
            }
            (true, _) => ("400 Bad Request", json!({"error": "invalid_request", "error_description": "not the form expected"})),
            (false, _) => {
                ("401 Unauthorized", json!({"error": "invalid_client", "error_description": "unknown client or secret"}))
            }
        };
        let answer = answer.to_string();
        let mut stream = reader.into_inner();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}",
            answer.len()
        )
    }

    /// A JSON Web Token as the broker's key set wants it.
    fn token(&self) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_secs();
        let head = json!({"alg": "RS256", "kid": "test", "typ": "JWT"});
        let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_string();
        let claims = json!({"sub": CLIENT, "aud": "openwit", "scope": "kafka read", "iat": now, "exp": now + self.life_seconds, "jti": number});
        let text = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key).expect("RSA signs SHA-256");
        let signature = signer.sign_oneshot_to_vec(text.as_bytes()).expect("RSA signs");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
