#!/bin/sh
# Starts the web server of a machine.

# Swap, where fly.toml has no swap_size_mb: the kernel gives none away by itself.
if ! grep -q '^SwapTotal: *[1-9]' /proc/meminfo; then
	fallocate -l 512M /swapfile
	chmod 0600 /swapfile
	mkswap /swapfile
	echo 10 > /proc/sys/vm/swappiness
	swapon /swapfile
	echo 1 > /proc/sys/vm/overcommit_memory
fi

# SQLite is in this machine's own file system, so nobody else can migrate it;
# a shared database is migrated by fly.toml's release_command.
[ -n "$DATABASE_URL" ] || python3 manage.py migrate --verbosity 0 || exit

exec gunicorn shop.wsgi
