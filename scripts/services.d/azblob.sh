# Azure Blob Storage: Azurite. The last version that runs on the Node.js of today's distributions.

AZURITE_VERSION=3.35.0
AZURE_ACCOUNT=openwittest
AZURE_KEY=$(printf openwit-test-account-key | base64)

fetch_azblob() {
  AZURITE=$CACHE/azurite-$AZURITE_VERSION
  [ -e "$AZURITE/.complete" ] && return 0
  may_fetch azblob || return 1
  command -v npm >/dev/null || { why="needs Node.js with npm, which are not installed: apt-get install nodejs npm"; return 1; }
  note "services: fetching Azurite $AZURITE_VERSION from npm (once, 190 MB)"
  rm -rf "$AZURITE"
  if ! npm install --no-audit --no-fund --ignore-scripts --prefix "$AZURITE" "azurite@$AZURITE_VERSION" >"$CACHE/npm.log" 2>&1; then
    why="npm could not install azurite: $(grep -m 1 'npm error' "$CACHE/npm.log") (all of it: $CACHE/npm.log)"
    return 1
  fi
  touch "$AZURITE/.complete"
}

start_azblob() {
  local port
  ports azblob port
  AZURITE_ACCOUNTS="$AZURE_ACCOUNT:$AZURE_KEY" spawn azblob node "$AZURITE/node_modules/azurite/dist/src/blob/main.js" \
    --blobHost 127.0.0.1 --blobPort "$port" --location "$DIR/azblob/data" --skipApiVersionCheck --disableTelemetry
  until_ready azblob client wait-azblob "127.0.0.1:$port" $BUCKET "$AZURE_ACCOUNT" "$AZURE_KEY" || return 1
  where="http://127.0.0.1:$port/$AZURE_ACCOUNT (container $BUCKET)"
}

env_azblob() {
  cat <<EOF
export OPENWIT_TEST_AZBLOB_ENDPOINT=http://127.0.0.1:$port/$AZURE_ACCOUNT
export OPENWIT_TEST_AZBLOB_CONTAINER=$BUCKET
export OPENWIT_TEST_AZBLOB_ACCOUNT=$AZURE_ACCOUNT
export OPENWIT_TEST_AZBLOB_KEY=$AZURE_KEY
EOF
}
