# PostgreSQL, with TLS and without: whoever comes is let in as `postgres`. The role `openwit` is let in only by TLS and the client's
# certificate of $DIR/tls, whose CN names it.

find_postgres() {
  PGBIN=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
  # Elsewhere than on Debian the server's programs are in the PATH.
  [ -n "$PGBIN" ] || PGBIN=$(dirname "$(command -v initdb || echo /nonexistent/initdb)")
  [ -x "$PGBIN/initdb" ] && [ -x "$PGBIN/postgres" ] && return 0
  why="PostgreSQL's server programs (initdb, postgres) were not found"
  return 1
}

fetch_postgres() { fetch_openssl && { find_postgres || apt_install postgresql && find_postgres; }; }
# PostgreSQL refuses to run as root: there it runs as Debian's user `postgres`.
as_postgres=()
! is_root || as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups)

sql() { "$PGBIN/psql" -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -U postgres -p "$port" "$@"; }

# Where its files are: that user must be able to reach them, which it cannot below /root. Remembered for restarts.
postgres_home() {
  local file=$DIR/postgres/home
  if [ ! -s "$file" ]; then
    home=$DIR/postgres/files
    mkdir -p "$home"
    if is_root; then
      chown postgres: "$home"
      if ! (cd / && "${as_postgres[@]}" test -w "$home"); then
        home=$(mktemp -d /var/tmp/openwit-postgres.XXXXXX)
        chown postgres: "$home"
      fi
    fi
    echo "$home" >"$file"
  fi
  home=$(<"$file")
}

start_postgres() {
  local home port
  ports postgres port
  postgres_home
  if [ ! -f "$home/data/PG_VERSION" ]; then
    rm -rf "$home/data"
    (cd / && "${as_postgres[@]}" "$PGBIN/initdb" -D "$home/data" -U postgres -A trust --no-sync -E UTF8 --locale=C.UTF-8) \
      >>"$DIR/log/postgres.log" 2>&1 || { why="initdb failed: $(tail -n 1 "$DIR/log/postgres.log")"; return 1; }
  fi
  certificates || return 1
  # The server refuses a key that others may read, and one that is not its own.
  install -m 600 "$DIR/tls/ca.pem" "$DIR/tls/server.pem" "$DIR/tls/server-key.pem" "$home/" || { why="cannot write $home"; return 1; }
  cat >"$home/hba.conf" <<EOF
hostssl all openwit 127.0.0.1/32 cert
host    all openwit 127.0.0.1/32 reject
host    all all     127.0.0.1/32 trust
EOF
  ! is_root || chown postgres: "$home"/*.pem "$home/hba.conf"
  # No unix socket: its path is limited to 107 bytes. No /dev/shm: kill -9 would leave segments behind there.
  # fsync stays on, since the catalog's commit time is part of what is measured.
  (cd / && spawn postgres "${as_postgres[@]}" \
    "$PGBIN/postgres" -D "$home/data" -p "$port" -k "" -c listen_addresses=127.0.0.1 -c dynamic_shared_memory_type=mmap \
    -c "hba_file=$home/hba.conf" -c ssl=on -c "ssl_ca_file=$home/ca.pem" -c "ssl_cert_file=$home/server.pem" \
    -c "ssl_key_file=$home/server-key.pem")
  until_ready postgres sql -c 'select 1' postgres || return 1
  if [ -z "$(sql -At -c "select 1 from pg_database where datname = 'openwit'" postgres)" ]; then
    sql -c 'create role openwit login' -c 'create database openwit' -c 'grant all on database openwit to openwit' postgres || { why="could not create the database openwit"; return 1; }
  fi
  where="127.0.0.1:$port"
}

# After kill -9 the interlock segment of the old server is left over; the next start on the same data reuses it, but
# deleting the data would leak it.
clean_postgres() {
  local home segment
  home=$(cat "$DIR/postgres/home" 2>/dev/null) && [ -n "$home" ] || return 0
  segment=$(awk 'NR == 7 { print $2 }' "$home/data/postmaster.pid" 2>/dev/null)
  [ -z "$segment" ] || ipcrm -m "$segment" 2>/dev/null
  rm -rf "$home"
}


env_postgres() {
  echo "export OPENWIT_TEST_POSTGRES=postgresql://postgres@127.0.0.1:$port/openwit"
  echo "export OPENWIT_TEST_POSTGRES_CERTIFICATE=postgresql://openwit@127.0.0.1:$port/openwit"
}
