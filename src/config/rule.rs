//! The rules that texts of the configuration keep.

use openwit_operators::tenant::Tenant;

use super::key::Rule;

/// Anything but nothing.
pub(super) const TEXT: Rule = Rule { says: "text that is not empty", holds: |text| !text.is_empty() };

/// Any text.
pub(super) const ANY: Rule = Rule { says: "text", holds: |_| true };

/// A stage of a graph.
pub(super) const STAGE: Rule = Rule {
    says: "1 to 64 of a-z A-Z 0-9 _ -",
    holds: |text| {
        (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    },
};

/// An output of a stage.
pub(super) const OUTPUT: Rule = Rule {
    says: "stage or stage.output",
    holds: |text| {
        let (stage, output) = text.split_once('.').unwrap_or((text, "any"));
        (STAGE.holds)(stage) && (STAGE.holds)(output)
    },
};

/// A name that is safe as one part of a path and as a label.
pub(super) const NAME: Rule = Rule { says: "1 to 128 of a-z A-Z 0-9 . _ - and not begin with a dot", holds: is_name };

/// The name of a tenant.
pub(super) const TENANT: Rule =
    Rule { says: "1 to 64 of a-z A-Z 0-9 . _ - and not begin with a dot", holds: |text| Tenant::new(text).is_ok() };

/// The name of a header that this program reads and that says nothing else to it.
pub(super) const HEADER: Rule = Rule {
    says: "a header's name: 1 to 128 of a-z A-Z 0-9 . _ -, none of content-type, content-encoding, ce_*, openwit.*",
    holds: |text| {
        let name = text.to_ascii_lowercase();
        let is_taken = ["content-type", "content-encoding"].contains(&name.as_str());
        is_name(text) && !is_taken && !name.starts_with("ce_") && !name.starts_with("openwit.")
    },
};

/// What is put before a generated index name.
pub(super) const INDEX_PREFIX: Rule = Rule {
    says: "empty, or 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit",
    holds: |text| {
        let is_lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        let is_begun_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        text.is_empty() || (text.len() <= 64 && is_lower && is_begun_well && is_name(text))
    },
};

/// The name of a schema of PostgreSQL.
pub(super) const SCHEMA: Rule = Rule {
    says: "1 to 63 of a-z 0-9 _ and begin neither with a digit nor with pg_",
    holds: |text| {
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let is_plain = (1..=63).contains(&text.len()) && text.bytes().all(is_allowed);
        is_plain && !text.starts_with(|first: char| first.is_ascii_digit()) && !text.starts_with("pg_")
    },
};

/// The address of a broker.
pub(super) const BROKER: Rule = Rule {
    says: "host or host:port",
    holds: |text| {
        let address = text.rsplit("://").next().unwrap_or(text);
        is_host_and_port(address, false)
    },
};

/// A glob over topic names.
pub(super) const TOPIC_GLOB: Rule = Rule {
    says: "a topic name or glob: a-z A-Z 0-9 . _ - with * for one dot-separated token or a part of it, and ** for any rest",
    holds: |text| is_topic(text, b"._-*") && text.split('.').all(|token| token == "**" || !token.contains("**")),
};

/// The name of one topic.
pub(super) const TOPIC: Rule = Rule {
    says: "a topic name: 1 to 249 of a-z A-Z 0-9 . _ -",
    holds: |text| is_topic(text, b"._-") && text != "." && text != "..",
};

/// The address of a Flight endpoint.
pub(super) const ENDPOINT: Rule = Rule {
    says: "a URL like http://host:port or https://host:port",
    holds: |text| {
        let address = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        address.is_some_and(|address| is_host_and_port(address.trim_end_matches('/'), true))
    },
};

/// The address of an object store.
pub(super) const URL: Rule = Rule {
    says: "a URL that begins with http:// or https://",
    holds: |text| {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace))
    },
};

/// An address to listen on.
pub(super) const IP_ADDRESS: Rule =
    Rule { says: "an IP address like 127.0.0.1, 0.0.0.0 or ::", holds: |text| text.parse::<std::net::IpAddr>().is_ok() };

/// The name of an S3 bucket.
pub(super) const BUCKET: Rule = Rule {
    says: "a bucket name: 3 to 63 of a-z 0-9 . -",
    holds: |text| {
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        (3..=63).contains(&text.len()) && text.bytes().all(is_allowed)
    },
};

/// The name of a container of Azure.
pub(super) const CONTAINER: Rule = Rule {
    says: "a container name: 3 to 63 of a-z 0-9 -",
    holds: |text| {
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (3..=63).contains(&text.len()) && text.bytes().all(is_allowed)
    },
};

/// The front of every object's path; may be empty.
pub(super) const OBJECT_PREFIX: Rule = Rule {
    says: "empty, or names joined by / without one at either end, each of a-z A-Z 0-9 . _ - = and not begin with a dot",
    holds: |text| text.is_empty() || text.split('/').all(|part| is_name(&part.replace('=', "_"))),
};

/// Where a message's id comes from.
pub(super) const MESSAGE_ID: Rule = Rule {
    says: "payload, kafka_key or header:NAME",
    holds: |text| matches!(text, "payload" | "kafka_key") || text.strip_prefix("header:").is_some_and(|name| !name.is_empty()),
};

fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=128).contains(&text.len()) && text.bytes().all(is_allowed) && !text.starts_with('.')
}

fn is_topic(text: &str, marks: &[u8]) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || marks.contains(&byte);
    (1..=249).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// `host`, `host:port` or `[v6]:port`.
fn is_host_and_port(text: &str, needs_port: bool) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && (!host.contains(':') || host.ends_with(']')) => (host, Some(port)),
        _ => (text, None),
    };
    let is_port = port.map_or(!needs_port, |port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let is_host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inside) => inside.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)),
    };
    is_port && is_host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_hold_for_what_they_say() {
        for (rule, text, expected) in [
            (BROKER, "ns1005571.ip-147-135-65.us:9092", true),
            (BROKER, "localhost", true),
            (BROKER, "SASL_SSL://broker-1:9093", true),
            (BROKER, "[::1]:9092", true),
            (BROKER, "host:port", false),
            (BROKER, "host:0", false),
            (BROKER, "a b:9092", false),
            (BROKER, ":9092", false),
            (ENDPOINT, "http://10.0.0.1:8815", true),
            (ENDPOINT, "https://storage-0.storage:8815/", true),
            (ENDPOINT, "http://storage", false),
            (ENDPOINT, "storage:8815", false),
            (TOPIC_GLOB, "v6.qtw.traces.*.*", true),
            (TOPIC_GLOB, "v6.**", true),
            (TOPIC_GLOB, "a.**.z", true),
            (TOPIC_GLOB, "log-*", true),
            (TOPIC_GLOB, "a.b**", false),
            (TOPIC_GLOB, "^v6\\..*", false),
            (INDEX_PREFIX, "auto_", true),
            (INDEX_PREFIX, "Auto", false),
            (INDEX_PREFIX, "_a", false),
            (INDEX_PREFIX, "", true),
            (SCHEMA, "openwit", true),
            (SCHEMA, "pg_x", false),
            (SCHEMA, "1a", false),
            (TOPIC, "..", false),
            (NAME, "node-1", true),
            (NAME, "../etc", false),
            (NAME, "..", false),
            (NAME, "", false),
            (OBJECT_PREFIX, "", true),
            (OBJECT_PREFIX, "env=prod/telemetry", true),
            (OBJECT_PREFIX, "/absolute", false),
            (OBJECT_PREFIX, "a/../b", false),
            (OBJECT_PREFIX, "a//b", false),
            (BUCKET, "Open_Wit", false),
            (MESSAGE_ID, "header:id", true),
            (MESSAGE_ID, "header:", false),
            (IP_ADDRESS, "localhost", false),
            (TENANT, "shop-1.eu", true),
            (TENANT, "..", false),
            (TENANT, "a/b", false),
            (TENANT, "", false),
            (HEADER, "Authorization", true),
            (HEADER, "x-tenant", true),
            (HEADER, "Content-Type", false),
            (HEADER, "ce_source", false),
            (HEADER, "openwit.replay.offset", false),
            (HEADER, "a b", false),
        ] {
            assert_eq!((rule.holds)(text), expected, "{text:?} {}", rule.says);
        }
    }
}
