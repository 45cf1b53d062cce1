# Functions that the scripts share: log lines, commands as root, Debian packages, cargo. The scripts source this file
# after `set -euo pipefail`; it is not run itself.

log() { printf '== [%4ds] %s\n' "$SECONDS" "$*"; }

fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -n "$@"
  else
    echo "needs root: $*" >&2
    return 1
  fi
}

# need_packages COMMAND:PACKAGE... installs each PACKAGE whose COMMAND is missing.
need_packages() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  command -v apt-get >/dev/null || { echo "no apt-get here; install by hand: ${missing[*]}" >&2; return 1; }
  log "installing ${missing[*]}"
  as_root apt-get update -qq
  # RUNLEVEL=1 prevents the prometheus package from starting its server, because only promtool is needed.
  as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# Prints instructions and fails if cargo is missing. Rust comes from rustup, not from the distribution.
need_cargo() {
  if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    export PATH="$HOME/.cargo/bin:$PATH"
  fi
  if ! command -v cargo >/dev/null; then
    cat >&2 <<'TEXT'
Rust is missing. Install 1.95 or newer with rustup, then run this again:

  sudo apt-get install -y curl
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y

TEXT
    return 1
  fi
}

# Prints the version of the crate, as written in Cargo.toml.
crate_version() { sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1; }
