#!/usr/bin/env bash
# Passes the tests, and does its own set-up: ./test.sh [--campaign]
#
# On Debian, as root, it installs what is missing; elsewhere it says what to install. --campaign runs the long versions of
# the tests (hours of kills and repeats rather than minutes). The last line is "N passed, N failed, N skipped".
set -uo pipefail
cd "$(dirname "$0")" || exit 1

case "${1-}" in
'') ;;
--campaign) export ESTIBA_CAMPAIGN=1 ;;
*)
    echo "usage: ./test.sh [--campaign]" >&2
    exit 2
    ;;
esac

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
passed=0 failed=0 skipped=0
failures=()

say() { printf '\n== %s\n' "$*"; }

fail() {
    failed=$((failed + 1))
    failures+=("$1")
    printf 'FAILED: %s\n' "$1"
}

# check NAME COMMAND…: a check that is one test.
check() {
    local name=$1
    shift
    say "$name"
    if "$@"; then passed=$((passed + 1)); else fail "$name"; fi
}

skip() {
    skipped=$((skipped + 1))
    printf 'skipped: %s (%s)\n' "$1" "$2"
}

# --- set-up -----------------------------------------------------------------------------------------------------------

# Without the first the workspace cannot be built; without one of the others the tests that compare with it are skipped.
needed=(cc:gcc ld:binutils tar:tar)
compared=(busybox:busybox-static runc:runc crun:crun skopeo:skopeo umoci:umoci strace:strace xz:xz-utils
    zstd:zstd docker-registry:docker-registry openssl:openssl setpriv:util-linux ip:iproute2 nft:nftables
    newuidmap:uidmap musl-gcc:musl-tools)
missing=()
for pair in "${needed[@]}" "${compared[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ -e /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "apt-get install ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        (apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}") >/dev/null ||
            echo "could not install all of it; what it is needed for is skipped"
    else
        say "not all is there; on Debian, as root: apt-get install ${missing[*]}"
    fi
fi
if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
if ! command -v cargo >/dev/null; then
    echo "Rust is missing: install it from https://rustup.rs" >&2
    exit 1
fi
export PATH=$PATH:/usr/sbin:/sbin
if command -v rustup >/dev/null; then
    rustup component list --installed 2>/dev/null | grep -q ^clippy || rustup component add clippy rustfmt
fi
[ "$(id -u)" = 0 ] || echo "not root: the privileged tests are skipped"

# --- what needs no running --------------------------------------------------------------------------------------------

check formatting cargo fmt --all --check
check lints cargo clippy --quiet --workspace --all-targets --all-features --locked -- -D warnings
check documentation env RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --all-features --no-deps --locked
if cargo deny --version >/dev/null 2>&1; then
    check "licences, bans and sources" cargo deny --all-features check --hide-inclusion-graph licenses bans sources
else
    skip "licences, bans and sources" "cargo-deny is not installed: cargo install cargo-deny"
fi

# --- the static programs ----------------------------------------------------------------------------------------------

musl=$(uname -m)-unknown-linux-musl
if command -v rustup >/dev/null && ! rustup target list --installed | grep -qx "$musl"; then
    rustup target add "$musl" || true
fi
if [ -d "$(rustc --print sysroot)/lib/rustlib/$musl" ]; then
    static() {
        cargo build --quiet --locked --target "$musl" -p containerd-shim-estiba-v2 -p ocirun -p estiba-cni &&
            for program in containerd-shim-estiba-v2 ocirun estiba-cni; do
                # A program that asks for no interpreter is static.
                if readelf -lW "${CARGO_TARGET_DIR:-target}/$musl/debug/$program" | grep -q INTERP; then
                    echo "$program is not static"
                    return 1
                fi
            done
    }
    check "static programs" static
    # The system tests run one of them beside the program itself.
    shim=$(readlink -f "${CARGO_TARGET_DIR:-target}/$musl/debug/containerd-shim-estiba-v2") && export ESTIBA_SHIM=$shim
else
    skip "static programs" "no target $musl: rustup target add $musl"
fi

# --- tests ------------------------------------------------------------------------------------------------------------

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# The shim and the command are used by the tests of others.
check "programs" cargo build --quiet --workspace --all-features --bins --locked

# --- programs that embed the engine ------------------------------------------------------------------------------------

if [ "$(id -u)" = 0 ] && command -v umoci >/dev/null && [ -x /bin/busybox ]; then
    embedding() {
        local image root status
        image=$(mktemp -d) && root=$(mktemp -d) && mkdir "$root/bin" && cp /bin/busybox "$root/bin/busybox" &&
            ln -s busybox "$root/bin/sh" && umoci --log error init --layout "$image/busybox" &&
            umoci --log error new --image "$image/busybox:1" &&
            umoci --log error insert --image "$image/busybox:1" "$root" / || return 1
        # One outside the workspace, with a snapshotter and a runtime of its own.
        CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target} cargo run --quiet --locked \
            --manifest-path engine/tests/outside/Cargo.toml -- "oci:$image/busybox:1" /bin/busybox echo outside |
            tee "$image/said" && grep -qx outside "$image/said" && grep -q 'noted create, start' "$image/said" &&
            # Ten containers at once in a threaded program.
            cargo run --quiet --locked -p estiba-engine --example ten -- "oci:$image/busybox:1" "$image/state" |
            sort | tee "$image/said" && [ "$(grep -c '^container . is ' "$image/said")" = 10 ] &&
            [ "$(grep -c '^one ended with status' "$image/said")" = 10 ]
        status=$?
        rm -rf "$image" "$root"
        return "$status"
    }
    check "programs that embed the engine" embedding
else
    skip "programs that embed the engine" "needs root, umoci and busybox-static"
fi

if cargo nextest --version >/dev/null 2>&1; then
    say "tests (nextest)"
    # The system tests count mounts, cgroups and processes, and so do those of the libraries: a run of its own for each binary
    # would be safe too, but each counts its own only.
    cargo nextest run --workspace --all-features --locked --no-fail-fast --status-level slow \
        --final-status-level fail 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    summary=$(grep -E '^ *Summary ' "$log" | tail -1)
    count() { printf '%s' "$summary" | sed -nE "s/.*[^0-9]([0-9]+) $1.*/\1/p"; }
    p=$(count passed) f=$(count failed) t=$(count 'timed out') s=$(count skipped)
    passed=$((passed + ${p:-0})) skipped=$((skipped + ${s:-0}))
    bad=$((${f:-0} + ${t:-0}))
    [ "$status" = 0 ] || [ "$bad" -gt 0 ] || bad=1
else
    say "tests (cargo test)"
    cargo test --workspace --all-features --locked --no-fail-fast --lib --bins --tests --examples 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    read -r p bad s < <(awk '/^test result:/ { for (i = 2; i <= NF; i++) {
        if ($i ~ /^passed/) p += $(i - 1); if ($i ~ /^failed/) f += $(i - 1); if ($i ~ /^ignored/) s += $(i - 1) } }
        END { print p + 0, f + 0, s + 0 }' "$log")
    passed=$((passed + p)) skipped=$((skipped + s))
    [ "$status" = 0 ] || [ "$bad" -gt 0 ] || bad=1
fi
if [ "$bad" -gt 0 ]; then
    failed=$((failed + bad))
    failures+=("$bad of the tests")
fi

say "examples in the documentation"
cargo test --quiet --workspace --all-features --locked --no-fail-fast --doc 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
read -r p bad s < <(awk '/^test result:/ { for (i = 2; i <= NF; i++) {
    if ($i ~ /^passed/) p += $(i - 1); if ($i ~ /^failed/) f += $(i - 1); if ($i ~ /^ignored/) s += $(i - 1) } }
    END { print p + 0, f + 0, s + 0 }' "$log")
passed=$((passed + p)) skipped=$((skipped + s))
[ "$status" = 0 ] || [ "$bad" -gt 0 ] || bad=1
if [ "$bad" -gt 0 ]; then
    failed=$((failed + bad))
    failures+=("$bad of the examples")
fi

echo
for failure in ${failures+"${failures[@]}"}; do echo "failed: $failure"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
