# Builds the foreign programs that tests/peers/run, publish and chain use, and starts the server with its demo camera.
# The scripts source this file in the root of the repository, after scripts/common.sh; it is not run itself.
#
# The sources come from the Go module proxy, each in one pinned version. The programs are built in target/peers. Each
# build_NAME builds a program if it is missing and sets PROGRAM to its path. It fails if the program cannot be built.

HERE=$PWD/tests/peers OUT=$PWD/target/peers
export PATH="$PATH:/usr/local/go/bin"

# module_tree MODULE@VERSION DIRECTORY: copies the source of a module to DIRECTORY. Some modules cannot be built where
# Go keeps them, because files are missing or must be changed.
module_tree() {
  local source
  source=$(cd "$OUT" && go mod download -json "$1" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  [ -n "$source" ] || return
  rm -rf "$2"
  cp -r "$source" "$2" && chmod -R u+w "$2"
}

# build_in DIRECTORY PROGRAM PACKAGE: builds a package of the module in DIRECTORY.
build_in() { (cd "$1" && CGO_ENABLED=0 GOFLAGS=-mod=mod go build -trimpath -buildvcs=false -o "$2" "$3"); }

# build_go2rtc: the proxy refuses `go install`, because it does not list the versions of this module.
build_go2rtc() {
  local version=v1.9.14 to=$OUT/watch-go2rtc
  PROGRAM=$to/go2rtc-$version
  [ -x "$PROGRAM" ] && return
  need_packages go:golang-go || return
  mkdir -p "$to"
  printf 'module watch\n\ngo 1.24\n\nrequire github.com/AlexxIT/go2rtc %s\n' "$version" >"$to/go.mod"
  build_in "$to" "$PROGRAM" github.com/AlexxIT/go2rtc
}

# build_mediamtx: the module lacks two files that its build makes: its version, and hls.js, which is never used here.
build_mediamtx() {
  local version=v1.20.1 to=$OUT/watch-mediamtx
  PROGRAM=$to/mediamtx-$version
  [ -x "$PROGRAM" ] && [ -f "$to/reader.js" ] && return
  need_packages go:golang-go node:nodejs npm:npm || return
  mkdir -p "$to"
  module_tree "github.com/bluenviron/mediamtx@$version" "$to/source" || return
  # tests/browser/whep.test.mjs plays with the script of mediamtx's page if it is here.
  cp "$to/source/internal/servers/webrtc/reader.js" "$to/reader.js"
  echo "$version" >"$to/source/internal/core/VERSION"
  (cd "$to" && npm install --silent --no-audit --no-fund --ignore-scripts hls.js@1.7.4) || return
  cp "$to/node_modules/hls.js/dist/hls.min.js" "$to/source/internal/servers/hls/hls.min.js"
  build_in "$to/source" "$PROGRAM" . && rm -rf "$to/source"
}

# build_livekit: newer versions need forks of modules that the proxy does not serve.
build_livekit() {
  local version=v1.11.0 to=$OUT/livekit
  PROGRAM=$to/livekit-server-$version
  [ -x "$PROGRAM" ] && return
  need_packages go:golang-go || return
  mkdir -p "$to"
  module_tree "github.com/livekit/livekit-server@$version" "$to/source" || return
  build_in "$to/source" "$PROGRAM" ./cmd/server && rm -rf "$to/source"
}

# build_pion: the example of pion listens on port 8080 and asks a public STUN server. It is changed to listen on the
# address in the variable LISTEN, and to use no STUN server.
build_pion() {
  local version=v4.2.26 to=$OUT/pion-whip
  PROGRAM=$to/whip-whep-$version
  [ -x "$PROGRAM" ] && return
  need_packages go:golang-go || return
  mkdir -p "$to"
  module_tree "github.com/pion/webrtc/v4@$version" "$to/source" || return
  sed -i -e 's|ListenAndServe(":8080"|ListenAndServe(os.Getenv("LISTEN")|' -e 's|^\t"net/http"|&\n\t"os"|' \
    -e 's|URLs: \[\]string{"stun:[^"]*"}|URLs: nil|' "$to/source/examples/whip-whep/main.go"
  build_in "$to/source" "$PROGRAM" ./examples/whip-whep && rm -rf "$to/source"
}

# build_viewer MAJOR: the client in tests/peers/pion. Its source is the same for both major versions of pion.
build_viewer() {
  local to=$OUT/watch-pion$1
  PROGRAM=$to/watch
  need_packages go:golang-go || return
  mkdir -p "$to"
  sed "s|pion/webrtc/v4|pion/webrtc/v$1|" "$HERE/pion/main.go" >"$to/main.go"
  cp "$HERE/pion/v$1.mod" "$to/go.mod"
  cp "$HERE/pion/v$1.sum" "$to/go.sum"
  build_in "$to" "$PROGRAM" .
}

# free_port: prints a TCP port that is free now. These servers do not report the port if the kernel chooses it.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_mtx HTTP RTSP MEDIA SOURCE LOG: starts mediamtx with WHIP and WHEP on the port HTTP, and sets PEER to its
# process. The stream "camera" comes from SOURCE: "publisher", or a URL that it is pulled from.
start_mtx() {
  MTX_RTMP=no MTX_HLS=no MTX_SRT=no MTX_MOQ=no MTX_API=no MTX_RTSPTRANSPORTS=tcp MTX_RTSPADDRESS=127.0.0.1:$2 \
    MTX_WEBRTCADDRESS=127.0.0.1:$1 MTX_WEBRTCLOCALUDPADDRESS=:$3 MTX_PATHS_CAMERA_SOURCE=$4 "$PROGRAM" >"$5" 2>&1 &
  PEER=$!
}

# end PID [SIGNAL]: ends a process that this script started, and waits for it.
end() {
  [ -z "$1" ] || { kill "-${2:-TERM}" "$1" 2>/dev/null || true; wait "$1" 2>/dev/null || true; }
}

# start_camera OPTIONS...: starts the server with its demo camera. Sets SERVER to its process and URL to its page. The
# log is $WORK/log.
start_camera() {
  [ -n "${SS_BIN:-}" ] || { need_cargo && cargo build --locked --bins; }
  # The port is read from the log below. An earlier server has left its own port there.
  : >"$WORK/log"
  "${SS_BIN:-target/debug}/streaming-server" --demo --http 127.0.0.1:0 --udp 0.0.0.0:0 --control off "$@" \
    >"$WORK/log" 2>&1 &
  SERVER=$! URL=""
  while [ -z "$URL" ]; do
    kill -0 "$SERVER" 2>/dev/null || { cat "$WORK/log" >&2; fail "the server did not start"; }
    sleep 0.1
    URL=$(sed -n 's|.*listening: http=\([^ ]*\) .*|http://\1|p' "$WORK/log" | head -n 1)
  done
}

# wait_published: waits up to 60 s until the server publishes.
wait_published() {
  local tries=0
  until grep -q '^whip_connected 1' <<<"$(curl -fsS "$URL/metrics")"; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { echo "not published: $(curl -fsS "$URL/api/status")" >&2; return 1; }
    sleep 0.2
  done
}
