#!/bin/sh
# Ask about pictures with curl, all in one request; prints JSON. Waits as long as the gateway says when it is busy.
#   sh examples/ask.sh examples/digit-7.png …
#   TRESNET_URL=https://gateway.example TRESNET_API_KEY=tresnet_… sh examples/ask.sh …
set -eu
url=${TRESNET_URL:-http://127.0.0.1:8080}

i=$#
while [ "$i" -gt 0 ]; do # each PATH becomes --form image=@"PATH", quoted so that ; and , in names are no syntax
    set -- "$@" --form "image=@\"$1\""
    shift
    i=$((i - 1))
done
if [ -n "${TRESNET_API_KEY:-}" ]; then set -- "$@" --header "X-API-Key: $TRESNET_API_KEY"; fi

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
# --retry asks again after 408, 429, 500, 502, 503 and 504, and after Retry-After where it is given; a file, unlike
# stdout, is begun anew each time.
status=0
curl --silent --show-error --fail-with-body --retry 3 --retry-max-time 60 --retry-connrefused \
    --header 'X-Request-Timeout-Ms: 20000' --output "$answer" "$@" "$url/classify?top_k=1" || status=$?
cat "$answer"
exit "$status"
