#!/bin/sh
# Reload nginx when a certificate is another than the one it was last reloaded for.
# Usage: reload-if-changed.sh STATE-FOLDER STAMP-FILE
# The stamp is written last: interrupted anywhere, the next call does what is missing.
# $NGINX_COMMAND is what to call in place of nginx, with its options. ($NGINX means something to nginx itself.)
set -eu
certificate=$1/certificate.pem
stamp=$2

[ -e "$certificate" ] || exit 0
if cmp -s "$certificate" "$stamp"; then
    exit 0
fi
current=$(cat "$certificate")
${NGINX_COMMAND:-nginx} -t -q
${NGINX_COMMAND:-nginx} -s reload
printf '%s\n' "$current" > "$stamp.new"
mv "$stamp.new" "$stamp"
echo "nginx was reloaded for a new certificate"
