#!/usr/bin/env bash
# Sets up and runs every check and test; arguments go to `cargo xtask test`.
set -euo pipefail
. "$(dirname "$0")/common.sh"

"$root/scripts/setup.sh" "$@"
xtask_as_root test "$@"
