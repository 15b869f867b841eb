//! Routes, and what stands before all of them: the names and pages that are let in, keys, sizes and times. Every answer is
//! JSON in OpenAI's shape but for the page and the metrics. It never logs what a request or an answer says.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::access::Origin;
use super::app::{App, Prepared};
use super::engine::{Event, TokenPiece};
use super::failure::ApiError;
use super::{api_error, page, stream};

/// Most bytes of a request's body.
const MAX_BODY: usize = 4 << 20;

/// Routes, as metrics name them.
const ROUTES: &[&str] = &[
    "/",
    "/health",
    "/v1/health",
    "/metrics",
    "/props",
    "/v1/models",
    "/models",
    "/v1/chat/completions",
    "/v1/completions",
];

pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/health", get(health))
        .route("/v1/health", get(health))
        .route("/metrics", get(metrics))
        .route("/props", get(props))
        .route("/models", get(models))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

/// Lets in who may use the server, and counts.
async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let route = ROUTES.iter().find(|route| **route == path).copied().unwrap_or("other");
    // A page that may read answers may read refusals, too: its script then tells a wrong key from a broken line.
    let allowed = allowed_origin(&app, request.headers());
    let asked = allowed.is_some().then(|| asked_headers(request.headers())).flatten();
    let mut response = match admit(&app, &request) {
        Ok(Admitted::Preflight) => StatusCode::NO_CONTENT.into_response(),
        Ok(Admitted::Request) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    app.metrics.answered(route, response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin"));
    if let Some(origin) = allowed {
        headers
            .insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("cross-origin"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("Origin, Access-Control-Request-Headers"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        let asked = asked.unwrap_or(HeaderValue::from_static("Authorization, Content-Type"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

enum Admitted {
    /// It only asks whether the real request would be let in.
    Preflight,
    Request,
}

/// The page from elsewhere that may read the answer.
fn allowed_origin(app: &App, headers: &HeaderMap) -> Option<HeaderValue> {
    let host = only(headers, &header::HOST).ok()??.to_str().ok()?;
    let origin = only(headers, &header::ORIGIN).ok()??;
    let is_allowed = app.access.is_host(host) && app.access.origin(origin.to_str().ok()?, host) == Origin::Allowed;
    is_allowed.then(|| origin.clone())
}

/// The headers that a preflight asks for, as they are allowed to a page that may use the server: clients of OpenAI's send
/// a dozen of their own, and none means anything here. `None` for what is no list of names.
fn asked_headers(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = only(headers, &header::ACCESS_CONTROL_REQUEST_HEADERS).ok()??;
    let is_name = |name: &str| HeaderName::from_bytes(name.trim().as_bytes()).is_ok();
    asked.to_str().ok().filter(|names| names.split(',').all(is_name)).map(|_| asked.clone())
}

fn admit(app: &App, request: &Request) -> Result<Admitted, ApiError> {
    let headers = request.headers();
    let refused = |code, message: &str| ApiError::with_status(StatusCode::FORBIDDEN, code, message);
    let host = only(headers, &header::HOST)?.ok_or_else(|| ApiError::bad_request("the Host header is missing"))?;
    let host = host.to_str().unwrap_or_default();
    let target = request.uri().authority().map_or(host, axum::http::uri::Authority::as_str);
    if !app.access.is_host(host) || !app.access.is_host(target) {
        return Err(refused("host_not_allowed", "this server does not answer to that Host; --allow-host adds a name"));
    }
    let origin = only(headers, &header::ORIGIN)?;
    let known = origin.map(|origin| app.access.origin(origin.to_str().unwrap_or_default(), host));
    if known == Some(Origin::Foreign) {
        return Err(refused(
            "origin_not_allowed",
            "pages of that Origin may not use this server; --allow-origin adds one",
        ));
    }
    if request.method() == Method::OPTIONS && known == Some(Origin::Allowed) {
        return Ok(Admitted::Preflight);
    }
    let path = request.uri().path();
    let is_open = matches!(path, "/" | "/health" | "/v1/health");
    let key = only(headers, &header::AUTHORIZATION)?.map(HeaderValue::as_bytes);
    if !is_open && !app.access.is_key(key) {
        let message = "a valid API key is expected in the header Authorization: Bearer KEY";
        return Err(ApiError::with_status(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
    }
    Ok(Admitted::Request)
}

/// The value of a header that may be there once at most: of two, others could have looked at the other one.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(ApiError::bad_request(format!("the {name} header is there more than once"))),
    }
}

async fn not_found() -> ApiError {
    ApiError::with_status(StatusCode::NOT_FOUND, "not_found", "there is no such path here")
}

async fn not_allowed() -> ApiError {
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take that method")
}

fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn health(State(app): State<Arc<App>>) -> Response {
    match app.ready() {
        Ok(_) => json_response(&json!({"status": "ok"})),
        Err(error) => error.into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (waiting, busy) = app.ready().map_or((0, 0), |ready| ready.engine.load());
    let n_layer = app.ready().map_or(0, |ready| ready.engine.model.info().n_layer);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics.text(n_layer, waiting, busy)).into_response()
}

async fn props(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(json_response(&app.ready()?.props()))
}

async fn models(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let model = app.ready()?.model();
    Ok(json_response(&json!({"object": "list", "data": [model]})))
}

async fn model(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let ready = app.ready()?;
    // A name may have slashes, and is compared as it is written.
    match request.uri().path().strip_prefix("/v1/models/") {
        Some(name) if name == ready.name => Ok(json_response(&ready.model())),
        _ => Err(ApiError::with_status(
            StatusCode::NOT_FOUND,
            "model_not_found",
            "there is no such model here; see /v1/models",
        )),
    }
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let body = body(&app, request).await?;
    answer(&app, move |app| app.ready()?.prepare_chat(&parse(&body)?)).await
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let body = body(&app, request).await?;
    answer(&app, move |app| app.ready()?.prepare_completion(&parse(&body)?)).await
}

/// Prepares a reply where templates and tokenizers may take their time, then makes it.
async fn answer(
    app: &Arc<App>,
    prepare: impl FnOnce(&App) -> Result<Prepared, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let shared = Arc::clone(app);
    let prepared = tokio::task::spawn_blocking(move || prepare(&shared)).await;
    // A panic there is a defect of ours; the connection lives on.
    let Prepared { request, stream: streamed, mut writer } = prepared.map_err(|_| ApiError::internal())??;
    let mut running = app.ready()?.engine.submit(request).ok_or_else(ApiError::busy)?;
    if streamed {
        return Ok(stream::response(running, writer));
    }
    let mut pieces: Vec<TokenPiece> = Vec::new();
    loop {
        match running.events.recv().await {
            Some(Event::Token(piece)) => pieces.push(piece),
            Some(Event::Finished(finished)) => return Ok(json_response(&writer.whole(pieces, &finished))),
            Some(Event::Failed(error)) => return Err(api_error(&error)),
            Some(Event::Stopping) | None => return Err(ApiError::stopping()),
        }
    }
}

/// The body, within its size and time.
async fn body(app: &App, request: Request) -> Result<Vec<u8>, ApiError> {
    let headers = request.headers();
    let is_json = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    });
    if !is_json {
        let message = "the header Content-Type: application/json is expected";
        return Err(ApiError::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    if headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity") {
        let message = "a body without Content-Encoding is expected";
        return Err(ApiError::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message));
    }
    let too_large = || {
        let message = format!("the body has more than {MAX_BODY} bytes");
        ApiError::with_status(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(app.limit, read(request.into_body())).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(true)) => Err(too_large()),
        Ok(Err(false)) => Err(ApiError::bad_request("the body ended early")),
        Err(_) => {
            let message = format!("the body did not arrive within {} seconds", app.limit.as_secs());
            Err(ApiError::with_status(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
        }
    }
}

/// `Err(true)` for a body that is too large.
async fn read(body: Body) -> Result<Vec<u8>, bool> {
    let is_limit = |error: &axum::Error| {
        std::error::Error::source(error).is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>())
    };
    to_bytes(body, MAX_BODY).await.map(Vec::from).map_err(|error| is_limit(&error))
}

fn parse(body: &[u8]) -> Result<Value, ApiError> {
    // Some clients write the mark of UTF-8 before it.
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    // Where it breaks, not what stands there: a prompt does not belong into an error.
    serde_json::from_slice(body).map_err(|error| {
        let what = if error.is_eof() { "ends early" } else { "is no JSON" };
        ApiError::bad_request(format!("the body {what}, at line {} column {}", error.line(), error.column()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_windows_adds_to_a_body_is_no_part_of_it() {
        let body = "\u{feff}{\r\n  \"prompt\": \"a\"\r\n}\r\n";
        assert_eq!(parse(body.as_bytes()).ok(), Some(serde_json::json!({"prompt": "a"})));
        assert!(parse(b"\xEF\xBB").is_err());
    }
}
