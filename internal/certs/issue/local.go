package issue

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/roost-run/roost/internal/certs"
)

// metaRoot is where the local authority is kept in the cluster's state, sealed.
const metaRoot = "local_authority"

// localRoot is the local authority.
type localRoot struct{ Chain, Key string }

func (m *Manager) openLocal(ctx context.Context) error {
	box, err := m.o.Store.Meta(ctx, metaRoot)
	if err != nil {
		return err
	}
	if box == nil {
		chain, key, err := certs.NewRoot(m.o.Name, m.o.Domain, m.o.Now())
		if err != nil {
			return err
		}
		data, err := json.Marshal(localRoot{chain, key})
		if err != nil {
			return err
		}
		if box, err = m.o.Keys.Seal(data, []byte(metaRoot)); err != nil {
			return err
		}
		if box, err = m.o.Store.EnsureMeta(ctx, metaRoot, box); err != nil { // another host may have been first
			return err
		}
	}
	data, err := m.o.Keys.Open(box, []byte(metaRoot))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, &m.local)
}

// Root is the local authority's certificate, PEM: what people install to trust
// private names.
func (m *Manager) Root() string { return m.local.Chain }

// lend gives edges an issuer for the private names there are now.
func (m *Manager) lend(next *view) error {
	var names []string
	if certs.Private(m.o.Domain) {
		names = append(names, m.o.Domain, "*."+m.o.Domain)
	}
	m.mu.Lock()
	for name := range m.names {
		if certs.Private(name) {
			names = append(names, name)
		}
	}
	m.mu.Unlock()
	slices.Sort(names)
	if a := next.authority; a != nil && slices.Equal(a.Names, names) && !m.old(a) || len(names) == 0 {
		return nil
	}
	a, err := certs.NewIntermediate(m.local.Chain, m.local.Key, names, m.o.Now())
	if err != nil {
		return err
	}
	next.authority = &a
	return nil
}

func (m *Manager) old(a *certs.Authority) bool {
	leaf, err := certs.Leaf(a.Chain)
	return err != nil || leaf.NotAfter.Before(m.o.Now().Add(certs.IntermediateRenew).Add(time.Hour))
}
