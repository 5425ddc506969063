//! Paths in messages: text where they are UTF-8, which every build reads, and else bytes, as a path may have
//! any.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

/// Writes one path.
pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => serializer.serialize_str(text),
        None => serializer.serialize_bytes(path.as_os_str().as_bytes()),
    }
}

/// Reads one path.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    deserializer.deserialize_any(PathVisitor)
}

struct PathVisitor;

impl Visitor<'_> for PathVisitor {
    type Value = PathBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PathBuf, E> {
        Ok(PathBuf::from(text))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<PathBuf, E> {
        Ok(PathBuf::from(OsString::from_vec(bytes.to_vec())))
    }
}

/// Lists of paths.
pub(crate) mod list {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Member(#[serde(with = "super")] PathBuf);

    /// Writes the paths.
    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().cloned().map(Member))
    }

    /// Reads the paths.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        let members = Vec::<Member>::deserialize(deserializer)?;
        Ok(members.into_iter().map(|Member(path)| path).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Message {
        #[serde(with = "super")]
        one: PathBuf,
        #[serde(with = "super::list")]
        several: Vec<PathBuf>,
    }

    #[test]
    fn a_path_arrives_whatever_its_bytes_are_and_is_text_where_it_can_be() {
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        let message =
            Message { one: path(b"/a\xff/b"), several: vec![path("/ä".as_bytes()), path(b"\xfe")] };
        let bytes = rmp_serde::to_vec_named(&message).unwrap();
        assert_eq!(rmp_serde::from_slice::<Message>(&bytes).unwrap(), message);

        let text = Message { one: "/a".into(), several: vec!["/ä".into()] };
        let bytes = rmp_serde::to_vec_named(&text).unwrap();
        let read: serde_json::Value = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(read, serde_json::json!({ "one": "/a", "several": ["/ä"] }));
    }
}
