package dtmimport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisStore is DTM's store on Redis: <prefix>_g_<gid> is a transaction's JSON, <prefix>_b_<gid> the list of its
// branches' JSON, <prefix>_s_<gid> its status once more, <prefix>_u the queue of what is due.
type redisStore struct {
	c      *redis.Client
	prefix string
}

func openRedis(_ context.Context, u *url.URL, src Source) (store, error) {
	o, err := redis.ParseURL(u.String())
	if err != nil {
		return nil, err
	}
	prefix := src.RedisPrefix
	if prefix == "" {
		prefix = "{a}"
	}
	return &redisStore{c: redis.NewClient(o), prefix: prefix}, nil
}

func (s *redisStore) close() error { return s.c.Close() }

// lossy: on Redis DTM writes every result before it goes on.
func (s *redisStore) lossy() bool { return false }

// inUse asks how long nobody has looked at DTM's queue.
func (s *redisStore) inUse(ctx context.Context) (bool, error) {
	idle, err := s.c.ObjectIdleTime(ctx, s.prefix+"_u").Result()
	if errors.Is(err, redis.Nil) {
		return false, nil // no queue: nothing is open
	}
	return idle < quiet, err
}

func (s *redisStore) open(ctx context.Context) ([]found, error) {
	begin := s.prefix + "_g_"
	var out []found
	seen := map[string]bool{}
	for cursor := uint64(0); ; {
		keys, next, err := s.c.Scan(ctx, cursor, globEscape(begin)+"*", 500).Result()
		if err != nil {
			return nil, err
		}
		if len(keys) > 0 {
			values, err := s.c.MGet(ctx, keys...).Result()
			if err != nil {
				return nil, err
			}
			for i, v := range values {
				text, ok := v.(string)
				if !ok || seen[keys[i]] {
					continue // ended and expired meanwhile, or listed before: SCAN may give a key twice
				}
				seen[keys[i]] = true
				f, isOpen := decodeRedis(strings.TrimPrefix(keys[i], begin), text)
				if !isOpen {
					continue
				}
				if f.err == nil {
					if err := s.branches(ctx, &f); err != nil {
						return nil, err
					}
				}
				out = append(out, f)
			}
		}
		if cursor = next; cursor == 0 {
			return out, nil
		}
	}
}

// decodeRedis reads a transaction's JSON; false for one that has ended.
func decodeRedis(gid, text string) (found, bool) {
	var v struct {
		global
		CreateTime *time.Time `json:"create_time"`
		UpdateTime *time.Time `json:"update_time"`
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return found{global: global{Gid: gid}, err: fmt.Errorf("its value in Redis is not DTM's JSON: %w", err)}, true
	}
	f := found{global: v.global}
	if v.CreateTime != nil {
		f.Created = *v.CreateTime
	}
	if v.UpdateTime != nil {
		f.Updated = *v.UpdateTime
	}
	if f.Gid != gid {
		f.err = fmt.Errorf("its value in Redis is that of %q", f.Gid)
		f.Gid = gid
	}
	return f, f.Status == "prepared" || f.Status == "submitted" || f.Status == "aborting"
}

func (s *redisStore) branches(ctx context.Context, f *found) error {
	status, err := s.c.Get(ctx, s.prefix+"_s_"+f.Gid).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	if status != f.Status {
		f.err = fmt.Errorf("its two status keys in Redis differ: %q and %q", f.Status, status)
		return nil
	}
	list, err := s.c.LRange(ctx, s.prefix+"_b_"+f.Gid, 0, -1).Result()
	if err != nil {
		return err
	}
	for _, text := range list {
		var v struct {
			row
			CreateTime *time.Time `json:"create_time"`
			FinishTime *time.Time `json:"finish_time"`
		}
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			f.err = fmt.Errorf("a branch in Redis is not DTM's JSON: %w", err)
			return nil
		}
		if v.CreateTime != nil {
			v.Created = *v.CreateTime
		}
		if v.FinishTime != nil {
			v.Finished = *v.FinishTime
		}
		f.rows = append(f.rows, v.row)
	}
	return nil
}

// globEscape makes a text stand for itself in a pattern of SCAN.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}
