//! HTTP for people and probes, while a process runs: `/healthz` and `/status`.
//!
//! It has a thread of its own and only reads what others have noted: it answers while the process starts, drains or waits for a storage
//! that is away, and holds up nobody.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use openwit_graphs::Control;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::config::Config;
use crate::status::{self, About, Status};

/// The server of a process. It ends when dropped.
pub struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Told {
    about: About,
    control: Control,
}

impl Admin {
    /// Serves what `control` is told of a process that runs `config`.
    pub fn start(config: &Config, control: &Control) -> Result<Admin, String> {
        let ports = &config.service_ports;
        let address: IpAddr = ports.bind_address.parse().map_err(|error| format!("service_ports.bind_address: {error}"))?;
        let wanted = SocketAddr::new(address, ports.admin);
        let failed = |error| {
            format!(
                "service_ports.admin: {wanted} cannot be listened on: {error}; give each process a port of its own, or 0 for any free one"
            )
        };
        let listener = TcpListener::bind(wanted).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let told = Arc::new(Told { about: About::new(config)?, control: control.clone() });
        let (stop, stopped) = oneshot::channel();
        let serve = move || serve(listener, told, stopped);
        let thread = std::thread::Builder::new().name("admin".into()).spawn(serve);
        let thread = thread.map_err(|error| format!("starting the thread of HTTP: {error}"))?;
        info!(%address, "status over HTTP is served");
        Ok(Admin { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // Nobody to tell: it has ended by itself.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: TcpListener, told: Arc<Told>, stopped: oneshot::Receiver<()>) {
    let routes = Router::new().route("/healthz", get(healthz)).route("/status", get(status)).with_state(told);
    let served = async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        // A connection that a client leaves open is not waited for.
        tokio::select! {
            served = async { axum::serve(listener, routes).await } => served,
            _ = stopped => Ok(()),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Err(error) = runtime.and_then(|runtime| runtime.block_on(served)) {
        warn!(%error, "HTTP has ended; the pipeline goes on without it");
    }
}

/// The process is alive, and says what it is at. A graph that is being restarted is no reason to kill it.
async fn healthz(State(told): State<Arc<Told>>) -> String {
    format!("{}\n", told.control.state().name())
}

async fn status(State(told): State<Arc<Told>>) -> Json<Status> {
    Json(status::read(&told.about, &told.control))
}
