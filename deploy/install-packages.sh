#!/bin/sh
# Installs Debian packages where possible: as root, with apt-get. Elsewhere it prints a note and succeeds, since
# everything that needs them falls back or is skipped with a reason.
missing=""
for package in "$@"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "not installed (needs root and apt-get):$missing; continuing without"
  exit 0
fi
echo "installing$missing"
export DEBIAN_FRONTEND=noninteractive
for package in $missing; do
  apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1 ||
    { apt-get update >/dev/null 2>&1 && apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1; } ||
    echo "$package could not be installed; continuing without"
done
