//! `token new` and `token check`: what producers show, and the file that knows its hashes.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openwit_operators::tokens::{Token, digest};
use serde_json::json;

use super::{Ended, Failure};
use crate::cli::{TokenArgs, TokenCheckArgs, TokenCommand, TokenNewArgs};
use crate::config::tokens::{TokenFile, entry, time_text};

/// What tokens begin with, so that people and scanners for secrets know one when they see it.
const PREFIX: &str = "owt_";

/// Random bytes of a token: far beyond guessing, which is why a plain hash of it may be kept.
const TOKEN_BYTES: usize = 32;

/// Runs the command.
pub fn run(args: &TokenArgs) -> Ended {
    match &args.command {
        TokenCommand::New(args) => new(args),
        TokenCommand::Check(args) => check(args),
    }
}

fn new(args: &TokenNewArgs) -> Ended {
    let mut random = [0; TOKEN_BYTES];
    openssl::rand::rand_bytes(&mut random).map_err(|error| Failure::fault(format!("asking for random bytes: {error}")))?;
    let secret = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let millis = |nanos: u64| nanos / 1_000_000;
    let good = args.not_before.map_or(Token::ALWAYS.start, millis)..args.expires.map_or(Token::ALWAYS.end, millis);
    if good.is_empty() {
        return Err(Failure::usage("--expires must be later than --not-before"));
    }
    let token = Token {
        id: args.id.as_str().into(),
        digest: digest(secret.as_bytes()),
        tenant: args.tenant.clone(),
        topics: args.topics.clone(),
        signals: args.signals.clone(),
        good,
    };
    let entry = entry(&token);
    if args.json {
        println!("{}", json!({"token": secret, "entry": entry}));
    } else {
        println!("The token, for the producer's header `authorization: Bearer TOKEN`. It is shown this once:\n\n{secret}\n");
        print!("Its entry, to append to the list `tokens:` of the token file:\n\n{entry}");
    }
    Ok(())
}

fn check(args: &TokenCheckArgs) -> Ended {
    let (_, tokens) = TokenFile::open(&args.file).map_err(Failure::usage)?;
    for Token { id, tenant, topics, signals, good, .. } in &tokens {
        let list = |items: Vec<String>| if items.is_empty() { "all".to_owned() } else { items.join(", ") };
        let topics = list(topics.iter().map(|glob| glob.pattern().to_owned()).collect());
        let signals = list(signals.iter().map(ToString::to_string).collect());
        let tenant = tenant.as_ref().map_or("any", |tenant| tenant.name());
        let mut times = String::new();
        if good.start != Token::ALWAYS.start {
            times += &format!("; from {}", time_text(good.start));
        }
        if good.end != Token::ALWAYS.end {
            times += &format!("; until {}", time_text(good.end));
        }
        println!("token {id}: tenant {tenant}; topics {topics}; signals {signals}{times}");
    }
    println!("{}: {} tokens, no errors", args.file.display(), tokens.len());
    Ok(())
}
