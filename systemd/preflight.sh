# Sourced by install.sh: whether penstock can be installed here.  Nothing here changes anything, and each check
# ends the installation with one sentence.
# shellcheck disable=SC2154 # variables of install.sh

check_host() {
  local place
  is_root || die "installing needs root; run: sudo $0"
  [ -d /run/systemd/system ] || die "this host does not run systemd, and penstock is installed as its service"
  [ -e /sys/fs/cgroup/cgroup.controllers ] ||
    die "this host does not have cgroup v2 alone; boot it with systemd.unified_cgroup_hierarchy=1"
  for place in /etc /etc/systemd/system /usr/bin /usr/lib "$units" /usr/share /var/lib /var/log; do
    if [ -e "$place" ] && ! [ -w "$place" ]; then die "$place is read-only"; fi
  done
  exec 8</usr/lib
  flock -n 8 || die "another installation is running"
}

is_empty() {  # not there, or with a fleet's drop-ins only, or what an interrupted installation had made
  if [ -L "$1" ] || ! [ -e "$1" ]; then ! [ -L "$1" ]; return; fi
  [ -d "$1" ] || return 1
  [ -z "$(find "$1" -mindepth 1 -maxdepth 1 ! -name manifest.new ! -name rules.d ! -name penstock.d -print -quit)" ]
}

check_nobody_else() {
  local path
  if ! grep -Fxqs -e "$manifest_title" "$manifest" && ! is_empty "$lib"; then
    die "$lib is there already and is not penstock's; move it away"
  fi
  paths >"$work/paths"
  while read -r path; do
    if [ -e "$path" ] || [ -L "$path" ]; then
      installed "$path" || die "$path is there already and was not put there by this installer; move it away"
    fi
  done <"$work/paths"
  # Later on, files in these places are how an administrator changes ours.
  [ -e "$manifest" ] || check_units
  check_cgroup
  check_daemon
}

check_units() {
  local place path
  for place in "${unit_places[@]}"; do
    for path in "$place"/penstock.slice{,.d} "$place"/penstock-*.slice{,.d} \
      "$place"/penstock{,-floor,-floor-again}.service{,.d}; do
      [ -e "$path" ] || [ -L "$path" ] || continue
      die "$path is there already and is not penstock's; rename that unit"
    done
  done
}

check_cgroup() {
  local path
  for path in /sys/fs/cgroup/penstock.slice/*/; do
    case ${path%/} in
      */\* | */penstock-*.slice | */proof-*) ;;
      *) die "the cgroup ${path%/} is not penstock's; stop what runs in it" ;;
    esac
  done
}

check_daemon() {
  [ -e /run/penstock/lock ] && ! flock -n /run/penstock/lock true || return 0
  systemctl --quiet is-active penstock.service ||
    die "a penstock daemon runs here that is no service; end it first"
}

check_table() {
  command -v nft >/dev/null || return 0
  if nft -t list tables inet 2>/dev/null | grep -Fxq 'table inet penstock' &&
    ! nft list counter inet penstock penstock-agent-1 >/dev/null 2>&1; then
    die "the nftables table inet penstock is there already and is not penstock's; rename it"
  fi
}
