//! DTLS for the handshake of the load viewers. str0m calls this module, and this module uses dimpl. It also exposes the
//! SRTP keys, so that a viewer can decrypt the media without str0m. It does no I/O.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use str0m::crypto::dtls::{
    DtlsCert, DtlsImplError, DtlsInstance, DtlsOutput, DtlsProvider, DtlsVersion, ProtocolVersion,
    SrtpProfile,
};
use str0m::crypto::{CryptoError, CryptoProvider};

use crate::srtp::{Profile, Srtp};

/// SRTP keys of a finished handshake, per direction.
pub(crate) struct Keys {
    pub(crate) profile: Profile,
    pub(crate) send: Srtp,
    pub(crate) receive: Srtp,
}

thread_local! {
    static AGREED: Cell<Option<Keys>> = const { Cell::new(None) };
}

/// Takes and returns the keys of the handshake that finished last on this thread. Callers must call this after every
/// `poll_output`.
pub(crate) fn take_keys() -> Option<Keys> {
    AGREED.take()
}

/// Returns str0m's crypto provider with the DTLS of this module.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static SHARED: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        Arc::new(CryptoProvider { dtls_provider: &KeyExportingDtls, ..str0m::crypto::from_feature_flags() })
    };
    Arc::clone(SHARED.get_or_init(make))
}

#[derive(Debug)]
struct KeyExportingDtls;

impl DtlsProvider for KeyExportingDtls {
    /// Returns the certificate that all viewers share. Making a certificate takes longer than all other work of
    /// starting a viewer.
    fn generate_certificate(&self) -> Option<DtlsCert> {
        static SHARED: OnceLock<Option<DtlsCert>> = OnceLock::new();
        SHARED.get_or_init(|| dimpl::certificate::generate_self_signed_certificate().ok()).clone()
    }

    fn new_dtls(
        &self,
        certificate: &DtlsCert,
        now: Instant,
        version: DtlsVersion,
        _mtu: Option<usize>,
    ) -> Result<Box<dyn DtlsInstance>, CryptoError> {
        let config = dimpl::Config::builder()
            .build()
            .map_err(|error| CryptoError::Other(format!("DTLS configuration: {error}")))?;
        let (config, certificate) = (Arc::new(config), certificate.clone());
        let dtls = match version {
            DtlsVersion::Dtls13 => dimpl::Dtls::new_13(config, certificate, now),
            DtlsVersion::Auto => dimpl::Dtls::new_auto(config, certificate, now),
            _ => dimpl::Dtls::new_12(config, certificate, now),
        };
        Ok(Box::new(Dtls(dtls)))
    }
}

struct Dtls(dimpl::Dtls);

impl fmt::Debug for Dtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dtls")
    }
}

fn profile_of(profile: SrtpProfile) -> Option<Profile> {
    Some(match profile {
        SrtpProfile::AES128_CM_SHA1_80 => Profile::Aes128Cm,
        SrtpProfile::AEAD_AES_128_GCM => Profile::Aes128Gcm,
        SrtpProfile::AEAD_AES_256_GCM => Profile::Aes256Gcm,
        _ => return None,
    })
}

impl DtlsInstance for Dtls {
    fn set_active(&mut self, active: bool) {
        self.0.set_active(active);
    }

    fn handle_packet(&mut self, packet: &[u8]) -> Result<(), DtlsImplError> {
        self.0.handle_packet(packet)
    }

    fn poll_output<'a>(&mut self, buffer: &'a mut [u8]) -> DtlsOutput<'a> {
        let is_client = self.0.is_active();
        let output = self.0.poll_output(buffer);
        if let DtlsOutput::KeyingMaterial(material, profile) = &output {
            let keys = profile_of(*profile).and_then(|profile| {
                let (send, receive) = Srtp::pair(profile, material, is_client)?;
                Some(Keys { profile, send, receive })
            });
            AGREED.set(keys);
        }
        output
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), DtlsImplError> {
        self.0.handle_timeout(now)
    }

    fn send_application_data(&mut self, data: &[u8]) -> Result<usize, DtlsImplError> {
        self.0.send_application_data(data)
    }

    fn is_active(&self) -> bool {
        self.0.is_active()
    }

    fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.0.protocol_version()
    }

    fn is_closing(&self) -> bool {
        self.0.is_closing()
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    fn close(&mut self) -> Result<(), DtlsImplError> {
        self.0.close()
    }
}
