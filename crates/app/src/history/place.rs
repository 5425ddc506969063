//! Where the history file is: what its path leads to, and whether another file can take its place there.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, AtFlags, CWD, StatxAttributes, StatxFlags, access, statx},
    process::geteuid,
};
use thiserror::Error;

/// Most symbolic links that lead to a file, as in Linux.
const MAX_LINKS: usize = 40;

/// The bit of a folder in which only their owners may remove files.
const STICKY: u32 = 0o1000;

/// The suffix of the name that a file gets which cannot be used. That of one that is being written is
/// shorter.
pub(super) const LONGEST_SUFFIX: &str = ".unusable";

/// Why there can be no history file.
#[derive(Debug, Error)]
pub(crate) enum UnusablePath {
    #[error("its folder cannot be used: {0}")]
    Folder(io::Error),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("cannot write there: {0}")]
    NotWritable(io::Error),
    #[error("its name is too long: a shutdown writes a file beside it, with a longer one")]
    NameTooLong,
    #[error("it is a mount point, and a shutdown puts a new file in its place: mount its folder instead")]
    MountPoint,
    #[error("it belongs to user {0}, and in this folder only that user may put another file in its place")]
    Sticky(u32),
}

/// Why a file is not trusted.
#[derive(Debug, Error)]
pub(super) enum Untrusted {
    #[error("it belongs to user {0}, and not to the user of this server, {1}")]
    Owner(u32, u32),
    #[error("it has mode {0:04o}: others than the user of this server may have written it")]
    Mode(u32),
}

/// Returns the file that a path leads to, through all symbolic links. It need not be there.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..=MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            // It is no link, or is not there: then its folder is, or cannot be used.
            Err(_) => {
                let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
                return Ok(fs::canonicalize(folder_of(&path))?.join(name));
            }
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// Returns the folder of a file.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    }
}

/// Returns the path of another file in the same folder.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(suffix);
    path.into()
}

/// Checks that a file can be written where this path leads to, without writing it: a shutdown would find out
/// too late.
///
/// # Errors
/// When its folder does not exist or cannot be written, something other than a regular file has that name, or
/// a file is there that no other one can replace.
pub(crate) fn check(path: &Path) -> Result<(), UnusablePath> {
    let path = resolve(path).map_err(UnusablePath::Folder)?;
    let folder = folder_of(&path);
    let metadata = fs::metadata(folder).map_err(UnusablePath::Folder)?;
    if !metadata.is_dir() {
        return Err(UnusablePath::Folder(io::ErrorKind::NotADirectory.into()));
    }
    access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| UnusablePath::NotWritable(error.into()))?;
    match fs::symlink_metadata(beside(&path, LONGEST_SUFFIX)) {
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
            return Err(UnusablePath::NameTooLong);
        }
        _ => {}
    }
    // One that is there and cannot be looked at is not there for its reader either, who says why.
    let Ok(file) = fs::symlink_metadata(&path) else { return Ok(()) };
    if !file.is_file() {
        return Err(UnusablePath::NotRegular);
    }
    if is_mount_point(&path, &file, &metadata) {
        return Err(UnusablePath::MountPoint);
    }
    let user = geteuid().as_raw();
    let may_replace = user == 0 || user == file.uid() || user == metadata.uid();
    if metadata.mode() & STICKY != 0 && !may_replace {
        return Err(UnusablePath::Sticky(file.uid()));
    }
    Ok(())
}

fn is_mount_point(path: &Path, file: &fs::Metadata, folder: &fs::Metadata) -> bool {
    let status = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    match status {
        Ok(status) if status.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        }
        // Before Linux 5.8, only a mount of another file system is seen.
        _ => file.dev() != folder.dev(),
    }
}

/// Checks that only the user of this server can have written a file: who else writes it says what clients are
/// told.
pub(super) fn check_trust(file: &fs::Metadata) -> Result<(), Untrusted> {
    let user = geteuid().as_raw();
    if file.uid() != user {
        return Err(Untrusted::Owner(file.uid(), user));
    }
    let mode = file.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Untrusted::Mode(mode));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_history_file_needs_a_folder_and_may_not_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old"), "").unwrap();
        assert!(check(&path("new")).is_ok() && check(&path("old")).is_ok());
        assert!(check(&path(&"x".repeat(200))).is_ok());
        assert!(!path("new").exists(), "nothing was written");
        symlink("none/new", path("dangling")).unwrap();
        symlink("loop", path("loop")).unwrap();
        for (name, reason) in [
            ("none/new", "its folder cannot be used: No such file"),
            ("old/new", "its folder cannot be used: not a directory"),
            (".", "it is not a regular file"),
            ("dangling", "its folder cannot be used: No such file"),
            ("loop", "its folder cannot be used: Too many levels of symbolic links"),
            (&"x".repeat(250), "its name is too long"),
        ] {
            let error = check(&path(name)).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{name}: {error}");
        }
    }

    #[test]
    fn a_path_leads_through_links_to_a_file_that_need_not_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a", "a/b", "volume"] {
            fs::create_dir(path(name)).unwrap();
        }
        symlink("a/b", path("link to folder")).unwrap();
        symlink("../../volume/history", path("a/b/history")).unwrap();
        symlink(path("link to folder/history"), path("history")).unwrap();
        let target = folder.path().canonicalize().unwrap().join("volume/history");
        for _ in 0..2 {
            for name in ["history", "link to folder/history", "a/b/history", "volume/history"] {
                assert_eq!(resolve(&path(name)).unwrap(), target, "{name}");
            }
            fs::write(&target, "").unwrap();
        }
    }

    #[test]
    fn a_mount_point_cannot_be_replaced() {
        // The kernel mounts it, and it is a folder here; a file that is one looks the same.
        let path = Path::new("/proc");
        let metadata = fs::metadata(path).unwrap();
        assert!(is_mount_point(path, &metadata, &metadata));
        let path = Path::new("/proc/self/status");
        let metadata = fs::metadata(path).unwrap();
        assert!(!is_mount_point(path, &metadata, &metadata));
    }

    #[test]
    fn only_a_file_of_this_user_that_no_one_else_can_write_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        for (mode, trusted) in [(0o600, true), (0o644, true), (0o620, false), (0o602, false), (0o666, false)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_trust(&fs::metadata(&path).unwrap()).is_ok(), trusted, "{mode:o}");
        }
        // Root's, or somebody else's: that of the kernel belongs to root, and in a container perhaps to
        // nobody.
        let other = fs::metadata("/proc/1").unwrap();
        if other.uid() != geteuid().as_raw() {
            assert!(matches!(check_trust(&other), Err(Untrusted::Owner(..))));
        }
    }
}
