package state

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	root "github.com/roost-run/roost"
	"github.com/roost-run/roost/internal/etcd/etcdtest"
)

func BenchmarkPutStatus(b *testing.B) {
	s := New(etcdtest.New(b))
	if _, err := s.CreateApp(b.Context(), root.App{Name: "shop", Org: "personal"}); err != nil {
		b.Fatal(err)
	}
	m := testMachine(1)
	if _, err := s.CreateMachine(b.Context(), m); err != nil {
		b.Fatal(err)
	}
	status := root.Status{State: root.StateStarted, Events: make([]root.Event, root.MaxEvents)}
	b.ReportAllocs()
	for b.Loop() {
		status.Stamp.Seq++
		status.Stamp.Boot = 2
		if _, err := s.PutStatus(b.Context(), m.ID, status); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkToken is what each API request with a token costs.
func BenchmarkToken(b *testing.B) {
	s := New(etcdtest.New(b))
	h := root.TokenHash{1}
	if _, err := s.PutToken(b.Context(), root.Token{Hash: h, Scope: root.ScopeOrg}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if t, err := s.Token(b.Context(), h); err != nil || t == nil {
			b.Fatal(t, err)
		}
	}
}

// BenchmarkLoad reads 10,000 machines.
func BenchmarkLoad(b *testing.B) {
	s := New(etcdtest.New(b))
	var ops []clientv3.Op
	for i := 1; i <= 10_000; i++ {
		m := testMachine(i)
		ops = append(ops, clientv3.OpPut(specKey(m.ID), encode(fromMachine(m, nil))), clientv3.OpPut(statusKey(m.ID), encode(fromStatus(m.Status))))
		if len(ops) == 100 || i == 10_000 {
			if _, err := s.client.Txn(b.Context()).Then(ops...).Commit(); err != nil {
				b.Fatal(err)
			}
			ops = nil
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Load(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
