#!/bin/sh
# All checks, then all tests, whatever the checks say. pytest's last lines name what could not run and why; with CI set that is a failure.
set -u
cd "$(dirname "$0")/.."
scripts/check.sh
checked=$?
.venv/bin/python -m pytest "$@"
tested=$?
if [ $checked -ne 0 ]; then echo "The checks failed; see the lines before the tests."; fi
[ $checked -eq 0 ] && [ $tested -eq 0 ]
