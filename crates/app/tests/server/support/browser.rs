//! Headless Chromium, driven over WebDriver (W3C).

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use fantoccini::{Client, ClientBuilder, wd::WebDriverCompatibleCommand};
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{process::ProcessGroup, soon};

/// The number of times that chromedriver is started before a test gives up.
const MAX_STARTS: usize = 20;

/// Chromedriver and the browsers that it started; both end with this.
pub(crate) struct Driver {
    _process: Child,
    // Also after a failure: a browser whose driver is gone would stay for ever.
    _processes: ProcessGroup,
    url: String,
    profiles: Vec<TempDir>,
}

impl Driver {
    pub(crate) async fn start() -> Self {
        Self::of(&program("CHROMEDRIVER", "chromedriver")).await
    }

    /// Starts this program. Chromedriver has the system choose a port for IPv4, and then takes the same one
    /// for IPv6: when another program has that, it ends, and is started again.
    pub(crate) async fn of(program: &Path) -> Self {
        for _ in 0..MAX_STARTS {
            if let Some(driver) = soon("chromedriver starts", Self::try_start(program)).await {
                return driver;
            }
        }
        panic!(
            "{} ended {MAX_STARTS} times without having said its port; its output says why",
            program.display()
        )
    }

    /// Returns `None` if the program ends before it says its port.
    async fn try_start(program: &Path) -> Option<Self> {
        let mut process = Command::new(program)
            .arg("--port=0")
            .stdout(Stdio::piped())
            // A group of its own: the browsers that it starts belong to it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| missing("chromedriver", &error));
        let processes = ProcessGroup::of(&process);
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port: u16 = loop {
            let line = lines.next_line().await.unwrap()?;
            eprintln!("chromedriver: {line}");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim_end_matches('.').parse().unwrap();
            }
        };
        // What it says later must go somewhere, or it blocks.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let url = format!("http://127.0.0.1:{port}");
        Some(Self { _process: process, _processes: processes, url, profiles: Vec::new() })
    }

    /// Returns where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Opens a browser of its own, as wide and high as said.
    pub(crate) async fn browser(&mut self, (width, height): (u32, u32)) -> Client {
        let profile = tempfile::tempdir().unwrap();
        let mut args: Vec<String> = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-device-scale-factor=1",
            "--hide-scrollbars",
            // Names for this machine that have no owner (RFC 2606).
            "--host-resolver-rules=MAP *.example 127.0.0.1",
        ]
        .map(String::from)
        .into();
        args.push(format!("--window-size={width},{height}"));
        args.push(format!("--user-data-dir={}", profile.path().display()));
        let binary = program("CHROMIUM", "chromium");
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join(&binary))
            .find(|path| path.exists())
            .unwrap_or_else(|| missing("chromium", &"it is not on the PATH"));
        let capabilities = json!({
            "goog:chromeOptions": {"args": args, "binary": found},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else { unreachable!("it is an object") };
        self.profiles.push(profile);
        let mut builder = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
        soon("a browser", builder.capabilities(capabilities).connect(&self.url)).await.unwrap()
    }
}

/// Returns the program, or another that the environment names.
fn program(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
}

fn missing(what: &str, error: &dyn std::fmt::Display) -> ! {
    panic!(
        "{what} cannot be started ({error}). This test needs Chromium and its driver: on Debian, \
         `apt-get install chromium chromium-driver`; elsewhere, name them in CHROMIUM and CHROMEDRIVER"
    )
}

/// A command of Chromium's own.
#[derive(Debug)]
pub(crate) struct Chromium {
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

impl WebDriverCompatibleCommand for Chromium {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &url::Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}
