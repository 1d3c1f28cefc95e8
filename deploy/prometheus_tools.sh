#!/bin/sh
# Puts promtool, amtool, prometheus and alertmanager into $1/bin where the machine lacks them: out of Debian's packages,
# unpacked rather than installed, which would start servers.
set -eu
folder=$(mkdir -p "$1" && cd "$1" && pwd)
mkdir -p "$folder/bin"

has() { command -v "$1" > /dev/null || test -x "$folder/bin/$1"; }

if ! { has promtool && has amtool && has prometheus && has prometheus-alertmanager; }; then
    packages=$(mktemp -d)
    (
        cd "$packages"
        chmod 755 .
        # Without lists of packages, as in a fresh container, there is nothing to download by name.
        apt-get download --quiet prometheus prometheus-alertmanager > /dev/null 2>&1 \
            || { apt-get update --quiet > /dev/null && apt-get download --quiet prometheus prometheus-alertmanager; }
        for package in *.deb; do dpkg -x "$package" .; done
        cp usr/bin/promtool usr/bin/amtool usr/bin/prometheus usr/bin/prometheus-alertmanager "$folder/bin/"
    )
    rm -rf "$packages"
fi
