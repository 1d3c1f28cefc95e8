#!/bin/sh
# What the end-to-end test needs of the system: Docker's engine, mmdebstrap, and the compose plugin. Debian bookworm has
# no compose v2; trixie's is one static program, which is unpacked into $1/docker/cli-plugins and not installed.
set -eu
folder=$(cd "$1" && pwd)
path=$PATH:/usr/sbin

if ! { PATH=$path command -v dockerd && command -v mmdebstrap; } > /dev/null; then
    apt-get update --quiet > /dev/null
    apt-get install --yes --quiet --no-install-recommends docker.io iptables mmdebstrap > /dev/null
fi

if ! test -x "$folder/docker/cli-plugins/docker-compose"; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$folder/docker/cli-plugins"
    cat > "$work/trixie.sources" << 'SOURCES'
Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
    (
        cd "$work"
        apt() {
            apt-get --quiet -o "Dir::Etc::SourceList=$work/trixie.sources" -o Dir::Etc::SourceParts=/dev/null \
                -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root "$@" > /dev/null
        }
        apt update
        apt download docker-compose
        dpkg -x docker-compose_*.deb .
        cp usr/libexec/docker/cli-plugins/docker-compose "$folder/docker/cli-plugins/"
    )
fi
