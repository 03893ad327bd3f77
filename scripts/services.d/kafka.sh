# Apache Kafka: one broker, which is its own controller. Beside the plaintext listener it has one for each way to log in:
#
#   OPENWIT_TEST_KAFKA                  plaintext
#   OPENWIT_TEST_KAFKA_SASL_PLAINTEXT   PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
#   OPENWIT_TEST_KAFKA_SASL_SSL         the same under TLS
#   OPENWIT_TEST_KAFKA_SSL              TLS that demands a client's certificate
#   OPENWIT_TEST_KAFKA_OAUTHBEARER      TLS and tokens that jwks.json checks, for audience `openwit`; a connection lives no longer
#                                       than its token, or a minute

KAFKA_USER=openwit
# With what a careless writer of settings trips over: a comma would split the tool's argument, so there is none.
KAFKA_PASSWORD='kafka-test;pass=word $1'

java_major() { "$1" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1; }

# The default Java of a distribution may be older than the 17 that Kafka 4 needs while a newer one is installed too.
find_java() {
  local java major
  for java in "${JAVA_HOME:-/nonexistent}/bin/java" "$(command -v java)" /usr/lib/jvm/*/bin/java; do
    [ -x "$java" ] || continue
    major=$(java_major "$java")
    if [ "${major:-0}" -ge 17 ]; then
      JAVA=$java
      return 0
    fi
  done
  why="no Java 17 or newer found"
  return 1
}

kafka_version() {
  echo "${OPENWIT_KAFKA_VERSION:-$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/kafka/pom.xml")}"
}

fetch_jars() {
  find_java || apt_install default-jre-headless && find_java || apt_install openjdk-17-jre-headless && find_java || return 1
  LIBS=$CACHE/kafka-$(kafka_version)
  [ -d "$LIBS" ] && return 0
  command -v mvn >/dev/null || apt_install maven || return 1
  note "services: fetching Apache Kafka $(kafka_version) from Maven Central (once, 45 MB)"
  rm -rf "$LIBS.part"
  if ! mvn -q -B -f "$here/kafka/pom.xml" "-Dkafka.version=$(kafka_version)" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$LIBS.part" >"$CACHE/mvn.log" 2>&1; then
    why="mvn could not fetch Apache Kafka: $(grep -m 1 ERROR "$CACHE/mvn.log") (all of it: $CACHE/mvn.log)"
    return 1
  fi
  mv "$LIBS.part" "$LIBS"
}

# The venv holds the client that waits for the broker.
fetch_kafka() { fetch_venv && fetch_openssl && fetch_jars; }

# The properties of the listeners that are not plaintext.
secured_listeners() {
  local tls=$DIR/tls modules=org.apache.kafka.common.security listener
  cat "$tls/server-key.pem" "$tls/server.pem" >"$home/server.pem"
  for listener in sasl_plaintext sasl_ssl; do
    cat <<EOF
listener.name.$listener.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.$listener.plain.sasl.jaas.config=$modules.plain.PlainLoginModule required user_$KAFKA_USER="$KAFKA_PASSWORD";
listener.name.$listener.scram-sha-256.sasl.jaas.config=$modules.scram.ScramLoginModule required;
listener.name.$listener.scram-sha-512.sasl.jaas.config=$modules.scram.ScramLoginModule required;
EOF
  done
  cat <<EOF
ssl.keystore.type=PEM
ssl.keystore.location=$home/server.pem
ssl.truststore.type=PEM
ssl.truststore.location=$tls/ca.pem
listener.name.ssl.ssl.client.auth=required
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.sasl.jaas.config=$modules.oauthbearer.OAuthBearerLoginModule required;
listener.name.oauth.oauthbearer.sasl.server.callback.handler.class=$modules.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.oauth.oauthbearer.connections.max.reauth.ms=60000
listener.name.oauth.sasl.oauthbearer.jwks.endpoint.url=file://$tls/jwks.json
listener.name.oauth.sasl.oauthbearer.expected.audience=openwit
EOF
}

start_kafka() {
  local home=$DIR/kafka broker controller sasl_plaintext sasl_ssl ssl oauth
  ports kafka broker controller sasl_plaintext sasl_ssl ssl oauth
  certificates || return 1
  mkdir -p "$home/tmp"
  local at=127.0.0.1
  local secured=SASL_PLAINTEXT://$at:$sasl_plaintext,SASL_SSL://$at:$sasl_ssl,SSL://$at:$ssl,OAUTH://$at:$oauth
  # Why what differs from the defaults:
  #   session, heartbeat   a killed broker registers again only when its old session has ended (default 9 s)
  #   group.*              no waiting in tests; short session timeouts allowed, to test eviction
  #   message sizes        20 MB messages with room for headers and framing
  #   timestamps           generated records carry event times from any year: keep them, refuse none
  #   dedupe buffer        128 MB by default, a quarter of our heap
  cat >"$home/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$broker,CONTROLLER://127.0.0.1:$controller,$secured
advertised.listeners=PLAINTEXT://127.0.0.1:$broker,$secured
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,\
  OAUTH:SASL_SSL
$(secured_listeners)
log.dirs=$home/data
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
message.max.bytes=25165824
replica.fetch.max.bytes=25165824
log.retention.ms=-1
log.message.timestamp.after.max.ms=9223372036854775807
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
EOF
  if [ ! -f "$home/data/meta.properties" ]; then
    local id
    id=$("$VENV/bin/python" -c 'import base64, uuid; print(base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:22])')
    "$JAVA" -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$LIBS/*" kafka.tools.StorageTool \
      format "--cluster-id=$id" -c "$home/server.properties" \
      --add-scram "SCRAM-SHA-256=[name=$KAFKA_USER,password=$KAFKA_PASSWORD]" \
      --add-scram "SCRAM-SHA-512=[name=$KAFKA_USER,password=$KAFKA_PASSWORD]" >>"$DIR/log/kafka.log" 2>&1 ||
      { why="formatting its data directory failed (see $DIR/log/kafka.log)"; return 1; }
  fi
  spawn kafka "$JAVA" -Xms512m -Xmx512m -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -Djava.awt.headless=true \
    "-Djava.io.tmpdir=$home/tmp" -Dorg.slf4j.simpleLogger.showDateTime=true \
    -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn \
    "-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://$DIR/tls/jwks.json" \
    "-Dorg.apache.kafka.sasl.oauthbearer.allowed.files=$DIR/tls/jwks.json" \
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS" \
    -cp "$LIBS/*" kafka.Kafka "$home/server.properties"
  until_ready kafka client wait-kafka "127.0.0.1:$broker" || return 1
  where="127.0.0.1:$broker"
}


env_kafka() {
  cat <<EOF
export OPENWIT_TEST_KAFKA=127.0.0.1:$broker
export OPENWIT_TEST_KAFKA_SASL_PLAINTEXT=127.0.0.1:$sasl_plaintext
export OPENWIT_TEST_KAFKA_SASL_SSL=127.0.0.1:$sasl_ssl
export OPENWIT_TEST_KAFKA_SSL=127.0.0.1:$ssl
export OPENWIT_TEST_KAFKA_OAUTHBEARER=127.0.0.1:$oauth
export OPENWIT_TEST_KAFKA_USER=$KAFKA_USER
export OPENWIT_TEST_KAFKA_PASSWORD='$KAFKA_PASSWORD'
EOF
}
