#!/bin/bash
# Usage: systemd/install.sh [--download DIR] [--offline DIR]
#
# Install penstock as services of this host, or bring an installed one to this version.  Run as root; asks nothing.
#   --download DIR   install nothing: put what a host like this one needs into DIR, for a host without a way out
#   --offline DIR    install from such a DIR, and use no network
set -eu
umask 022
# shellcheck source=agent/setup.sh
. "$(dirname "$(readlink -f "$0")")/../agent/setup.sh"
# shellcheck source=systemd/preflight.sh
. "$checkout/systemd/preflight.sh"
# shellcheck source=systemd/bundle.sh
. "$checkout/systemd/bundle.sh"

lib=/usr/lib/penstock units=/usr/lib/systemd/system
unit_places=(/etc/systemd/system /run/systemd/system /usr/local/lib/systemd/system "$units" /lib/systemd/system)
manifest=$lib/manifest
manifest_title='# Every path that penstock installed, one a line.  A directory ends with a slash.'
services=(penstock-floor.service penstock-floor-again.service penstock.service)
completions=(
  "bash /usr/share/bash-completion/completions/penstock"
  "zsh /usr/share/zsh/vendor-completions/_penstock"
  "fish /usr/share/fish/vendor_completions.d/penstock.fish"
)
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
wrong_usage() { say "error: $*; see: $0 --help"; exit 2; }

read_options() {
  download='' offline=''
  while [ $# -gt 0 ]; do
    case $1 in
      -h | --help) usage; exit 0 ;;
      --download=* | --offline=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
      --download | --offline)
        [ -n "${2-}" ] || wrong_usage "$1 needs a directory"
        if [ "$1" = --download ]; then download=$2; else offline=$2; fi
        shift 2 ;;
      *) wrong_usage "unknown option $(printf %q "$1")" ;;
    esac
  done
  [ -z "$download" ] || [ -z "$offline" ] || wrong_usage "--download and --offline are for two machines"
  # Who runs the copy in a bundle means that bundle.
  if [ -z "$download$offline" ] && [ -e "$checkout/bundle" ]; then offline=$checkout; fi
}

# --- what is installed where ---

files() {  # MODE FROM TO, one a line; FROM is below the source, or absolute
  local name to
  echo "0755 systemd/floor.sh $lib/floor"
  echo "0644 systemd/floor-deny.nft $lib/floor-deny.nft"
  (cd "$source/rules" && find presets examples monitoring -name '*.yaml' -o -name '*.conf' -o -name '*.json') | LC_ALL=C sort |
    while read -r name; do echo "0644 rules/$name $lib/$name"; done
  for name in "${services[@]}" penstock.slice penstock-.slice.d/10-penstock.conf; do
    echo "0644 systemd/$name $units/$name"
  done
  echo "0755 systemd/sleep.sh /usr/lib/systemd/system-sleep/penstock"
  echo "0644 systemd/tmpfiles.conf /usr/lib/tmpfiles.d/penstock.conf"
  echo "0644 systemd/penstock.8 /usr/share/man/man8/penstock.8"
  for name in "${completions[@]}"; do
    read -r name to <<<"$name"
    echo "0644 $work/completion.$name $to"
  done
}

paths() { files | cut -d' ' -f3; echo /usr/bin/penstock; echo "$lib/current"; }

installed() { [ -e "$manifest" ] && grep -Fxq -e "$1" "$manifest"; }  # PATH

missing_directories() {  # of those paths, with a slash at the end
  local path
  paths | while read -r path; do
    while path=${path%/*} && [ -n "$path" ] && ! [ -d "$path" ]; do echo "$path/"; done
  done
}

write_manifest() {  # stdin: paths
  { echo "$manifest_title"; LC_ALL=C sort -u; } >"$manifest.new"
  if cmp -s "$manifest.new" "$manifest"; then rm "$manifest.new"; else mv -fT "$manifest.new" "$manifest"; fi
}

put() {  # MODE FROM TO: as a whole, and only if it differs
  if [ "$(stat -c %a "$3" 2>/dev/null)" = "${1#0}" ] && ! [ -L "$3" ] && cmp -s "$2" "$3"; then return; fi
  install -D -m "$1" "$2" "$3.penstock-new"
  mv -fT "$3.penstock-new" "$3"
}

link() {  # TARGET NAME
  [ "$(readlink "$2")" = "$1" ] || { ln -sfn "$1" "$2.penstock-new" && mv -fT "$2.penstock-new" "$2"; }
}

# --- the program ---

system_python() {  # one that stays when a user goes
  local name
  for name in /usr/bin/python3 /usr/bin/python3.{14,13,12,11} /usr/local/bin/python3; do
    if works "$name" && "$name" -c 'import ctypes, venv' 2>/dev/null; then echo "$name"; return; fi
  done
  return 1
}

python_facts() { "$1" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())'; }

checkout_content() {  # what was written by us, as one number
  local list
  list=$(cd "$checkout" && find agent/penstock agent/setup.sh rules systemd pyproject.toml -type f \
    ! -path '*/__pycache__/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) || die "$checkout cannot be read"
  sha256sum <<<"$list" | cut -d' ' -f1
}

checkout_version() { sed -n 's/^version = "\(.*\)"$/\1/p' "$checkout/pyproject.toml"; }

release_id() {  # names code, libraries as far as they are known, and the Python that they are for
  local sum
  sum=$({ echo "$content"; python_facts "$python"; [ -z "$offline" ] || ls "$offline/wheels"; } | sha256sum)
  echo "$version-${sum:0:12}"
}

# Every package that is downloaded is downloaded here; a venv needs no pip of its own then.
make_wheels() {  # DIR
  say "Getting penstock's libraries ..."
  "$python" -m venv "$work/builder" || die "$python cannot make a virtual environment"
  "$work/builder/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-input --progress-bar off \
    --wheel-dir "$1" "$checkout" pip >&2 || die "pip could not get penstock's libraries; see above"
}

clean() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/nonexistent "$@"; }

build_release() {  # where it will stay, as its scripts name their Python; `complete` is written last
  local release=$lib/releases/$id wheels=$offline/wheels
  if [ -e "$release/complete" ] && works "$release/bin/python"; then return; fi
  if [ -z "$offline" ]; then
    wheels=$work/wheels
    make_wheels "$wheels"
  fi
  say "Installing penstock $id into $release ..."
  rm -rf "$release"
  mkdir -p "$lib/releases"
  clean "$python" -m venv --without-pip "$release" || die "$python cannot make a virtual environment"
  clean "$release/bin/python" "$(echo "$wheels"/pip-*.whl)/pip" --isolated install --quiet --no-index \
    --no-cache-dir --find-links "$wheels" --no-input --progress-bar off --root-user-action ignore penstock >&2 ||
    die "pip could not install penstock; see above"
  clean "$release/bin/python" -m compileall -q "$release/lib" >&2 || die "penstock does not compile"
  clean "$release/bin/penstock" --version >/dev/null || die "the installed penstock does not run"
  sync -f "$release"
  touch "$release/complete"
}

write_completions() {
  local shell to
  for to in "${completions[@]}"; do
    read -r shell to <<<"$to"
    clean "_PENSTOCK_COMPLETE=${shell}_source" "$lib/releases/$id/bin/penstock" >"$work/completion.$shell" ||
      die "the completion for $shell could not be made"
  done
}

# --- packages of the distribution ---

missing_packages() {
  command -v nft >/dev/null || echo nftables
  ldconfig -p | grep -q "libnftables.so.1 " || echo libnftables1
}

ensure_packages() {
  local missing
  missing=$(missing_packages)
  if [ -n "$offline" ]; then
    [ -z "$missing" ] || install_debs
    return
  fi
  if ! python=$(system_python); then
    update_lists
    missing="$missing $(python_packages)"
  elif ! "$python" -c 'import ensurepip' 2>/dev/null; then
    missing="$missing $(venv_package "$python")"
  fi
  # shellcheck disable=SC2086 # package names are words
  if [ -n "${missing// /}" ]; then
    update_lists
    install_packages $missing
    python=$(system_python) || die "no Python 3.11 or newer after installing" $missing
  fi
}

# --- installing ---

install_files() {
  local mode from to
  files | while read -r mode from to; do
    case $from in /*) ;; *) from=$source/$from ;; esac
    put "$mode" "$from" "$to"
  done
  mkdir -p /etc/penstock/rules.d
  [ -e /etc/penstock/penstock.yaml ] || put 0644 "$source/systemd/penstock.yaml" /etc/penstock/penstock.yaml
  # When it was put in use: the one before is kept.
  [ "$(readlink "$lib/current")" = "releases/$id" ] || touch "$lib/releases/$id/complete"
  link "releases/$id" "$lib/current"
  link "$lib/current/bin/penstock" /usr/bin/penstock
}

remove_obsolete() {  # OLD: the manifest before
  local path
  grep '^/.*[^/]$' "$1" | while read -r path; do
    grep -Fxq -e "$path" "$manifest" || rm -f "$path"
  done
}

remove_releases() {  # all but this one and the one that was in use before it
  local before='' release
  for release in "$lib"/releases/*; do
    [ "$release" != "$lib/releases/$id" ] || continue
    if [ -z "$before" ] || [ "$release/complete" -nt "$before/complete" ]; then before=$release; fi
  done
  for release in "$lib"/releases/*; do
    case $release in "$lib/releases/$id" | "$before") ;; *) rm -rf "$release" ;; esac
  done
}

running_release() {  # the daemon's interpreter names it; nothing when no daemon runs
  local pid
  pid=$(systemctl show --property=MainPID --value penstock.service)
  [ "${pid:-0}" != 0 ] || return 0
  tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | sed -n "1s|^$lib/releases/\([^/]*\)/.*|\1|p"
}

start() {
  # An uninstallation waits for the end of services to remove the cgroups that are used again from here on.
  systemctl --quiet stop penstock-leftovers.path 2>/dev/null || true
  rm -f /run/systemd/system/penstock-leftovers.*
  systemctl daemon-reload
  systemd-tmpfiles --create /usr/lib/tmpfiles.d/penstock.conf
  systemctl --quiet enable "${services[@]}" 2>"$work/enable" ||
    die "the services cannot be enabled: $(head -n 1 "$work/enable")"
  # Never again once it is up: services that are governed require it, and would be restarted with it.
  systemctl --quiet is-active penstock-floor.service || systemctl start penstock-floor.service
  if [ "$(running_release)" = "$id" ]; then return; fi
  restarted=true
  systemctl restart penstock.service || true  # systemd tries again by itself; answering is what counts
}

wait_for_answer() {
  local deadline=$((SECONDS + 60)) status
  while true; do
    status=0
    clean /usr/bin/penstock status >/dev/null 2>&1 || status=$?
    [ "$status" = 2 ] || return 0  # 0 and 1 are answers
    [ "$SECONDS" -lt "$deadline" ] ||
      die "penstock is installed, but its daemon does not answer; see: journalctl -u penstock.service"
    sleep 0.2
  done
}

report() {
  if ! $restarted; then
    echo "unchanged: penstock $id is installed and running"
    return
  fi
  echo "installed penstock $id in $SECONDS s"
  echo "  penstock.service        running, and started at boot; stopping it changes no rule"
  echo "  penstock-floor.service  loads the last good rules at boot, before the network is up"
  echo "  /etc/penstock           your rules; nothing is governed before they say so"
  echo "  to remove all of it     sudo penstock uninstall"
  echo "next: sudo penstock protect UNIT    for instance ollama.service; it restarts nothing"
}

main() {
  local old
  read_options "$@"
  work=$(mktemp -d) download=${download%/}
  if [ -n "$download" ]; then
    make_bundle
    return
  fi
  source=$checkout restarted=false
  check_host
  if [ -n "$offline" ]; then
    offline=$(readlink -f "$offline") || die "there is no $offline"
    source=$offline
    python=$(system_python) || die "no Python 3.11 or newer here; install the package python3"
    check_bundle
  else
    version=$(checkout_version) content=$(checkout_content)
  fi
  check_nobody_else
  ensure_packages
  check_table
  id=$(release_id)
  old=$work/manifest
  mkdir -p "$lib"
  grep '^/' "$manifest" 2>/dev/null | LC_ALL=C sort -u >"$old" || true
  # Before anything else: who is interrupted here finds at the next time that all of this is ours.
  { cat "$old"; paths; missing_directories; } | write_manifest
  build_release
  write_completions
  install_files
  { grep '/$' "$manifest" || true; paths; } | write_manifest
  remove_obsolete "$old"
  start
  wait_for_answer
  remove_releases
  report
}

main "$@"
