package engine

import "container/heap"

// timer is an entry's place in the heap; at 0 means that it is not in it.
type timer struct {
	at    int64
	index int
}

// timers is a heap of entries by wake time: one per transaction.
type timers struct{ h timerHeap }

// set gives e its wake; 0 takes it out.
func (t *timers) set(e *entry, at int64) {
	switch {
	case e.timer.at == 0 && at == 0:
	case e.timer.at == 0:
		e.timer.at = at
		heap.Push(&t.h, e)
	case at == 0:
		heap.Remove(&t.h, e.timer.index)
		e.timer.at = 0
	case e.timer.at != at:
		e.timer.at = at
		heap.Fix(&t.h, e.timer.index)
	}
}

// pop gives an entry whose wake is due at the time given, and takes its timer out; nil when there is none.
func (t *timers) pop(at int64) *entry {
	if len(t.h) == 0 || t.h[0].timer.at > at {
		return nil
	}
	e := heap.Pop(&t.h).(*entry)
	e.timer.at = 0
	return e
}

func (t *timers) next() int64 {
	if len(t.h) == 0 {
		return 0
	}
	return t.h[0].timer.at
}

// due calls each for every entry whose wake is due at the time given.
func (t *timers) due(at int64, each func(*entry)) {
	for _, e := range t.h {
		if e.timer.at <= at {
			each(e)
		}
	}
}

type timerHeap []*entry

func (h timerHeap) Len() int { return len(h) }

// Less orders by time, then by gid, so that the same seed gives the same run.
func (h timerHeap) Less(i, j int) bool {
	if h[i].timer.at != h[j].timer.at {
		return h[i].timer.at < h[j].timer.at
	}
	return h[i].tx.State.Gid < h[j].tx.State.Gid
}
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].timer.index, h[j].timer.index = i, j
}

// Push and Pop serve container/heap.
func (h *timerHeap) Push(x any) {
	e := x.(*entry)
	e.timer.index = len(*h)
	*h = append(*h, e)
}

func (h *timerHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
