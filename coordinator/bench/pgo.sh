#!/bin/sh
# Makes coordinator/cmd/lockstep/default.pgo anew: the profile that the compiler optimises the coordinator by. It loads a
# private coordinator through each API for ten seconds and merges the CPU profiles. Run it by `make pgo`.
set -eu
bin=${1:?the directory with lockstep, bench-participants and bench-load}
out=${2:?the file to write}
dir=$(mktemp -d /var/tmp/lockstep-pgo.XXXXXX)
pids=
trap 'for p in $pids; do kill "$p" 2>/dev/null || true; done; wait; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
h=127.0.0.1
"$bin/bench-participants" -http-addr $h:18181 -grpc-addr $h:18182 & pids="$pids $!"
"$bin/lockstep" serve --embedded --data-dir "$dir/data" --http-addr $h:18183 --grpc-addr $h:18184 --admin-addr $h:18185 >"$dir/log" 2>&1 & pids="$pids $!"
i=0
until curl -fs "http://$h:18185/readyz" >/dev/null; do
	i=$((i + 1))
	[ $i -lt 300 ] || { echo "the coordinator is not ready:"; cat "$dir/log"; exit 1; }
	sleep 0.1
done
for api in http grpc native native-batch; do
	at=$h:18184
	[ $api != http ] || at=http://$h:18183/api/dtmsvr
	"$bin/bench-load" -api $api -clients 64 -coordinator $at -participants-http $h:18181 -participants-grpc $h:18182 -duration 11s >/dev/null & load=$!
	curl -fs -o "$dir/$api.prof" "http://$h:18185/debug/pprof/profile?seconds=10"
	wait $load
done
go tool pprof -proto -output "$out" "$dir"/*.prof
