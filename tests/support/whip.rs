//! A WHIP server for tests: HTTP on `std`, and str0m as the receiver of the video. A script decides how each request is
//! answered.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::account::Report;
use super::viewer::ViewerSimulator;
use super::wait_for;

/// A request that the server has received.
#[derive(Clone, Debug)]
pub struct WhipRequest {
    pub method: String,
    pub target: String,
    /// Value of the header `Authorization`; empty if it is missing.
    pub authorization: String,
    pub body: String,
}

/// How a request is answered.
pub enum WhipAction {
    /// 201 with an answer, and a receiver that plays the offered stream.
    Accept,
    /// 201 with an answer that was changed.
    AcceptEdited(fn(String) -> String),
    /// These bytes, and then the connection is closed.
    Raw(Vec<u8>),
}

impl WhipAction {
    /// Returns a response without a body, with these further header lines.
    pub fn status(status: &str, headers: &str) -> WhipAction {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n");
        WhipAction::Raw(head.into_bytes())
    }
}

type Script = Box<dyn FnMut(&WhipRequest) -> WhipAction + Send>;

struct Shared {
    script: Mutex<Script>,
    requests: Mutex<Vec<WhipRequest>>,
    receivers: Mutex<Vec<ViewerSimulator>>,
    is_down: AtomicBool,
    is_over: AtomicBool,
}

/// A running WHIP server. It ends on drop.
pub struct WhipServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl WhipServer {
    /// Starts a server that accepts every offer.
    pub fn start() -> WhipServer {
        WhipServer::scripted(|_| WhipAction::Accept)
    }

    /// Starts a server that answers POST as `script` says.
    pub fn scripted(script: impl FnMut(&WhipRequest) -> WhipAction + Send + 'static) -> WhipServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Mutex::new(Box::new(script)),
            requests: Mutex::default(),
            receivers: Mutex::default(),
            is_down: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let server = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if server.is_over.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(stream) = stream
                    && !server.is_down.load(Ordering::Relaxed)
                {
                    server.serve(stream);
                }
            }
        });
        WhipServer { address, shared, thread: Some(thread) }
    }

    /// Returns the URL of the endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/camera/whip", self.address)
    }

    /// Drops all receivers without a goodbye and closes every new connection at once, as if the server were killed.
    pub fn kill(&self) {
        self.shared.is_down.store(true, Ordering::Relaxed);
        self.shared.receivers.lock().unwrap().drain(..).for_each(|receiver| {
            receiver.vanish();
        });
    }

    /// Answers again after [`WhipServer::kill`]. The old sessions are unknown.
    pub fn restart(&self) {
        self.shared.is_down.store(false, Ordering::Relaxed);
    }

    /// Returns the requests with this method so far.
    pub fn requests(&self, method: &str) -> Vec<WhipRequest> {
        let requests = self.shared.requests.lock().unwrap();
        requests.iter().filter(|request| request.method == method).cloned().collect()
    }

    /// Returns what the latest receiver has received.
    pub fn report(&self) -> Option<Report> {
        self.shared.receivers.lock().unwrap().last().map(ViewerSimulator::report)
    }

    /// Waits until the latest receiver has received `count` units.
    pub fn wait_units(&self, count: u64) {
        wait_for(&format!("{count} units at the WHIP server"), || {
            self.report().filter(|report| report.units >= count).map(drop)
        });
    }

    /// Makes the latest receiver send a PLI.
    pub fn request_idr(&self) {
        self.shared.receivers.lock().unwrap().last().iter().for_each(|receiver| receiver.request_idr());
    }
}

impl Drop for WhipServer {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address); // ends the wait for a connection
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let _ = stream.set_write_timeout(Some(Duration::from_secs(10)));
        let Some(request) = read_request(&mut stream) else { return };
        self.requests.lock().unwrap().push(request.clone());
        let edit: fn(String) -> String = match request.method.as_str() {
            "POST" => match (self.script.lock().unwrap())(&request) {
                WhipAction::Accept => |answer| answer,
                WhipAction::AcceptEdited(edit) => edit,
                WhipAction::Raw(bytes) => {
                    let _ = stream.write_all(&bytes);
                    return;
                }
            },
            _ => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                return;
            }
        };
        let (receiver, answer) = ViewerSimulator::answering(&request.body);
        let mut receivers = self.receivers.lock().unwrap();
        receivers.push(receiver);
        let (number, answer) = (receivers.len(), edit(answer));
        let head = format!(
            "HTTP/1.1 201 Created\r\nContent-Type: application/sdp\r\nLocation: session/{number}\r\nETag: \"1\"\r\n\
             Content-Length: {}\r\n\r\n",
            answer.len()
        );
        let _ = stream.write_all((head + &answer).as_bytes());
    }
}

fn read_request(stream: &mut TcpStream) -> Option<WhipRequest> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4_096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let header = |name: &str| {
                let mut lines = head.lines().filter_map(|line| line.split_once(':'));
                let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map_or("", |(_, value)| value.trim()).to_owned()
            };
            if body.len() >= header("content-length").parse().unwrap_or(0) {
                let mut words = head.split(' ').map(str::to_owned);
                let (method, target) = (words.next()?, words.next()?);
                let authorization = header("authorization");
                return Some(WhipRequest { method, target, authorization, body: body.to_owned() });
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}
