package replica

import (
	"context"
	"time"

	"github.com/lockstep-tx/lockstep/region/eventlog"
)

// words are what an origin's coordinators said last of themselves, by their id. Each speaks of its own part of the region; what the
// region said is their sum. One that restarts has another id, and may be counted twice for a while: what is told is an upper bound.
type words map[string]word

type word struct {
	live eventlog.Live
	at   time.Time
}

// wordKept is how long a coordinator may say nothing while others of its region are heard, until it counts as gone. While nobody is
// heard nobody is forgotten: the region's last word is what everybody in it said last.
const wordKept = 30 * time.Second

// learn takes a word, and forgets those who have said nothing for wordKept before it.
func (w *words) learn(live eventlog.Live, at time.Time) {
	if *w == nil {
		*w = words{}
	}
	(*w)[live.Member] = word{live, at}
	for id, one := range *w {
		if at.Sub(one.at) > wordKept {
			delete(*w, id)
		}
	}
}

func (w words) sum() (out eventlog.Live) {
	for _, one := range w {
		out.Open += one.live.Open
		out.Unpublished += one.live.Unpublished
	}
	return out
}

// eachEvery is how often every one of a peer's addresses is asked, beside the one that ask asks.
const eachEvery = 5 * time.Second

// askEach has every coordinator of a peer say its word, also the one that publishes no partition and so has no heartbeat, and all of
// them while the peer's Kafka is away.
func (s *Service) askEach(ctx context.Context, o *origin) {
	if len(o.peer.AdminURLs) < 2 {
		return
	}
	for ; ctx.Err() == nil; rest(ctx, eachEvery) {
		for _, address := range o.peer.AdminURLs {
			b, err := s.getFrom(ctx, address+"/v1/region/heads")
			var a *answer
			if err == nil {
				a, err = decodeAnswer(b)
			}
			if err != nil {
				if ctx.Err() == nil {
					s.log.Debug("a coordinator of a peer did not say how it stands", "region", o.peer.Name, "address", address, "err", err)
				}
				continue
			}
			o.learn(a.heads[o.peer.Index], &a.live)
		}
	}
}
