#!/bin/sh
# Puts Foldin into the namespace `foldin` of the cluster that kubectl speaks to:  FOLDIN_IMAGE=registry/foldin:VERSION apply.sh
#
# `apply.sh cluster`: the store is a cluster of nine servers, as it was from the first start on.
# FOLDIN_REDIS_MEMORY is the `maxmemory` of a server of the store, FOLDIN_REDIS_LIMIT the memory of its container.
# FOLDIN_REDIS_IMAGE and FOLDIN_NGINX_IMAGE name these two in place of their tags, by digest for example.
# Safe to repeat. Secrets are made once, here, and shown nowhere; the operator's key is then
#   kubectl -n foldin get secret foldin-keys -o jsonpath='{.data.operator}' | base64 -d
set -eu
here=$(cd "$(dirname "$0")" && pwd)
store=store url=redis://foldin@foldin-store:6379 durability=store
if [ "${1:-}" = cluster ]; then
  store=cluster/store durability=replicated
  url=redis+cluster://foldin@foldin-store-0.foldin-store
  for number in 1 2 3 4 5 6 7 8; do url=$url,foldin-store-$number.foldin-store; done
fi
: "${FOLDIN_IMAGE:?say which image: FOLDIN_IMAGE=registry/foldin:VERSION}"

kubectl apply -f "$here/namespace.yaml"

secret() { # NAME KEY: reads the value
  kubectl -n foldin get secret "$1" >/dev/null 2>&1 || kubectl -n foldin create secret generic "$1" --from-file="$2=/dev/stdin"
}
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' | secret foldin-store redis
if [ "$store" != store ]; then
  for name in cluster/redis replica/replica; do
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' | secret "foldin-${name%/*}" "${name#*/}"
  done
fi
{ printf fk_ && head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; } | secret foldin-keys operator

for name in nginx redis; do
  kubectl -n foldin create configmap "foldin-$name" --from-file="$here/../$name" --dry-run=client -o yaml | kubectl apply -f -
done
# What a job runs cannot be changed.
kubectl -n foldin delete job foldin-keys foldin-cluster --ignore-not-found
for file in network $store service trainer nginx backup; do
  sed -e "s|\$FOLDIN_IMAGE|$FOLDIN_IMAGE|" \
    -e "s|redis://foldin@foldin-store:6379|$url|" -e "s|FOLDIN_DURABILITY, value: store|FOLDIN_DURABILITY, value: $durability|" \
    -e "s|- 3gb\$|- ${FOLDIN_REDIS_MEMORY:-3gb}|" -e "s|4Gi } # FOLDIN_REDIS_LIMIT|${FOLDIN_REDIS_LIMIT:-4Gi} }|" \
    -e "s|image: redis:8\$|image: ${FOLDIN_REDIS_IMAGE:-redis:8}|" \
    -e "s|image: nginx:stable\$|image: ${FOLDIN_NGINX_IMAGE:-nginx:stable}|" "$here/$file.yaml" | kubectl apply -f -
done
