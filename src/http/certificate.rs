//! Provides the certificate and the key for TLS: reads them from the files of the owner, or generates and stores them.
//! Reports problems in words that the owner can act on.
//!
//! With --tls-self-signed there are two certificates: one of this machine, and one of the authority that signed the
//! first. The key of the authority is discarded at once, so the authority cannot sign anything else. A phone that
//! trusts the authority therefore trusts only this machine.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use pem_rfc7468::LineEnding;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use x509_cert::der::Decode;

use crate::base::{foreign_file, limits};
use crate::config::Tls;

/// Reasons why there is no usable certificate for TLS.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The file contains no certificate.
    #[error("{} contains no certificate: expected PEM, `-----BEGIN CERTIFICATE-----`", path.display())]
    NoCertificate {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file contains no usable private key.
    #[error(
        "{} contains no private key that can be used: expected PEM, `-----BEGIN PRIVATE KEY-----`, without a passphrase",
        path.display()
    )]
    NoKey {
        /// Path of the file.
        path: PathBuf,
    },
    /// Certificate and key cannot be used together.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// Path of the certificate's file.
        path: PathBuf,
        /// The reason, for example that the certificate is malformed or that the key does not fit it.
        reason: String,
    },
    /// A self-signed certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A self-signed certificate cannot be stored.
    #[error("cannot store the certificate in {}: {source}. Choose a writable directory with --state-path", path.display())]
    Store {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

/// Certificate and key for TLS, and warnings about them.
pub struct Certificate {
    /// The certificate of this machine first, then its issuers.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key of the first certificate.
    pub key: PrivateKeyDer<'static>,
    /// Path of the certificate's file.
    pub path: PathBuf,
    /// Time of expiry in seconds since 1970; `None` if the certificate cannot be parsed.
    pub expires_s: Option<u64>,
    /// Warnings for the owner.
    pub findings: Vec<String>,
}

/// Reads the certificate that `tls` selects. A self-signed certificate is first generated if it is missing or expires
/// soon. It is made for `names`, which are host names and IP addresses. `now_s` is the current time in seconds since
/// 1970.
///
/// # Errors
/// Returns a [`CertificateError`] if there is no usable certificate.
pub fn obtain(tls: &Tls, names: &[String], now_s: u64) -> Result<Certificate, CertificateError> {
    if let Tls::SelfSigned { directory } = tls {
        let path = directory.join(SELF_SIGNED);
        let is_usable = match fs::exists(&path) {
            Ok(true) => !read(tls, names, now_s)?.expires_soon(now_s),
            _ => false,
        };
        if !is_usable {
            make(directory, names, now_s)?;
            let authority = directory.join(SELF_SIGNED_AUTHORITY);
            log::info!(
                "TLS: made a self-signed certificate, {}. To avoid browser warnings, install {} on your devices",
                path.display(),
                authority.display()
            );
        }
    }
    read(tls, names, now_s)
}

/// Reads the certificate that `tls` selects. Never generates a certificate.
///
/// # Errors
/// Returns a [`CertificateError`] if there is no usable certificate.
pub fn read(tls: &Tls, names: &[String], now_s: u64) -> Result<Certificate, CertificateError> {
    let (cert_path, key_path) = match tls {
        Tls::Files { cert, key } => (cert.clone(), key.clone()),
        Tls::SelfSigned { directory } => (directory.join(SELF_SIGNED), directory.join(SELF_SIGNED)),
    };
    let (cert_text, _) = read_file(&cert_path)?;
    let (key_text, key_mode) = read_file(&key_path)?;
    let chain = CertificateDer::pem_slice_iter(&cert_text).collect::<Result<Vec<_>, _>>();
    let Some(chain) = chain.ok().filter(|chain| !chain.is_empty()) else {
        return Err(CertificateError::NoCertificate { path: cert_path });
    };
    let Ok(key) = PrivateKeyDer::from_pem_slice(&key_text) else {
        return Err(CertificateError::NoKey { path: key_path });
    };
    let mut findings = Vec::new();
    if key_mode & 0o004 != 0 {
        findings.push(format!(
            "every user of this machine can read the private key in {}: run chmod o-r",
            key_path.display()
        ));
    }
    let expires_s = chain.first().and_then(expiry);
    let mut certificate = Certificate { chain, key, path: cert_path, expires_s, findings };
    certificate.note_expiry(now_s);
    if matches!(tls, Tls::SelfSigned { .. }) {
        certificate.note_names(names);
    }
    Ok(certificate)
}

/// Name of the file with the self-signed certificate, its authority and its key. The file is in the state directory.
pub const SELF_SIGNED: &str = "self-signed.pem";
/// Name of the file with the authority only, for phones and `curl --cacert`. The file is in the state directory.
pub const SELF_SIGNED_AUTHORITY: &str = "self-signed-ca.pem";

impl Certificate {
    /// Returns the number of full days until the certificate expires, or `None` if the certificate cannot be parsed.
    pub fn days_left(&self, now_s: u64) -> Option<u64> {
        Some(self.expires_s?.saturating_sub(now_s) / SECONDS_OF_DAY)
    }

    /// Returns true if the certificate has expired or will expire soon.
    fn expires_soon(&self, now_s: u64) -> bool {
        self.days_left(now_s).is_some_and(|days| days < limits::CERTIFICATE_DAYS_LOW)
    }

    fn note_expiry(&mut self, now_s: u64) {
        let Some(days) = self.days_left(now_s) else { return };
        if self.expires_s.is_some_and(|expires_s| expires_s <= now_s) {
            self.findings.push(format!("{} has expired: browsers refuse it", self.path.display()));
        } else if self.expires_soon(now_s) {
            self.findings.push(format!("{} expires in {days} days", self.path.display()));
        }
    }

    /// Adds a warning about the names that the certificate does not contain. A new address of the machine does not
    /// cause a new certificate, because the user would then have to install a new authority on each phone.
    fn note_names(&mut self, names: &[String]) {
        let Some(first) = self.chain.first() else { return };
        let Ok(parsed) = ParsedCertificate::try_from(first) else { return };
        let is_missing = |name: &&String| {
            let name = ServerName::try_from(name.as_str());
            name.is_ok_and(|name| verify_server_name(&parsed, &name).is_err())
        };
        let missing: Vec<&str> = names.iter().filter(is_missing).map(String::as_str).collect();
        if !missing.is_empty() {
            self.findings.push(format!(
                "{} is not valid for {}: delete the file to get a new certificate at the next start or SIGHUP",
                self.path.display(),
                missing.join(", ")
            ));
        }
    }
}

const SECONDS_OF_DAY: u64 = 24 * 3600;

fn expiry(certificate: &CertificateDer<'_>) -> Option<u64> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
}

/// Returns the bytes and the mode bits of a file.
fn read_file(path: &Path) -> Result<(Vec<u8>, u32), CertificateError> {
    let read = || {
        let file = foreign_file::open_configured(path)?;
        let mode = file.metadata()?.mode();
        Ok((foreign_file::read_bounded(file, limits::TLS_FILE_BYTES_MAX)?, mode))
    };
    read().map_err(|source| CertificateError::Unreadable { path: path.to_owned(), source })
}

/// Generates a key, a certificate and the authority that signs it. Stores them in `directory`.
fn make(directory: &Path, names: &[String], now_s: u64) -> Result<(), CertificateError> {
    let machine = names.first().map_or("camera", String::as_str);
    let authority = authority(machine, now_s)?;
    let key = KeyPair::generate()?;
    let certificate = leaf(machine, names, now_s)?.signed_by(&key, &authority)?;
    let store = |path: PathBuf, mode: u32, parts: &[(&str, &[u8])]| {
        let written = pem(parts).and_then(|text| write_whole(&path, text.as_bytes(), mode));
        written.map_err(|source| CertificateError::Store { path, source })
    };
    let shown = directory.to_owned();
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| CertificateError::Store { path: shown, source })?;
    let signer = ("CERTIFICATE", authority.as_ref().der().as_ref());
    store(directory.join(SELF_SIGNED_AUTHORITY), 0o644, &[signer])?;
    let ours = ("CERTIFICATE", certificate.der().as_ref());
    store(directory.join(SELF_SIGNED), 0o600, &[ours, signer, ("PRIVATE KEY", &key.serialize_der())])
}

/// Generates an authority for one signature. Its private key exists only in the returned value and is dropped with it.
fn authority(machine: &str, now_s: u64) -> Result<CertifiedIssuer<'static, KeyPair>, CertificateError> {
    let key = KeyPair::generate()?;
    // The mark makes the name of the authority unique. This is needed because a phone may still trust an earlier
    // authority of this machine.
    let mark: String = key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut params = named(format!("streaming-server on {machine} {mark}"), now_s)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(CertifiedIssuer::self_signed(params, key)?)
}

/// Returns the parameters of the machine's certificate. It meets the requirements of iOS: all names in the SAN
/// extension, the usage `serverAuth`, and a validity of at most 825 days (support.apple.com/103769).
fn leaf(machine: &str, names: &[String], now_s: u64) -> Result<CertificateParams, CertificateError> {
    let mut params = named(machine.to_owned(), now_s)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    Ok(params)
}

/// Returns certificate parameters with this common name. The validity begins one day ago, for devices whose clocks are
/// behind.
fn named(common_name: String, now_s: u64) -> Result<CertificateParams, CertificateError> {
    let now_s = now_s.max(PLAUSIBLE_S);
    let date = |unix_s: u64| {
        let seconds = i64::try_from(unix_s).unwrap_or(i64::MAX);
        time::OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| rcgen::Error::Time)
    };
    let mut params = CertificateParams::default();
    params.not_before = date(now_s - SECONDS_OF_DAY)?;
    params.not_after = date(now_s + limits::SELF_SIGNED_DAYS * SECONDS_OF_DAY)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

/// Earliest time, in seconds since 1970, that is used as the current time. A machine without a battery-backed clock
/// starts in 1970, so its new certificate would already have expired.
const PLAUSIBLE_S: u64 = 1_790_000_000;

fn pem(parts: &[(&str, &[u8])]) -> io::Result<String> {
    let encode = |(label, bytes): &(&str, &[u8])| pem_rfc7468::encode_string(label, LineEnding::LF, bytes);
    parts.iter().map(encode).collect::<Result<String, _>>().map_err(io::Error::other)
}

/// Replaces the file atomically. The new file is created with `mode`, so a private key is never readable by other
/// users.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let partial = path.with_extension(format!("{}.new", std::process::id()));
    // Removes the file that a killed process with the same id may have left behind. The error is ignored, because
    // usually there is no such file.
    let _ = fs::remove_file(&partial);
    let written = foreign_file::create_new(&partial, mode).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    });
    if written.is_err() {
        // This fails if the file was not created, so the error is ignored.
        let _ = fs::remove_file(&partial);
    }
    written
}
