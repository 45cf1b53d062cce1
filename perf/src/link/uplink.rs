//! The far end of an uplink: mediamtx in the viewer's namespace, to which streaming-server publishes over the link (WHIP).
//! The browser watches mediamtx within the same namespace, so only the uplink is slow.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::network::VIEWER;
use crate::Fallible;
use crate::http;
use crate::process::Process;

const PATIENCE: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(100);

/// A running mediamtx.
pub(crate) struct FarEnd {
    process: Process,
    /// Address of its WHIP and WHEP endpoints.
    pub(crate) address: SocketAddr,
    api: SocketAddr,
}

/// Returns free ports for TCP and UDP. mediamtx cannot choose ports itself.
fn free_ports() -> Fallible<[u16; 3]> {
    let (web, api) = (TcpListener::bind((VIEWER, 0))?, TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    let media = UdpSocket::bind((VIEWER, 0))?;
    Ok([web.local_addr()?.port(), api.local_addr()?.port(), media.local_addr()?.port()])
}

impl FarEnd {
    /// Starts mediamtx. The calling thread must be in the viewer's namespace.
    pub(crate) fn start(peers: &Path, shielded: bool) -> Fallible<FarEnd> {
        let program = peers.join("mediamtx/mediamtx");
        if !program.exists() {
            let path = program.display();
            return Err(format!("{path} is missing: run perf/peers/mediamtx/setup first").into());
        }
        let [web, api, media] = free_ports()?;
        let (address, api) = (SocketAddr::from((VIEWER, web)), SocketAddr::from((Ipv4Addr::LOCALHOST, api)));
        let mut command = Command::new(program);
        for name in ["RTSP", "RTMP", "HLS", "SRT", "MOQ"] {
            command.env(format!("MTX_{name}"), "no");
        }
        command.env("MTX_LOGLEVEL", "warn").env("MTX_API", "yes").env("MTX_APIADDRESS", api.to_string());
        command.env("MTX_WEBRTCADDRESS", address.to_string());
        command.env("MTX_WEBRTCLOCALUDPADDRESS", format!("{VIEWER}:{media}"));
        command.env("MTX_PATHS_CAMERA_SOURCE", "publisher");
        let process = Process::spawn("mediamtx", &mut command, shielded)?;
        let mut far_end = FarEnd { process, address, api };
        far_end.wait_for("the API", "/v3/paths/list", "items")?;
        Ok(far_end)
    }

    /// Returns the URL to which the server publishes.
    pub(crate) fn whip_url(&self) -> String {
        format!("http://{}/camera/whip", self.address)
    }

    /// Waits until the stream has arrived. The calling thread must be in the viewer's namespace.
    pub(crate) fn wait_for_stream(&mut self) -> Fallible<()> {
        self.wait_for("the stream", "/v3/paths/get/camera", r#""ready":true"#)
    }

    fn wait_for(&mut self, what: &str, path: &str, marker: &str) -> Fallible<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if matches!(http::request(self.api, "GET", path, ""), Ok((200, text)) if text.contains(marker)) {
                return Ok(());
            }
            self.process.check()?;
            if Instant::now() > deadline {
                return Err(format!("mediamtx does not have {what}:\n{}", self.process.tail()).into());
            }
            std::thread::sleep(POLL);
        }
    }
}
