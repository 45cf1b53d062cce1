//! The certificate and key that TLS serves: read from the owner's files, or made here and kept in one. Says what is
//! wrong with them in words an owner can act on; serves nothing.
//!
//! A self-signed certificate is really two: one for this machine, and an authority that signed it, whose key is
//! thrown away at once. A phone that is told to trust the authority trusts this one machine and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
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

use crate::base::limits;
use crate::config::Tls;

/// Why there is nothing to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file without a certificate.
    #[error("{} holds no certificate: expected PEM, `-----BEGIN CERTIFICATE-----`", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A file without a key.
    #[error(
        "{} holds no private key that can be used: expected PEM, `-----BEGIN PRIVATE KEY-----`, without a passphrase",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The two cannot be served.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why: broken, or not a pair.
        reason: String,
    },
    /// Our own certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Our own certificate cannot be kept.
    #[error("cannot keep the certificate in {}: {source}; say where with --state-path", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What TLS serves, and what the owner should know of it.
pub struct Certificate {
    /// This machine's first, then those it hangs on.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Where it lies.
    pub path: PathBuf,
    /// Seconds since 1970 at which it lapses; `None` when it does not say so readably.
    pub expires_s: Option<u64>,
    /// What is not as it should be, in words.
    pub findings: Vec<String>,
}

/// Reads the certificate of `tls`; one of our own is made for `names` (names and addresses) when there is none, or
/// when it is about to lapse. `now_s`: seconds since 1970.
///
/// # Errors
/// See [`CertificateError`].
pub fn obtain(tls: &Tls, names: &[String], now_s: u64) -> Result<Certificate, CertificateError> {
    if let Tls::SelfSigned { directory } = tls {
        let path = directory.join(SELF_SIGNED);
        let is_good = match fs::exists(&path) {
            Ok(true) => !is_ending(&read(tls, names, now_s)?, now_s),
            _ => false,
        };
        if !is_good {
            make(directory, names, now_s)?;
            let authority = directory.join(SELF_SIGNED_AUTHORITY);
            log::info!(
                "TLS: made a certificate, {}; phones may be told to trust {}",
                path.display(),
                authority.display()
            );
        }
    }
    read(tls, names, now_s)
}

/// Reads the certificate of `tls` and makes nothing.
///
/// # Errors
/// See [`CertificateError`].
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
        findings.push(format!("everybody on this machine can read {}: chmod o-r", key_path.display()));
    }
    let expires_s = chain.first().and_then(expiry);
    let mut certificate = Certificate { chain, key, path: cert_path, expires_s, findings };
    certificate.note_expiry(now_s);
    if matches!(tls, Tls::SelfSigned { .. }) {
        certificate.note_names(names);
    }
    Ok(certificate)
}

/// File of our own certificate, its authority and its key, in the state directory.
pub const SELF_SIGNED: &str = "self-signed.pem";
/// File of the authority alone, to be given to phones and `curl --cacert`.
pub const SELF_SIGNED_AUTHORITY: &str = "self-signed-ca.pem";

impl Certificate {
    fn note_expiry(&mut self, now_s: u64) {
        let Some(expires_s) = self.expires_s else { return };
        let days = expires_s.saturating_sub(now_s) / SECONDS_OF_DAY;
        if expires_s <= now_s {
            self.findings.push(format!("{} has lapsed: browsers refuse it", self.path.display()));
        } else if days < limits::CERTIFICATE_DAYS_LOW {
            self.findings.push(format!("{} lapses in {days} days", self.path.display()));
        }
    }

    /// An address that is new since the certificate was made is no reason to make another: phones that trust this
    /// one would have to be told again.
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
                "{} does not name {}: delete it to have another made at the next start or SIGHUP",
                self.path.display(),
                missing.join(", ")
            ));
        }
    }
}

fn is_ending(certificate: &Certificate, now_s: u64) -> bool {
    let low_s = limits::CERTIFICATE_DAYS_LOW * SECONDS_OF_DAY;
    certificate.expires_s.is_some_and(|expires_s| expires_s < now_s.saturating_add(low_s))
}

const SECONDS_OF_DAY: u64 = 24 * 3600;

fn expiry(certificate: &CertificateDer<'_>) -> Option<u64> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
}

/// The bytes and the mode bits of a file.
fn read_file(path: &Path) -> Result<(Vec<u8>, u32), CertificateError> {
    let read = || {
        let file = File::open(path)?;
        let mode = file.metadata()?.mode();
        let mut bytes = Vec::new();
        file.take(limits::TLS_FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok((bytes, mode))
    };
    read().map_err(|source| CertificateError::Unreadable { path: path.to_owned(), source })
}

/// Makes and keeps key, certificate and authority.
fn make(directory: &Path, names: &[String], now_s: u64) -> Result<(), CertificateError> {
    let authority = authority(names, now_s)?;
    let key = KeyPair::generate()?;
    let certificate = leaf(names, now_s)?.signed_by(&key, &authority)?;
    let keep = |path: PathBuf, mode: u32, parts: &[(&str, &[u8])]| {
        let written = pem(parts).and_then(|text| write_whole(&path, text.as_bytes(), mode));
        written.map_err(|source| CertificateError::Keep { path, source })
    };
    let shown = directory.to_owned();
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| CertificateError::Keep { path: shown, source })?;
    let signer = ("CERTIFICATE", authority.as_ref().der().as_ref());
    keep(directory.join(SELF_SIGNED_AUTHORITY), 0o644, &[signer])?;
    let ours = ("CERTIFICATE", certificate.der().as_ref());
    keep(directory.join(SELF_SIGNED), 0o600, &[ours, signer, ("PRIVATE KEY", &key.serialize_der())])
}

/// Signs one certificate; its key ends with this value.
fn authority(names: &[String], now_s: u64) -> Result<CertifiedIssuer<'static, KeyPair>, CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = validity(now_s)?;
    // Never two of one name: a phone may have the last one still.
    let machine = names.first().map_or("camera", String::as_str);
    let mark: String = key.public_key_raw().iter().rev().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("streaming-server on {machine} {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(CertifiedIssuer::self_signed(params, key)?)
}

/// What iOS asks of a certificate: SAN, `serverAuth`, 825 days at most (support.apple.com/103769).
fn leaf(names: &[String], now_s: u64) -> Result<CertificateParams, CertificateError> {
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = validity(now_s)?;
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("camera", String::as_str));
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

/// From a day ago, for clocks that are behind ours.
fn validity(now_s: u64) -> Result<(time::OffsetDateTime, time::OffsetDateTime), CertificateError> {
    let now_s = now_s.max(PLAUSIBLE_S);
    let date = |unix_s: u64| {
        let seconds = i64::try_from(unix_s).unwrap_or(i64::MAX);
        time::OffsetDateTime::from_unix_timestamp(seconds)
            .map_err(|_| CertificateError::Make(rcgen::Error::Time))
    };
    Ok((date(now_s - SECONDS_OF_DAY)?, date(now_s + limits::SELF_SIGNED_DAYS * SECONDS_OF_DAY)?))
}

/// A camera without a clock of its own starts in 1970; this program is younger.
const PLAUSIBLE_S: u64 = 1_790_000_000;

fn pem(parts: &[(&str, &[u8])]) -> io::Result<String> {
    let encode = |(label, bytes): &(&str, &[u8])| pem_rfc7468::encode_string(label, LineEnding::LF, bytes);
    parts.iter().map(encode).collect::<Result<String, _>>().map_err(io::Error::other)
}

/// Whole or not at all, with these rights from the first moment.
fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let partial = path.with_extension(format!("{}.new", std::process::id()));
    // Left by one that was killed; usually absent.
    let _ = fs::remove_file(&partial);
    let written =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&partial, path)
        });
    if written.is_err() {
        // Absent when it was not made.
        let _ = fs::remove_file(&partial);
    }
    written
}
