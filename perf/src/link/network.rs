//! Two network namespaces, one for the server and one for the browser. Each has one TUN device with a default route, so
//! that all traffic between both passes through the files of the two devices.
//!
//! ```text
//!  namespace of the server                                     namespace of the viewer
//!  10.99.0.1  ss-link (TUN) ──► file ──► relay (link model) ──► file ──► ss-link (TUN)  10.99.0.2
//! ```

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Fallible;
use crate::socket::open_tun;

pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(crate) const VIEWER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// Address to which the viewer moves.
pub(crate) const VIEWER_MOVED: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);

const DEVICE: &str = "ss-link";
const PREFIX: &str = "perf-link-";
/// Packets that the kernel holds for the relay. The relay is the link, so the kernel must not drop packets before it.
const KERNEL_QUEUE_PACKETS: &str = "20000";

/// A network namespace with one TUN device. Dropping it removes the namespace.
pub(crate) struct Namespace {
    name: String,
    file: File,
    home: File,
}

impl Namespace {
    /// Makes a namespace and its device with this address.
    pub(crate) fn new(role: &str, address: Ipv4Addr) -> Fallible<(Namespace, File)> {
        let name = format!("{PREFIX}{}-{role}", std::process::id());
        ip(&["netns", "add", &name])?;
        let opened = (File::open(format!("/run/netns/{name}")), File::open("/proc/thread-self/ns/net"));
        let (file, home) = match opened {
            (Ok(file), Ok(home)) => (file, home),
            (Err(error), _) | (_, Err(error)) => {
                let _ = ip(&["netns", "delete", &name]);
                return Err(error.into());
            }
        };
        let namespace = Namespace { name, file, home };
        let device = namespace.within(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").ok();
            open_tun(DEVICE)
        })??;
        namespace.ip(&["link", "set", "lo", "up"])?;
        namespace.ip(&["address", "add", &format!("{address}/24"), "dev", DEVICE])?;
        namespace.ip(&["link", "set", DEVICE, "txqueuelen", KERNEL_QUEUE_PACKETS, "up"])?;
        namespace.ip(&["route", "add", "default", "dev", DEVICE])?;
        Ok((namespace, device))
    }

    /// Runs `work` on this thread in the namespace. Child processes that `work` starts stay in it.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
        let result = work();
        move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(result)
    }

    /// Replaces an address of the namespace by another one, as when a laptop changes its network.
    pub(crate) fn change_address(&self, from: Ipv4Addr, to: Ipv4Addr) -> Fallible<()> {
        self.ip(&["address", "add", &format!("{to}/24"), "dev", DEVICE])?;
        self.ip(&["address", "delete", &format!("{from}/24"), "dev", DEVICE])?;
        self.ip(&["route", "replace", "default", "dev", DEVICE])
    }

    /// Runs the program `ip` in the namespace.
    fn ip(&self, arguments: &[&str]) -> Fallible<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }
}

/// Returns true if the address is that of server or viewer.
pub(crate) fn is_inside(address: Ipv4Addr) -> bool {
    [SERVER, VIEWER, VIEWER_MOVED].contains(&address)
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> Fallible<()> {
    let output =
        Command::new("ip").args(arguments).output().map_err(|error| format!("cannot run ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// Removes the namespaces of harnesses that no longer run.
pub(crate) fn remove_stale() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|id| !std::path::Path::new(&format!("/proc/{id}")).exists()) {
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}
