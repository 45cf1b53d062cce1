//! Reads the ring for all viewers over HTTP: finds where to begin, then passes each unit to the muxer.

use crate::base::limits;
use crate::camera::{Camera, CameraStatus, Cursor, IdrRequest, Next};
use crate::recorder::endless::{EndlessMuxer, FragmentedUnit};
use crate::recorder::recording::StartPoint;

/// A cursor and a muxer.
pub(super) struct RingReader {
    cursor: Cursor,
    muxer: EndlessMuxer,
}

/// Result of [`RingReader::poll`].
pub(super) enum Polled {
    /// The next unit of the stream.
    Unit(FragmentedUnit),
    /// A slot that gives no unit: poll again.
    Again,
    /// There is no new slot.
    Empty,
}

impl RingReader {
    /// Returns a reader that begins at the newest IDR in the ring. If the ring holds none, requests one from the
    /// camera.
    pub(super) fn new(camera: &Camera, mut muxer: EndlessMuxer, now_ns: i64) -> RingReader {
        let newest = camera.cursor();
        let start = find_start(camera, &newest, &mut muxer, now_ns);
        muxer.handle_gap();
        if start.is_none() && camera.request_idr(now_ns) == IdrRequest::TooSoon {
            log::debug!("HTTP live waits for the camera's next IDR, because IDRs were requested too often");
        }
        RingReader { cursor: start.unwrap_or(newest), muxer }
    }

    /// Reads the next slot. Never blocks.
    pub(super) fn poll(&mut self, now_ns: i64) -> Polled {
        match self.cursor.next(now_ns) {
            Next::Unit(view) => self.muxer.push(&view, now_ns).map_or(Polled::Again, Polled::Unit),
            Next::Lapped { .. } | Next::Rejected(_) | Next::Restarted => {
                self.handle_gap();
                Polled::Again
            }
            Next::Empty | Next::Away => Polled::Empty,
        }
    }

    /// Must be called if a unit of [`RingReader::poll`] was not used.
    pub(super) fn handle_gap(&mut self) {
        self.muxer.handle_gap();
    }
}

/// Returns a cursor at the newest IDR of the ring, or at the newest recovery point if the ring holds no IDR. All units
/// before are read for their parameter sets, because an IDR may lack them. Returns `None` if the ring holds neither.
fn find_start(camera: &Camera, newest: &Cursor, muxer: &mut EndlessMuxer, now_ns: i64) -> Option<Cursor> {
    let CameraStatus::Attached { layout, .. } = camera.status() else { return None };
    let slots = layout.slot_count();
    let held = slots.saturating_sub(limits::PRE_ROLL_MARGIN_UNITS.min(slots / 2));
    let (oldest, mut cursor) = (1..=held).rev().find_map(|back| Some((back, newest.units_back(back)?)))?;
    let (mut idr, mut recovery_point) = (None, None);
    for back in (1..=oldest).rev() {
        match cursor.next(now_ns) {
            Next::Unit(view) => match muxer.remember(&view, now_ns) {
                Some(StartPoint::Idr) => idr = Some(back),
                Some(StartPoint::RecoveryPoint) => recovery_point = Some(back),
                None => {}
            },
            Next::Rejected(_) => muxer.handle_gap(),
            Next::Lapped { .. } | Next::Restarted | Next::Empty | Next::Away => break,
        }
    }
    newest.units_back(idr.or(recovery_point)?)
}
