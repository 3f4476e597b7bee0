package channelfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// remote is a place that has files.
type remote interface {
	// list names the files that there are, with their sizes; -1 where the size is not known.
	list(ctx context.Context) (map[string]int64, error)
	open(ctx context.Context, name string) (io.ReadCloser, error)
	close() error
}

// Fetch brings the day's files (yyyymmdd; "" for every day there is) and their signatures into the directory inbox, and
// names those that are new there. A file appears under its name when it is complete. What is there with the same size is
// left as it is; loaded, if it says so of a name, keeps a file from being replaced.
func (m *Mapping) Fetch(ctx context.Context, day, inbox string, loaded func(name string) bool) (fetched []string, err error) {
	from, err := m.remote(ctx, day)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.close()) }()
	have, err := from.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if err := os.MkdirAll(inbox, 0o700); err != nil {
		return nil, err
	}
	var names []string
	for name := range have {
		of, _, err := m.DayOf(name)
		if err == nil && (day == "" || of == day) && !loaded(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		to := filepath.Join(inbox, name)
		if st, err := os.Stat(to); err == nil && st.Size() == have[name] {
			continue
		}
		parts := []string{name}
		if m.Signature.Type != "none" {
			parts = []string{name + SignatureSuffix, name} // the file last: where it is, its signature is
		}
		for _, part := range parts {
			if err := bring(ctx, from, part, filepath.Join(inbox, part)); err != nil {
				return fetched, fmt.Errorf("source: %s: %w", part, err)
			}
		}
		fetched = append(fetched, name)
	}
	return fetched, nil
}

// bring copies one file, complete or not at all.
func bring(ctx context.Context, from remote, name, to string) error {
	r, err := from.open(ctx, name)
	if err != nil {
		return err
	}
	defer r.Close()
	tmp, err := os.CreateTemp(filepath.Dir(to), ".fetch-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, r)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), to)
}

// remote opens the mapping's source.
func (m *Mapping) remote(ctx context.Context, day string) (remote, error) {
	at := m.Source.URL
	switch {
	case at == "":
		return nil, errors.New("source.url: it is empty: a directory, https:// or sftp:// belongs there")
	case strings.HasPrefix(at, "https://"), strings.HasPrefix(at, "http://"):
		return m.overHTTP(day)
	case strings.HasPrefix(at, "sftp://"):
		return m.overSFTP(ctx)
	case strings.Contains(at, "://"):
		return nil, fmt.Errorf("source.url: %q: a directory, https:// or sftp:// belongs there", at)
	}
	return directory(at), nil
}

type directory string

func (d directory) list(context.Context) (map[string]int64, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			out[e.Name()] = info.Size()
		}
	}
	return out, nil
}

func (d directory) open(_ context.Context, name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(d), name))
}

func (directory) close() error { return nil }

// web is an HTTP source: it lists nothing, so that the files of a day are asked for by their names.
type web struct {
	client *http.Client
	token  string
	urls   map[string]string // by file name
}

func (m *Mapping) overHTTP(day string) (remote, error) {
	if day == "" {
		return nil, errors.New("day: an http source lists nothing; name the day that is to be fetched")
	}
	w := &web{client: &http.Client{Timeout: time.Hour}, urls: map[string]string{}}
	if m.Source.TokenFile != "" {
		raw, err := os.ReadFile(m.Source.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("source.token_file: %w", err)
		}
		w.token = strings.TrimSpace(string(raw))
	}
	for part := 1; part <= m.Parts; part++ {
		at := strings.NewReplacer("{day}", day, "{part}", strconv.Itoa(part)).Replace(m.Source.URL)
		u, err := url.Parse(at)
		if err != nil {
			return nil, fmt.Errorf("source.url: %w", err)
		}
		w.urls[path.Base(u.Path)] = at
	}
	return w, nil
}

func (w *web) get(ctx context.Context, method, at string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, at, nil)
	if err != nil {
		return nil, err
	}
	if w.token != "" {
		req.Header.Set("Authorization", "Bearer "+w.token)
	}
	return w.client.Do(req)
}

func (w *web) list(ctx context.Context) (map[string]int64, error) {
	out := map[string]int64{}
	for name, at := range w.urls {
		resp, err := w.get(ctx, http.MethodHead, at)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusOK:
			out[name] = resp.ContentLength
		case http.StatusNotFound: // it is not there yet
		default:
			return nil, fmt.Errorf("%s: %s", at, resp.Status)
		}
	}
	return out, nil
}

func (w *web) open(ctx context.Context, name string) (io.ReadCloser, error) {
	at, ok := w.urls[name]
	if !ok {
		at = w.urls[strings.TrimSuffix(name, SignatureSuffix)] + SignatureSuffix
	}
	resp, err := w.get(ctx, http.MethodGet, at)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", at, resp.Status)
	}
	return resp.Body, nil
}

func (w *web) close() error { w.client.CloseIdleConnections(); return nil }

// box is a directory behind SFTP.
type box struct {
	*sftp.Client
	ssh *ssh.Client
	dir string
}

func (m *Mapping) overSFTP(ctx context.Context) (remote, error) {
	u, err := url.Parse(m.Source.URL)
	if err != nil || u.Host == "" || u.User == nil {
		return nil, fmt.Errorf("source.url: %q: sftp://user@host:port/directory belongs there", m.Source.URL)
	}
	if m.Source.KnownHosts == "" {
		return nil, errors.New("source.known_hosts: it is empty: a file with the host's key belongs there; a host that is not checked could be anybody's")
	}
	check, err := knownhosts.New(m.Source.KnownHosts)
	if err != nil {
		return nil, fmt.Errorf("source.known_hosts: %w", err)
	}
	raw, err := os.ReadFile(m.Source.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("source.key_file: %w", err)
	}
	key, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("source.key_file: %w", err)
	}
	host := u.Host
	if u.Port() == "" {
		host += ":22"
	}
	conn, err := sshDial(ctx, host, &ssh.ClientConfig{User: u.User.Username(), Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: check, Timeout: 30 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("source.url: %s: %w", host, err)
	}
	c, err := sftp.NewClient(conn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("source.url: %s: %w", host, err), conn.Close())
	}
	return &box{Client: c, ssh: conn, dir: u.Path}, nil
}

func (b *box) list(ctx context.Context) (map[string]int64, error) {
	infos, err := b.ReadDirContext(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for _, i := range infos {
		if i.Mode().IsRegular() {
			out[i.Name()] = i.Size()
		}
	}
	return out, nil
}

func (b *box) open(_ context.Context, name string) (io.ReadCloser, error) {
	return b.Client.Open(path.Join(b.dir, name))
}

func (b *box) close() error {
	_ = b.Client.Close() // it says that the connection is gone, which ssh's own Close tells
	return b.ssh.Close()
}
