package network

import (
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// remembered are the host's settings before any instance of Roost changed
// them. They are written on the uplink itself, as its alias, before the change:
// so they survive a crash, and go with the network they speak of.
type remembered []sysctl

const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

// touched are the settings that switching forwarding changes: the kernel
// itself changes accept_redirects, and forwarding of each interface.
var touched = []string{forward4, "ipv4/conf/all/accept_redirects", forward6}

func (r remembered) get(path string) string {
	for _, s := range r {
		if s.path == path {
			return s.value
		}
	}
	return ""
}

// alias prints what fits; the settings that do not are interfaces' own.
func (r remembered) alias() string {
	s := "roost"
	for _, word := range r {
		if next := s + " " + word.path + "=" + word.value; len(next) < maxAlias {
			s = next
		}
	}
	return s
}

func parseAlias(alias string) (remembered, bool) {
	words := strings.Fields(alias)
	if len(words) == 0 || words[0] != "roost" {
		return nil, false
	}
	var r remembered
	for _, word := range words[1:] {
		if path, value, ok := strings.Cut(word, "="); ok {
			r = append(r, sysctl{path, value})
		}
	}
	return r, r.get(forward4) != ""
}

// readHost reads the settings, in the host's namespace.
func readHost() (remembered, error) {
	var r remembered
	for _, path := range touched {
		value, err := getSysctl(path)
		if err != nil {
			return nil, err
		}
		r = append(r, sysctl{path, value})
	}
	for _, family := range []struct{ dir, all string }{{"ipv4/conf", forward4}, {"ipv6/conf", forward6}} {
		entries, err := os.ReadDir("/proc/sys/net/" + family.dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			path := family.dir + "/" + e.Name() + "/forwarding"
			value, err := getSysctl(path)
			if err == nil && e.Name() != "all" && value != r.get(family.all) && !strings.HasPrefix(e.Name(), hostLink("")) {
				r = append(r, sysctl{path, value})
			}
		}
	}
	return r, nil
}

// rememberHost writes how the host forwards now on the uplink. While another
// instance is up, it is that one that knows how the host was.
func (r *Router) rememberHost(link netlink.Link) (remembered, error) {
	var was remembered
	others, err := otherUplinks(r.hostNL, r.o.Name)
	if err != nil {
		return nil, err
	}
	for _, o := range others {
		if w, ok := parseAlias(o.Attrs().Alias); ok {
			was = w
		}
	}
	if was == nil {
		err := within(r.host, func() (err error) {
			was, err = readHost()
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the host's forwarding: %w", err)
		}
	}
	if err := r.hostNL.LinkSetAlias(link, was.alias()); err != nil {
		return nil, fmt.Errorf("remember the host's forwarding: %w", err)
	}
	return was, nil
}

// forget restores the forwarding that the uplink remembers, unless somebody
// needs it still: another instance, which remembers the same, or a bridge with
// an address, which is how container tools and hypervisors connect theirs.
func (r *Router) forget(link netlink.Link) error {
	was, ok := parseAlias(link.Attrs().Alias)
	if !ok {
		return nil
	}
	others, err := otherUplinks(r.hostNL, r.o.Name)
	if err != nil || len(others) > 0 {
		return err
	}
	links, err := r.hostNL.LinkList()
	if err != nil {
		return fmt.Errorf("list the host's links: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if l.Type() != "bridge" || was.get(forward4) != "0" {
			continue
		}
		if addrs, err := r.hostNL.AddrList(l, unix.AF_INET); err == nil && len(addrs) > 0 {
			r.log.Warn("forwarding stays on: a bridge on the host seems to need it", "link", name)
			return nil
		}
	}
	err = within(r.host, func() error {
		for _, s := range was {
			// Writing forwarding resets every interface: not when nothing changed.
			if now, err := getSysctl(s.path); err != nil || now == s.value {
				continue // an interface that is gone, or nothing to do
			}
			if err := setSysctls(s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("restore the host's forwarding: %w", err)
	}
	return nil
}
