//! How clients of the brokers log in and encrypt: what belongs together, and what is better not done.

use super::Relations;
use crate::config::keys::SaslMechanism;

impl Relations<'_> {
    pub(super) fn security(&mut self) {
        let security = &self.config.ingestion.kafka.security;
        let at = |name: &str| format!("ingestion.kafka.security.{name}");
        let protocol = security.protocol.name();
        self.login();
        let tls = &security.tls;
        if security.protocol.has_tls() {
            if tls.certificate_location.is_some() != tls.key_location.is_some() {
                let (missing, other) = if tls.key_location.is_none() {
                    ("tls.key_location", "certificate_location")
                } else {
                    ("tls.certificate_location", "key_location")
                };
                self.refuse(&[&at(missing)], format!("must be given with {other}: a certificate and its key belong together"));
            }
            if !tls.verify_certificate {
                self.warn(&[&at("tls.verify_certificate")], "anyone on the way to the brokers can read and change the data");
            } else if !tls.verify_hostname {
                self.warn(&[&at("tls.verify_hostname")], "any certificate of the same authority passes for a broker's");
            }
        } else {
            for name in
                ["ca_location", "certificate_location", "key_location", "key_password", "verify_certificate", "verify_hostname"]
            {
                self.warn_unused(&at(&format!("tls.{name}")), &format!("protocol {protocol} does not encrypt"));
            }
        }
    }

    /// Each mechanism has what it logs in with, and nothing else is given.
    fn login(&mut self) {
        const PASSWORD: [&str; 2] = ["username", "password"];
        const TOKEN: [&str; 3] = ["oauthbearer.token_endpoint_url", "oauthbearer.client_id", "oauthbearer.client_secret"];
        const TOKEN_MORE: [&str; 2] = ["oauthbearer.scope", "oauthbearer.ca_location"];
        let security = &self.config.ingestion.kafka.security;
        let at = |name: &str| format!("ingestion.kafka.security.sasl.{name}");
        let (protocol, mechanism) = (security.protocol.name(), security.sasl.mechanism);
        if !security.protocol.has_sasl() {
            for name in ["mechanism"].iter().chain(&PASSWORD).chain(&TOKEN).chain(&TOKEN_MORE) {
                self.warn_unused(&at(name), &format!("protocol {protocol} does not log in"));
            }
            return;
        }
        let is_token = mechanism == SaslMechanism::Oauthbearer;
        let (sasl, from) = (&security.sasl, &security.sasl.oauthbearer);
        let has_token = [from.token_endpoint_url.is_some(), from.client_id.is_some(), from.client_secret.is_some()];
        let has_password = [sasl.username.is_some(), sasl.password.is_some()];
        let needed: Vec<(&str, bool)> = match is_token {
            true => TOKEN.into_iter().zip(has_token).collect(),
            false => PASSWORD.into_iter().zip(has_password).collect(),
        };
        let unused = if is_token { PASSWORD.to_vec() } else { [&TOKEN[..], &TOKEN_MORE].concat() };
        for (name, is_there) in needed {
            if !is_there {
                self.refuse(&[&at(name)], format!("must be given for protocol {protocol} and mechanism {}", mechanism.name()));
            }
        }
        for name in unused {
            self.warn_unused(&at(name), &format!("mechanism {} does not log in with it", mechanism.name()));
        }
        let endpoint = security.sasl.oauthbearer.token_endpoint_url.as_deref();
        if is_token && endpoint.is_some_and(|url| !url.starts_with("https://")) {
            self.warn(&[&at(TOKEN[0])], "not https: anyone on the way can read the client's secret");
        }
        let sends_secret = is_token || mechanism == SaslMechanism::Plain;
        if sends_secret && !security.protocol.has_tls() {
            let what = if is_token { "token" } else { "password" };
            self.warn(
                &[&at("mechanism")],
                format!("anyone on the way to the brokers can read the {what}: take protocol sasl_ssl"),
            );
        }
    }
}
