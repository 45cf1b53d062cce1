//! Tests of TLS: versions, plain HTTP on the TLS port, silent and slow handshakes, and a new certificate while
//! connections are open. The client is rustls and trusts only the certificate authority of the test.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use streaming_server::base::limits;
use streaming_server::config::Tls;
use streaming_server::http::certificate::{self, Certificate, CertificateError};
use streaming_server::http::{Hosts, HttpConfig, HttpTimeouts, Policy, TlsKeys};

use super::stub::{Reply, Server, open, read_to_end};

pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// The time that these tests pass as the current time, in seconds since 1970.
const NOW_S: u64 = 1_800_000_000;
const DAY_S: u64 = 24 * 3600;

/// Owns a directory with a self-signed certificate, and creates clients that trust this certificate.
pub(crate) struct Authority {
    directory: PathBuf,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = self.directory.parent().map(fs::remove_dir_all);
    }
}

fn names() -> Vec<String> {
    ["camera", "camera.local", "localhost", "127.0.0.1", "192.0.2.7", "2001:db8::7"]
        .map(str::to_owned)
        .to_vec()
}

impl Authority {
    pub(crate) fn new() -> Authority {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("streaming-tls-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let authority = Authority { directory: std::env::temp_dir().join(name).join("deeper") };
        // The certificate is made with the real time, because clients check it against the real clock.
        authority.obtain(real_now_s()).unwrap();
        authority
    }

    fn options(&self) -> Tls {
        Tls::SelfSigned { directory: self.directory.clone() }
    }

    fn obtain(&self, now_s: u64) -> Result<Certificate, CertificateError> {
        certificate::obtain(&self.options(), &names(), now_s)
    }

    pub(crate) fn keys(&self) -> Arc<TlsKeys> {
        Arc::new(TlsKeys::new(self.obtain(real_now_s()).unwrap()).unwrap())
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let pem = fs::read(self.directory.join(certificate::SELF_SIGNED_AUTHORITY)).unwrap();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    }

    pub(crate) fn connect(&self, socket: TcpStream) -> TlsStream {
        self.connect_as(socket, "127.0.0.1", rustls::ALL_VERSIONS)
    }

    fn connect_as(
        &self,
        socket: TcpStream,
        name: &str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> TlsStream {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        StreamOwned::new(ClientConnection::new(self.client(versions), name).unwrap(), socket)
    }
}

fn real_now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Sends a request that asks the server to close the connection, and returns the whole response.
pub(crate) fn exchange(mut stream: TlsStream, request: &[u8]) -> Reply {
    stream.write_all(request).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Reply::parse(&bytes)
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const KEPT_OPEN: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn serve(authority: &Authority, timeouts: HttpTimeouts) -> (Server, Arc<TlsKeys>) {
    let keys = authority.keys();
    let tls = Some(Arc::clone(&keys));
    let policy = Policy { hosts: Some(Hosts::new("camera", [])), ..Policy::default() };
    (Server::configured(timeouts, |address| HttpConfig { tls, policy, ..open(address) }), keys)
}

// ---- tests: handshakes ---------------------------------------------------------------------------------

#[test]
fn tls_1_2_and_1_3_work_under_every_name_of_the_certificate() {
    let authority = Authority::new();
    let (server, _) = serve(&authority, HttpTimeouts::default());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stream = authority.connect_as(server.connect(), "localhost", &[version]);
        assert_eq!(exchange(stream, HEALTH).status, 200, "{version:?}");
    }
    for name in names() {
        let stream = authority.connect_as(server.connect(), &name, rustls::ALL_VERSIONS);
        assert_eq!(exchange(stream, HEALTH).status, 200, "{name}");
    }
    let mut other = authority.connect_as(server.connect(), "evil.example", rustls::ALL_VERSIONS);
    assert!(
        other.write_all(HEALTH).and_then(|()| other.flush()).is_err(),
        "the certificate must not be valid for a foreign name"
    );
}

#[test]
fn a_whole_recording_is_downloaded_over_tls() {
    let authority = Authority::new();
    let (server, _) = serve(&authority, HttpTimeouts::default());
    let request = b"GET /api/recordings/a%20b.mp4 HTTP/1.1\r\nHost: camera\r\nConnection: close\r\n\r\n";
    let reply = exchange(authority.connect(server.connect()), request);
    assert_eq!((reply.status, reply.body.len() as u64), (200, super::stub::CLIP_BYTES));
    assert!(reply.body.iter().enumerate().all(|(offset, byte)| *byte == (offset & 0xff) as u8));
}

#[test]
fn plain_http_on_a_tls_port_is_redirected() {
    let authority = Authority::new();
    let (server, _) = serve(&authority, HttpTimeouts::default());
    let redirected = server.request("GET", "/api/status?a=b", "", b"");
    assert_eq!((redirected.status, redirected.code().as_str()), (307, "https_required"));
    let location = format!("https://{}/api/status?a=b", server.address);
    assert_eq!(redirected.header("location"), Some(location.as_str()));
    let refused = server.offer(br#"{"type":"offer","sdp":"v=0"}"#);
    assert_eq!((refused.status, refused.code().as_str()), (400, "https_required"));
    assert!(refused.json()["error"].as_str().unwrap().contains("https://"));
    let foreign = server.raw(b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    let foreign = Reply::parse(&foreign);
    assert_eq!((foreign.status, foreign.header("location")), (403, None), "no redirect to a foreign name");
    let nameless = Reply::parse(&server.raw(b"GET / HTTP/1.0\r\n\r\n"));
    assert_eq!((nameless.status, nameless.header("location")), (400, None));
}

#[test]
fn a_malformed_handshake_ends_that_connection_only() {
    let authority = Authority::new();
    let (server, _) = serve(&authority, HttpTimeouts::default());
    let cases: [&[u8]; 6] = [
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x00\x00\x02\x01\x00",
        b"\x00\x00\x00\x00",
        b"\x80\x2e\x01\x00\x02",
        &[0xff; 5000],
    ];
    for case in cases {
        let mut stream = server.connect();
        let _ = stream.write_all(case);
        // The server may have closed the connection already, so a failed shutdown is ignored.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let answer = read_to_end(&mut stream);
        assert!(!answer.starts_with(b"HTTP/"), "{case:?}");
    }
    assert_eq!(exchange(authority.connect(server.connect()), HEALTH).status, 200);
}

#[test]
fn silent_and_slow_handshakes_do_not_block_new_ones() {
    let authority = Authority::new();
    let (server, _) = serve(&authority, HttpTimeouts::default());
    let silent: Vec<TcpStream> = (0..limits::TLS_HANDSHAKES_MAX + 30).map(|_| server.connect()).collect();
    let mut slow = server.connect();
    // These are the first bytes of a ClientHello. The rest is never sent.
    slow.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
    for _ in 0..5 {
        assert_eq!(exchange(authority.connect(server.connect()), HEALTH).status, 200);
    }
    // The server must have closed the oldest silent connection. The newest must still be open.
    let mut oldest = &silent[0];
    oldest.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(oldest.read(&mut [0; 16]).unwrap(), 0);
    let newest = &silent[silent.len() - 1];
    newest.set_nonblocking(true).unwrap();
    let mut newest = newest;
    assert_eq!(newest.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_slow_handshake_times_out() {
    let authority = Authority::new();
    let timeouts = HttpTimeouts { handshake: Duration::from_millis(100), ..HttpTimeouts::default() };
    let (server, _) = serve(&authority, timeouts);
    let mut silent = server.connect();
    assert_eq!(silent.read(&mut [0; 16]).unwrap(), 0);
    let mut slow = server.connect();
    slow.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
    assert!(read_to_end(&mut slow).len() < 16);
}

#[test]
fn stop_does_not_wait_for_handshakes() {
    let authority = Authority::new();
    let (mut server, _) = serve(&authority, HttpTimeouts::default());
    let _silent = server.connect();
    assert_eq!(exchange(authority.connect(server.connect()), HEALTH).status, 200);
    server.stop();
}

// ---- tests: certificates -------------------------------------------------------------------------------

#[test]
fn a_new_certificate_applies_to_new_connections_only() {
    let (first, second) = (Authority::new(), Authority::new());
    let (server, keys) = serve(&first, HttpTimeouts::default());
    let mut open = first.connect(server.connect());
    let mut ask = || {
        open.write_all(KEPT_OPEN).unwrap();
        let mut bytes = [0; 1000];
        let mut count = 0;
        while !bytes[..count].ends_with(b"{\"status\":\"ok\"}") {
            let more = open.read(&mut bytes[count..]).unwrap();
            assert!(more > 0, "{:?}", String::from_utf8_lossy(&bytes[..count]));
            count += more;
        }
        assert!(bytes.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&bytes[..count]));
    };
    ask();
    keys.replace(second.obtain(real_now_s()).unwrap()).unwrap();
    ask();
    assert_eq!(exchange(second.connect(server.connect()), HEALTH).status, 200);
    let mut refused = first.connect(server.connect());
    assert!(
        refused.write_all(HEALTH).and_then(|()| refused.flush()).is_err(),
        "the old certificate is still in use"
    );
    // A key that does not match the certificate must be refused and must change nothing.
    let key = second.obtain(real_now_s()).unwrap().key;
    let mixed = Certificate { key, ..first.obtain(real_now_s()).unwrap() };
    assert!(matches!(keys.replace(mixed), Err(CertificateError::Unusable { .. })));
    assert_eq!(exchange(second.connect(server.connect()), HEALTH).status, 200);
}

#[test]
fn a_self_signed_certificate_is_kept_until_it_expires_soon() {
    let authority = Authority::new();
    let path = authority.directory.join(certificate::SELF_SIGNED);
    fs::remove_file(&path).unwrap();
    let made = authority.obtain(NOW_S).unwrap();
    assert_eq!(made.expires_s, Some(NOW_S + limits::SELF_SIGNED_DAYS * DAY_S));
    assert!(made.findings.is_empty(), "{:?}", made.findings);
    let again = authority.obtain(NOW_S + 700 * DAY_S).unwrap();
    assert_eq!(again.chain, made.chain, "the certificate must be kept");
    let renewed = authority.obtain(NOW_S + 790 * DAY_S).unwrap();
    assert_ne!(renewed.chain, made.chain, "the certificate must be renewed");
    assert_eq!(renewed.expires_s, Some(NOW_S + (790 + limits::SELF_SIGNED_DAYS) * DAY_S));
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&authority.directory)), (0o600, 0o700));
    let files = fs::read_dir(&authority.directory).unwrap().count();
    assert_eq!(files, 2, "a temporary file is left");
    let pem = fs::read_to_string(authority.directory.join(certificate::SELF_SIGNED_AUTHORITY)).unwrap();
    assert!(!pem.contains("PRIVATE"), "the file for phones contains a key");
    assert_eq!(
        fs::read_to_string(&path).unwrap().matches("PRIVATE KEY").count(),
        2,
        "the file must contain the key of the certificate and no other key"
    );
}

#[test]
fn a_clock_in_1970_makes_a_certificate_that_is_valid_today() {
    let authority = Authority::new();
    fs::remove_file(authority.directory.join(certificate::SELF_SIGNED)).unwrap();
    let made = authority.obtain(0).unwrap();
    assert!(made.expires_s.unwrap() > 1_790_000_000 + 700 * DAY_S);
}

#[test]
fn a_new_address_causes_a_warning_and_no_new_certificate() {
    let authority = Authority::new();
    let made = authority.obtain(real_now_s()).unwrap();
    let mut more = names();
    more.push("198.51.100.1".to_owned());
    let again = certificate::obtain(&authority.options(), &more, real_now_s()).unwrap();
    assert_eq!(again.chain, made.chain);
    assert_eq!(again.findings.len(), 1);
    assert!(again.findings[0].contains("is not valid for 198.51.100.1:"), "{}", again.findings[0]);
}

#[test]
fn problems_of_the_owners_files_are_reported() {
    let (one, other) = (Authority::new(), Authority::new());
    let good = one.directory.join(certificate::SELF_SIGNED);
    let path = |name: &str, text: &[u8]| {
        let path = one.directory.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let read = |cert: &PathBuf, key: &PathBuf, now_s| {
        let tls = Tls::Files { cert: cert.clone(), key: key.clone() };
        certificate::read(&tls, &names(), now_s)
    };
    let found = read(&good, &good, real_now_s()).unwrap();
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    assert!(TlsKeys::new(found).is_ok());

    let error = |cert: &PathBuf, key: &PathBuf| read(cert, key, 0).err().unwrap().to_string();
    let missing = one.directory.join("missing.pem");
    assert!(error(&missing, &good).contains("cannot read"));
    assert!(error(&good, &missing).contains("missing.pem"));
    assert!(error(&one.directory, &good).contains("cannot read"), "a directory cannot be read");
    let empty = path("empty.pem", b"");
    assert!(error(&empty, &good).contains("contains no certificate"));
    assert!(error(&good, &empty).contains("contains no private key"));
    let authority_only = one.directory.join(certificate::SELF_SIGNED_AUTHORITY);
    assert!(error(&good, &authority_only).contains("without a passphrase"));
    let locked = path(
        "locked.pem",
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    assert!(error(&good, &locked).contains("without a passphrase"));
    let binary = path("binary.pem", &[0, 255, 7, 0]);
    assert!(error(&binary, &good).contains("contains no certificate"));
    let torn = path("torn.pem", b"-----BEGIN CERTIFICATE-----\nMIIB\n");
    assert!(error(&torn, &good).contains("contains no certificate"));

    let not_der = path("not_der.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let found = read(&not_der, &good, 0).unwrap();
    assert!(TlsKeys::new(found).is_err());
    let mixed = read(&good, &other.directory.join(certificate::SELF_SIGNED), real_now_s()).unwrap();
    assert!(TlsKeys::new(mixed).is_err(), "the key belongs to another certificate");

    let expired = read(&good, &good, real_now_s() + 900 * DAY_S).unwrap();
    assert!(expired.findings[0].contains("has expired"), "{:?}", expired.findings);
    let ending = read(&good, &good, real_now_s() + (limits::SELF_SIGNED_DAYS - 2) * DAY_S).unwrap();
    assert!(ending.findings[0].contains("expires in"), "{:?}", ending.findings);
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&good, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(read(&good, &good, real_now_s()).unwrap().findings[0].contains("chmod o-r"));
}
