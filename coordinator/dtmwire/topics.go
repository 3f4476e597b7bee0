package dtmwire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstep-tx/lockstep/coordinator/engine"
)

// topicCat is the category under which DTM keeps topics in its key-value table.
const topicCat = "topics"

// Topics are named lists of subscribers. Reads are linearizable with subscribe (D18).
type Topics struct{ kv engine.KV }

// NewTopics makes topics on the region's shared table.
func NewTopics(kv engine.KV) *Topics { return &Topics{kv: kv} }

type subscriber struct {
	URL    string `json:"url"`
	Remark string `json:"remark"`
}

func other(format string, args ...any) error {
	return &Fault{Kind: FaultUnknown, Text: fmt.Sprintf(format, args...)}
}

// URLs are the addresses of a topic's subscribers, in the order of their subscription.
func (t *Topics) URLs(ctx context.Context, name string) ([]string, error) {
	_, subs, err := t.read(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(subs) == 0 {
		return nil, other("topic not found")
	}
	urls := make([]string, len(subs))
	for i, s := range subs {
		urls[i] = s.URL
	}
	return urls, nil
}

func (t *Topics) read(ctx context.Context, name string) (engine.KVPair, []subscriber, error) {
	p, ok, err := t.kv.Find(ctx, topicCat, name)
	if err != nil {
		return p, nil, &Fault{Kind: FaultUnavailable, Text: err.Error()}
	}
	if !ok {
		return engine.KVPair{Cat: topicCat, Key: name}, nil, nil
	}
	var subs []subscriber
	if err := json.Unmarshal([]byte(p.Value), &subs); err != nil {
		return p, nil, other("topic %q cannot be read: %v", name, err)
	}
	return p, subs, nil
}

// change applies f to a topic's subscribers until nobody else changed it meanwhile.
func (t *Topics) change(ctx context.Context, name string, f func(p engine.KVPair, subs []subscriber) ([]subscriber, error)) error {
	for {
		p, subs, err := t.read(ctx, name)
		if err != nil {
			return err
		}
		if subs, err = f(p, subs); err != nil {
			return err
		}
		value, err := json.Marshal(subs)
		if err != nil {
			return other("%v", err)
		}
		p.Value = string(value)
		switch err := t.kv.Set(ctx, p); {
		case err == nil:
			return nil
		case !errors.Is(err, engine.ErrConflict):
			return &Fault{Kind: FaultUnavailable, Text: err.Error()}
		}
	}
}

// Subscribe adds a subscriber; it creates the topic.
func (t *Topics) Subscribe(ctx context.Context, name, url, remark string) error {
	if name == "" {
		return other("empty topic")
	}
	if url == "" {
		return other("empty url")
	}
	return t.change(ctx, name, func(_ engine.KVPair, subs []subscriber) ([]subscriber, error) {
		for _, s := range subs {
			if s.URL == url {
				return nil, other("this url exists")
			}
		}
		return append(subs, subscriber{URL: url, Remark: remark}), nil
	})
}

// Unsubscribe removes a subscriber; the last leaves an empty topic.
func (t *Topics) Unsubscribe(ctx context.Context, name, url string) error {
	if name == "" {
		return other("empty topic")
	}
	if url == "" {
		return other("empty url")
	}
	return t.change(ctx, name, func(p engine.KVPair, subs []subscriber) ([]subscriber, error) {
		if p.Rev == 0 {
			return nil, other("no such a topic")
		}
		if len(subs) == 0 {
			return nil, other("this topic is empty")
		}
		kept := []subscriber{}
		for _, s := range subs {
			if s.URL != url {
				kept = append(kept, s)
			}
		}
		if len(kept) == len(subs) {
			return nil, other("no such an url ")
		}
		return kept, nil
	})
}

// Delete removes a topic.
func (t *Topics) Delete(ctx context.Context, name string) error {
	for {
		p, ok, err := t.kv.Find(ctx, topicCat, name)
		if err != nil {
			return &Fault{Kind: FaultUnavailable, Text: err.Error()}
		}
		if !ok {
			return other("storage: NotFound")
		}
		switch err := t.kv.Delete(ctx, topicCat, name, p.Rev); {
		case err == nil:
			return nil
		case !errors.Is(err, engine.ErrConflict):
			return &Fault{Kind: FaultUnavailable, Text: err.Error()}
		}
	}
}

// Rows lists the table for /scanKV; Row reads one for /queryKV.
func (t *Topics) Rows(ctx context.Context, cat, after string, limit int) ([]engine.KVPair, error) {
	return t.kv.Scan(ctx, cat, after, limit)
}

// Row reads one row; false when there is none.
func (t *Topics) Row(ctx context.Context, cat, key string) (engine.KVPair, bool, error) {
	return t.kv.Find(ctx, cat, key)
}
