// Package load counts what keeps machines busy: requests in flight, upgraded
// connections, requests that wait for a machine, busy leases an app holds, and
// private traffic. An idle keep-alive connection is no load. Balancing and
// autostop read it; the proxy writes it. Safe for concurrent use.
package load

import (
	"sync"
	"time"

	root "github.com/roost-run/roost"
)

// Table holds a Unit for every instance that was asked for.
type Table struct {
	units sync.Map // root.InstanceID -> *Unit
}

// Unit returns the instance's unit, making it if needed.
func (t *Table) Unit(id root.InstanceID) *Unit {
	if v, ok := t.units.Load(id); ok {
		return v.(*Unit)
	}
	v, _ := t.units.LoadOrStore(id, &Unit{idleSince: time.Now()})
	return v.(*Unit)
}

// Counts reads an instance's unit; zero if there is none.
func (t *Table) Counts(id root.InstanceID) Counts {
	if v, ok := t.units.Load(id); ok {
		return v.(*Unit).Counts()
	}
	return Counts{}
}

// Forget drops the unit of an instance that is gone.
func (t *Table) Forget(id root.InstanceID) { t.units.Delete(id) }

// Unit is the load of one instance.
type Unit struct {
	mu        sync.Mutex
	services  []int // in flight, by index of the service
	total     int
	upgrades  int // of total
	waiting   int
	parked    bool
	drained   chan struct{} // closed when total is 0; nil: nobody waits
	peak      int           // highest total since the last Peak
	idleSince time.Time
	busyUntil time.Time
}

// Counts is a reading of a Unit.
type Counts struct {
	InFlight  int // upgrades included
	Upgrades  int
	Waiting   int
	Parked    bool
	IdleSince time.Time // when the last load went; meaningless while there is some
	BusyUntil time.Time // end of the busy lease; zero or past: none
}

// Take takes a slot of a service. It fails when the service has hard slots
// taken (hard > 0) or the unit is parked.
func (u *Unit) Take(service, hard int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for len(u.services) <= service {
		u.services = append(u.services, 0)
	}
	if u.parked || hard > 0 && u.services[service] >= hard {
		return false
	}
	u.services[service]++
	u.total++
	u.peak = max(u.peak, u.total)
	return true
}

// Release gives a slot back.
func (u *Unit) Release(service int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.services[service]--
	u.total--
	if u.total == 0 {
		u.idleSince = time.Now()
		if u.drained != nil {
			close(u.drained)
			u.drained = nil
		}
	}
}

// Peak is the most that was in flight at once since the last call.
func (u *Unit) Peak() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.peak
	u.peak = u.total
	return p
}

// Drain keeps new requests away while those in flight finish; the channel is
// closed then. It fails on a unit that is parked or has load that does not
// finish by itself: upgrades, waiting requests, a busy lease at now. Unpark
// must follow.
func (u *Unit) Drain(now time.Time) (drained <-chan struct{}, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.parked || u.upgrades > 0 || u.waiting > 0 || u.busyUntil.After(now) {
		return nil, false
	}
	u.parked = true
	c := make(chan struct{})
	if u.total == 0 {
		close(c)
	} else {
		u.drained = c
	}
	return c, true
}

// Upgraded marks n of the slots in flight as upgrades; negative ends them.
func (u *Unit) Upgraded(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.upgrades += n
}

// Wait counts n requests more that wait for this instance; negative ends them.
func (u *Unit) Wait(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.waiting += n
}

// Touch records activity that passed by the proxy.
func (u *Unit) Touch(at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if at.After(u.idleSince) {
		u.idleSince = at
	}
}

// Busy sets the end of the busy lease; the zero time ends it.
func (u *Unit) Busy(until time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); u.busyUntil.After(now) && until.Before(now) && now.After(u.idleSince) {
		u.idleSince = now
	}
	u.busyUntil = until
}

// Load is the load of one service: what it has in flight plus what waits for
// the instance. parked says that the instance is being put to sleep just now.
func (u *Unit) Load(service int) (n int, parked bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n = u.waiting
	if service < len(u.services) {
		n += u.services[service]
	}
	return n, u.parked
}

// Counts reads everything.
func (u *Unit) Counts() Counts {
	u.mu.Lock()
	defer u.mu.Unlock()
	return Counts{InFlight: u.total, Upgrades: u.upgrades, Waiting: u.waiting, Parked: u.parked, IdleSince: u.idleSince, BusyUntil: u.busyUntil}
}

// Park keeps new requests away from an instance that has been without any load
// for idle at now; it fails if there is load, or was more recently. Unpark
// must follow.
func (u *Unit) Park(now time.Time, idle time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.parked || u.total > 0 || u.waiting > 0 || u.busyUntil.After(now) || u.idleSince.Add(idle).After(now) {
		return false
	}
	u.parked = true
	return true
}

// Unpark lets requests come again.
func (u *Unit) Unpark() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parked, u.drained = false, nil
}
