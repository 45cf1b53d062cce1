//! The recorder as the HTTP side sees it: commands in, JSON out, files to read. May not touch a file itself.

use std::io;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use crate::http::{ApiError, BoxFuture, RecordingCommand, RecordingFile};
use crate::recorder::library::Download;
use crate::recorder::{RecorderError, RecorderHandle, StartRequest};

/// Carries a command out.
pub(super) async fn perform(
    recorder: Option<RecorderHandle>,
    command: RecordingCommand,
) -> Result<Value, ApiError> {
    let recorder = recorder.ok_or_else(no_recorder)?;
    match command {
        RecordingCommand::Start(body) => {
            let request = start_request(&body)?;
            told(recorder.start(request).await)
        }
        RecordingCommand::Stop => told(recorder.stop().await),
        RecordingCommand::Heartbeat => {
            told(recorder.heartbeat().await.map(|()| json!({ "status": "recording" })))
        }
        RecordingCommand::Status => told(recorder.status().await),
        RecordingCommand::List => {
            told(recorder.list().await.map(|recordings| json!({ "recordings": recordings })))
        }
        RecordingCommand::Delete(name) => {
            told(recorder.delete(name.clone()).await.map(|()| json!({ "status": "deleted", "name": name })))
        }
    }
}

/// Opens a recording.
pub(super) async fn open(
    recorder: Option<RecorderHandle>,
    name: String,
) -> Result<Arc<dyn RecordingFile>, ApiError> {
    let recorder = recorder.ok_or_else(no_recorder)?;
    let download = recorder.open(name).await.map_err(|error| refused(&error))?;
    Ok(Arc::new(OpenRecording(download)))
}

/// The program was told to leave recording to others.
fn no_recorder() -> ApiError {
    ApiError::new(501, "no_recorder", "this server does not record: it was started with --no-recorder")
}

/// An empty body is a start without wishes.
fn start_request(body: &[u8]) -> Result<StartRequest, ApiError> {
    if body.trim_ascii().is_empty() {
        return Ok(StartRequest::default());
    }
    // By way of a map: serde would take an array for the struct as well.
    let fields = serde_json::from_slice(body).and_then(|fields| {
        serde_json::from_value(Value::Object(fields)) // only an object has fields
    });
    fields.map_err(|error: serde_json::Error| {
        let reason: String = error.to_string().chars().take(160).collect();
        ApiError::new(
            400,
            "bad_json",
            format!("expected {{\"filename\", \"pre_roll_s\", \"max_duration_s\", \"heartbeat_s\"}}, all optional: {reason}"),
        )
    })
}

fn told<T: Serialize>(result: Result<T, RecorderError>) -> Result<Value, ApiError> {
    result.map(|answer| json!(answer)).map_err(|error| refused(&error))
}

fn refused(error: &RecorderError) -> ApiError {
    let retry_after_s = (error.status() == 503).then_some(1);
    ApiError { status: error.status(), code: error.code(), message: error.to_string(), retry_after_s }
}

struct OpenRecording(Download);

impl RecordingFile for OpenRecording {
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    fn content_type(&self) -> &'static str {
        self.0.content_type
    }

    fn etag(&self) -> String {
        self.0.etag.clone()
    }

    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(out, offset)
    }

    fn grown_beyond(&self, bytes: u64) -> BoxFuture<u64> {
        let progress = self.0.progress.clone();
        Box::pin(async move {
            let Some(mut progress) = progress else { return bytes };
            let grown = progress.wait_for(|now| now.committed_bytes > bytes || now.finished).await;
            // The sender is gone when the file is closed: then it has grown for the last time.
            grown.map_or(bytes, |now| now.committed_bytes.max(bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn an_empty_body_is_a_start_without_wishes() {
        for body in ["", " \r\n", "{}"] {
            assert_eq!(start_request(body.as_bytes()).unwrap(), StartRequest::default());
        }
        let request = start_request(br#"{"filename":"a.h264","pre_roll_s":1.5}"#).unwrap();
        assert_eq!((request.filename.as_deref(), request.pre_roll_s), (Some("a.h264"), Some(1.5)));
    }

    #[test]
    fn a_body_that_is_no_request_is_refused_with_400() {
        for body in ["[]", "{", "\"a\"", "{\"filename\":5}", "\0"] {
            let error = start_request(body.as_bytes()).unwrap_err();
            assert_eq!((error.status, error.code), (400, "bad_json"), "{body}");
        }
    }
}
