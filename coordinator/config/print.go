package config

import (
	"fmt"
	"net/url"
	"reflect"
	"sort"
	"strings"
	"time"
)

func sortErrors(errs []error) {
	sort.SliceStable(errs, func(i, j int) bool { return errs[i].Error() < errs[j].Error() })
}

// Print gives the configuration as a file that ReadFile takes, without its secrets.
func (c *Config) Print() string {
	var b strings.Builder
	v, t := reflect.ValueOf(c).Elem(), reflect.TypeFor[Config]()
	for i := range t.NumField() {
		f := t.Field(i)
		if Key(f) == "config" {
			continue
		}
		fmt.Fprintf(&b, "%s: %s\n", Key(f), show(f, v.Field(i).Interface()))
	}
	return b.String()
}

// show writes one value as YAML.
func show(f reflect.StructField, v any) string {
	switch x := v.(type) {
	case string:
		if f.Tag.Get("secret") != "" {
			x = Redact(x)
		}
		return fmt.Sprintf("%q", x)
	case []string:
		quoted := make([]string, len(x))
		for i := range x {
			quoted[i] = fmt.Sprintf("%q", x[i])
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case time.Duration:
		return x.String()
	}
	return fmt.Sprint(v)
}

// Redact takes the password and the query out of a URL.
func Redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || raw == "" {
		return ""
	}
	out := u.Redacted()
	if u.RawQuery != "" {
		out = strings.Replace(out, "?"+u.RawQuery, "?redacted", 1)
	}
	return out
}

// Reference is docs/reference/config.md.
func Reference() string {
	var b strings.Builder
	b.WriteString("# Configuration\n\nGenerated from `coordinator/config` by `make generate`. A flag wins over the environment, that over the file\n" +
		"(`--config`), that over the default. The key in the file is the flag's name; the variable is `LOCKSTEP_` and the key in\nupper case with `_` for `-`.\n")
	t := reflect.TypeFor[Config]()
	var groups []string
	rows := map[string][]string{}
	for i := range t.NumField() {
		f := t.Field(i)
		g := f.Tag.Get("group")
		if rows[g] == nil {
			groups = append(groups, g)
		}
		def := f.Tag.Get("default")
		if def == "" && f.Type.Kind() == reflect.Bool {
			def = "false"
		}
		rows[g] = append(rows[g], fmt.Sprintf("| `--%s` | `%s` | %s | %s |", Key(f), EnvName(Key(f)), def, strings.ReplaceAll(f.Tag.Get("help"), "|", "\\|")))
	}
	for _, g := range groups {
		fmt.Fprintf(&b, "\n## %s\n\n| flag | variable | default | meaning |\n|---|---|---|---|\n%s\n", g, strings.Join(rows[g], "\n"))
	}
	return b.String()
}
