//! Handles the paths below `/debug/`: turns the path and query into an [`Inspection`], and the result of the inspection
//! into a response. Does no I/O.

use super::backend::{ApiError, Inspection};
use super::response::Response;
use crate::base::limits;

impl Inspection {
    /// Returns the duration of the measurement in seconds, or 0 if the inspection measures nothing over time.
    #[must_use]
    pub fn seconds(self) -> u32 {
        match self {
            Inspection::Cpu { seconds } => seconds,
            _ => 0,
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            Inspection::Index | Inspection::Cmdline | Inspection::Threads { debug: 1.. } => {
                "text/plain; charset=utf-8"
            }
            Inspection::Trace { .. } => "application/json",
            _ => "application/octet-stream",
        }
    }
}

/// Returns the inspection that the path and query select, or an error response if they are invalid. Returns `None` if
/// the path is not below `/debug/`.
#[must_use]
pub fn inspection(method: &str, path: &str, query: Option<&str>) -> Option<Result<Inspection, Response>> {
    let rest = path.strip_prefix("/debug/")?;
    let query = query.unwrap_or_default();
    if method != "GET" {
        let response = Response::error(405, "method_not_allowed", "/debug/ accepts GET");
        return Some(Err(response.header("allow", "GET")));
    }
    Some(match rest {
        "pprof/" | "pprof" | "" => Ok(Inspection::Index),
        "pprof/profile" => {
            seconds(query, 30, limits::INSPECTION_SECONDS_MAX).map(|seconds| Inspection::Cpu { seconds })
        }
        "pprof/heap" => Ok(Inspection::Heap),
        "pprof/allocs" => Ok(Inspection::Allocs),
        "pprof/goroutine" => match value(query, "debug") {
            None | Some("0") => Ok(Inspection::Threads { debug: 0 }),
            Some("1") => Ok(Inspection::Threads { debug: 1 }),
            Some("2") => Ok(Inspection::Threads { debug: 2 }),
            Some(_) => Err(Response::error(400, "bad_query", "debug must be 0, 1 or 2")),
        },
        "pprof/mutex" => Ok(Inspection::Mutex),
        "pprof/block" => Ok(Inspection::Block),
        "pprof/cmdline" => Ok(Inspection::Cmdline),
        "trace" => seconds(query, 5, limits::TRACE_SECONDS_MAX).map(|seconds| Inspection::Trace { seconds }),
        _ => Err(Response::error(
            404,
            "not_found",
            "this path does not exist: /debug/pprof/ lists the profiles",
        )),
    })
}

fn value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn seconds(query: &str, default: u32, max: u32) -> Result<u32, Response> {
    let Some(text) = value(query, "seconds") else { return Ok(default) };
    match text.parse() {
        Ok(seconds) if (1..=max).contains(&seconds) => Ok(seconds),
        _ => Err(Response::error(400, "bad_query", &format!("seconds must be a number from 1 to {max}"))),
    }
}

/// Returns the response with the result of an inspection.
#[must_use]
pub fn answer(what: Inspection, result: Result<Vec<u8>, ApiError>) -> Response {
    match result {
        Ok(bytes) => Response::with_body(200, what.content_type(), bytes).header("cache-control", "no-store"),
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_select_inspections() {
        for (path, query, expected) in [
            ("/debug/pprof/", None, Inspection::Index),
            ("/debug/pprof/profile", None, Inspection::Cpu { seconds: 30 }),
            ("/debug/pprof/profile", Some("a=b&seconds=2"), Inspection::Cpu { seconds: 2 }),
            ("/debug/pprof/goroutine", Some("debug=2"), Inspection::Threads { debug: 2 }),
            ("/debug/trace", Some("seconds=60"), Inspection::Trace { seconds: 60 }),
        ] {
            assert_eq!(inspection("GET", path, query), Some(Ok(expected)));
        }
    }

    #[test]
    fn other_requests_are_refused_with_their_status() {
        assert_eq!(inspection("GET", "/health", None), None);
        for (method, path, query, status) in [
            ("POST", "/debug/pprof/heap", None, 405),
            ("GET", "/debug/pprof/nothing", None, 404),
            ("GET", "/debug/pprof/profile", Some("seconds=0"), 400),
            ("GET", "/debug/pprof/profile", Some("seconds=-1"), 400),
            ("GET", "/debug/pprof/profile", Some("seconds=99999999999"), 400),
            ("GET", "/debug/pprof/goroutine", Some("debug=3"), 400),
            ("GET", "/debug/trace", Some("seconds=61"), 400),
        ] {
            match inspection(method, path, query) {
                Some(Err(response)) => assert_eq!(response.status, status, "{method} {path}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
