#!/usr/bin/env bash
# Run a command as on a machine without the optional programs (browser, C compiler, iproute2, mount) and without
# privileges:
#     tools/without_programs.sh .venv/bin/pytest tests/index
# Root becomes another user if that user can read the environment, else root without capabilities (both by setpriv).
set -euo pipefail
hidden=(chromium chromedriver cc c99 gcc clang weed ip mount umount)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin" "$folder/home" "$folder/tmp"
IFS=: read -ra places <<<"$PATH"
for place in "${places[@]}"; do
  [ -d "$place" ] && cp -rsn "$(realpath "$place")/." "$folder/bin" 2>/dev/null || true
done
(cd "$folder/bin" && rm -f "${hidden[@]}")
unprivileged=()
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
  bare=(setpriv --bounding-set=-all --inh-caps=-all)
  unprivileged=("${bare[@]}" --reuid 65534 --regid 65534 --clear-groups)
  if "${unprivileged[@]}" env "$1" --version >/dev/null 2>&1; then
    chown -R 65534:65534 "$folder"
  else
    unprivileged=("${bare[@]}")
  fi
fi
# a separate cache also hides the compiled kernel of earlier runs
"${unprivileged[@]}" env -u CC PATH="$folder/bin" HOME="$folder/home" XDG_CACHE_HOME="$folder/home/cache" TMPDIR="$folder/tmp" \
  PYTHONDONTWRITEBYTECODE=1 "$@"
