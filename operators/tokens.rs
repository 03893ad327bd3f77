//! The tokens by which producers are known: who may send what, as whom, and since when this process knows.
//!
//! Tokens are 256 random bits that this program made, so what is kept of one is its plain SHA-256: there is nothing to guess, and nothing
//! that a slow hash would protect (ADR 0019). A presented token is looked up by the beginning of its digest and then compared as a whole
//! in constant time. What a lookup's duration could tell is how a digest begins, from which no token can be made.
//!
//! ```text
//! file > list of Token > Tokens::new > Store::replace      reloader's thread
//!                                         |
//!                        generation, Arc<Tokens>  >  each normalizer, which looks at the generation once a batch
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batch::Signal;
use crate::kafka_source::topics::Glob;
use crate::reload::File;
use crate::tenant::Tenant;

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// Bytes of a token that is looked at; ours have 47. What is longer is none of ours, and is not hashed.
pub const TOKEN_BYTES_MAX: usize = 512;

/// One token: of whom, and for what.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its name in logs and counters.
    pub id: Arc<str>,
    /// SHA-256 of it.
    pub digest: Digest,
    /// Whose messages it is for. `None`: anybody's.
    pub tenant: Option<Tenant>,
    /// The topics it is for; none: all.
    pub topics: Vec<Glob>,
    /// The signals it is for; none: all.
    pub signals: Vec<Signal>,
    /// When it is good, in Unix milliseconds.
    pub good: Range<u64>,
}

impl Token {
    /// Always good.
    pub const ALWAYS: Range<u64> = 0..u64::MAX;

    /// True if both say the same.
    fn agrees(&self, other: &Token) -> bool {
        let patterns = |token: &Token| token.topics.iter().map(|glob| glob.pattern().to_owned()).collect::<Vec<_>>();
        let plain = |token: &Token| (token.digest, token.tenant.clone(), token.signals.clone(), token.good.clone());
        plain(self) == plain(other) && patterns(self) == patterns(other)
    }
}

/// SHA-256 of `token`.
pub fn digest(token: &[u8]) -> Digest {
    openssl::sha::sha256(token)
}

/// A token as this process knows it.
#[derive(Debug)]
pub struct Known {
    /// The token.
    pub token: Token,
    /// Since when it is known with just this scope, in Unix milliseconds; 0: since the start.
    pub since_ms: u64,
    /// Messages it let in. Goes on counting when the file is read anew.
    pub accepted: Arc<AtomicU64>,
}

/// All tokens of one state of the file.
#[derive(Debug, Default)]
pub struct Tokens {
    /// By the first eight bytes of the digest.
    by_digest: BTreeMap<u64, Vec<Arc<Known>>>,
}

impl Tokens {
    fn new(list: Vec<Token>, before: &Tokens, now_ms: u64) -> Self {
        let mut by_digest: BTreeMap<u64, Vec<Arc<Known>>> = BTreeMap::new();
        for token in list {
            let same = before.iter().find(|known| known.token.id == token.id);
            let since_ms = same.filter(|known| known.token.agrees(&token)).map_or(now_ms, |known| known.since_ms);
            let accepted = same.map(|known| known.accepted.clone()).unwrap_or_default();
            by_digest.entry(start(&token.digest)).or_default().push(Arc::new(Known { token, since_ms, accepted }));
        }
        Tokens { by_digest }
    }

    /// The token that was presented, if it is one.
    pub fn find(&self, presented: &[u8]) -> Option<Arc<Known>> {
        if presented.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let digest = digest(presented);
        let candidates = self.by_digest.get(&start(&digest))?;
        candidates.iter().find(|known| openssl::memcmp::eq(&known.token.digest, &digest)).cloned()
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Known>> {
        self.by_digest.values().flatten()
    }
}

fn start(digest: &Digest) -> u64 {
    digest.iter().take(8).fold(0, |start, byte| start << 8 | u64::from(*byte))
}

/// What a reload changed, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Ids that are new.
    pub added: Vec<Arc<str>>,
    /// Ids that are known and say something else.
    pub changed: Vec<Arc<str>>,
    /// Ids that are gone.
    pub removed: Vec<Arc<str>>,
}

/// Where the tokens of a process are, shared by all that ask and the one that reloads.
#[derive(Debug)]
pub struct Store {
    /// Rises with each replacement, after `current` was changed.
    generation: AtomicU64,
    current: Mutex<Arc<Tokens>>,
    /// Times the file was read anew and taken.
    pub reloads: AtomicU64,
    /// States of the file that were refused; those before stayed good.
    pub refused: AtomicU64,
}

impl Store {
    /// With the tokens that the file holds at the start.
    pub fn new(list: Vec<Token>) -> Self {
        Store {
            generation: AtomicU64::new(0),
            current: Mutex::new(Arc::new(Tokens::new(list, &Tokens::default(), 0))),
            reloads: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Which state of the file counts now. Cheap.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The tokens that count now.
    pub fn tokens(&self) -> Arc<Tokens> {
        self.lock().clone()
    }

    /// Puts `list` in the place of what counted until `now_ms`.
    pub fn replace(&self, list: Vec<Token>, now_ms: u64) -> Replaced {
        let mut current = self.lock();
        let new = Tokens::new(list, &current, now_ms);
        let of = |tokens: &Tokens| tokens.iter().map(|known| (known.token.id.clone(), known.clone())).collect::<BTreeMap<_, _>>();
        let (old_by_id, new_by_id) = (of(&current), of(&new));
        let mut replaced = Replaced::default();
        for (id, known) in &new_by_id {
            match old_by_id.get(id) {
                None => replaced.added.push(id.clone()),
                Some(old) if !old.token.agrees(&known.token) => replaced.changed.push(id.clone()),
                Some(_) => {}
            }
        }
        replaced.removed = old_by_id.into_keys().filter(|id| !new_by_id.contains_key(id)).collect();
        *current = Arc::new(new);
        self.generation.fetch_add(1, Ordering::Release);
        self.reloads.fetch_add(1, Ordering::Relaxed);
        replaced
    }

    /// Messages let in, by the id of their token. Of tokens that are gone there is no count.
    pub fn accepted(&self) -> BTreeMap<Arc<str>, u64> {
        self.tokens().iter().map(|known| (known.token.id.clone(), known.accepted.load(Ordering::Relaxed))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Tokens>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One look at the file: what is new in it counts from now on. A file that is refused leaves all as it was.
pub fn reload(file: &dyn File<Vec<Token>>, store: &Store, now_ms: u64) -> Option<Result<Replaced, String>> {
    let changed = file.changed()?;
    if changed.is_err() {
        store.refused.fetch_add(1, Ordering::Relaxed);
    }
    Some(changed.map(|list| store.replace(list, now_ms)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn token(id: &str, secret: &str) -> Token {
        Token {
            id: id.into(),
            digest: digest(secret.as_bytes()),
            tenant: Tenant::new("shop").ok(),
            topics: Vec::new(),
            signals: Vec::new(),
            good: Token::ALWAYS,
        }
    }

    #[test]
    fn only_the_token_itself_is_found() {
        let mut twin = token("twin", "one");
        // The same beginning: what a lookup by prefix alone would mistake for the other.
        twin.digest[31] ^= 1;
        let store = Store::new(vec![twin, token("a", "one"), token("b", "two")]);
        let found = |presented: &[u8]| store.tokens().find(presented).map(|known| known.token.id.to_string());
        assert_eq!((found(b"one"), found(b"two")), (Some("a".to_owned()), Some("b".to_owned())));
        for wrong in [&b""[..], b"on", b"One", b"one ", &digest(b"one"), &vec![b'x'; TOKEN_BYTES_MAX + 1]] {
            assert_eq!(found(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_replacement_says_what_it_changed_and_keeps_what_is_known_of_the_rest() {
        let store = Store::new(vec![token("a", "one"), token("b", "two")]);
        store.tokens().find(b"one").unwrap().accepted.fetch_add(7, Ordering::Relaxed);
        let narrowed = Token { signals: vec![Signal::Logs], ..token("a", "one") };
        let replaced = store.replace(vec![narrowed, token("c", "three")], 50);
        let ids = |ids: &[&str]| ids.iter().map(|id| Arc::from(*id)).collect::<Vec<Arc<str>>>();
        let expected = Replaced { added: ids(&["c"]), changed: ids(&["a"]), removed: ids(&["b"]) };
        assert_eq!((replaced, store.generation()), (expected, 1));
        assert_eq!(store.replace(vec![token("c", "three")], 90).removed, ids(&["a"]));
        let known = store.tokens().find(b"three").unwrap();
        assert_eq!(known.since_ms, 50, "not changed since");
        assert!(store.tokens().find(b"one").is_none());
    }

    #[derive(Debug)]
    struct Fixed(Option<Result<Vec<Token>, String>>);

    impl File<Vec<Token>> for Fixed {
        fn changed(&self) -> Option<Result<Vec<Token>, String>> {
            self.0.clone()
        }
    }

    #[test]
    fn a_broken_file_is_counted_and_leaves_the_former_tokens_good() {
        let store = Store::new(vec![token("a", "one")]);
        assert_eq!(reload(&Fixed(None), &store, 1), None);
        assert_eq!(reload(&Fixed(Some(Err("line 3".into()))), &store, 1), Some(Err("line 3".into())));
        assert!(store.tokens().find(b"one").is_some());
        assert_eq!((store.generation(), store.refused.load(Ordering::Relaxed), store.reloads.load(Ordering::Relaxed)), (0, 1, 0));
    }
}
