package balance

import (
	"math/rand/v2"
	"testing"

	root "github.com/roost-run/roost"
)

// c makes a candidate in the local region with room for 10 and 20.
func c(id root.MachineID, r Readiness, load int, edit ...func(*Candidate)) Candidate {
	x := Candidate{Machine: id, Region: "loc", Readiness: r, Autostart: true, Origin: root.OriginUser, Load: load, Soft: 10, Hard: 20}
	for _, f := range edit {
		f(&x)
	}
	return x
}

func in(r root.Region) func(*Candidate) { return func(c *Candidate) { c.Region = r } }
func manual(c *Candidate)               { c.Autostart = false }
func byApp(c *Candidate)                { c.Origin = root.OriginApp }
func late(c *Candidate)                 { c.Late = true }
func waking(c *Candidate)               { c.Waking = true }
func unlimited(c *Candidate)            { c.Hard = 0 }

func first(int) int { return 1 } // keeps the first of equals

func TestDecide(t *testing.T) {
	exclude := func(id root.MachineID) func(root.MachineID) bool {
		return func(m root.MachineID) bool { return m == id }
	}
	for _, tt := range []struct {
		name string
		cs   []Candidate
		want Want
		step Step
		at   root.MachineID // of Index
		wake root.MachineID
	}{
		{"nobody", nil, Want{}, Fail, "", ""},
		{"the least loaded", []Candidate{c("a", Ready, 3), c("b", Ready, 1), c("c", Ready, 2)}, Want{}, Send, "b", ""},
		{"below soft is preferred", []Candidate{c("a", Ready, 10), c("b", Ready, 9)}, Want{}, Send, "b", ""},
		{"above soft if all are", []Candidate{c("a", Ready, 12), c("b", Ready, 11)}, Want{}, Send, "b", ""},
		{"never at hard", []Candidate{c("a", Ready, 20), c("b", Ready, 19)}, Want{}, Send, "b", ""},
		{"all at hard wait", []Candidate{c("a", Ready, 20), c("b", Ready, 25)}, Want{}, Wait, "", ""},
		{"no hard limit", []Candidate{c("a", Ready, 2000, unlimited)}, Want{}, Send, "a", ""},
		{"soft does not spill to another region", []Candidate{c("a", Ready, 15), c("b", Ready, 0, in("fra"))}, Want{}, Send, "a", ""},
		{"hard spills to another region", []Candidate{c("a", Ready, 20), c("b", Ready, 0, in("fra"))}, Want{}, Send, "b", ""},
		{"ill health spills to another region", []Candidate{c("a", Coming, 0), c("b", Ready, 0, in("fra"))}, Want{}, Send, "b", ""},

		{"one below soft: nobody is woken", []Candidate{c("a", Ready, 9), c("b", Asleep, 0)}, Want{}, Send, "a", ""},
		{"all above soft: one is woken, those serve meanwhile", []Candidate{c("a", Ready, 10), c("b", Asleep, 0)}, Want{}, Send, "a", "b"},
		{"all above soft, one with room is coming", []Candidate{c("a", Ready, 10), c("b", Asleep, 0), c("c", Coming, 0)}, Want{}, Send, "a", ""},
		{"all above soft, the coming one is spoken for", []Candidate{c("a", Ready, 10), c("b", Asleep, 0), c("c", Coming, 10)}, Want{}, Send, "a", "b"},
		{"all at hard: one is woken and waited for", []Candidate{c("a", Ready, 20), c("b", Asleep, 0)}, Want{}, Wait, "b", "b"},
		{"nobody runs", []Candidate{c("a", Asleep, 0)}, Want{}, Wait, "a", "a"},
		{"suspended takes it at once", []Candidate{c("a", Frozen, 0)}, Want{}, Send, "a", "a"},
		{"suspended before stopped", []Candidate{c("a", Asleep, 0), c("b", Frozen, 0)}, Want{}, Send, "b", "b"},
		{"on its way down is last", []Candidate{c("a", Asleep, 0, late), c("b", Asleep, 0)}, Want{}, Wait, "b", "b"},
		{"the one that is being woken already", []Candidate{c("a", Asleep, 0), c("b", Asleep, 1, waking)}, Want{}, Wait, "b", "b"},
		{"that before one that is quicker to wake", []Candidate{c("a", Frozen, 0), c("b", Asleep, 1, late, waking)}, Want{}, Wait, "b", "b"},
		{"not when it is spoken for", []Candidate{c("a", Asleep, 0), c("b", Asleep, 10, waking)}, Want{}, Wait, "a", "a"},
		{"all above soft, one is being woken", []Candidate{c("a", Ready, 10), c("b", Asleep, 0), c("c", Asleep, 1, waking)}, Want{}, Send, "a", "c"},
		{"the owner's before the app's", []Candidate{c("a", Frozen, 0, byApp), c("b", Asleep, 0), c("c", Asleep, 0, late)}, Want{}, Wait, "b", "b"},
		{"even on its way down", []Candidate{c("a", Frozen, 0, byApp), c("b", Asleep, 0, late)}, Want{}, Wait, "b", "b"},
		{"the app's if there is no other", []Candidate{c("a", Frozen, 0, byApp)}, Want{}, Send, "a", "a"},
		{"among those that run, the owner's first", []Candidate{c("a", Ready, 0, byApp), c("b", Ready, 9)}, Want{}, Send, "b", ""},
		{"then the app's, up to its soft limit", []Candidate{c("a", Ready, 9, byApp), c("b", Ready, 10)}, Want{}, Send, "a", ""},
		{"the nearest is woken", []Candidate{c("a", Asleep, 0, in("fra")), c("b", Asleep, 0)}, Want{}, Wait, "b", "b"},
		{"without autostart nobody is woken", []Candidate{c("a", Asleep, 0, manual), c("b", Frozen, 0, manual)}, Want{}, Fail, "", ""},
		{"a coming one is waited for", []Candidate{c("a", Coming, 0), c("b", Asleep, 0)}, Want{}, Wait, "a", ""},
		{"a coming one without room: the next is woken", []Candidate{c("a", Coming, 10), c("b", Asleep, 0)}, Want{}, Wait, "b", "b"},
		{"a coming one without autostart too", []Candidate{c("a", Coming, 0, manual)}, Want{}, Wait, "a", ""},
		{"a coming one above soft if there is no other", []Candidate{c("a", Coming, 15)}, Want{}, Wait, "a", ""},
		{"broken ones are not waited for", []Candidate{c("a", Broken, 0), c("b", Off, 0)}, Want{}, Fail, "", ""},

		{"a sick one gets nothing", []Candidate{c("a", Sick, 0), c("b", Ready, 15)}, Want{}, Send, "b", ""},
		{"another is woken rather than a sick one waited for", []Candidate{c("a", Sick, 0), c("b", Asleep, 0)}, Want{}, Wait, "b", "b"},
		{"a coming one is waited for before a sick one", []Candidate{c("a", Sick, 0), c("b", Coming, 0)}, Want{}, Wait, "b", ""},
		{"sick ones are waited for if there is no other", []Candidate{c("a", Broken, 0), c("b", Sick, 0)}, Want{}, Wait, "b", ""},
		{"prefer a sick instance", []Candidate{c("a", Ready, 0), c("b", Sick, 0)}, Want{Instance: "b"}, Send, "a", ""},
		{"prefer a sick instance that is alone", []Candidate{c("b", Sick, 0)}, Want{Instance: "b"}, Wait, "b", ""},
		{"force a sick instance", []Candidate{c("a", Ready, 0), c("b", Sick, 0)}, Want{Instance: "b", Only: true}, Wait, "b", ""},

		{"excluded", []Candidate{c("a", Ready, 0), c("b", Ready, 9)}, Want{Exclude: exclude("a")}, Send, "b", ""},
		{"only one, excluded", []Candidate{c("a", Ready, 0)}, Want{Exclude: exclude("a")}, Fail, "", ""},
		{"prefer an instance", []Candidate{c("a", Ready, 0), c("b", Ready, 15)}, Want{Instance: "b"}, Send, "b", ""},
		{"prefer a sleeping instance", []Candidate{c("a", Ready, 0), c("b", Asleep, 0)}, Want{Instance: "b"}, Wait, "b", "b"},
		{"prefer an instance that is full", []Candidate{c("a", Ready, 0), c("b", Ready, 20)}, Want{Instance: "b"}, Send, "a", ""},
		{"prefer an instance that is off", []Candidate{c("a", Ready, 0), c("b", Off, 0)}, Want{Instance: "b"}, Send, "a", ""},
		{"prefer an unknown instance", []Candidate{c("a", Ready, 0)}, Want{Instance: "x"}, Send, "a", ""},
		{"force an instance", []Candidate{c("a", Ready, 0), c("b", Ready, 15)}, Want{Instance: "b", Only: true}, Send, "b", ""},
		{"force a full instance", []Candidate{c("a", Ready, 0), c("b", Ready, 20)}, Want{Instance: "b", Only: true}, Wait, "", ""},
		{"force an instance that is off", []Candidate{c("a", Ready, 0), c("b", Off, 0)}, Want{Instance: "b", Only: true}, Fail, "", ""},
		{"force an unknown instance", []Candidate{c("a", Ready, 0)}, Want{Instance: "x", Only: true}, Fail, "", ""},
		{"force a sleeping instance", []Candidate{c("a", Ready, 0), c("b", Frozen, 0)}, Want{Instance: "b", Only: true}, Send, "b", "b"},

		{"prefer regions in order", []Candidate{c("a", Ready, 0), c("b", Ready, 0, in("fra")), c("c", Ready, 0, in("ams"))}, Want{Regions: []root.Region{"ams", "fra"}}, Send, "c", ""},
		{"prefer a region without machines", []Candidate{c("a", Ready, 0), c("b", Ready, 0, in("fra"))}, Want{Regions: []root.Region{"ams"}}, Send, "a", ""},
		{"force regions", []Candidate{c("a", Ready, 0), c("b", Ready, 15, in("fra"))}, Want{Regions: []root.Region{"fra"}, Strict: true}, Send, "b", ""},
		{"force a region without machines", []Candidate{c("a", Ready, 0)}, Want{Regions: []root.Region{"fra"}, Strict: true}, Fail, "", ""},
		{"force a region that sleeps", []Candidate{c("a", Ready, 0), c("b", Asleep, 0, in("fra"))}, Want{Regions: []root.Region{"fra"}, Strict: true}, Wait, "b", "b"},
	} {
		tt.want.Local = "loc"
		d := Decide(tt.cs, tt.want, first)
		name := func(i int) root.MachineID {
			if i < 0 {
				return ""
			}
			return tt.cs[i].Machine
		}
		if d.Step != tt.step || name(d.Index) != tt.at || name(d.Wake) != tt.wake {
			t.Errorf("%s: got step %d at %q waking %q, want step %d at %q waking %q", tt.name, d.Step, name(d.Index), name(d.Wake), tt.step, tt.at, tt.wake)
		}
	}
}

// TestFair checks that equals are picked equally often.
func TestFair(t *testing.T) {
	cs := []Candidate{c("a", Ready, 1), c("b", Ready, 1), c("x", Ready, 2), c("c", Ready, 1)}
	r := rand.New(rand.NewPCG(1, 2))
	counts := make(map[root.MachineID]int)
	const n = 3000
	for range n {
		counts[cs[Decide(cs, Want{Local: "loc"}, r.IntN).Index].Machine]++
	}
	for _, id := range []root.MachineID{"a", "b", "c"} {
		if got := counts[id]; got < n/3-150 || got > n/3+150 {
			t.Errorf("%s was picked %d times of %d, want about a third", id, got, n)
		}
	}
}

func BenchmarkPick(b *testing.B) {
	var cs []Candidate
	for i := range 10 {
		cs = append(cs, c(root.MachineID(rune('a'+i)), Ready, i%4))
	}
	w := Want{Local: "loc"}
	b.ReportAllocs()
	for b.Loop() {
		if d := Decide(cs, w, rand.IntN); d.Step != Send {
			b.Fatal(d)
		}
	}
}
