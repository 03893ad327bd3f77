# Google Cloud Storage: fake-gcs-server. It keeps objects in files, so that it can be killed.

FAKE_GCS_VERSION=v1.56.1

# go_build DIRECTORY COMMAND ...: runs COMMAND unless it has filled the directory before.
go_build() {
  local directory=$1 log
  log=$CACHE/$(basename "$1").log
  shift
  [ -e "$directory/.complete" ] && return 0
  command -v go >/dev/null || { why="needs Go 1.26 or newer, which is not installed"; return 1; }
  rm -rf "$directory"
  mkdir -p "$directory"
  if ! (cd "$directory" && "$@") >"$log" 2>&1; then
    why="go could not build it: $(tail -n 1 "$log") (all of it: $log)"
    return 1
  fi
  touch "$directory/.complete"
}

fetch_gcs() {
  FAKE_GCS=$CACHE/fake-gcs-server-$FAKE_GCS_VERSION
  [ -e "$FAKE_GCS/.complete" ] || may_fetch gcs || return 1
  [ -e "$FAKE_GCS/.complete" ] || note "services: building fake-gcs-server $FAKE_GCS_VERSION (once, minutes)"
  go_build "$FAKE_GCS" env "GOBIN=$FAKE_GCS" go install "github.com/fsouza/fake-gcs-server@$FAKE_GCS_VERSION" || return 1
  fetch_venv
}

start_gcs() {
  local port
  ports gcs port
  mkdir -p "$DIR/gcs/data/$BUCKET"
  spawn gcs "$FAKE_GCS/fake-gcs-server" -scheme http -host 127.0.0.1 -port "$port" -backend filesystem \
    -filesystem-root "$DIR/gcs/data" -external-url "http://127.0.0.1:$port" -public-host "127.0.0.1:$port"
  until_ready gcs client wait-http "http://127.0.0.1:$port/storage/v1/b/$BUCKET" || return 1
  where="http://127.0.0.1:$port (bucket $BUCKET)"
}

env_gcs() {
  echo "export OPENWIT_TEST_GCS_ENDPOINT=http://127.0.0.1:$port"
  echo "export OPENWIT_TEST_GCS_BUCKET=$BUCKET"
}
