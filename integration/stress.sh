#!/usr/bin/env bash
# Runs a command while others want the processors, and ends as it does.
# Usage: stress.sh LOAD COMMAND...
set -u
command -v stress-ng >/dev/null || { echo "stress.sh needs stress-ng" >&2; exit 1; }
load=$1
shift
stress-ng --quiet --cpu "$load" &
busy=$!
trap 'kill $busy; wait $busy' EXIT
"$@"
