package network

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// permit lets the machine send from its addresses, and meet its network. What
// is left of an earlier machine with this interface goes first.
func (n *Network) permit(p parsed) error {
	add := func() error {
		return n.nft(func(c *nftables.Conn) error {
			for set, elements := range n.sets.elements(p) {
				if err := c.SetAddElements(set, elements); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := n.onlyThis(p)
	if err == nil {
		err = add()
	}
	return err
}

// onlyThis removes what the sets hold of the interface, unless it is what the
// attachment wants.
func (n *Network) onlyThis(p parsed) error {
	if l, err := linkByName(n.nl, p.Interface); err != nil || l == nil {
		if err != nil {
			return err
		}
		// The usual case: a new machine. Adding fails on a leftover with
		// another network, and then it is worth reading all sets.
		err := n.nft(func(c *nftables.Conn) error {
			return c.SetAddElements(n.sets.networks, n.sets.elements(p)[n.sets.networks])
		})
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return n.purge(p.Interface, n.sets.elements(p))
}

// purge removes every element of the interface except keep.
func (n *Network) purge(iface string, keep map[*nftables.Set][]nftables.SetElement) error {
	name := ifname(iface)
	for set, at := range n.sets.perMachine() {
		if keep != nil && (set == n.sets.suspended || set == n.sets.woken || set == n.sets.traffic) {
			continue // the supervisor's, and counts
		}
		var stale []nftables.SetElement
		elements, err := n.elements(set)
		if err != nil {
			return err
		}
		for _, e := range elements {
			if len(e.Key) < at+len(name) || !bytes.Equal(e.Key[at:at+len(name)], name) || contains(keep[set], e) {
				continue
			}
			e.Counter, e.Timeout, e.Expires = nil, 0, 0
			stale = append(stale, e)
		}
		if len(stale) == 0 {
			continue
		}
		err = n.nft(func(c *nftables.Conn) error { return c.SetDeleteElements(set, stale) })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget %s in %s: %w", iface, set.Name, err)
		}
	}
	return nil
}

func contains(elements []nftables.SetElement, e nftables.SetElement) bool {
	for _, k := range elements {
		if bytes.Equal(k.Key, e.Key) && bytes.Equal(k.Val, e.Val) {
			return true
		}
	}
	return false
}

func (n *Network) elements(set *nftables.Set) (elements []nftables.SetElement, err error) {
	err = n.nft(func(c *nftables.Conn) (err error) {
		elements, err = c.GetSetElements(set)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", set.Name, err)
	}
	return elements, nil
}

// forbid undoes permit, and empties what packets and the supervisor filled.
// Each element is added before it is deleted: within one transaction that
// makes absence no error, which would cost the kernel a grace period.
func (n *Network) forbid(a Attachment) error {
	p, err := a.parse()
	if err != nil {
		return n.purge(a.Interface, nil) // all that is known is the name
	}
	err = n.nft(func(c *nftables.Conn) error {
		gone := n.sets.elements(p)
		gone[n.sets.suspended] = []nftables.SetElement{{Key: ifname(a.Interface)}}
		gone[n.sets.traffic] = gone[n.sets.suspended]
		for set, elements := range gone {
			if err := errors.Join(c.SetAddElements(set, elements), c.SetDeleteElements(set, elements)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return n.purge(a.Interface, nil) // it was in another network
	}
	return nil
}
