#!/bin/bash
# Provision a stock machine and play the scenario on it: install penstock from this checkout, or from the bundle
# that is named, then go through its life with real packets.  Exit status 0 only if every step was ok.
# Usage: vagrant/provision.sh [BUNDLE]     as root, on a throw-away machine
set -eu
checkout=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)

say() { printf '== %s\n' "$*"; }

packages() {  # what a stock machine may lack; with a bundle nothing is fetched
  if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update
    apt-get -q -y install --no-install-recommends nftables iproute2 python3
    # Ubuntu 22.04 has 3.10 as its python3, and 3.11 beside it.
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      apt-get -q -y install --no-install-recommends python3.11 python3.11-venv
  elif command -v dnf >/dev/null; then
    dnf -q -y install nftables iproute python3.11 python3.11-pip
  else
    say "no package manager that is known here; going on with what there is"
  fi
}

. /etc/os-release
say "$PRETTY_NAME, Linux $(uname -r)"
[ -n "${1-}" ] || packages
if [ -n "${1-}" ]; then
  "$1/systemd/install.sh"
else
  "$checkout/systemd/install.sh"
fi
# A copy outside of the checkout: the server in it runs as nobody, who may not be able to read that.
install -D -m 0644 "$checkout/tests/hosts/scenario.py" /usr/local/lib/penstock-scenario/scenario.py
status=0
python3 /usr/local/lib/penstock-scenario/scenario.py || status=$?
rm -r /usr/local/lib/penstock-scenario
exit "$status"
