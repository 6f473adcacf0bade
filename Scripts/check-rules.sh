#!/usr/bin/env bash
# Whether the documentation still says what the code does: see check-rules.py and check-calls.py.
set -e
python3 "$(dirname "$0")/check-rules.py" "$@"
python3 "$(dirname "$0")/check-calls.py"
