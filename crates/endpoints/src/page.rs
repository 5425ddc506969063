//! The test client: built into the binary, or from a folder of the operator's.

use std::path::{Path, PathBuf};

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use bytes::Bytes;
use minijinja::{Environment, context};

const NAME: &str = "index.html";
const BUILT_IN: &str = include_str!("../../../templates/index.html");

/// The page could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The file cannot be read.
    #[error("cannot read the template {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not a valid template.
    #[error("the template {path} is wrong")]
    Render {
        /// The file, or that it is the built-in one.
        path: PathBuf,
        /// Where and why.
        source: minijinja::Error,
    },
}

/// The test client, ready to be sent.
#[derive(Debug, Clone)]
pub struct Page(Bytes);

impl Page {
    /// Renders the page, once: it is the same for everyone.
    ///
    /// # Errors
    /// When `templates_dir` has no readable `index.html`, or the template is wrong.
    pub fn load(templates_dir: Option<&Path>) -> Result<Self, PageError> {
        let Some(dir) = templates_dir else { return Self::render(Path::new("(built-in)"), BUILT_IN) };
        let path = dir.join(NAME);
        let template = std::fs::read_to_string(&path)
            .map_err(|source| PageError::Read { path: path.clone(), source })?;
        Self::render(&path, &template)
    }

    fn render(path: &Path, template: &str) -> Result<Self, PageError> {
        let values = context! { name => "lastcall", version => env!("CARGO_PKG_VERSION") };
        let environment = Environment::new();
        environment
            .render_named_str(NAME, template, values)
            .map(|html| Self(html.into()))
            .map_err(|source| PageError::Render { path: path.to_owned(), source })
    }

    pub(crate) fn response(&self) -> impl IntoResponse + use<> {
        // Asked for anew each time: after an upgrade the page speaks the new server's protocol.
        ([(CONTENT_TYPE, "text/html; charset=utf-8"), (CACHE_CONTROL, "no-cache")], self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_page_renders() {
        let page = Page::load(None).unwrap();
        let html = std::str::from_utf8(&page.0).unwrap();
        assert!(html.contains("Send Hello") && html.contains(env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_folder_replaces_it_and_its_faults_are_told_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Page::load(Some(dir.path())).unwrap_err();
        assert!(
            matches!(missing, PageError::Read { .. }) && missing.to_string().contains("index.html"),
            "{missing}"
        );

        std::fs::write(dir.path().join(NAME), "<p>{{ name }}</p>").unwrap();
        assert_eq!(Page::load(Some(dir.path())).unwrap().0, "<p>lastcall</p>");

        std::fs::write(dir.path().join(NAME), "<p>\n{% if %}</p>").unwrap();
        let wrong = Page::load(Some(dir.path())).unwrap_err();
        let place = std::error::Error::source(&wrong).unwrap().to_string();
        assert!(place.contains("index.html:2"), "{place}");
    }
}
