#!/bin/sh
# Load the last good rules: floor, or floor again.
#
# Before the network is up, without Python, and always ending with 0: services that penstock governs wait for this,
# and must start even when the rules cannot be loaded; then they get a table that denies them everything.
#
# A floor file is an nft script behind these lines:
#   # penstock floor 1 sha256:HEX     of all that follows this line
#   # policy HASH
#   # cgroup PATH                     below the cgroup2 mount, one line each; made if missing, as rules name them
#
# `again` is for those who flushed all rules: a daemon that is alive mends that itself, and it knows more than the
# floor does (cgroups bound where they are, rules that end), so only what it has not mended soon is loaded.
set -u
LC_ALL=C
export LC_ALL

state=${PENSTOCK_STATE:-/var/lib/penstock}
run=${PENSTOCK_RUN:-/run/penstock}
lib=${PENSTOCK_LIB:-/usr/lib/penstock}
cgroup=${PENSTOCK_CGROUP:-/sys/fs/cgroup}
max_bytes=268435456

say() { printf '<%s>penstock floor: %s\n' "$1" "$2" >&2; }  # the journal reads the number as a priority

# The file is descriptor 3: the daemon may replace it meanwhile, and each program below must read the same one.
header() { sed -n -e '1d' -e '/^[^#]/q' -e "s/^# $1 //p" /proc/self/fd/3; }  # KEY: its values, a line each

policy() {  # its hash; nothing when that is no word
  hash=$(header policy | head -n 1)
  case $hash in *[!0-9A-Za-z._:-]*) ;; *) printf '%.100s' "$hash" ;; esac
}

is_whole() {  # does its first line tell the sum of the rest?
  said=$(head -n 1 /proc/self/fd/3 | head -c 200)
  case $said in "# penstock floor 1 sha256:"*) ;; *) return 1 ;; esac
  sum=$(tail -n +2 /proc/self/fd/3 | sha256sum) || return 1
  [ "${said##*:}" = "${sum%% *}" ]
}

is_ours() {  # PATH: penstock.slice, or something in it; nothing that climbs or hides
  case $1 in '' | /* | */ | *//* | .* | */.* | *[!A-Za-z0-9_.:@\\/-]*) return 1 ;; esac
  case /$1/ in */penstock.slice/*) return 0 ;; esac
  return 1
}

make_cgroups() {
  header cgroup | while IFS= read -r path; do
    is_ours "$path" || exit 1
    [ -d "$cgroup/$path" ] || mkdir -p -- "$cgroup/$path" || exit 1
  done
}

load() {  # FILE SECONDS: prints the policy's hash, or why not
  if ! [ -f "$1" ]; then echo "there is no $1"; return 1; fi
  if ! [ -r "$1" ]; then echo "$1 cannot be read"; return 1; fi
  (
    exec 3<"$1"
    if [ "$(wc -c </proc/self/fd/3)" -gt "$max_bytes" ]; then echo "$1 is too big"; exit 1; fi
    if ! is_whole; then echo "$1 is damaged"; exit 1; fi
    hash=$(policy)
    if [ -z "$hash" ]; then echo "$1 names no policy"; exit 1; fi
    if ! make_cgroups; then echo "a cgroup of $1 cannot be made"; exit 1; fi
    # What is there under one of our names may be something else: then all of it goes first.
    if ! timeout -k 5 "$2" nft -f /proc/self/fd/3 2>/dev/null &&
      ! error=$({ echo 'add table inet penstock'; echo 'delete table inet penstock'; tail -n +1 /proc/self/fd/3; } |
        timeout -k 5 "$2" nft -f - 2>&1); then
      error=$(printf '%s\n' "$error" | head -n 1 | tr -dc '[:print:]' | head -c 300)
      echo "nft refused $1: ${error:-no answer}"
      exit 1
    fi
    echo "$hash"
  )
}

tell() {  # the daemon shows this line as a finding
  {
    [ -d "$run" ] || mkdir -m 0700 -- "$run"  # which fails when systemd-tmpfiles made it a moment ago
    if printf '%s\n' "$1" >"$run/floor.new" && mv -f -- "$run/floor.new" "$run/floor"; then return; fi
  } 2>/dev/null
  say 4 "could not write $run/floor"
}

is_alive() { [ -e "$run/lock" ] && ! flock -n "$run/lock" true; }

is_mended() {
  tries=0
  until nft list counter inet penstock penstock-agent-1 >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 10 ] || return 1
    sleep 0.05
  done
}

if [ "${1:-}" = again ] && is_alive && is_mended; then
  exit 0
fi
file=$state/floor.nft
if [ -d "$state" ] && ! [ -e "$state/applied.json" ] && ! [ -e "$file" ]; then
  file=$lib/floor-deny.nft  # nothing was ever applied, and that is not a mishap
fi
if hash=$(load "$file" 60); then
  say 6 "loaded policy $hash"
  tell "loaded $hash"
elif reason=$hash && hash=$(load "$lib/floor-deny.nft" 20); then
  say 3 "$reason: governed services are denied everything until the daemon runs, or: penstock apply"
  tell "deny-all $reason"
else
  say 2 "$reason; and $hash: NO RULES ARE LOADED"
  tell "failed $reason; and $hash"
fi
exit 0
