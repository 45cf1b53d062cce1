//! Prepares the token, TLS and the accepted host names of the HTTP endpoints from the options. On SIGHUP, reads the
//! certificate again.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::ServerError;
use crate::app::addresses::interface_addresses;
use crate::base::clock::Moment;
use crate::config::{Config, Tls, host_of};
use crate::http::certificate::{self, Certificate, CertificateError};
use crate::http::{Access, Exempt, Hosts, HttpConfig, HttpShares, HttpTimeouts, Policy, TlsKeys, WhepPolicy};
use crate::metrics::LoginCounters;

/// Reads or generates the certificate, and derives the key that seals the logins. Returns the configuration of the
/// endpoint at --http. The endpoint at --http-plain uses the same configuration, but with another address and without
/// TLS.
pub(super) fn prepare(
    config: &Config,
    http: SocketAddr,
    logins: &Arc<LoginCounters>,
) -> Result<HttpConfig, ServerError> {
    let tls = match &config.tls {
        Some(tls) => Some(Arc::new(TlsKeys::new(obtain(tls, config)?)?)),
        None => None,
    };
    let exempt = Exempt::loopback_and(config.trusted_proxy.iter().copied());
    let access = config
        .token
        .clone()
        .map(|token| Arc::new(Access::new(token, http.port(), Arc::clone(logins)).exempting(exempt.clone())));
    let of_origins = config.allow_origin.iter().map(|origin| host_of(origin).to_owned());
    let allowed = config.allow_host.iter().cloned().chain(of_origins);
    let whep = WhepPolicy { stream: config.name.clone(), ice_servers: config.ice_servers.clone() };
    let hosts = Some(Hosts::new(&hostname(), allowed));
    let policy = Policy { hosts, allow_origin: config.allow_origin.clone(), whep };
    let (timeouts, shares) = (HttpTimeouts::default(), HttpShares::default());
    Ok(HttpConfig { address: http, policy, access, exempt, tls, timeouts, shares })
}

/// Reloads the certificate on every SIGHUP. Returns when a SIGHUP arrives because the terminal of the server was
/// closed; the caller then stops the server.
pub(super) async fn handle_hangups(config: &Config, keys: Option<&TlsKeys>) {
    let was_terminal = io::stdin().is_terminal();
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            log::warn!("SIGHUP cannot be handled: {error}");
            return std::future::pending().await;
        }
    };
    while hangups.recv().await.is_some() {
        if was_terminal && !io::stdin().is_terminal() {
            return;
        }
        match (&config.tls, keys) {
            (Some(tls), Some(keys)) => reload(config, tls, keys),
            _ => log::info!("SIGHUP: nothing to reload, because TLS is off"),
        }
    }
}

/// Reads the certificate and the key again. If they cannot be used, the old ones stay in use.
fn reload(config: &Config, tls: &Tls, keys: &TlsKeys) {
    let replaced = obtain(tls, config).and_then(|certificate| {
        let path = certificate.path.clone();
        keys.replace(certificate).map(|()| path)
    });
    match replaced {
        Ok(path) => {
            let path = path.display();
            log::info!("SIGHUP: new connections use the certificate {path}; open ones continue");
        }
        Err(error) => log::error!("SIGHUP: the old TLS certificate stays in use: {error}"),
    }
}

/// Logs a warning if anyone on the network can use the server without a token, or if the token crosses the network
/// unencrypted.
pub(super) fn warn(config: &Config, http: SocketAddr, plain: Option<SocketAddr>) {
    let open = if config.tls.is_some() { plain } else { Some(http) };
    if config.token.is_none() && !(http.ip().is_loopback() && plain.is_none_or(|it| it.ip().is_loopback())) {
        log::warn!(
            "no token is set: anyone who can reach {http} can watch and record; set one (--token-file), or bind 127.0.0.1 with --http"
        );
    } else if let Some(open) = open.filter(|open| config.token.is_some() && !open.ip().is_loopback()) {
        log::warn!(
            "the token crosses the network unencrypted to {open}: use --tls-self-signed, or --tls-cert with --tls-key"
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

/// Returns the names and addresses of this machine for which a self-signed certificate is made. The host name comes
/// first.
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
    names.extend(config.allow_host.iter().filter(|name| *name != "*").cloned());
    // Link-local IPv6 addresses are left out, because they cannot be used in a URL.
    let is_link_local =
        |ip: &std::net::IpAddr| matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
    let mut addresses = interface_addresses();
    addresses.extend(config.advertise.iter().map(|advertise| advertise.ip));
    addresses.extend(Some(config.http.ip()).filter(|ip| !ip.is_unspecified()));
    addresses.retain(|ip| !is_link_local(ip));
    addresses.sort_unstable_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    names.extend(addresses.iter().map(ToString::to_string));
    let mut known = std::collections::BTreeSet::new();
    names.retain(|name| known.insert(name.clone()));
    names
}

/// Returns the host name of this machine, or an empty text if it is not valid UTF-8.
fn hostname() -> String {
    rustix::system::uname().nodename().to_str().unwrap_or_default().to_owned()
}
