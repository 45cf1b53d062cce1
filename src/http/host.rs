//! Checks that the header `Host` names this server, as a protection against DNS rebinding. In this attack, a foreign
//! site points its own domain name at our address, so the browser treats us as the same origin. `Host` still contains
//! the foreign name, so the request is refused. Does no I/O.

use std::net::IpAddr;

/// The host names under which requests may address this server.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    names: Vec<String>,
    /// Accepted endings, each with its leading dot.
    endings: Vec<String>,
    /// First label of this machine's host name. Empty if the machine has none.
    label: String,
    is_any: bool,
}

/// Domains that home routers and mDNS use. Strangers cannot register names in these domains on the internet:
/// `fritz.box` belongs to the manufacturer of the router, the others do not exist there.
const HOME_ENDINGS: [&str; 7] = ["local", "lan", "home", "internal", "home.arpa", "localdomain", "fritz.box"];

impl Hosts {
    /// Returns the accepted names: the `hostname` of this machine, also with each of `HOME_ENDINGS`, and the `allowed`
    /// names, which must be in lower case. An allowed name `*.NAME` accepts all names below `NAME`, and `*` accepts all
    /// names.
    #[must_use]
    pub fn new(hostname: &str, allowed: impl IntoIterator<Item = String>) -> Hosts {
        let hostname = hostname.to_ascii_lowercase();
        let label = hostname.split('.').next().unwrap_or_default().to_owned();
        let mut hosts = Hosts { label, ..Hosts::default() };
        for name in allowed {
            match name.strip_prefix('*') {
                Some("") => hosts.is_any = true,
                Some(ending) => hosts.endings.push(ending.to_owned()),
                None => hosts.names.push(name),
            }
        }
        if !hosts.label.is_empty() {
            hosts.names.extend(HOME_ENDINGS.iter().map(|ending| format!("{}.{ending}", hosts.label)));
        }
        hosts.names.push(hostname);
        hosts
    }

    /// Returns the name in `host` in lower case, without the port. Returns `None` if `host` does not have the form
    /// `name[:port]`.
    #[must_use]
    pub fn name(host: &str) -> Option<String> {
        name_of(host)
    }

    /// Returns true if `host` (a name and an optional port) may name this server. This holds for an IP address, a name
    /// without a dot (such names do not exist on the internet), a name that ends in `.localhost`, and an accepted name.
    #[must_use]
    pub fn allows(&self, host: &str) -> bool {
        if self.is_any {
            return true;
        }
        let Some(name) = name_of(host) else { return false };
        if is_address(&name) || !name.contains(['.', '[']) {
            return true;
        }
        let is_below = |ending: &String| name.len() > ending.len() && name.ends_with(ending.as_str());
        name.ends_with(".localhost")
            || self.names.contains(&name)
            || self.endings.iter().any(is_below)
            || self.is_renamed_by_mdns(&name)
    }

    /// Returns true if `name` is `LABEL-NUMBER.local`. The mDNS responder gives this name to a machine if another one
    /// has the name `LABEL.local` already.
    fn is_renamed_by_mdns(&self, name: &str) -> bool {
        let label = name.strip_suffix(".local").and_then(|label| label.strip_prefix(self.label.as_str()));
        let number = label.and_then(|rest| rest.strip_prefix('-')).unwrap_or_default();
        !self.label.is_empty() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    }
}

/// Returns the name in lower case, without the port and a final dot. Returns `None` if `host` does not have the form
/// `name[:port]`.
fn name_of(host: &str) -> Option<String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (inside, port) = rest.split_once(']')?;
            (format!("[{inside}]"), port.strip_prefix(':').unwrap_or(port))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name.to_ascii_lowercase(), port),
            None => (host.to_ascii_lowercase(), ""),
        },
    };
    let name = name.strip_suffix('.').map_or(name.clone(), str::to_owned);
    let is_good = !name.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_text = name.starts_with('[') || name.bytes().all(is_name);
    (is_good && is_text).then_some(name)
}

fn is_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inside) => inside.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts() -> Hosts {
        Hosts::new("Camera", ["cam.example.org".to_owned(), "*.ts.net".to_owned()])
    }

    #[test]
    fn addresses_own_names_and_allowed_names_are_accepted() {
        for good in [
            "192.0.2.7",
            "192.0.2.7:8080",
            "[2001:db8::1]:8080",
            "[::1]",
            "localhost",
            "localhost:8080",
            "LOCALHOST",
            "a.localhost:1",
            "camera",
            "camera:8080",
            "Camera.local",
            "camera.local.:8080",
            "camera.lan",
            "camera.home.arpa",
            "streaming-server:8080",
            "cam.example.org",
            "CAM.example.org:443",
            "camera-2.local",
            "CAMERA-13.local.:8080",
            "camera.fritz.box",
            "cam.tailnet.ts.net",
            "a.ts.net:8080",
        ] {
            assert!(hosts().allows(good), "{good}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for bad in [
            "evil.example",
            "evil.example:8080",
            "camera.evil.example",
            "camera.local.evil.example",
            "evil.local",
            "xcam.example.org",
            "cam.example.org.evil",
            "192.0.2.7.evil.example",
            "127.0.0.1.nip.io",
            "",
            ":",
            ":8080",
            "[",
            "[]",
            "[::1",
            "[evil.example]",
            "[::1]x",
            "a b.c",
            "a/b.c",
            "evil.example@cam",
            "localhost:x",
            "localhost:123456",
            "cam.example.org:8080:1",
            "é.example",
            "camera-.local",
            "camera-2x.local",
            "camera-2.lan",
            "camera-2.local.evil.example",
            "xcamera-2.local",
            "evil-2.local",
            "evil.fritz.box",
            "ts.net",
            ".ts.net.evil.example",
            "evilts.net",
        ] {
            assert!(!hosts().allows(bad), "{bad}");
        }
    }

    #[test]
    fn a_star_accepts_all_names() {
        assert!(Hosts::new("camera", ["*".to_owned()]).allows("evil.example"));
    }

    #[test]
    fn an_empty_hostname_accepts_no_extra_name() {
        assert!(!Hosts::new("", []).allows(".local"));
        assert!(!Hosts::new("", []).allows("-2.local"));
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn no_text_that_ends_in_a_foreign_domain_is_accepted(prefix in "\\PC{0,30}", port in ":[0-9]{1,5}|") {
            let host = format!("{prefix}.evil.example{port}");
            prop_assert!(!hosts().allows(&host), "{host}");
        }
    }
}
