//! TLS to PostgreSQL, in the words of libpq's `sslmode`.
//!
//! ```text
//! mode          encrypted              server's certificate
//! disable       never                  -
//! prefer        if the server offers   not looked at
//! require       always                 not looked at
//! verify-full   always                 must lead to a root certificate and name the host
//! ```
//! `verify-ca` is left out: it lets any host with a certificate of the same authority pass, and is never what is meant.
//! OpenSSL, as the Kafka client builds it in already (ADR 0010).

use std::path::{Path, PathBuf};

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use postgres::config::SslMode;
use postgres_openssl::MakeTlsConnector;

use crate::catalog_commit::Error;

/// When a connection is encrypted and what is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server offers it.
    #[default]
    Prefer,
    /// Always encrypted, with whoever answers.
    Require,
    /// Always encrypted, with the host that the certificate names.
    VerifyFull,
}

/// How connections are encrypted.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// When, and what is checked.
    pub mode: Mode,
    /// Root certificates, PEM; `None` takes those of the system. Only `VerifyFull` looks at them.
    pub ca: Option<PathBuf>,
    /// The client's certificate with its chain, PEM, where the server wants one.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM, without a password.
    pub key: Option<PathBuf>,
}

impl Tls {
    pub(super) fn ssl_mode(&self) -> SslMode {
        match self.mode {
            Mode::Disable => SslMode::Disable,
            Mode::Prefer => SslMode::Prefer,
            Mode::Require | Mode::VerifyFull => SslMode::Require,
        }
    }

    /// Reads the certificates; nothing is connected yet.
    pub(super) fn connector(&self) -> Result<MakeTlsConnector, Error> {
        fn refused(path: &Path) -> impl Fn(ErrorStack) -> Error {
            let path = path.to_path_buf();
            move |source| Error::Certificate { path: path.clone(), source }
        }
        let nowhere = Path::new("the TLS library");
        let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(refused(nowhere))?;
        match (&self.ca, self.mode) {
            (Some(ca), _) => builder.set_ca_file(ca).map_err(refused(ca))?,
            // The built-in OpenSSL would look where it was built, not where this system keeps its roots.
            (None, Mode::VerifyFull) => {
                let system = openssl_probe::probe();
                if let Some(file) = &system.cert_file {
                    builder.load_verify_locations(Some(file), None).map_err(refused(file))?;
                }
                for folder in &system.cert_dir {
                    builder.load_verify_locations(None, Some(folder)).map_err(refused(folder))?;
                }
            }
            (None, _) => {}
        }
        if let Some(certificate) = &self.certificate {
            builder.set_certificate_chain_file(certificate).map_err(refused(certificate))?;
        }
        if let Some(key) = &self.key {
            builder.set_private_key_file(key, SslFiletype::PEM).map_err(refused(key))?;
        }
        if self.mode != Mode::VerifyFull {
            builder.set_verify(SslVerifyMode::NONE);
        }
        let mut connector = MakeTlsConnector::new(builder.build());
        let verifies = self.mode == Mode::VerifyFull;
        connector.set_callback(move |connection, _host| {
            connection.set_verify_hostname(verifies);
            Ok(())
        });
        Ok(connector)
    }
}

/// Whether a connection failed by its encryption. The client tells it in words only.
pub(super) fn is_about(error: &postgres::Error) -> bool {
    error.to_string().starts_with("error performing TLS handshake")
}
