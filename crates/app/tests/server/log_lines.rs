//! What the lines of the log say to operators, and to the programs that watch for them.

use std::{collections::BTreeMap, os::unix::net::UnixDatagram};

use serde_json::Value;

use crate::support::{Server, Signal, Start, adopt_orphans, folder, message, until};

/// Lines that an alert on levels would fire on.
fn alarms(server: &Server) -> Vec<Value> {
    let alarms = ["WARN", "ERROR"];
    server
        .log()
        .lines()
        .into_iter()
        .filter(|line| alarms.contains(&line["level"].as_str().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_life_has_no_line_that_alarms() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    client.say("Hello").await;
    client.next_of("message").await;
    for _ in 0..2 {
        server.upgrade().await;
    }
    server.publish(r#"{"data":1}"#).await;
    assert_eq!(server.refusal(&[("origin", "https://elsewhere.example")]).await.status, 403);
    server.signal(Signal::TERM);
    server.logged("drain started").await;
    client.leave().await;
    assert_eq!(server.exit_code().await, 0);
    let alarms = alarms(&server);
    assert!(alarms.is_empty(), "{alarms:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_replaced_says_so_and_not_that_it_stopped() {
    let mut server = Server::start().await;
    let first = server.pid().as_raw_nonzero().get();
    server.upgrade().await;
    let second = server.pid().as_raw_nonzero().get();
    let line = server.logged("handed over to process ").await;
    assert_eq!((&line["fields"]["pid"], &line["fields"]["new_pid"]), (&first.into(), &second.into()));
    assert!(message(&line).contains("supervises"), "{line}");
    server.upgrade().await;
    let third = server.pid().as_raw_nonzero().get();
    until("a second line", async || server.log_lines("handed over to process ").len() == 2).await;
    let line = server.log_lines("handed over to process ").pop().unwrap();
    assert_eq!((&line["fields"]["pid"], &line["fields"]["new_pid"]), (&second.into(), &third.into()));
    assert!(message(&line).ends_with(": this process ends"), "{line}");
    let to_stopped = |line: &Value| line["fields"]["to"] == "stopped";
    assert!(server.log_lines("stopped").is_empty());
    assert!(!server.log().lines().iter().any(to_stopped), "neither does a phase");
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    let stopped = server.log_lines("stopped");
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    assert_eq!(stopped[0]["fields"]["pid"], third);
    let ended = server.log_lines("the process that served has ended");
    assert_eq!((&ended[0]["fields"]["pid"], &ended[0]["fields"]["exit_code"]), (&first.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_a_service_manager_leaves_says_so_too() {
    let folder = folder();
    let path = folder.path().join("notify");
    let _manager = UnixDatagram::bind(&path).unwrap();
    adopt_orphans();
    let mut server = Start::default().watched_by_this_process(path.display()).serve().await;
    let first = server.pid().as_raw_nonzero().get();
    server.signal(Signal::USR2);
    let line = server.logged("handed over to process ").await;
    let second = line["fields"]["new_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    server.followed_by(second).await;
    assert_eq!((&line["fields"]["pid"], &line["fields"]["new_pid"]), (&first.into(), &second.into()));
    assert!(server.log_lines("stopped").is_empty());
}

#[tokio::test]
async fn a_change_of_phase_is_logged_in_words() {
    let mut server = Start::default().env("SHUTDOWN_DELAY", "0.01").serve().await;
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);
    let told: Vec<_> = server.log_lines("phase").iter().map(|line| message(line).to_owned()).collect();
    let expected = [
        "phase changed from starting to serving",
        "phase changed from serving to withdrawing",
        "phase changed from withdrawing to draining",
        "phase changed from draining to stopped",
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_default_is_a_warning_only_where_it_matters() {
    let own = Server::start().await;
    assert_eq!(own.logged("no api_keys").await["level"], "INFO");
    let open = Start::default().env("HOST", "0.0.0.0").serve().await;
    let line = open.logged("no api_keys").await;
    assert_eq!(line["level"], "WARN");
    assert!(message(&line).contains("others can reach 0.0.0.0:"), "{line}");
}

#[tokio::test]
async fn a_control_socket_that_cannot_be_there_is_a_warning_only_if_its_folder_was_set() {
    // As in a container whose files are read-only. `/proc` takes no folder from anyone, root included.
    let start = Start::default().env_remove("RUNTIME_DIR").env("XDG_RUNTIME_DIR", "/proc/none");
    let server = start.serve().await;
    assert_eq!(server.logged("there is no control socket").await["level"], "INFO");
}

/// A field has one kind of value in all lines, also in those of upgrades and of every phase.
#[tokio::test(flavor = "multi_thread")]
async fn every_field_has_one_meaning() {
    let docs = include_str!("../../../../docs/operations.md");
    let (_, table) = docs.split_once("| field | what it is |\n").unwrap();
    let listed: Vec<_> = table
        .lines()
        .filter_map(|row| row.strip_prefix("| ")?.split(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let level = "lastcall=trace,lastcall_core=trace,lastcall_endpoints=trace,lastcall_lifecycle=trace,lastcall_websockets=trace";
    let start =
        Start::default().env("LOG_LEVEL", level).env("SHUTDOWN_SPREAD", "0.2").env("SHUTDOWN_TIMEOUT", "0.5");
    let mut server = start.env("SHUTDOWN_DELAY", "0.01").env("MAX_CONNECTIONS", "3").serve().await;
    let mut clients = server.clients(3).await;
    assert_eq!(server.refusal(&[]).await.status, 503);
    server.upgrade().await;
    clients.pop().unwrap().leave().await;
    server.signal(Signal::TERM);
    for client in &mut clients {
        client.closed().await;
    }
    assert_eq!(server.exit_code().await, 0);
    let mut kinds = BTreeMap::new();
    let mut seen = Vec::new();
    for line in server.log().lines() {
        for (name, value) in line["fields"].as_object().unwrap() {
            if name == "message" || name.starts_with("log.") {
                continue;
            }
            assert!(listed.contains(&name.as_str()), "{name} is not documented: {line}");
            let kind = if value.is_number() { "a number" } else { "a text" };
            assert_eq!(*kinds.entry(name.clone()).or_insert(kind), kind, "{name} in {line}");
            seen.push(name.clone());
        }
    }
    for name in
        ["pid", "new_pid", "old_pid", "client", "clients", "disconnect", "code", "peer", "from", "signal"]
    {
        assert!(seen.iter().any(|seen| seen == name), "no line has {name}");
    }
}
