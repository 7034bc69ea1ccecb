#!/usr/bin/env bash
# Runs every fuzz target of the module for $1 each.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
grep -rl --include='*_test.go' -E '^func Fuzz[A-Z]' . | while read -r file; do
  dir=$(dirname "$file")
  grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | cut -d' ' -f2 | while read -r target; do
    printf '%s %s\n' "$dir" "$target"
    go test "$dir" -run '^$' -fuzz "^${target}\$" -fuzztime "$time" </dev/null | tail -n 2
  done
done
