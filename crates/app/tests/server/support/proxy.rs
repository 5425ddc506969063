//! The reverse proxies of `deploy/proxies`, with the real programs.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::sleep,
};

use super::{folder, own_address, process::ProcessGroup, program::find, program::installed, soon};

/// Where the proxy listens, at an address that no other test uses.
const PORT: u16 = 8080;

/// A program for which `deploy/proxies` has an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Software {
    Nginx,
    Haproxy,
    Caddy,
}

/// Whether `/api/` is routed, in the way in which the comment of the example says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    Routed,
    AsItStands,
}

/// A proxy that runs; it ends when this is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    _child: Child,
    _processes: ProcessGroup,
    _folder: TempDir,
}

impl Software {
    pub(crate) const ALL: [Self; 3] = [Self::Nginx, Self::Haproxy, Self::Caddy];

    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Nginx => installed("nginx"),
            Self::Haproxy => installed("haproxy"),
            // Not every distribution has it.
            Self::Caddy => find("caddy"),
        }
    }

    /// Returns the example.
    pub(crate) fn example(self) -> String {
        let name = match self {
            Self::Nginx => "nginx.conf",
            Self::Haproxy => "haproxy.cfg",
            Self::Caddy => "Caddyfile",
        };
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        std::fs::read_to_string(root.join("deploy/proxies").join(name)).unwrap()
    }

    /// Returns the example with these addresses.
    fn config(self, own: Ipv4Addr, server: SocketAddr, api: Api) -> String {
        let config = replace(&self.example(), "127.0.0.1:8000", &server.to_string());
        let (example, tested) = match self {
            Self::Nginx => ("listen 80;", format!("listen {own}:{PORT};")),
            Self::Haproxy => ("bind :80\n", format!("bind {own}:{PORT}\n")),
            Self::Caddy => ("example.org {", format!("http://:{PORT} {{\n\tbind {own}")),
        };
        let config = replace(&config, example, &tested);
        let config = match (api, self) {
            (Api::AsItStands, _) => config,
            (Api::Routed, Self::Nginx) => replace(
                &config,
                "    # location /api/ {\n    #     proxy_pass http://lastcall;\n    # }\n",
                "    location /api/ {\n        proxy_pass http://lastcall;\n    }\n",
            ),
            (Api::Routed, Self::Haproxy) => replace(&config, "# acl is_outside", "acl is_outside"),
            (Api::Routed, Self::Caddy) => {
                let example = "\t# handle /api/* {\n\t# \timport lastcall\n\t# }\n";
                replace(&config, example, "\thandle /api/* {\n\t\timport lastcall\n\t}\n")
            }
        };
        match self {
            // What the main file of nginx has; the example is a part of it.
            Self::Nginx => format!(
                "pid nginx.pid; error_log stderr; user root;\nevents {{}}\nhttp {{\naccess_log off;\n\
                 client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
                 uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n{config}}}\n"
            ),
            Self::Haproxy => config,
            Self::Caddy => format!("{{\n\tadmin off\n\tauto_https off\n}}\n{config}"),
        }
    }

    fn command(self, program: &Path, config: &Path) -> Command {
        let mut command = Command::new(program);
        match self {
            Self::Nginx => command.arg("-c").arg(config).args(["-g", "daemon off;", "-p", "."]),
            Self::Haproxy => command.arg("-db").arg("-f").arg(config),
            Self::Caddy => command.args(["run", "--adapter", "caddyfile", "--config"]).arg(config),
        };
        command
    }
}

/// Replaces a text that is there once.
fn replace(config: &str, from: &str, to: &str) -> String {
    assert_eq!(config.matches(from).count(), 1, "{from:?} in {config}");
    config.replace(from, to)
}

impl Proxy {
    /// Starts a proxy in front of `server`; `None` if the program is not installed.
    pub(crate) async fn start(software: Software, server: SocketAddr, api: Api) -> Option<Self> {
        let own = own_address();
        Self::start_with(software, own, &software.config(own, server, api)).await
    }

    /// The same for one that compresses whatever it may; `None` for software that does not.
    pub(crate) async fn start_compressing(software: Software, server: SocketAddr) -> Option<Self> {
        let own = own_address();
        let config = software.config(own, server, Api::AsItStands);
        let config = match software {
            Software::Nginx => {
                let gzip = "gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1;";
                replace(&config, "access_log off;", &format!("access_log off; {gzip}"))
            }
            Software::Caddy => {
                let bind = format!("\tbind {own}\n");
                replace(&config, &bind, &format!("{bind}\tencode gzip\n"))
            }
            Software::Haproxy => return None,
        };
        Self::start_with(software, own, &config).await
    }

    async fn start_with(software: Software, own: Ipv4Addr, text: &str) -> Option<Self> {
        let program = software.program()?;
        let folder = folder();
        let config = folder.path().join("config");
        std::fs::write(&config, text).unwrap();
        let mut command = software.command(&program, &config);
        let log = folder.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        command.current_dir(folder.path()).env("HOME", folder.path());
        let mut child = command.process_group(0).kill_on_drop(true).spawn().unwrap();
        let processes = ProcessGroup::of(&child);
        let address = SocketAddr::from((own, PORT));
        soon("the proxy listens", async {
            while TcpStream::connect(address).await.is_err() {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{software:?}: {}", std::fs::read_to_string(&log).unwrap());
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        Some(Self { address, _child: child, _processes: processes, _folder: folder })
    }

    pub(crate) fn ws_url(&self) -> String {
        format!("ws://{}/ws", self.address)
    }

    /// Returns the origin of the page that is behind it.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }
}
