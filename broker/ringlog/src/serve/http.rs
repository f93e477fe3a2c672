//! The HTTP port of a broker: `/metrics`, `/health/live`, `/health/ready`.
//!
//! Owner: one thread of its own with a runtime of its own, off the shards' cores as far as the kernel likes. It
//! asks shards through an [`Observer`]. Lifecycle: listening before the broker starts, so that a long recovery can
//! be told from a dead process → [`Http::serving`] → [`Http::stopping`] → the thread ends with the process.
//! Invariants: at most [`HTTP_CONNECTIONS_MAX`] connections, whose heads are bounded in size and time; an answer
//! waits for a shard, or for another broker, at most [`HTTP_SHARD_TIMEOUT_MS`]; nothing here changes anything.
//! Absent on purpose: TLS and users (listen where only those may reach who may see it), and any way to write.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use logic::limits::{HTTP_CONNECTIONS_MAX, HTTP_HEAD_BYTES_MAX, HTTP_HEAD_TIMEOUT_MS, HTTP_SHARD_TIMEOUT_MS};
use server::Observer;
use server::group::lag::GroupReport;
use server::metrics::{self, Seen};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// How far the broker is.
#[derive(Clone)]
enum Stage {
    /// It recovers.
    Starting,
    /// It serves.
    Serving(Observer),
    /// It has been told to stop.
    Stopping,
}

/// The port, and what it knows of the broker.
pub struct Http {
    /// Where it listens.
    pub address: SocketAddr,
    stage: watch::Sender<Stage>,
}

impl Http {
    /// Listens on `address`, port 0 = any free one, from now on.
    ///
    /// # Errors
    /// The address is taken or not this host's, or there is no thread.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stage, stages) = watch::channel(Stage::Starting);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("ringlog-http".to_owned()).spawn(move || {
            runtime.block_on(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => accept(listener, stages).await,
                    Err(error) => eprintln!("warning: no metrics: {error}"),
                }
            });
        })?;
        Ok(Self { address, stage })
    }

    /// The broker serves.
    pub fn serving(&self, observer: Observer) {
        self.stage.send_replace(Stage::Serving(observer));
    }

    /// The broker has been told to stop.
    pub fn stopping(&self) {
        self.stage.send_replace(Stage::Stopping);
    }
}

async fn accept(listener: TcpListener, stages: watch::Receiver<Stage>) {
    let places = Arc::new(Semaphore::new(HTTP_CONNECTIONS_MAX));
    loop {
        // A connection for which there is no place waits in the kernel's queue.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve(stream, stages.clone(), place));
            }
            // Out of descriptors, most likely: what is open goes on, the next may find room.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(stream: TcpStream, stages: watch::Receiver<Stage>, _place: OwnedSemaphorePermit) {
    let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
        let stage = stages.borrow().clone();
        async move { Ok::<_, Infallible>(answer(request.method(), request.uri().path(), &stage).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // Also what ends a connection that is kept open and says nothing.
        .header_read_timeout(Duration::from_millis(HTTP_HEAD_TIMEOUT_MS))
        .max_buf_size(HTTP_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    // A peer that went away or said nonsense: there is nobody to tell.
    drop(served);
}

async fn answer(method: &Method, path: &str, stage: &Stage) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match (path, stage) {
        ("/health/live", Stage::Serving(observer)) => match silent_shards(observer).await {
            silent if silent.is_empty() => plain(StatusCode::OK, "live\n"),
            silent => {
                let text = format!("no answer within {HTTP_SHARD_TIMEOUT_MS} ms from shards {silent:?}\n");
                plain(StatusCode::SERVICE_UNAVAILABLE, &text)
            }
        },
        ("/health/live", Stage::Starting | Stage::Stopping) => plain(StatusCode::OK, "live\n"),
        ("/health/ready", Stage::Serving(_)) => plain(StatusCode::OK, "ready\n"),
        ("/health/ready", Stage::Starting) => plain(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        ("/health/ready", Stage::Stopping) => plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        ("/metrics", Stage::Serving(observer)) => {
            let mut response = plain(StatusCode::OK, &scrape(observer).await);
            let kind = hyper::header::HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        ("/metrics", _) => plain(StatusCode::SERVICE_UNAVAILABLE, "the broker does not serve\n"),
        ("/", _) => plain(StatusCode::OK, "/metrics\n/health/live\n/health/ready\n"),
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /health/live, /health/ready\n"),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

/// What shards answered in time, all asked at once.
async fn ask_all<T, F: Future<Output = Option<T>>>(asked: impl Iterator<Item = F>) -> Vec<Option<T>> {
    let limit = Duration::from_millis(HTTP_SHARD_TIMEOUT_MS);
    let in_time = asked.map(|answer| async move { tokio::time::timeout(limit, answer).await.ok().flatten() });
    futures_util::future::join_all(in_time).await
}

async fn silent_shards(observer: &Observer) -> Vec<u16> {
    let answers = ask_all(observer.shards().map(|shard| observer.counters(shard))).await;
    observer.shards().zip(answers).filter(|(_, answer)| answer.is_none()).map(|(shard, _)| shard).collect()
}

async fn scrape(observer: &Observer) -> String {
    let counters = ask_all(observer.shards().map(|shard| observer.counters(shard)));
    let partitions = ask_all(observer.shards().map(|shard| observer.partitions(shard)));
    let (counters, partitions) = tokio::join!(counters, partitions);
    let silent = counters.iter().filter(|report| report.is_none()).count();
    let shards: Vec<_> = counters.into_iter().flatten().collect();
    let partitions: Vec<_> = partitions.into_iter().flatten().flatten().collect();
    let (groups, loading) = groups(observer).await;
    metrics::text(&Seen {
        observer,
        uptime: observer.uptime(),
        shards: &shards,
        silent,
        partitions: &partitions,
        groups: &groups,
        loading,
    })
}

/// Groups and how far they are behind, as far as shards and other brokers answer in time; and how many coordinators load still.
async fn groups(observer: &Observer) -> (Vec<GroupReport>, u32) {
    let gathered = ask_all(observer.shards().map(|shard| observer.groups(shard))).await;
    let gathered: Vec<_> = gathered.into_iter().flatten().collect();
    let loading = gathered.iter().map(|gathered| gathered.loading).sum();
    let groups: Vec<_> = gathered.into_iter().flat_map(|gathered| gathered.groups).collect();
    let questions = observer.lag_questions(&groups).into_iter();
    let answers = ask_all(questions.map(|(leader, asked)| observer.lag(leader, asked))).await;
    (observer.group_reports(groups, answers.into_iter().flatten().flatten().collect()), loading)
}

#[cfg(test)]
mod tests {
    use super::*;
    use server::{Broker, BrokerConfig};

    fn check(stage: &Stage, path: &str, expect: (u16, &str)) {
        use http_body_util::BodyExt;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (status, body) = runtime.block_on(async {
            let response = answer(&Method::GET, path, stage).await;
            let status = response.status().as_u16();
            (status, response.into_body().collect().await.unwrap().to_bytes())
        });
        let body = String::from_utf8_lossy(&body);
        assert!(status == expect.0 && body.contains(expect.1), "{path}: {status} {body}");
    }

    #[test]
    fn health_follows_the_broker() {
        let data = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        for stage in [Stage::Starting, Stage::Stopping] {
            check(&stage, "/health/live", (200, "live"));
            check(&stage, "/health/ready", (503, "ing"));
            check(&stage, "/metrics", (503, "does not serve"));
        }
        let mut config = BrokerConfig::new(data.path(), SocketAddr::from(([127, 0, 0, 1], 0)));
        config.shards = 2;
        let broker = Broker::start(config).unwrap();
        let serving = Stage::Serving(broker.observer());
        check(&serving, "/health/live", (200, "live"));
        check(&serving, "/health/ready", (200, "ready"));
        check(&serving, "/metrics", (200, "ringlog_silent_shards 0\n"));
        broker.stop().unwrap();
        // Shards that do not answer any more, as one that is held would not.
        check(&serving, "/health/live", (503, "from shards [0, 1]"));
        check(&serving, "/metrics", (200, "ringlog_silent_shards 2\n"));
    }
}
