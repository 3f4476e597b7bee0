package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// installed holds the paths of the programs the servers need; empty where one is missing.
type installed struct {
	postgres, initdb         string
	mariadbd, mariadbInstall string
	myPrintDefaults          string // mariadb-install-db calls it
	redis                    string
	java, mvn                string
	spin, cc                 string // for the model of the protocol, and for the race detector
	jars                     bool   // Kafka's, in the cache: Maven is not needed any more
	docker                   string // where an engine answers: then nothing above is needed
}

// find looks where Debian puts the programs, then in PATH. PostgreSQL 15 comes before other versions.
func find() installed {
	var have installed
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.SortFunc(dirs, func(a, b string) int {
		if is15 := strings.Contains(a, "/15/"); is15 != strings.Contains(b, "/15/") {
			if is15 {
				return -1
			}
			return 1
		}
		return strings.Compare(b, a)
	})
	have.initdb = program("initdb", dirs...)
	if have.initdb != "" {
		// Both from one version. In PATH the two may be links; initdb finds its server beside the real one.
		real, err := filepath.EvalSymlinks(have.initdb)
		if err == nil {
			have.postgres = program("postgres", filepath.Dir(real))
		}
	}
	have.mariadbd = program("mariadbd", "/usr/sbin", "/usr/local/sbin")
	have.mariadbInstall = program("mariadb-install-db", "/usr/bin")
	have.myPrintDefaults = program("my_print_defaults", "/usr/bin")
	have.redis = program("redis-server", "/usr/bin")
	have.java = program("java", "/usr/bin")
	have.mvn = program("mvn", "/usr/bin")
	have.spin, have.cc = program("spin", "/usr/bin"), program("cc", "/usr/bin")
	have.jars = haveJars()
	return have
}

func program(name string, dirs ...string) string {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

// missing returns the Debian packages to install. mariadb-server-core is the server without the service.
func (h installed) missing() []string {
	var pkgs []string
	if h.postgres == "" || h.initdb == "" {
		pkgs = append(pkgs, "postgresql")
	}
	if h.mariadbd == "" || h.mariadbInstall == "" {
		pkgs = append(pkgs, "mariadb-server-core")
	}
	if h.myPrintDefaults == "" {
		pkgs = append(pkgs, "mariadb-client-core")
	}
	if h.redis == "" {
		pkgs = append(pkgs, "redis-server")
	}
	if h.java == "" {
		pkgs = append(pkgs, "default-jre-headless")
	}
	if h.mvn == "" && !h.jars {
		pkgs = append(pkgs, "maven")
	}
	if h.spin == "" {
		pkgs = append(pkgs, "spin")
	}
	if h.cc == "" {
		pkgs = append(pkgs, "gcc", "libc6-dev")
	}
	return pkgs
}

// describe says what is there and, unless that is refused, what will be done.
func (h installed) describe(w io.Writer, refused error) {
	if h.docker != "" {
		fmt.Fprintf(w, "  %-11s %s, its engine answers (%s=packages uses Debian's packages instead)\n", "Docker", h.docker, wayVariable)
		fmt.Fprintf(w, "  %-11s three members, built from go.mod\n", "etcd")
		fmt.Fprintln(w, "will fetch what is missing of the images postgres:15, mariadb:10.11, redis:7, apache/kafka:"+kafkaVersion)
		fmt.Fprintln(w, "will start, on free ports of 127.0.0.1, with docker compose: postgres, mariadb, redis, redis (appendfsync always), kafka; as processes: etcd x 3")
		return
	}
	for _, p := range []struct{ name, path string }{{"PostgreSQL", h.postgres}, {"MariaDB", h.mariadbd}, {"Redis", h.redis}, {"Java", h.java}, {"Spin", h.spin}} {
		if p.path == "" {
			p.path = "missing"
		}
		fmt.Fprintf(w, "  %-11s %s\n", p.name, p.path)
	}
	fmt.Fprintf(w, "  %-11s three members, built from go.mod\n", "etcd")
	jars := "Apache Kafka " + kafkaVersion + ", its jars are in the cache"
	if !h.jars {
		jars = "Apache Kafka " + kafkaVersion + ", its jars (44 MB) will be fetched with Maven"
	}
	fmt.Fprintf(w, "  %-11s %s\n", "Kafka", jars)
	if refused != nil {
		return // the error says it all
	}
	if pkgs := h.missing(); len(pkgs) > 0 {
		fmt.Fprintf(w, "will install Debian packages: %s\n", strings.Join(pkgs, " "))
	} else {
		fmt.Fprintln(w, "nothing to install")
	}
	fmt.Fprintln(w, "will start, on free ports of 127.0.0.1 with their data in a directory of their own: postgres, mariadb, redis, redis (appendfsync always), etcd x 3, kafka")
}

// asRoot returns the prefix that runs a command as root, or an error if there is no right to.
func asRoot(ctx context.Context) ([]string, error) {
	if os.Geteuid() == 0 {
		return nil, nil
	}
	if exec.CommandContext(ctx, "sudo", "-n", "true").Run() == nil {
		return []string{"sudo", "-n"}, nil
	}
	return nil, errors.New("neither root nor sudo without a password")
}

// mayInstall returns nil if nothing is missing or what is missing can be installed; else the exact list.
func (h installed) mayInstall(ctx context.Context) error {
	pkgs := h.missing()
	if len(pkgs) == 0 {
		return nil
	}
	_, root := asRoot(ctx)
	_, apt := exec.LookPath("apt-get")
	return refusal(pkgs, root, apt)
}

// refusal is nil if the packages may be installed; root and apt say why not, or nil. It names every package, in the
// command that somebody who may can paste.
func refusal(pkgs []string, root, apt error) error {
	why := root
	if apt != nil {
		why = errors.New("no apt-get here")
	}
	if len(pkgs) == 0 || why == nil {
		return nil
	}
	list := strings.Join(pkgs, " ")
	return fmt.Errorf("missing: %s (%w)\nnext: apt-get install --no-install-recommends %s", list, why, list)
}

// faketime installs libfaketime where it is not there and that is allowed. No server needs it: the chaos suite moves a server's clock
// by it, and skips that where it is not.
func faketime(ctx context.Context, progress io.Writer) {
	if found, err := filepath.Glob("/usr/lib/*/faketime/libfaketimeMT.so.1"); err == nil && len(found) > 0 {
		return
	}
	pkgs := []string{"libfaketime"}
	prefix, root := asRoot(ctx)
	_, apt := exec.LookPath("apt-get")
	err := refusal(pkgs, root, apt)
	if err == nil {
		err = apply(ctx, prefix, pkgs, progress)
	}
	if err != nil {
		fmt.Fprintf(progress, "without libfaketime: %v\n", err)
	}
}

// installScript installs "$@" without letting a package start a service or create a cluster, and takes its own
// precautions away again however it ends. What stood there before stays.
const installScript = `set -eu
policy=/usr/sbin/policy-rc.d
cluster=/etc/postgresql-common/createcluster.d/zz-lockstep-dev.conf
made=
dirs=
clean() { for f in $made; do rm -f "$f"; done; for d in $dirs; do rmdir "$d" 2>/dev/null || true; done; }
trap clean EXIT
trap 'exit 130' INT TERM HUP
if [ ! -e "$policy" ]; then made="$made $policy"; printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; fi
for d in /etc/postgresql-common/createcluster.d /etc/postgresql-common; do [ -d "$d" ] || dirs="$dirs $d"; done
mkdir -p "$(dirname "$cluster")"
made="$made $cluster"; echo 'create_main_cluster = false' >"$cluster"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o DPkg::Lock::Timeout=300 update
apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --no-install-recommends "$@"
# Nor may they start with the machine.
if command -v systemctl >/dev/null; then
  for p in "$@"; do case "$p" in postgresql|redis-server) systemctl disable "$p" >/dev/null 2>&1 || true;; esac; done
fi
`

// install installs what is missing and updates h. It stops at once, with the exact list, where it may not.
func (h *installed) install(ctx context.Context, progress io.Writer) error {
	pkgs := h.missing()
	if len(pkgs) == 0 {
		return nil
	}
	if err := h.mayInstall(ctx); err != nil {
		return err
	}
	prefix, err := asRoot(ctx)
	if err != nil {
		return err
	}
	if err := apply(ctx, prefix, pkgs, progress); err != nil {
		return err
	}
	if *h = find(); len(h.missing()) > 0 {
		return fmt.Errorf("still missing after installing: %s", strings.Join(h.missing(), " "))
	}
	return nil
}

// apply runs the script, with what prefix says to be root.
func apply(ctx context.Context, prefix, pkgs []string, progress io.Writer) error {
	fmt.Fprintf(progress, "installing Debian packages: %s\n", strings.Join(pkgs, " "))
	argv := append(append(prefix, "sh", "-c", installScript, "sh"), pkgs...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// An interrupted dpkg is worse than a late answer: the script hears of it and ends after dpkg.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("install %s: %w\n%s", strings.Join(pkgs, " "), err, b)
	}
	return nil
}
