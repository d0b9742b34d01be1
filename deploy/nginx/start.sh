#!/bin/sh
# Writes /tmp/upstream.conf for the network that this container is in, and who stands in front of it, then becomes nginx.
#
# Replicas come and go, so their addresses are asked of the container network's name server every second. nginx from
# 1.27.3 on does that for an upstream block, which also keeps connections open; an older one does it for a name in a
# variable, with a new connection for each request.
set -eu

service=${FOLDIN_SERVICE:-service:8080}
name_servers=$(awk '$1 == "nameserver" { print ($2 ~ /:/) ? "[" $2 "]" : $2 }' /etc/resolv.conf | tr '\n' ' ')

resolver="resolver $name_servers valid=1s ipv6=off; resolver_timeout 2s;"
upstream="upstream replicas {
    zone replicas 64k;
    # Membership is the name server's to tell: with failures counted as well, one bad second would shut out the last replica.
    server $service resolve max_fails=0;
    keepalive 64;
    keepalive_requests 100000;
    keepalive_timeout 30s;
}"

printf 'pid /tmp/probe.pid; error_log stderr; events {} http { client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;
fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi; %s\n%s }\n' \
  "$resolver" "$upstream" >/tmp/probe.conf

if nginx -t -q -c /tmp/probe.conf 2>/dev/null; then
  replicas=http://replicas
else
  upstream=
  replicas=http://$service
fi
cat >/tmp/upstream.conf <<CONF
$resolver
$upstream
map "" \$replicas         { default $replicas; }
map "" \$replicas_by_name { default http://$service; }
CONF
rm -f /tmp/probe.conf

# Behind another proxy, as an Ingress, all clients would have the address of that one, and share its limits.
for proxy in $(printf %s "${FOLDIN_NGINX_PROXIES:-}" | tr ',' ' '); do
  echo "set_real_ip_from $proxy;"
done >/tmp/proxies.conf

# HTTPS where there is a certificate: a chain that begins with the server's own, and its key.
: >/tmp/tls.conf
if [ -e /run/tls/tls.crt ]; then
  cat >/tmp/tls.conf <<'CONF'
listen 8443 ssl;
ssl_certificate     /run/tls/tls.crt;
ssl_certificate_key /run/tls/tls.key;
ssl_protocols       TLSv1.2 TLSv1.3;
ssl_session_cache   shared:tls:1m;
CONF
elif [ -e /run/tls ]; then
  echo 'nginx: no tls.crt and tls.key in FOLDIN_TLS_FOLDER: put them there, readable by user 101' >&2
  exit 2
fi

exec nginx -e stderr -c /etc/foldin/nginx.conf -g 'daemon off;'
