//! The keys of who may send, and whose messages are.

use std::path::PathBuf;

use crate::config::key::Key;
use crate::config::rule;
use crate::config::table::{choices, section};

section! {
    /// Who may send; see docs/gateway.md.
    Auth {
        /// The file of the tokens that producers show, hashed. It is read again when it changes; a file with a mistake is refused then
        /// and leaves those before it good, but at a start it is fatal. `null`: nobody is asked.
        tokens_file: Option<PathBuf> = Key::path("null").or_null();
        /// The message header with a producer's token, in any case: `Bearer TOKEN`, or the token alone. Dead letters have
        /// `[redacted by openwit-ingest]` in its place.
        header: String = Key::text("authorization", rule::HEADER);
        /// How often is looked whether the token file has changed.
        reload_interval_ms: u64 = Key::number("5000", 10, 3_600_000, "ms")
            .too_small("the file is read needlessly often")
            .too_large("a token that was taken back stays good for this long");
    }
}

section! {
    /// Whose messages are; see docs/gateway.md. Where tenants are told apart, one's messages are no duplicates of another's.
    Tenants {
        /// What says whose a message is: its `token`, a `header`, or its `topic`. Where header or topic say nothing, a token that is
        /// of one tenant does. `none`: there are no tenants.
        from: TenantSource = Key::choice("none", TenantSource::NAMES);
        /// The message header with the tenant, in any case, for `from: header`.
        header: String = Key::text("openwit-tenant", rule::HEADER);
        /// The position of the tenant among the dot-separated tokens of a topic's name, from 0, for `from: topic`.
        topic_position: Option<usize> = Key::number("null", 0, 248, "tokens").or_null();
        /// Whose messages are of which nothing says so. `null`: they are rejected.
        default: Option<String> = Key::text("null", rule::TENANT).or_null();
    }
}

section! {
    /// How much may be sent; see docs/gateway.md.
    Quotas {
        /// The file of what tenants and topics may send. It is read again when it changes; a file with a mistake is refused then
        /// and leaves the former in force, but at a start it is fatal. `null`: any amount.
        file: Option<PathBuf> = Key::path("null").or_null();
        /// How often is looked whether the file has changed.
        reload_interval_ms: u64 = Key::number("5000", 10, 3_600_000, "ms")
            .too_small("the file is read needlessly often")
            .too_large("new limits count late");
    }
}

choices! {
    /// Where the tenant of a message comes from.
    TenantSource {
        /// There are no tenants.
        None = "none",
        /// The token.
        Token = "token",
        /// A header.
        Header = "header",
        /// The topic's name.
        Topic = "topic",
    }
}
