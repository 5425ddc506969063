//! The settings for history, and those of them that contradict each other.

use std::time::Duration;

use super::operator::Operator;

#[test]
fn history_is_set_in_every_source() {
    let operator = Operator::new()
        .toml("history_size = 5\nhistory_bytes = 1048576\n")
        .write(".env", "HISTORY_TTL=1h\n")
        .env("LASTCALL_HISTORY_FILE", "state/history")
        .flag("history_size", "1000000");
    let settings = operator.settings();
    assert_eq!((settings.retention.size, settings.history_bytes), (1_000_000, 1 << 20));
    assert_eq!(settings.retention.ttl, Duration::from_secs(3600));
    assert_eq!(settings.history_file, Some(operator.dir.path().join("state/history")));
    assert_eq!(operator.source("history_size"), "command line --history-size");
    let absolute = Operator::new().flag("history_file", "/var/lib/lastcall/history").settings();
    assert_eq!(absolute.history_file, Some("/var/lib/lastcall/history".into()));
    assert_eq!(Operator::new().toml("history_file = ''\n").settings().history_file, None);
}

#[test]
fn a_history_file_without_history_is_rejected() {
    let off = || Operator::new().toml("history_file = 'history'\n").flag("history_size", "0");
    assert_eq!(
        off().complaints(),
        ["history_file = \"history\" (config/lastcall.toml:1): expected no file: history_size is 0 for all \
          channels, so there is no history to write"]
    );
    let text = "history_file = 'history'\n[[namespace]]\nname = 'chat'\nhistory_size = 1\n";
    assert_eq!(off().toml(text).settings().namespaces.len(), 1, "a namespace has history");
    let wrong = off().toml(&text.replace('1', "'one'")).complaints();
    assert!(wrong.len() == 1 && wrong[0].starts_with("namespace.chat.history_size = "), "{wrong:?}");
}

#[test]
fn history_that_cannot_hold_one_publication_is_rejected() {
    let small = |size: &str| Operator::new().flag("history_bytes", size);
    let complaint = "history_bytes = \"1\" (command line --history-bytes): expected at least 1MiB, or history_size = \
                     0, which turns history off";
    assert_eq!(small("1").complaints(), [complaint]);
    for bytes in ["0", "1"] {
        small(bytes).flag("history_size", "0").settings();
    }
    let large = |size: &str| small("2MiB").flag("max_queue", "8MiB").flag("max_message_size", size);
    large("2MiB").settings();
    let complaints = large("4MiB").complaints();
    assert!(complaints.len() == 1 && complaints[0].contains("one publication must fit"), "{complaints:?}");
}
