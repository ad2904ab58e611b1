#!/bin/sh
# Render the edge's configuration from the environment and the secrets, and become nginx.
set -eu
umask 077
mkdir -p /tmp/edge
for file in nginx.conf guard.conf site.conf; do
  sed -e "s|@MAX_BODY_BYTES@|$MAX_BODY_BYTES|; s|@REQUESTS_PER_SECOND@|$REQUESTS_PER_SECOND|; s|@CONNECTIONS@|$CONNECTIONS|" \
    -e "s|@BODY_TIMEOUT_S@|$BODY_TIMEOUT_S|" "/etc/trident/$file" >"/tmp/edge/$file"
done

# API keys: FastAPI asks for them itself; here they guard the two servers that cannot.
{
  echo 'map $given_key $known_key {'
  if [ -s /run/secrets/api_keys ]; then
    echo '  default 0;'
    tr -s '[:space:]' '\n' </run/secrets/api_keys | sed -e '/^$/d' -e 's/.*/  "&" 1;/'
  else
    echo '  default 1;'
  fi
  echo '}'
} >/tmp/edge/keys.conf

# TLS: with a certificate and its key, the same site on port 8443.
if [ -s /run/secrets/tls_certificate ] && [ -s /run/secrets/tls_key ]; then
  cat >/tmp/edge/tls.conf <<'CONF'
server {
  listen 8443 ssl;
  ssl_certificate /run/secrets/tls_certificate;
  ssl_certificate_key /run/secrets/tls_key;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:tls:1m;
  include /tmp/edge/site.conf;
}
CONF
else
  : >/tmp/edge/tls.conf
fi
exec nginx -e /dev/stderr -c /tmp/edge/nginx.conf -g 'daemon off;'
