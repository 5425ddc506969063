//! `lastcall upgrade`: which server it reaches, which program takes over, and what its exit code says.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use lastcall_handover::failpoint;

use crate::support::{Server, Signal, Start, folder_for_programs, install_server, soon, timed, until};

/// Returns the program that a server's process runs.
fn program_of(server: &Server) -> PathBuf {
    fs::read_link(format!("/proc/{}/exe", server.pid().as_raw_nonzero())).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_socket_stays_the_same_file_over_upgrades() {
    let mut server = Server::start().await;
    let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
    let before = inode(&server.control_socket());
    for _ in 0..5 {
        server.upgrade().await;
        assert_eq!(inode(&server.control_socket()), before);
    }
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    assert!(!server.control_socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relative_runtime_dir_is_below_the_working_directory() {
    let server = Start::default().env("RUNTIME_DIR", "relative/run").serve().await;
    let absolute = server.dir.path().join("relative/run");
    let elsewhere = crate::support::folder();
    for (folder, runtime_dir) in
        [(server.dir.path(), Path::new("relative/run")), (elsewhere.path(), &absolute)]
    {
        let command = tokio::process::Command::new(env!("CARGO_BIN_EXE_lastcall"))
            .args(["upgrade", "--port", &server.address.port().to_string()])
            .env("RUNTIME_DIR", runtime_dir)
            .current_dir(folder)
            .output()
            .await
            .unwrap();
        assert!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_socket_that_is_removed_is_made_again() {
    let mut server = Server::start().await;
    server.upgrade().await;
    let socket = server.control_socket();
    fs::remove_file(&socket).unwrap();
    // It is looked for every 30 s.
    until("a new socket", async || socket.exists()).await;
    server.upgrade().await;
    fs::rename(socket.parent().unwrap(), server.dir.path().join("gone")).unwrap();
    until("a new folder", async || socket.exists()).await;
    server.upgrade().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_upgrades_where_there_can_be_no_control_socket() {
    let server = Server::start().await;
    let client = server.client().await;
    let folder = server.dir.path().join("run");
    let file = server.dir.path().join("file");
    fs::write(&file, "in the way").unwrap();
    // In one step: the server makes the folder and the socket again as soon as one of them is gone.
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &file,
        rustix::fs::CWD,
        &folder,
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .unwrap();
    server.logged("there is no control socket").await;
    server.signal(Signal::USR2);
    // A folder that was set and cannot be used is refused; then it can.
    server.logged("the upgrade failed").await;
    fs::remove_file(&folder).unwrap();
    server.signal(Signal::USR2);
    server.logged("took over from process").await;
    client.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_with_the_same_port_are_told_apart() {
    let mut one = Start::default().env("HOST", "127.0.0.1").serve().await;
    let port = one.address.port();
    let folder = one.dir.path().join("run");
    let shared = || Start::default().env("RUNTIME_DIR", folder.display()).env("PORT", port);
    let mut other = shared().env("HOST", "127.0.0.2").serve().await;
    let upgrade = async |host: &str| shared().args(&["upgrade", "--host", host]).end().await;
    assert_eq!(upgrade("127.0.0.1").await.code, Some(0));
    one.logged("took over").await;
    assert!(other.log_lines("took over").is_empty());
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code().await, 0);
    let ended = upgrade("127.0.0.1").await;
    assert_eq!(ended.code, Some(1));
    let there = folder.join(format!("lastcall-127.0.0.2:{port}.sock"));
    for part in [format!("no server that listens on 127.0.0.1:{port}"), there.display().to_string()] {
        assert!(ended.stderr.contains(&part), "{part}: {}", ended.stderr);
    }
    assert!(other.log_lines("took over").is_empty());
    other.signal(Signal::TERM);
    assert_eq!(other.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_names_the_program_its_version_and_the_files() {
    let mut server =
        Start::default().file("config/lastcall.toml", "").file(".env", "CLOSE_TIMEOUT=4\n").serve().await;
    server.logged("control socket").await;
    let said = server.upgrade().await;
    let files =
        ["config/lastcall.toml", ".env"].map(|file| server.dir.path().join(file).display().to_string());
    let start = format!("it runs {}, version {}", env!("CARGO_BIN_EXE_lastcall"), env!("CARGO_PKG_VERSION"));
    let last = said.lines().last().unwrap();
    let end = format!("; settings files: {}", files.join(", "));
    assert!(last.starts_with(&start) && last.ends_with(&end), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_looked_up_in_path_and_not_in_the_working_directory() {
    let folder = folder_for_programs();
    let releases = ["one", "two"].map(|name| folder.path().join(name));
    for release in &releases {
        fs::create_dir(release).unwrap();
        install_server(&release.join("lastcall"));
    }
    let current = folder.path().join("current");
    symlink(&releases[0], &current).unwrap();
    let in_the_way = |server: &Server| install_server(&server.dir.path().join("lastcall"));
    let by_name = Start::default()
        .env("PATH", format!("{}:/usr/bin:/bin", current.display()))
        .under(Path::new("/bin/sh"), &["-c", "exec lastcall"]);
    let mut server = by_name.serve().await;
    in_the_way(&server);
    fs::remove_file(&current).unwrap();
    symlink(&releases[1], &current).unwrap();
    for _ in 0..2 {
        server.upgrade().await;
        assert_eq!(program_of(&server), releases[1].canonicalize().unwrap().join("lastcall"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_directory_behind_a_link_is_entered_anew() {
    let folder = folder_for_programs();
    let releases = ["one", "two"].map(|name| folder.path().join(name));
    for (release, size) in releases.iter().zip([100, 200]) {
        fs::create_dir_all(release.join("config")).unwrap();
        install_server(&release.join("lastcall"));
        fs::write(release.join("config/lastcall.toml"), format!("max_message_size = {size}")).unwrap();
    }
    let current = folder.path().join("current");
    symlink(&releases[0], &current).unwrap();
    let script = format!("cd {} && exec ./lastcall", current.display());
    let mut server = Start::default().under(Path::new("/bin/sh"), &["-c", &script]).serve().await;
    let mut client = server.client().await;
    fs::remove_file(&current).unwrap();
    symlink(&releases[1], &current).unwrap();
    for _ in 0..2 {
        let said = server.upgrade().await;
        assert!(said.contains(&format!("{}/config/lastcall.toml", current.display())), "{said}");
        assert_eq!(program_of(&server), releases[1].canonicalize().unwrap().join("lastcall"));
        client.say(&"x".repeat(150)).await;
        client.next_of("message").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_refuses_an_upgrade_at_once() {
    let mut server = Server::start().await;
    let client = server.client().await;
    server.signal(Signal::TERM);
    server.logged("drain started").await;
    let told = server.failed_upgrade().await;
    assert!(told.contains("the server is shutting down"), "{told}");
    server.signal(Signal::USR2);
    until("a line for the signal", async || {
        server.log_lines("no upgrade: the server is shutting down").len() == 2
    })
    .await;
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_does_not_depend_on_the_output() {
    let server = Server::start().await;
    // Both streams are pipes whose other ends are closed.
    let (mut command, _folder) = server.command("upgrade").into_command();
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    command.stdout(Stdio::from(write.try_clone().unwrap())).stderr(Stdio::from(write));
    let status = soon("the end of the command", command.status()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    server.logged("took over").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_at_the_same_time_hear_the_same_success() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    let commands = (0..6).map(|_| server.command("upgrade").end());
    for ended in futures_util::future::join_all(commands).await {
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        assert!(ended.stdout.contains("has taken over 1 client"), "{}", ended.stdout);
    }
    client.say("still here").await;
    client.next_of("message").await;
    client.leave().await;
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_dies_after_the_commit_is_no_success() {
    let failpoints = tempfile::NamedTempFile::new().unwrap();
    let mut server =
        Start::default().env(failpoint::FILE_VARIABLE, failpoints.path().display()).serve().await;
    let client = server.client().await;
    fs::write(failpoints.path(), "Committed:kill").unwrap();
    let told = server.failed_upgrade().await;
    assert!(told.contains("its connections are closed now: 1"), "{told}");
    drop(client);
    fs::write(failpoints.path(), "").unwrap();
    // The old one continues, and can be upgraded.
    let mut client = server.client().await;
    assert_eq!(server.get("/health/ready").await.json()["clients"], 1);
    server.upgrade().await;
    client.say("here").await;
    assert_eq!(client.next_of("message").await["data"], "here");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_is_answered_when_all_file_descriptors_are_taken() {
    // How many it has without clients depends on the number of cores.
    let own = Server::start().await.open_files();
    let mut server = Start::default().open_files(own + 60).serve().await;
    let mut idle = Vec::new();
    for _ in 0..own + 70 {
        idle.push(tokio::net::TcpStream::connect(server.address).await.unwrap());
    }
    server.logged("no file descriptors left").await;
    for _ in 0..3 {
        let told = server.failed_upgrade().await;
        assert!(told.contains("Too many open files"), "{told}");
    }
    drop(idle);
    until("room", async || server.open_files() <= own + 10).await;
    server.upgrade().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_may_upgrade_the_server_of_another_user() {
    if !rustix::process::getuid().is_root() {
        return eprintln!("not root: not tested");
    }
    let mut server = Start::default().user(65_534).serve().await;
    server.upgrade().await;
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_of_another_user_in_the_place_of_the_folder_is_not_followed() {
    // Only root can give a link away.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let start = Start::default().file("victim/file", "");
    let link = start.path("lastcall-0");
    symlink("victim", &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
    let chosen = Start::default().env("RUNTIME_DIR", link.display()).end().await;
    assert_eq!(chosen.code, Some(2), "{}", chosen.stderr);
    assert!(chosen.stderr.contains("a symbolic link of user 65534"), "{}", chosen.stderr);
    // The folder that is used where none was set is in TMPDIR.
    let tmp = start.folder().to_owned();
    let server = start.env("TMPDIR", tmp.display()).env_remove("RUNTIME_DIR").serve().await;
    let line = server.logged("there is no control socket").await;
    assert!(crate::support::message(&line).contains("a symbolic link of user 65534"), "{line}");
    assert_eq!(fs::read_dir(tmp.join("victim")).unwrap().count(), 1);
    server.signal(Signal::USR2);
    server.logged("took over").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_are_not_utf8_work_over_upgrades_and_in_what_the_command_says() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};

    let odd = |name: &str| OsString::from_vec([name.as_bytes(), b"-\xff"].concat());
    let programs = folder_for_programs();
    let folder = programs.path().join(odd("folder"));
    fs::create_dir(&folder).unwrap();
    let program = folder.join(odd("program"));
    install_server(&program);
    let start = Start::default();
    // The working directory, and the settings file, by a relative and by an absolute path; the folder of the
    // control socket.
    let below = start.path("").join(odd("below"));
    fs::create_dir(&below).unwrap();
    let config = below.join(odd("settings"));
    fs::write(&config, "api_keys = [\"0123456789abcdef\"]\n").unwrap();
    for config in [PathBuf::from(odd("settings")), config] {
        let arguments = ["--config".into(), config.clone().into_os_string()];
        let mut server = Start::default()
            .program(&program)
            .os_args(&arguments)
            .env_remove("RUNTIME_DIR")
            .os_env("XDG_RUNTIME_DIR", below.as_os_str())
            .in_folder(&below)
            .serve()
            .await;
        let mut before = server.pid();
        for _ in 0..2 {
            let upgrade = server.command("upgrade").env_remove("RUNTIME_DIR");
            let ended = upgrade.os_env("XDG_RUNTIME_DIR", below.as_os_str()).end().await;
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
            let said = ended.stdout;
            assert!(
                said.contains("/folder-\u{fffd}/program-\u{fffd}") && said.contains("settings-\u{fffd}"),
                "{said}"
            );
            server.serves_as(&said);
            assert_ne!(std::mem::replace(&mut before, server.pid()), server.pid());
            assert_eq!(program_of(&server), program);
            assert_eq!(server.publish(r#"{"data": 1}"#).await.status, 401);
        }
        let status = server.run("status").await;
        assert_eq!(status.code, Some(0), "{}", status.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_send_no_command_do_not_delay_an_upgrade() {
    let mut server = Server::start().await;
    let connect = || std::os::unix::net::UnixStream::connect(server.control_socket()).unwrap();
    let mut silent: Vec<_> = (0..50).map(|_| connect()).collect();
    // Half a command is none.
    for connection in &mut silent[25..] {
        // It may be closed already, to make room for the ones after it.
        let _ = std::io::Write::write_all(connection, &[0, 0]);
    }
    let (_, taken) = timed(server.upgrade()).await;
    // Each of them may take five seconds to send its command.
    assert!(taken < std::time::Duration::from_secs(15), "{taken:?}");
    server.upgrade().await;
}
