//! Tests of the requests to a WHIP server that misbehaves, over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pem_rfc7468::LineEnding;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConnection, StreamOwned};

use super::*;

const ANSWER: &str = "v=0\r\n";

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn whip(url: &str) -> Whip {
    Whip { url: WhipUrl::parse(url).unwrap(), token: None, ca: None }
}

/// Returns a configuration with the token `secret.token`.
fn whip_with_token(url: &str) -> Whip {
    let config = crate::config::Config::from_args(
        ["--whip", url, "--whip-token-file", "f"].map(Into::into),
        |_| None,
        |_: &Path| Ok("secret.token\n".to_owned()),
    );
    let Ok(crate::config::Parsed::Run(config)) = config else { panic!("{config:?}") };
    config.whip.unwrap()
}

/// A server that answers each request with `respond(request head)` and then closes. It runs until the test ends.
struct FakeServer {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl FakeServer {
    fn start(respond: impl Fn(&str) -> Vec<u8> + Send + 'static) -> FakeServer {
        FakeServer::start_with(None, respond)
    }

    fn start_with(
        tls: Option<Arc<ServerConfig>>,
        respond: impl Fn(&str) -> Vec<u8> + Send + 'static,
    ) -> FakeServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = FakeServer { address: listener.local_addr().unwrap(), heads: Arc::default() };
        let heads = Arc::clone(&server.heads);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                match &tls {
                    None => serve(socket, &heads, &respond),
                    Some(tls) => {
                        let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                        serve(StreamOwned::new(connection, socket), &heads, &respond);
                    }
                }
            }
        });
        server
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(mut stream: impl Read + Write, heads: &Mutex<Vec<String>>, respond: &dyn Fn(&str) -> Vec<u8>) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 1024]);
    let whole = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        (body.len() >= length.parse().unwrap()).then(|| format!("{head}\r\n"))
    };
    let head = loop {
        if let Some(head) = whole(&bytes) {
            break head;
        }
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => bytes.extend(chunk.iter().take(count)),
            _ => return,
        }
    };
    heads.lock().unwrap().push(head.clone());
    let _ = stream.write_all(&respond(&head));
    let _ = stream.flush();
}

fn response(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn created(location: &str) -> Vec<u8> {
    response("201 Created", &format!("Content-Type: application/sdp\r\nLocation: {location}\r\n"), ANSWER)
}

/// Posts an offer to a server that answers with `bytes`. Returns the error.
fn refusal(bytes: Vec<u8>) -> PublishError {
    run(async {
        let server = FakeServer::start(move |_| bytes.clone());
        post(&whip(&server.url("/a/whip")), "v=0\r\n".to_owned()).await.unwrap_err()
    })
}

#[test]
fn offer_token_and_relative_location_are_handled_as_in_the_rfc() {
    run(async {
        let server = FakeServer::start(|_| created("../session/7?x=1"));
        let whip = whip_with_token(&server.url("/a/b/whip"));
        let (session, answer) = post(&whip, "v=0\r\no=offer\r\n".to_owned()).await.unwrap();
        assert_eq!((session.to_string(), answer.as_str()), (server.url("/a/session/7?x=1"), ANSWER));
        delete(&whip, &session).await;
        let heads = server.heads();
        assert_eq!(heads.len(), 2);
        assert!(heads.first().unwrap().starts_with("POST /a/b/whip HTTP/1.1\r\n"), "{heads:?}");
        assert!(heads.last().unwrap().starts_with("DELETE /a/session/7?x=1 HTTP/1.1\r\n"), "{heads:?}");
        for head in &heads {
            assert!(head.contains("authorization: Bearer secret.token\r\n"), "{head}");
            assert!(head.contains(&format!("host: {}\r\n", server.address)), "{head}");
        }
        assert!(heads.first().unwrap().contains("content-type: application/sdp\r\n"), "{heads:?}");
    });
}

#[test]
fn sdp_is_accepted_although_its_content_type_is_wrong() {
    let headers = "Location: /session\r\nContent-Type: text/plain; charset=utf-8\r\n";
    run(async {
        let server = FakeServer::start(move |_| response("201 Created", headers, ANSWER));
        let (_, answer) = post(&whip(&server.url("/whip")), String::new()).await.unwrap();
        assert_eq!(answer, ANSWER);
    });
    assert!(matches!(refusal(response("201 Created", headers, "welcome")), PublishError::NotSdp(..)));
}

#[test]
fn token_is_not_sent_unencrypted_to_another_host() {
    run(async {
        let other = FakeServer::start(|_| created("/session"));
        let elsewhere = format!("http://localhost:{}/whip", other.address.port());
        let redirect = response("307 Temporary Redirect", &format!("Location: {elsewhere}\r\n"), "");
        let server = FakeServer::start(move |_| redirect.clone());
        let whip = whip_with_token(&server.url("/whip"));
        let (session, _) = post(&whip, "v=0\r\n".to_owned()).await.unwrap();
        delete(&whip, &session).await;
        assert!(server.heads().iter().all(|head| head.contains("authorization: Bearer secret.token")));
        assert_eq!(other.heads().len(), 2);
        assert!(!other.heads().iter().any(|head| head.contains("authorization")), "{:?}", other.heads());
    });
}

#[test]
fn session_whose_answer_cannot_be_read_is_ended_at_the_server() {
    run(async {
        let server = FakeServer::start(|head| {
            let cut = b"HTTP/1.1 201 Created\r\nLocation: /session\r\nContent-Length: 99\r\n\r\nv=0";
            if head.starts_with("POST ") { cut.to_vec() } else { response("200 OK", "", "") }
        });
        let error = post(&whip(&server.url("/whip")), "v=0\r\n".to_owned()).await.unwrap_err();
        assert!(matches!(error, PublishError::Http(..)), "{error}");
        assert!(server.heads().last().unwrap().starts_with("DELETE /session "), "{:?}", server.heads());
    });
}

#[test]
fn redirects_are_followed_with_the_method_and_the_body() {
    run(async {
        let server = FakeServer::start(|head| {
            if head.starts_with("POST /whip ") {
                response("307 Temporary Redirect", "Location: /other\r\n", "")
            } else if head.starts_with("POST /other ") {
                response("308 Permanent Redirect", "Location: third/whip\r\n", "")
            } else {
                created("session")
            }
        });
        let (session, _) = post(&whip(&server.url("/whip")), "v=0\r\n".to_owned()).await.unwrap();
        assert_eq!(session.to_string(), server.url("/third/session"));
        assert!(server.heads().iter().all(|head| head.contains("content-length: 5\r\n")));
    });
}

#[test]
fn redirect_loops_end_after_a_bounded_number_of_requests() {
    run(async {
        let server = FakeServer::start(|_| response("307 Temporary Redirect", "Location: /whip\r\n", ""));
        let error = post(&whip(&server.url("/whip")), String::new()).await.unwrap_err();
        assert!(matches!(error, PublishError::Redirects(_)), "{error}");
        assert_eq!(server.heads().len(), limits::WHIP_REDIRECTS_MAX + 1);
    });
}

#[test]
fn other_responses_are_errors_that_say_what_is_wrong() {
    let sdp = "Content-Type: application/sdp\r\n";
    let html = "<html>login</html>";
    for (part, bytes) in [
        ("answers 200, but WHIP needs 201", response("200 OK", sdp, ANSWER)),
        ("answers 201 without Location", response("201 Created", sdp, ANSWER)),
        ("answers 307 without Location", response("307 Temporary Redirect", "", "")),
        (
            "with text/html instead",
            response("201 Created", "Location: x\r\nContent-Type: text/html\r\n", html),
        ),
        ("answers 200, but", response("200 OK", "Content-Type: text/html\r\n", html)),
        ("not a URL such as", created("ftp://a/")),
        ("without user and password", created("http://me:secret@a/")),
        ("token is missing or wrong", response("401 Unauthorized", "", "{\"error\":\"no\"}")),
        ("token is missing or wrong", response("403 Forbidden", "", "")),
        ("path of --whip", response("404 Not Found", "", "")),
        ("answers 302: redirects with this status", response("302 Found", "Location: /x\r\n", "")),
        ("answers 500 [broken]", response("500 Internal Server Error", "", "bro\u{7}ken\r\n")),
        ("longer than", response("201 Created", &format!("{sdp}Location: x\r\n"), &"x".repeat(10_000_000))),
        ("answers 500 [xxxx", response("500 Internal Server Error", "", &"x".repeat(10_000_000))),
        (
            "token is missing or wrong (--whip-token-file) [bad to]",
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 99\r\n\r\nbad to".to_vec(),
        ),
        (
            "path of --whip right?",
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        ),
        ("complete HTTP response", b"HTTP/1.1 201 Created\r\nContent-Length: 99\r\n\r\nv=0".to_vec()),
        ("complete HTTP response", b"HTTP/1.1 201 Cre".to_vec()),
        ("complete HTTP response", Vec::new()),
        ("complete HTTP response", b"SSH-2.0-server\r\n".to_vec()),
        (
            "complete HTTP response",
            format!("HTTP/1.1 201 Created\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).into(),
        ),
    ] {
        let shown = String::from_utf8_lossy(bytes.get(..40).unwrap_or(&bytes)).into_owned();
        let error = refusal(bytes).to_string();
        assert!(error.contains(part), "{shown:?}: `{part}` is not in `{error}`");
        assert!(error.len() < 1_000 && !error.contains(char::is_control), "{error:?}");
    }
}

#[test]
fn a_body_without_an_end_delays_neither_the_refusal_nor_the_end_of_the_session() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/whip", listener.local_addr().unwrap());
        let (heads, held) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&heads);
        std::thread::spawn(move || {
            for mut socket in listener.incoming().flatten() {
                let respond = |head: &str| {
                    let status = if head.contains("/whip ") { "201 Created" } else { "401 Unauthorized" };
                    let headers = "Location: /session\r\nContent-Length: 99\r\n";
                    format!("HTTP/1.1 {status}\r\n{headers}\r\nv=0").into_bytes()
                };
                serve(&mut socket, &seen, &respond);
                held.lock().unwrap().push(socket);
            }
        });
        let (created, refused) = (whip(&url), whip(&url.replace("/whip", "/refused")));
        let offer = "v=0\r\n".to_owned();
        let (created, refused) = tokio::join!(post(&created, offer.clone()), post(&refused, offer));
        let refused = refused.unwrap_err();
        assert!(
            refused.to_string().contains("token is missing or wrong (--whip-token-file) [v=0]"),
            "{refused}"
        );
        assert!(refused.is_refusal(), "it is not repeated soon");
        assert!(created.unwrap_err().to_string().contains("the body did not arrive in time"));
        let deleted = |head: &String| head.starts_with("DELETE /session ");
        assert_eq!(heads.lock().unwrap().iter().filter(|head| deleted(head)).count(), 1);
    });
}

#[test]
fn retry_after_of_a_busy_server_is_read() {
    let error = refusal(response("503 Service Unavailable", "Retry-After: 17\r\n", "full"));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(17)));
    assert!(!error.is_refusal());
}

#[test]
fn refused_connection_names_the_address() {
    let error = run(async {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        post(&whip(&format!("http://{closed}/")), String::new()).await.unwrap_err()
    });
    assert!(error.to_string().contains("cannot connect to 127.0.0.1:") && !error.is_refusal(), "{error}");
}

// ---- TLS -------------------------------------------------------------------------------------------

/// Returns a TLS server for `name` and the PEM text of its certificate.
fn tls_for(name: &str) -> (Arc<ServerConfig>, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let pem = pem_rfc7468::encode_string("CERTIFICATE", LineEnding::LF, certificate.der()).unwrap();
    (Arc::new(config), pem)
}

/// Writes a file that is removed when the value is dropped.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(name: &str, text: &str) -> TemporaryFile {
        let path = std::env::temp_dir().join(format!("whip-{}-{name}.pem", std::process::id()));
        std::fs::write(&path, text).unwrap();
        TemporaryFile(path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn only_certificates_of_the_ca_file_and_of_the_right_name_are_trusted() {
    let (right, right_pem) = tls_for("127.0.0.1");
    let (wrong_name, wrong_name_pem) = tls_for("other.example");
    let trusted = TemporaryFile::new("trusted", &(right_pem + &wrong_name_pem));
    let empty = TemporaryFile::new("empty", "nothing\n");
    run(async {
        let at = |server: &FakeServer, ca: Option<&TemporaryFile>| Whip {
            ca: ca.map(|file| file.0.clone()),
            ..whip(&format!("https://{}/whip", server.address))
        };
        let server = FakeServer::start_with(Some(right), |_| created("session"));
        let (session, _) = post(&at(&server, Some(&trusted)), String::new()).await.unwrap();
        assert_eq!(session.to_string(), format!("https://{}/session", server.address));
        let error = post(&at(&server, Some(&empty)), String::new()).await.unwrap_err();
        assert!(error.to_string().contains("contains no certificate"), "{error}");
        let other = FakeServer::start_with(Some(wrong_name), |_| created("session"));
        let error = post(&at(&other, Some(&trusted)), String::new()).await.unwrap_err();
        assert!(matches!(error, PublishError::Tls(..)), "{error}");
        assert!(other.heads().is_empty(), "no request is sent to an unknown server");
        let missing = Whip { ca: Some(PathBuf::from("missing.pem")), ..at(&server, None) };
        let error = post(&missing, String::new()).await.unwrap_err();
        assert!(error.to_string().contains("missing.pem"), "{error}");
        assert!(error.is_refusal());
    });
}

#[test]
fn no_request_and_no_session_leads_from_https_to_http() {
    let (tls, pem) = tls_for("127.0.0.1");
    let ca = TemporaryFile::new("downgrade", &pem);
    run(async {
        let plain = FakeServer::start(|_| created("session"));
        let to = plain.url("/whip");
        let server = FakeServer::start_with(Some(tls), move |head| {
            if head.starts_with("POST /redirect ") {
                response("307 Temporary Redirect", &format!("Location: {to}\r\n"), "")
            } else {
                created(&to)
            }
        });
        for path in ["/redirect", "/session"] {
            let url = format!("https://{}{path}", server.address);
            let whip = Whip { ca: Some(ca.0.clone()), ..whip(&url) };
            let error = post(&whip, String::new()).await.unwrap_err();
            assert!(matches!(error, PublishError::Downgrade(_)), "{path}: {error}");
        }
        assert!(plain.heads().is_empty());
    });
}
