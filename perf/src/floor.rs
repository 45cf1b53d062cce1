//! The floor: a bare sender without WebRTC. It reads the camera's ring with the reader and packetiser of the server. It
//! sends each unit, encrypted or not, to all viewers that sent a hello. It makes one `sendmsg` call per GSO batch, on
//! the thread of the camera wait. What a server costs above this floor is the cost of WebRTC.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use streaming_server::base::limits::GSO_SEGMENTS_MAX;
use streaming_server::camera::{Camera, Cursor, Next, Wake, Wakeup, waiter};
use streaming_server::h264::{Assembler, Packetizer, Payloads};

use crate::Fallible;
use crate::socket::{prepare_sender, send_batch};
use crate::srtp::{Profile, Srtp};

/// RTP payload type of the sent packets.
pub(crate) const PAYLOAD_TYPE: u8 = 96;
const MAGIC: &[u8] = b"perf-floor-hello";
const RTP_HEADER_BYTES: usize = 12;
/// Interval between two units at 30 units per second, in ticks of 90 kHz.
const RTP_STEP: u32 = 3_000;

/// The message with which a viewer registers at the bare sender. It contains the cipher and the SSRC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Cipher of the packets; `None` means no encryption.
    pub(crate) profile: Option<Profile>,
    pub(crate) ssrc: u32,
}

impl Hello {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let profile = match self.profile {
            None => 0,
            Some(Profile::Aes128Cm) => 1,
            Some(Profile::Aes128Gcm) => 7,
            Some(Profile::Aes256Gcm) => 8,
        };
        [MAGIC, &[profile], &self.ssrc.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Hello> {
        let (profile, ssrc) = bytes.strip_prefix(MAGIC)?.split_first()?;
        let profile = match profile {
            0 => None,
            1 => Some(Profile::Aes128Cm),
            7 => Some(Profile::Aes128Gcm),
            8 => Some(Profile::Aes256Gcm),
            _ => return None,
        };
        Some(Hello { profile, ssrc: u32::from_be_bytes(ssrc.try_into().ok()?) })
    }

    /// Returns keys derived from the SSRC, or `None` without encryption. The keys are not secret; they are needed only
    /// so that the ciphers do their work.
    pub(crate) fn srtp(&self) -> Option<Srtp> {
        let profile = self.profile?;
        let bytes: Vec<u8> = self.ssrc.to_be_bytes().into_iter().cycle().take(46).collect();
        Srtp::new(profile, &bytes[..profile.key_bytes()], &bytes[32..32 + profile.salt_bytes()])
    }
}

struct Listener {
    remote: SocketAddrV4,
    ssrc: u32,
    keys: Option<Srtp>,
    /// Extended sequence number of the next packet.
    next: u64,
}

struct Sender {
    socket: Arc<UdpSocket>,
    cursor: Cursor,
    assembler: Assembler,
    packetizer: Packetizer,
    payloads: Vec<Arc<Payloads>>,
    listeners: Vec<Listener>,
    rtp_time: u32,
    batch: Vec<u8>,
    failed: u64,
}

impl Sender {
    /// Sends all available units of the ring to all listeners.
    fn turn(&mut self) {
        loop {
            match self.cursor.next(crate::clock::monotonic_ns()) {
                Next::Unit(view) => {
                    let Ok(unit) = self.assembler.assemble(&view.bytes) else { continue };
                    self.packetizer.packetize(&unit, &mut self.payloads);
                    if view.is_intact() {
                        self.rtp_time = self.rtp_time.wrapping_add(RTP_STEP);
                        self.fan_out();
                    }
                }
                Next::Empty | Next::Away => return,
                _ => {}
            }
        }
    }

    fn fan_out(&mut self) {
        let payloads: Vec<&[u8]> = self.payloads.iter().flat_map(|several| several.iter()).collect();
        for listener in &mut self.listeners {
            let last = payloads.len().saturating_sub(1);
            let mut rest = payloads.as_slice();
            let mut sent = 0;
            while let Some(first) = rest.first() {
                let length = batch_length(rest);
                self.batch.clear();
                for (index, payload) in rest[..length].iter().enumerate() {
                    let marker = sent + index == last;
                    listener.write(marker, self.rtp_time, payload, &mut self.batch);
                }
                let segment_bytes = segment(first, listener);
                if send_batch(&self.socket, listener.remote, &self.batch, segment_bytes).is_err() {
                    self.failed += 1;
                }
                sent += length;
                rest = &rest[length..];
            }
        }
    }
}

/// Returns the size of the datagram that carries `payload`, in bytes.
fn segment(payload: &[u8], listener: &Listener) -> usize {
    let tag_bytes = listener.keys.as_ref().map_or(0, Srtp::tag_bytes);
    RTP_HEADER_BYTES + payload.len() + tag_bytes
}

/// Returns how many of the first payloads form a batch. All payloads of a batch have the same size, except that the
/// last may be shorter.
fn batch_length(payloads: &[&[u8]]) -> usize {
    let Some(first) = payloads.first() else { return 0 };
    let equal =
        payloads.iter().take(GSO_SEGMENTS_MAX).take_while(|payload| payload.len() == first.len()).count();
    let shorter =
        equal < GSO_SEGMENTS_MAX && payloads.get(equal).is_some_and(|next| next.len() < first.len());
    equal + usize::from(shorter)
}

impl Listener {
    fn write(&mut self, marker: bool, rtp_time: u32, payload: &[u8], out: &mut Vec<u8>) {
        let mut header = [0; RTP_HEADER_BYTES];
        header[0] = 0x80;
        header[1] = PAYLOAD_TYPE | if marker { 0x80 } else { 0 };
        header[2..4].copy_from_slice(&(self.next as u16).to_be_bytes());
        header[4..8].copy_from_slice(&rtp_time.to_be_bytes());
        header[8..12].copy_from_slice(&self.ssrc.to_be_bytes());
        match &self.keys {
            Some(keys) => {
                // The encryption fails only for a payload of gigabytes, so the result is ignored.
                let _ = keys.seal_rtp(&header, payload, self.ssrc, self.next, out);
            }
            None => {
                out.extend_from_slice(&header);
                out.extend_from_slice(payload);
            }
        }
        self.next += 1;
    }
}

/// A wake-up that runs the sender. The thread of the camera wait calls it, so that units are sent at once on that
/// thread.
struct SendOnWakeup(Arc<Mutex<Sender>>);

impl Wakeup for SendOnWakeup {
    fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).turn();
    }
}

/// Runs the bare sender until the process is killed.
pub(crate) fn run(shm: &str) -> Fallible<()> {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0")?);
    prepare_sender(&socket)?;
    let camera = Camera::new(shm, Wake::Auto);
    let sender = Arc::new(Mutex::new(Sender {
        socket: Arc::clone(&socket),
        cursor: camera.cursor(),
        assembler: Assembler::default(),
        packetizer: Packetizer::for_rtp(),
        payloads: Vec::new(),
        listeners: Vec::new(),
        rtp_time: 0,
        batch: Vec::with_capacity(1 << 16),
        failed: 0,
    }));
    camera.add_wakeup(Arc::new(SendOnWakeup(Arc::clone(&sender))));
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::spawn(move || waiter::run(camera, stop, false));
    println!("listening: http={0} udp={0}", socket.local_addr()?);
    let mut buffer = [0; 256];
    loop {
        let (count, from) = socket.recv_from(&mut buffer)?;
        let (Some(hello), SocketAddr::V4(remote)) = (Hello::decode(&buffer[..count]), from) else { continue };
        let mut sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.listeners.iter().all(|listener| listener.remote != remote) {
            let keys = hello.srtp();
            sender.listeners.push(Listener { remote, ssrc: hello.ssrc, keys, next: 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_survives_a_round_trip() {
        for profile in [None, Some(Profile::Aes128Cm), Some(Profile::Aes128Gcm), Some(Profile::Aes256Gcm)] {
            let hello = Hello { profile, ssrc: 0xDEAD_BEEF };
            assert_eq!(Hello::decode(&hello.encode()), Some(hello.clone()));
            assert_eq!(hello.srtp().is_some(), profile.is_some());
        }
        assert_eq!(Hello::decode(b"perf-floor-hello"), None);
    }

    #[test]
    fn batch_has_equal_payloads_and_at_most_one_shorter_at_the_end() {
        let zeros = [0; 1140];
        let payloads = |sizes: &[usize]| -> Vec<&[u8]> { sizes.iter().map(|size| &zeros[..*size]).collect() };
        assert_eq!(batch_length(&payloads(&[60, 1140, 1140])), 1);
        assert_eq!(batch_length(&payloads(&[1140, 1140, 70, 1140])), 3);
        assert_eq!(batch_length(&payloads(&[1140; 60])), GSO_SEGMENTS_MAX);
        assert_eq!(batch_length(&[]), 0);
    }
}
