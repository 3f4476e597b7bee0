package config

import (
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"sort"
	"strconv"
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

// CheckValues parses the values of a file or of the environment by the kind of their field. It gives the values that
// can be parsed and an error with every one that cannot.
func CheckValues(values map[string]string, where string) (map[string]string, error) {
	t := reflect.TypeFor[Config]()
	good := map[string]string{}
	var errs []error
	for i := range t.NumField() {
		f := t.Field(i)
		v, ok := values[Key(f)]
		if !ok {
			continue
		}
		var err error
		var want string
		switch {
		case f.Type == reflect.TypeFor[time.Duration]():
			_, err = time.ParseDuration(v)
			want = "a time such as 90s or 24h"
		case f.Type.Kind() == reflect.Bool:
			_, err = strconv.ParseBool(v)
			want = "true or false"
		case f.Type.Kind() == reflect.Int || f.Type.Kind() == reflect.Int64:
			_, err = strconv.ParseInt(v, 10, 64)
			want = "a whole number"
		case f.Type.Kind() == reflect.Float64:
			_, err = strconv.ParseFloat(v, 64)
			want = "a number"
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %q in %s is not %s", Key(f), v, where, want))
			continue
		}
		good[Key(f)] = v
	}
	return good, errors.Join(errs...)
}

// Environment reads the variables of all keys.
func Environment(getenv func(string) string) map[string]string {
	out := map[string]string{}
	for _, k := range Keys() {
		if v := getenv(EnvName(k)); v != "" {
			out[k] = v
		}
	}
	return out
}

// Defaults gives every key's default as a file has it.
func Defaults() map[string]string {
	t := reflect.TypeFor[Config]()
	out := map[string]string{}
	for i := range t.NumField() {
		f := t.Field(i)
		if Key(f) == "config" {
			continue
		}
		def := f.Tag.Get("default")
		switch {
		case def == "" && f.Type.Kind() == reflect.Bool:
			def = "false"
		case f.Type == reflect.TypeFor[time.Duration]():
			if d, err := time.ParseDuration(def); err == nil {
				def = d.String()
			}
		}
		out[Key(f)] = def
	}
	return out
}
