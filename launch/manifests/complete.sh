#!/bin/bash
# complete.sh RUN COMMAND...   hands SIGTERM on to the command, and fails unless RUN/result.json is there in the end.
# A run that was asked to stop saves and ends with 0: whoever restarts what failed has to see that there is more to do.
set -u
run=$1
shift
child= early=
stop() { if [ "$child" ]; then kill -TERM "$child" 2>/dev/null; else early=yes; fi; }
trap stop TERM INT
"$@" &
child=$!
[ -z "$early" ] || stop # the signal came before the command's number was known
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
test -f "$run/result.json"
