//! The recipes of the justfile that do more than call one program. `cargo` is a script here that builds
//! nothing and has its programs in a folder that the recipes cannot know.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::{Start, folder, folder_for_programs, install_script, install_server};

/// Programs that stand in for the Rust toolchain.
struct Toolchain {
    just: PathBuf,
    programs: TempDir,
}

impl Toolchain {
    /// `None` if the tests are not run by `just test`, which sets JUST: another `just` may be too old.
    fn new() -> Option<Self> {
        let Some(just) = std::env::var_os("JUST") else {
            assert!(std::env::var_os("CI").is_none(), "JUST is not set; run the tests by `./justw test`");
            eprintln!("JUST is not set: recipes are not tested; `./justw test` sets it");
            return None;
        };
        let just = PathBuf::from(just);
        let programs = folder_for_programs();
        let at = |name: &str| programs.path().join(name);
        let script = format!(
            "echo \"$@\" >>'{calls}'\n\
             case $1 in\n\
             build) [ -z \"${{BROKEN:-}}\" ] || exit 101\n\
             echo '{{\"reason\":\"compiler-artifact\",\"executable\":null}}'\n\
             echo '{{\"reason\":\"compiler-artifact\",\"executable\":\"{program}\",\"fresh\":true}}' ;;\n\
             pkgid) echo 'path+file:///crates/app#lastcall@1.2.3' ;;\n\
             esac",
            calls = at("calls").display(),
            program = at("program").display(),
        );
        install_script(&at("cargo"), &script);
        install_script(&at("rustup"), "exit 1");
        install_script(
            &at("rustc"),
            "case $1 in --print) echo /nowhere ;; *) echo 'host: this-machine' ;; esac",
        );
        Some(Self { just, programs })
    }

    fn program(&self) -> PathBuf {
        self.programs.path().join("program")
    }

    fn start(&self, recipe: &[&str]) -> Start {
        let path = std::env::var("PATH").unwrap();
        let justfile = root().join("justfile");
        Start::default()
            .program(&self.just)
            .args(&["--justfile", justfile.to_str().unwrap()])
            .args(recipe)
            .env("PATH", format!("{}:{path}", self.programs.path().display()))
            .env_remove("RUNTIME_DIR")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_under_dev_upgrades_the_server() {
    let Some(toolchain) = Toolchain::new() else { return };
    install_server(&toolchain.program());
    let folder = folder();
    let change = || {
        let start = toolchain.start(&["dev-change"]);
        start
            .env("RUNTIME_DIRECTORY", folder.path().display())
            .env("PID_FILE", folder.path().join("pid").display())
    };
    let server = change().serve().await;
    let mut client = server.client().await;
    for text in ["one", "two"] {
        let ended = change().end().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains(" has taken over 1 client"), "{}", ended.stdout);
        client.say(text).await;
        assert_eq!(client.next().await["data"], text);
    }
    let ended = change().env("BROKEN", "1").end().await;
    assert_eq!(ended.code, Some(101), "{}", ended.stderr);
    client.say("three").await;
    assert_eq!(client.next().await["data"], "three");
}

#[tokio::test]
async fn wrong_arguments_of_a_measurement_are_refused_before_anything_else_is_built() {
    let Some(toolchain) = Toolchain::new() else { return };
    install_script(&toolchain.program(), "echo \"wrong: $*\" >&2; exit 2");
    for recipe in ["bench", "bench-upgrade"] {
        let ended = toolchain.start(&[recipe, "--only", "two words"]).end().await;
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(" --only two words --check"), "{}", ended.stderr);
    }
    let calls = std::fs::read_to_string(toolchain.programs.path().join("calls")).unwrap();
    assert_eq!(calls.lines().count(), 2, "{calls}");
}

#[tokio::test]
async fn a_package_has_the_program_its_settings_its_units_and_checksums() {
    let Some(toolchain) = Toolchain::new() else { return };
    install_script(&toolchain.program(), "echo the program runs");
    let folder = folder();
    let ended = toolchain.start(&["package", folder.path().to_str().unwrap()]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("rustup target add "), "it says what is missing: {}", ended.stderr);
    let name = "lastcall-1.2.3-this-machine";
    let unpack = format!(
        "sha256sum --check SHA256SUMS && tar xzf {name}.tar.gz && cd {name} && sha256sum --check SHA256SUMS && \
         cat config/lastcall.toml deploy/systemd/lastcall.service deploy/proxies/nginx.conf LICENSE >/dev/null && \
         ./lastcall"
    );
    let output = std::process::Command::new("sh").args(["-c", &unpack]).current_dir(folder.path()).output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&format!("{name}.tar.gz: OK")) && text.contains("./lastcall: OK"), "{text}");
    assert!(text.ends_with("\nthe program runs\n"), "{text}");
}

#[test]
fn no_recipe_assumes_where_cargo_puts_programs() {
    let justfile = std::fs::read_to_string(root().join("justfile")).unwrap();
    for folder in ["target/debug", "target/release"] {
        assert!(!justfile.contains(folder), "CARGO_TARGET_DIR and cargo's configuration may move {folder}");
    }
}
