#!/bin/sh
# Compares benchmarks of the working tree with those of a commit.
# Usage: benchcmp.sh <commit> <regexp>
set -eu
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'git worktree remove --force "$tmp/base" 2>/dev/null || true; rm -rf "$tmp"' EXIT
git worktree add --quiet --detach "$tmp/base" "$1"
bench() { go test -timeout 60m -run '^$' -bench "$1" -benchmem -count 10 ./...; }
(cd "$tmp/base" && bench "$2") >"$tmp/old"
bench "$2" >"$tmp/new"
go tool benchstat "$tmp/old" "$tmp/new"
