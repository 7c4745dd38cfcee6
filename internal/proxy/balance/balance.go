// Package balance decides which machine a request goes to, and which sleeping
// one it wakes. It is pure: loads, states and randomness are arguments. The
// rules are those of the Fly docs' pages "Load balancing" and "Autostop/autostart
// Machines": the soft limit matters inside a region, the hard limit everywhere.
package balance

import (
	root "github.com/roost-run/roost"
)

// Readiness says how far a machine is from answering.
type Readiness uint8

// The values of Readiness.
const (
	Off    Readiness = iota // cannot answer, and a request does not change that
	Asleep                  // stopped: a request may start it
	Frozen                  // suspended: takes the request at once, then wakes
	Coming                  // on its way: being created or started, or not answering yet
	Ready                   // answers
	Broken                  // runs and will not answer as it is
	Sick                    // runs and fails its checks: the last to be waited for
)

// Candidate is a machine that offers the service.
type Candidate struct {
	Machine   root.MachineID
	Region    root.Region
	Readiness Readiness
	Late      bool // asleep only: still on its way down, last to be woken
	Waking    bool // asleep or frozen only: somebody has begun to wake it
	Autostart bool
	Origin    root.Origin
	Load      int // requests and upgrades now, those that wait for it included
	Soft      int
	Hard      int // 0: no limit
}

func (c *Candidate) full() bool { return c.Hard > 0 && c.Load >= c.Hard }

// Want is what a request asks of the machine it goes to.
type Want struct {
	Local    root.Region               // the edge's own
	Instance root.MachineID            // prefer this machine
	Only     bool                      // Instance is the only one
	Regions  []root.Region             // prefer these, in order
	Strict   bool                      // other regions are not allowed
	Exclude  func(root.MachineID) bool // nil: none
}

// Step is what to do.
type Step uint8

// The steps.
const (
	Fail Step = iota // no candidate can ever take it
	Send             // to Index, which may be Frozen
	Wait             // for Index, or with Index -1 for any change
)

// Decision is the answer of Decide; indices are into the candidates, -1 none.
type Decision struct {
	Step  Step
	Index int
	Wake  int // start this one; the request need not be for it
}

// Decide picks among the candidates. random(n) returns 0 <= x < n.
func Decide(cs []Candidate, w Want, random func(n int) int) Decision {
	if w.Instance != "" {
		for i := range cs {
			if cs[i].Machine == w.Instance && (w.Exclude == nil || !w.Exclude(w.Instance)) {
				d := decide(cs, i, i+1, w, random)
				if w.Only || d.Index >= 0 && cs[i].Readiness != Sick {
					return d
				}
			}
		}
		if w.Only {
			return Decision{Step: Fail, Index: -1, Wake: -1}
		}
	}
	return decide(cs, 0, len(cs), w, random)
}

// Classes in order of preference, for machines that answer.
const (
	ownSpare   = iota // below its soft limit, made by the owner
	otherSpare        // the same, made by the app through the API
	soft              // between its limits
)

func decide(cs []Candidate, from, to int, w Want, random func(int) int) Decision {
	// The best of each kind: one pass, no allocation.
	ready := pick{index: -1, random: random}  // answers now
	coming := pick{index: -1, random: random} // waited for
	asleep := pick{index: -1, random: random}
	sick := -1
	waiting := false // a candidate is full, or broken and may recover
	for i := from; i < to; i++ {
		c := &cs[i]
		tier, allowed := w.tier(c.Region)
		if !allowed || w.Exclude != nil && w.Exclude(c.Machine) {
			continue
		}
		class := soft
		switch {
		case c.Load < c.Soft && c.Origin != root.OriginApp:
			class = ownSpare
		case c.Load < c.Soft:
			class = otherSpare
		}
		switch c.Readiness {
		case Ready:
			if c.full() {
				waiting = true
				continue
			}
			ready.offer(i, tier, class, c.Load)
		case Coming:
			waiting = true
			if !c.full() {
				coming.offer(i, tier, class, c.Load)
			}
		case Sick:
			waiting = true
			if sick < 0 {
				sick = i
			}
		case Asleep, Frozen:
			if !c.Autostart {
				continue
			}
			rank := 0
			if c.Origin == root.OriginApp {
				rank = 4
			}
			if c.Late {
				rank += 2
			}
			if c.Readiness == Asleep {
				rank++
			}
			if c.Waking && class != soft {
				rank = -1 // who looks again does not wake another one
			}
			asleep.offer(i, tier, rank, 0)
		}
	}
	d := Decision{Step: Fail, Index: -1, Wake: -1}
	switch {
	case ready.index >= 0:
		d.Step, d.Index = Send, ready.index
		// All of that region are at their soft limit: wake one more, unless
		// one with room is coming anyway.
		if ready.class == soft && asleep.index >= 0 && (coming.index < 0 || coming.class == soft) {
			d.Wake = asleep.index
		}
	case coming.index >= 0 && (coming.class != soft || asleep.index < 0):
		d.Step, d.Index = Wait, coming.index
	case asleep.index >= 0:
		d.Step, d.Index, d.Wake = Wait, asleep.index, asleep.index
		if cs[asleep.index].Readiness == Frozen {
			d.Step = Send
		}
	case waiting:
		d.Step, d.Index = Wait, sick
	}
	return d
}

// pick keeps the best of what it is offered: nearest, then class, then load,
// then a random one.
type pick struct {
	index, tier, class, load int
	equals                   int
	random                   func(int) int
}

func (p *pick) offer(i, tier, class, load int) {
	if p.index >= 0 {
		d := compare(tier, p.tier)
		if d == 0 {
			d = compare(class, p.class)
		}
		if d == 0 {
			d = compare(load, p.load)
		}
		if d > 0 {
			return
		}
		if d == 0 {
			p.equals++
			if p.random(p.equals) != 0 {
				return
			}
			p.index = i
			return
		}
	}
	p.index, p.tier, p.class, p.load, p.equals = i, tier, class, load, 1
}

func compare(a, b int) int { return a - b }

// tier is how near a region is; smaller is nearer.
func (w *Want) tier(r root.Region) (tier int, allowed bool) {
	for i, want := range w.Regions {
		if want == r {
			return i, true
		}
	}
	if w.Strict {
		return 0, false
	}
	if r == w.Local {
		return len(w.Regions), true
	}
	return len(w.Regions) + 1, true
}
