//! The test page: built into the binary, or from a folder of the operator's.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;
use bytes::Bytes;
use data_encoding::BASE64;
use minijinja::{Environment, context};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

/// The page, and the parts that it includes.
const NAME: &str = "index.html";
const BUILT_IN: [(&str, &str); 3] = [
    (NAME, include_str!("../../../templates/index.html")),
    ("page.css", include_str!("../../../templates/page.css")),
    ("page.js", include_str!("../../../templates/page.js")),
];

/// The largest template, in bytes.
const MAX_TEMPLATE: u64 = 16 << 20;

/// The page could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The file cannot be read.
    #[error("cannot read the template {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It is not a valid template.
    #[error("the template {path} is wrong")]
    Render {
        /// The file, or that it is the built-in one.
        path: PathBuf,
        /// The place and the reason.
        source: minijinja::Error,
    },
}

/// The test page, ready to be sent.
#[derive(Debug, Clone)]
pub struct Page {
    html: Bytes,
    /// The policy that a browser enforces for it (Content Security Policy, level 3).
    policy: String,
}

impl Page {
    /// Renders the page, once: it is the same for all clients. It says how many bytes a text may have.
    ///
    /// # Errors
    /// When `templates_dir` has no readable `index.html`, or a template is wrong. A part that the folder does
    /// not have is the built-in one.
    pub fn load(templates_dir: Option<&Path>, max_message_size: usize) -> Result<Self, PageError> {
        let mut environment = Environment::new();
        let mut page = PathBuf::from("(built-in)");
        for (name, built_in) in BUILT_IN {
            let path = templates_dir.map_or_else(|| page.clone(), |dir| dir.join(name));
            let template = match templates_dir.map(|_| read(&path)) {
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
            .map(|html| {
                // An operator's page may have scripts, styles and pictures from anywhere.
                let policy = if templates_dir.is_none() {
                    policy_of_built_in(&html)
                } else {
                    "frame-ancestors 'self'".to_owned()
                };
                Self { html: html.into(), policy }
            })
            .map_err(|source| PageError::Render { path: page, source })
    }

    pub(crate) fn response(&self) -> impl IntoResponse + use<> {
        let headers = [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            // Asked for anew each time: after an upgrade the page speaks the new server's protocol.
            (CACHE_CONTROL, "no-cache"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (headers, [(CONTENT_SECURITY_POLICY, self.policy.clone())], self.html.clone())
    }
}

/// Reads a file, and waits for nobody: a FIFO may never have a writer (fifo(7)), and a device may have no
/// end.
///
/// # Errors
/// When it cannot be read, is no regular file, is larger than [`MAX_TEMPLATE`], or is not UTF-8.
fn read(path: &Path) -> io::Result<String> {
    // Without O_NONBLOCK, opening a FIFO waits for its writer. A regular file is read as usual all the same.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        let what = "it is a folder, a FIFO or a device, where a regular file is needed";
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    let mut template = String::new();
    if file.take(MAX_TEMPLATE + 1).read_to_string(&mut template)? as u64 > MAX_TEMPLATE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it is larger than 16 MiB"));
    }
    Ok(template)
}

/// Returns what the built-in page needs: its own script and style, its icon, and connections. No page may
/// have it in a frame, where a click could be meant for something else.
fn policy_of_built_in(html: &str) -> String {
    let source = |begin: &str, end: &str| {
        let text = html.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(text, _)| text);
        text.map_or_else(
            || "'none'".to_owned(),
            |text| format!("'sha256-{}'", BASE64.encode(&Sha256::digest(text))),
        )
    };
    let (script, style) = (source("<script>", "</script>"), source("<style>", "</style>"));
    // Not all browsers take the WebSockets of the page's own host for 'self'.
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self' ws: wss:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_page_renders() {
        let page = Page::load(None, 65536).unwrap();
        let html = std::str::from_utf8(&page.html).unwrap();
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
        assert_eq!(Page::load(Some(dir.path()), 1).unwrap().html, "<p>lastcall</p>");

        std::fs::write(dir.path().join(NAME), "<p>\n{% if %}</p>").unwrap();
        let wrong = Page::load(Some(dir.path()), 1).unwrap_err();
        let place = std::error::Error::source(&wrong).unwrap().to_string();
        assert!(place.contains("index.html:2"), "{place}");

        std::fs::write(dir.path().join(NAME), "{% include 'page.js' %}").unwrap();
        let built_in = Page::load(Some(dir.path()), 1).unwrap();
        assert!(built_in.html.starts_with(b"\"use strict\";"), "a part that the folder does not have");
        std::fs::write(dir.path().join("page.js"), "its own").unwrap();
        assert_eq!(Page::load(Some(dir.path()), 1).unwrap().html, "its own");
        std::fs::write(dir.path().join("page.js"), "\n{{").unwrap();
        let wrong = Page::load(Some(dir.path()), 1).unwrap_err();
        assert!(wrong.to_string().contains("page.js"), "{wrong}");
    }
}
