//! The list of all settings: what the command line, `lastcall config`, the checks for unknown keys and
//! the shipped `config/lastcall.toml` are made from.

/// The prefix that a variable may have; it then wins over the one without.
pub(super) const PREFIX: &str = "LASTCALL_";

/// The subject of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group(pub &'static str);

const NETWORK: Group = Group("Network");
const MESSAGES: Group = Group("Messages");
const HISTORY: Group = Group("History");
const SHUTDOWN: Group = Group("Shutdown");
const UPGRADE: Group = Group("Upgrade");
const LIMITS: Group = Group("Limits");
const ACCESS: Group = Group("Access");
const LOGGING: Group = Group("Logging");

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// Its name in `config/lastcall.toml`; in capitals, the environment variable.
    pub key: &'static str,
    /// Its subject.
    pub group: Group,
    /// The word that stands for its value in `--help`.
    pub placeholder: &'static str,
    /// Its default, as one would write it in TOML; `None`: see `help`.
    pub default: Option<&'static str>,
    /// One line on what it does.
    pub help: &'static str,
    /// True if its value must never be shown.
    pub secret: bool,
    /// True if a `[[namespace]]` table may have it, too, for its channels.
    pub in_namespace: bool,
}

impl Spec {
    /// Returns the environment variable.
    pub fn variable(&self) -> String {
        self.key.to_ascii_uppercase()
    }

    /// Returns true if the setting decides who may do what: of the group Access. A value that is there and
    /// has nothing in it is refused, wherever it is: a secret that did not arrive must not open a door.
    pub(super) fn needs_content(&self) -> bool {
        self.group == ACCESS
    }

    /// Returns the command line flag, without its dashes.
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }
}

const fn spec(
    key: &'static str,
    group: Group,
    placeholder: &'static str,
    default: Option<&'static str>,
    help: &'static str,
) -> Spec {
    Spec { key, group, placeholder, default, help, secret: false, in_namespace: false }
}

/// The key of the tables for namespaces, which only a settings file has.
pub(super) const NAMESPACE: &str = "namespace";

/// The key of a namespace's name in its table.
pub(super) const NAMESPACE_NAME: &str = "name";

/// Returns the setting with this key; `None` if there is none.
pub(super) fn find(key: &str) -> Option<&'static Spec> {
    SPECS.iter().find(|spec| spec.key == key)
}

/// Returns the keys of all settings.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    SPECS.iter().map(|spec| spec.key)
}

/// Returns the keys of the settings that a `[[namespace]]` table may have.
pub(super) fn namespace_keys() -> impl Iterator<Item = &'static str> {
    SPECS.iter().filter(|spec| spec.in_namespace).map(|spec| spec.key)
}

/// Returns true if a value of this setting must have something in it.
pub(super) fn needs_content(key: &str) -> bool {
    find(key).is_some_and(Spec::needs_content)
}

/// Returns the one of these keys that a misspelt key was meant to be. `None`: it is another program's, or of
/// another version. Misspelt is a key with one wrong, missing, additional or transposed letter (optimal
/// string alignment), and longer ones with one in every four letters.
pub(super) fn similar(key: &str, keys: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let key = key.to_ascii_lowercase();
    let (distance, nearest) = keys.map(|known| (strsim::osa_distance(known, &key), known)).min()?;
    (distance <= (nearest.len() / 4).max(1)).then_some(nearest)
}

/// Every setting.
pub const SPECS: [Spec; 29] = [
    spec(
        "host",
        NETWORK,
        "HOST",
        Some("\"127.0.0.1\""),
        "Name or address to listen on; 0.0.0.0 for all of this machine",
    ),
    spec("port", NETWORK, "PORT", Some("8000"), "Port to listen on; 0 picks a free one and logs it"),
    spec(
        "keep_alive_timeout",
        NETWORK,
        "DURATION",
        Some("75"),
        "How long an HTTP connection may wait for a request; longer than a proxy keeps it",
    ),
    spec("templates_dir", NETWORK, "FOLDER", None, "Folder whose index.html replaces the built-in test page"),
    spec(
        "notification_interval",
        MESSAGES,
        "DURATION",
        Some("10"),
        "Time between periodic notifications; 0 turns them off",
    ),
    spec(
        "client_messages",
        MESSAGES,
        "WHAT",
        Some("\"broadcast\""),
        "What a client's text does: broadcast (in the client's first channel), ignore, or echo (for diagnosis)",
    ),
    Spec {
        in_namespace: true,
        ..spec(
            "history_size",
            HISTORY,
            "NUMBER",
            Some("100"),
            "Publications kept for each channel; 0 turns history off",
        )
    },
    Spec {
        in_namespace: true,
        ..spec("history_ttl", HISTORY, "DURATION", Some("300"), "How long a publication is kept")
    },
    spec(
        "history_bytes",
        HISTORY,
        "SIZE",
        Some("\"64MiB\""),
        "Most bytes of history over all channels; the oldest go first",
    ),
    spec(
        "history_file",
        HISTORY,
        "FILE",
        None,
        "File to which a shutdown writes history; the next start reads it",
    ),
    spec(
        "shutdown_timeout",
        SHUTDOWN,
        "DURATION",
        Some("1800"),
        "How long a drain waits for clients to leave before it closes them",
    ),
    spec(
        "shutdown_delay",
        SHUTDOWN,
        "DURATION",
        Some("0"),
        "How long new clients are still served after SIGTERM, until load balancers have noticed",
    ),
    spec(
        "shutdown_spread",
        SHUTDOWN,
        "DURATION",
        Some("\"auto\""),
        "Time before the deadline over which closes are spread; auto: a third of the drain, at most 60s",
    ),
    spec(
        "close_timeout",
        SHUTDOWN,
        "DURATION",
        Some("5"),
        "How long a closed client has to answer before its TCP socket goes",
    ),
    spec(
        "upgrade_timeout",
        UPGRADE,
        "DURATION",
        Some("30"),
        "How long a new process has to get ready and take over the history; after that, the upgrade fails",
    ),
    spec(
        "runtime_dir",
        UPGRADE,
        "FOLDER",
        None,
        "Folder, this user's alone, of the control socket; default: a folder of lastcall's own",
    ),
    spec(
        "max_connections",
        LIMITS,
        "NUMBER",
        None,
        "Most clients at once; default: the limit of open files, less HTTP connections and a reserve",
    ),
    spec(
        "max_http_connections",
        LIMITS,
        "NUMBER",
        None,
        "Most HTTP connections at once; default: an eighth of the limit of open files, 64 to 4096",
    ),
    spec(
        "max_message_size",
        LIMITS,
        "SIZE",
        Some("\"64KiB\""),
        "Largest message from a client, and body to publish",
    ),
    spec(
        "max_queue",
        LIMITS,
        "SIZE",
        Some("\"1MiB\""),
        "Bytes that may wait for a slow client; it is closed if more comes then",
    ),
    spec(
        "max_client_rate",
        LIMITS,
        "SIZE",
        Some("\"64KiB\""),
        "Bytes a second of one client's texts, as each client gets them; 0: no bound",
    ),
    spec(
        "max_total_rate",
        LIMITS,
        "SIZE",
        Some("\"512KiB\""),
        "Bytes a second of all clients' texts together, as each client gets them; 0: no bound",
    ),
    spec(
        "ping_interval",
        LIMITS,
        "DURATION",
        Some("25"),
        "Time between pings to each client; 0 turns them off",
    ),
    spec("pong_timeout", LIMITS, "DURATION", Some("10"), "How long a client has to answer a ping"),
    spec(
        "allowed_origins",
        ACCESS,
        "ORIGINS",
        None,
        "Web pages that may connect, such as https://example.org; * for all; default: same host",
    ),
    Spec {
        secret: true,
        ..spec(
            "api_keys",
            ACCESS,
            "KEYS",
            None,
            "Keys that /api/ accepts, 16 characters or more each; none: only this machine may call",
        )
    },
    spec(
        "log_level",
        LOGGING,
        "LEVEL",
        Some("\"info\""),
        "error, warn, info, debug or trace, or filter directives; RUST_LOG wins",
    ),
    spec(
        "log_format",
        LOGGING,
        "FORMAT",
        Some("\"auto\""),
        "pretty, json, or auto: pretty on a terminal, else json",
    ),
    spec(
        "log_dir",
        LOGGING,
        "FOLDER",
        None,
        "Folder for log files too, a new one each day (UTC); none is ever removed",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The shipped file, which people read to learn the settings.
    const SHIPPED: &str = include_str!("../../../../config/lastcall.toml");

    #[test]
    fn the_shipped_file_has_every_setting_with_its_default_and_its_line() {
        for spec in SPECS {
            let line = match spec.default {
                Some(default) => format!("# {} = {default}\n", spec.key),
                None => format!("# {} = ", spec.key),
            };
            let (before, _) = SHIPPED.split_once(&line).unwrap_or_else(|| panic!("no line {line:?}"));
            assert_eq!(before.lines().last(), Some(&*format!("## {}", spec.help)), "{}", spec.key);
        }
        let (settings, _) = SHIPPED.split_once("# [[namespace]]\n").unwrap();
        let listed = settings.lines().filter(|line| line.starts_with("# ")).count();
        assert_eq!(listed, SPECS.len(), "nothing else stands there");
    }

    #[test]
    fn the_shipped_file_ends_with_every_key_of_a_namespace() {
        let (_, namespace) = SHIPPED.split_once("# [[namespace]]\n").unwrap();
        let lines: Vec<_> = namespace.lines().filter(|line| !line.is_empty()).collect();
        let keys: Vec<_> = lines.chunks(2).map(|lines| lines[1].split(' ').nth(1).unwrap()).collect();
        assert_eq!(keys, [NAMESPACE_NAME].into_iter().chain(namespace_keys()).collect::<Vec<_>>());
        for (lines, key) in lines.chunks(2).zip(keys).skip(1) {
            assert_eq!(lines[0], format!("## {key} for these channels"));
        }
    }

    #[test]
    fn what_a_namespace_sets_is_no_secret_and_may_be_empty() {
        assert!(SPECS.iter().all(|spec| !spec.in_namespace || !spec.secret && !spec.needs_content()));
    }

    #[test]
    fn the_readme_has_every_setting_with_its_default() {
        let readme = include_str!("../../../../README.md");
        for spec in SPECS {
            let row = match spec.default {
                Some(default) => format!("\n| `{}` | `{}` |", spec.key, default.trim_matches('"')),
                None => format!("\n| `{}` | ", spec.key),
            };
            assert!(readme.contains(&row), "no row {row:?}");
        }
    }

    #[test]
    fn a_misspelt_key_is_distinguished_from_a_foreign_one() {
        for (key, meant) in [
            ("prot", "port"),
            ("hostt", "host"),
            ("api_key", "api_keys"),
            ("apikeys", "api_keys"),
            ("loglevel", "log_level"),
            ("logdir", "log_dir"),
            ("shutdown_timout", "shutdown_timeout"),
            ("shutdowntimeout", "shutdown_timeout"),
            ("ping_timeout", "pong_timeout"),
            ("allow_origins", "allowed_origins"),
            ("allowed_origin", "allowed_origins"),
            ("max_connection", "max_connections"),
        ] {
            assert_eq!(similar(key, keys()), Some(meant), "{key}");
        }
        for key in [
            "version",
            "image",
            "home",
            "root",
            "user",
            "env",
            "debug",
            "url",
            "path",
            "pid",
            "config",
            "tag",
            "tls_cert",
            "replicas",
            "release",
            "commit",
            "canary_port",
            "database_url",
            "",
        ] {
            assert_eq!(similar(key, keys()), None, "{key}");
        }
    }
}
