#!/bin/sh
# previous.sh DIR: builds lockstep of the version before this one into DIR, for scenarios that run both: of the newest tag before this
# commit, or where there is none of the last commit of a week ago, or of fifty commits ago. Where the clone has none of these (it is
# shallow, or young) it says so, builds nothing, and succeeds: those scenarios are skipped then.
set -eu
mkdir -p "$1"
dir=$(cd "$1" && pwd)
rm -f "$dir/lockstep"
of=$(git describe --tags --abbrev=0 HEAD^ 2>/dev/null || git rev-list -1 --first-parent --before='1 week ago' HEAD)
if [ -z "$of" ]; then of=$(git rev-parse -q --verify 'HEAD~50^{commit}' || true); fi
if [ -z "$of" ]; then
	echo "no version before this one: no tag, and the clone has no commit of a week or of fifty commits ago" >&2
	exit 0
fi
tmp=$(mktemp -d)
trap 'git worktree remove --force "$tmp/src" 2>/dev/null || true; rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP
git worktree add -q --detach "$tmp/src" "$of"
version=$(git describe --tags --always "$of")
(cd "$tmp/src" && CGO_ENABLED=0 ${GO:-go} build -trimpath -ldflags "-X main.version=$version" -o "$dir/lockstep" ./coordinator/cmd/lockstep)
echo "the version before this one is $version, in $dir" >&2
