//! Distinguishes our own page from foreign pages: compares `Origin` with the host to which the request was sent. Does
//! no I/O.

/// Returns true if `origin` (RFC 6454, `scheme://host[:port]`) names the authority in `host`.
///
/// The scheme is not compared: behind a proxy that terminates TLS, the browser uses https and we see http. The default
/// port of the scheme is ignored in both names.
#[must_use]
pub(super) fn is_same(origin: &str, host: Option<&str>) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let default_port = if scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
    let strip = |text: &'_ str| text.strip_suffix(default_port).unwrap_or(text).to_ascii_lowercase();
    host.is_some_and(|host| !authority.is_empty() && strip(authority) == strip(host))
}

/// Returns the origin of an absolute URL, or an empty text for any other text.
#[must_use]
pub(super) fn of_url(url: &str) -> &str {
    let Some((scheme, rest)) = url.split_once("://") else { return "" };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    url.get(..scheme.len() + "://".len() + authority.len()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_of_a_url_ends_before_its_path() {
        assert_eq!(of_url("https://home.example/dashboard?x#y"), "https://home.example");
        assert_eq!(of_url("https://home.example"), "https://home.example");
        assert_eq!(of_url("http://home.example:8123?x"), "http://home.example:8123");
        assert_eq!(of_url("https://home.example@evil.example/"), "https://home.example@evil.example");
        assert_eq!(of_url("about:blank"), "");
        assert_eq!(of_url(""), "");
    }

    #[test]
    fn the_same_authority_is_the_same_origin() {
        assert!(is_same("http://cam:8080", Some("cam:8080")));
        assert!(is_same("https://cam.example", Some("cam.example")));
        assert!(is_same("https://cam.example", Some("cam.example:443")));
        assert!(is_same("http://Cam.Example", Some("cam.example:80")));
        assert!(is_same("http://[::1]:8080", Some("[::1]:8080")));
    }

    #[test]
    fn every_other_origin_is_foreign() {
        assert!(!is_same("http://cam:8081", Some("cam:8080")));
        assert!(!is_same("http://evil", Some("cam")));
        assert!(!is_same("http://cam.evil", Some("cam")));
        assert!(!is_same("null", Some("null")));
        assert!(!is_same("http://", Some("")));
        assert!(!is_same("http://cam", None));
        assert!(!is_same("", Some("cam")));
        assert!(!is_same("http://cam:8080@evil", Some("cam:8080")));
    }
}
