//! A network between a browser and a server, which can be lost.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Passes on what comes to its address, until this is dropped.
pub(crate) struct Network {
    pub(crate) address: SocketAddr,
    works: watch::Sender<bool>,
    _connections: JoinSet<()>,
}

impl Network {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let works = watch::Sender::new(true);
        let state = works.clone();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                connections.spawn(pass_on(client, server, state.subscribe()));
            }
        });
        Self { address, works, _connections: connections }
    }

    /// Ends all connections, at both ends, and each new one at once.
    pub(crate) fn cut(&self) {
        self.works.send_replace(false);
    }

    /// Passes on new connections again.
    pub(crate) fn repair(&self) {
        self.works.send_replace(true);
    }
}

async fn pass_on(mut client: TcpStream, server: SocketAddr, mut works: watch::Receiver<bool>) {
    let passing = async {
        let mut upstream = TcpStream::connect(server).await?;
        copy_bidirectional(&mut client, &mut upstream).await
    };
    tokio::select! {
        biased;
        _ = works.wait_for(|works| !works) => {}
        // Either end may go in any way.
        _ = passing => {}
    }
}
