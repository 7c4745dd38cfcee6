#!/bin/sh
# Starts the worker; the database as in web.sh.
[ -n "$DATABASE_URL" ] || python3 manage.py migrate --verbosity 0 || exit

exec python3 manage.py work
