#!/bin/sh
# Render the edge's configuration from the environment and the secrets, then exec nginx.
set -eu
umask 077
mkdir -p /tmp/edge
for file in nginx.conf guard.conf site.conf; do
  sed -e "s|@MAX_BODY_BYTES@|$MAX_BODY_BYTES|; s|@REQUESTS_PER_SECOND@|$REQUESTS_PER_SECOND|; s|@CONNECTIONS@|$CONNECTIONS|" \
    -e "s|@BODY_TIMEOUT_S@|$BODY_TIMEOUT_S|" "/etc/trident/$file" >"/tmp/edge/$file"
done

# API keys for TorchServe and Triton; FastAPI checks them itself. They are regular expressions because an nginx map
# compares plain strings without regard to case.
keys=$(cat /run/secrets/api_keys)
if printf %s "$keys" | grep -q '[^[:space:]A-Za-z0-9._~+/=-]'; then
  echo 'API_KEYS_FILE: a key may have letters, digits and . _ ~ + / = - only' >&2
  exit 1
fi
{
  echo 'map $given_key $known_key {'
  if [ -n "$keys" ]; then
    echo '  default 0;'
    echo "$keys" | tr -s '[:space:]' '\n' | sed -e '/^$/d' -e 's/[.+]/[&]/g' -e 's/.*/  "~^&$" 1;/'
  else
    echo '  default 1;'
  fi
  echo '}'
} >/tmp/edge/keys.conf

# With a certificate and its key the site is on port 8443, and port 8080 only redirects to it.
if [ -s /run/secrets/tls_certificate ] && [ -s /run/secrets/tls_key ]; then
  cat >/tmp/edge/servers.conf <<CONF
server {
  listen 8443 ssl;
  ssl_certificate /run/secrets/tls_certificate;
  ssl_certificate_key /run/secrets/tls_key;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:tls:1m;
  include /tmp/edge/site.conf;
}
server {
  listen 8080;
  return 308 https://\$host:$TLS_PORT\$request_uri;
}
CONF
elif [ -s /run/secrets/tls_certificate ] || [ -s /run/secrets/tls_key ]; then
  echo 'TLS_CERTIFICATE_FILE and TLS_KEY_FILE: TLS needs both' >&2
  exit 1
else
  echo 'server { listen 8080; include /tmp/edge/site.conf; }' >/tmp/edge/servers.conf
fi
exec nginx -e /dev/stderr -c /tmp/edge/nginx.conf -g 'daemon off;'
