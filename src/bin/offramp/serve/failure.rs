//! What a client is told when a request cannot be answered: a status, and OpenAI's JSON.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    /// The field of the request that it is about.
    param: Option<String>,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into() }
    }

    /// The request is wrong, in the field `param`.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("invalid_value"), message);
        Self { param: Some(param.to_owned()), ..error }
    }

    /// The request asks for something that is not offered here.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// The request has a field that means nothing here; `meant` is what it may have been meant to be.
    pub fn unknown(param: &str, meant: Option<&str>) -> Self {
        let shown: String = param.chars().take(64).collect();
        let meant = meant.map_or_else(String::new, |meant| format!("; {meant} may be meant"));
        let message = format!("{shown} is no field that this server knows, and is not ignored{meant}");
        Self { code: Some("unknown_parameter"), ..Self::invalid(&shown, message) }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    pub fn context_length_exceeded(prompt: usize, n_ctx: usize) -> Self {
        let message = format!(
            "context_length_exceeded: the prompt has {prompt} tokens and the context holds {n_ctx}; shorten it"
        );
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("context_length_exceeded"), message)
    }

    pub fn with_status(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        Self::new(status, kind, Some(code), message)
    }

    /// The model failed. What it said is the operator's to read, in the log; it may quote what it worked on.
    pub fn internal() -> Self {
        Self::with_status(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "the model failed; the server's log says why",
        )
    }

    pub fn busy() -> Self {
        Self::with_status(
            StatusCode::SERVICE_UNAVAILABLE,
            "queue_full",
            "too many requests wait already; try again later",
        )
    }

    pub fn stopping() -> Self {
        Self::with_status(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is being stopped")
    }

    /// OpenAI's JSON.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.status {
            StatusCode::UNAUTHORIZED => headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            StatusCode::SERVICE_UNAVAILABLE => headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1")),
            _ => None,
        };
        response
    }
}
