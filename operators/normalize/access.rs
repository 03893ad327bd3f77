//! Who a message is from, and whose it is: decided by its headers and its topic, before its payload is looked at.
//!
//! ```text
//! header `authorization` > token > good now? > for this topic and signal? > tenant: of token, header or topic, else the default
//!        missing, unknown, not good: `unauthenticated`    `unauthorized`    another one than the token's: `unauthorized`; none: `no_tenant`
//! ```
//! The time by which a token is judged is that at which its batch was polled: the record's own is the producer's to make up.
//!
//! A message that is recalled for its dedup key (`Purpose::Recall`) was judged by another process, before now, by a file that may have
//! been another one. It counts only where it must have been let in then: its token is good now, was at the record's time, and has not
//! become known since. In doubt it has no key, for a copy that is stored twice does less harm than one that is dropped for an original
//! which was refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use twox_hash::XxHash3_64;

use crate::batch::{Reason, Signal, headers};
use crate::tenant::Tenant;
use crate::tokens::{Known, Store, Tokens};

use super::failure::{Checked, Failure, quote};

/// Tokens and tenants whose verdict is remembered. A batch rarely has more producers than this; those that share a place in the table
/// cost a hash of their token each time.
const SLOTS: usize = 64;

/// How producers say who they are.
#[derive(Clone, Debug)]
pub struct Auth {
    /// The header with the token, in any case.
    pub header: Arc<str>,
    /// The tokens that are good.
    pub tokens: Arc<Store>,
}

impl PartialEq for Auth {
    fn eq(&self, other: &Self) -> bool {
        self.header == other.header && Arc::ptr_eq(&self.tokens, &other.tokens)
    }
}

/// Where the tenant of a message comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TenantFrom {
    /// Messages have no tenant.
    #[default]
    None,
    /// Its token.
    Token,
    /// The header of this name, in any case.
    Header(Arc<str>),
    /// The dot-separated token of its topic's name at this position, counted from 0.
    Topic(usize),
}

/// Whose messages are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenants {
    /// What says so. Where it says nothing the token does, if it names a tenant.
    pub from: TenantFrom,
    /// Whose a message is of which nothing says so. `None`: it is rejected.
    pub default: Option<Tenant>,
}

/// What for a message is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be stored.
    Store,
    /// To remember its key.
    Recall,
}

/// What a topic says of its messages' access.
#[derive(Debug)]
pub(super) struct Origin {
    topic: Arc<str>,
    signal: Signal,
    /// The tenant in the topic's name, or why there is none; `None` where none is looked for.
    tenant: Option<Result<Tenant, String>>,
}

/// When a message was sent, and when it is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub kafka_ms: i64,
    pub polled_ms: u64,
}

/// Decides on messages, and remembers what it found of the last tokens.
pub(super) struct Access {
    auth: Option<Auth>,
    tenants: Tenants,
    purpose: Purpose,
    generation: u64,
    tokens: Arc<Tokens>,
    slots: Vec<Option<Slot>>,
    named: Vec<Option<Tenant>>,
}

/// A token as it was presented, and what it is for one topic.
struct Slot {
    presented: Box<[u8]>,
    topic: Arc<str>,
    verdict: Option<Verdict>,
}

#[derive(Clone)]
struct Verdict {
    known: Arc<Known>,
    takes: Takes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    All,
    NotTopic,
    NotSignal,
}

impl Access {
    pub fn new(auth: Option<Auth>, tenants: Tenants, purpose: Purpose) -> Self {
        let (generation, tokens) = (0, Arc::default());
        let (slots, named) = ((0..SLOTS).map(|_| None).collect(), vec![None; SLOTS]);
        let mut access = Access { auth, tenants, purpose, generation, tokens, slots, named };
        access.take_tokens(|_| true);
        access
    }

    /// Looks whether tokens were reloaded. Once a batch: in one batch all messages are judged alike.
    pub fn refresh(&mut self) {
        let generation = self.generation;
        self.take_tokens(|store| store.generation() != generation);
    }

    fn take_tokens(&mut self, is_due: impl Fn(&Store) -> bool) {
        let Some(store) = self.auth.as_ref().map(|auth| &auth.tokens).filter(|store| is_due(store)) else { return };
        // In this order: tokens that come in between are taken once more for the next batch.
        self.generation = store.generation();
        self.tokens = store.tokens();
        self.slots.iter_mut().for_each(|slot| *slot = None);
    }

    /// The header whose value is a secret.
    pub fn secret_header(&self) -> Option<Arc<str>> {
        self.auth.as_ref().map(|auth| auth.header.clone())
    }

    /// What `topic` says.
    pub fn origin(&self, topic: &Arc<str>, signal: Signal) -> Origin {
        let tenant = |position: usize| match topic.split('.').nth(position) {
            Some("") | None => Err(format!("the topic's name has no token at position {position}, counted from 0")),
            Some(token) => {
                Tenant::new(token).map_err(|error| format!("{} in the topic's name is no tenant: {error}", quote(token)))
            }
        };
        let tenant = if let TenantFrom::Topic(position) = self.tenants.from { Some(tenant(position)) } else { None };
        Origin { topic: topic.clone(), signal, tenant }
    }

    /// Whose a message with these headers is, or why it must not be stored.
    pub fn admit(&mut self, encoded_headers: &[u8], origin: &Origin, times: Times) -> Checked<Option<Tenant>> {
        if self.auth.is_none() && self.tenants.from == TenantFrom::None {
            return Ok(None);
        }
        let (mut presented, mut named) = (None, None);
        let auth_header = self.auth.as_ref().map(|auth| auth.header.as_bytes());
        let tenant_header = if let TenantFrom::Header(name) = &self.tenants.from { Some(name.as_bytes()) } else { None };
        for (name, value) in headers(encoded_headers) {
            if auth_header.is_some_and(|header| name.eq_ignore_ascii_case(header)) {
                presented = Some(token_of(value.unwrap_or_default()));
            } else if tenant_header.is_some_and(|header| name.eq_ignore_ascii_case(header)) {
                named = value.map(<[u8]>::trim_ascii).filter(|value| !value.is_empty());
            }
        }
        let known = if self.auth.is_some() { Some(self.authenticate(presented, origin, times)?) } else { None };
        let tenant = self.tenant(named, origin, known.as_deref())?;
        if let Some(known) = known
            && self.purpose == Purpose::Store
        {
            known.accepted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(tenant)
    }

    fn authenticate(&mut self, presented: Option<&[u8]>, origin: &Origin, times: Times) -> Checked<Arc<Known>> {
        let header = self.auth.as_ref().map_or("", |auth| &auth.header);
        let refused = |why: &str| Failure::new(Reason::Unauthenticated, format_args!("header {header} {why}"));
        let Some(presented) = presented.filter(|presented| !presented.is_empty()) else { return Err(refused("is missing")) };
        let Some(Verdict { known, takes }) = verdict(&mut self.slots, &self.tokens, presented, origin) else {
            return Err(refused("has no known token"));
        };
        let (id, good) = (&known.token.id, &known.token.good);
        if times.polled_ms < good.start {
            return Err(refused(&format!("has token {id}, which is not good yet")));
        }
        if times.polled_ms >= good.end {
            return Err(refused(&format!("has token {id}, which has expired")));
        }
        let sent_ms = u64::try_from(times.kafka_ms).unwrap_or(0);
        if self.purpose == Purpose::Recall && !(good.contains(&sent_ms) && known.since_ms <= sent_ms) {
            return Err(refused(&format!("has token {id}, which may not have been good at the record's time")));
        }
        let beyond = |what: &str| Failure::new(Reason::Unauthorized, format_args!("token {id} is not for this {what}"));
        match takes {
            Takes::All => Ok(known),
            Takes::NotTopic => Err(beyond("topic")),
            Takes::NotSignal => Err(beyond(&format!("topic's signal, {}", origin.signal))),
        }
    }

    fn tenant(&mut self, named: Option<&[u8]>, origin: &Origin, known: Option<&Known>) -> Checked<Option<Tenant>> {
        let scope = known.and_then(|known| known.token.tenant.as_ref());
        let named = match (&self.tenants.from, &origin.tenant) {
            (TenantFrom::None, _) => return Ok(None),
            (TenantFrom::Header(header), _) => named.map(|named| of_header(&mut self.named, named, header)).transpose()?,
            (TenantFrom::Topic(_), Some(Ok(tenant))) => Some(tenant.clone()),
            (TenantFrom::Token | TenantFrom::Topic(_), _) => None,
        };
        let found = match (named, scope) {
            (Some(named), Some(scope)) if named != *scope => {
                let id = known.map_or("", |known| &known.token.id);
                return Err(Failure::new(Reason::Unauthorized, format_args!("token {id} is not for tenant {named}")));
            }
            (Some(named), _) => Some(named),
            (None, scope) => scope.cloned(),
        };
        let found = found.or_else(|| self.tenants.default.clone());
        found.map(Some).ok_or_else(|| self.nobodys(origin))
    }

    #[cold]
    fn nobodys(&self, origin: &Origin) -> Box<Failure> {
        match (&self.tenants.from, &origin.tenant) {
            (TenantFrom::Header(header), _) => Failure::new(Reason::NoTenant, format_args!("header {header} is missing")),
            (_, Some(Err(why))) => Failure::new(Reason::NoTenant, why),
            _ => Failure::new(Reason::NoTenant, "the token names no tenant"),
        }
    }
}

/// Whose the accepted messages of one batch are, and which place among them each has. Neighbours mostly are of one tenant.
#[derive(Debug, Default)]
pub(super) struct Owners {
    tenants: Vec<Tenant>,
    /// The place of each.
    places: BTreeMap<Tenant, u32>,
    last: u32,
}

impl Owners {
    /// The place of a message's tenant; 0 where messages have none.
    pub fn place(&mut self, tenant: Option<&Tenant>) -> u32 {
        let Some(tenant) = tenant else {
            // Else the message would be the first one's.
            assert!(self.tenants.is_empty(), "a message has no tenant, and others of its batch have");
            return 0;
        };
        if self.tenants.get(self.last as usize) != Some(tenant) {
            let next = self.tenants.len() as u32;
            self.last = *self.places.entry(tenant.clone()).or_insert(next);
            if self.last == next {
                self.tenants.push(tenant.clone());
            }
        }
        self.last
    }

    /// All of them, by place.
    pub fn finish(self) -> Vec<Tenant> {
        self.tenants
    }
}

/// What was found of `presented` for this topic, looked for only where the last one at its place was another. Compared in constant
/// time: a token that is known must not be told byte by byte from how long it took to find it is not the presented one.
fn verdict(slots: &mut [Option<Slot>], tokens: &Tokens, presented: &[u8], origin: &Origin) -> Option<Verdict> {
    let place = XxHash3_64::oneshot(presented) as usize % SLOTS;
    if let Some(slot) = &slots[place]
        && Arc::ptr_eq(&slot.topic, &origin.topic)
        && slot.presented.len() == presented.len()
        && openssl::memcmp::eq(&slot.presented, presented)
    {
        return slot.verdict.clone();
    }
    let verdict = tokens.find(presented).map(|known| {
        let token = &known.token;
        let takes = if !token.topics.is_empty() && !token.topics.iter().any(|glob| glob.matches(&origin.topic)) {
            Takes::NotTopic
        } else if !token.signals.is_empty() && !token.signals.contains(&origin.signal) {
            Takes::NotSignal
        } else {
            Takes::All
        };
        Verdict { known, takes }
    });
    // What could not be a token is not worth its bytes.
    if presented.len() <= crate::tokens::TOKEN_BYTES_MAX {
        slots[place] = Some(Slot { presented: presented.into(), topic: origin.topic.clone(), verdict: verdict.clone() });
    }
    verdict
}

/// The tenant that a header names. Those named last are not made anew for each message.
fn of_header(named_last: &mut [Option<Tenant>], named: &[u8], header: &str) -> Checked<Tenant> {
    let place = XxHash3_64::oneshot(named) as usize % SLOTS;
    if let Some(tenant) = named_last[place].as_ref().filter(|tenant| tenant.name().as_bytes() == named) {
        return Ok(tenant.clone());
    }
    let tenant = Tenant::of_bytes(named).map_err(|error| {
        let named = quote(&String::from_utf8_lossy(named));
        Failure::new(Reason::NoTenant, format_args!("header {header} has {named}, which is no tenant: {error}"))
    })?;
    named_last[place] = Some(tenant.clone());
    Ok(tenant)
}

/// The token in a header's value: `Bearer TOKEN`, or the token alone.
fn token_of(value: &[u8]) -> &[u8] {
    let value = value.trim_ascii();
    match value.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
        _ => value,
    }
}
