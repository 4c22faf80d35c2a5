#!/bin/sh
# Builds the four images, regulars/{gateway,member,reporting,cli}:TAG, with what they are made of in their labels, and says their sizes.
# Usage: scripts/build_images.sh [TAG]; the tag is the packages' version unless another is given.
# The same commit over the same base images gives the same layers: nothing depends on when or where they are built.
set -eu
cd "$(dirname "$0")/.."

tag="${1:-}"
if [ -z "$tag" ]; then tag=$(sed -n 's/^version = "\(.*\)"/\1/p' kit/pyproject.toml); fi
if ! docker version >/dev/null 2>&1; then
  echo "No Docker Engine answers: start one, or install Docker." >&2
  exit 1
fi

revision=unknown
moment=1767225600
if git rev-parse --verify --quiet HEAD >/dev/null 2>&1; then
  revision=$(git rev-parse HEAD)
  moment=$(git log -1 --format=%ct)
  if ! git diff --quiet HEAD -- .; then revision="$revision-changed"; fi
fi
created=$(TZ=UTC date -d "@$moment" +%Y-%m-%dT%H:%M:%SZ 2>/dev/null || TZ=UTC date -r "$moment" +%Y-%m-%dT%H:%M:%SZ)

for service in gateway member reporting cli; do
  DOCKER_BUILDKIT=1 docker build --quiet --target "$service" --tag "regulars/$service:$tag" \
    --build-arg "VERSION=$tag" --build-arg "REVISION=$revision" --build-arg "CREATED=$created" . >/dev/null
  bytes=$(docker image inspect --format '{{.Size}}' "regulars/$service:$tag")
  echo "regulars/$service:$tag $((bytes / 1000000)) MB"
done
