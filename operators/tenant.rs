//! Whose a message is. A tenant's name is checked once, here: whoever holds a `Tenant` may put it into a path, a label or a query.

use std::fmt;
use std::sync::Arc;

use twox_hash::XxHash3_64;

/// Characters of a tenant's name: a label of metrics and a value in rows, so kept short.
pub const NAME_CHARS_MAX: usize = 64;

/// The name of a tenant: 1 to 64 of a-z A-Z 0-9 . _ -, not beginning with a dot. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant {
    name: Arc<str>,
    /// Of the name: what tells apart the dedup keys of two tenants.
    seed: u64,
}

/// Why a text is not the name of a tenant. It does not hold the text, which may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {NAME_CHARS_MAX} of a-z A-Z 0-9 . _ - and not begin with a dot")]
pub struct Error;

impl Tenant {
    /// The tenant of this name.
    pub fn new(name: &str) -> Result<Self, Error> {
        Self::of_bytes(name.as_bytes())
    }

    /// The same of bytes that come from a producer.
    pub fn of_bytes(name: &[u8]) -> Result<Self, Error> {
        let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let is_name = (1..=NAME_CHARS_MAX).contains(&name.len()) && name.iter().all(is_allowed) && name[0] != b'.';
        let name = std::str::from_utf8(name).ok().filter(|_| is_name).ok_or(Error)?;
        Ok(Tenant { name: name.into(), seed: XxHash3_64::oneshot(name.as_bytes()) })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_that_a_path_a_label_or_a_query_must_not_have_is_a_tenants() {
        let long = "x".repeat(NAME_CHARS_MAX);
        for name in ["a", "Shop-1", "eu.shop_2", "-", "_", "0", "a..b", &long] {
            assert_eq!(Tenant::new(name).map(|tenant| tenant.to_string()), Ok(name.to_owned()));
        }
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "../etc",
            "a/b",
            "a\\b",
            "a b",
            "a\"",
            "a'; drop table files; --",
            "a\0",
            "a\n",
            "münchen",
            "%2e%2e",
            &format!("{long}x"),
        ] {
            assert_eq!(Tenant::new(name), Err(Error), "{name:?}");
        }
        assert_eq!(Tenant::of_bytes(&[0xff]), Err(Error));
    }
}
