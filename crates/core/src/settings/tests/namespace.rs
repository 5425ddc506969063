//! Settings for the channels of a namespace.

use std::time::Duration;

use super::operator::Operator;
use crate::{Namespace, Retention, settings::SPECS};

/// The shipped file, which people read to learn the settings.
const SHIPPED: &str = include_str!("../../../../../config/lastcall.toml");

fn namespace(name: &str, size: usize, ttl: u64) -> Namespace {
    Namespace { name: name.into(), retention: Retention { size, ttl: Duration::from_secs(ttl) } }
}

#[test]
fn a_namespace_has_its_own_settings_and_the_others_of_all_channels() {
    let operator = Operator::new()
        .toml(
            "history_size = 7\n\n[[namespace]]\nname = 'chat'\nhistory_size = '1000'\nhistory_ttl = '1h'\n\n\
             [[namespace]]\nname = 'a.b'\nhistory_ttl = 0.5\n[[namespace]]\nhistory_size = 0\nname = 'log'\n",
        )
        .env("HISTORY_TTL", "20");
    let mut half = namespace("a.b", 7, 0);
    half.retention.ttl = Duration::from_millis(500);
    assert_eq!(
        operator.settings().namespaces,
        [namespace("chat", 1000, 3600), half, namespace("log", 0, 20)]
    );
    let effective = operator.loaded().effective;
    let shown: Vec<_> = effective[SPECS.len()..]
        .iter()
        .map(|one| format!("{} {} {}", one.key, one.value, one.source))
        .collect();
    assert_eq!(
        shown,
        [
            "namespace.chat.history_size 1000 config/lastcall.toml:5",
            "namespace.chat.history_ttl 1h config/lastcall.toml:6",
            "namespace.a.b.history_size 7 config/lastcall.toml:1",
            "namespace.a.b.history_ttl 0.5 config/lastcall.toml:10",
            "namespace.log.history_size 0 config/lastcall.toml:12",
            "namespace.log.history_ttl 20 environment variable HISTORY_TTL",
        ]
    );
}

#[test]
fn the_namespaces_of_the_shipped_file_are_right() {
    let lines = SHIPPED.lines().skip_while(|line| *line != "# [[namespace]]");
    let text: String = lines.map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line))).collect();
    assert_eq!(Operator::new().toml(&text).settings().namespaces, [namespace("chat", 1000, 3600)]);
}

#[test]
fn everything_that_is_wrong_with_namespaces_is_reported_at_once() {
    let operator = Operator::new().toml(
        "[[namespace]]\nname = 'chat'\nhistory_sizes = 5\n\n[[namespace]]\nhistory_size = 5\n\n[[namespace]]\n\
         name = 'a b'\nhistory_ttl = '0'\n\n[[namespace]]\nname = 'chat'\nhistory_size = 5\n\n[[namespace]]\n\
         name = 'log'\n\n[[namespace]]\nname = 'x'\ncolour = 1\nport = 80\nhistory_size = [1]\n\n[[namespace]]\n\
         name = 5\nhistory_ttl = true\n",
    );
    let mut complaints = operator.complaints();
    complaints.sort();
    assert_eq!(
        complaints,
        [
            "namespace.chat.history_sizes (config/lastcall.toml:3): unknown setting; did you mean history_size?",
            "namespace.chat.name = \"chat\" (config/lastcall.toml:13): expected a name that no other namespace has; \
             that at config/lastcall.toml:1 has it, too",
            "namespace.history_ttl = \"0\" (config/lastcall.toml:10): expected more than 0 seconds",
            "namespace.history_ttl = true (config/lastcall.toml:27): expected a number of seconds, such as 10 or 0.5, \
             or whole numbers with the units d, h, m, s and ms, such as 30m or 1h 30m",
            "namespace.log (config/lastcall.toml:16): expected a setting for these channels, history_size or \
             history_ttl, and not the name alone",
            "namespace.name (config/lastcall.toml:5): expected a name, such as name = \"chat\" for the channels chat:…",
            "namespace.name = \"a b\" (config/lastcall.toml:9): expected 1 to 64 printable ASCII characters, and none \
             of space , * & \\ :, such as \"chat\"",
            "namespace.name = 5 (config/lastcall.toml:26): expected 1 to 64 printable ASCII characters, and none \
             of space , * & \\ :, such as \"chat\"",
            "namespace.x.colour (config/lastcall.toml:21): unknown setting; a namespace has name, history_size, \
             history_ttl",
            "namespace.x.history_size = [1] (config/lastcall.toml:23): expected a whole number from 0, which turns \
             history off, to 1000000",
            "namespace.x.port (config/lastcall.toml:22): unknown setting; a namespace has none of this name: write \
             port above the first [[namespace]]",
        ]
    );
}

#[test]
fn a_name_that_is_repeated_on_one_line_is_found() {
    let text = "namespace = [{ name = 'a', history_size = 1 }, { name = 'a', history_size = 2 }]\n";
    let complaints = Operator::new().toml(text).complaints();
    assert!(complaints.len() == 1 && complaints[0].contains("no other namespace"), "{complaints:?}");
    let other = text.replacen("'a'", "'b'", 1);
    assert_eq!(
        Operator::new().toml(&other).settings().namespaces,
        [namespace("b", 1, 300), namespace("a", 2, 300)]
    );
}

#[test]
fn what_is_no_list_of_tables_is_refused() {
    for (text, shown) in [
        ("namespace = 'chat'\n", "namespace = \"chat\""),
        ("namespace = ['chat']\n", "namespace = [\"chat\"]"),
        ("[namespace]\nname = 'chat'\nhistory_size = 5\n", "namespace = a table"),
    ] {
        let expected = "(config/lastcall.toml:1): expected each namespace in a table of its own, which \
                        [[namespace]] begins";
        assert_eq!(Operator::new().toml(text).complaints(), [format!("{shown} {expected}")]);
    }
    assert_eq!(Operator::new().toml("namespace = []\n").settings().namespaces, []);
}

#[test]
fn only_a_settings_file_has_namespaces() {
    let misspelt = Operator::new().toml("[[namespaces]]\nname = 'chat'\n").complaints();
    assert_eq!(misspelt, ["namespaces (config/lastcall.toml:1): unknown setting; did you mean namespace?"]);
    for name in ["LASTCALL_NAMESPACE", "LASTCALL_NAMESPACES"] {
        let variable = Operator::new().env(name, "chat");
        assert_eq!(
            variable.warnings(),
            [format!(
                "environment variable {name}: there is no such setting, so it does nothing; `lastcall --help` lists all"
            )]
        );
        assert_eq!(variable.settings().namespaces, []);
    }
    assert_eq!(Operator::new().env("NAMESPACE", "production").warnings(), [""; 0], "another program's");
}

#[test]
fn the_namespaces_of_a_named_file_replace_those_of_the_usual_one() {
    let table = |name: &str| format!("[[namespace]]\nname = '{name}'\nhistory_size = 1\n");
    let mut operator = Operator::new().toml(&table("usual")).write("other.toml", table("named"));
    operator.sources.config_file = Some("other.toml".into());
    assert_eq!(operator.settings().namespaces, [namespace("named", 1, 300)]);
}
