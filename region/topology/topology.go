// Package topology reads the file that says where the regions and the arbiter are. Coordinators and the operator's command
// line share it, so that a region can be moved while it, and everything else that would be asked for addresses, is gone.
//
// The law it keeps: every fault is reported at once with its key, and a key that is not known is a fault.
package topology

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"
)

// File is the whole of it.
type File struct {
	// Arbiter lists the client addresses of the arbiter's members, HOST:PORT.
	Arbiter []string `yaml:"arbiter"`
	// ArbiterCa, ArbiterCert and ArbiterKey turn TLS on towards the arbiter.
	ArbiterCa   string `yaml:"arbiter-ca,omitempty"`
	ArbiterCert string `yaml:"arbiter-cert,omitempty"`
	ArbiterKey  string `yaml:"arbiter-key,omitempty"`
	// Partitions of each region's topic in Kafka; fixed for ever once events were published. Defaults to 4.
	Partitions int `yaml:"partitions,omitempty"`
	// Regions by name.
	Regions map[string]Region `yaml:"regions"`
}

// Region is where one region is reached.
type Region struct {
	// Grpc and Admin list its coordinators' addresses: HOST:PORT, and http(s)://HOST:PORT.
	Grpc  []string `yaml:"grpc"`
	Admin []string `yaml:"admin"`
	// Kafka lists its brokers, HOST:PORT.
	Kafka []string `yaml:"kafka"`
	// KafkaCa, KafkaCert and KafkaKey (PEM files) turn TLS on towards them; the certificate is for brokers that ask for one.
	KafkaCa   string `yaml:"kafka-ca,omitempty"`
	KafkaCert string `yaml:"kafka-cert,omitempty"`
	KafkaKey  string `yaml:"kafka-key,omitempty"`
}

// DefaultPartitions of a region's topic.
const DefaultPartitions = 4

// Load reads and checks a file. Arbiter's members, where given (HOST:PORT), take the place of those in the file.
func Load(path string, arbiter ...string) (*File, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("regions file: %w", err)
	}
	f := &File{}
	dec := yaml.NewDecoder(strings.NewReader(string(raw)))
	dec.KnownFields(true)
	if err := dec.Decode(f); err != nil {
		return nil, fmt.Errorf("regions file %s: %w", path, err)
	}
	if len(arbiter) > 0 {
		f.Arbiter = arbiter
	}
	if f.Partitions == 0 {
		f.Partitions = DefaultPartitions
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("regions file %s: %w", path, err)
	}
	return f, nil
}

func (f *File) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	address := func(key, a string) {
		if _, port, err := net.SplitHostPort(a); err != nil || port == "" {
			bad("%s: %q is no HOST:PORT", key, a)
		}
	}
	if len(f.Arbiter) == 0 {
		bad("arbiter: no address; list every member")
	}
	for _, a := range f.Arbiter {
		address("arbiter", a)
	}
	if (f.ArbiterCert == "") != (f.ArbiterKey == "") {
		bad("arbiter-cert: arbiter-cert and arbiter-key belong together")
	}
	if f.Partitions < 1 || f.Partitions > 1024 {
		bad("partitions: %d; 1 to 1024 are possible", f.Partitions)
	}
	if len(f.Regions) == 0 {
		bad("regions: none")
	}
	for _, name := range f.Names() {
		r := f.Regions[name]
		for key, list := range map[string][]string{"grpc": r.Grpc, "kafka": r.Kafka} {
			if len(list) == 0 {
				bad("regions.%s.%s: no address", name, key)
			}
			for _, a := range list {
				address("regions."+name+"."+key, a)
			}
		}
		if (r.KafkaCert == "") != (r.KafkaKey == "") || r.KafkaCert != "" && r.KafkaCa == "" {
			bad("regions.%s.kafka-cert: kafka-cert and kafka-key belong together, and with kafka-ca", name)
		}
		if len(r.Admin) == 0 {
			bad("regions.%s.admin: no address", name)
		}
		for _, a := range r.Admin {
			if u, err := url.Parse(a); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
				bad("regions.%s.admin: %q is no http(s)://HOST:PORT", name, a)
			}
		}
	}
	return errors.Join(errs...)
}

// Names lists the regions in the order of their names.
func (f *File) Names() []string {
	var out []string
	for name := range f.Regions {
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}
