#!/usr/bin/env bash
# Sets up, builds, and shows what etcd-lb does.
set -euo pipefail
. "$(dirname "$0")/common.sh"

"$root/scripts/setup.sh"
xtask_as_root demo
