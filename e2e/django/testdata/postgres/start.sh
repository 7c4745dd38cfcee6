#!/bin/sh
# Makes the database at the first start, then runs it.
set -eu
if [ ! -d "$PGDATA" ]; then
	: "${POSTGRES_PASSWORD:?set it: roost secrets set POSTGRES_PASSWORD=...}"
	# Beside its place, and moved there when it is whole.
	rm -rf "$PGDATA.new"
	password=$(mktemp)
	printf %s "$POSTGRES_PASSWORD" > "$password"
	initdb --pgdata="$PGDATA.new" --username=shop --pwfile="$password" --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
	rm "$password"
	# Neighbours on the private network, by password.
	echo "host all all all scram-sha-256" >> "$PGDATA.new/pg_hba.conf"
	echo "CREATE DATABASE shop" | postgres --single -D "$PGDATA.new" postgres
	mv "$PGDATA.new" "$PGDATA"
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
