#!/usr/bin/env bash
# Whether the documentation still says what the code does: see check-rules.py.
exec python3 "$(dirname "$0")/check-rules.py" "$@"
