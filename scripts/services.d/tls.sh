# What the services prove who they are with, made once for a run: $DIR/tls, named by OPENWIT_TEST_TLS.
#
#   ca.pem                        the authority of the two below
#   server.pem, server-key.pem    the services': for 127.0.0.1 by its address, and for no name, `localhost` included
#   client.pem, client-key.pem    a client's, CN=openwit; client-key-locked.pem is the same key under $CLIENT_PASSWORD
#   stranger.pem                  an authority that signed nothing here
#   issuer-key.pem, jwks.json     signs tokens (RS256, kid `test`), and checks them

CLIENT_PASSWORD=openwit-test-key-password

fetch_openssl() { command -v openssl >/dev/null || apt_install openssl; }

# certificate NAME CN EXTENSIONS: NAME-key.pem and NAME.pem, signed by ca.
certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1-key.pem" -subj "/CN=$2" -out "$1.csr" &&
    printf '%s\n' "$3" >"$1.ext" &&
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 3650 -extfile "$1.ext" -out "$1.pem"
}

authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1-key.pem" -subj "/CN=$2" -days 3650 -out "$1.pem"
}

# The public half of issuer-key.pem as a JSON Web Key Set. 65537 is AQAB.
jwks() {
  local modulus
  modulus=$(openssl rsa -in issuer-key.pem -noout -modulus | sed 's/^Modulus=//' |
    "$VENV/bin/python" -c 'import base64, sys; print(base64.urlsafe_b64encode(bytes.fromhex(input())).decode().rstrip("="))') &&
    printf '{"keys":[{"kty":"RSA","use":"sig","alg":"RS256","kid":"test","e":"AQAB","n":"%s"}]}\n' "$modulus" >jwks.json
}

# Sets $why on failure. Services start at the same time and each asks for it: the first makes it.
certificates() {
  (
    exec 6>"$DIR/tls.lock"
    flock 6
    [ ! -e "$DIR/tls/jwks.json" ] || exit 0
    rm -rf "$DIR/tls"
    mkdir -p "$DIR/tls" && cd "$DIR/tls" && umask 077 && exec >>"$DIR/log/tls.log" 2>&1 &&
      authority ca "OpenWit test authority" &&
      authority stranger "A stranger" &&
      certificate server openwit-test-server "subjectAltName=IP:127.0.0.1" &&
      certificate client openwit "extendedKeyUsage=clientAuth" &&
      openssl pkcs8 -topk8 -v2 aes-256-cbc -passout "pass:$CLIENT_PASSWORD" -in client-key.pem -out client-key-locked.pem &&
      openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out issuer-key.pem &&
      jwks
  ) && return 0
  why="openssl could not make the certificates: $(tail -n 1 "$DIR/log/tls.log") (all of it: $DIR/log/tls.log)"
  return 1
}
