//! One form for names of attributes: upper and lower case, what stands between words, former semantic conventions.

use std::borrow::Cow;

use super::{Case, Names, Separators};

/// Attributes that OpenTelemetry renamed, former name first. Only those whose value means the same under both names, and whose new name
/// does not depend on anything else (`net.peer.name` is the server of a client's span, the client of a server's: it stays).
pub const RENAMES: [(&str, &str); 40] = [
    ("http.method", "http.request.method"),
    ("http.status_code", "http.response.status_code"),
    ("http.url", "url.full"),
    ("http.scheme", "url.scheme"),
    ("http.client_ip", "client.address"),
    ("http.user_agent", "user_agent.original"),
    ("http.request_content_length", "http.request.body.size"),
    ("http.response_content_length", "http.response.body.size"),
    ("http.resend_count", "http.request.resend_count"),
    ("net.host.name", "server.address"),
    ("net.host.port", "server.port"),
    ("net.protocol.name", "network.protocol.name"),
    ("net.protocol.version", "network.protocol.version"),
    ("net.sock.host.addr", "network.local.address"),
    ("net.sock.host.port", "network.local.port"),
    ("net.sock.peer.addr", "network.peer.address"),
    ("net.sock.peer.port", "network.peer.port"),
    ("db.name", "db.namespace"),
    ("db.system", "db.system.name"),
    ("db.statement", "db.query.text"),
    ("db.operation", "db.operation.name"),
    ("db.sql.table", "db.collection.name"),
    ("db.mongodb.collection", "db.collection.name"),
    ("db.cassandra.table", "db.collection.name"),
    ("db.cosmosdb.container", "db.collection.name"),
    ("messaging.operation", "messaging.operation.type"),
    ("messaging.destination", "messaging.destination.name"),
    ("messaging.message_id", "messaging.message.id"),
    ("messaging.conversation_id", "messaging.message.conversation_id"),
    ("messaging.client_id", "messaging.client.id"),
    ("messaging.kafka.consumer.group", "messaging.consumer.group.name"),
    ("messaging.kafka.destination.partition", "messaging.destination.partition.id"),
    ("messaging.kafka.message.offset", "messaging.kafka.offset"),
    ("deployment.environment", "deployment.environment.name"),
    ("telemetry.auto.version", "telemetry.distro.version"),
    ("code.filepath", "code.file.path"),
    ("code.lineno", "code.line.number"),
    ("code.column", "code.column.number"),
    ("faas.execution", "faas.invocation_id"),
    ("faas.id", "cloud.resource_id"),
];

impl Names {
    /// `name` in the form that case and separators ask for.
    pub fn normal<'n>(&self, name: &'n str) -> Cow<'n, str> {
        let is_changed = |c: char| self.changes(c);
        if !name.chars().any(is_changed) {
            return Cow::Borrowed(name);
        }
        let mut out = String::with_capacity(name.len() + 4);
        let mut before: Option<char> = None;
        let mut rest = name.chars().peekable();
        while let Some(c) = rest.next() {
            if self.case == Case::Snake && c.is_ascii_uppercase() && begins_word(before, rest.peek().copied()) {
                out.push(self.separators.between());
            }
            before = Some(c);
            match (self.case, self.separators) {
                (_, separators) if separators != Separators::Keep && is_separator(c) => out.push(separators.between()),
                (Case::Lower | Case::Snake, _) => out.push(c.to_ascii_lowercase()),
                _ => out.push(c),
            }
        }
        Cow::Owned(out)
    }

    fn changes(&self, c: char) -> bool {
        let is_case = self.case != Case::Keep && c.is_ascii_uppercase();
        let is_separated = self.separators != Separators::Keep && is_separator(c) && c != self.separators.between();
        is_case || is_separated
    }
}

impl Separators {
    fn between(self) -> char {
        match self {
            Separators::Dot => '.',
            // What words of snake case have between them.
            Separators::Underscore | Separators::Keep => '_',
        }
    }
}

fn is_separator(c: char) -> bool {
    matches!(c, '.' | '_' | '-' | '/' | ':' | ' ' | '\t')
}

/// True where an upper-case letter begins a word: after a lower-case letter or digit, and the last of several before a lower-case one
/// (`HTTPServer` is `http_server`).
fn begins_word(before: Option<char>, after: Option<char>) -> bool {
    before.is_some_and(|before| {
        let ends_acronym = before.is_ascii_uppercase() && after.is_some_and(|after| after.is_ascii_lowercase());
        before.is_ascii_lowercase() || before.is_ascii_digit() || ends_acronym
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CASES: [Case; 3] = [Case::Keep, Case::Lower, Case::Snake];
    const SEPARATORS: [Separators; 3] = [Separators::Keep, Separators::Dot, Separators::Underscore];

    #[test]
    fn names_come_into_the_form_that_is_asked_for() {
        for (case, separators, name, expected) in [
            (Case::Keep, Separators::Keep, "Order-ID x", "Order-ID x"),
            (Case::Lower, Separators::Keep, "Order-ID", "order-id"),
            (Case::Snake, Separators::Keep, "orderId", "order_id"),
            (Case::Snake, Separators::Keep, "HTTPServer2Port", "http_server2_port"),
            (Case::Snake, Separators::Dot, "order-lineId", "order.line.id"),
            (Case::Keep, Separators::Dot, "a_b/c:d e", "a.b.c.d.e"),
            (Case::Lower, Separators::Underscore, "k8s.Pod-Name", "k8s_pod_name"),
            (Case::Snake, Separators::Underscore, "Order Id", "order_id"),
            (Case::Lower, Separators::Dot, "Überblick", "Überblick"),
        ] {
            let names = Names { case, separators, semantic_conventions: false };
            assert_eq!(names.normal(name), expected, "{case:?} {separators:?}");
        }
    }

    #[test]
    fn no_rename_leads_to_a_name_that_is_renamed() {
        for (index, (old, new)) in RENAMES.iter().enumerate() {
            assert!(RENAMES.iter().all(|(other, _)| other != new), "{new}");
            assert!(RENAMES[..index].iter().all(|(other, _)| other != old), "{old} twice");
        }
    }

    proptest! {
        #[test]
        fn a_name_in_its_form_stays(name in ".{0,20}", case in 0..3usize, separators in 0..3usize) {
            let names = Names { case: CASES[case], separators: SEPARATORS[separators], semantic_conventions: false };
            let once = names.normal(&name).into_owned();
            prop_assert_eq!(names.normal(&once), once.as_str());
        }
    }
}
