//! Which names we answer to. A page of another site can point its own name at our address (DNS rebinding): to the
//! browser it is then one origin with us, but its requests still name the other site. Pure.

use std::net::IpAddr;

/// The names.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    names: Vec<String>,
    is_any: bool,
}

/// Endings under which nobody can register a name that we could be mistaken for: home routers and mDNS.
const HOME_ENDINGS: [&str; 6] = ["local", "lan", "home", "internal", "home.arpa", "localdomain"];

impl Hosts {
    /// This machine's `hostname`, and `allowed` names in lower case; `*` among these allows any.
    #[must_use]
    pub fn new(hostname: &str, allowed: impl IntoIterator<Item = String>) -> Hosts {
        let hostname = hostname.to_ascii_lowercase();
        let mut names: Vec<String> = allowed.into_iter().collect();
        let is_any = names.iter().any(|name| name == "*");
        if let Some(label) = hostname.split('.').next().filter(|label| !label.is_empty()) {
            names.extend(HOME_ENDINGS.iter().map(|ending| format!("{label}.{ending}")));
        }
        names.push(hostname);
        Hosts { names, is_any }
    }

    /// Whether `host` (name and port) may be us: an address, a name without a dot (nobody owns those on the
    /// internet), `localhost`, or one of the names.
    #[must_use]
    pub fn allows(&self, host: &str) -> bool {
        if self.is_any {
            return true;
        }
        let Some(name) = name_of(host) else { return false };
        if is_address(&name) || !name.contains(['.', '[']) {
            return true;
        }
        name.ends_with(".localhost") || self.names.contains(&name)
    }
}

/// The host's name in lower case, without port and final dot; `None` when it is not `name[:port]`.
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
        Hosts::new("Camera", ["cam.example.org".to_owned()])
    }

    #[test]
    fn addresses_own_names_and_allowed_names_are_us() {
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
        ] {
            assert!(hosts().allows(good), "{good}");
        }
    }

    #[test]
    fn other_names_are_not() {
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
        ] {
            assert!(!hosts().allows(bad), "{bad}");
        }
    }

    #[test]
    fn a_star_allows_any() {
        assert!(Hosts::new("camera", ["*".to_owned()]).allows("evil.example"));
    }

    #[test]
    fn a_machine_without_a_name_has_none() {
        assert!(!Hosts::new("", []).allows(".local"));
    }

    proptest! {
        #![proptest_config(support::properties())]

        #[test]
        fn no_text_with_a_foreign_domain_at_its_end_is_us(prefix in "\\PC{0,30}", port in ":[0-9]{1,5}|") {
            let host = format!("{prefix}.evil.example{port}");
            prop_assert!(!hosts().allows(&host), "{host}");
        }
    }
}
