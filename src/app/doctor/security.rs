//! Checks the token and the certificate for `doctor`, and opens the TLS connection for `healthcheck`.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use super::{Finding, Verdict};
use crate::app::server::security;
use crate::base::clock::Moment;
use crate::config::{Config, Tls};
use crate::http::{TlsKeys, certificate};

/// Checks if the server requires a token, and if the token crosses the network unencrypted.
pub(super) fn token(config: &Config) -> Finding {
    let plain = config.http_plain.is_some_and(|address| !address.ip().is_loopback());
    let is_reachable = plain || !config.http.ip().is_loopback();
    let (verdict, finding) = match (&config.token, is_reachable) {
        (Some(_), true) if config.tls.is_none() || plain => (
            Verdict::Warn,
            "required; it crosses the network unencrypted: see --tls-self-signed and --tls-cert",
        ),
        (Some(_), _) => (Verdict::Ok, "required"),
        (None, false) => (Verdict::Ok, "none; only this machine can connect"),
        (None, true) => {
            let http = config.http;
            let advice = "can watch and record; set one with --token-file";
            return (Verdict::Warn, format!("none: anyone who can reach {http} {advice}"));
        }
    };
    (verdict, finding.to_owned())
}

/// Checks if the certificate and its key can be used, and when the certificate expires. Never generates a certificate.
pub(super) fn certificate(config: &Config, tls: &Tls) -> Finding {
    if let Tls::SelfSigned { directory } = tls
        && !directory.join(certificate::SELF_SIGNED).exists()
    {
        return (Verdict::Ok, format!("the server will generate a certificate in {}", directory.display()));
    }
    let now_s = Moment::now().unix_s;
    let found = match certificate::read(tls, &security::names(config), now_s) {
        Ok(found) => found,
        Err(error) => return (Verdict::Fail, error.to_string()),
    };
    let shown = found.path.display().to_string();
    let days = found.days_left(now_s);
    let findings = found.findings.join("; ");
    match (TlsKeys::new(found), days) {
        (Err(error), _) => (Verdict::Fail, error.to_string()),
        (Ok(_), _) if !findings.is_empty() => (Verdict::Warn, findings),
        (Ok(_), Some(days)) => (Verdict::Ok, format!("{shown} is valid for {days} more days")),
        (Ok(_), None) => (Verdict::Warn, format!("{shown} has no readable expiry date")),
    }
}

/// Opens a TLS connection over `socket` to the server on this machine. The certificate is not verified: it need not
/// name the loopback address, and no secret is sent over the connection.
///
/// # Errors
/// Returns an error if TLS cannot be set up. The handshake runs later: if it fails, the first read or write returns the
/// error.
pub(super) fn over_tls(socket: TcpStream) -> io::Result<impl Read + Write> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    let name = ServerName::from(socket.peer_addr()?.ip());
    let connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, socket))
}

/// Accepts every certificate. The server must still prove by a signature that it has the private key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
