//! The server from the outside: the real binary, real signals, real sockets, a real browser.
//!
//! - What clients see: `messages`, `notices`, `protocol`, `limits`, `flood`, `slow_clients`, `heartbeat`,
//!   `event_loops`, `example_clients`.
//! - Channels and recovery: `channels`, `events`, `events_body`, `events_in_browser`, `history`,
//!   `history_file`, `history_pages`, `recovery_model`, `replays`.
//! - HTTP: `http_*`, `publish`, `pages`, `pages_in_browser`, `refusals`, `proxies`.
//! - The page in a browser: `browser`, `page_*`.
//! - The life of the process: `startup`, `listen`, `listening_socket`, `settings`, `settings_sources`,
//!   `signals`, `drain`, `shutdown`, `parents`, `service_manager`, `processes`, `task_limit`, `leaks`,
//!   `vital_tasks`, `clocks`.
//! - Upgrades: `upgrade`, `failed_upgrades`, `control`, `http_upgrade`.
//! - What operators see: `operate` (status, health), `metrics`, `logging`, `log_lines`, `deploy`, `recipes`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod browser;
mod channels;
mod clocks;
mod control;
mod deploy;
mod drain;
mod event_loops;
mod events;
mod events_body;
mod events_in_browser;
mod example_clients;
mod failed_upgrades;
mod flood;
mod heartbeat;
mod history;
mod history_file;
mod history_pages;
mod http_bound;
mod http_connection;
mod http_fields;
mod http_upgrade;
mod leaks;
mod limits;
mod listen;
mod listening_socket;
mod log_lines;
mod logging;
mod long_queries;
mod messages;
mod metrics;
mod notices;
mod operate;
mod page_drain;
mod page_messages;
mod page_recovery;
mod pages;
mod pages_in_browser;
mod parents;
mod processes;
mod protocol;
mod proxies;
mod publish;
mod recipes;
mod recovery_model;
mod refusals;
mod replays;
mod service_manager;
mod settings;
mod settings_sources;
mod shutdown;
mod signals;
mod slow_clients;
mod startup;
mod support;
mod task_limit;
mod unread_in_upgrades;
mod upgrade;
mod vital_tasks;
