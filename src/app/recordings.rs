//! Passes recording commands of the HTTP API to the recorder, and converts the recorder's answers to the types of the
//! API. This module must not touch files.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::http::{
    ApiError, BoxFuture, RecordingCommand, RecordingFailure, RecordingFile, RecordingReply, RecordingStatus,
};
use crate::recorder::library::Download;
use crate::recorder::{RecorderError, RecorderHandle, RecordingReport};

/// Runs a command of the HTTP API on the recorder and returns the reply. If `recorder` is `None`, this and the other
/// functions of the module return the error 501.
pub(super) async fn run(
    recorder: Option<RecorderHandle>,
    command: RecordingCommand,
) -> Result<RecordingReply, ApiError> {
    let recorder = recorder.ok_or_else(no_recorder)?;
    let reply = match command {
        RecordingCommand::Start(request) => recorder.start(request?).await.map(RecordingReply::Started),
        RecordingCommand::Stop => recorder.stop().await.map(|stopped| RecordingReply::Stopped {
            reason: stopped.reason.as_str(),
            kept: stopped.kept,
            message: (!stopped.kept).then(|| stopped.not_kept_text()),
            report: stopped.report,
        }),
        RecordingCommand::Heartbeat => recorder.heartbeat().await.map(|()| RecordingReply::HeartbeatAccepted),
        RecordingCommand::List(filter) => match recorder.find(filter).await {
            Ok((recordings, total)) => {
                Ok(RecordingReply::List { recordings, total, free_bytes: recorder.free_bytes().await })
            }
            Err(error) => Err(error),
        },
        RecordingCommand::Delete(name) => {
            recorder.delete(name.clone()).await.map(|()| RecordingReply::Deleted { name })
        }
    };
    reply.map_err(|error| api_error(&error))
}

/// Returns the recorder's status in the types of the HTTP API.
pub(super) async fn status(recorder: Option<RecorderHandle>) -> Result<RecordingStatus, ApiError> {
    let recorder = recorder.ok_or_else(no_recorder)?;
    let status = recorder.status().await.map_err(|error| api_error(&error))?;
    Ok(RecordingStatus {
        recording: status.recording,
        state: status.state,
        message: status.report.as_ref().and_then(RecordingReport::waiting_text),
        report: status.report,
        pre_roll_held: status.pre_roll_held_s,
        reason: status.reason.map(|reason| reason.as_str()),
        error: status.error.map(|error| RecordingFailure {
            error: error.to_string(),
            code: error.code(),
            status: error.status(),
        }),
    })
}

/// Opens a recording for download.
pub(super) async fn open(
    recorder: Option<RecorderHandle>,
    name: String,
    until: Option<u64>,
) -> Result<Arc<dyn RecordingFile>, ApiError> {
    let recorder = recorder.ok_or_else(no_recorder)?;
    let download = recorder.open(name, until).await.map_err(|error| api_error(&error))?;
    Ok(Arc::new(OpenRecording { download: Arc::new(download), recorder }))
}

fn no_recorder() -> ApiError {
    let message = "this server does not record, because it was started with --no-recorder";
    ApiError::new(501, "no_recorder", message)
}

fn api_error(error: &RecorderError) -> ApiError {
    let retry_after_s = (error.status() == 503).then_some(1);
    ApiError { status: error.status(), code: error.code(), message: error.to_string(), retry_after_s }
}

struct OpenRecording {
    download: Arc<Download>,
    recorder: RecorderHandle,
}

impl RecordingFile for OpenRecording {
    fn bytes(&self) -> u64 {
        self.download.bytes
    }

    fn content_type(&self) -> &'static str {
        self.download.content_type
    }

    fn etag(&self) -> String {
        self.download.etag.clone()
    }

    fn name(&self) -> String {
        self.download.name.clone()
    }

    fn read(&self, offset: u64, bytes_max: u64) -> BoxFuture<io::Result<Bytes>> {
        let (download, recorder) = (Arc::clone(&self.download), self.recorder.clone());
        Box::pin(async move { recorder.read(download, offset, bytes_max).await })
    }

    fn finished_until(&self) -> Option<u64> {
        self.download.finished_until()
    }

    fn grown_beyond(&self, bytes: u64) -> BoxFuture<u64> {
        let progress = self.download.progress.clone();
        Box::pin(async move {
            let Some(mut progress) = progress else { return bytes };
            let grown = progress.wait_for(|now| now.committed_bytes > bytes || now.finished).await;
            // An error means that the recorder has dropped the sender, which it does when it closes the file. The file
            // then no longer grows, so `bytes` is the final number.
            grown.map_or(bytes, |now| now.committed_bytes.max(bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn without_a_recorder_a_malformed_start_is_refused_with_501() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let malformed = ApiError::new(400, "bad_json", "not JSON");
        let error = runtime.block_on(run(None, RecordingCommand::Start(Err(malformed)))).unwrap_err();
        assert_eq!((error.status, error.code), (501, "no_recorder"));
    }
}
