//! The history file: a restart continues with what was published before, once, and nobody else writes it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    history::{does_not_recover, next_id, publish, publish_with_key, recovers, stop},
    listen::may,
    support::{Signal, Start, folder, message},
};

/// A folder for a history file, and the file, which is not there.
fn history_file() -> (TempDir, PathBuf) {
    let folder = folder();
    let file = folder.path().join("history");
    (folder, file)
}

fn with_file(file: &Path) -> Start {
    Start::default().env("HISTORY_FILE", file.display())
}

/// Writes a history file as nobody but this user may.
fn put(file: &Path, bytes: &[u8]) {
    fs::write(file, bytes).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Returns true if a start has marked this file as taken over.
fn is_taken(file: &Path) -> bool {
    let bytes = fs::read(file).unwrap();
    assert!(bytes.starts_with(b"lastcall") || bytes.starts_with(b"lastused"), "{bytes:?}");
    bytes.starts_with(b"lastused")
}

/// Returns a history file as a server writes it, with the id of the last but one of its publications.
async fn written_file() -> (Vec<u8>, String) {
    let (_folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let since = publish(&server, "known").await;
    publish(&server, "missed").await;
    stop(&mut server).await;
    (fs::read(&file).unwrap(), since)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_recovers_what_was_published_before_a_restart() {
    let (folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let since = publish(&server, "known").await;
    let once = publish_with_key(&server, "a").await;
    let mut missed = vec![json!("once")];
    for restart in 0..2 {
        // Also of a process that has taken over.
        server.upgrade().await;
        publish(&server, restart).await;
        missed.push(json!(restart));
        if restart > 0 {
            assert!(is_taken(&file), "the file of a server that runs is used up");
        }
        stop(&mut server).await;
        assert!(!is_taken(&file));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        let written = &server.log_lines("the history was written")[0]["fields"];
        assert_eq!(written["bytes"], fs::metadata(&file).unwrap().len());
        assert_eq!(
            (&written["channels"], &written["publications"]),
            (&json!(1), &json!(missed.len() + 1)),
            "{written}"
        );

        server = with_file(&file).serve().await;
        let read = &server.log_lines("the history was read")[0]["fields"];
        for field in ["channels", "publications", "bytes", "path"] {
            assert_eq!(read[field], written[field], "{field}");
        }
        assert_eq!(publish_with_key(&server, "a").await, once, "it is not published again");
    }
    recovers(&server, &since, &missed).await;
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_begins_anew() {
    let (_folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let first = publish(&server, 1).await;
    stop(&mut server).await;
    // The file is used up by this start.
    let server = with_file(&file).serve().await;
    let since = publish(&server, 2).await;
    assert_eq!(since, next_id(&first));
    server.kill().await;
    let mut server = with_file(&file).serve().await;
    let line = server.logged("the history in ").await;
    assert!(message(&line).contains("an earlier start has taken it over"), "{line}");
    assert!(message(&line).ends_with("; it is left as it is"), "{line}");
    does_not_recover(&server, &since).await;
    does_not_recover(&server, &first).await;
    // The next shutdown in order replaces it.
    let since = publish(&server, 3).await;
    publish(&server, 4).await;
    stop(&mut server).await;
    let server = with_file(&file).serve().await;
    recovers(&server, &since, &[json!(4)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_at_once_writes_no_history() {
    let (_folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    // It is not read, so its close is not answered.
    let _client = server.client().await;
    publish(&server, 1).await;
    for reaction in ["drain started", "second signal", "third signal"] {
        server.signal(Signal::TERM);
        server.logged(reaction).await;
    }
    assert_eq!(server.exit_code().await, 128 + 15);
    assert!(!file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_too_old_is_not_recovered() {
    let (_folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let since = publish(&server, 1).await;
    stop(&mut server).await;
    // Shorter than any restart takes.
    let server = with_file(&file).env("HISTORY_TTL", "0.001").serve().await;
    does_not_recover(&server, &since).await;
}

/// Starts a server with this file, which it must not use; the reason that it logs. The next shutdown writes
/// again.
async fn refused(bytes: &[u8], since: &str) -> String {
    let (folder, file) = history_file();
    put(&file, bytes);
    let mut server = with_file(&file).env("HISTORY_BYTES", "1MiB").serve().await;
    let lines = server.log_lines("the history in ");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["level"], "WARN");
    let line = message(&lines[0]).to_owned();
    assert!(!file.exists());
    let unusable = folder.path().join("history.unusable");
    assert!(fs::read(&unusable).unwrap() == bytes, "it can be looked at");
    does_not_recover(&server, since).await;
    stop(&mut server).await;
    assert!(file.exists());
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_torn_or_of_another_version_is_set_aside_with_the_reason() {
    let (whole, since) = written_file().await;
    for length in [12, 14, 40, whole.len() / 2, whole.len() - 20, whole.len() - 1] {
        let line = refused(&whole[..length], &since).await;
        assert!(line.contains(": it is not complete, or was changed; it is now /"), "{length}: {line}");
    }
    for changed in [20, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[changed] ^= 0x10;
        let line = refused(&bytes, &since).await;
        assert!(line.contains("it is not complete, or was changed"), "{changed}: {line}");
    }
    let mut other = whole.clone();
    other[11] = 7;
    let line = refused(&other, &since).await;
    assert!(
        line.contains("it has version 7 of the format, and this program reads versions 1 and 2"),
        "{line}"
    );
    for bytes in [&b""[..], b"#!/bin/sh", &whole[..4]] {
        let line = refused(bytes, &since).await;
        assert!(line.contains("it is not a history file"), "{line}");
    }
    // One that would not fit into memory; it has no data on the disk.
    let (_folder, file) = history_file();
    fs::File::create(&file).unwrap().set_len((2 << 20) + (64 << 20) + 1).unwrap();
    let server = with_file(&file).env("HISTORY_BYTES", "1MiB").serve().await;
    let line = server.logged("the history in ").await;
    assert!(message(&line).contains("and at most 69206016 are read"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_at_an_upgrade_is_set_aside() {
    let (whole, _) = written_file().await;
    let (folder, file) = history_file();
    put(&file, &whole);
    let mut server = Start::default().file("config/lastcall.toml", "").serve().await;
    let since = publish(&server, "known").await;
    publish(&server, "missed").await;
    let settings = format!("history_file = {:?}", file.display().to_string());
    fs::write(server.dir.path().join("config/lastcall.toml"), settings).unwrap();
    server.upgrade().await;
    let line = server.logged("the history in ").await;
    assert!(message(&line).contains("it is older than what this server has"), "{line}");
    assert!(!file.exists());
    assert!(fs::read(folder.path().join("history.unusable")).unwrap() == whole);
    recovers(&server, &since, &[json!("missed")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_cannot_be_written_ends_with_code_3_and_leaves_the_file_before_it() {
    let (folder, file) = history_file();
    let mut server = with_file(&file).serve().await;
    let first = publish(&server, 1).await;
    stop(&mut server).await;
    let before = fs::read(&file).unwrap();
    for upgrades in [false, true] {
        let mut server = with_file(&file).serve().await;
        let since = publish(&server, 2).await;
        if upgrades {
            server.upgrade().await;
        }
        // Nothing can be written there.
        let new = folder.path().join("history.new");
        fs::create_dir(&new).unwrap();
        server.signal(Signal::TERM);
        assert_eq!(server.exit_code().await, 3, "also that of the process that was started");
        let line = &server.log_lines("the history could not be written, and the next start has none: ")[0];
        assert_eq!(line["level"], "WARN");
        assert!(
            message(line).contains("cannot write /") && message(line).contains("Is a directory"),
            "{line}"
        );
        fs::remove_dir(&new).unwrap();
        assert!(is_taken(&file), "nothing of it is used a second time");
        assert_eq!(fs::read(&file).unwrap()[8..], before[8..], "the rest is as it was");

        let server = with_file(&file).serve().await;
        does_not_recover(&server, &first).await;
        does_not_recover(&server, &since).await;
        server.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_with_code_3() {
    let (_folder, file) = history_file();
    let setup = format!("mount -t tmpfs -o size=100k none {}", file.parent().unwrap().display());
    if !may(&["--mount"], &setup) {
        return;
    }
    let mut server = with_file(&file).in_namespaces(&["--mount"], &setup).serve().await;
    for _ in 0..4 {
        publish(&server, "x".repeat(60_000)).await;
    }
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 3);
    let line = &server.log_lines("the history could not be written")[0];
    assert!(message(line).contains("No space left on device"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_leads_to_is_read_replaced_and_used_up() {
    let (folder, file) = history_file();
    let volume = folder.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let target = volume.join("real");
    // It is there before the volume has anything; the second one leads to the first.
    symlink("volume/real", &file).unwrap();
    let link = folder.path().join("link");
    symlink(&file, &link).unwrap();
    let mut server = with_file(&link).serve().await;
    let since = publish(&server, "known").await;
    publish(&server, "missed").await;
    stop(&mut server).await;
    assert!(target.is_file() && file.is_symlink() && link.is_symlink(), "no plain file is elsewhere");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);

    let server = with_file(&link).serve().await;
    recovers(&server, &since, &[json!("missed")]).await;
    let last = publish(&server, 3).await;
    assert!(is_taken(&target) && file.is_symlink() && link.is_symlink());
    server.kill().await;
    // As a deployment does that makes the link each time.
    fs::remove_file(&file).unwrap();
    symlink(&target, &file).unwrap();
    let mut server = with_file(&link).serve().await;
    does_not_recover(&server, &since).await;
    does_not_recover(&server, &last).await;
    stop(&mut server).await;
    assert!(!is_taken(&target));

    // One that cannot be used is set aside where it is.
    put(&target, b"torn");
    let server = with_file(&link).serve().await;
    server.logged("the history in ").await;
    assert_eq!(fs::read(volume.join("real.unusable")).unwrap(), b"torn");
    assert!(!target.exists() && file.is_symlink() && link.is_symlink());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_where_no_file_can_be_put_is_said_at_the_start() {
    let (folder, file) = history_file();
    // The volume is not there.
    symlink("volume/history", &file).unwrap();
    let ended = with_file(&file).end().await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("its folder cannot be used: No such file"), "{}", ended.stderr);
    assert!(file.is_symlink() && fs::read_dir(folder.path()).unwrap().count() == 1);

    // The shutdown would find that out.
    let (_folder, file) = history_file();
    for length in [247, 251, 255] {
        let ended = with_file(&file.with_file_name("x".repeat(length))).end().await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("its name is too long"), "{}", ended.stderr);
    }
    let mut server = with_file(&file.with_file_name("x".repeat(246))).serve().await;
    server.signal(Signal::TERM);
    assert_eq!(server.exit_code().await, 0);

    let (_folder, file) = history_file();
    put(&file, b"");
    let setup = format!("mount --bind {0} {0}", file.display());
    if may(&["--mount"], &setup) {
        let ended = with_file(&file).in_namespaces(&["--mount"], &setup).end().await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("it is a mount point"), "{}", ended.stderr);
        assert!(ended.stderr.contains("mount its folder instead"), "{}", ended.stderr);
    }

    if rustix::process::getuid().is_root() {
        // Only root can make a file of another user, in a folder that all may write.
        let (folder, file) = history_file();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        put(&file, b"");
        chown(&file, Some(0), Some(0)).unwrap();
        let ended = with_file(&file).user(12_345).end().await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("it belongs to user 0"), "{}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_else_may_have_written_is_not_used() {
    let (whole, since) = written_file().await;
    let is_root = rustix::process::getuid().is_root();
    for (mode, owner) in [(0o666, None), (0o620, None), (0o600, is_root.then_some(12_345))] {
        let (folder, file) = history_file();
        put(&file, &whole);
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let reason = match owner {
            Some(owner) => {
                chown(&file, Some(owner), None).unwrap();
                "it belongs to user 12345, and not to the user of this server, 0".to_owned()
            }
            // Only root can give a file away.
            None if mode == 0o600 => continue,
            None => {
                format!("it has mode {mode:04o}: others than the user of this server may have written it")
            }
        };
        let mut server = with_file(&file).serve().await;
        let line = server.logged("the history in ").await;
        assert!(message(&line).contains(&reason), "{line}");
        assert!(fs::read(folder.path().join("history.unusable")).unwrap() == whole, "it can be looked at");
        does_not_recover(&server, &since).await;
        stop(&mut server).await;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    }
}
