//! For tests: what an operator wrote, and what surrounds it.

use std::path::Path;

use tempfile::TempDir;

use crate::settings::{Loaded, Settings, Sources, settings_file::CONFIG_FILE};

/// A folder with what the operator wrote, and what surrounds it.
pub(super) struct Operator {
    pub(super) dir: TempDir,
    pub(super) sources: Sources,
}

impl Operator {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { working_dir: dir.path().to_owned(), ..Sources::default() };
        Self { dir, sources }
    }

    pub(super) fn write(self, path: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    pub(super) fn toml(self, text: &str) -> Self {
        self.write(CONFIG_FILE, text)
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    pub(super) fn flag(mut self, key: &'static str, value: &str) -> Self {
        self.sources.command_line.push((key, value.into()));
        self
    }

    pub(super) fn loaded(&self) -> Loaded {
        Settings::load(&self.sources).unwrap_or_else(|errors| panic!("{errors}"))
    }

    pub(super) fn settings(&self) -> Settings {
        self.loaded().settings
    }

    /// Returns the lines of the complaint, without the first.
    pub(super) fn complaints(&self) -> Vec<String> {
        let errors = Settings::load(&self.sources).expect_err("settings that are right").to_string();
        errors.lines().skip(1).map(|line| line.trim().to_owned()).collect()
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.loaded().warnings
    }

    pub(super) fn source(&self, key: &str) -> String {
        self.loaded().effective.iter().find(|one| one.key == key).unwrap().source.to_string()
    }
}
