#!/usr/bin/env bash
# Put axe-core, which finds what keeps people out of a page, into an environment's share folder.
# The browser itself is the system's: apt-get install chromium.
set -euo pipefail
prefix=$(dirname -- "$(dirname -- "$1")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent axe-core@4.14.1
tar xzf ./*.tgz
mkdir -p "$prefix/share"
cp package/axe.min.js "$prefix/share/"
