//! Logs refusals that the operator can end with an option, such as an unknown host name: one line for each name, not one
//! for each request. Strangers choose the names, so the number of lines is bounded. Also answers connections above the
//! limit.

use std::sync::Mutex;

use tokio::net::TcpStream;

use super::lock;
use super::stream::linger;
use crate::base::clock;
use crate::base::limits;

/// The lines that were logged in the current interval.
#[derive(Default)]
pub(super) struct RefusalLog(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    /// Time of the first line, in nanoseconds of `CLOCK_MONOTONIC`.
    since_ns: i64,
}

impl RefusalLog {
    /// Logs the line, unless it was logged a short time ago or there were too many lines.
    pub(super) fn warn(&self, line: &str) {
        if lock(&self.0).is_due(line, clock::monotonic_ns()) {
            log::warn!("http: {line}");
        }
    }
}

impl Seen {
    fn is_due(&mut self, line: &str, now_ns: i64) -> bool {
        if now_ns.saturating_sub(self.since_ns) >= limits::REFUSAL_LOG_INTERVAL_NS {
            self.lines.clear();
        }
        if self.lines.len() >= limits::REFUSAL_LOG_LINES_MAX || self.lines.iter().any(|seen| seen == line) {
            return false;
        }
        if self.lines.is_empty() {
            self.since_ns = now_ns;
        }
        self.lines.push(line.to_owned());
        true
    }
}

/// Answers a connection above the limit with 503. A single write is enough, because the answer fits into any socket
/// buffer. A caller that uses TLS gets a TLS error instead.
pub(super) async fn refuse(stream: TcpStream) {
    if matches!(stream.try_write(REFUSAL), Ok(bytes) if bytes == REFUSAL.len()) {
        linger(Box::new(stream)).await;
    }
}

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
content-type: application/json\r\n\
content-length: 62\r\n\
cache-control: no-store\r\n\
retry-after: 1\r\n\
connection: close\r\n\r\n\
{\"error\":\"too many connections\",\"code\":\"too_many_connections\"}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_due_once_per_interval_and_their_number_is_bounded() {
        let mut seen = Seen::default();
        assert!(seen.is_due("a", 5) && seen.is_due("b", 6));
        assert!(!seen.is_due("a", 7) && !seen.is_due("b", limits::REFUSAL_LOG_INTERVAL_NS));
        let flood = (0..10_000).filter(|number| seen.is_due(&number.to_string(), 8)).count();
        assert_eq!(flood, limits::REFUSAL_LOG_LINES_MAX - 2);
        assert!(seen.is_due("a", 5 + limits::REFUSAL_LOG_INTERVAL_NS), "a new interval");
        assert_eq!(seen.lines.len(), 1);
    }
}
