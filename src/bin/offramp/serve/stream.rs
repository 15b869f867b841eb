//! A reply as server-sent events. Dropped before its end, because its reader is gone, it cancels the request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;

use super::answer::Writer;
use super::engine::{Event, Running};
use super::failure::ApiError;

/// How often a comment is sent while there is nothing else, so that nobody takes a long prompt for a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The events of one reply.
struct Reply {
    running: Running,
    writer: Writer,
    ready: VecDeque<String>,
    done: bool,
}

/// Streams what comes from `running`.
pub fn response(running: Running, writer: Writer) -> Response {
    let ready = writer.first().map(|chunk| chunk.to_string()).into_iter().collect();
    let reply = Reply { running, writer, ready, done: false };
    Sse::new(reply).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

impl Reply {
    fn take(&mut self, event: Option<Event>) {
        let chunks = match event {
            Some(Event::Token(piece)) => self.writer.token(piece),
            Some(Event::Finished(finished)) => {
                self.done = true;
                let mut chunks = self.writer.finish(&finished);
                chunks.push(Value::from("[DONE]"));
                chunks
            }
            // Clients raise an error at a chunk with this field.
            Some(Event::Failed(error)) => self.fail(super::api_error(&error)),
            Some(Event::Stopping) | None => self.fail(ApiError::stopping()),
        };
        // The end is no JSON: it stands without quotes.
        self.ready.extend(chunks.into_iter().map(|chunk| match chunk {
            Value::String(text) => text,
            chunk => chunk.to_string(),
        }));
    }

    fn fail(&mut self, error: ApiError) -> Vec<Value> {
        self.done = true;
        vec![error.body()]
    }
}

impl Stream for Reply {
    type Item = Result<Sent, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Sent::default().data(data))));
            }
            if self.done {
                return Poll::Ready(None);
            }
            let event = ready!(self.running.events.poll_recv(context));
            self.take(event);
        }
    }
}
