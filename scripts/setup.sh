#!/usr/bin/env bash
# Installs the packages that building and testing need, when they are missing. Asks for nothing.
# Sourced or run by quickstart.sh and test.sh; works on Debian 12 and newer and on Ubuntu.
set -euo pipefail

packages=(gcc g++ make cmake pkg-config libhdf5-dev libdnnl-dev libconfig-dev
  libjansson-dev libjpeg-dev libpng-dev zlib1g-dev libcmocka-dev)

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing: ${missing[*]}"
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      echo "These packages are missing and need root: run" >&2
      echo "  sudo apt-get install ${missing[*]}" >&2
      echo "and then this script again." >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  export DEBIAN_FRONTEND=noninteractive
  "${as_root[@]}" apt-get update -q >/dev/null
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -yq --no-install-recommends "${missing[@]}" >/dev/null
fi
