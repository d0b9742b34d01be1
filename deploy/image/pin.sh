#!/bin/sh
# Writes into .env, which docker compose reads, by which digest each image of others is to be taken:  deploy/image/pin.sh
#
# Those that are here are pinned as they are, the lines of the others stay; --pull takes all, as their tags name them now.
# An image that .env names is pinned in place of the one of the compose file. What it names by digest stays, but for what
# was written here, with its tag behind it. ENGINE=podman asks another engine. Safe to repeat; other lines of .env stay.
# To go back to tags, take the lines out.
set -eu
cd "$(dirname "$0")/../.."
engine=${ENGINE:-docker}
kept=.env
[ -e .env ] || kept=/dev/null

# How a line begins that sets the variable, as compose reads it.
line_of() { echo "^([[:blank:]]*(export[[:blank:]]+)?$1[[:blank:]]*=)[[:blank:]]*"; }

# The digest of the image $1 at the registry of the name $2, else at another one: it may be named in several.
digest_of() {
  other=
  for each in $("$engine" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1"); do
    case $each in
      "$2@sha256:"*) echo "$each" && return ;;
      *"/$2@sha256:"*) other=${other:-$each} ;;
    esac
  done
  echo "$other"
}

# VARIABLE TAG of each image: the tags stand in the compose file.
images=$(sed -n 's/.*\${\(FOLDIN_[A-Z]*_IMAGE\):-\([^}]*\)}.*/\1 \2/p' docker-compose.yml | sort -u)
[ -n "$images" ]
edits='' added=''
while read -r variable tag; do
  line=$(line_of "$variable")
  # Of several lines the last one holds.
  own=$(sed -nE "s/$line//p" "$kept" | tail -n 1 | tr -d "\"'\r")
  case $own in
    *@sha256:*" # pinned: "*) tag=${own##* # pinned: } ;;
    *@sha256:*) echo "$variable names a digest: it stays as it is" >&2 && continue ;;
    [!\ \#]*) tag=${own%%[[:blank:]]*} ;;
  esac
  if [ "${1:-}" = --pull ]; then
    "$engine" pull --quiet "$tag" >/dev/null
  elif ! "$engine" image inspect "$tag" >/dev/null 2>&1; then
    echo "$tag is not here: it stays as it is" >&2
    continue
  fi
  # Not the colon of a port. An engine leaves the names of its first registry out.
  name=$(echo "$tag" | sed -E 's/:[^:\/]*$//; s/^docker\.io\/(library\/)?//')
  digest=$(digest_of "$tag" "$name")
  [ -n "$digest" ] || { echo "$tag has no digest, as it was built here: it stays as it is" >&2 && continue; }
  pinned="$digest # pinned: $tag"
  if grep -qE "$line" "$kept"; then
    edits="$edits
s|$line.*|\\1$pinned|"
  else
    added="$added$variable=$pinned
"
  fi
  echo "$variable=$digest"
done <<END
$images
END

[ -n "$edits$added" ] || exit 0
# What is interrupted from here on would be half a file.
trap '' HUP INT TERM
trap 'rm -f .env.new' EXIT
# It may hold secrets.
umask 077
{ grep '' "$kept" || true; } | sed -E "$edits" >.env.new
printf %s "$added" >>.env.new
# Through a link, and with owner and rights as they are; where that fails, the copy is left.
trap - EXIT
cat .env.new >.env
rm .env.new
