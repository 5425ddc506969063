//! Whatever starts the server keeps it over upgrades: the process that was started stays, with its PID.

use std::path::Path;

use lastcall_handover::failpoint;
use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Client, Server, Signal, Start, installed, soon, until};

/// Three upgrades by the command, after each of which the server that was started is still there, and serves
/// its client.
async fn three_upgrades(server: &Server, client: &mut Client) -> Pid {
    let first = server.first_server();
    for number in 1..=3 {
        let ended = server.run("upgrade").await;
        assert_eq!(ended.code, Some(0), "upgrade {number}: {}{}", ended.stdout, ended.stderr);
        assert_eq!(server.first_server(), first, "after upgrade {number}");
        client.say(&number.to_string()).await;
        assert_eq!(client.next_of("message").await["data"], number.to_string());
        let another = server.client().await;
        another.leave().await;
    }
    first
}

/// The server drains, and ends when its client leaves; its parent then, too.
async fn drains(mut server: Server, client: Client) {
    server.logged("drain started").await;
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
    assert!(server.log_lines("second signal").is_empty(), "each signal counts once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_passes_signals_on_to_the_server_that_it_started() {
    for init in ["tini", "dumb-init"] {
        let Some(path) = installed(init) else { continue };
        let server = Start::default().under(&path, &["--"]).serve().await;
        let mut client = server.client().await;
        three_upgrades(&server, &mut client).await;
        // To the init, as `docker stop` does.
        server.signal(Signal::TERM);
        drains(server, client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_waits_for_the_server_and_has_its_exit_code() {
    let script = "\"$0\" \"$@\"; echo \"{\\\"fields\\\":{\\\"message\\\":\\\"the exit code is $?\\\"}}\"";
    let server = Start::default().under(Path::new("sh"), &["-c", script]).serve().await;
    let mut client = server.client().await;
    let first = three_upgrades(&server, &mut client).await;
    assert!(server.log_lines("the exit code").is_empty());
    // Twice to each process: the second one closes, and the third one would end the server at once.
    for _ in 0..2 {
        kill_process(first, Signal::TERM).unwrap();
        server.logged("drain started").await;
    }
    assert_eq!(client.closed().await.0.0, 1012);
    server.logged("the exit code is 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn supervisord_never_starts_a_second_server() {
    let Some(path) = installed("supervisord") else { return };
    let start = Start::default();
    let config = format!(
        "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={dir}/supervisord.pid\n\
         [program:lastcall]\ncommand={server}\nautorestart=true\nstopasgroup=true\nstdout_logfile=/dev/fd/1\n\
         stdout_logfile_maxbytes=0\n",
        dir = start.folder().display(),
        server = env!("CARGO_BIN_EXE_lastcall"),
    );
    let script = format!("exec {} -c supervisord.conf", path.display());
    let start = start.file("supervisord.conf", &config).under(Path::new("sh"), &["-c", &script]);
    let server = start.serve().await;
    let mut client = server.client().await;
    three_upgrades(&server, &mut client).await;
    // It sends SIGTERM to the whole group of the process that it started.
    server.signal(Signal::TERM);
    drains(server, client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn process_1_of_a_container_upgrades_and_reads_its_settings_anew() {
    let Some(path) = installed("unshare") else { return };
    let root = rustix::process::getuid().is_root();
    let mut args = vec!["--pid", "--fork", "--mount-proc"];
    args.extend((!root).then_some("--map-root-user"));
    let start = Start::default().file("config/lastcall.toml", "max_message_size = 100");
    let server = start.under(&path, &args).serve().await;
    let mut client = server.client().await;
    let config = server.dir.path().join("config/lastcall.toml");
    std::fs::write(&config, "max_message_size = 200\napi_keys = \"0123456789abcdef\"").unwrap();
    let first = three_upgrades(&server, &mut client).await;
    client.say(&"x".repeat(150)).await;
    assert_eq!(client.next_of("message").await["data"].as_str().unwrap().len(), 150);
    assert_eq!(server.publish(r#"{"data": 1}"#).await.status, 401);
    kill_process(first, Signal::TERM).unwrap();
    drains(server, client).await;
}

/// Returns how many children a process has, of all its threads.
fn children(pid: Pid) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may have ended meanwhile.
    let children = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")));
    children.map(|children| children.unwrap_or_default().split_whitespace().count()).sum()
}

/// As process 1 of a container, and where a shell that has started something else becomes the server.
#[tokio::test(flavor = "multi_thread")]
async fn children_that_it_did_not_start_are_no_zombies() {
    let Some(unshare) = installed("unshare") else { return };
    let root = rustix::process::getuid().is_root();
    let mut namespace = vec!["--pid", "--fork", "--mount-proc"];
    namespace.extend((!root).then_some("--map-root-user"));
    // In process 1, the shell between is gone by then, so that the last one is an orphan.
    let script =
        "(while [ ! -e go ]; do sleep 0.01; done & ) & while [ ! -e go ]; do sleep 0.01; done & exec \"$0\"";
    for (program, first) in [(unshare.as_path(), &namespace[..]), (Path::new("env"), &[])] {
        for upgraded in [false, true] {
            let start = Start::default().under(program, &[first, &["sh", "-c", script]].concat());
            let folder = start.folder().to_owned();
            let server = start.serve().await;
            let client = server.client().await;
            let first_server = server.first_server();
            if upgraded {
                let ended = server.run("upgrade").await;
                assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            }
            assert!(children(first_server) > usize::from(upgraded), "the loop of the shell runs");
            std::fs::write(folder.join("go"), "").unwrap();
            let left = usize::from(upgraded);
            until("its children are gone", async || children(first_server) == left).await;
            kill_process(first_server, Signal::TERM).unwrap();
            drains(server, client).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_every_process_counts_once() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    three_upgrades(&server, &mut client).await;
    server.upgrade().await;
    // As a terminal, `killall` or the control group of a service does.
    for pid in [server.pid(), server.started_pid()] {
        kill_process(pid, Signal::TERM).unwrap();
    }
    drains(server, client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_process_that_was_started_is_killed_the_connections_are_closed() {
    let mut server = Start::default().env("CLOSE_TIMEOUT", "60").serve().await;
    let mut client = server.client().await;
    server.upgrade().await;
    kill_process(server.started_pid(), Signal::KILL).unwrap();
    assert_eq!(client.closed().await.0.0, 1012);
    server.log_ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_that_of_the_last_process() {
    let mut server = Server::start().await;
    let _client = server.client().await;
    server.upgrade().await;
    kill_process(server.pid(), Signal::KILL).unwrap();
    let failed = server.logged("the process that served has failed: ").await;
    assert_eq!((&failed["level"], &failed["fields"]["exit_code"]), (&"ERROR".into(), &137.into()));
    assert_eq!(server.exit_code().await, 128 + 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_dies_once_the_supervisor_knows_it_is_forgotten() {
    let failpoints = tempfile::NamedTempFile::new().unwrap();
    let mut server =
        Start::default().env(failpoint::FILE_VARIABLE, failpoints.path().display()).serve().await;
    server.upgrade().await;
    std::fs::write(failpoints.path(), "Reported:kill").unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains("its connections are closed now: 0"), "{told}");
    std::fs::write(failpoints.path(), "").unwrap();
    let mut client = server.client().await;
    client.say("here").await;
    client.next_of("message").await;
    server.signal(Signal::TERM);
    drains(server, client).await;
}

/// A shell with job control on a terminal of its own.
struct Terminal {
    shell: tokio::process::Child,
    keyboard: tokio::fs::File,
    screen: tokio::fs::File,
    seen: String,
}

impl Terminal {
    fn open(folder: &Path) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        // The shell inherits which signals are ignored.
        drop(Start::default());
        let open = || std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let shell = tokio::process::Command::new("setsid")
            .args(["--ctty", "bash", "--norc", "--noprofile", "-i"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PS1", "ready> ")
            .env("PORT", "0")
            .env("NOTIFICATION_INTERVAL", "0")
            // It ends soon when the test fails, which closes the terminal.
            .env("SHUTDOWN_TIMEOUT", "20")
            .env("RUNTIME_DIR", folder.join("run"))
            .env("LASTCALL", env!("CARGO_BIN_EXE_lastcall"))
            .current_dir(folder)
            .stdin(open())
            .stdout(open())
            .stderr(open())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let controller = std::fs::File::from(controller);
        let keyboard = tokio::fs::File::from_std(controller.try_clone().unwrap());
        Self { shell, keyboard, screen: tokio::fs::File::from_std(controller), seen: String::new() }
    }

    /// Starts the server as a job of the shell, and returns its address.
    async fn start_server(&mut self) -> String {
        self.shows("ready> ").await;
        self.type_in("\"$LASTCALL\"\n").await;
        self.shows("listening on http://").await;
        let line = self.rest_of_line().await;
        line.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect()
    }

    async fn type_in(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).await.unwrap();
        self.keyboard.flush().await.unwrap();
    }

    /// Waits until this is on the screen; what came before it is forgotten.
    async fn shows(&mut self, text: &str) {
        let (seen, screen) = (&mut self.seen, &mut self.screen);
        let mut part = [0; 4096];
        soon(&format!("{text:?} on the screen"), async {
            while !seen.contains(text) {
                let read = screen.read(&mut part).await.unwrap();
                seen.push_str(&String::from_utf8_lossy(&part[..read]));
            }
        })
        .await;
        *seen = seen.split_once(text).unwrap().1.to_owned();
    }

    /// Returns what is on the screen from here to the end of the line.
    async fn rest_of_line(&mut self) -> String {
        let mut part = [0; 4096];
        while !self.seen.contains('\n') {
            let read = soon("the end of a line", self.screen.read(&mut part)).await.unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&part[..read]));
        }
        self.seen.lines().next().unwrap().trim().to_owned()
    }
}

async fn status(address: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET /health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

/// `lastcall upgrade` for the server that was started in a terminal in this folder.
async fn upgrade_at(address: &str, folder: &Path) {
    let (host, port) = address.split_once(':').unwrap();
    let ended = Start::default()
        .args(&["upgrade", "--host", host, "--port", port])
        .env("RUNTIME_DIR", folder.join("run").display())
        .end()
        .await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_keeps_its_job() {
    if installed("bash").is_none() || installed("setsid").is_none() {
        return;
    }
    let folder = crate::support::folder();
    let mut terminal = Terminal::open(folder.path());
    let address = terminal.start_server().await;
    for _ in 0..3 {
        upgrade_at(&address, folder.path()).await;
        terminal.shows("listening on http://").await;
    }
    assert!(status(&address).await.starts_with("HTTP/1.1 200"));
    // Ctrl+Z stops all of its processes, and `fg` has them continue.
    terminal.type_in("\u{1a}").await;
    terminal.shows("Stopped").await;
    terminal.type_in("fg\n").await;
    assert!(status(&address).await.starts_with("HTTP/1.1 200"));
    // Ctrl+C ends it, as there is no client.
    terminal.type_in("\u{3}").await;
    terminal.shows("ready> ").await;
    terminal.type_in("echo \"the code is $?\"\n").await;
    terminal.shows("\nthe code is ").await;
    assert_eq!(terminal.rest_of_line().await, "0");
    terminal.type_in("exit\n").await;
    soon("the end of the shell", terminal.shell.wait()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_terminal_is_closed_drains() {
    if installed("bash").is_none() || installed("setsid").is_none() {
        return;
    }
    let folder = crate::support::folder();
    let mut terminal = Terminal::open(folder.path());
    let address = terminal.start_server().await;
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}/ws")).await.unwrap();
    upgrade_at(&address, folder.path()).await;
    // The shell would end its job with SIGKILL here; a terminal that is closed does not.
    let Terminal { mut shell, keyboard, screen, .. } = terminal;
    drop((keyboard, screen));
    soon("the notice", async {
        loop {
            let message = futures_util::StreamExt::next(&mut socket).await.unwrap().unwrap();
            if message.into_text().is_ok_and(|text| text.contains("\"type\":\"shutdown\"")) {
                break;
            }
        }
    })
    .await;
    drop(socket);
    soon("the end of the shell", shell.wait()).await.unwrap();
}
