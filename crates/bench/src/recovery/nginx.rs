//! nginx with its module nchan, which has message ids and a buffer.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::Process;

/// Where the package libnginx-mod-nchan, and builds of one's own, have the module.
const MODULES: [&str; 3] = [
    "/usr/share/nginx/modules/ngx_nchan_module.so",
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/lib64/nginx/modules/ngx_nchan_module.so",
];

const PROGRAMS: [&str; 3] = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Where nginx and its module are.
#[derive(Debug)]
pub(super) struct NginxFiles {
    program: PathBuf,
    module: PathBuf,
}

impl NginxFiles {
    /// Finds them where packages, and builds of one's own, install them.
    pub(super) fn find() -> anyhow::Result<Self> {
        let find = |paths: [&str; 3], package| {
            let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
            found.with_context(|| {
                format!("none of {} exists: install the package {package}", paths.join(", "))
            })
        };
        Ok(Self { program: find(PROGRAMS, "nginx")?, module: find(MODULES, "libnginx-mod-nchan")? })
    }
}

/// nginx; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Nginx {
    child: Child,
    pub(super) port: u16,
}

impl Nginx {
    /// Starts nginx with as many workers as lastcall has event loops: one for each core.
    pub(super) fn start(out: &Path) -> anyhow::Result<Self> {
        let NginxFiles { program, module } = NginxFiles::find()?;
        let folder = out.join("nginx");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = folder.canonicalize().context("cannot find the folder of nginx")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let path = folder.join("nginx.conf");
        fs::write(&path, config(&module, &folder, port))
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new(&program);
        command.arg("-p").arg(&folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(&path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut nginx = Self { child, port };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = nginx.child.try_wait()? {
                bail!("nginx ended at once ({status}): see {}", folder.join("error.log").display());
            }
            ensure!(started.elapsed() < START_TIMEOUT, "nginx does not listen after {START_TIMEOUT:?}");
            sleep(Duration::from_millis(20));
        }
        // Each worker listens, but not all of them may have started.
        sleep(Duration::from_millis(300));
        Ok(nginx)
    }

    /// Returns the master process and its workers.
    pub(super) fn processes(&self) -> anyhow::Result<Vec<Process>> {
        let master = Process(self.child.id());
        let mut all = master.children()?;
        all.push(master);
        Ok(all)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn config(module: &Path, folder: &Path, port: u16) -> String {
    let (module, folder) = (module.display(), folder.display());
    format!(
        "load_module {module};
daemon off;
pid {folder}/nginx.pid;
worker_processes auto;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    nchan_shared_memory_size 512M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/sub/(\\w+)$ {{
            nchan_subscriber;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
            nchan_subscriber_last_message_id $http_last_event_id $arg_last_event_id;
            nchan_websocket_ping_interval 0;
        }}
        location ~ ^/pub/(\\w+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
            nchan_message_buffer_length 1000;
            nchan_message_timeout 10m;
        }}
    }}
}}
"
    )
}
