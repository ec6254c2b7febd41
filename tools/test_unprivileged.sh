#!/bin/sh
# Runs `make test demo` as an ordinary user in a copy of the committed tree. Needs root, setpriv, git, and a
# Python >= 3.11 that this user may run (root's own may lie in root's home). The user has no entry in
# /etc/passwd and no cgroup: what it skips is what docs/known-limits.md lists.
set -eu
uid=${AGENTCUBE_TEST_UID:-21042}
as_user() { setpriv --reuid="$uid" --regid="$uid" --clear-groups --inh-caps=-all "$@"; }

python=
for candidate in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3 /usr/local/bin/python3; do
  path=$(command -v "$candidate" 2>/dev/null) || continue
  if (cd / && as_user "$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))') 2>/dev/null; then
    python=$path
    break
  fi
done
if [ -z "$python" ]; then
  echo "SKIPPED unprivileged tests: no Python >= 3.11 with venv that uid $uid may run"
  exit 0
fi

home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
chmod 755 "$home"
mkdir "$home/tree" "$home/tmp"
git archive HEAD | tar -x -C "$home/tree"
chown -R "$uid:$uid" "$home"
echo "as uid $uid with $python"
cd "$home/tree"
as_user env -u XDG_RUNTIME_DIR -u XDG_CONFIG_HOME -u XDG_DATA_HOME -u XDG_CACHE_HOME \
  HOME="$home" TMPDIR="$home/tmp" PATH="/usr/local/bin:/usr/bin:/bin" \
  make PYTHON="$python" test demo
