//! A small blocking HTTP/1.1 client on `TcpStream`. Each request uses a new connection, and may be malformed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A response. Its status is 0 if the server closed the connection without a response.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Asserts that the status is one of `statuses` and that the body is a JSON error with a code and a message.
    pub fn assert_error(&self, statuses: &[u16]) {
        assert!(statuses.contains(&self.status), "{} is none of {statuses:?}: {}", self.status, self.text());
        let error = self.json();
        assert!(error["error"].is_string() && error["code"].is_string(), "no error and code in {error}");
    }
}

pub fn get(server: SocketAddr, path: &str) -> Response {
    request(server, "GET", path, &[], b"")
}

pub fn post_json(server: SocketAddr, path: &str, body: &serde_json::Value) -> Response {
    request(server, "POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

pub fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    raw(server, &[head.as_bytes(), body])
}

/// Sends these bytes unchanged and returns the response. Reading ends when the response is complete or the server
/// closes. The server may refuse and close before it has received everything, so a failed write only ends the sending.
pub fn raw(server: SocketAddr, parts: &[&[u8]]) -> Response {
    let mut stream = TcpStream::connect(server).unwrap_or_else(|error| panic!("{server}: {error}"));
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    for part in parts {
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while !is_whole(&bytes) {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
    }
    let response = parse(&bytes).unwrap_or_default();
    assert_no_header_twice(&response.headers);
    response
}

/// Asserts that no header occurs twice, except those of which each line says something else.
pub fn assert_no_header_twice(headers: &[(String, String)]) {
    let mut names: Vec<String> = headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    names.retain(|name| !["set-cookie", "link", "vary"].contains(&name.as_str()));
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "a header occurs twice in {headers:?}");
}

fn is_whole(bytes: &[u8]) -> bool {
    let Some(response) = parse(bytes) else { return false };
    let length = response.header("content-length").and_then(|text| text.parse::<usize>().ok());
    length.is_some_and(|length| response.body.len() >= length)
}

fn parse(bytes: &[u8]) -> Option<Response> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let split = |line: &str| line.split_once(':').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
    let headers: Vec<(String, String)> = lines.filter_map(split).collect();
    let chunked = headers.iter().any(|(key, value)| {
        key.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked")
    });
    let body = bytes[end + 4..].to_vec();
    Some(Response { status, headers, body: if chunked { join_chunks(&body) } else { body } })
}

fn join_chunks(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line_end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..line_end]).into_owned();
        let size = usize::from_str_radix(size.split(';').next().unwrap_or("").trim(), 16).unwrap_or(0);
        let start = line_end + 2;
        if size == 0 || start + size + 2 > rest.len() {
            break;
        }
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[start + size + 2..];
    }
    body
}
