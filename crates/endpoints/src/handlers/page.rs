//! The test page: built into the binary, or from a folder of the operator's.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use bytes::Bytes;
use minijinja::{Environment, context};

/// The page, and the parts that it includes.
const NAME: &str = "index.html";
const BUILT_IN: [(&str, &str); 3] = [
    (NAME, include_str!("../../../../templates/index.html")),
    ("page.css", include_str!("../../../../templates/page.css")),
    ("page.js", include_str!("../../../../templates/page.js")),
];

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

/// The test page, ready to be sent.
#[derive(Debug, Clone)]
pub struct Page(Bytes);

impl Page {
    /// Renders the page, once: it is the same for all clients. It says how many bytes a text may have.
    ///
    /// # Errors
    /// When `templates_dir` has no readable `index.html`, or a template is wrong. A part that the folder does not have
    /// is the built-in one.
    pub fn load(templates_dir: Option<&Path>, max_message_size: usize) -> Result<Self, PageError> {
        let mut environment = Environment::new();
        let mut page = PathBuf::from("(built-in)");
        for (name, built_in) in BUILT_IN {
            let path = templates_dir.map_or_else(|| page.clone(), |dir| dir.join(name));
            let template = match templates_dir.map(|_| std::fs::read_to_string(&path)) {
                None => built_in.to_owned(),
                Some(Ok(template)) => template,
                Some(Err(error)) if error.kind() == ErrorKind::NotFound && name != NAME => {
                    built_in.to_owned()
                }
                Some(Err(source)) => return Err(PageError::Read { path, source }),
            };
            environment
                .add_template_owned(name, template)
                .map_err(|source| PageError::Render { path: path.clone(), source })?;
            if name == NAME {
                page = path;
            }
        }
        let values = context! { name => "lastcall", version => env!("CARGO_PKG_VERSION"), max_message_size };
        environment
            .get_template(NAME)
            .and_then(|template| template.render(values))
            .map(|html| Self(html.into()))
            .map_err(|source| PageError::Render { path: page, source })
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
        let page = Page::load(None, 65536).unwrap();
        let html = std::str::from_utf8(&page.0).unwrap();
        for part in [
            "Send Hello",
            env!("CARGO_PKG_VERSION"),
            "MAX_MESSAGE_SIZE = 65536;",
            "--paper:",
            "new WebSocket(",
        ] {
            assert!(html.contains(part), "{part}");
        }
    }

    #[test]
    fn a_folder_replaces_the_page_and_its_errors_are_reported_with_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Page::load(Some(dir.path()), 1).unwrap_err();
        assert!(
            matches!(missing, PageError::Read { .. }) && missing.to_string().contains("index.html"),
            "{missing}"
        );

        std::fs::write(dir.path().join(NAME), "<p>{{ name }}</p>").unwrap();
        assert_eq!(Page::load(Some(dir.path()), 1).unwrap().0, "<p>lastcall</p>");

        std::fs::write(dir.path().join(NAME), "<p>\n{% if %}</p>").unwrap();
        let wrong = Page::load(Some(dir.path()), 1).unwrap_err();
        let place = std::error::Error::source(&wrong).unwrap().to_string();
        assert!(place.contains("index.html:2"), "{place}");

        std::fs::write(dir.path().join(NAME), "{% include 'page.js' %}").unwrap();
        let built_in = Page::load(Some(dir.path()), 1).unwrap();
        assert!(built_in.0.starts_with(b"\"use strict\";"), "a part that the folder does not have");
        std::fs::write(dir.path().join("page.js"), "its own").unwrap();
        assert_eq!(Page::load(Some(dir.path()), 1).unwrap().0, "its own");
        std::fs::write(dir.path().join("page.js"), "\n{{").unwrap();
        let wrong = Page::load(Some(dir.path()), 1).unwrap_err();
        assert!(wrong.to_string().contains("page.js"), "{wrong}");
    }
}
