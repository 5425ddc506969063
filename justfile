# Recipes to run, test and measure lastcall; needs just 1.54 or later. Without it, ./justw does the same, and installs what it needs.

set shell := ["bash", "-euo", "pipefail", "-c"]

tools := justfile_directory() / "target/tools"

# To run a recipe from within another
just := quote(just_executable()) + " --justfile " + quote(justfile())

# List the recipes
[private]
default:
    @{{ just }} --list --unsorted

# Run the server; arguments go to it: `just run --port 9000`
[continue]
[group('run')]
[positional-arguments]
run *arguments:
    cargo run --release --locked --package lastcall -- "$@"

# Run the server; after each change of code, template or config a new one takes over, and every tab stays connected
[continue]
[group('run')]
[positional-arguments]
dev *arguments: (tool "watchexec" "watchexec-cli" "2.5.1")
    #!/usr/bin/env bash
    set -euo pipefail
    # Ctrl+C must not wait long for the tab that is open; templates are read from their folder. These are
    # environment variables: they win over config/lastcall.toml.
    export SHUTDOWN_TIMEOUT="${SHUTDOWN_TIMEOUT:-0}" CLOSE_TIMEOUT="${CLOSE_TIMEOUT:-1}" TEMPLATES_DIR="${TEMPLATES_DIR:-templates}"
    # The control socket has a fixed name in such a folder (docs/continuity.md): an upgrade finds it after a change of `port`, too.
    export RUNTIME_DIRECTORY=$(mktemp --directory)
    export PID_FILE="$RUNTIME_DIRECTORY/pid"
    stop() {
        # Ctrl+C reaches this script and the server at once: it may have ended.
        if pid=$(cat "$PID_FILE" 2>/dev/null) && kill "$pid" 2>/dev/null; then tail --pid="$pid" -s 0.1 -f /dev/null; fi
        rm -rf "$RUNTIME_DIRECTORY"
    }
    trap stop EXIT
    "{{ tools }}/watchexec-cli-2.5.1/bin/watchexec" --quiet --on-busy-update=queue --shell=none --wrap-process=none \
        --watch crates --watch templates --watch config --watch Cargo.toml --watch Cargo.lock \
        -- {{ just }} dev-change "$@"

# After a change: a server that runs hands over to a new process; if there is none (yet, or because it could not start), one is started
[positional-arguments]
[private]
dev-change *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    program=$({{ just }} build-program --package lastcall)
    if kill -0 "$(cat "$PID_FILE" 2>/dev/null)" 2>/dev/null; then
        "$program" upgrade "$@"
    else
        "$program" "$@" &
        echo $! >"$PID_FILE"
    fi

# Build a program; prints its path, as CARGO_TARGET_DIR and cargo's configuration may move it
[positional-arguments]
[private]
build-program *arguments:
    @cargo build --message-format json-render-diagnostics "$@" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'

# Build an archive to install elsewhere, with checksums, in this folder; its program is static if the musl target can be had
[group('run')]
package folder="target/package":
    #!/usr/bin/env bash
    set -euo pipefail
    target=$(uname -m)-unknown-linux-musl
    if ! [ -d "$(rustc --print target-libdir --target "$target")" ] && ! rustup target add "$target"; then
        target=$(rustc --version --verbose | sed -n 's/^host: //p')
        echo "The target for a static program cannot be had here: the program will need a C library that is at least as" \
            "new as that of this machine ($target). To add the target: rustup target add $(uname -m)-unknown-linux-musl" >&2
    fi
    program=$({{ just }} build-program --release --locked --package lastcall --target "$target")
    version=$(cargo pkgid --package lastcall)
    name=lastcall-${version##*[#@]}-$target
    mkdir -p {{ quote(folder) }}
    cd {{ quote(folder) }}
    rm -rf "$name"
    mkdir "$name"
    install -m 755 "$program" "$name/lastcall"
    root={{ quote(justfile_directory()) }}
    cp -r "$root"/{README.md,CHANGELOG.md,LICENSE,docs,examples,config,deploy} "$name"
    # These build from the source.
    rm "$name"/deploy/{Dockerfile,compose.yaml}
    (cd "$name" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs -d '\n' sha256sum >SHA256SUMS)
    # The same commit makes the same archive.
    tar --create --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
        --mtime="@$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)" "$name" | gzip --no-name >"$name.tar.gz"
    rm -rf "$name"
    sha256sum ./*.tar.gz >SHA256SUMS
    echo "$PWD/$name.tar.gz"

# Run all tests, also after one has failed; arguments go to cargo: `just test -p lastcall-websockets`
[group('check')]
[positional-arguments]
test *arguments: test-programs
    JUST={{ quote(just_executable()) }} cargo test --locked --no-fail-fast "${@:---workspace}"

# Check format, lints and documentation
[group('check')]
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- --deny warnings
    RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --locked --quiet

# Format the code
[group('check')]
fmt:
    cargo fmt --all

# Run the Autobahn WebSocket test suite against the server
[group('check')]
conformance: python
    #!/usr/bin/env bash
    set -euo pipefail
    program=$({{ just }} build-program --locked --package lastcall)
    log=$(mktemp)
    env -i PORT=0 LOG_FORMAT=json CLIENT_MESSAGES=echo SHUTDOWN_TIMEOUT=0 MAX_MESSAGE_SIZE=16MiB MAX_QUEUE=64MiB \
        "$program" >"$log" &
    server=$!
    trap 'kill $server 2>/dev/null || true; rm -f "$log"' EXIT
    url=""
    while [ -z "$url" ]; do
        kill -0 $server 2>/dev/null || { echo "The server did not start:" >&2; cat "$log" >&2; exit 1; }
        sleep 0.1
        url=$(sed -n 's|.*listening on http://\([^"]*\)".*|ws://\1/ws|p' "$log")
    done
    AUTOBAHN_HOME="$PWD/target/conformance" conformance/run "$url"

# Fuzz a target for so many seconds, the decoder for ten minutes by default; needs a nightly toolchain: `just fuzz query 60`
[group('check')]
fuzz target="decoder" seconds="600": (tool "cargo-fuzz" "cargo-fuzz" "0.13.2")
    #!/usr/bin/env bash
    set -euo pipefail
    target={{ quote(target) }} seconds={{ quote(seconds) }}
    # A number alone is the time for the decoder.
    if [[ $target =~ ^[0-9]+$ ]]; then seconds=$target target=decoder; fi
    cd fuzz
    PATH="{{ tools }}/cargo-fuzz-0.13.2/bin:$PATH" cargo +nightly fuzz run "$target" -- -max_total_time="$seconds"

# Measure beside other servers: tables on stdout, a chart under target/bench; takes half an hour. `just bench --list`: the tables
[group('check')]
[positional-arguments]
bench *arguments:
    @{{ just }} measure compare "$@"

# Restart servers under load, lastcall by upgrades: tables on stdout, a chart under target/bench; takes two minutes
[group('check')]
[positional-arguments]
bench-upgrade *arguments:
    @{{ just }} measure restart "$@"

# Measure what channels, publications and history cost: a table on stdout; takes four minutes. `just bench-channels --list`: the measurements
[group('check')]
[positional-arguments]
bench-channels *arguments:
    @{{ just }} measure channels "$@"

# Let 10,000 clients come back at once, to lastcall and to nginx with its module nchan: a table on stdout; takes six minutes
[group('check')]
[positional-arguments]
bench-recovery *arguments:
    @{{ just }} measure recovery "$@"

# The load generator comes first: it refuses wrong arguments before anything that takes long
[positional-arguments]
[private]
measure kind *arguments:
    #!/usr/bin/env bash
    set -euo pipefail
    shift
    bench=$({{ just }} build-program --release --locked --package lastcall-bench --bin lastcall-bench)
    options=(--binaries "$(dirname "$bench")" --out target/bench)
    peers=""
    case {{ kind }} in compare | restart) peers=target/bench/peers options+=(--peers "$peers") ;; esac
    run() { "$bench" {{ kind }} "${options[@]}" "$@"; }
    run "$@" --check
    for argument in "$@"; do
        case $argument in --list | --help | -h) exit ;; esac
    done
    if [ -n "$peers" ]; then crates/bench/peers/setup "$peers"; fi
    cargo build --release --locked --package lastcall --package lastcall-bench
    run "$@"

# Install the programs that tests start, where that is possible; without the browser, its tests cannot run
[private]
test-programs:
    #!/usr/bin/env bash
    set -euo pipefail
    PATH="$PATH:/usr/local/sbin:/usr/sbin"
    have() { command -v "$1" >/dev/null; }
    packages=""
    have "${CHROMIUM:-chromium}" && have "${CHROMEDRIVER:-chromedriver}" || packages="chromium chromium-driver"
    for one in tini dumb-init; do have $one || packages="$packages $one"; done
    # As /usr/bin/python3: Debian's packages are for Debian's Python.
    { have python3 && (cd / && python3 -c 'import websockets.version'); } 2>/dev/null ||
        (cd / && /usr/bin/python3 -c 'import websockets.version') 2>/dev/null || packages="$packages python3-websockets"
    # Their packages start services, at each boot too: only where no systemd runs, or nothing but tests.
    if [ -n "${CI:-}" ] || [ ! -d /run/systemd/system ]; then
        have supervisord || packages="$packages supervisor"
        for one in nginx haproxy; do have $one || packages="$packages $one"; done
    fi
    [ -n "$packages" ] || exit 0
    as_root=""
    if [ "$(id -u)" != 0 ]; then as_root="sudo --non-interactive"; fi
    if have apt-get && { [ -z "$as_root" ] || $as_root true 2>/dev/null; }; then
        echo "Installing programs that the tests start: apt-get install" $packages
        if ! { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends $packages >/dev/null; }; then
            echo "apt-get could not install them." >&2
        fi
    fi
    for one in "${CHROMIUM:-chromium}" "${CHROMEDRIVER:-chromedriver}"; do
        have "$one" || missing="${missing:-} $one"
    done
    if [ -n "${missing:-}" ]; then
        echo "The browser tests need$missing, which could not be installed here." >&2
        echo "On Debian, as root: apt-get install chromium chromium-driver." >&2
        echo "Elsewhere: install both, and name them in CHROMIUM and CHROMEDRIVER." >&2
        exit 1
    fi

# Python for the conformance suite
[private]
python:
    #!/usr/bin/env bash
    set -euo pipefail
    if python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then exit 0; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv >/dev/null || true
    fi
    python3 -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' || {
        echo "The conformance suite needs Python 3.11 or 3.12 with venv: on Debian, apt-get install python3-venv" >&2
        exit 1
    }

# Install a tool of this version under target/tools, once
[private]
tool command package version:
    @[ -x "{{ tools }}/{{ package }}-{{ version }}/bin/{{ command }}" ] || { \
        echo "Compiling {{ package }} {{ version }} for target/tools, once: some minutes"; \
        cargo install "{{ package }}" --locked --version "{{ version }}" --root "{{ tools }}/{{ package }}-{{ version }}"; }
