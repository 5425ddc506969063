//! What the tests start ends with them, also when they fail.

use std::{env, path::Path, process::Stdio};

use tokio::process::Command;

use crate::support::{
    STEP_TIMEOUT, Signal, Start, folder, folder_for_programs, install_script, install_server, soon,
};

/// How a test ends that has this variable, as the one below has when it runs itself; and its folder, which it
/// could not remove.
const END: &str = "END_OF_THE_TEST";
const FOLDER: &str = "FOLDER_OF_THE_TEST";

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_of_a_test_that_fails_end_with_it() {
    if let Ok(end) = env::var(END) {
        fail(&end, Path::new(&env::var_os(FOLDER).unwrap())).await;
    }
    for end in ["panic", "exit", "kill"] {
        let (files, programs) = (folder(), folder_for_programs());
        let mut test = Command::new(env::current_exe().unwrap());
        test.args(["--exact", "processes::the_processes_of_a_test_that_fails_end_with_it", "--nocapture"])
            .env(END, end)
            .env("TMPDIR", files.path())
            .env(FOLDER, programs.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        // All its servers have its stderr: it is read to the end only when they have ended, too.
        let output = soon("the end of everything that a test has started", test.output()).await.unwrap();
        let (stdout, stderr) =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).into();
        assert!(!output.status.success(), "{end}: {stdout}");
        assert!(stderr.contains("everything runs"), "{end}: {stdout}{stderr}");
    }
}

/// Starts a server that is upgraded, and then a new process that is never ready; and ends, one way or
/// another.
async fn fail(end: &str, folder: &Path) -> ! {
    let program = folder.join("lastcall");
    install_server(&program);
    let mut server =
        Start::default().program(&program).env("UPGRADE_TIMEOUT", STEP_TIMEOUT.as_secs() * 2).serve().await;
    server.upgrade().await;
    install_script(&program, "exec sleep 600");
    server.signal(Signal::USR2);
    server.logged("upgrade: process").await;
    eprintln!("everything runs");
    match end {
        "panic" => panic!("on purpose"),
        "exit" => std::process::exit(1),
        _ => rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).unwrap(),
    }
    unreachable!("it has ended")
}
