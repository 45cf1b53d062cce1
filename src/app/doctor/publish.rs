//! Checks that the WHIP endpoint of --whip can be reached.

use super::{Finding, Verdict};
use crate::app::publish::probe;
use crate::config::Whip;

/// Sends OPTIONS to the endpoint. This opens no session. A server may refuse OPTIONS, which still shows that it can be
/// reached and that its certificate is trusted.
pub(super) fn endpoint(whip: &Whip) -> Finding {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return (Verdict::Warn, format!("not checked: {error}")),
    };
    let status = match runtime.block_on(probe(whip)) {
        Ok(status) => status,
        Err(error) => return (Verdict::Warn, format!("{}: {error}", whip.url)),
    };
    let (verdict, advice) = match status {
        401 | 403 => (Verdict::Warn, ": the token is missing or wrong (--whip-token-file)"),
        404 => (Verdict::Warn, ": is the path right?"),
        500.. => (Verdict::Warn, ": the server has a problem"),
        _ if !whip.url.is_tls && whip.token.is_some() => {
            (Verdict::Warn, ": reachable, but the token is sent without TLS: use https")
        }
        _ => (Verdict::Ok, ": reachable"),
    };
    (verdict, format!("{} answers OPTIONS with {status}{advice}", whip.url))
}
