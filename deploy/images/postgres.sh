#!/bin/bash
# Run in PostgreSQL's image: copies the programs that take and restore backups, with all that they load, into a folder, each to where it
# lies here: postgres.sh FOLDER.
set -euo pipefail

to=$1
root=/usr/lib/postgresql/18
mkdir -p "$to"
keep() { cp -r --parents --dereference --preserve=mode "$1" "$to"; }

programs=()
# Modules lie in Debian's layout, or in PostgreSQL's own.
for file in "$root"/bin/{postgres,pg_basebackup,pg_receivewal,pg_controldata} \
  "$root"/lib/{plpgsql,dict_snowball,libpqwalreceiver}.so "$root"/lib/postgresql/{plpgsql,dict_snowball,libpqwalreceiver}.so; do
  if [ -e "$file" ]; then programs+=("$file"); fi
done
for file in "${programs[@]}"; do keep "$file"; done

# Their libraries, but for those of the C library itself, of which each image has its own. Some name a folder that is a link.
ldd "${programs[@]}" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | sort -u | while read -r library; do
  case ${library##*/} in
    libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libresolv.so.* | libutil.so.*) ;;
    *) keep "$(readlink -f "${library%/*}")/${library##*/}" ;;
  esac
done

# What the server reads when it starts.
for share in /usr/share/postgresql/18 "$root/share/postgresql" "$root/share"; do
  for part in timezonesets timezone tsearch_data; do
    if [ -e "$share/$part" ]; then keep "$share/$part"; fi
  done
done
