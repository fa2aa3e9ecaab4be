# Sourced by install.sh: what a host without a way out needs, in one directory.
# shellcheck disable=SC2154,SC2034 # variables of install.sh
#
#   bundle              facts: version, content, and the release, CPU and Python that it is for
#   sums                of all other files
#   agent/ systemd/ rules/    what install.sh itself reads, laid out as in a checkout
#   wheels/ debs/       penstock, its libraries and pip; nftables and its libraries

this_release() {
  # shellcheck disable=SC1091
  (. /etc/os-release && echo "${ID:-linux} ${VERSION_ID:-${VERSION_CODENAME:-rolling}}")
}

fact() { sed -n "s/^$1 //p" "$offline/bundle" | head -n 1; }  # NAME
demand() { [ "$1" = "$2" ] || die "the bundle is for $1, this is $2"; }

make_bundle() {
  local partial=$download.partial facts
  if [ -e "$download" ] && ! [ -e "$download/bundle" ] && [ -n "$(ls -A "$download" 2>&1)" ]; then
    die "$download is there already and is no bundle; name another directory"
  fi
  [ ! -e "$checkout/bundle" ] || die "this is a bundle; make another one from a checkout"
  python=$(system_python) || die "no Python 3.11 or newer here; install the package python3"
  "$python" -c 'import ensurepip' 2>/dev/null || die "missing on this machine: $(venv_package "$python")"
  facts=$(python_facts "$python")
  rm -rf "$partial"
  mkdir -p "$partial"/{agent,debs} || die "$partial cannot be made"
  make_wheels "$partial/wheels"
  download_debs "$partial/debs"
  cp "$checkout/agent/setup.sh" "$partial/agent/"
  cp -R "$checkout/systemd" "$checkout/rules" "$partial/"
  printf '%s\n' "version $(checkout_version)" "content $(checkout_content)" "release $(this_release)" \
    "cpu ${facts#* }" "python ${facts% *}" >"$partial/bundle"
  (cd "$partial" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) >"$work/sums"
  mv "$work/sums" "$partial/sums"
  rm -rf "$download"
  mv -T "$partial" "$download"
  echo "made $download, for hosts with $(this_release), ${facts#* }, Python ${facts% *}"
  echo "next, on such a host: sudo $(basename "$download")/systemd/install.sh"
}

depends_on() {  # PACKAGE: all that it needs, itself included
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances "$1" 2>/dev/null | grep '^[a-z0-9]' | cut -d: -f1 | sort -u
}

download_debs() {  # DIR
  local names
  if ! command -v apt-get >/dev/null; then
    say "No apt-get here: the host must have nftables already."
    return
  fi
  update_lists
  # Every host has a C library.
  names=$(comm -23 <(depends_on nftables) <(depends_on libc6))
  [ -n "$names" ] || die "apt does not know nftables; run once: sudo apt-get update"
  say "Getting nftables and its libraries ..."
  # shellcheck disable=SC2086 # package names are words
  (cd "$1" && apt-get -q -q download $names >&2) || die "apt-get could not download nftables; see above"
}

check_bundle() {
  local facts
  [ -e "$offline/bundle" ] || die "$offline is no bundle; make one with: $0 --download DIR"
  facts=$(python_facts "$python")
  demand "$(fact release)" "$(this_release)"
  demand "$(fact cpu)" "${facts#* }"
  demand "Python $(fact python)" "Python ${facts% *}"
  (cd "$offline" && sha256sum --quiet --check sums) >"$work/sums" 2>/dev/null ||
    die "the bundle is damaged: $(head -n 1 "$work/sums" | grep . || echo sums)"
  version=$(fact version) content=$(fact content)
}

install_debs() {
  local deb list=()
  for deb in "$offline"/debs/*.deb; do
    [ -e "$deb" ] || die "missing on this host: nftables, and the bundle has none"
    dpkg-query -W -f '${Status}\n' "$(dpkg-deb -f "$deb" Package)" 2>/dev/null | grep -qx 'install ok installed' ||
      list+=("$deb")
  done
  say "Installing from the bundle: nftables"
  DEBIAN_FRONTEND=noninteractive dpkg -i "${list[@]}" >&2 || die "dpkg could not install nftables; see above"
}
