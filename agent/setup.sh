# Sourced by agent/try, tests/run and .ci/run: what this machine lacks, installed once.
# After `set_up EXTRA` the virtual environment in $checkout/.venv has penstock in it.
# Everything said here goes to stderr: stdout belongs to the program that follows.

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$checkout/.venv

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }

# Programs that must not belong to root: run as whoever owns the checkout.
as_owner() {
  local uid gid home
  uid=$(stat -c %u "$checkout") gid=$(stat -c %g "$checkout")
  if ! is_root || [ "$uid" = 0 ]; then "$@"; return; fi
  home=$(getent passwd "$uid" | cut -d: -f6)
  setpriv --reuid="$uid" --regid="$gid" --clear-groups env HOME="${home:-/tmp}" "$@"
}

works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The first Python that is new enough; a version manager's shim may be there and not work.
find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 /usr/bin/python3 /usr/bin/python3.11; do
    if command -v "$name" >/dev/null && works "$name"; then command -v "$name"; return; fi
  done
  return 1
}

# The packages that bring such a Python: the distribution's own if new enough, else one beside it.
python_packages() {
  local name version
  version=$(apt-cache show --no-all-versions python3 2>/dev/null | sed -n 's/^Version: //p')
  if dpkg --compare-versions "${version:-0}" ge 3.11; then echo python3 python3-venv; return; fi
  for name in python3.13 python3.12 python3.11; do
    if apt-cache show "$name" >/dev/null 2>&1; then echo "$name" "$name-venv"; return; fi
  done
  die "no Python 3.11 or newer here, and apt has none to offer"
}

venv_package() {  # PYTHON: what brings ensurepip for it
  local version
  version=$("$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
  if dpkg -S "$(readlink -f "$1")" >/dev/null 2>&1; then echo "$version-venv"; else echo python3-venv; fi
}

missing_programs() {  # EXTRA: package names, empty when nothing is missing
  local list=()
  [ "$1" != test ] || command -v shellcheck >/dev/null || list+=(shellcheck)
  [ "$1" != test ] || command -v ruby >/dev/null || list+=(ruby)
  [ "$1" != test ] || command -v groff >/dev/null || list+=(groff-base)
  command -v nft >/dev/null || list+=(nftables)
  PATH=$PATH:/sbin:/usr/sbin ldconfig -p | grep -q "libnftables.so.1 " || list+=(libnftables1)
  command -v ip >/dev/null || list+=(iproute2)
  command -v setpriv >/dev/null || list+=(util-linux)
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || list+=(debian-archive-keyring)
  [ -e /etc/ssl/certs/ca-certificates.crt ] || list+=(ca-certificates)
  if [ "$1" = test ] && is_root; then  # who is not root boots no hosts
    command -v mmdebstrap >/dev/null || list+=(mmdebstrap)
    command -v systemd-nspawn >/dev/null || list+=(systemd-container)
    PATH=$PATH:/usr/sbin command -v dnsmasq >/dev/null || list+=(dnsmasq-base)
    command -v sysctl >/dev/null || list+=(procps)
    command -v musl-gcc >/dev/null || list+=(musl-tools gcc)
    command -v openssl >/dev/null || list+=(openssl)
  fi
  echo "${list[*]}"
}

apt() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@" >&2
}

install_packages() {  # NAME...
  is_root || die "missing on this machine: $*. Run it once with sudo, or: sudo apt-get install $*"
  command -v apt-get >/dev/null || die "missing on this machine: $*, and there is no apt-get to install it with"
  say "Installing from the distribution: $*"
  apt install --no-install-recommends "$@" || die "apt-get could not install: $*"
}

lists_are_fresh=false
update_lists() {
  if $lists_are_fresh || ! is_root || ! command -v apt-get >/dev/null; then return; fi
  lists_are_fresh=true
  say "Asking the package mirror what there is ..."
  apt update || say "warning: apt-get update failed in part; going on with what is known"
}

# shellcheck disable=SC2046,SC2086 # package names are words
ensure_programs() {  # EXTRA
  local packages
  packages=$(missing_programs "$1")
  [ -n "$packages" ] || return 0
  if [ "$1" = test ] && ! is_root; then
    say "Missing, so what needs it is skipped: $packages"
    return
  fi
  update_lists
  install_packages $packages
}

# shellcheck disable=SC2086
ensure_python() {
  local python packages
  if ! python=$(find_python); then
    update_lists
    packages=$(python_packages)
    install_packages $packages
    python=$(find_python) || die "no Python 3.11 or newer after installing $packages"
  fi
  packages=$("$python" -c 'import ensurepip, venv' 2>/dev/null || venv_package "$python")
  if [ -n "$packages" ]; then
    update_lists
    install_packages $packages
  fi
}

set_up() {  # EXTRA (may be empty): packages, then the virtual environment; quick when pyproject.toml has not changed
  local extra=$1 stamp want
  stamp=$venv/.penstock-setup${extra:+-$extra}
  want="$(sha256sum <"$checkout/pyproject.toml" | cut -d' ' -f1) $checkout"
  exec 9<"$checkout"
  flock 9  # two at once would install into each other
  ensure_programs "$extra"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] || ! works "$venv/bin/python" || ! [ -x "$venv/bin/penstock" ]; then
    ensure_python
    make_environment "$extra" "$stamp"
    printf '%s\n' "$want" | as_owner tee "$stamp" >/dev/null
  fi
  exec 9<&-
}

make_environment() {  # EXTRA STAMP
  local made_for
  # Its scripts name the interpreter by its full path: a checkout that was moved needs a new one.
  made_for=$(cut -d' ' -f2- "$2" 2>/dev/null || echo "$checkout")
  if ! works "$venv/bin/python" || [ "$made_for" != "$checkout" ]; then
    say "Making a virtual environment in $venv ..."
    as_owner "$(find_python)" -m venv --clear "$venv" || die "could not make $venv"
  fi
  say "Installing penstock and its libraries into $venv ..."
  as_owner "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    -e "$checkout${1:+[$1]}" >&2 || die "pip could not install penstock; see above"
}
