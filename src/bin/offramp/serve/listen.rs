//! Connections: how many, how long their heads may take, and how they end when the server stops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::engine::GRACE;
use super::timed::Timed;
use crate::failure::Failure;

/// Most connections at once; further ones wait until one ends.
const MAX_CONNECTIONS: usize = 256;
/// Most bytes of a request's head, and how many headers it may have.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 64;

/// # Errors
/// When the address cannot be listened on.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let fix = match error.kind() {
            io::ErrorKind::AddrInUse => "; another program listens there, --port takes another port",
            _ => "",
        };
        Failure::failed(format!("cannot listen on {address}: {error}{fix}"))
    })
}

/// Serves connections until `stop` turns true, then lets those there are come to their end, within [`GRACE`].
///
/// `limit` is how long the head of a request may take, the time between two requests included, and how long a client may
/// leave what it is sent unread.
pub async fn serve(listener: TcpListener, router: Router, limit: Duration, mut stop: watch::Receiver<bool>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener, &connections) => accepted,
            () = told(&mut stop) => break,
        };
        match accepted {
            Ok((stream, permit)) => {
                let (router, stop) = (router.clone(), stop.clone());
                tokio::spawn(async move {
                    connection(stream, router, limit, stop).await;
                    drop(permit);
                });
            }
            // Too many open files, for one: it may pass.
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    // All permits are back when all connections have ended.
    let _ = tokio::time::timeout(GRACE, connections.acquire_many(MAX_CONNECTIONS as u32)).await;
}

/// Waits until the server is to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // Whoever could tell is gone: that tells it too.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn next(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn connection(stream: TcpStream, router: Router, limit: Duration, mut stop: watch::Receiver<bool>) {
    // Tokens are small and should not wait for each other.
    let _ = stream.set_nodelay(true);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(Timed::new(stream, limit)), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = told(&mut stop) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!("a connection ended: {error}");
    }
}
