//! Wiring of token, TLS and names: what the options say becomes what the HTTP endpoints need, at start and again on
//! SIGHUP. Decides nothing a room could decide.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::ServerError;
use crate::app::addresses::interface_addresses;
use crate::base::clock::Moment;
use crate::config::{Config, Tls};
use crate::http::certificate::{self, Certificate, CertificateError};
use crate::http::{Access, Hosts, HttpConfig, TlsKeys};
use crate::metrics::LoginCounters;

/// What the endpoints share.
#[derive(Clone)]
pub(super) struct Security {
    access: Option<Arc<Access>>,
    keys: Option<Arc<TlsKeys>>,
    hosts: Hosts,
    allow_origin: Vec<String>,
}

/// Reads the certificate, or makes it, and derives the keys of the logins.
pub(super) fn prepare(
    config: &Config,
    http: SocketAddr,
    logins: &Arc<LoginCounters>,
) -> Result<Security, ServerError> {
    let keys = match &config.tls {
        Some(tls) => {
            let certificate = obtain(tls, config)?;
            let path = certificate.path.clone();
            let keys = TlsKeys::new(certificate.chain, certificate.key);
            let reason =
                |error: rustls::Error| CertificateError::Unusable { path, reason: error.to_string() };
            Some(Arc::new(keys.map_err(reason)?))
        }
        None => None,
    };
    let access = config
        .token
        .clone()
        .map(|token| Arc::new(Access::new(token, http.port(), Arc::clone(logins), Moment::now().steady)));
    let of_origins = config.allow_origin.iter().map(|origin| origin.host().to_owned());
    let allowed = config.allow_host.iter().map(|host| host.as_str().to_owned()).chain(of_origins);
    Ok(Security {
        access,
        keys,
        hosts: Hosts::new(&hostname(), allowed),
        allow_origin: config.allow_origin.iter().map(|origin| origin.as_str().to_owned()).collect(),
    })
}

impl Security {
    /// For the endpoint of --http.
    pub(super) fn http(&self, address: SocketAddr) -> HttpConfig {
        HttpConfig {
            address,
            allow_origin: self.allow_origin.clone(),
            hosts: Some(self.hosts.clone()),
            access: self.access.clone(),
            tls: self.keys.clone(),
        }
    }

    /// For the endpoint of --http-plain.
    pub(super) fn plain(&self, address: SocketAddr) -> HttpConfig {
        HttpConfig { tls: None, ..self.http(address) }
    }

    /// Reloads on every SIGHUP. Ends when the terminal that the server was started from is gone: then the signal
    /// said so.
    pub(super) async fn heed_hangups(&self, config: &Config) {
        let was_terminal = io::stdin().is_terminal();
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => {
                log::warn!("SIGHUP is not heard: {error}");
                return std::future::pending().await;
            }
        };
        while hangups.recv().await.is_some() {
            if was_terminal && !io::stdin().is_terminal() {
                return;
            }
            self.reload(config);
        }
    }

    /// SIGHUP: certificate and key once more. What cannot be used changes nothing.
    fn reload(&self, config: &Config) {
        let (Some(tls), Some(keys)) = (&config.tls, &self.keys) else {
            log::info!("SIGHUP: there is nothing to read again, only TLS files are");
            return;
        };
        let replaced = obtain(tls, config).and_then(|certificate| {
            let path = certificate.path;
            match keys.replace(certificate.chain, certificate.key) {
                Ok(()) => Ok(path),
                Err(error) => Err(CertificateError::Unusable { path, reason: error.to_string() }),
            }
        });
        match replaced {
            Ok(path) => {
                log::info!("SIGHUP: TLS serves {} from now on; open connections go on", path.display())
            }
            Err(error) => log::error!("SIGHUP: TLS goes on with the certificate it has: {error}"),
        }
    }
}

/// Says what is open that might better not be.
pub(super) fn warn(config: &Config, http: SocketAddr, plain: Option<SocketAddr>) {
    let open = if config.tls.is_some() { plain } else { Some(http) };
    if config.token.is_none() && !(http.ip().is_loopback() && plain.is_none_or(|it| it.ip().is_loopback())) {
        log::warn!(
            "anyone who reaches {http} can watch and record: set a token (--token-file), or bind 127.0.0.1 with --http"
        );
    } else if let Some(open) = open.filter(|open| config.token.is_some() && !open.ip().is_loopback()) {
        log::warn!(
            "the token crosses the network readable on its way to {open}: --tls-self-signed, or --tls-cert with --tls-key"
        );
    }
}

fn obtain(tls: &Tls, config: &Config) -> Result<Certificate, CertificateError> {
    let certificate = certificate::obtain(tls, &names(config), Moment::now().unix_s)?;
    for finding in &certificate.findings {
        log::warn!("TLS: {finding}");
    }
    Ok(certificate)
}

/// What this machine is called and reached at, for a certificate of our own; its name first.
pub(crate) fn names(config: &Config) -> Vec<String> {
    let hostname = hostname().to_ascii_lowercase();
    let is_name = !hostname.is_empty()
        && hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let mut names = Vec::new();
    if is_name {
        names.push(hostname.clone());
        if !hostname.contains('.') {
            names.push(format!("{hostname}.local"));
        }
    }
    names.push("localhost".to_owned());
    names.extend(config.allow_host.iter().map(|host| host.as_str().to_owned()).filter(|name| name != "*"));
    // An address that is valid on one link only cannot stand in a URL.
    let is_link_local =
        |ip: &std::net::IpAddr| matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
    let mut addresses = interface_addresses();
    addresses.extend(config.advertise.iter().map(|advertise| advertise.ip));
    addresses.extend(Some(config.http.ip()).filter(|ip| !ip.is_unspecified()));
    addresses.retain(|ip| !is_link_local(ip));
    addresses.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    names.extend(addresses.iter().map(ToString::to_string));
    let mut known = std::collections::BTreeSet::new();
    names.retain(|name| known.insert(name.clone()));
    names
}

/// What the machine calls itself; empty when it has no readable name.
fn hostname() -> String {
    rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned()
}
