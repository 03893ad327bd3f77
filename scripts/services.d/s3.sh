# S3: SeaweedFS, in one process.

fetch_s3() { fetch_venv; }

start_s3() {
  local s3 s3_grpc master master_grpc filer filer_grpc volume volume_grpc admin admin_grpc
  ports s3 s3 s3_grpc master master_grpc filer filer_grpc volume volume_grpc admin admin_grpc
  mkdir -p "$DIR/s3/data"
  # Every listener gets a port, or is off: the fixed defaults would clash with a second run on the machine. The
  # admin server listens even without its web pages.
  AWS_ACCESS_KEY_ID=$ACCESS_KEY AWS_SECRET_ACCESS_KEY=$SECRET_KEY spawn s3 "$VENV/bin/weed" -logtostderr mini \
    -dir="$DIR/s3/data" -bucket=$BUCKET -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -s3.port="$s3" -s3.port.grpc="$s3_grpc" -master.port="$master" -master.port.grpc="$master_grpc" \
    -filer.port="$filer" -filer.port.grpc="$filer_grpc" -volume.port="$volume" -volume.port.grpc="$volume_grpc" \
    -admin.port="$admin" -admin.port.grpc="$admin_grpc" -admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0 \
    -webdav=false -master.telemetry=false
  until_ready s3 client wait-s3 "127.0.0.1:$s3" $BUCKET $ACCESS_KEY $SECRET_KEY || return 1
  where="http://127.0.0.1:$s3 (bucket $BUCKET)"
}

# It leaves a socket in /tmp for each of its ports, where flags cannot move all of them.
clean_s3() {
  local name port
  while IFS='=' read -r name port; do
    rm -f /tmp/seaweedfs-*-"$port".sock
  done <"$DIR/s3/ports"
}


env_s3() {
  cat <<EOF
export OPENWIT_TEST_S3_ENDPOINT=http://127.0.0.1:$s3
export OPENWIT_TEST_S3_BUCKET=$BUCKET
export AWS_ACCESS_KEY_ID=$ACCESS_KEY
export AWS_SECRET_ACCESS_KEY=$SECRET_KEY
export AWS_REGION=us-east-1
EOF
}
