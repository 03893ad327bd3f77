//! Who may send, and whose messages are: what each way of telling needs, and what would tell nothing.

use openwit_graphs::wiring;

use super::Relations;
use crate::config::keys::{MessageId, TenantSource};

const QUOTAS: &str = "ingestion.quotas.file";
const TOKENS: &str = "ingestion.auth.tokens_file";
const AUTH_HEADER: &str = "ingestion.auth.header";
const FROM: &str = "ingestion.tenants.from";
const TENANT_HEADER: &str = "ingestion.tenants.header";
const POSITION: &str = "ingestion.tenants.topic_position";
const DEFAULT: &str = "ingestion.tenants.default";

impl Relations<'_> {
    pub(super) fn gateway(&mut self) {
        let (auth, tenants) = (&self.config.ingestion.auth, &self.config.ingestion.tenants);
        let has_tokens = auth.tokens_file.is_some();
        match tenants.from {
            TenantSource::Token if !has_tokens => {
                self.refuse(&[FROM, TOKENS], format!("from: token needs {TOKENS}: nobody shows a token"));
            }
            TenantSource::Topic if tenants.topic_position.is_none() => {
                self.refuse(&[FROM, POSITION], format!("from: topic needs {POSITION}"));
            }
            _ => {}
        }
        let is_same_header = auth.header.eq_ignore_ascii_case(&tenants.header);
        if has_tokens && tenants.from == TenantSource::Header && is_same_header {
            self.refuse(&[TENANT_HEADER, AUTH_HEADER], format!("must not be {AUTH_HEADER}: one header cannot say both"));
        }
        if let MessageId::Header(name) = &self.config.ingestion.kafka.message_id
            && has_tokens
            && name.eq_ignore_ascii_case(&auth.header)
        {
            let message = format!("must not be {AUTH_HEADER}: all messages of a producer would be duplicates of one");
            self.refuse(&["ingestion.kafka.message_id", AUTH_HEADER], message);
        }
        if !has_tokens {
            for key in [AUTH_HEADER, "ingestion.auth.reload_interval_ms"] {
                self.warn_unused(key, "without auth.tokens_file nobody is asked for a token");
            }
        }
        let has_raw_log = wiring::check(&self.config.description()).is_ok_and(|wiring| wiring.has_raw_log());
        if self.config.ingestion.quotas.file.is_some() && has_raw_log {
            let message = "quotas are charged by normalize, which gets each message of the log again at a start where the log stands before it: \
                           put wal_commit behind normalize, or leave the quotas out";
            self.refuse(&[QUOTAS, "graph"], message);
        }
        if self.config.ingestion.quotas.file.is_none() {
            self.warn_unused("ingestion.quotas.reload_interval_ms", "without quotas.file nothing is limited");
        }
        let from = format!("tenants.from is {}", tenants.from.name());
        for (key, needs) in [(TENANT_HEADER, TenantSource::Header), (POSITION, TenantSource::Topic)] {
            if tenants.from != needs {
                self.warn_unused(key, &from);
            }
        }
        if tenants.from == TenantSource::None {
            self.warn_unused(DEFAULT, &from);
        }
    }
}
