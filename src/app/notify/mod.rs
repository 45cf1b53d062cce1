//! Tells another program what happened: POSTs each event to --webhook, as a task of the HTTP runtime. One message is
//! delivered at a time. A message whose delivery fails is tried again until it is delivered or too many others wait.

mod queue;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use bytes::Bytes;
use hyper::Method;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use self::queue::Queue;
use crate::app::publish::backoff::Backoff;
use crate::app::publish::error::PublishError;
use crate::app::publish::exchange::{Body, Exchange, printable};
use crate::base::clock::{monotonic_ns, unix_s};
use crate::base::limits;
use crate::base::log_limit::LogLimit;
use crate::config::{Webhook, Whip};
use crate::http::StreamNames;
use crate::recorder::RecordedEvent;
use crate::recorder::names::rfc3339;

/// What happened.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::app) enum Happening {
    /// The detector sees something that `--record-on` names.
    EventBegin,
    /// It is gone.
    EventEnd,
}

/// A message, as it is sent.
#[derive(Serialize)]
struct Message<'a> {
    #[serde(rename = "type")]
    happening: Happening,
    at: Option<String>,
    stream: &'a str,
    title: &'a str,
    label: &'a str,
    /// File name of the recording that shows it.
    recording: Option<&'a str>,
    /// The event in that recording, once it has ended.
    event: Option<&'a RecordedEvent>,
}

/// Delivers messages. Without --webhook all messages are dropped.
#[derive(Debug)]
pub(in crate::app) struct Messenger {
    webhook: Option<Webhook>,
    stream: StreamNames,
    queue: Queue,
    limit: LogLimit,
}

impl Messenger {
    pub(super) fn new(webhook: Option<Webhook>, stream: StreamNames) -> Arc<Messenger> {
        Arc::new(Messenger { webhook, stream, queue: Queue::default(), limit: LogLimit::default() })
    }

    /// Adds a message about an event with this class.
    pub(super) fn tell(
        &self,
        happening: Happening,
        label: &str,
        recording: Option<&str>,
        event: Option<&RecordedEvent>,
    ) {
        if self.webhook.is_none() {
            return;
        }
        let StreamNames { name, title } = &self.stream;
        let at = u64::try_from(unix_s()).ok().and_then(rfc3339);
        let message = Message { happening, at, stream: name, title, label, recording, event };
        let has_room = self.queue.push(serde_json::to_vec(&message).unwrap_or_default().into());
        if !has_room && self.limit.allows(monotonic_ns()) {
            log::warn!("webhook: {} messages wait, so the oldest was dropped", limits::NOTIFICATIONS_MAX);
        }
    }

    /// Delivers messages until `stopped` becomes true, then those that are left if it goes fast.
    pub(super) async fn run(self: Arc<Self>, mut stopped: watch::Receiver<bool>) {
        let Some(webhook) = &self.webhook else { return };
        tokio::select! {
            () = self.deliver(webhook) => {}
            () = async { drop(stopped.wait_for(|&stopped| stopped).await) } => {
                let rest = async {
                    while let Some((number, message)) = self.queue.try_oldest() {
                        if post(webhook, message).await.is_err() {
                            return;
                        }
                        self.queue.remove(number);
                    }
                };
                // What is left after this time is lost.
                let _ = timeout(limits::WHIP_FINISH_TIMEOUT, rest).await;
            }
        }
    }

    async fn deliver(&self, webhook: &Webhook) {
        let (mut backoff, log) = (Backoff::default(), LogLimit::new(limits::NOTIFY_LOG_NS));
        loop {
            let (number, message) = self.queue.oldest().await;
            match post(webhook, message).await {
                Ok(()) => {
                    self.queue.remove(number);
                    backoff = Backoff::default();
                }
                Err(error) => {
                    if log.allows(monotonic_ns()) {
                        log::warn!("webhook: a message was not delivered, it is tried again: {error}");
                    }
                    let mut random = [0; 2];
                    // Without random numbers the wait is half as long.
                    let _ = rand::fill(&mut random);
                    sleep(backoff.after(&error, Duration::ZERO, u16::from_be_bytes(random))).await;
                }
            }
        }
    }
}

/// Sends one message. Any status from 200 to 299 is success.
async fn post(webhook: &Webhook, message: Bytes) -> Result<(), PublishError> {
    let signature = webhook.secret.as_ref().map(|secret| signature(secret.expose(), &message));
    let target = Whip { url: webhook.url.clone(), token: None, ca: None };
    let body = Body { media_type: "application/json", bytes: message, signature };
    let exchange = Exchange { whip: &target, method: Method::POST, body: Some(body) };
    let reply = exchange.run(&target.url).await?;
    if (200..300).contains(&reply.status) {
        return Ok(());
    }
    Err(PublishError::Refused {
        host: reply.url.authority(),
        status: reply.status,
        text: printable(&reply.body.text),
        retry_after: reply.retry_after,
    })
}

/// Returns the value of the header with which the receiver checks who sent the message: an HMAC-SHA-256 of the body.
fn signature(secret: &[u8], message: &[u8]) -> String {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message);
    let hex = tag.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha256={}", hex.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_that_of_rfc_4231() {
        // RFC 4231, test case 2.
        assert_eq!(
            signature(b"Jefe", b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
