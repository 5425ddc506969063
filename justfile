# What people do with lastcall. Without `just`: ./justw does the same, and installs what it needs.

set shell := ["bash", "-euo", "pipefail", "-c"]

tools := justfile_directory() / "target/tools"

# List the recipes
[private]
default:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

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
    export PID_FILE=$(mktemp)
    trap 'kill "$(cat "$PID_FILE")" 2>/dev/null || true; rm -f "$PID_FILE"' EXIT
    # A server that runs hands over to a new one; if there is none (yet, or because it could not start), one is started.
    change='
        cargo build --package lastcall
        if kill -0 "$(cat "$PID_FILE")" 2>/dev/null; then
            target/debug/lastcall upgrade "$@"
        else
            target/debug/lastcall "$@" &
            echo $! >"$PID_FILE"
        fi'
    "{{ tools }}/watchexec-cli-2.5.1/bin/watchexec" --quiet --on-busy-update=queue --shell=none --wrap-process=none \
        --watch crates --watch templates --watch config --watch Cargo.toml --watch Cargo.lock \
        -- bash -euo pipefail -c "$change" change "$@"

# Run all tests; arguments go to cargo: `just test -p lastcall-websockets`
[group('check')]
[positional-arguments]
test *arguments: test-programs
    cargo test --locked "${@:---workspace}"

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
    cargo build --locked --package lastcall
    log=$(mktemp)
    env -i PORT=0 LOG_FORMAT=json CLIENT_MESSAGES=echo SHUTDOWN_TIMEOUT=0 MAX_MESSAGE_SIZE=16MiB MAX_QUEUE=64MiB \
        target/debug/lastcall >"$log" &
    server=$!
    trap 'kill $server 2>/dev/null || true; rm -f "$log"' EXIT
    url=""
    for _ in $(seq 100); do
        url=$(sed -n 's|.*listening on http://\([^"]*\)".*|ws://\1/ws|p' "$log")
        [ -z "$url" ] || break
        sleep 0.1
    done
    AUTOBAHN_HOME="$PWD/target/conformance" conformance/run "$url"

# Fuzz the decoder for ten minutes; needs a nightly toolchain
[group('check')]
fuzz seconds="600": (tool "cargo-fuzz" "cargo-fuzz" "0.13.2")
    cd fuzz && PATH="{{ tools }}/cargo-fuzz-0.13.2/bin:$PATH" cargo +nightly fuzz run decoder -- -max_total_time={{ seconds }}

# Measure beside other servers: tables on stdout, a chart under target/bench; takes half an hour
[group('check')]
[positional-arguments]
bench *arguments:
    crates/bench/peers/setup target/bench/peers
    cargo build --release --locked --package lastcall --package lastcall-bench
    target/release/lastcall-bench compare --peers target/bench/peers --binaries target/release --out target/bench "$@"

# Restart servers under load, lastcall by upgrades: tables on stdout, a chart under target/bench; takes two minutes
[group('check')]
[positional-arguments]
bench-upgrade *arguments:
    crates/bench/peers/setup target/bench/peers
    cargo build --release --locked --package lastcall --package lastcall-bench
    target/release/lastcall-bench restart --peers target/bench/peers --binaries target/release --out target/bench "$@"

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
    # Their packages start services, at each boot too: only where no systemd runs, or nothing but tests.
    if [ -n "${CI:-}" ] || [ ! -d /run/systemd/system ]; then
        have supervisord || packages="$packages supervisor"
    # As /usr/bin/python3: Debian's packages are for Debian's Python.
    { have python3 && (cd / && python3 -c 'import websockets.version'); } 2>/dev/null ||
        (cd / && /usr/bin/python3 -c 'import websockets.version') 2>/dev/null || packages="$packages python3-websockets"
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
        echo "Installing {{ package }} {{ version }} under target/tools, once (a few minutes)"; \
        cargo install "{{ package }}" --locked --version "{{ version }}" --root "{{ tools }}/{{ package }}-{{ version }}" --quiet; }
