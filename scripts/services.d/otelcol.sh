# An OpenTelemetry Collector that writes what it gets by OTLP/HTTP to the Kafka of this run, to the topic that the request's header
# `topic` names. One receiver for each encoding: $port_proto for otlp_proto, $port_json for otlp_json.

# The name carries what it was made from.
fetch_otelcol() {
  local version
  version=$(sed -n 's/^  version: //p' "$here/otelcol/builder.yaml")
  OTELCOL=$CACHE/otelcol-$version-$(cksum <"$here/otelcol/builder.yaml" | cut -d' ' -f1)
  [ -e "$OTELCOL/.complete" ] || may_fetch otelcol || return 1
  [ -e "$OTELCOL/.complete" ] || note "services: building the OpenTelemetry Collector $version (once, minutes)"
  go_build "$OTELCOL" build_otelcol "$version" || return 1
  fetch_venv
}

build_otelcol() {
  sed "s:^dist\::dist\:\n  output_path\: $PWD:" "$here/otelcol/builder.yaml" >builder.yaml
  go run "go.opentelemetry.io/collector/cmd/builder@v$1" --config builder.yaml
}

start_otelcol() {
  local port_proto port_json broker encoding
  ports otelcol port_proto port_json
  # Kafka may be starting beside it: its ports come first.
  for _ in $(seq 100); do [ -s "$DIR/kafka/ports" ] && break; sleep 0.1; done
  [ -s "$DIR/kafka/ports" ] || { why="it writes to Kafka, which was never started in $DIR"; return 1; }
  . "$DIR/kafka/ports"
  # The sizes are those of the broker. No queue and no batches: an answer means that Kafka has it.
  {
    echo "receivers:"
    for encoding in proto json; do
      local port=port_$encoding
      echo "  otlp/$encoding: {protocols: {http: {endpoint: 127.0.0.1:${!port}, include_metadata: true}}}"
    done
    echo "exporters:"
    for encoding in proto json; do
      local signal
      echo "  kafka/$encoding:"
      echo "    brokers: [127.0.0.1:$broker]"
      echo "    sending_queue: {enabled: false}"
      echo "    producer: {max_message_bytes: 20000000, required_acks: -1}"
      for signal in traces logs metrics; do
        echo "    $signal: {encoding: otlp_$encoding, topic_from_metadata_key: topic}"
      done
    done
    echo "service:"
    echo "  telemetry: {metrics: {level: none}}"
    echo "  pipelines:"
    for encoding in proto json; do
      for signal in traces logs metrics; do
        echo "    $signal/$encoding: {receivers: [otlp/$encoding], exporters: [kafka/$encoding]}"
      done
    done
  } >"$DIR/otelcol/config.yaml"
  spawn otelcol "$OTELCOL/otelcol" --config "$DIR/otelcol/config.yaml"
  until_ready otelcol bash -c "exec 3<>/dev/tcp/127.0.0.1/$port_proto 4<>/dev/tcp/127.0.0.1/$port_json" || return 1
  where="http://127.0.0.1:$port_proto (otlp_proto), http://127.0.0.1:$port_json (otlp_json)"
}

env_otelcol() {
  echo "export OPENWIT_TEST_OTELCOL_PROTO=http://127.0.0.1:$port_proto"
  echo "export OPENWIT_TEST_OTELCOL_JSON=http://127.0.0.1:$port_json"
}
